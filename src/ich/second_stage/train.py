"""The second stage as a run: train each kind on a first stage's predictions, blend them, predict the test set.

It keeps the first stage's folds of patients, trains on all but one and predicts that one; see
`ich.second_stage.inputs` for its inputs.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm import tqdm

from ich import config
from ich.competition import metrics
from ich.competition.labels import LABELS
from ich.errors import IchError, name_some, one_line
from ich.files import remove, replacing, sha256_of, write_json
from ich.results import compare, environment
from ich.results.blend import least_on_simplex
from ich.results.predictions import read_predictions, read_provenance, write_predictions
from ich.results.result_directory import extracted_in, passes_of
from ich.second_stage import boosting, fitted, logistic, rnn, scans
from ich.second_stage.inputs import FirstStage
from ich.second_stage.scans import Scans
from ich.training import run_directory
from ich.training.run_directory import Run
from ich.training.run_score import score_run

_SAME = 1e-6  # between probabilities of one model, fitted twice and stored as float32


def train(stage: FirstStage, root: Path = run_directory.RUNS) -> tuple[Run, dict]:
    """Train a second stage on every fold; predict each fold's held-out slices and the test set.

    Writes `root/<name>/`: the files of every run, and each kind's model of each fold (`ich.second_stage.fitted.FILES`;
    of the network history.csv too); score.json also holds each kind's score and a blend's weights. Called again, it
    resumes after the last finished kind and fold; with new test scores, it predicts the test set again. Models that an
    earlier version did not keep are fitted again, and must predict the same.

    A blend has one weight per kind. A fold's are fitted on the predictions of the other folds; the test set's on all.

    Returns:
        The run, and the content of score.json.

    Raises:
        IchError: the directory is of another config, other folds or scores, or another process works in it; a scan has
            patients of two folds; a refitted model predicts something else than the one that was not kept.
    """
    run = Run(root / stage.config.name, stage.config)
    with run.locked():
        offsets = _claim(stage, run)
        fold_of_scan = _fold_of_scan(stage)
        learned_from = stage if offsets is None else replace(stage, train=_aligned(stage, offsets))
        jobs = [(kind, k) for kind in stage.config.sequence.kinds for k in range(stage.config.folds.n)]
        for kind, k in tqdm(jobs, desc="second stage", unit="fold", disable=None):
            _train_part(run, learned_from, fold_of_scan, kind, k)
        return run, _blend(stage, run)


def _claim(stage: FirstStage, run: Run) -> np.ndarray | None:
    """Write a new run's config and environment, or check those that are there; remove outdated test predictions.

    Returns:
        The offsets that align the folds, (folds, 6), if they are to be aligned: constants from the first call on.
    """
    digests = {"folds_sha256": sha256_of(stage.config.data.folds_path), "scores_sha256": stage.digests["train"]}
    passes = {str(path): passes_of(path) for path in stage.sources if path.is_dir()}
    if stage.embedded is not None:
        (path,) = stage.sources
        passes[f"{path}, embeddings"] = extracted_in(path)
    if run.path.resolve() in [path.resolve() for path in stage.sources]:
        raise IchError(f"{run.path} is the first stage itself; give the second stage another name (--name)")
    if run.config_path.exists():
        then = run.environment()
        if "first_stage" not in then:
            raise IchError(f"{run.path} is no second stage; give this one another name (--name)")
        same_inputs = digests == {key: then.get(key) for key in digests}
        if not same_inputs or config.load(run.config_path).sequence != stage.config.sequence:
            before = then.get("passes", {})
            differing = [source for source in passes if before.get(source) != passes[source]]
            changes = [f"{source}: {before.get(source)} then, {passes[source]} now" for source in differing]
            changed = f" ({'; '.join(changes)})" if changes else ""
            raise IchError(
                f"{run.path} was trained with another section sequence, other folds or other scores{changed}; give"
                f" this one another name: add --name NAME to the command"
            )
        offsets = _offsets_in(run, then) if stage.config.sequence.align else None
        if then.get("test_scores_sha256") == stage.digests["test"]:
            return offsets
        # Earlier versions kept each fold's test predictions.
        remove(*run.path.glob("fold*/*_test.parquet"), run.predictions_path)
    else:
        offsets = None if stage.offsets is None else stage.offsets()
    facts = environment.environment() | digests
    if offsets is not None:
        facts["offsets"] = [dict(zip(LABELS, of_fold, strict=True)) for of_fold in offsets.tolist()]
    facts |= {"devices": keras.distribution.list_devices(), "first_stage": list(map(str, stage.sources))}
    write_json(run.environment_path, facts | {"passes": passes, "test_scores_sha256": stage.digests["test"]})
    with replacing(run.config_path) as temporary:
        temporary.write_text(stage.config.resolved())
    return offsets


def _offsets_in(run: Run, facts: dict) -> np.ndarray:
    """Read the offsets that environment.json keeps, (folds, 6)."""
    try:
        offsets = np.array([[of_fold[label] for label in LABELS] for of_fold in facts["offsets"]], np.float64)
        if offsets.shape != (run.config.folds.n, len(LABELS)) or not np.isfinite(offsets).all():
            raise ValueError("they are not a number of each fold and label")
    except (KeyError, TypeError, ValueError) as error:
        raise IchError(
            f"{run.environment_path} lacks the offsets that the folds were aligned by ({one_line(error, named=True)});"
            " restore it, or train a second stage of another name (--name)"
        ) from error
    return offsets


def _aligned(stage: FirstStage, offsets: np.ndarray) -> Scans:
    """Return the scans to learn from with each fold's offsets added to its logits."""
    fold = stage.folds["fold"].loc[stage.train.ids].to_numpy()
    logits = (stage.train.logits + offsets[fold]).clip(-scans.LIMIT, scans.LIMIT)
    return replace(stage.train, logits=logits.astype(np.float32))


def _fold_of_scan(stage: FirstStage) -> np.ndarray:
    fold = stage.folds["fold"].loc[stage.train.ids].to_numpy()
    first = fold[stage.train.starts[:-1]]
    torn = np.repeat(first, stage.train.lengths) != fold
    if torn.any():
        raise IchError(
            f"scans have slices of patients in two folds, such as {name_some(stage.train.ids[torn])}; the"
            " SeriesInstanceUIDs of the slice table are wrong: convert the slices again"
        )
    return first


def _path(run: Run, kind: str, k: int) -> Path:
    """Return the path of a kind's probabilities for the slices held out by fold k."""
    return run.fold(k) / f"{kind}.parquet"


def _train_part(run: Run, stage: FirstStage, fold_of_scan: np.ndarray, kind: str, k: int) -> None:
    """Train one kind without fold k, save it and predict fold k; keep existing files."""
    file, path = run.fold(k) / fitted.FILES[kind], _path(run, kind, k)
    if file.exists() and path.exists():
        return
    if kind == "recurrent" and stage.embedded is not None:
        seen, held_out = stage.embedded("seen", k), stage.embedded("oof", k)
    else:
        seen, held_out = (stage.train.take(np.flatnonzero(part)) for part in (fold_of_scan != k, fold_of_scan == k))
    section = stage.config.sequence
    history = None
    if file.exists():
        model = fitted.read_model(run.fold(k), kind)
    else:
        labels = stage.folds.loc[seen.ids, list(LABELS)].to_numpy()
        model, history = _fit(kind, seen, labels, section, k)
    logits = fitted.logits(kind, model, fitted.inputs(kind, held_out, section), section)
    predicted = pd.DataFrame(expit(logits), held_out.ids, list(LABELS))
    if path.exists():
        _check_same(path, predicted, kind)
    if history is not None:
        with replacing(run.fold(k) / "history.csv") as temporary:
            history.to_csv(temporary)
    if not file.exists():
        _save(model, file)
    if not path.exists():
        write_predictions(predicted, path)


def _fit(
    kind: str, seen: Scans, labels: np.ndarray, section: config.Sequence, k: int
) -> tuple[fitted.Model, pd.DataFrame | None]:
    """Fit one kind; of the network, one for each seed, joined into their mean; return the model and the history."""
    read = fitted.inputs(kind, seen, section)
    if kind == "boosting":
        return boosting.Model.fit(read, labels, section.rounds, section.tree_rate, section.seed + k), None
    if kind == "linear":
        return logistic.Model.fit(read, labels), None
    keras.backend.clear_session()  # the previous fold leaves its graph
    models, histories = [], {}
    for seed in range(section.seed, section.seed + section.seeds):
        model, histories[seed] = rnn.train(seen, labels, section, seed)
        models.append(model)
    return rnn.mean_of(models), pd.concat(histories, names=["seed"])


def _save(model: fitted.Model, path: Path) -> None:
    if isinstance(model, keras.Model):
        with replacing(path) as temporary:
            model.save(temporary)
    else:
        model.save(path)


def _check_same(path: Path, predicted: pd.DataFrame, kind: str) -> None:
    """Refuse a refitted model whose predictions differ from those of the model that an earlier version did not keep."""
    then = read_predictions(path)
    difference = np.inf
    if then.index.sort_values().equals(predicted.index.sort_values()):
        difference = np.abs(then.loc[predicted.index].to_numpy() - predicted.to_numpy()).max()
    if difference > _SAME:
        raise IchError(
            f"{path} was predicted by a model that was not kept, and {kind}, fitted again, predicts otherwise (by up to"
            f" {difference:.2g}), as other versions of its libraries do; train a second stage of another name (--name)"
        )


def _blend(stage: FirstStage, run: Run) -> dict:
    """Write the blend of all kinds, out of fold and for the test set, and its score.

    Returns:
        The content of score.json.
    """
    kinds, n_folds = stage.config.sequence.kinds, stage.config.folds.n
    y, fold = stage.folds[list(LABELS)].to_numpy(), stage.folds["fold"].to_numpy()
    held_out = []
    for kind in kinds:
        parts = [scans.logits_of(read_predictions(_path(run, kind, k))) for k in range(n_folds)]
        held_out.append(pd.concat(parts).loc[stage.folds.index])
    weights = [_fit_weights(y[fold != k], [part[fold != k] for part in held_out]) for k in range(n_folds)]
    models = [fitted.digest(run.fold(k), kinds) for k in range(n_folds)]
    for k, of_fold in enumerate(weights):
        mixed = expit(_mix([part[fold == k] for part in held_out], of_fold))
        write_predictions(mixed, run.fold(k) / "oof.parquet", {"model": models[k]})
    of_test = _fit_weights(y, held_out)
    if stage.test is not None:
        _predict_test(run, stage, stage.test, dict(zip(kinds, of_test.tolist(), strict=True)), {"models": models})
    first = pd.DataFrame(stage.train.logits, index=stage.train.ids).loc[stage.folds.index]
    score = score_run(run) | {
        "of_first_stage": _loss(y, first),
        "of_first_stage_interval": _intervals(stage, run, {"first": first})["first"],
        "of_kinds": {kind: _loss(y, part) for kind, part in zip(kinds, held_out, strict=True)},
        "of_kinds_intervals": _intervals(stage, run, dict(zip(kinds, held_out, strict=True))),
        "weights": {
            "folds": [dict(zip(kinds, of_fold.tolist(), strict=True)) for of_fold in weights],
            "test": dict(zip(kinds, of_test.tolist(), strict=True)),
        },
    }
    write_json(run.score_path, score)
    return score


def _predict_test(run: Run, stage: FirstStage, test: Scans, weights: dict[str, float], provenance: dict) -> None:
    """Predict the test set by the models' files, unless its predictions have this provenance already."""
    if read_provenance(run.predictions_path) == provenance:
        return
    section, folds = stage.config.sequence, range(stage.config.folds.n)
    models = {kind: [fitted.read_model(run.fold(k), kind) for k in folds] for kind in weights}
    embedded = None if stage.embedded is None else partial(stage.embedded, "test")
    probabilities = fitted.SecondStage(section, models, weights).predict(test, embedded, progress=True)
    write_predictions(pd.DataFrame(probabilities, test.ids, list(LABELS)), run.predictions_path, provenance)


def _fit_weights(y: np.ndarray, parts: list[pd.DataFrame]) -> np.ndarray:
    """Fit the kinds' weights in the blend with the least loss; they are 0 or more and add up to 1."""
    return least_on_simplex(lambda weights: _loss(y, _mix(parts, weights)), len(parts))


def _mix(parts: list[pd.DataFrame], weights: np.ndarray) -> pd.DataFrame:
    """Return the weighted mean of the kinds' logits."""
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))


def _intervals(stage: FirstStage, run: Run, kinds: dict[str, pd.DataFrame]) -> dict[str, list[float]]:
    """Return the 95 % interval of the blend's loss minus each kind's, by bootstrap over patients."""
    blend = read_predictions(run.oof_path).loc[stage.folds.index].to_numpy(np.float64)
    predictions = {kind: expit(logits.to_numpy(np.float64)) for kind, logits in kinds.items()}
    scores = compare.compare(stage.folds, {"blend": blend, **predictions}, baseline="blend")
    return {kind: [-scores.at[kind, "difference_high"], -scores.at[kind, "difference_low"]] for kind in kinds}


def _loss(y: np.ndarray, logits: pd.DataFrame) -> float:
    return metrics.weighted_log_loss(y, expit(logits.to_numpy(np.float64)))
