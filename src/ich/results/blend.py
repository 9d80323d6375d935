"""Blend the probabilities of several models by ensemble weights, fitted on out-of-fold predictions.

A blend is never scored on the patients that it was fitted on: `nested` predicts each fold by a blend fitted on the
others; `fit` fits the blend on all folds, for the test set. One leakage remains, as in all stacking of out-of-fold
predictions: the members' models that predicted the other folds were trained on this one. A few weights cannot leak
much.

The fitted weights mix probabilities, not logits. The log loss is convex in the weights either way; but a mixture's loss
on a slice is at most a member's own plus -log of its weight, whatever the others predict, while one member's wrong
certainty shifts a mean of logits without bound.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from tqdm import tqdm

from ich.competition.folds import check_no_shared_patients
from ich.competition.labels import ANY, LABELS, METRIC_WEIGHTS
from ich.competition.metrics import EPSILON, log_losses
from ich.errors import IchError
from ich.results import bootstrap, calibration
from ich.results.bootstrap import Estimate
from ich.results.calibration import Calibration
from ich.results.fitted_blend import METHODS, Blend, Mixture, helped, raise_any

_METRIC = np.array(list(METRIC_WEIGHTS.values())) / sum(METRIC_WEIGHTS.values())


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to blend.

    Args:
        method: `weights`, fitted on the simplex; `mean` of probabilities; `logit_mean`; `rank_mean`, the mean of the
            ranks among the predictions that were fitted on, mapped to a probability by Platt's line.
        by_label: fit separate weights for each label, rather than one set by the metric.
        calibration: one of `calibration.KINDS` to try on each label, or None.
        any_at_least_max: try to raise `any` to the largest of the five.
    """

    method: str
    by_label: bool
    calibration: str | None
    any_at_least_max: bool


def fit(members: np.ndarray, table: pd.DataFrame, recipe: Recipe) -> Blend:
    """Fit a blend on out-of-fold predictions.

    A calibration is kept for the labels that it helps, and `any_at_least_max` if it helps: if its gain, each fold of
    `table` predicted by what was fitted on the others, exceeds its standard error by bootstrap over patients.

    Args:
        members: out-of-fold probabilities, shape (members, n, 6), any float dtype.
        table: from `ich.competition.folds.read_folds`, a row for each of the n slices, in their order.

    Raises:
        IchError: no members, other shapes, values outside [0, 1]; an unknown method or calibration, by_label where
            nothing is fitted; something to try, but fewer than two folds to judge it by.
    """
    _check(members, table, recipe)
    y = table[list(LABELS)].to_numpy()
    mixture = _mix(members, y, recipe)
    line, raises_any, calibration_gain, any_gain = Calibration.none(), False, None, None
    if recipe.calibration or recipe.any_at_least_max:
        mixed, calibrated = _held_out(members, table, recipe)
        if recipe.calibration:
            calibration_gain = _gain(table, mixed, calibrated)
            kept = helped(calibration_gain)
            line = calibration.fit(mixture(members), y, recipe.calibration).only(kept)
            mixed = np.where(kept, calibrated, mixed)
        if recipe.any_at_least_max:
            any_gain = Estimate(*(part[ANY] for part in _gain(table, mixed, raise_any(mixed))))
            raises_any = bool(helped(any_gain))
    return Blend(mixture, line, raises_any, calibration_gain, any_gain)


def nested(members: np.ndarray, table: pd.DataFrame, recipe: Recipe) -> np.ndarray:
    """Return out-of-fold blended probabilities, each fold by a blend fitted on the others, for scoring the blend.

    Whether a calibration helps is also decided within the other folds.

    Args:
        members, table, recipe: as of `fit`.

    Returns:
        float64, shape (n, 6).

    Raises:
        IchError: as of `fit`; a patient is in two folds, or there is one fold only.
    """
    _check(members, table, recipe)
    check_no_shared_patients(table)
    fold = table["fold"].to_numpy()
    if len(np.unique(fold)) < 2:
        raise IchError(
            "there is one fold only; expected two at least, as a blend is scored on folds that it was not fitted on"
        )
    blended = np.empty(members.shape[1:])
    for k in tqdm(np.unique(fold), desc="blend", unit="fold"):
        rest = fold != k
        blended[~rest] = fit(members[:, rest], table[rest], recipe)(members[:, ~rest])
    return blended


def _check(members: np.ndarray, table: pd.DataFrame, recipe: Recipe) -> None:
    if recipe.method not in METHODS:
        raise IchError(f"unknown method {recipe.method!r} of blending; expected one of {', '.join(METHODS)}")
    if recipe.by_label and recipe.method != "weights":
        raise IchError(f"weights are fitted by label, {recipe.method} has none to fit; leave by_label out")
    if recipe.by_label and len(members) == 1:
        raise IchError("weights of one member are 1 for every label; name several, or leave by_label out")
    if members.ndim != 3 or len(members) == 0 or members.shape[1:] != (len(table), len(LABELS)) or len(table) == 0:
        raise IchError(
            f"members of shape {members.shape} for {len(table):,} slices; expected (members, slices, {len(LABELS)})"
        )
    if not ((members >= 0) & (members <= 1)).all():  # NaN fails too
        raise IchError("members hold NaN or values outside [0, 1]; blends take probabilities, not logits")


def _mix(members: np.ndarray, y: np.ndarray, recipe: Recipe) -> Mixture:
    equal = np.full((len(members), len(LABELS)), 1 / len(members))
    if recipe.method == "rank_mean":
        ranks = Mixture("rank_mean", equal, reference=np.sort(members, axis=1))
        return Mixture("rank_mean", equal, ranks.reference, calibration.fit(ranks(members), y, "platt"))
    if recipe.method != "weights":
        return Mixture(recipe.method, equal)
    if recipe.by_label:
        columns = [_fit_weights(members[..., [k]], y[:, [k]], np.ones(1)) for k in range(len(LABELS))]
        return Mixture("weights", np.stack(columns, axis=1))
    return Mixture("weights", np.repeat(_fit_weights(members, y, _METRIC)[:, None], len(LABELS), axis=1))


def _fit_weights(members: np.ndarray, y: np.ndarray, label_weights: np.ndarray) -> np.ndarray:
    """Return the weights on the simplex with the least log loss of the mixed probabilities.

    Args:
        members: shape (members, n, labels).
        y: shape (n, labels).
        label_weights: shape (labels,), sum 1.

    Returns:
        float64, shape (members,).
    """
    p = np.clip(members.astype(np.float64), EPSILON, 1 - EPSILON)
    likelihood = np.where(y == 1, p, 1 - p).reshape(len(members), -1)  # each member's probability of the true label
    share = np.broadcast_to(label_weights / len(y), y.shape).reshape(-1)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = weights @ likelihood
        return -share @ np.log(mixed), -likelihood @ (share / mixed)

    return least_on_simplex(loss, len(members), jac=True, options={"ftol": 1e-12, "maxiter": 1000})


def least_on_simplex(loss: Callable, count: int, **options) -> np.ndarray:
    """Return the weights, non-negative with sum 1, that minimize a convex loss; float64, shape (count,).

    Args:
        loss: a function of weights.
        options: further arguments of `scipy.optimize.minimize`.
    """
    # In the middle of the simplex the gradient is at most the number of members, as a mixture's probability is at least
    # a share of the largest. At a corner it may be 1e15, if that member was certain and wrong.
    solution = minimize(
        loss,
        np.full(count, 1 / count),
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        **options,
    )
    weights = np.clip(solution.x, 0, None)
    return weights / weights.sum()


def _held_out(members: np.ndarray, table: pd.DataFrame, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return out-of-fold (mixed, calibrated) probabilities, fitted on the other folds; equal without a calibration."""
    fold, y = table["fold"].to_numpy(), table[list(LABELS)].to_numpy()
    if len(np.unique(fold)) < 2:
        raise IchError(
            "a calibration, or any_at_least_max, is tried on folds other than those that score it: expected three folds"
            " at least; make more folds, or blend without"
        )
    mixed = np.empty(members.shape[1:])
    calibrated = np.empty_like(mixed)
    for k in np.unique(fold):
        rest = fold != k
        mixture = _mix(members[:, rest], y[rest], recipe)
        mixed[~rest] = calibrated[~rest] = mixture(members[:, ~rest])
        if recipe.calibration:
            line = calibration.fit(mixture(members[:, rest]), y[rest], recipe.calibration)
            calibrated[~rest] = line(mixed[~rest])
    return mixed, calibrated


def _gain(table: pd.DataFrame, before: np.ndarray, after: np.ndarray) -> Estimate:
    """Return the decrease of each label's log loss from before to after; arrays of shape (6,)."""
    y = table[list(LABELS)].to_numpy()
    return bootstrap.estimate(log_losses(y, before) - log_losses(y, after), table["PatientID"].to_numpy())
