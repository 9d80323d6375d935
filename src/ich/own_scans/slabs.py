"""Slabs: thin slices averaged to the thickness that a model was trained on."""

from collections.abc import Sequence

import numpy as np

_THIN = 0.8
"""Of the training's thickness: slices from here on count as thick as the training's."""


def slab_numbers(z: np.ndarray, thickness: float | None, target: float) -> np.ndarray:
    """Return the number of the slab that each slice of a scan belongs to, from 0.

    A slice covers the distance to its neighbors, half on either side. Consecutive slices are joined as long as that
    brings what they cover together nearer to the target thickness; never across a gap in which a whole slab is missing.
    What is left at an end joins the slab before it if it covers less than half of one.
    Slices that are thick already stay alone, however closely they lie (overlapping reconstructions); so do all slices
    of a scan without positions.

    Args:
        z: mm along the slice normal, ascending, (n,); NaN if unknown.
        thickness: SliceThickness in mm; None if unknown, which takes the median distance of the slices for it.
        target: mm, of a slab.

    Returns:
        int64, (n,), each number as often as its slab has slices.
    """
    n = len(z)
    steps = np.diff(z)
    if n < 2 or not np.isfinite(steps).all():
        return np.arange(n)
    thick = np.median(steps) if thickness is None else thickness
    if thick >= _THIN * target:
        return np.arange(n)
    covered = _covered(z, target)
    runs: list[list[list[int]]] = []  # between gaps, of slabs, of slices
    for i in range(n):
        if i == 0 or steps[i - 1] > target:
            runs.append([[i]])
        elif covered[runs[-1][-1]].sum() + covered[i] / 2 < target:
            runs[-1][-1].append(i)
        else:
            runs[-1].append([i])
    for run in runs:
        if len(run) > 1 and covered[run[-1]].sum() < target / 2:
            rest = run.pop()
            run[-1].extend(rest)
    sizes = [len(slab) for run in runs for slab in run]
    return np.repeat(np.arange(len(sizes)), sizes)


def slab_thickness(z: np.ndarray, numbers: np.ndarray, target: float) -> float:
    """Return what slabs of several slices cover along the scan, in mm, the median over the slabs.

    Args:
        z, target: as `slab_numbers` takes them.
        numbers: as it gives them.
    """
    return float(np.median(np.bincount(numbers, weights=_covered(z, target))))


def _covered(z: np.ndarray, target: float) -> np.ndarray:
    """Return what each slice covers, in mm, (n,), n at least 2."""
    steps = np.diff(z)
    # Beside a gap, and beyond the ends, a slice covers as much as towards its other neighbor.
    towards = np.where(steps > target, np.nan, steps)
    before, after = np.append(np.nan, towards), np.append(towards, np.nan)
    before, after = np.where(np.isnan(before), after, before), np.where(np.isnan(after), before, after)
    return np.where(np.isnan(before), target, (before + after) / 2)


def averaged(hu: Sequence[np.ndarray], numbers: np.ndarray) -> list[np.ndarray]:
    """Return the mean of each slab's slices in HU, before any window.

    Args:
        hu: int16 arrays of one shape, (rows, columns).
        numbers: as `slab_numbers` gives them.

    Returns:
        int16, (rows, columns) each; a slab of one slice is that slice itself.
    """
    slabs = []
    for number in range(numbers[-1] + 1 if len(numbers) else 0):
        members = [hu[i] for i in np.flatnonzero(numbers == number).tolist()]
        slabs.append(members[0] if len(members) == 1 else np.rint(np.mean(members, axis=0)).astype(np.int16))
    return slabs
