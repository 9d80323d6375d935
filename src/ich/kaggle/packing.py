"""Pack results, code and wheels as a data set for Kaggle, complete for offline prediction.

OUT/dataset-metadata.json  title, id and license, as `kaggle datasets create` reads them
OUT/ich-manifest.json      results, and each file's SHA-256; written last
OUT/code/                  src/ich, scripts, requirements.txt, LICENSE
OUT/wheels/                of what Kaggle's image lacks, and of the Keras that wrote the models
OUT/runs/<name>/           models, config, environment, out-of-fold predictions and score
OUT/scans/                 for second stages and blends: folds.csv, and <name>/slices.parquet of the training's slices

The code is packed as its source tree, not as a wheel: Python runs it from where it is mounted, nothing has to be built,
and whoever opens the data set can read it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from packaging.version import InvalidVersion, Version
from tqdm import tqdm

from ich import folders
from ich.errors import IchError, one_line
from ich.files import copy_file, remove, sha256_of, sweep, write_json
from ich.images import slice_table
from ich.kaggle.notebook import MANIFEST
from ich.results import environment
from ich.results.predictions import read_provenance
from ich.results.result_directory import check_result, read_mapping
from ich.training.run_data import read_slices
from ich.training.run_directory import Run

METADATA = folders.DATA_SET.marker

LICENSES = (
    *("CC0-1.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0", "GPL-2.0", "ODbL-1.0", "DbCL-1.0"),
    *("copyright-authors", "other", "unknown", "CC-BY-4.0", "CC-BY-NC-4.0", "PDDL", "CC-BY-3.0", "CC-BY-3.0-IGO"),
    *("US-Government-Works", "CC-BY-NC-SA-3.0-IGO", "CDLA-Permissive-1.0", "CDLA-Sharing-1.0", "CC-BY-ND-4.0"),
    *("CC-BY-NC-ND-4.0", "ODC-BY-1.0", "LGPL-3.0", "AGPL-3.0", "FDL-1.3", "EU-ODP-Legal-Notice", "apache-2.0"),
    "GPL-3.0",
)
"""Kaggle's names of licenses."""

_OWN = ("code", "wheels", "runs", "scans")
_DESCRIPTION = f"""Code under the MIT licence (code/LICENSE), and models that it trained on the images of the RSNA \
Intracranial Hemorrhage Detection challenge, which are for non-commercial research under the competition's rules. \
{folders.DATA_SET.says}"""


def metadata(id: str, title: str | None = None, license: str = "other") -> dict:
    """Return the content of dataset-metadata.json.

    Args:
        id: OWNER/SLUG, as its address on Kaggle will be.
        title: of 6 to 50 characters; None takes the slug.
        license: of `LICENSES`.

    Raises:
        IchError: Kaggle would refuse one.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]{2,49}", id):
        raise IchError(
            f"--id {id!r} is no id of a data set; expected your name on Kaggle and a name of 3 to 50 small letters,"
            " digits and hyphens, such as --id jane/ich-baseline"
        )
    title = title or id.partition("/")[2]
    if not 6 <= len(title) <= 50:
        raise IchError(f"the title {title!r} has {len(title)} characters; Kaggle wants 6 to 50 (--title)")
    if license not in LICENSES:
        raise IchError(f"Kaggle knows no license {license!r}; there are {', '.join(LICENSES)}")
    return {"title": title, "id": id, "licenses": [{"name": license}], "description": _DESCRIPTION}


class Contents:
    """The results and files of a data set; each result stands after those that it is made of.

    Attributes:
        results: name -> what `ich.kaggle.notebook.steps` has to know of it.
        files: path within the data set -> the file to copy, or a function that writes it to a path.
        keras: the versions of Keras that wrote the models: an older one cannot read them.
    """

    def __init__(self) -> None:
        self.results: dict[str, dict] = {}
        self.files: dict[str, Path | Callable[[Path], None]] = {}
        self.keras: set[Version] = set()
        self._paths: dict[str, Path] = {}
        self._images: dict[str, Path] = {}
        self._folds: Path | None = None

    def add_code(self, root: Path) -> None:
        """Add the source tree of a checkout."""
        paths = [path for path in (root / "src/ich").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        paths += [*(root / "scripts").glob("*.py"), root / "requirements.txt", root / "LICENSE"]
        self.files |= {f"code/{path.relative_to(root).as_posix()}": path for path in sorted(paths)}

    def add(self, path: Path) -> str:
        """Add a result, and all that it is made of.

        Returns:
            Its name.

        Raises:
            IchError: it is not finished, or cannot predict test slices without the training's images.
        """
        name = path.resolve().name
        if name in self._paths:
            if self._paths[name] != path.resolve():
                raise IchError(f"{path} and {self._paths[name]} have one name; rename one of them")
            return name
        check_result(path)
        config = read_mapping(path / "config.yaml")
        environment = read_mapping(path / "environment.json", "records what the result was made with")
        if "blend" in config:
            self._add_blend(name, path, config, environment)
        else:
            run = Run.open(path)
            run.check_finished()
            if "first_stage" in environment:
                self._add_second_stage(name, run, environment)
            else:
                self._add_run(name, run)
            self.keras.add(_keras_of(path, environment))
        for file in ("config.yaml", "environment.json", "oof.parquet", "score.json"):
            if not (path / file).is_file():
                raise IchError(f"{path} lacks {file}; make the result again, then pack it")
            self.files[f"runs/{name}/{file}"] = path / file
        self._paths[name] = path.resolve()
        return name

    def _add_run(self, name: str, run: Run) -> None:
        provenances = [read_provenance(run.fold(k) / "oof.parquet") or {} for k in range(run.config.folds.n)]
        passes = {key: provenances[0].get(key) for key in ("tta", "mean")}
        for k, provenance in enumerate(provenances):
            self._add_fold(name, run, k, ["model.keras", "oof.parquet"])
            expected = passes | {"model": sha256_of(run.fold(k) / "model.keras")}
            if provenance != expected or None in passes.values():
                raise IchError(
                    f"the out-of-fold predictions of {run.fold(k)} are not of its model, or not made as fold 0's, so"
                    f" that Kaggle would need the training's images; run scripts/predict.py {run.path}, then pack it"
                )
        images = run.config.data.images.resolve()
        folder = images.name
        while self._images.setdefault(folder, images) != images:  # another run's images of that name
            folder += "_"
        self.results[name] = {"kind": "run", "of": [], "images": folder, "predict": passes}

    def _add_second_stage(self, name: str, run: Run, environment: dict) -> None:
        section = run.config.sequence
        first = [_existing(Path(source), run.path) for source in environment["first_stage"]]
        if any(path.is_file() for path in first):
            raise IchError(
                f"{run.path} was trained on a table of scores ({first[0]}), whose models are not known: it cannot"
                " predict test slices; pack a second stage of runs"
            )
        if section.features == "embeddings":
            raise IchError(
                f"{run.path} reads embeddings, which cannot be extracted on Kaggle; pack a second stage with"
                " sequence.features=logits"
            )
        if [sha256_of(path / "oof.parquet") for path in first] != environment.get("scores_sha256"):
            raise IchError(
                f"{', '.join(map(str, first))}: the out-of-fold predictions are not those that {run.path} was trained"
                " on; train the second stage anew (scripts/train_sequence.py), then pack it"
            )
        of = [self.add(path) for path in first]
        models = ["model.keras"] if "recurrent" in section.kinds else []
        for k in range(run.config.folds.n):
            self._add_fold(name, run, k, ["oof.parquet", *(f"{kind}.parquet" for kind in section.kinds), *models])
        self._add_folds(run.path, run.config.data.folds_path, environment)
        table = read_slices(run.config)
        table = table[table["split"] == "train"]
        self.files[f"scans/{name}/slices.parquet"] = partial(slice_table.write_table, table)
        self.files[f"scans/{name}/settings.json"] = run.config.data.images / "settings.json"
        self.results[name] = {"kind": "sequence", "of": of, "sequence": section.model_dump(mode="json")}

    def _add_blend(self, name: str, path: Path, config: dict, environment: dict) -> None:
        recipe = dict(config["blend"])
        of = [self.add(_existing(Path(part), path)) for part in recipe.pop("runs")]
        self._add_folds(path, Path(config["data"]["folds"]), environment)
        self.results[name] = {"kind": "blend", "of": of, "recipe": recipe}

    def _add_fold(self, name: str, run: Run, k: int, files: Iterable[str]) -> None:
        for file in files:
            if not (run.fold(k) / file).is_file():
                raise IchError(f"{run.fold(k)} lacks {file}; delete it and train the fold again, then pack the run")
            self.files[f"runs/{name}/fold{k}/{file}"] = run.fold(k) / file

    def _add_folds(self, path: Path, folds: Path, environment: dict) -> None:
        """Add the file of folds that a result was made with; all results of a data set share one."""
        digest = sha256_of(folds) if folds.is_file() else None
        if digest != environment.get("folds_sha256"):
            raise IchError(f"{folds} is not what {path} was made with, or not there; restore it, then pack")
        if self._folds is not None and sha256_of(self._folds) != digest:
            raise IchError(f"{path} has other folds ({folds}) than those before it ({self._folds}); pack it on its own")
        self.files["scans/folds.csv"] = self._folds = self._folds or folds


def _keras_of(path: Path, environment: dict) -> Version:
    try:
        return Version(environment["packages"]["keras"])
    except (KeyError, TypeError, InvalidVersion) as error:
        raise IchError(
            f"{path}/environment.json lacks the version of Keras ({one_line(error, named=True)}), which"
            " Kaggle needs to read the models; restore it"
        ) from error


def _existing(part: Path, result: Path) -> Path:
    """Return the path of what a result is made of, from the working directory or beside the result."""
    for path in (part, result.resolve().parent / part.name):
        if path.exists():
            return path
    raise IchError(f"{result} is made of {part}, which is not there; restore it, or pack results without it")


@contextmanager
def working_in(out: Path, facts: dict) -> Iterator[None]:
    """Lock a folder, which must be empty or of this data set, and write its dataset-metadata.json.

    Raises:
        IchError: it holds something else, or another process works in it.
    """

    def check() -> None:
        ours = folders.is_ours(out, folders.DATA_SET)
        if ours and (id := read_mapping(out / METADATA, "describes the data set").get("id")) != facts["id"]:
            raise IchError(f"{out} holds the data set {id}, not {facts['id']}; name another folder")

    with folders.locked(out, check):
        sweep(out)
        write_json(out / METADATA, facts)
        yield


def write(contents: Contents, wheels: Sequence[Path], out: Path, requested: Sequence[str]) -> dict[str, str]:
    """Write a data set, within `working_in`; files that are there and up to date are kept.

    Files that an earlier run wrote are removed if they are not part of it, others never: the manifest lists them, and
    while this writes, both what was there and what will be.

    Args:
        wheels: paths below `out`, as `ich.kaggle.wheels.fetch` gives them.
        requested: the names of the results that were asked for.

    Returns:
        The SHA-256 of each file, by its path within `out`.

    Raises:
        IchError: a file cannot be read or written.
    """
    writing = _written(out) | {path.relative_to(out).as_posix() for path in wheels} | contents.files.keys()
    # Without results, so that it is not taken for the manifest of a complete data set.
    write_json(out / MANIFEST, {"writing": sorted(writing)})
    digests = {path.relative_to(out).as_posix(): sha256_of(path) for path in wheels}
    for name, source in tqdm(contents.files.items(), desc="pack", unit="file", disable=None):
        target = out / name
        if callable(source):
            source(target)
        elif not (target.is_file() and sha256_of(target) == sha256_of(source)):
            copy_file(source, target)
        digests[name] = sha256_of(target)
    for folder in {(out / name).parent for name in writing}:
        sweep(folder)
    remove(*(out / name for name in writing - digests.keys()))
    digests = dict(sorted(digests.items()))
    facts = {"commit": environment.environment()["commit"], "wanted": list(requested), "results": contents.results}
    write_json(out / MANIFEST, facts | {"files": digests})
    return digests


def _written(out: Path) -> set[str]:
    """Return the paths within the folder that an earlier run, complete or not, wrote; never one outside."""
    if not (out / MANIFEST).exists():
        return set()
    manifest = read_mapping(out / MANIFEST, "lists the content of the data set")
    names = {str(name) for key in ("files", "writing") for name in manifest.get(key, ())}
    return {name for name in names if name.split("/")[0] in _OWN and ".." not in name.split("/")}
