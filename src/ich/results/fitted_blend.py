"""A fitted blend: apply it to its members' probabilities, and read it from its directory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit

from ich.competition.labels import ANY, LABELS
from ich.errors import IchError, one_line
from ich.results.bootstrap import Estimate
from ich.results.calibration import Calibration, clipped_logit
from ich.results.result_directory import members, read_mapping, read_score

METHODS: tuple[str, ...] = ("weights", "mean", "logit_mean", "rank_mean")


@dataclass(frozen=True, slots=True)
class Mixture:
    """Mixture of members' probabilities, shape (members, n, 6) -> (n, 6), float64; slices do not affect each other.

    Args:
        method: as in `Recipe`.
        weights: float64, shape (members, 6), on the simplex for each label.
        reference: for rank_mean, the sorted predictions that define the ranks, shape (members, fitted, 6).
        line: for rank_mean, from the mean rank to a probability.
    """

    method: str
    weights: np.ndarray
    reference: np.ndarray | None = None
    line: Calibration | None = None

    def __call__(self, members: np.ndarray) -> np.ndarray:
        if self.method == "logit_mean":
            return expit(self._sum(map(clipped_logit, members)))
        if self.method == "rank_mean":
            if self.reference is None:
                raise ValueError("rank_mean needs the reference whose ranks it takes")
            ranks = self._sum(map(_ranks, members, self.reference))
            return ranks if self.line is None else self.line(ranks)
        return np.minimum(self._sum(members), 1.0)  # weights may add up to a rounding error more than 1

    def _sum(self, members: Iterable[np.ndarray]) -> np.ndarray:
        return sum(weights * values.astype(np.float64) for weights, values in zip(self.weights, members, strict=True))


@dataclass(frozen=True, slots=True)
class Blend:
    """A fitted blend: the mixture, then the calibration and the raised `any` that helped.

    Args:
        calibration: for the labels that it helped.
        raises_any: whether `any` is raised to the largest of the other five.
        calibration_gain: decrease of each label's log loss by it, arrays of shape (6,); None if it was not tried.
        any_gain: decrease of the log loss of `any` by raising it; None if it was not tried.
    """

    mixture: Mixture
    calibration: Calibration
    raises_any: bool = False
    calibration_gain: Estimate | None = None
    any_gain: Estimate | None = None

    def __call__(self, members: np.ndarray) -> np.ndarray:
        """Blend probabilities, shape (members, n, 6); float64, shape (n, 6)."""
        blended = self.calibration(self.mixture(members))
        return raise_any(blended) if self.raises_any else blended

    def describe(self, names: Sequence[str]) -> dict:
        """Return plain values: weights, label -> name -> weight, and of what was tried, label -> gain and `kept`.

        `of_description` restores the blend from them and the method, except for rank_mean, whose ranks need all
        predictions that it was fitted on.

        Args:
            names: the members', in their order.
        """
        weights = self.mixture.weights.T.tolist()
        description: dict[str, dict] = {
            "weights": {label: dict(zip(names, row, strict=True)) for label, row in zip(LABELS, weights, strict=True)}
        }
        if self.calibration_gain is not None:
            lines = zip(self.calibration.scale.tolist(), self.calibration.offset.tolist(), strict=True)
            description["calibration"] = {
                label: _trial(Estimate(*gain)) | {"scale": scale, "offset": offset}
                for label, gain, (scale, offset) in zip(
                    LABELS, zip(*self.calibration_gain, strict=True), lines, strict=True
                )
            }
        if self.any_gain is not None:
            description["any_at_least_max"] = {"any": _trial(self.any_gain)}
        return description


def read(folder: Path) -> tuple[list[Path], Blend]:
    """Read a blend from its directory: method and members from config.yaml, weights from score.json.

    Returns:
        (the members' directories in their order, the blend fitted on all folds).

    Raises:
        IchError: it is not a blend, a file cannot be read, or as of `of_description`.
    """
    made_of = members(folder)
    if not made_of:
        raise IchError(f"{folder} is not a blend; name a directory that scripts/blend.py wrote")
    method = read_mapping(folder / "config.yaml")["blend"].get("method")
    try:
        return made_of, of_description(method, read_score(folder), list(map(str, made_of)))
    except IchError as error:
        raise IchError(f"{folder}: {error}") from error


def of_description(method: str, description: Mapping, names: Sequence[str]) -> Blend:
    """Restore a blend from `Blend.describe`; its predictions are the same, bit for bit.

    Args:
        method: as in `Recipe`.
        description: may hold further keys.
        names: the members', in their order.

    Raises:
        IchError: the description is incomplete or invalid, or the method is rank_mean.
    """
    if method == "rank_mean":
        raise IchError(
            "rank_mean counts a slice's ranks among all out-of-fold predictions, which score.json does not hold, so"
            " that no other scans can be predicted; make the blend by another method: scripts/blend.py --method weights"
        )
    try:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r} of blending")
        by_label = [description["weights"][label] for label in LABELS]
        if any(by_name.keys() != set(names) for by_name in by_label):
            raise ValueError("the weights are of other members")
        weights = np.array([[by_name[name] for by_name in by_label] for name in names], np.float64)
        line = Calibration.none()
        if "calibration" in description:
            lines = [[description["calibration"][label][key] for label in LABELS] for key in ("scale", "offset")]
            line = Calibration(*np.array(lines, np.float64))
        raises_any = description["any_at_least_max"]["any"]["kept"] if "any_at_least_max" in description else False
        if not (weights >= 0).all() or not np.allclose(weights.sum(axis=0), 1) or not isinstance(raises_any, bool):
            raise ValueError("weights are below 0 or do not add up to 1, or kept is neither true nor false")
        if not (np.isfinite(line.scale).all() and np.isfinite(line.offset).all() and (line.scale >= 0).all()):
            raise ValueError("a calibration is not finite, or its scale below 0")
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise IchError(
            f"the description of the blend is incomplete or invalid ({one_line(error, named=True)}); make the blend"
            " again by its command (scripts/blend.py)"
        ) from error
    return Blend(Mixture(method, weights), line, raises_any)


def raise_any(probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities with `any` raised to the largest of the six, as labels satisfy it; shape (n, 6)."""
    raised = probabilities.copy()
    raised[:, ANY] = probabilities.max(axis=1)
    return raised


def helped(gain: Estimate) -> np.ndarray:
    """Return whether a gain exceeds its standard error, so that what was tried is kept."""
    return gain.value > gain.standard_error


def _ranks(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the ranks of values among the reference, within (0, 1), the middle one for ties; shape (…, 6), float64."""
    ranks = np.empty(values.shape)
    for k in range(values.shape[1]):
        below, above = (np.searchsorted(reference[:, k], values[:, k], side) for side in ("left", "right"))
        ranks[:, k] = ((below + above) / 2 + 0.5) / (len(reference) + 1)
    return ranks


def _trial(gain: Estimate) -> dict:
    return {"gain": float(gain.value), "standard_error": float(gain.standard_error), "kept": bool(helped(gain))}
