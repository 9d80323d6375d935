"""Gradient boosting on the scores of neighboring slices, as the competition's 3rd, 5th and 11th places stacked.

They fitted a model per label. Here each of the five subtypes is predicted twice, by a model of its own and by one
trained on all five, as bleeds extend over slices alike whatever their subtype; the mean of both logits is taken.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from ich.competition.labels import ANY, LABELS
from ich.errors import IchError, one_line
from ich.files import replacing
from ich.second_stage.trees import Trees

_ROWS_FOR_THREADS = 20_000
_ROWS_AT_ONCE = 50_000  # that are predicted
# Leaves and the slices in each; the model of all subtypes sees five times as many rows.
_OWN = {"max_leaf_nodes": 15, "min_samples_leaf": 100}
_SHARED = {"max_leaf_nodes": 31, "min_samples_leaf": 200}
_SHARED_NAME = "shared"  # beside the labels, in a file
# What zipfile and NumPy raise of a damaged file.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class Model:
    """Fitted trees, from features to logits.

    Args:
        features: the number of each slice's and label's features.
        own: of each label, its own trees.
        shared: trained on all subtypes; they read the subtype's number as one feature more.
    """

    features: int
    own: tuple[Trees, ...]
    shared: Trees

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray, rounds: int, learning_rate: float, seed: int) -> "Model":
        """Fit trees to labeled slices.

        Args:
            features: float32, (n, 6, f), as `ich.second_stage.scan_features.neighbor_features` gives them.
            labels: 0 or 1, (n, 6).
            rounds: trees of each label.
        """
        options = {
            "learning_rate": learning_rate,
            "max_iter": rounds,
            "l2_regularization": 5.0,
            "max_features": 0.3,
            "early_stopping": False,
            "random_state": seed,
        }
        by_label = [features[:, k] for k in range(len(LABELS))]
        shared = _fit(by_label[:ANY], labels[:, :ANY].T.ravel(), _SHARED | options)
        own = tuple(_fit([by_label[k]], labels[:, k], _OWN | options) for k in range(len(LABELS)))
        return cls(features.shape[2], own, shared)

    def save(self, path: Path) -> None:
        """Write all trees into one NPZ file, which names the arrays of each ensemble; never a pickle."""
        content: dict[str, Any] = {"features": np.array(self.features)}
        for name, trees in zip((*LABELS, _SHARED_NAME), (*self.own, self.shared), strict=True):
            content |= {f"{name}.{key}": array for key, array in trees.arrays().items()}
        with replacing(path) as temporary:
            np.savez_compressed(temporary, **content)

    @classmethod
    def load(cls, path: Path) -> "Model":
        """Read what `save` wrote; it predicts what the fitted model did, to the last bit.

        Raises:
            IchError: it is not there, or holds no such trees.
        """
        try:
            # NumPy leaves a damaged archive open that it has opened itself.
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            features = int(arrays.pop("features"))
            ensembles = {}
            for name in (*LABELS, _SHARED_NAME):
                own = {key.partition(".")[2]: array for key, array in arrays.items() if key.partition(".")[0] == name}
                ensembles[name] = Trees.of_arrays(own, features + (name == _SHARED_NAME))
        except _UNREADABLE as error:
            raise IchError(
                f"the trees {path} cannot be read ({one_line(error, named=True)}); delete the file, and run again what"
                " trained them (scripts/train_sequence.py)"
            ) from error
        return cls(features, tuple(ensembles[label] for label in LABELS), ensembles[_SHARED_NAME])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predict logits.

        Args:
            features: float32, (n, 6, f), as those fitted on.

        Returns:
            float64, (n, 6).

        Raises:
            IchError: there are more or fewer features.
        """
        if features.shape[1:] != (len(LABELS), self.features):
            raise IchError(
                f"the trees read {self.features} features of each label, not {features.shape[2]}; sequence.reach is"
                " another than that they were trained with, or the version is: train the second stage anew"
            )
        logits = np.stack([trees.logits(features[:, k]) for k, trees in enumerate(self.own)], axis=1)
        for k in range(ANY):
            for start in range(0, len(features), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                own = features[rows, k]
                logits[rows, k] += self.shared.logits(np.column_stack([own, np.full(len(own), k, np.float32)]))
        logits[:, :ANY] /= 2
        return logits


def logit_of_share(y: np.ndarray) -> float:
    """Return the logit of the share of positives, smoothed by one slice of each class."""
    return float(np.log((y.sum() + 1) / (len(y) - y.sum() + 1)))


def _fit(parts: list[np.ndarray], y: np.ndarray, options: dict) -> Trees:
    """Fit one ensemble to the rows of all parts; of several, a part's number is the last feature.

    Args:
        parts: float32, (n, f) each.
        y: 0 or 1, (parts · n,).
    """
    if y.min() == y.max():
        return Trees.none(logit_of_share(y))
    # scikit-learn fails on an all-NaN column: of neighbors farther off than any scan is long.
    present = np.flatnonzero([any((~np.isnan(part[:, f])).any() for part in parts) for f in range(parts[0].shape[1])])
    # scikit-learn computes in float64, and would hold its copy beside one of ours in float32: 2 GB at the
    # competition's 602,000 slices of four folds.
    table = np.empty((len(y), len(present) + (len(parts) > 1)))
    for number, part in enumerate(parts):
        of_part = table[number * len(part) : (number + 1) * len(part)]
        for column, f in enumerate(present):
            of_part[:, column] = part[:, f]
        of_part[:, len(present) :] = number
    columns = present if len(parts) == 1 else np.append(present, parts[0].shape[1])
    # With few rows, threads wait for one another longer than they work.
    with threadpool_limits(1 if len(y) < _ROWS_FOR_THREADS else None, user_api="openmp"):
        model = HistGradientBoostingClassifier(**options).fit(table, y)
    return Trees.of_classifier(model, columns)
