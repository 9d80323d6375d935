"""What a second stage is told: a first stage's predictions, of models that have not seen the patient.

Honest stacking: what a slice is told of is out-of-fold predictions; the second stage keeps the same folds of patients,
trains on the others' and predicts those of one.

With `sequence.features: embeddings` there is a network for each first-stage model, as the competition's 2nd place had
it: network k learns from what model k tells of the slices that it was trained on, logits and embeddings, and reads what
it tells of fold k, of which neither has seen a patient; the test set is read by each pair, and the mean taken.
Embeddings of two models could not be mixed, as their numbers mean different things. The price: features of slices that
model k was trained on are better than those of new patients, fold k's and the test set's, and network k learns to trust
them more than it should. The other kinds of a blend read out-of-fold logits as ever, and do not pay it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pandas as pd

from ich.competition import folds
from ich.competition.labels import LABELS
from ich.config import Config, load, of_values
from ich.errors import IchError, name_some
from ich.results.predictions import read_predictions
from ich.results.result_directory import check_result, how_to_predict, members, read_mapping
from ich.second_stage import embeddings, scans
from ich.second_stage.scans import Scans
from ich.training import run_directory
from ich.training.run_directory import Run


@dataclass(frozen=True, slots=True)
class FirstStage:
    """What a second stage works on.

    Args:
        config: of the run to make; its name is the directory's.
        folds: as `ich.competition.folds.read_folds` gives them, of the slices to learn from.
        train: these slices in scan order, with out-of-fold scores.
        test: the test set's scans, if they were predicted.
        sources: the runs or the table that the scores come from.
        digests: SHA-256 of the files of the train and of the test scores.
        embedded: of a fold, by its model's features: the scans that it was trained on, those that it held out, and the
            test set's, if it was predicted. None if the network reads `train` and `test`.
    """

    config: Config
    folds: pd.DataFrame
    train: Scans
    test: Scans | None
    sources: list[Path]
    digests: dict[str, list[str]]
    embedded: Callable[[int], tuple[Scans, Scans, Scans | None]] | None = None


def of_runs(paths: Sequence[Path], name: str | None = None, overrides: Iterable[str] = ()) -> FirstStage:
    """The first stage that runs, or blends of some, have left; of several, the mean of their logits.

    Test scores are taken if every run has them.

    Args:
        name: of the new run; None takes the first one's with -sequence behind.
        overrides: as `ich.training.Run.open` takes them, and of the section sequence.

    Raises:
        IchError: a run is not finished, or has other folds than the first, or predictions of other slices; or
            embeddings are asked for of several runs, or as `with_embeddings`.
    """
    first = _config_of(paths[0], overrides)
    content = first.model_dump(mode="json") | {"name": name or f"{first.name}-sequence"}
    return _of_runs(paths, of_values(content, [], "the second stage"))


def _config_of(path: Path, overrides: Iterable[str]) -> Config:
    """The config of a run; of a blend, that of its first member under the blend's name."""
    check_result(path)
    made_of = members(path)
    if not made_of:
        run = Run.open(path, overrides)
        run.check_same_slices()
        return run.config
    return _config_of(made_of[0], overrides).model_copy(update={"name": path.resolve().name})


def of_second_stage(run: Run) -> FirstStage:
    """The first stage of a second one that was trained, with the test predictions that it has by now.

    Raises:
        IchError: as `of_runs`; a table was the first stage, a run of it has no test predictions, or the section predict
            or machine was set, which the first stage works by.
    """
    own = load(run.config_path)
    for section in ("predict", "machine"):
        if getattr(run.config, section) != getattr(own, section):
            raise IchError(
                f"{run.path} reads predictions, and no images; set the section {section} for its first stage"
            )
    run.check_same_slices()
    sources = [Path(one) for one in run.environment()["first_stage"]]
    for path in sources:
        if path.is_file():
            raise IchError(f"{run.path} was trained on the table {path}, which tells of no test set")
        if not (path / "predictions_test.parquet").exists():
            raise IchError(f"{path}, the first stage of {run.path}, has no test predictions; {how_to_predict(path)}")
    return _of_runs(sources, run.config.model_copy(update={"name": run.path.name}))


def _of_runs(paths: Sequence[Path], config: Config) -> FirstStage:
    """As `of_runs`, for the run of this config."""
    table = folds.read_folds(config.data.folds_path)
    (digest,) = digests_of([config.data.folds_path])
    for path in paths:
        if read_mapping(path / "environment.json").get("folds_sha256") != digest:
            raise IchError(f"{path} was made with other folds than {config.data.folds_path} holds; give runs of these")
        check_out_of_fold(path, table)
    slices = run_directory.slices_of(config, ["SOPInstanceUID", "SeriesInstanceUID", "z"]).set_index("SOPInstanceUID")
    oof = [path / "oof.parquet" for path in paths]
    test = [path / "predictions_test.parquet" for path in paths]
    has_test = all(path.exists() for path in test)
    stage = FirstStage(
        config=config,
        folds=table,
        train=scans.arrange(slices, _mean_logits(oof)),
        test=scans.arrange(slices, _mean_logits(test)) if has_test else None,
        sources=list(paths),
        digests={"train": digests_of(oof), "test": digests_of(test) if has_test else []},
    )
    if config.sequence.features == "logits":
        return stage
    if len(paths) > 1:
        raise IchError(
            f"embeddings are of one run's models, and {len(paths)} runs were given; give one, or set"
            " sequence.features=logits"
        )
    return with_embeddings(stage, slices)


def with_embeddings(stage: FirstStage, slices: pd.DataFrame) -> FirstStage:
    """The same first stage, of whose features the networks learn.

    Args:
        stage: of one run, of which `ich.second_stage.embeddings.extract` has extracted embeddings.
        slices: the slice table, as `ich.second_stage.scans.arrange` takes it.

    Raises:
        IchError: a fold has no features, or not of the slices that it should, or nothing proves that its model has not
            seen the patients that it held out; the folds or images are others than those trained on.
    """
    (path,) = stage.sources
    Run(path, stage.config).check_data()
    files = embeddings.check_honest(path, stage.folds, None if stage.test is None else stage.test.ids)
    digests = {
        split: of_scores + digests_of([file for file in files if (file.stem == "test") == (split == "test")])
        for split, of_scores in stage.digests.items()
    }
    return replace(stage, digests=digests, embedded=partial(_embedded, stage, slices))


def _embedded(stage: FirstStage, slices: pd.DataFrame, k: int) -> tuple[Scans, Scans, Scans | None]:
    """What `FirstStage.embedded` gives."""
    told = {}
    for part in ["seen", "oof"] if stage.test is None else ["seen", "oof", "test"]:
        logits, vectors, _ = embeddings.read(stage.sources[0] / f"fold{k}" / "features", part)
        told[part] = scans.arrange(slices, logits, vectors)
    return told["seen"], told["oof"], told.get("test")


def of_table(
    path: Path, name: str | None = None, overrides: Iterable[str] = (), root: Path = run_directory.RUNS
) -> FirstStage:
    """The first stage that a table of scores stands for; no images are needed.

    The folds of its patients are made by the section folds, and written to `root/<name>/folds.csv`, or read there.

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
    folded = folds.make_folds(table, config.folds.n, config.folds.seed)
    place = Run(root / name, config)
    place.check_place()
    if config.data.folds_path.exists():
        kept = folds.read_folds(config.data.folds_path)
        if not kept.sort_index().astype(str).equals(folded[kept.columns].sort_index().astype(str)):
            raise IchError(
                f"{root / name} has other folds than {path} and the section folds now give; give this one another name"
                " (--name), or delete the directory"
            )
    else:
        with place.locked():
            folds.write_folds(config.data.folds_path, folded)
    logits = table[[f"score_{label}" for label in LABELS]].set_axis(list(LABELS), axis=1)
    arranged = scans.arrange(table, logits)
    return FirstStage(config, folded, arranged, None, [path], {"train": digests_of([path]), "test": []})


def check_out_of_fold(path: Path, table: pd.DataFrame) -> None:
    """Refuse a first stage whose predictions may be of patients that its models have seen.

    Args:
        path: a run's directory.
        table: the folds that the second stage will keep.

    Raises:
        IchError: there are predictions of other slices than the folds list, or a model has predicted, as held out,
            slices of another fold than its own.
    """
    folds.check_no_leakage(table)
    oof = read_predictions(path / "oof.parquet")
    differing = oof.index.symmetric_difference(table.index)
    if len(differing) or not oof.index.is_unique:
        raise IchError(
            f"{path}/oof.parquet and the folds list other slices: {name_some(differing)}; give runs of these folds"
        )
    for directory in sorted(path.glob("fold[0-9]*")):
        if not (number := directory.name.removeprefix("fold")).isdecimal():
            continue  # somebody's copy
        k = int(number)
        held_out = read_predictions(directory / "oof.parquet").index
        foreign = held_out.difference(table.index[table["fold"] == k])
        if len(foreign):
            raise IchError(
                f"{directory} has predicted {name_some(foreign)} as held out, which are not in fold {k} of these"
                " folds: its model has seen their patients; give runs of one file of folds"
            )


def read_logits(path: Path) -> pd.DataFrame:
    """A file of predictions as logits, as `ich.second_stage.scans.logits_of` gives them."""
    return scans.logits_of(read_predictions(path))


def _mean_logits(paths: Sequence[Path]) -> pd.DataFrame:
    """The mean of several files of predictions, which must be of the same slices."""
    parts = [read_logits(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        differing = part.index.symmetric_difference(parts[0].index)
        if len(differing):
            raise IchError(f"{path} and {paths[0]} are of other slices: {name_some(differing)}; predict both alike")
    return sum(part.loc[parts[0].index] for part in parts) / len(parts)


def digests_of(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file."""
    return [sha256(path.read_bytes()).hexdigest() for path in paths]
