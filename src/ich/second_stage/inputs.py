"""Second-stage inputs and leakage checks: predictions of models that have not seen the patient.

The second stage reads out-of-fold predictions and keeps the first stage's folds of patients: it trains on all folds but
one and predicts that one.

With `sequence.features: embeddings` there is a network for each first-stage model, as the competition's 2nd place had
it: network k trains on model k's embeddings and logits of the slices that model k was trained on, and predicts fold k,
of which neither has seen a patient; each pair predicts the test set, and the mean is taken. Embeddings of two models
cannot be mixed, as their dimensions mean different things. The disadvantage: features of slices that model k was
trained on are better than those of new patients, and network k learns to trust them too much. The other kinds of a
blend read out-of-fold logits, and do not have it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ich.competition import folds
from ich.competition.labels import LABELS
from ich.config import Config, load, of_values
from ich.errors import IchError, name_some
from ich.files import sha256_of, write_json
from ich.results import environment
from ich.results.predictions import read_predictions
from ich.results.result_directory import check_folds, check_result, how_to_predict, members
from ich.second_stage import alignment, embeddings, scans
from ich.second_stage.scans import Scans
from ich.training import run_directory
from ich.training.run_data import RunData
from ich.training.run_directory import Run


@dataclass(frozen=True, slots=True)
class FirstStage:
    """The inputs of a second stage.

    Args:
        config: config of the new run; its name is the directory's.
        folds: as `ich.competition.folds.read_folds` gives them, of the slices to learn from.
        train: these slices in scan order, with out-of-fold scores.
        test: the test set's scans, if they were predicted.
        sources: the runs or the table that the scores come from.
        digests: SHA-256 of the files of the train and of the test scores.
        embedded: (part, fold) -> features by the fold's model: "seen", the scans that it was trained on; "oof", those
            that it held out; "test", the test set, if it was predicted. None if the network reads `train` and `test`.
        offsets: computes the offsets that align the folds' logits, (folds, 6), see `ich.second_stage.alignment`; None
            to leave the logits unchanged.
    """

    config: Config
    folds: pd.DataFrame
    train: Scans
    test: Scans | None
    sources: list[Path]
    digests: dict[str, list[str]]
    embedded: Callable[[str, int], Scans] | None = None
    offsets: Callable[[], np.ndarray] | None = None


def inputs_from_runs(paths: Sequence[Path], name: str | None = None, overrides: Iterable[str] = ()) -> FirstStage:
    """Read the predictions of runs or blends, as the mean of their logits if there are several.

    Test scores are read if every run has them.

    Args:
        name: of the new run; None takes the first one's with -sequence behind.
        overrides: as `ich.training.run_directory.Run.open` takes them, and of the section sequence.

    Raises:
        IchError: a run is not finished, or has other folds than the first, or predictions of other slices. With
            embeddings: there are several runs; a fold has no features, or of other slices; no file proves that its
            model has not seen the patients that it held out; the folds or images are not those trained on.
    """
    first = _config_of(paths[0], overrides)
    content = first.model_dump(mode="json") | {"name": name or f"{first.name}-sequence"}
    return _read(paths, of_values(content, [], "the second stage"))


def _config_of(path: Path, overrides: Iterable[str]) -> Config:
    """Return the config of a run; of a blend, that of its first member under the blend's name."""
    check_result(path)
    blended = members(path)
    if blended:
        return _config_of(blended[0], overrides).model_copy(update={"name": path.resolve().name})
    run = Run.open(path, overrides)
    run.check_same_slices()
    return run.config


def inputs_from_second_stage(run: Run) -> FirstStage:
    """Read the inputs of a trained second stage again, with the current test predictions of its first stage.

    Raises:
        IchError: as `inputs_from_runs`; the first stage is a table, or a run without test predictions; or an override
            is of the section predict or machine, which apply to the first stage only.
    """
    own = load(run.config_path)
    for section in ("predict", "machine"):
        if getattr(run.config, section) != getattr(own, section):
            raise IchError(
                f"{run.path} reads predictions, and no images; set the section {section} for its first stage"
            )
    run.check_same_slices()
    sources = [Path(source) for source in run.environment()["first_stage"]]
    for path in sources:
        if path.is_file():
            raise IchError(f"{run.path} was trained on the table {path}, which has no test set")
        if not (path / "predictions_test.parquet").exists():
            raise IchError(f"{path}, the first stage of {run.path}, has no test predictions; {how_to_predict(path)}")
    return _read(sources, run.config.model_copy(update={"name": run.path.name}))


def _read(paths: Sequence[Path], config: Config) -> FirstStage:
    """Read the predictions of runs for the run of this config."""
    data = RunData(config, ["SeriesInstanceUID", "z"])
    table = data.folds
    for path in paths:
        check_folds(path, data.folds_digest["folds_sha256"], config.data.folds_path)
        check_out_of_fold(path, table)
    slices = data.slices.set_index("SOPInstanceUID")
    files = {"train": [path / "oof.parquet" for path in paths]}
    files["test"] = [path / "predictions_test.parquet" for path in paths]
    if not all(path.exists() for path in files["test"]):
        files["test"] = []
    train = scans.arrange(slices, _mean_logits(files["train"]))
    test = scans.arrange(slices, _mean_logits(files["test"])) if files["test"] else None
    embedded = None
    if config.sequence.features == "embeddings":
        if len(paths) > 1:
            raise IchError(
                f"embeddings are of one run's models, and {len(paths)} runs were given; give one, or set"
                " sequence.features=logits"
            )
        Run(paths[0], config).check_data(data.digests)
        for file in embeddings.check_features_match_folds(paths[0], table, None if test is None else test.ids):
            files["test" if file.stem == "test" else "train"].append(file)
        embedded = partial(_read_embedded, paths[0], slices)
    digests = {split: list(map(sha256_of, of_split)) for split, of_split in files.items()}
    offsets = partial(_mean_offsets, paths) if config.sequence.align else None
    return FirstStage(config, table, train, test, list(paths), digests, embedded, offsets)


def _mean_offsets(paths: Sequence[Path]) -> np.ndarray:
    """Compute the offsets of the mean of several runs' logits."""
    return np.mean([alignment.offsets_of(path) for path in paths], axis=0)


def _read_embedded(path: Path, slices: pd.DataFrame, part: str, k: int) -> Scans:
    """Read a part of fold k's features, as `FirstStage.embedded` gives it."""
    return scans.arrange(slices, *embeddings.read(path / f"fold{k}" / "features", part))


def inputs_from_table(
    path: Path, name: str | None = None, overrides: Iterable[str] = (), root: Path = run_directory.RUNS
) -> FirstStage:
    """Read a table of scores, which needs no images, and make folds of its patients.

    The folds are made by the section folds, and written to `root/<name>/folds.csv`, or read there.

    Args:
        path: as `ich.second_stage.scans.read_scores` takes it.
        name: of the new run; None takes the table's.
        overrides: of the sections folds and sequence.

    Raises:
        IchError: the table cannot be read, or its labels or patients cannot be folded.
    """
    table = scans.read_scores(path)
    name = name or path.name.split(".")[0]
    data = {"sources": path, "images": path.parent, "folds": root / name / "folds.csv"}
    config = of_values({"name": name, "data": data}, overrides, f"the run of {path}")
    if config.sequence.features == "embeddings":
        raise IchError(f"{path} is a table of scores, which has no embeddings; give the run that they are of")
    if config.sequence.align:
        raise IchError(f"{path} is a table of scores without a test set, by which models are aligned; give runs")
    folded = folds.make_folds(table, config.folds.n, config.folds.seed)
    run = Run(root / name, config)
    run.check_place()
    if config.data.folds_path.exists():
        kept = folds.read_folds(config.data.folds_path)
        if not kept.sort_index().astype(str).equals(folded[kept.columns].sort_index().astype(str)):
            raise IchError(
                f"{root / name} has other folds than {path} and the section folds now give; give this one another name"
                " (--name), or delete the directory"
            )
    else:
        with run.locked():
            write_json(run.environment_path, environment.environment())  # first: it tells whose the directory is
            folds.write_folds(config.data.folds_path, folded)
    logits = table[[f"score_{label}" for label in LABELS]].set_axis(list(LABELS), axis=1)
    arranged = scans.arrange(table, logits)
    return FirstStage(config, folded, arranged, None, [path], {"train": [sha256_of(path)], "test": []})


def check_out_of_fold(path: Path, table: pd.DataFrame) -> None:
    """Refuse a first stage whose models may have seen the patients that they predict.

    Args:
        path: a run's directory.
        table: the folds that the second stage will keep.

    Raises:
        IchError: there are predictions of other slices than the folds list, or a model has predicted, as held out,
            slices of another fold than its own.
    """
    folds.check_no_shared_patients(table)
    oof = read_predictions(path / "oof.parquet")
    differing = oof.index.symmetric_difference(table.index)
    if len(differing) or not oof.index.is_unique:
        raise IchError(
            f"{path}/oof.parquet and the folds list other slices: {name_some(differing)}; give runs of these folds"
        )
    for directory in sorted(path.glob("fold[0-9]*")):
        number = directory.name.removeprefix("fold")
        if not number.isdecimal():
            continue  # a copy such as fold0_backup
        held_out = read_predictions(directory / "oof.parquet").index
        foreign = held_out.difference(table.index[table["fold"] == int(number)])
        if len(foreign):
            raise IchError(
                f"{directory} has predicted {name_some(foreign)} as held out, which are not in fold {number} of these"
                " folds: its model has seen their patients; give runs of one file of folds"
            )


def _mean_logits(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the mean of the logits of several files of predictions, which must be of the same slices."""
    parts = [scans.logits_of(read_predictions(path)) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        differing = part.index.symmetric_difference(parts[0].index)
        if len(differing):
            raise IchError(f"{path} and {paths[0]} are of other slices: {name_some(differing)}; predict both alike")
    return sum(part.loc[parts[0].index] for part in parts) / len(parts)
