"""Gradient boosting on the scores of a slice's neighbours: the second stage that needs the least data.

The 3rd, 5th and 11th places of the competition did so, label by label. Here each of the five kinds is asked of twice:
by a model of its own, and by one that learned from all five at once, as a run of slices looks much alike whatever kind
it shows. The two answers' logits are averaged.
"""

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from ich.competition.labels import LABELS

_KINDS = len(LABELS) - 1  # `any` is the last label, and no kind
_ROWS_FOR_THREADS = 20_000
# Leaves and the slices in each; the model of all kinds sees five times as many rows.
_OWN = {"max_leaf_nodes": 15, "min_samples_leaf": 100}
_SHARED = {"max_leaf_nodes": 31, "min_samples_leaf": 200}


def fit_predict(
    features: np.ndarray, labels: np.ndarray, others: list[np.ndarray], rounds: int, learning_rate: float, seed: int
) -> list[np.ndarray]:
    """Fit on some slices, predict others.

    The models are not kept: they train in a minute, and scikit-learn stores them as pickles only.

    Args:
        features: float32, (n, 6, f), as `ich.second_stage.scan_features.neighbour_features` gives them.
        labels: 0 or 1, (n, 6).
        others: arrays of features of the slices to predict, (m, 6, f).
        rounds: trees of each model.

    Returns:
        Logits of each of `others`, float64, (m, 6).
    """
    options = {
        "learning_rate": learning_rate,
        "max_iter": rounds,
        "l2_regularization": 5.0,
        "max_features": 0.3,
        "early_stopping": False,
        "random_state": seed,
    }
    shared = _fit(_stacked(features), labels[:, :_KINDS].T.ravel(), _SHARED | options)
    own = [_fit(features[:, k], labels[:, k], _OWN | options) for k in range(len(LABELS))]
    predictions = []
    for other in others:
        logits = np.stack([predict(other[:, k]) for k, predict in enumerate(own)], axis=1)
        logits[:, :_KINDS] += shared(_stacked(other)).reshape(_KINDS, -1).T
        logits[:, :_KINDS] /= 2
        predictions.append(logits)
    return predictions


def _stacked(features: np.ndarray) -> np.ndarray:
    """The five kinds' rows behind one another, with the kind's number as the last feature; (5 n, f + 1)."""
    kinds = np.repeat(np.arange(_KINDS, dtype=np.float32), len(features))
    return np.column_stack([np.concatenate([features[:, k] for k in range(_KINDS)]), kinds])


def logit_of_share(y: np.ndarray) -> float:
    """What to predict where all slices to learn from are alike: their share, as if one more were of each sort."""
    return float(np.log((y.sum() + 1) / (len(y) - y.sum() + 1)))


def _fit(features: np.ndarray, y: np.ndarray, options: dict) -> Callable[[np.ndarray], np.ndarray]:
    """A function from features to logits."""
    if y.min() == y.max():
        return lambda rows: np.full(len(rows), logit_of_share(y))
    # scikit-learn fails on a column without a number: that of neighbours farther off than any scan is long.
    told = ~np.isnan(features).all(axis=0)
    # Of few rows, threads wait for one another longer than they work, the more so where others work too.
    with threadpool_limits(1 if len(y) < _ROWS_FOR_THREADS else None, user_api="openmp"):
        model = HistGradientBoostingClassifier(**options).fit(features[:, told], y)
    return lambda rows: model.decision_function(rows[:, told])
