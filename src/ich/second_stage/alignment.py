"""Offsets between the folds' models of a run, for a second stage that learns from their logits as if of one model.

Each fold's out-of-fold logits are of another model, and when the second stage predicts it reads the mean over all of
them. Models of one recipe can differ by an offset, which can be measured where all predict the same slices: on the test
set. Added to a model's logits, its offset makes the model's mean probability over the test set that of the mean over
the models. So out-of-fold logits become alike among folds, and like the logits read when predicting, of the test set or
of a scan of another hospital, which stay unchanged.

No label is read. The other folds' models were trained on a fold's patients, but the offsets depend on these only
through the mean predictions of the test set, six numbers a model. Means over the slices that each fold held out would
leak more: they differ with the patients, and as folds are balanced by labels, aligning them would use the labels.
"""

from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from ich.competition.labels import LABELS
from ich.errors import IchError, name_some
from ich.results.predictions import read_predictions, read_provenance
from ich.results.result_directory import check_alike, how_to_predict, members
from ich.second_stage.scans import LIMIT
from ich.training.inference import check_test_pass, mean_logits
from ich.training.run_directory import Run


def offsets_of(path: Path) -> np.ndarray:
    """Compute the offsets that align the logits of each fold's model with the mean over the folds.

    Args:
        path: directory of a run with test predictions.

    Returns:
        float64, (folds, 6): to be added to the logits of fold k's model.

    Raises:
        IchError: it is a blend or a second stage, which have no models that read the test set; the test set was not
            predicted, in another way or by other models than the out-of-fold slices; a fold's passes are missing.
    """
    if members(path):
        raise IchError(f"{path} is a blend, which has no models to align; give runs, or set sequence.align=false")
    run = Run.open(path)
    run.check_reads_images()
    check_alike(path)
    provenance, mean = read_provenance(run.predictions_path), read_predictions(run.predictions_path)
    if not provenance or not provenance.get("models"):
        raise IchError(f"{run.predictions_path} does not say which models predicted it; {how_to_predict(path)}")
    target = mean.to_numpy(np.float64).mean(axis=0)
    offsets = []
    for k, model in enumerate(provenance["models"]):
        passes = []
        for tta in provenance["tta"]:
            file, _ = check_test_pass(run, k, tta, model)
            logits = read_predictions(file)
            if len(differing := logits.index.symmetric_difference(mean.index)):
                raise IchError(
                    f"{file} and {run.predictions_path} are of other slices: {name_some(differing)};"
                    f" {how_to_predict(path)}"
                )
            passes.append(logits.to_numpy())
        offsets.append(offset(mean_logits(passes, provenance["mean"]), target))
    return np.stack(offsets)


def offset(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Find the offset of each label's logits that makes their mean probability the target.

    Args:
        logits: (n, 6), at least one slice; they count as if clipped to ±`ich.second_stage.scans.LIMIT`.
        target: mean probabilities, (6,), within 0 and 1.

    Returns:
        float64, (6,), within ±2 LIMIT.
    """
    logits = logits.astype(np.float64).clip(-LIMIT, LIMIT)
    target = np.clip(target, *expit([-LIMIT, LIMIT]))

    def of_label(k: int) -> float:
        return brentq(lambda shift: expit(logits[:, k] + shift).mean() - target[k], -2 * LIMIT - 1, 2 * LIMIT + 1)

    return np.array([of_label(k) for k in range(len(LABELS))])
