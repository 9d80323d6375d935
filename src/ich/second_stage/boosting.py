"""Gradient boosting on the scores of neighboring slices, as the competition's 3rd, 5th and 11th places stacked.

They fitted a model per label. Here each of the five subtypes is predicted twice, by a model of its own and by one
trained on all five, as bleeds extend over slices alike whatever their subtype; the mean of both logits is taken.
"""

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from ich.competition.labels import ANY, LABELS

_ROWS_FOR_THREADS = 20_000
# Leaves and the slices in each; the model of all subtypes sees five times as many rows.
_OWN = {"max_leaf_nodes": 15, "min_samples_leaf": 100}
_SHARED = {"max_leaf_nodes": 31, "min_samples_leaf": 200}


def fit_predict(
    features: np.ndarray, labels: np.ndarray, others: list[np.ndarray], rounds: int, learning_rate: float, seed: int
) -> list[np.ndarray]:
    """Fit on some slices, predict others; the models are not saved.

    They train in a minute, and scikit-learn stores them as pickles only.

    Args:
        features: float32, (n, 6, f), as `ich.second_stage.scan_features.neighbor_features` gives them.
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
    shared = _fit(_stacked(features), labels[:, :ANY].T.ravel(), _SHARED | options)
    own = [_fit(features[:, k], labels[:, k], _OWN | options) for k in range(len(LABELS))]
    predictions = []
    for other in others:
        logits = np.stack([predict(other[:, k]) for k, predict in enumerate(own)], axis=1)
        logits[:, :ANY] += shared(_stacked(other)).reshape(ANY, -1).T
        logits[:, :ANY] /= 2
        predictions.append(logits)
    return predictions


def _stacked(features: np.ndarray) -> np.ndarray:
    """Concatenate the five subtypes' rows, the subtype's number as the last feature; (5 n, f + 1)."""
    subtype = np.repeat(np.arange(ANY, dtype=np.float32), len(features))
    return np.column_stack([np.concatenate([features[:, k] for k in range(ANY)]), subtype])


def logit_of_share(y: np.ndarray) -> float:
    """Return the logit of the share of positives, smoothed by one slice of each class."""
    return float(np.log((y.sum() + 1) / (len(y) - y.sum() + 1)))


def _fit(features: np.ndarray, y: np.ndarray, options: dict) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from features to logits."""
    if y.min() == y.max():
        return lambda rows: np.full(len(rows), logit_of_share(y))
    # scikit-learn fails on an all-NaN column: of neighbors farther off than any scan is long.
    present = ~np.isnan(features).all(axis=0)
    # With few rows, threads wait for one another longer than they work.
    with threadpool_limits(1 if len(y) < _ROWS_FOR_THREADS else None, user_api="openmp"):
        model = HistGradientBoostingClassifier(**options).fit(features[:, present], y)
    return lambda rows: model.decision_function(rows[:, present])
