"""What a trained result consists of when it predicts: models, how they read a slice, and how all is put together.

A result directory (a run, a second stage, a blend) and an exported model are described alike, so that one predictor
serves both. Nothing of the training's data is part of it: no slices, labels, folds or predictions.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ich import folders
from ich.config import Preprocess, Sequence
from ich.errors import IchError, name_some, one_line
from ich.files import sha256_of
from ich.results import fitted_blend
from ich.results.result_directory import check_result, members, read_mapping, read_score
from ich.second_stage import fitted
from ich.training.run_directory import Run

MANIFEST = folders.MODEL.marker
"""The file that describes an exported model; its paths are relative to it."""

CARD = "README.md"
"""The model card of an exported model."""

THICKNESS = 5.0
"""mm: the slices of most of the competition's scans."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FILE = re.compile(rf"{_NAME.pattern}(/{_NAME.pattern})+")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunPart(_Part):
    """A run: a model a fold, which read images.

    Args:
        folder: of `fold<k>/model.keras`.
        folds: number of models.
        preprocess, neighbours, tta, mean, batch_size: as in the config.
        scan: slices that the models read at once, as `model.scan.slices`; None of classifiers of slices.
    """

    kind: Literal["run"] = "run"
    folder: Path
    folds: int = Field(ge=1)
    preprocess: Preprocess
    neighbours: list[int] = Field(min_length=1)
    tta: list[str] = Field(min_length=1)
    mean: Literal["probability", "logit"]
    batch_size: int = Field(ge=1)
    scan: int | None = Field(None, ge=1)

    @property
    def files(self) -> list[str]:
        return [f"fold{k}/model.keras" for k in range(self.folds)]


class SecondStagePart(_Part):
    """A second stage, which reads the predictions of other parts.

    Args:
        of: names of the parts whose logits are averaged and read.
        folder: of `fold<k>/` with a file of each kind.
        folds: number of models of a kind.
        sequence: the section of the config.
        weights: kind -> its weight in the blend of logits.
    """

    kind: Literal["second_stage"] = "second_stage"
    of: list[str] = Field(min_length=1)
    folder: Path
    folds: int = Field(ge=1)
    sequence: Sequence
    weights: dict[str, float]

    @property
    def files(self) -> list[str]:
        return [f"fold{k}/{fitted.FILES[kind]}" for kind in self.weights for k in range(self.folds)]


class BlendPart(_Part):
    """A blend of other parts' probabilities.

    Args:
        of: names of the parts.
        method: as in `ich.results.blend.Recipe`.
        fitted: weights by label and part, and a calibration, as `ich.results.fitted_blend.of_description` takes them.
    """

    kind: Literal["blend"] = "blend"
    of: list[str] = Field(min_length=1)
    method: str
    fitted: dict


Part = Annotated[RunPart | SecondStagePart | BlendPart, Field(discriminator="kind")]


class ModelSpec(_Part):
    """All that predicts.

    Args:
        result: the name of the part whose predictions are asked for.
        parts: each after those that it is made of.
        thickness: mm, of the slices that the runs were trained on.
        out_of_fold: what score.json of the result holds.
        commit: of the code that trained it; None if unknown.
        packages: versions that it was trained with, by name.
        thresholds: of an exported model, label -> `ich.own_scans.scores.operating_points` out of fold.
    """

    format: Literal[1] = 1
    result: str
    parts: dict[str, Part]
    thickness: float = Field(gt=0)
    out_of_fold: dict
    commit: str | None
    packages: dict[str, str]
    thresholds: dict[str, dict[str, dict[str, float] | None]] | None = None

    @model_validator(mode="after")
    def _parts_are_there(self) -> "ModelSpec":
        before: set[str] = set()
        for name, part in self.parts.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"the part {name!r} has other characters than letters, digits, . _ and -")
            if isinstance(part, SecondStagePart) and (unknown := part.weights.keys() - fitted.FILES):
                raise ValueError(f"the part {name} has the kinds {', '.join(sorted(unknown))}, which there are not")
            if not isinstance(part, RunPart) and (lacking := set(part.of) - before):
                raise ValueError(f"the part {name} is made of {', '.join(sorted(lacking))}, which is not before it")
            before.add(name)
        if self.result not in before:
            raise ValueError(f"there is no part {self.result}")
        return self

    def files(self) -> dict[str, Path]:
        """Return all files: `<part>/<path within the part's folder>` -> where it is."""
        paths: dict[str, Path] = {}
        for name, part in self.parts.items():
            if not isinstance(part, BlendPart):
                paths |= {f"{name}/{file}": part.folder / file for file in part.files}
        return paths

    def moved(self, folder: Path) -> "ModelSpec":
        """Return the same model with each part in a folder of its own name within `folder`."""
        parts = {
            name: part if isinstance(part, BlendPart) else part.model_copy(update={"folder": folder / name})
            for name, part in self.parts.items()
        }
        return self.model_copy(update={"parts": parts})

    def digest(self) -> str:
        """Return the SHA-256 of what decides a prediction: the parts, the thickness and the content of every file."""
        digests = {name: sha256_of(path) for name, path in self.files().items()}
        content = self.moved(Path()).model_dump(mode="json", include={"result", "parts", "thickness"})
        return sha256(json.dumps([content, digests]).encode()).hexdigest()


def read_model(path: Path) -> ModelSpec:
    """Describe a result directory or an exported model.

    Raises:
        IchError: it is neither, not finished, or made of what cannot predict single scans; files of an exported model
            are missing or changed.
    """
    if path.is_file() and path.suffix == ".zip":
        raise IchError(f"{path} is a zip; unpack it, and name the folder with {MANIFEST} in it")
    return _read_export(path) if (path / MANIFEST).is_file() else _read_result(path)


def _read_export(path: Path) -> ModelSpec:
    content = read_mapping(path / MANIFEST, "describes the exported model")
    digests = content.pop("files", None)
    try:
        spec = ModelSpec.model_validate(content)
        if not isinstance(digests, dict) or not all(map(_FILE.fullmatch, digests)):
            raise ValueError("files are listed that cannot be of a model")
        if spec.moved(Path()) != spec:
            raise ValueError("parts lie in other folders than those of their names")
    except ValueError as error:  # pydantic's derive from it
        raise IchError(
            f"{path / MANIFEST} describes no model of this version ({one_line(error)}); export the model again"
        ) from error
    spec = spec.moved(path)
    if lacking := spec.files().keys() - digests:
        raise IchError(
            f"{path / MANIFEST} does not list {name_some(sorted(lacking))}, which the model needs; export the model"
            " again"
        )
    for name, digest in digests.items():
        if sha256_of(path / name) != digest:
            raise IchError(f"{path / name} is not what was exported: its SHA-256 differs; copy or export it again")
    return spec


def _read_result(path: Path) -> ModelSpec:
    parts: dict[str, Part] = {}
    runs: list[Run] = []
    result = _add(parts, runs, path, {})
    environment = read_mapping(path / "environment.json", "records what the result was made with")
    part = parts[result]
    names = dict(zip(map(str, members(path)), part.of, strict=True)) if isinstance(part, BlendPart) else {}
    return ModelSpec(
        result=result,
        parts=parts,
        thickness=_thickness(runs),
        out_of_fold=_renamed(read_score(path), names),
        commit=environment.get("commit"),
        packages={name: version for name, version in (environment.get("packages") or {}).items() if version},
    )


def _renamed(content: Any, names: Mapping[str, str]) -> Any:
    """Replace the names of results, which are paths on this machine, in what score.json holds."""
    if isinstance(content, dict):
        return {names.get(key, key): _renamed(value, names) for key, value in content.items()}
    if isinstance(content, list):
        return [_renamed(value, names) for value in content]
    return names.get(content, content) if isinstance(content, str) else content


def _add(parts: dict[str, Part], runs: list[Run], path: Path, names: dict[Path, str]) -> str:
    """Add a result's part behind those that it is made of, each once; return its name."""
    check_result(path)
    own = path.resolve()
    if own in names:
        return names[own]
    environment = read_mapping(path / "environment.json", "records what the result was made with")
    part: Part
    if made_of := members(path):
        of = {str(member): _add(parts, runs, _existing(member, path), names) for member in made_of}
        part = _blend(path, of)
    else:
        run = Run.open(path)
        run.check_finished()
        if first := environment.get("first_stage"):
            part = _second_stage(run, [_add(parts, runs, _existing(Path(member), path), names) for member in first])
        else:
            runs.append(run)
            section, window = run.config.predict, run.config.model.scan
            part = RunPart(
                folder=run.path,
                folds=run.config.folds.n,
                preprocess=run.config.preprocess,
                neighbours=run.config.model.neighbours,
                scan=None if window is None else window.slices,
                **section.model_dump(include={"tta", "mean", "batch_size"}),
            )
    name = own.name
    while name in parts:  # another result's of the same name
        name += "_"
    if not _NAME.fullmatch(name):
        raise IchError(f"{path} has a name of other characters than letters, digits, . _ and -; rename it")
    parts[name] = part
    names[own] = name
    return name


def _second_stage(run: Run, of: list[str]) -> SecondStagePart:
    section = run.config.sequence
    weights = read_score(run.path).get("weights", {}).get("test", {})
    if set(weights) != set(section.kinds):
        raise IchError(
            f"{run.path}/score.json has weights of {', '.join(weights) or 'nothing'}, the config's kinds are"
            f" {', '.join(section.kinds)}; train the second stage again under another name"
        )
    for k in range(run.config.folds.n):
        for kind in section.kinds:
            fitted.model_path(run.fold(k), kind)
    return SecondStagePart(
        of=of, folder=run.path, folds=run.config.folds.n, sequence=run.config.sequence, weights=weights
    )


def _blend(path: Path, of: dict[str, str]) -> BlendPart:
    """Describe a blend of members, directory -> name of its part."""
    _, fitted_on_all = fitted_blend.read(path)
    score = read_score(path)
    weights = {label: {of[name]: weight for name, weight in row.items()} for label, row in score["weights"].items()}
    tried = {key: score[key] for key in ("calibration", "any_at_least_max") if key in score}
    return BlendPart(of=list(of.values()), method=fitted_on_all.mixture.method, fitted={"weights": weights} | tried)


def _existing(part: Path, result: Path) -> Path:
    """Return the directory of what a result is made of, from the working directory or beside the result."""
    for path in (part, result.resolve().parent / part.name):
        if path.is_dir():
            return path
    if part.is_file():
        raise IchError(
            f"{result} was trained on the table {part}, whose models are unknown: it cannot predict scans; give a"
            " second stage of runs"
        )
    raise IchError(f"{result} is made of {part}, which is not there; restore it")


def _thickness(runs: list[Run]) -> float:
    """Return the median distance of the slices that the runs were trained on; 5 mm if none of them recorded it.

    Raises:
        IchError: runs that read slices of different thickness cannot share slabs.
    """
    distances = {str(run.path): run.environment().get("slice_distance_mm") for run in runs}
    known = [distance for distance in distances.values() if isinstance(distance, float)]
    if not known:
        return THICKNESS
    if max(known) > 1.5 * min(known):
        raise IchError(
            f"the runs were trained on slices of different thickness ({distances}), and read scans in different slabs;"
            " predict by each alone"
        )
    # Half millimeters: 4.98 mm of a table whose slices are 5 mm apart is no other thickness.
    return max(round(2 * float(np.median(known))) / 2, 0.5)
