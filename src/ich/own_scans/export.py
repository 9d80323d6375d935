"""A trained result as a directory that predicts anywhere: models, how they are put together, and a model card.

In OUT:

<part>/fold<k>/  the models of each part, and with `onnx` those of runs as ONNX too
README.md        the model card
ich-model.json   what the model consists of, its thresholds, and each file's SHA-256

Nothing of the training's data goes along: no identifiers, labels, folds or predictions.
"""

import shutil
import zipfile
from pathlib import Path

from tqdm import tqdm

from ich import folders
from ich.errors import IchError, name_some, one_line
from ich.files import check_own, copy_file, replacing, sha256_of, write_json
from ich.own_scans import model_card, onnx_files
from ich.own_scans.model_spec import CARD, MANIFEST, ModelSpec, read_model
from ich.results.result_directory import read_mapping

_ZIP_MARKER = f"/{MANIFEST}"  # in the name of a zip's first member


def export_model(result: Path, out: Path, onnx: bool = False) -> ModelSpec:
    """Write a result as an exported model, all of it or nothing; an earlier export of the same result is replaced.

    Args:
        result: the directory of a run, a second stage or a blend.
        out: a new or empty folder, or an export of the same result.
        onnx: write the models of runs as ONNX too, checked against Keras on images of the training.

    Returns:
        The exported model.

    Raises:
        IchError: the result cannot predict scans, or its out-of-fold predictions are missing; `out` holds something
            else, is in use or cannot be written; an ONNX file cannot be made, or predicts something else.
    """
    if (result / MANIFEST).is_file():
        raise IchError(f"{result} is an exported model already; copy it, or export the result that it was made of")
    if out.name in ("", ".."):
        raise IchError(f"--out {out} has no name of its own; name a folder, such as models/{result.resolve().name}")
    spec = read_model(result)

    def check() -> None:
        _check_place(out, spec.result)

    # The folder itself is renamed, so that its lock lies beside it.
    with folders.locked(out.parent, check, f"export-{out.name}"):
        card, thresholds = model_card.describe(result, spec)
        spec = spec.model_copy(update={"thresholds": thresholds})
        new, old = (out.parent / f".ich-export-{out.name}.{end}" for end in ("new", "old"))
        try:
            if old.exists() and not out.exists():  # an export was killed between the two renames below
                old.rename(out)
            for left in (new, old):
                if left.exists():  # by a killed export
                    shutil.rmtree(left)
            _write(spec, card, new, onnx)
            if out.exists():
                out.rename(old)
            try:
                new.rename(out)
            except OSError:
                old.rename(out)
                raise
        except OSError as error:
            raise IchError(f"cannot write {out}: {one_line(error)}; make room or rights for it") from error
        finally:
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
    return spec.moved(out)


def write_zip(model: Path) -> Path:
    """Write an exported model as a zip beside it, the same bytes for the same files.

    Returns:
        The path of the zip, `<model>.zip`, whose files lie in a folder of the model's name.

    Raises:
        IchError: another file is of that name, or the zip cannot be written.
    """
    path = model.with_name(f"{model.name}.zip")
    with folders.locked(model.parent, name=f"export-{model.name}"):
        check_own(path, f"{model.name}{_ZIP_MARKER}")
        names = [MANIFEST, CARD, *sorted(read_mapping(model / MANIFEST)["files"])]
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name in names:
                # Of a fixed time and rights; stored, as the models are compressed already.
                info = zipfile.ZipInfo(f"{model.name}/{name}", (1980, 1, 1, 0, 0, 0))
                info.external_attr = 0o644 << 16
                with (model / name).open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    return path


def _check_place(out: Path, name: str) -> None:
    """Refuse a folder that is neither empty nor an export of this result, or holds more than that."""
    if not folders.is_ours(out, folders.MODEL):
        return
    content = read_mapping(out / MANIFEST, "describes the exported model")
    if content.get("result") != name:
        raise IchError(f"{out} is an export of {content.get('result')}, not of {name}; name another folder")
    own = {MANIFEST, CARD, *content.get("files", {})}
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir() or path.is_symlink()}
    if others := sorted(there - own):
        raise IchError(f"{out} holds {name_some(others)} beside the exported model; move it, or name another folder")


def _write(spec: ModelSpec, card: str, folder: Path, onnx: bool) -> None:
    digests = {}
    for name, source in tqdm(spec.files().items(), desc="export", unit="file", disable=None):
        copy_file(source, folder / name)
        digests[name] = sha256_of(folder / name)
    if onnx:
        for name in onnx_files.write(spec, folder):
            digests[name] = sha256_of(folder / name)
    (folder / CARD).write_text(card, encoding="utf-8")
    content = spec.moved(Path()).model_dump(mode="json")
    write_json(folder / MANIFEST, content | {"files": dict(sorted(digests.items()))})
