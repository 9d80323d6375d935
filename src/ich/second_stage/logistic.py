"""Logistic regression on the scores of a scan: the second stage for few scans.

It has fifty weights where trees and networks have thousands, on features chosen for a linear model: scores smoothed
along the scan, the scan's level, and above all the subtype that the classifier predicts where it predicts blood,
averaged over the whole bleed. The five subtypes share all weights but the intercept.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ich.competition.labels import ANY, LABELS
from ich.errors import IchError, one_line
from ich.files import write_json
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


@dataclass(frozen=True, slots=True)
class Model:
    """A fitted regression: each label's features times its weights, plus its offset.

    Args:
        weights: float64, (6, f): of features as they are, not standardized.
        offsets: float64, (6,).
    """

    weights: np.ndarray
    offsets: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray) -> "Model":
        """Fit the weights to labeled slices.

        Args:
            features: float32, (n, 6, f), as `features` gives them.
            labels: 0 or 1, (n, 6).
        """
        step = -(-len(features) // _ENOUGH)
        features, labels = features[::step], labels[::step]
        stacked = np.concatenate([_with_one_hot(features, k) for k in range(ANY)])
        shared, offset = _fit(stacked, labels[:, :ANY].T.ravel())
        of_any, offset_of_any = _fit(features[:, ANY], labels[:, ANY])
        weights = np.concatenate([np.tile(shared[:-ANY], (ANY, 1)), of_any[None]])
        return cls(weights, np.append(offset + shared[-ANY:], offset_of_any))

    def save(self, path: Path) -> None:
        """Write the offset and the weights of each label as JSON."""
        rows = zip(LABELS, self.offsets.tolist(), self.weights.tolist(), strict=True)
        write_json(path, {label: {"offset": offset, "weights": weights} for label, offset, weights in rows})

    @classmethod
    def load(cls, path: Path) -> "Model":
        """Read what `save` wrote; it predicts what the fitted model did, to the last bit.

        Raises:
            IchError: it is not there, or holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            weights, offsets = ([content[label][key] for label in LABELS] for key in ("weights", "offset"))
            model = cls(np.array(weights, np.float64), np.array(offsets, np.float64))
            if model.weights.ndim != 2 or model.offsets.ndim != 1:
                raise ValueError("the weights are no lists of numbers")
            if not (np.isfinite(model.weights).all() and np.isfinite(model.offsets).all()):
                raise ValueError("a weight is not finite")
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise IchError(
                f"the regression {path} cannot be read ({one_line(error, named=True)}); delete the file, and run again"
                " what trained it (scripts/train_sequence.py)"
            ) from error
        return model

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predict logits.

        Args:
            features: float32, (n, 6, f), as those fitted on.

        Returns:
            float64, (n, 6).

        Raises:
            IchError: there are more or fewer features.
        """
        if features.shape[1:] != self.weights.shape:
            raise IchError(
                f"the regression reads {self.weights.shape[1]} features of each label, not {features.shape[2]}; another"
                " version fitted it: train the second stage anew"
            )
        return np.einsum("nkf,kf->nk", features, self.weights, dtype=np.float64) + self.offsets


def _with_one_hot(features: np.ndarray, k: int) -> np.ndarray:
    """Return a subtype's features with its one-hot code; (n, f + 5)."""
    return np.column_stack([features[:, k], np.tile(np.eye(ANY, dtype=np.float32)[k], (len(features), 1))])


def _fit(features: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights, (f,), and an offset."""
    if y.min() == y.max():
        return np.zeros(features.shape[1]), logit_of_share(y)
    scaler = StandardScaler()
    model = LogisticRegression(C=_C, solver="newton-cholesky").fit(scaler.fit_transform(features.astype(np.float64)), y)
    weights = model.coef_[0] / scaler.scale_
    return weights, float(model.intercept_[0] - weights @ scaler.mean_)
