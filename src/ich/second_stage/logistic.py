"""Logistic regression on the scores of a scan: the second stage for few scans.

It has fifty weights where trees and networks have thousands, on features chosen for a linear model: scores smoothed
along the scan, the scan's level, and above all the subtype that the classifier sees where it sees blood, averaged over
the whole bleed. The five subtypes share all weights but the intercept.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ich.competition.labels import ANY, LABELS
from ich.second_stage.boosting import logit_of_share
from ich.second_stage.scans import Scans

_WIDTHS = (0.8, 1.6, 4.0)  # slices; standard deviations of the Gaussians that smooth
_C = 0.15  # of scikit-learn's LogisticRegression
_ENOUGH = 50_000  # slices that suffice to fit so few weights


def features(scans: Scans) -> np.ndarray:
    """Compute the features of each slice and label.

    Of ten curves along the scan (see `_curves`): the label's own, those of `any` (for `any`, the largest of the five
    subtypes'), the largest of the other subtypes', and its lead over these; then the slice's place, its square, and
    four products.

    Returns:
        float32, (n, 6, 46).
    """
    out = np.empty((len(scans.ids), len(LABELS), 46), np.float32)
    others = [[j for j in range(ANY) if j != k] for k in range(len(LABELS))]
    for start, end in zip(scans.starts[:-1], scans.starts[1:], strict=True):
        curves = _curves(scans.logits[start:end].astype(np.float64))
        n = end - start
        place = ((2 * np.arange(n) + 1) / n - 1)[:, None]
        for k in range(len(LABELS)):
            own, rival = curves[:, k], curves[:, others[k]].max(axis=1)
            lead, blood = own - rival, rival if k == ANY else curves[:, ANY]
            smooth, peak = own[:, 2:3], own[:, 4:5]
            products = [smooth * peak, smooth * lead[:, 4:5], smooth**2, own[:, :1] * curves[:, ANY, 2:3]]
            out[start:end, k] = np.concatenate([own, blood, rival, lead, place, place**2, *products], axis=1)
    return out


def _curves(logits: np.ndarray) -> np.ndarray:
    """Compute ten numbers for each slice and label of one scan: (n, 6) to (n, 6, 10).

    The score; its means over one, two and four slices around; the scan's maximum, mean, sum of probabilities and
    maximum of the first of these means; and the mean weighted by the probability of `any`, over the scan and around the
    slice. Scores are inverse hyperbolic sines of logits, signed logarithms.
    """
    score, probability = np.arcsinh(logits / 0.3), expit(logits)
    blood = probability[:, ANY:]
    near = [_smoothed(score, width) for width in _WIDTHS]
    where_blood = (blood * score).sum(axis=0) / (blood.sum() + 0.3)
    of_scan = [score.max(axis=0), score.mean(axis=0), np.log(probability.sum(axis=0) + 0.1), near[0].max(axis=0)]
    around = _smoothed(blood * score, 2.0) / (_smoothed(blood, 2.0) + 0.05)
    constant = (np.broadcast_to(row, score.shape) for row in (*of_scan, where_blood))
    return np.stack([score, *near, *constant, around], axis=2)


def _smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """Smooth along the scan by a Gaussian of this deviation in slices, normalized at the ends."""
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
    stacked = np.concatenate([_with_one_hot(features, k) for k in range(ANY)])
    of_subtypes = _fit(stacked, labels[:, :ANY].T.ravel())
    of_any = _fit(features[:, ANY], labels[:, ANY])
    return [
        np.stack([*(of_subtypes(_with_one_hot(other, k)) for k in range(ANY)), of_any(other[:, ANY])], axis=1)
        for other in others
    ]


def _with_one_hot(features: np.ndarray, k: int) -> np.ndarray:
    """Return a subtype's features with its one-hot code; (n, f + 5)."""
    return np.column_stack([features[:, k], np.tile(np.eye(ANY, dtype=np.float32)[k], (len(features), 1))])


def _fit(features: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from features to logits."""
    if y.min() == y.max():
        return lambda rows: np.full(len(rows), logit_of_share(y))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_C, solver="newton-cholesky"))
    model.fit(features.astype(np.float64), y)
    return lambda rows: model.decision_function(rows.astype(np.float64))
