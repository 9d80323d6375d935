"""The plan of an epoch: which samples it shows, in which order and batches, and the seed of each."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
import pandas as pd

from ich.data import user_code
from ich.errors import IchError


@dataclass(frozen=True)
class EpochPlan:
    """The samples of an epoch, in batches of `batch_size`, of which the last holds what is left."""

    epoch: int  # from 0
    rows: np.ndarray  # of the samples in the list of ids, in the order that they are shown; int64, shape (n,)
    repeats: np.ndarray  # how often the epoch has shown the same sample before; int64, shape (n,)
    batch_size: int
    shuffled: bool
    sampled: bool  # a sampling has chosen the samples
    windows: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64))
    """Of samples that are windows: the rows of their slices in the list of ids, as shown; shape (n, slices)."""

    @property
    def is_in_order(self) -> bool:
        """Whether all samples are shown, in the order of the ids, as predictions must be."""
        return not self.shuffled and not self.sampled

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and the repeats of a batch.

        Raises:
            IndexError: there is no such batch.
        """
        places = self._places(index)
        return self.rows[places], self.repeats[places]

    def slices(self, index: int) -> np.ndarray:
        """Return the rows of a batch's slices in the list of ids, `scan_windows.PADDING` for none; shape (batch, n).

        Of samples that are windows. Raises IndexError as `batch`.
        """
        return self.windows[self._places(index)]

    def _places(self, index: int) -> slice:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        return slice(index * self.batch_size, (index + 1) * self.batch_size)


def plan_epoch(
    epoch: int,
    samples: int,
    batch_size: int,
    seed: int,
    shuffle: bool,
    sampling: Callable[[np.random.Generator], np.ndarray] | None,
) -> EpochPlan:
    """Plan an epoch of so many samples, or of those that a sampling chooses, from (seed, epoch) alone.

    Raises:
        IchError: epoch is no whole number from 0, or the sampling gives anything but places of samples, or whatever it
            raises.
    """
    if not (isinstance(epoch, Integral) and epoch >= 0):
        raise IchError(f"epoch is {epoch!r}, expected a whole number from 0")
    rng = np.random.default_rng([seed, epoch])
    rows = np.arange(samples)
    if sampling is not None:
        given = user_code.call("sampling", f"epoch {epoch}", sampling, rng)
        try:
            rows = np.asarray(given)
        except ValueError:  # lists of several lengths
            rows = np.asarray(None)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(rows) == 0:
        raise IchError(f"the sampling gave {rows.dtype} of {rows.shape}, expected some places of samples, int64")
    if rows.max() >= samples or rows.min() < 0:
        raise IchError(f"the sampling chose places outside the {samples:,} samples")
    if shuffle:
        rows = rng.permutation(rows)
    repeats = np.zeros(len(rows), np.int64)
    if sampling is not None:
        repeats = pd.Series(rows).groupby(rows).cumcount().to_numpy()
    return EpochPlan(epoch, rows, repeats, batch_size, shuffle, sampling is not None)


def seed_of(*parts: int | str) -> int:
    """Return 128 bits that depend on all parts: Python's own hash of a string differs between processes."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")
