"""The competition's metric in NumPy: the reference that the Keras loss and metric are tested against."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ich.competition.labels import LABELS, METRIC_WEIGHTS
from ich.errors import IchError

EPSILON = 1e-15
"""Probabilities are clipped to [EPSILON, 1 - EPSILON], as the competition's scorer does."""


def log_losses(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Return the log loss of each slice and label.

    Args:
        y_true: 0 or 1, shape (n, 6), any dtype.
        y_pred: probabilities, shape (n, 6), any float dtype.

    Returns:
        float64, shape (n, 6), natural logarithm.

    Raises:
        IchError: the shapes differ or are empty, a label is neither 0 nor 1, or a probability is not in [0, 1].
    """
    # In float64: 1 - EPSILON is 1 in float32, and the logarithm of 1 - p would be infinite.
    y, p = np.asarray(y_true, dtype=np.float64), np.asarray(y_pred, dtype=np.float64)
    if y.shape != p.shape or y.ndim != 2 or y.shape[1] != len(LABELS) or len(y) == 0:
        raise IchError(
            f"labels of shape {y.shape}, predictions of {p.shape}; expected both as (n, {len(LABELS)}), n > 0"
        )
    if not np.isin(y, (0, 1)).all():
        raise IchError("labels hold values other than 0 and 1")
    if not ((p >= 0) & (p <= 1)).all():  # NaN fails too
        raise IchError("predictions hold NaN or values outside [0, 1]; the metric takes probabilities, not logits")
    p = np.clip(p, EPSILON, 1 - EPSILON)
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def log_loss_by_label(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Return the mean log loss of each label.

    Args:
        y_true, y_pred: as in `log_losses`.

    Returns:
        float64, shape (6,).
    """
    return log_losses(y_true, y_pred).mean(axis=0)


def weighted_log_loss(y_true: np.ndarray, y_pred: np.ndarray, weights: Sequence[float] | None = None) -> float:
    """Return the competition's score: the weighted mean of the labels' log losses, `any` counting twice.

    Args:
        y_true, y_pred: as in `log_losses`.
        weights: six numbers; None takes `METRIC_WEIGHTS`.
    """
    if weights is None:
        weights = list(METRIC_WEIGHTS.values())
    return float(np.average(log_loss_by_label(y_true, y_pred), weights=weights))


def prevalence_log_loss(y_true: np.ndarray) -> float:
    """Return the score of the prevalence baseline: each label's prevalence predicted for every slice.

    Args:
        y_true: as in `log_losses`.
    """
    y = np.asarray(y_true, dtype=np.float64)
    return weighted_log_loss(y, np.broadcast_to(y.mean(axis=0), y.shape))


def auc_by_label(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of each label, by the ranks of its positives (Mann and Whitney's U).

    Args:
        y_true, y_pred: as in `log_losses`.

    Returns:
        float64, shape (6,); NaN if all slices have the label, or none has.
    """
    y = np.asarray(y_true, dtype=np.float64)
    ranks = pd.DataFrame(np.asarray(y_pred)).rank().to_numpy()  # equal predictions share their mean rank
    positives, negatives = y.sum(axis=0), (1 - y).sum(axis=0)
    pairs = positives * negatives
    wins = (ranks * y).sum(axis=0) - positives * (positives + 1) / 2
    return np.divide(wins, pairs, out=np.full(len(LABELS), np.nan), where=pairs > 0)


def summary(y_true: np.ndarray, y_pred: np.ndarray) -> dict:
    """Return the scores of predictions, as plain values for JSON.

    Args:
        y_true, y_pred: as in `log_losses`.

    Returns:
        weighted_log_loss; of_prevalence, that of the prevalence baseline; by_label, the log loss of each; auc of
        each label, None where it is constant; slices; prevalence of each label.
    """
    by_label = np.asarray(log_loss_by_label(y_true, y_pred))
    return {
        "weighted_log_loss": weighted_log_loss(y_true, y_pred),
        "of_prevalence": prevalence_log_loss(y_true),
        "by_label": dict(zip(LABELS, by_label.tolist(), strict=True)),
        "auc": {
            label: None if np.isnan(auc) else auc
            for label, auc in zip(LABELS, auc_by_label(y_true, y_pred).tolist(), strict=True)
        },
        "slices": len(y_true),
        "prevalence": dict(zip(LABELS, np.asarray(y_true, np.float64).mean(axis=0).tolist(), strict=True)),
    }
