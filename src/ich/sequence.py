"""The second stage: a first stage's predictions, read scan by scan, to better ones.

Honest stacking: what a slice is told of is out-of-fold predictions, by models that have not seen its patient; the
second stage keeps the same folds of patients, trains on the others' and predicts those of one.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit
from tqdm import tqdm

from ich import boosting, folds, inference, metrics, recurrent, runs, scan_features, scans
from ich.config import Config, load, of_values
from ich.errors import IchError, name_some
from ich.files import replacing
from ich.labels import LABELS
from ich.predictions import read_predictions, write_predictions
from ich.scans import Scans


@dataclass(frozen=True, slots=True)
class FirstStage:
    """What a second stage works on.

    Args:
        config: of the run to make; its name is the directory's.
        folds: as `ich.folds.read_folds` gives them, of the slices to learn from.
        train: these slices in scan order, with out-of-fold scores.
        test: the test set's scans, if they were predicted.
        sources: the runs or the table that the scores come from.
        digests: SHA-256 of the files of the train and of the test scores.
    """

    config: Config
    folds: pd.DataFrame
    train: Scans
    test: Scans | None
    sources: list[Path]
    digests: dict[str, list[str]]


def of_runs(paths: Sequence[Path], name: str | None = None, overrides: Iterable[str] = ()) -> FirstStage:
    """The first stage that runs, or blends of some, have left; of several, the mean of their logits.

    Test scores are taken if every run has them.

    Args:
        name: of the new run; None takes the first one's with -sequence behind.
        overrides: as `ich.runs.Run.open` takes them, and of the section sequence.

    Raises:
        IchError: a run is not finished, or has other folds than the first, or predictions of other slices.
    """
    first = runs.Run.open(paths[0], overrides)
    config = first.config.model_copy(update={"name": name or f"{first.config.name}-sequence"})
    table = folds.read_folds(config.data.folds_path)
    for path in paths:
        check_out_of_fold(path, table)
    slices = runs.slice_table(config).set_index("SOPInstanceUID")
    oof = [path / "oof.parquet" for path in paths]
    test = [path / "predictions_test.parquet" for path in paths]
    has_test = all(path.exists() for path in test)
    return FirstStage(
        config=config,
        folds=table,
        train=scans.arrange(slices, _mean_logits(oof)),
        test=scans.arrange(slices, _mean_logits(test)) if has_test else None,
        sources=list(paths),
        digests={"train": _digests(oof), "test": _digests(test) if has_test else []},
    )


def of_table(path: Path, name: str | None = None, overrides: Iterable[str] = (), root: Path = runs.RUNS) -> FirstStage:
    """The first stage that a table of scores stands for; no images are needed.

    The folds of its patients are made by the section folds, and written to `root/<name>/folds.csv`, or read there.

    Args:
        path: as `ich.scans.read_scores` takes it.
        name: of the new run; None takes the table's.
        overrides: of the sections folds and sequence.

    Raises:
        IchError: the table cannot be read, or its labels or patients cannot be folded.
    """
    table = scans.read_scores(path)
    name = name or path.name.split(".")[0]
    data = {"sources": path, "images": path.parent, "folds": root / name / "folds.csv"}
    config = of_values({"name": name, "data": data}, overrides, f"the run of {path}")
    folded = folds.make_folds(table, config.folds.n, config.folds.seed)
    folds.write_folds(config.data.folds_path, folded)
    logits = table[[f"score_{label}" for label in LABELS]].set_axis(list(LABELS), axis=1)
    arranged = scans.arrange(table, logits)
    return FirstStage(config, folded, arranged, None, [path], {"train": _digests([path]), "test": []})


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
        k = int(directory.name.removeprefix("fold"))
        held_out = read_predictions(directory / "oof.parquet").index
        foreign = held_out.difference(table.index[table["fold"] == k])
        if len(foreign):
            raise IchError(
                f"{directory} has predicted {name_some(foreign)} as held out, which are not in fold {k} of these"
                " folds: its model has seen their patients; give runs of one file of folds"
            )


def train(stage: FirstStage, root: Path = runs.RUNS) -> tuple[runs.Run, dict]:
    """Train a second stage on every fold, predict what each held out and the test set.

    Writes `root/<name>/`: the files of every run, a network a fold (`fold<k>/model.keras`, `history.csv`) unless the
    kind is boosting; score.json also tells what each kind scores, and a blend's weights. Stopped and called again, it
    goes on after the last kind and fold that was finished; with new test scores, it predicts the test set anew.

    A blend's weight is one number, fitted on the predictions of the folds beside the one that is judged; for the test
    set, on all.

    Returns:
        The run, and what score.json holds.

    Raises:
        IchError: the directory is of another config, other folds or scores; a scan has patients of two folds.
    """
    run = _claim(stage, root)
    fold_of_scan = _fold_of_scan(stage)
    kind, n_folds = stage.config.sequence.kind, stage.config.folds.n
    kinds = ["recurrent", "boosting"] if kind == "blend" else [kind]
    jobs = [(kind, k) for kind in kinds for k in range(n_folds)]
    for kind, k in tqdm(jobs, desc="second stage", unit="fold", disable=None):
        _train_part(run, stage, fold_of_scan, kind, k)

    y, fold = stage.folds[list(LABELS)].to_numpy(), stage.folds["fold"].to_numpy()
    held_out = [
        pd.concat([_read_logits(_part(run, kind, k)) for k in range(n_folds)]).loc[stage.folds.index] for kind in kinds
    ]
    shares = [_share(y[fold != k], [part[fold != k] for part in held_out]) for k in range(n_folds)]
    made = [_made(stage, k) for k in range(n_folds)]
    for k, share in enumerate(shares):
        mixed = _mixed([part[fold == k] for part in held_out], share)
        write_predictions(mixed, run.fold(k) / "oof.parquet", {"model": made[k]})
    share = _share(y, held_out)
    if stage.test is not None:
        of_kinds = []
        for kind in kinds:
            of_folds = [read_predictions(_part(run, kind, k, "_test")).astype("float64") for k in range(n_folds)]
            of_kinds.append(scans.logits_of(sum(of_folds) / n_folds))
        write_predictions(_mixed(of_kinds, share), run.predictions_path, {"models": made})
    first = pd.DataFrame(stage.train.logits, index=stage.train.ids).loc[stage.folds.index]
    score = run.score() | {
        "of_first_stage": _loss(y, first),
        "of_kinds": {kind: _loss(y, part) for kind, part in zip(kinds, held_out, strict=True)},
        "share_of_the_network": {"folds": shares, "test": share},
    }
    with replacing(run.score_path) as temporary:
        temporary.write_text(json.dumps(score, indent=2) + "\n")
    return run, score


def _claim(stage: FirstStage, root: Path) -> runs.Run:
    """The run's directory, made this stage's own, or found to be; test predictions of other test scores are removed."""
    run = runs.Run(root / stage.config.name, stage.config)
    now = {"folds_sha256": _digests([stage.config.data.folds_path])[0], "scores_sha256": stage.digests["train"]}
    if run.config_path.exists():
        then = run.environment()
        if load(run.config_path).sequence != stage.config.sequence or any(then.get(key) != now[key] for key in now):
            raise IchError(
                f"{run.path} was trained with another section sequence, other folds or other scores; give this one"
                " another name (--name), or delete the directory"
            )
        if then.get("test_scores_sha256") == stage.digests["test"]:
            return run
        for path in [*run.path.glob("fold*/*_test.parquet"), run.predictions_path]:
            path.unlink(missing_ok=True)
    facts = (
        runs.environment()
        | now
        | {
            "devices": keras.distribution.list_devices(),
            "first_stage": list(map(str, stage.sources)),
            "test_scores_sha256": stage.digests["test"],
        }
    )
    with replacing(run.environment_path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")
    with replacing(run.config_path) as temporary:
        temporary.write_text(stage.config.resolved())
    return run


def _fold_of_scan(stage: FirstStage) -> np.ndarray:
    fold = stage.folds["fold"].loc[stage.train.ids].to_numpy()
    first = fold[stage.train.starts[:-1]]
    torn = np.repeat(first, stage.train.lengths) != fold
    if torn.any():
        raise IchError(
            f"scans have slices of patients in two folds, such as {name_some(stage.train.ids[torn])}; the"
            " SeriesInstanceUIDs of the slice table are not what they should be"
        )
    return first


def _made(stage: FirstStage, k: int) -> str:
    """What tells the models of a fold from others: SHA-256 of all that decides them."""
    section = stage.config.sequence.model_dump(mode="json")
    return sha256(json.dumps([section, stage.digests["train"], k]).encode()).hexdigest()


def _part(run: runs.Run, kind: str, k: int, suffix: str = "") -> Path:
    """Where a kind's probabilities of what fold k held out lie, or of the test set."""
    return run.fold(k) / f"{kind}{suffix}.parquet"


def _train_part(run: runs.Run, stage: FirstStage, fold_of_scan: np.ndarray, kind: str, k: int) -> None:
    """Train one kind without fold k, predict fold k and the test set; what is there is not made again."""
    targets = {_part(run, kind, k): stage.train.take(np.flatnonzero(fold_of_scan == k))}
    if stage.test is not None:
        targets[_part(run, kind, k, "_test")] = stage.test
    targets = {path: target for path, target in targets.items() if not path.exists()}
    if not targets:
        return
    seen = stage.train.take(np.flatnonzero(fold_of_scan != k))
    labels = stage.folds.loc[seen.ids, list(LABELS)].to_numpy()
    section = stage.config.sequence
    if kind == "recurrent":
        model = _network(run, seen, labels, k)
        logits = [recurrent.predict(model, target, section.batch_size) for target in targets.values()]
    else:
        features, *others = [scan_features.neighbour_features(one, section.reach) for one in (seen, *targets.values())]
        logits = boosting.fit_predict(features, labels, others, section.rounds, section.tree_rate, section.seed + k)
    for (path, target), values in zip(targets.items(), logits, strict=True):
        write_predictions(pd.DataFrame(expit(values), target.ids, list(LABELS)), path)


def _network(run: runs.Run, seen: Scans, labels: np.ndarray, k: int) -> keras.Model:
    """The fold's network, the mean of those of all seeds; read if it was trained."""
    path = run.fold(k) / "model.keras"
    if path.exists():
        return inference.load_model(run, k)
    section = run.config.sequence
    options = section.model_dump(include={field.name for field in fields(recurrent.Network)})
    network = recurrent.Network(**options)
    keras.backend.clear_session()  # the fold before leaves its graph
    models, histories = [], {}
    for seed in range(section.seed, section.seed + section.seeds):
        model, histories[seed] = recurrent.train(seen, labels, network, seed)
        models.append(model)
    mean = recurrent.mean_of(models)
    with replacing(run.fold(k) / "history.csv") as temporary:
        pd.concat(histories, names=["seed"]).to_csv(temporary)
    with replacing(path) as temporary:
        mean.save(temporary)
    return mean


def _share(y: np.ndarray, parts: list[pd.DataFrame]) -> float:
    """The first kind's weight in the blend that scores best; 1 if it is alone."""
    if len(parts) == 1:
        return 1.0
    return float(minimize_scalar(lambda share: _loss(y, _mixed_logits(parts, share)), bounds=(0, 1)).x)


def _mixed_logits(parts: list[pd.DataFrame], share: float) -> pd.DataFrame:
    return parts[0] if len(parts) == 1 else share * parts[0] + (1 - share) * parts[1]


def _mixed(parts: list[pd.DataFrame], share: float) -> pd.DataFrame:
    """The kinds' logits as one set of probabilities."""
    return expit(_mixed_logits(parts, share))


def _loss(y: np.ndarray, logits: pd.DataFrame) -> float:
    return metrics.weighted_log_loss(y, expit(logits.to_numpy(np.float64)))


def _read_logits(path: Path) -> pd.DataFrame:
    return scans.logits_of(read_predictions(path))


def _mean_logits(paths: Sequence[Path]) -> pd.DataFrame:
    """The mean of several files of predictions, which must be of the same slices."""
    parts = [_read_logits(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        differing = part.index.symmetric_difference(parts[0].index)
        if len(differing):
            raise IchError(f"{path} and {paths[0]} are of other slices: {name_some(differing)}; predict both alike")
    return sum(part.loc[parts[0].index] for part in parts) / len(parts)


def _digests(paths: Sequence[Path]) -> list[str]:
    return [sha256(path.read_bytes()).hexdigest() for path in paths]
