"""How sure is a score? The bootstrap over patients.

The slices of a patient resemble one another, so slices drawn singly would look like far more evidence than there is.
Whole patients are drawn instead, with all their slices (the cluster bootstrap: Davison and Hinkley, Bootstrap Methods
and their Application, 1997, section 3.8).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich.errors import IchError

RESAMPLES = 2000
"""Enough that chance moves the standard error by some 2 %, and the ends of the interval by some 6 % of it."""

COVERAGE = 0.95


class Estimate(NamedTuple):
    """A mean over slices and how sure it is; numbers, or arrays of them.

    Args:
        value: the mean itself.
        standard_error: the standard deviation of the resampled means.
        low, high: the ends of the 95 % percentile interval.
    """

    value: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray


def resampled_means(values: np.ndarray, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means of `values` over the slices of patients drawn with replacement.

    All columns share the draws, as do all calls with the same patients and seed, so that differences are paired. What
    is drawn does not depend on the order of the slices.

    Args:
        values: a number a slice, such as its loss, shape (n,) or (n, k).
        patients: PatientID of each slice, shape (n,).
        resamples: how often as many patients are drawn as there are.

    Returns:
        float64, shape (resamples,) or (resamples, k).

    Raises:
        IchError: the lengths differ, a slice has no patient, or there are fewer than two patients.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) != len(patients):
        raise IchError(f"{len(values):,} values and {len(patients):,} patients; expected a patient for each value")
    patient, names = pd.factorize(np.asarray(patients, dtype=object), sort=True)
    if (patient < 0).any():
        raise IchError("a slice has no PatientID; the bootstrap draws patients, so leave such slices out")
    if len(names) < 2:
        raise IchError(f"{len(names)} patient(s) cannot be resampled; expected two or more")
    columns = [*values.reshape(len(values), -1).T, np.ones(len(values))]
    totals = np.stack([np.bincount(patient, column) for column in columns], axis=1)  # the last: how many slices
    sums = np.empty((resamples, totals.shape[1]))
    for row, counts in zip(sums, draws(len(names), resamples, seed), strict=True):
        row[:] = counts @ totals
    return (sums[:, :-1] / sums[:, -1:]).reshape(resamples, *values.shape[1:])


def draws(patients: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Draw as many patients as there are, with replacement, `resamples` times.

    Yields:
        How often each patient was drawn, int64, shape (patients,): one draw at a time, as the counts of all would be
        resamples × patients numbers.
    """
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(patients, size=patients), minlength=patients)


def estimate(values: np.ndarray, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of `values` with its standard error and interval; arguments as of `resampled_means`.

    The score of predictions is `estimate(log_losses(y, p) @ weights, patients)`, the gain of one over the other that of
    the difference of such losses.
    """
    means = resampled_means(values, patients, resamples, seed)
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
    return Estimate(np.asarray(values, dtype=np.float64).mean(axis=0), means.std(axis=0, ddof=1), low, high)
