"""Standard errors and intervals of scores, by bootstrap over patients.

The slices of a patient are alike, so drawing single slices would underestimate the error. Whole patients are drawn
instead, with all their slices (the cluster bootstrap: Davison and Hinkley, Bootstrap Methods
and their Application, 1997, section 3.8).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from ich.errors import IchError

RESAMPLES = 2000
"""Enough that the standard error varies by chance by some 2 %, and the interval's ends by some 6 % of it."""

COVERAGE = 0.95


class Estimate(NamedTuple):
    """A mean over slices with its uncertainty; numbers, or arrays of them.

    Args:
        value: the mean.
        standard_error: the standard deviation of the resampled means.
        low, high: the ends of the 95 % percentile interval.
    """

    value: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray


def resampled_means(values: np.ndarray, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return means of `values` over the slices of patients drawn with replacement.

    All columns share the draws, as do all calls with the same patients and seed, so that differences are paired. The
    draws do not depend on the order of the slices.

    Args:
        values: a number a slice, such as its loss, shape (n,) or (n, k).
        patients: PatientID of each slice, shape (n,).
        resamples: number of draws, each of as many patients as there are.

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
    totals = np.stack([np.bincount(patient, column) for column in columns], axis=1)  # the last column: number of slices
    sums = np.empty((resamples, totals.shape[1]))
    for row, counts in zip(sums, draws(len(names), resamples, seed), strict=True):
        row[:] = counts @ totals
    return (sums[:, :-1] / sums[:, -1:]).reshape(resamples, *values.shape[1:])


def draws(patients: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Draw as many patients as there are, with replacement, `resamples` times.

    Yields:
        The number of times that each patient was drawn, int64, shape (patients,): one draw at a time, as all would be
        resamples × patients numbers.
    """
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(patients, size=patients), minlength=patients)


def estimate(values: np.ndarray, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the mean of `values` with its standard error and interval; arguments as for `resampled_means`.

    The score of predictions is `estimate(log_losses(y, p) @ weights, patients)`; the gain of one over another is the
    estimate of the difference of such losses.
    """
    means = resampled_means(values, patients, resamples, seed)
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
    return Estimate(np.asarray(values, dtype=np.float64).mean(axis=0), means.std(axis=0, ddof=1), low, high)
