"""The out-of-fold score of a run: score.json, and the predictions that it is of."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from ich import folders
from ich.competition import folds, metrics
from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.files import write_json
from ich.results import compare
from ich.results.predictions import read_predictions, read_provenance, write_predictions
from ich.results.result_directory import read_mapping
from ich.training.run_directory import Run


def score_run(run: Run) -> dict:
    """Score all folds' out-of-fold predictions, write them as one file and the score beside it.

    Other processes are kept from the directory meanwhile.

    Returns:
        What score.json holds: `ich.competition.metrics.summary`; tta and mean, how the predictions were made;
        plain_weighted_log_loss, the score of one pass over the slices as they are, and plain_interval, the 95 %
        interval of the score minus that one; shift, if the loss shifts probabilities and an earlier version, which
        did not correct them, trained the models: the settings that do, and for each label the mean predicted and the
        share of slices that have it.

    Raises:
        IchError: a fold is missing, its predictions are not those of its slices, or two folds' were made in two
            ways.
    """
    run.check_finished()
    paths = [run.fold(k) / "oof.parquet" for k in run.finished_folds()]
    provenances = [read_provenance(path) or {} for path in paths]
    passes = {key: provenances[0].get(key) for key in ("tta", "mean")}
    for k, provenance in enumerate(provenances):
        if {key: provenance.get(key) for key in passes} != passes:
            raise IchError(
                f"the out-of-fold predictions of {run.path} were made in two ways (fold 0: {provenances[0]}, fold {k}:"
                f" {provenance}); run scripts/predict.py {run.path} to make all in one"
            )
    table = folds.read_folds(run.config.data.folds_path)
    y, oof = table[list(LABELS)].to_numpy(), _concatenated(run, paths, table.index)
    score = metrics.summary(y, oof.to_numpy()) | passes
    score["plain_weighted_log_loss"] = score["weighted_log_loss"]
    if passes["tta"] not in (None, ["none"]):
        plain = _concatenated(run, [run.passes(k) / "oof-none.parquet" for k in run.finished_folds()], table.index)
        both = {"passes": oof.to_numpy(np.float64), "plain": expit(plain.to_numpy(dtype=np.float64))}
        score["plain_weighted_log_loss"] = metrics.weighted_log_loss(y, both["plain"])
        row = compare.compare(table, both, baseline="plain").loc["passes"]
        score["plain_interval"] = [float(row["difference_low"]), float(row["difference_high"])]
    environment = run.environment()
    if run.config.train.shifting and not {"first_stage", "corrects_loss"} & environment.keys():
        means = zip(LABELS, oof.mean().tolist(), y.mean(axis=0).tolist(), strict=True)
        score["shift"] = {
            "causes": run.config.train.shifting,
            "labels": {label: {"predicted": mean, "found": share} for label, mean, share in means},
        }
    with run.locked(wait=folders.SHORT):
        models = [provenance.get("model") for provenance in provenances]
        write_predictions(oof, run.oof_path, passes | {"models": models})
        write_json(run.score_path, score)
    return score


def read_score(run: Run) -> dict:
    """Return the score of all folds' out-of-fold predictions; from score.json, if it was computed.

    Raises:
        IchError: as `score_run`.
    """
    if run.score_path.exists():
        score = read_mapping(run.score_path, "holds the out-of-fold score")
        if {"weighted_log_loss", "of_prevalence", "plain_weighted_log_loss"} <= score.keys():
            return score
    return score_run(run)


def _concatenated(run: Run, paths: list[Path], ids: pd.Index) -> pd.DataFrame:
    """Return all folds' predictions as one frame, in the order of the ids."""
    frame = pd.concat([read_predictions(path) for path in paths])
    if len(frame) != len(ids) or not frame.index.is_unique or not frame.index.isin(ids).all():
        raise IchError(
            f"{run.path} has {len(frame):,} out-of-fold predictions, {run.config.data.folds_path} lists"
            f" {len(ids):,} slices, and they are not the same; delete the run's fold directories and train again"
        )
    return frame.loc[ids]
