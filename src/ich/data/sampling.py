"""Which samples an epoch shows: functions for `DataGenerator(sampling=…)`.

A sampling maps a NumPy random generator to the places of samples, int64, of the same number each epoch. Without one, an
epoch shows every sample once. Its `len`, if it has one, is the number of samples it chooses from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ich.errors import IchError, name_some


@dataclass(eq=False)
class PerSeries:
    """Choose some slices of each series anew each epoch, none twice in an epoch; all of a series that has no more.

    The 1st place showed its network a few slices a scan in each epoch: neighboring slices tell it little that is new.

    Args:
        series: a series for each sample, in the order of the generator's ids; if `centre_weighted`, samples of a series
            stand in scan order.
        n: slices of each.
        centre_weighted: choose from the middle of a scan, where most bleeds are, up to three times as often as from
            its ends: the weight falls linearly from 1 to 1/3.

    Raises:
        IchError: n below 1, or samples without a series.
    """

    series: pd.Series
    n: int
    centre_weighted: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise IchError(f"n is {self.n}, expected at least 1 slice of each series")
        unknown = self.series.isna().to_numpy()
        if unknown.any():
            raise IchError(f"{unknown.sum():,} sample(s) have no series; leave them out or sample another way")
        self._codes, _ = pd.factorize(self.series)
        place = pd.Series(self._codes).groupby(self._codes).cumcount().to_numpy()
        length = np.bincount(self._codes)[self._codes]
        off_center = np.abs(2 * place - (length - 1)) / np.maximum(length - 1, 1)  # 0 in the middle, 1 at both ends
        self._weights = 1 - off_center * 2 / 3 if self.centre_weighted else np.ones(len(place))

    def __len__(self) -> int:
        return len(self.series)

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        # The smallest of exponential times divided by weights are a weighted choice without replacement (Efraimidis
        # and Spirakis, Information Processing Letters 97, 2006), here of all series at once.
        times = rng.exponential(size=len(self._codes)) / self._weights
        order = np.lexsort((times, self._codes))
        rank = np.arange(len(order)) - np.searchsorted(self._codes[order], self._codes[order])
        return order[rank < self.n]


@dataclass(eq=False)
class PositiveShare:
    """Show all positive samples, and as many negative ones, drawn anew each epoch, as give the share asked for.

    Args:
        positive: whether a sample is, bool, in the order of the generator's ids.
        share: of positive samples, between 0 and 1. Negative ones are drawn without replacement if there are enough.

    Raises:
        IchError: a share outside (0, 1), or no samples of one of both kinds.
    """

    positive: np.ndarray
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise IchError(f"the share of positives is {self.share}, expected a number between 0 and 1")
        self.positive = np.asarray(self.positive, dtype=bool)
        count = self.positive.sum()
        if not 0 < count < len(self.positive):
            raise IchError(f"{count:,} of {len(self.positive):,} samples are positive, expected some of each kind")
        self._negatives = max(1, round(count * (1 - self.share) / self.share))

    def __len__(self) -> int:
        return len(self.positive)

    @property
    def oversampling(self) -> float:
        """How many times as often as a negative sample a positive one is shown."""
        return float((~self.positive).sum() / self._negatives)

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        positive, negative = np.flatnonzero(self.positive), np.flatnonzero(~self.positive)
        drawn = rng.choice(negative, self._negatives, replace=self._negatives > len(negative))
        return np.concatenate([positive, drawn])


@dataclass(eq=False)
class Weighted:
    """Draw samples with replacement, in proportion to their weights.

    Args:
        weights: of at least 0, in the order of the generator's ids.
        n: samples an epoch; None draws as many as there are.

    Raises:
        IchError: weights that are negative, no numbers or all 0; n below 1.
    """

    weights: np.ndarray
    n: int | None = None

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, dtype=np.float64)
        wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if len(wrong) or weights.sum() == 0:
            raise IchError(f"weights are finite, at least 0 and not all 0; found others at {name_some(wrong) or 'all'}")
        if self.n is not None and self.n < 1:
            raise IchError(f"n is {self.n}, expected at least 1 sample an epoch")
        self.weights = weights / weights.sum()

    def __len__(self) -> int:
        return len(self.weights)

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(len(self.weights), self.n or len(self.weights), p=self.weights)


@dataclass(eq=False)
class WholeBatches:
    """Change another sampling so that n divides the number of its samples; the way is that of `Filled` or `Multiple`.

    Args:
        n: at least 1.
        samples: how many there are to choose from.
        of: the other sampling; None takes all.
    """

    n: int
    samples: int
    of: Callable[[np.random.Generator], np.ndarray] | None = None

    def __len__(self) -> int:
        return self.samples

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        return self.whole(np.arange(self.samples) if self.of is None else self.of(rng), rng)

    def whole(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return samples of an epoch, of whose number n is a divisor."""
        raise NotImplementedError


class Filled(WholeBatches):
    """Add up to n - 1 samples of another sampling's, drawn anew each epoch.

    All batches of n samples are then full, and no sample is left out.
    """

    def whole(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        missing = -len(order) % self.n
        return np.concatenate([order, rng.choice(order, missing, replace=missing > len(order))])


class Multiple(WholeBatches):
    """Drop up to n - 1 samples of another sampling, drawn anew each epoch.

    n devices that share each batch then have as many samples each: the mean of their losses is the batch's.
    """

    def whole(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rest = len(order) % self.n
        return np.delete(order, rng.choice(len(order), rest, replace=False)) if rest else order
