"""The second stage: a first stage's predictions, read scan by scan, to better ones.

It keeps the first stage's folds of patients, trains on the others' and predicts those of one; see
`ich.second_stage.inputs` for what it is told.
"""

import json
from dataclasses import fields
from hashlib import sha256
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm import tqdm

from ich.competition import metrics
from ich.competition.labels import LABELS
from ich.config import load
from ich.errors import IchError, name_some
from ich.files import remove, replacing
from ich.results import environment
from ich.results.blend import least_on_simplex
from ich.results.predictions import read_predictions, write_predictions
from ich.results.result_directory import extracted_in, passes_of
from ich.second_stage import boosting, logistic, rnn, scan_features, scans
from ich.second_stage.inputs import FirstStage, digests_of, read_logits
from ich.second_stage.scans import Scans
from ich.training import inference, run_directory
from ich.training.run_directory import Run


def train(stage: FirstStage, root: Path = run_directory.RUNS) -> tuple[Run, dict]:
    """Train a second stage on every fold, predict what each held out and the test set.

    Writes `root/<name>/`: the files of every run, a network a fold (`fold<k>/model.keras`, `history.csv`) if there is
    one; score.json also tells what each kind scores, and a blend's weights. Stopped and called again, it goes on after
    the last kind and fold that was finished; with new test scores, it predicts the test set anew.

    A blend's weights, a number a kind, are fitted on the predictions of the folds beside the one that is judged; for
    the test set, on all.

    Returns:
        The run, and what score.json holds.

    Raises:
        IchError: the directory is of another config, other folds or scores, or another process works in it; a scan has
            patients of two folds.
    """
    run = Run(root / stage.config.name, stage.config)
    with run.locked():
        return _train(stage, run)


def _train(stage: FirstStage, run: Run) -> tuple[Run, dict]:
    """As `train`, in a directory that others are kept from."""
    _claim(stage, run)
    fold_of_scan = _fold_of_scan(stage)
    kinds, n_folds = stage.config.sequence.kinds, stage.config.folds.n
    jobs = [(kind, k) for kind in kinds for k in range(n_folds)]
    for kind, k in tqdm(jobs, desc="second stage", unit="fold", disable=None):
        _train_part(run, stage, fold_of_scan, kind, k)

    y, fold = stage.folds[list(LABELS)].to_numpy(), stage.folds["fold"].to_numpy()
    held_out = [
        pd.concat([read_logits(_part(run, kind, k)) for k in range(n_folds)]).loc[stage.folds.index] for kind in kinds
    ]
    weights = [_weights(y[fold != k], [part[fold != k] for part in held_out]) for k in range(n_folds)]
    made = [_made(stage, k) for k in range(n_folds)]
    for k, of_fold in enumerate(weights):
        mixed = _mixed([part[fold == k] for part in held_out], of_fold)
        write_predictions(mixed, run.fold(k) / "oof.parquet", {"model": made[k]})
    of_all = _weights(y, held_out)
    if stage.test is not None:
        of_kinds = []
        for kind in kinds:
            of_folds = [read_predictions(_part(run, kind, k, "_test")).astype("float64") for k in range(n_folds)]
            of_kinds.append(scans.logits_of(sum(of_folds) / n_folds))
        write_predictions(_mixed(of_kinds, of_all), run.predictions_path, {"models": made})
    first = pd.DataFrame(stage.train.logits, index=stage.train.ids).loc[stage.folds.index]
    score = run.score() | {
        "of_first_stage": _loss(y, first),
        "of_kinds": {kind: _loss(y, part) for kind, part in zip(kinds, held_out, strict=True)},
        "weights": {
            "folds": [dict(zip(kinds, of_fold.tolist(), strict=True)) for of_fold in weights],
            "test": dict(zip(kinds, of_all.tolist(), strict=True)),
        },
    }
    with replacing(run.score_path) as temporary:
        temporary.write_text(json.dumps(score, indent=2) + "\n")
    return run, score


def _claim(stage: FirstStage, run: Run) -> None:
    """Make the run's directory this stage's own, or find it to be; test predictions of other scores are removed."""
    now = {"folds_sha256": digests_of([stage.config.data.folds_path])[0], "scores_sha256": stage.digests["train"]}
    passes = _passes(stage)
    if run.config_path.exists():
        then = run.environment()
        if load(run.config_path).sequence != stage.config.sequence or any(then.get(key) != now[key] for key in now):
            before = then.get("passes", {})
            told = [
                f"{one}: {before.get(one)} then, {how} now" for one, how in passes.items() if before.get(one) != how
            ]
            changed = f" ({'; '.join(told)})" if told else ""
            raise IchError(
                f"{run.path} was trained with another section sequence, other folds or other scores{changed}; give this"
                " one another name (--name), or delete the directory"
            )
        if then.get("test_scores_sha256") == stage.digests["test"]:
            return
        remove(*run.path.glob("fold*/*_test.parquet"), run.predictions_path)
    facts = (
        environment.environment()
        | now
        | {
            "devices": keras.distribution.list_devices(),
            "first_stage": list(map(str, stage.sources)),
            "passes": passes,
            "test_scores_sha256": stage.digests["test"],
        }
    )
    with replacing(run.environment_path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")
    with replacing(run.config_path) as temporary:
        temporary.write_text(stage.config.resolved())


def _passes(stage: FirstStage) -> dict:
    """How the predictions of each source were made, and its embeddings; nothing of a table."""
    passes = {str(path): passes_of(path) for path in stage.sources if path.is_dir()}
    if stage.embedded is not None:
        (path,) = stage.sources
        passes[f"{path}, embeddings"] = extracted_in(path)
    return passes


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


def _part(run: Run, kind: str, k: int, suffix: str = "") -> Path:
    """Where a kind's probabilities of what fold k held out lie, or of the test set."""
    return run.fold(k) / f"{kind}{suffix}.parquet"


def _train_part(run: Run, stage: FirstStage, fold_of_scan: np.ndarray, kind: str, k: int) -> None:
    """Train one kind without fold k, predict fold k and the test set; what is there is not made again."""
    paths = [_part(run, kind, k), *([] if stage.test is None else [_part(run, kind, k, "_test")])]
    if all(path.exists() for path in paths):
        return
    if kind == "recurrent" and stage.embedded is not None:
        seen, held_out, test = stage.embedded(k)
    else:
        seen, held_out = (stage.train.take(np.flatnonzero(one)) for one in (fold_of_scan != k, fold_of_scan == k))
        test = stage.test
    targets = {
        path: target for path, target in zip(paths, (held_out, test), strict=False) if not path.exists()
    }  # without a test set, the paths end first
    labels = stage.folds.loc[seen.ids, list(LABELS)].to_numpy()
    section = stage.config.sequence
    if kind == "recurrent":
        model = _network(run, seen, labels, k)
        logits = [rnn.predict(model, target, section.batch_size) for target in targets.values()]
    elif kind == "linear":
        told, *others = [logistic.features(one) for one in (seen, *targets.values())]
        logits = logistic.fit_predict(told, labels, others)
    else:
        told, *others = [scan_features.neighbour_features(one, section.reach) for one in (seen, *targets.values())]
        logits = boosting.fit_predict(told, labels, others, section.rounds, section.tree_rate, section.seed + k)
    for (path, target), values in zip(targets.items(), logits, strict=True):
        write_predictions(pd.DataFrame(expit(values), target.ids, list(LABELS)), path)


def _network(run: Run, seen: Scans, labels: np.ndarray, k: int) -> keras.Model:
    """The fold's network, the mean of those of all seeds; read if it was trained."""
    path = run.fold(k) / "model.keras"
    if path.exists():
        return inference.load_model(run, k)
    section = run.config.sequence
    options = section.model_dump(include={field.name for field in fields(rnn.Network)})
    network = rnn.Network(**options)
    keras.backend.clear_session()  # the fold before leaves its graph
    models, histories = [], {}
    for seed in range(section.seed, section.seed + section.seeds):
        model, histories[seed] = rnn.train(seen, labels, network, seed)
        models.append(model)
    mean = rnn.mean_of(models)
    with replacing(run.fold(k) / "history.csv") as temporary:
        pd.concat(histories, names=["seed"]).to_csv(temporary)
    with replacing(path) as temporary:
        mean.save(temporary)
    return mean


def _weights(y: np.ndarray, parts: list[pd.DataFrame]) -> np.ndarray:
    """The kinds' weights in the blend that scores best; they add up to 1."""
    return least_on_simplex(lambda weights: _loss(y, _mixed_logits(parts, weights)), len(parts))


def _mixed_logits(parts: list[pd.DataFrame], weights: np.ndarray) -> pd.DataFrame:
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))


def _mixed(parts: list[pd.DataFrame], weights: np.ndarray) -> pd.DataFrame:
    """The kinds' logits as one set of probabilities."""
    return expit(_mixed_logits(parts, weights))


def _loss(y: np.ndarray, logits: pd.DataFrame) -> float:
    return metrics.weighted_log_loss(y, expit(logits.to_numpy(np.float64)))
