"""Divide scans into windows of consecutive slices, the samples of a scan model; average where windows overlap."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ich.errors import IchError, name_some
from ich.images.slice_table import by_scan

PADDING = -1
"""Row that stands for padding, behind a window's slices."""


@dataclass(frozen=True, eq=False)
class ScanOrder:
    """Slices by scan, in scan order. A slice without a place in a scan is a scan of its own.

    Args:
        rows: indices into the list of ids, scan after scan; int64, shape (slices,).
        starts: index in `rows` at which each scan begins, and the end of the last; int64, shape (scans + 1,).
        z: position along the slice normal in mm, of `rows`; float64, 0 for a slice without one.
    """

    rows: np.ndarray
    starts: np.ndarray
    z: np.ndarray

    @classmethod
    def of(cls, ids: pd.Index, slices: Any) -> "ScanOrder":
        """Arrange slices into scans by the slice table.

        Raises:
            IchError: no slice table, or one without the columns that are read here or without some of the slices.
        """
        if not isinstance(slices, pd.DataFrame):
            raise IchError(f"scan needs the slice table, slices=…, as read_table gives it; got {type(slices).__name__}")
        needed = ("SOPInstanceUID", "SeriesInstanceUID", "split", "order", "z")
        if lacking := [name for name in needed if name not in slices.columns]:
            raise IchError(f"the slice table lacks the columns {', '.join(lacking)}, which scan reads")
        places = pd.Index(slices["SOPInstanceUID"]).get_indexer(ids)
        if (places < 0).any():
            raise IchError(f"the slice table has no slices {name_some(ids[places < 0])}; is it of other images?")
        table = slices.iloc[places]
        scan = table.groupby(["split", "SeriesInstanceUID"], sort=False).ngroup().fillna(-1).to_numpy(np.int64)
        order = table["order"].astype("float64").to_numpy()
        rows, starts = by_scan(np.where(np.isnan(order), -1, scan), [order])
        z = table["z"].astype("float64").fillna(0.0).to_numpy()[rows]
        return cls(rows, starts, z)


class ScanWindows:
    """The windows of n consecutive slices, or all of a shorter scan.

    An epoch's windows show each slice exactly once, so that all count alike. Their starts are drawn for each epoch and
    scan; their number is always the same, ⌈(slices + n // 4) / n⌉ of a scan longer than n, which leaves n // 4
    places or more to draw from. Windows for prediction overlap by half: each slice is seen with n // 4 slices or more
    on either side, as far as the scan has them.

    Args:
        scans: all slices.
        n: slices of a window.
        overlapping: whether these are windows for prediction.

    Raises:
        IchError: n is no whole number from 1.
    """

    def __init__(self, scans: ScanOrder, n: int, overlapping: bool):
        if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or n < 1:
            raise IchError(f"scan is {n!r}, expected the number of slices in a sample, at least 1")
        self.n, self.overlapping, self._scans = int(n), overlapping, scans
        self._lengths = np.diff(scans.starts)
        if overlapping:
            self._step = max(1, self.n // 2)
            counts = 1 + -(-np.maximum(self._lengths - self.n, 0) // self._step)
        else:
            counts = np.where(self._lengths <= self.n, 1, -(-(self._lengths + self.n // 4) // self.n))
        self._counts = counts
        self._z = np.empty(len(scans.rows), np.float32)
        first = np.repeat(scans.z[scans.starts[:-1]], self._lengths)
        self._z[scans.rows] = scans.z - first  # from the scan's first slice: small numbers, exact in half precision

    def __len__(self) -> int:
        return int(self._counts.sum())

    def layout(self, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return the rows of each window's slices, `PADDING` behind them; int64, shape (windows, n).

        Args:
            rng: draws the starts of windows that do not overlap; None takes the middle of the range.
        """
        scan = np.repeat(np.arange(len(self._counts)), self._counts)
        number = np.arange(len(scan)) - np.repeat(np.cumsum(self._counts) - self._counts, self._counts)
        lengths = self._lengths[scan]
        if self.overlapping:
            begin = np.minimum(number * self._step, np.maximum(lengths - self.n, 0))
        else:
            slack = self._counts * self.n - self._lengths
            # The first window keeps one slice at least, and the last one too.
            low, high = np.maximum(slack - self.n + 1, 0), np.minimum(slack, self.n - 1)
            low, high = (np.where(self._counts == 1, 0, bound) for bound in (low, high))
            before = (low + high) // 2 if rng is None else rng.integers(low, high + 1)
            begin = number * self.n - before[scan]
        places = begin[:, None] + np.arange(self.n)
        inside = (places >= 0) & (places < lengths[:, None])
        rows = self._scans.rows[np.where(inside, places + self._scans.starts[scan][:, None], 0)]
        rows = np.where(inside, rows, PADDING)
        # The padding of a window that begins before its scan moves behind its slices.
        return np.take_along_axis(rows, np.argsort(~inside, axis=1, kind="stable"), axis=1)

    def inputs(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the inputs of a scan model beside the images: mask and z, float32, shape (windows, n).

        mask is 1 for slices and 0 for padding; z is in mm, from the window's first slice.
        """
        mask = rows != PADDING
        z = self._z[rows]
        return {"mask": mask.astype(np.float32), "z": np.where(mask, z - z[:, :1], 0).astype(np.float32)}


def mean_over_windows(outputs: np.ndarray, rows: np.ndarray, slices: int) -> np.ndarray:
    """Return the mean of each slice's outputs over the windows that show it.

    Args:
        outputs: shape (windows, n, …).
        rows: rows of the windows' slices, from `ScanWindows.layout`.
        slices: number of slices.

    Returns:
        Shape (slices, …), of the dtype of `outputs`; sums are at least float32.

    Raises:
        IchError: outputs of another number of windows, or slices that no window shows.
    """
    if outputs.shape[:2] != rows.shape:
        windows, n = rows.shape
        raise IchError(f"the outputs have the shape {outputs.shape}, expected ({windows}, {n}, …): of all windows")
    total = np.zeros((slices, *outputs.shape[2:]), np.promote_types(outputs.dtype, np.float32))
    count = np.zeros(slices, np.int64)
    for place in range(rows.shape[1]):  # of one place in windows, each slice stands in one at most
        shown = rows[:, place] != PADDING
        total[rows[shown, place]] += outputs[shown, place]
        count[rows[shown, place]] += 1
    if lacking := int((count == 0).sum()):
        raise IchError(
            f"no window shows {lacking:,} of {slices:,} slices, so that they have no mean; leave out sampling"
        )
    return (total / count.reshape(-1, *[1] * (outputs.ndim - 2))).astype(outputs.dtype, copy=False)
