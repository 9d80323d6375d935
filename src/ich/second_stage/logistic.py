"""Logistic regression on the scores of a scan: the second stage that a few scans are enough for.

Fifty numbers are learned where trees and networks learn thousands. What it reads is chosen to be enough for a line: the
scores smoothed along the scan, the scan's own level, and above all which kind the classifier sees where it sees blood,
averaged over the whole bleed. The five kinds share their weights, but for what each is worth to begin with.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ich.competition.labels import LABELS
from ich.second_stage.boosting import logit_of_share
from ich.second_stage.scans import Scans

_KINDS = len(LABELS) - 1  # `any` is the last label, and no kind
_ANY = _KINDS
_WIDTHS = (0.8, 1.6, 4.0)  # slices; deviations of the bells that smooth
_C = 0.15  # of scikit-learn's LogisticRegression
_ENOUGH = 50_000  # slices to fit so few weights on


def features(scans: Scans) -> np.ndarray:
    """What the regression reads of each slice and label.

    Of ten rows of numbers along the scan (see `_rows`): the label's own, those of `any` (for `any`, the largest of the
    five kinds'), the largest of the other kinds', and its lead over these; then the slice's place, its square, and four
    products.

    Returns:
        float32, (n, 6, 46).
    """
    out = np.empty((len(scans.ids), len(LABELS), 46), np.float32)
    others = [[j for j in range(_KINDS) if j != k] for k in range(len(LABELS))]
    for start, end in zip(scans.starts[:-1], scans.starts[1:], strict=True):
        rows = _rows(scans.logits[start:end].astype(np.float64))
        n = end - start
        place = ((2 * np.arange(n) + 1) / n - 1)[:, None]
        for k in range(len(LABELS)):
            own, rival = rows[:, k], rows[:, others[k]].max(axis=1)
            lead, blood = own - rival, rival if k == _ANY else rows[:, _ANY]
            smooth, peak = own[:, 2:3], own[:, 4:5]
            products = [smooth * peak, smooth * lead[:, 4:5], smooth**2, own[:, :1] * rows[:, _ANY, 2:3]]
            out[start:end, k] = np.concatenate([own, blood, rival, lead, place, place**2, *products], axis=1)
    return out


def _rows(logits: np.ndarray) -> np.ndarray:
    """Ten numbers of each slice and label of one scan: (n, 6) to (n, 6, 10).

    The score; its means over one, two and four slices around; the scan's maximum, mean, sum of probabilities and
    maximum of the first of these means; and the mean where there seems to be blood, that is weighted by the probability
    of `any`, over the scan and around the slice. Scores are inverse hyperbolic sines, as logarithms with a sign.
    """
    score, probability = np.arcsinh(logits / 0.3), expit(logits)
    blood = probability[:, _ANY:]
    near = [_smoothed(score, width) for width in _WIDTHS]
    where_blood = (blood * score).sum(axis=0) / (blood.sum() + 0.3)
    of_scan = [score.max(axis=0), score.mean(axis=0), np.log(probability.sum(axis=0) + 0.1), near[0].max(axis=0)]
    around = _smoothed(blood * score, 2.0) / (_smoothed(blood, 2.0) + 0.05)
    told = [score, *near, *(np.broadcast_to(one, score.shape) for one in (*of_scan, where_blood)), around]
    return np.stack(told, axis=2)


def _smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """Means along the scan, weighted by a bell of this deviation in slices; beyond the ends there is nothing."""
    place = np.arange(len(values))
    weights = np.exp(-0.5 * ((place[:, None] - place) / width) ** 2)
    return weights @ values / weights.sum(axis=1, keepdims=True)


def fit_predict(features: np.ndarray, labels: np.ndarray, others: list[np.ndarray]) -> list[np.ndarray]:
    """Fit on some slices, predict others.

    Args:
        features: float32, (n, 6, f), as `features` gives them.
        labels: 0 or 1, (n, 6).
        others: arrays of features of the slices to predict, (m, 6, f).

    Returns:
        Logits of each of `others`, float64, (m, 6).
    """
    step = -(-len(features) // _ENOUGH)
    features, labels = features[::step], labels[::step]
    kinds = np.concatenate([_of_kind(features, k) for k in range(_KINDS)])
    of_kinds = _fit(kinds, labels[:, :_KINDS].T.ravel())
    of_any = _fit(features[:, _ANY], labels[:, _ANY])
    return [
        np.stack([*(of_kinds(_of_kind(other, k)) for k in range(_KINDS)), of_any(other[:, _ANY])], axis=1)
        for other in others
    ]


def _of_kind(features: np.ndarray, k: int) -> np.ndarray:
    """A kind's features, and which kind it is; (n, f + 5)."""
    return np.column_stack([features[:, k], np.tile(np.eye(_KINDS, dtype=np.float32)[k], (len(features), 1))])


def _fit(features: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from features to logits."""
    if y.min() == y.max():
        return lambda rows: np.full(len(rows), logit_of_share(y))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_C, solver="newton-cholesky"))
    model.fit(features.astype(np.float64), y)
    return lambda rows: model.decision_function(rows.astype(np.float64))
