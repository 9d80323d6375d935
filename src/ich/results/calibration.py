"""Calibration of probabilities: a linear map of each label's logits, fitted on labeled slices."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit

from ich.competition.labels import LABELS
from ich.competition.metrics import EPSILON
from ich.errors import IchError

KINDS: tuple[str, ...] = ("temperature", "platt")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Maps a label's probability p to expit(scale · logit(p) + offset); a scale of 1 and an offset of 0 change nothing.

    Args:
        scale: float64, shape (6,), 0 or more, so that it keeps the order; the temperature is its inverse.
        offset: float64, shape (6,).
    """

    scale: np.ndarray
    offset: np.ndarray

    @classmethod
    def none(cls) -> "Calibration":
        """Return the calibration that changes nothing."""
        return cls(np.ones(len(LABELS)), np.zeros(len(LABELS)))

    def only(self, kept: np.ndarray) -> "Calibration":
        """Return this calibration for the labels that are `kept`, shape (6,), and none for the others."""
        return Calibration(np.where(kept, self.scale, 1.0), np.where(kept, self.offset, 0.0))

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrate probabilities, shape (n, 6); float64."""
        changes = (self.scale != 1) | (self.offset != 0)
        return np.where(changes, expit(self.scale * clipped_logit(probabilities) + self.offset), probabilities)


def clipped_logit(probabilities: np.ndarray) -> np.ndarray:
    """Return the logits, float64, of probabilities clipped as the metric clips them."""
    return logit(np.clip(np.asarray(probabilities, dtype=np.float64), EPSILON, 1 - EPSILON))


def fit(probabilities: np.ndarray, y_true: np.ndarray, kind: str) -> Calibration:
    """Fit each label's line by its log loss.

    The loss is towards Platt's targets, (positives + 1) / (positives + 2) for 1 and 1 / (negatives + 2) for 0 (Platt,
    Probabilistic Outputs for Support Vector Machines, 1999): with 0 and 1 themselves the scale would grow without
    bound for a rare label that is separated without error.

    Args:
        probabilities: shape (n, 6), of slices that the model was not trained on.
        y_true: 0 or 1, shape (n, 6).
        kind: `temperature` fits the scale alone (Guo et al., On Calibration of Modern Neural Networks, 2017), `platt`
            the offset too.

    Raises:
        IchError: there is no such kind.
    """
    if kind not in KINDS:
        raise IchError(f"unknown calibration {kind!r}; expected one of {', '.join(KINDS)}")
    z, y = clipped_logit(probabilities), np.asarray(y_true, dtype=np.float64)
    lines = [fit_line(z[:, k], y[:, k], with_offset=kind == "platt") for k in range(len(LABELS))]
    return Calibration(*np.array(lines).T)


def fit_line(z: np.ndarray, y: np.ndarray, with_offset: bool) -> np.ndarray:
    """Fit the line of one label, as `fit` does.

    Args:
        z: logits from `clipped_logit`, shape (n,).
        y: 0 or 1, shape (n,).
        with_offset: fit the offset too; else it is 0.

    Returns:
        The scale and the offset, shape (2,).
    """
    positives = y.sum()
    targets = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))

    def loss(line: np.ndarray) -> tuple[float, list[float]]:
        s = line[0] * z + line[1]
        residual = expit(s) - targets
        return -np.mean(log_expit(-s) + targets * s), [np.mean(residual * z), np.mean(residual)]

    bounds = [(0, None), (None, None) if with_offset else (0, 0)]
    return minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13}).x
