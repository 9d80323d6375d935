"""A data set for Kaggle: the code, the wheels that its image lacks, and results with all that predicting takes.

OUT/dataset-metadata.json  title, id and licence, as `kaggle datasets create` reads them
OUT/ich-manifest.json      what is in it, and each file's SHA-256; written last
OUT/code/                  src/ich, scripts, requirements.txt, LICENSE
OUT/wheels/                of what Kaggle's image lacks, and of the Keras that wrote the models
OUT/runs/<name>/           models, config, environment, out-of-fold predictions and score
OUT/scans/                 for second stages and blends: folds.csv, and <name>/slices.parquet of the training's slices

The code travels as its source tree, not as a wheel: Python runs it from where it is mounted, so that nothing has to be
built here, and whoever opens the data set can read what ran.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from packaging.version import InvalidVersion, Version
from tqdm import tqdm

from ich import folders
from ich.errors import IchError, one_line
from ich.files import remove, replacing, sweep
from ich.images import slice_table
from ich.kaggle.notebook import MANIFEST, digest
from ich.results import environment
from ich.results.predictions import read_provenance
from ich.results.result_directory import check_result, read_mapping
from ich.training import run_directory
from ich.training.run_directory import Run

METADATA = "dataset-metadata.json"

LICENCES = (
    *("CC0-1.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "GPL-2.0", "ODbL-1.0", "DbCL-1.0"),
    *("copyright-authors", "other", "unknown", "CC-BY-4.0", "CC-BY-NC-4.0", "PDDL", "CC-BY-3.0", "CC-BY-3.0-IGO"),
    *("US-Government-Works", "CC-BY-NC-SA-3.0-IGO", "CDLA-Permissive-1.0", "CDLA-Sharing-1.0", "CC-BY-ND-4.0"),
    *("CC-BY-NC-ND-4.0", "ODC-BY-1.0", "LGPL-3.0", "AGPL-3.0", "FDL-1.3", "EU-ODP-Legal-Notice", "apache-2.0"),
    "GPL-3.0",
)
"""The names that Kaggle knows."""

_OWN = ("code", "wheels", "runs", "scans")
_DESCRIPTION = """Code under the MIT licence (code/LICENSE), and models that it trained on the images of the RSNA \
Intracranial Hemorrhage Detection challenge, which are for non-commercial research under the competition's rules. \
Made by scripts/pack_for_kaggle.py, for notebooks/kaggle_inference.ipynb."""


def metadata(id: str, title: str | None = None, licence: str = "other") -> dict:
    """What Kaggle asks of a data set.

    Args:
        id: OWNER/SLUG, as its address on Kaggle will be.
        title: of 6 to 50 characters; None takes the slug.
        licence: of `LICENCES`.

    Raises:
        IchError: one is not as Kaggle wants it.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]{2,49}", id):
        raise IchError(
            f"--id {id!r} is no id of a data set; expected your name on Kaggle and a name of 3 to 50 small letters,"
            " digits and hyphens, such as --id jane/ich-baseline"
        )
    title = title or id.partition("/")[2]
    if not 6 <= len(title) <= 50:
        raise IchError(f"the title {title!r} has {len(title)} characters; Kaggle wants 6 to 50 (--title)")
    if licence not in LICENCES:
        raise IchError(f"Kaggle knows no licence {licence!r}; there are {', '.join(LICENCES)}")
    return {"title": title, "id": id, "licenses": [{"name": licence}], "description": _DESCRIPTION}


class Contents:
    """What a data set will hold: results, each after those that it is made of, and files.

    Attributes:
        results: name -> what `ich.kaggle.notebook.steps` has to know of it.
        files: path within the data set -> the file to copy, or what writes it to a path.
        keras: the versions of Keras that wrote the models: an older one cannot read them.
    """

    def __init__(self) -> None:
        self.results: dict[str, dict] = {}
        self.files: dict[str, Path | Callable[[Path], None]] = {}
        self.keras: set[Version] = set()
        self._places: dict[str, Path] = {}
        self._images: dict[str, Path] = {}

    def add_code(self, root: Path) -> None:
        """The source tree of a checkout."""
        found = [path for path in (root / "src/ich").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        found += [*(root / "scripts").glob("*.py"), root / "requirements.txt", root / "LICENSE"]
        self.files |= {f"code/{path.relative_to(root).as_posix()}": path for path in sorted(found)}

    def add(self, path: Path) -> str:
        """A result, and all that it is made of.

        Returns:
            Its name.

        Raises:
            IchError: it is not finished, or could not predict test slices where the training's images are not.
        """
        name = path.resolve().name
        if name in self._places:
            if self._places[name] != path.resolve():
                raise IchError(f"{path} and {self._places[name]} have one name; rename one of them")
            return name
        check_result(path)
        config = read_mapping(path / "config.yaml")
        environment = read_mapping(path / "environment.json", "says what the result was made with")
        if "blend" in config:
            self._add_blend(name, path, config, environment)
        elif "first_stage" in environment:
            self._add_sequence(name, path, environment)
        else:
            self._add_run(name, path)
        for file in ("config.yaml", "environment.json", "oof.parquet", "score.json"):
            if not (path / file).is_file():
                raise IchError(f"{path} lacks {file}; make the result again, then pack it")
            self.files[f"runs/{name}/{file}"] = path / file
        if "blend" not in config:
            self.keras.add(_keras_of(path, environment))
        self._places[name] = path.resolve()
        return name

    def _add_run(self, name: str, path: Path) -> None:
        run = Run.open(path)
        run.check_finished()
        told = [read_provenance(run.fold(k) / "oof.parquet") or {} for k in range(run.config.folds.n)]
        how = {key: told[0].get(key) for key in ("tta", "mean")}
        for k, made in enumerate(told):
            self._add_fold(name, run, k, ["model.keras", "oof.parquet"])
            if made != how | {"model": digest(run.fold(k) / "model.keras")} or None in how.values():
                raise IchError(
                    f"the out-of-fold predictions of {run.fold(k)} are not of its model, or not made as fold 0's, so"
                    f" that Kaggle would need the training's images; run scripts/predict.py {path}, then pack it"
                )
        images = run.config.data.images.resolve()
        folder = images.name
        while self._images.setdefault(folder, images) != images:  # of other settings, by another run
            folder += "_"
        self.results[name] = {"kind": "run", "of": [], "images": folder, "predict": how}

    def _add_sequence(self, name: str, path: Path, environment: dict) -> None:
        run = Run.open(path)
        run.check_finished()
        first = [_found(Path(one), path) for one in environment["first_stage"]]
        if any(one.is_file() for one in first):
            raise IchError(
                f"{path} was trained on a table of scores ({first[0]}), whose models are not known: it cannot predict"
                " test slices; pack a second stage of runs"
            )
        if run.config.sequence.features == "embeddings":
            raise IchError(
                f"{path} reads embeddings, which cannot be extracted there; pack a second stage with"
                " sequence.features=logits"
            )
        if [digest(one / "oof.parquet") for one in first] != environment.get("scores_sha256"):
            raise IchError(
                f"{', '.join(map(str, first))}: the out-of-fold predictions are not those that {path} was trained on;"
                " train the second stage anew (scripts/train_sequence.py), then pack it"
            )
        of = [self.add(one) for one in first]
        section = run.config.sequence
        for k in range(run.config.folds.n):
            models = ["model.keras"] if "recurrent" in section.kinds else []
            self._add_fold(name, run, k, ["oof.parquet", *(f"{kind}.parquet" for kind in section.kinds), *models])
        self._add_folds(path, run.config.data.folds_path, environment)
        table = run_directory.slices_of(run.config)
        table = table[table["split"] == "train"]
        self.files[f"scans/{name}/slices.parquet"] = partial(slice_table.write_table, table)
        self.files[f"scans/{name}/settings.json"] = run.config.data.images / "settings.json"
        self.results[name] = {"kind": "sequence", "of": of, "sequence": section.model_dump(mode="json")}

    def _add_blend(self, name: str, path: Path, config: dict, environment: dict) -> None:
        recipe = dict(config["blend"])
        of = [self.add(_found(Path(one), path)) for one in recipe.pop("runs")]
        self._add_folds(path, Path(config["data"]["folds"]), environment)
        self.results[name] = {"kind": "blend", "of": of, "recipe": recipe}

    def _add_fold(self, name: str, run: Run, k: int, files: Iterable[str]) -> None:
        for file in files:
            if not (run.fold(k) / file).is_file():
                raise IchError(f"{run.fold(k)} lacks {file}; delete it and train the fold again, then pack the run")
            self.files[f"runs/{name}/fold{k}/{file}"] = run.fold(k) / file

    def _add_folds(self, path: Path, folds: Path, environment: dict) -> None:
        """The file of folds that a result was made with, which all of a data set share."""
        now = digest(folds) if folds.is_file() else None
        if now != environment.get("folds_sha256"):
            raise IchError(f"{folds} is not what {path} was made with, or not there; restore it, then pack")
        there = self.files.setdefault("scans/folds.csv", folds)
        if digest(there) != now:
            raise IchError(f"{path} has other folds ({folds}) than those before it ({there}); pack it on its own")


def _keras_of(path: Path, environment: dict) -> Version:
    try:
        return Version(environment["packages"]["keras"])
    except (KeyError, TypeError, InvalidVersion) as error:
        raise IchError(
            f"{path}/environment.json does not tell the version of Keras ({one_line(error, named=True)}), which"
            " Kaggle needs to read the models; restore it"
        ) from error


def _found(told: Path, by: Path) -> Path:
    """A result or table that another one names, from where the scripts run, or beside it."""
    for path in (told, by.resolve().parent / told.name):
        if path.exists():
            return path
    raise IchError(f"{by} is made of {told}, which is not there; restore it, or name only what does not need it")


@contextmanager
def working_in(out: Path, facts: dict) -> Iterator[None]:
    """Keep other processes from a folder, which must be empty or of this data set, and make it the data set's own.

    Raises:
        IchError: it holds something else, or another process works in it.
    """

    def check() -> None:
        ours = folders.is_ours(out, METADATA, lambda content: content.get("description") == _DESCRIPTION, "a data set")
        if ours and (there := read_mapping(out / METADATA, "describes the data set").get("id")) != facts["id"]:
            raise IchError(f"{out} holds the data set {there}, not {facts['id']}; name another folder")

    with folders.locked(out, check):
        sweep(out)
        _write_json(facts, out / METADATA)
        yield


def write(contents: Contents, wheels: Sequence[Path], out: Path, wanted: Sequence[str]) -> dict[str, str]:
    """Write a data set, within `working_in`: what is there is not written again.

    Files that an earlier run wrote are removed if they are not of it, others never: the manifest lists them, and while
    this writes, stands for what was there and what will be.

    Args:
        wheels: paths below `out`, as `ich.kaggle.wheels.fetch` gives them.
        wanted: the names of the results that were asked for.

    Returns:
        The SHA-256 of each file, by its path within `out`.

    Raises:
        IchError: a file cannot be read or written.
    """
    writing = _written(out) | {path.relative_to(out).as_posix() for path in wheels} | contents.files.keys()
    # Without results, so that it cannot be taken for the manifest of a whole data set.
    _write_json({"writing": sorted(writing)}, out / MANIFEST)
    digests = {path.relative_to(out).as_posix(): digest(path) for path in wheels}
    for name, source in tqdm(contents.files.items(), desc="pack", unit="file", disable=None):
        target = out / name
        if callable(source):
            source(target)
        elif not (target.is_file() and digest(target) == digest(source)):
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
        digests[name] = digest(target)
    for folder in {(out / name).parent for name in writing}:
        sweep(folder)
    remove(*(out / name for name in writing - digests.keys()))
    digests = dict(sorted(digests.items()))
    facts = {"commit": environment.environment()["commit"], "wanted": list(wanted), "results": contents.results}
    _write_json(facts | {"files": digests}, out / MANIFEST)
    return digests


def _written(out: Path) -> set[str]:
    """What an earlier run wrote into the folder, whole or stopped: paths within it, and never outside."""
    if not (out / MANIFEST).exists():
        return set()
    told = read_mapping(out / MANIFEST, "tells what the data set holds")
    names = {str(name) for key in ("files", "writing") for name in told.get(key, ())}
    return {name for name in names if name.split("/")[0] in _OWN and ".." not in name.split("/")}


def _write_json(content: dict, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
