"""How good probabilities are: ranking, log loss, calibration, each with an interval by bootstrap over patients."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_expit, logit

from ich.competition.metrics import EPSILON
from ich.errors import IchError
from ich.results import bootstrap, calibration

RESAMPLES = 1000
AT = 0.9
"""The specificity of a sensitivity, and the sensitivity of a specificity."""

FOLDS = 5
"""Of patients, for the recalibration."""

RANKING = ("auc", "average_precision", "sensitivity", "specificity")
CALIBRATION = ("log_loss", "intercept", "slope")

_AT_A_TIME = 500_000  # resamples × rows: what stays in the cache
_UNDEFINED = 0.05  # of the resamples, at most: else there is no interval
_EXACT = 1e-9
_CLOSE = 1e-6  # a step of Newton's method, whose error then is its square
_QUICK = 8  # steps of Newton's method before it is done with care
_ITERATIONS = 100
_LONGEST = 10  # step of Newton's method: where all probabilities are nearly 0 or 1, it would leap


class Score(NamedTuple):
    """A number and its 95 % interval; NaN for what cannot be computed, with the reason.

    Args:
        reason: of a missing value, or else of a missing interval; empty where there are both.
    """

    value: float
    low: float
    high: float
    reason: str = ""


def ranking(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC, average precision, sensitivity at a specificity of `AT`, specificity at a sensitivity of `AT`.

    A threshold is one of the probabilities; a sensitivity is the highest at a specificity of `AT` or more, and the
    other way round. Rows of equal probability are told apart by none.

    Args:
        y: 0 or 1, shape (n,).
        p: shape (n,).
        weights: 0 or more, of each row in each resample, shape (resamples, n).

    Returns:
        float64, shape (resamples, 4); NaN where a resample has one class alone.
    """
    order = np.argsort(-p, kind="stable")
    y, p, weights = y[order], p[order], weights[:, order]
    starts = np.flatnonzero(np.concatenate([[True], p[1:] != p[:-1]]))
    hits = np.add.reduceat(weights * y, starts, axis=1)
    alarms = np.add.reduceat(weights * (1 - y), starts, axis=1)
    hit, alarm = np.cumsum(hits, axis=1), np.cumsum(alarms, axis=1)
    positives, negatives = hit[:, -1:], alarm[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = (hits * (negatives - alarm + alarms / 2)).sum(axis=1) / (positives * negatives)[:, 0]
        precision = np.divide(hit, hit + alarm, out=np.zeros_like(hit), where=hit + alarm > 0)
        average = (hits * precision).sum(axis=1) / positives[:, 0]
        allowed = alarm <= (1 - AT) * negatives + _EXACT
        sensitivity = np.where(allowed, hit, 0).max(axis=1) / positives[:, 0]
        enough = hit >= AT * positives - _EXACT
        specificity = np.where(enough, negatives - alarm, 0).max(axis=1) / negatives[:, 0]
    values = np.stack([auc, average, sensitivity, specificity], axis=1)
    values[(positives == 0)[:, 0] | (negatives == 0)[:, 0]] = np.nan
    return values


def calibrated(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Log loss, calibration intercept and calibration slope.

    The slope is that of a logistic regression of the label on the logit of the probability (1 is right, below 1 the
    probabilities are too extreme), the intercept that of one with the slope fixed to 1 (0 is right, below 0 they are
    too high): Van Calster et al., Calibration: the Achilles heel of predictive analytics, BMC Medicine 2019;17:230.

    Args:
        y, p, weights: as of `ranking`.

    Returns:
        float64, shape (resamples, 3); NaN where a regression has no solution: one class alone, or a probability that
        tells the two apart without a mistake, for the slope.
    """
    z = calibration.clipped_logit(p)
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    losses = -(y * np.log(clipped) + (1 - y) * np.log(1 - clipped))
    total = weights.sum(axis=1)
    ones = np.ones((len(z), 1))
    both = ((weights * y).sum(axis=1) > 0) & ((weights * (1 - y)).sum(axis=1) > 0)
    values = np.full((len(weights), len(CALIBRATION)), np.nan)
    values[:, 0] = weights @ losses / total
    values[both, 1] = _logistic(y, ones, z, weights[both])[:, 0]
    overlap = both & _overlap(y, z, weights)
    values[overlap, 2] = _logistic(y, np.column_stack([ones, z]), np.zeros_like(z), weights[overlap])[:, 1]
    return values


def _overlap(y: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Whether no threshold tells the classes of a resample apart: only then is there a slope."""
    there = weights > 0
    lowest = [np.where(there & (y == label), z, np.inf).min(axis=1) for label in (0, 1)]
    highest = [np.where(there & (y == label), z, -np.inf).max(axis=1) for label in (0, 1)]
    return (lowest[0] < highest[1]) & (lowest[1] < highest[0])


def _logistic(y: np.ndarray, x: np.ndarray, offset: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fit a logistic regression for each resample, by Newton's method from that of all resamples together.

    Args:
        x: shape (n, terms), 1 or 2 terms.
        offset: of the linear predictor, shape (n,).

    Returns:
        float64, shape (resamples, terms); NaN where it has not converged.
    """
    if not len(weights):
        return np.empty((0, x.shape[1]))
    coefficients = _climb(y, x, offset, weights.mean(axis=0, keepdims=True)).repeat(len(weights), axis=0)
    todo = np.arange(len(weights))
    for _ in range(_QUICK):
        step = _newton(y, x, offset, weights[todo], coefficients[todo])
        coefficients[todo] += step
        todo = todo[~(np.abs(step).max(axis=1) <= _CLOSE)]  # NaN too
        if not len(todo):
            return coefficients
    coefficients[todo] = _climb(y, x, offset, weights[todo])
    return coefficients


def _climb(y: np.ndarray, x: np.ndarray, offset: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fit as `_logistic`, from a slope of 0, by steps of bounded length, halved where they lose likelihood."""
    total = weights.sum(axis=1)
    coefficients = np.zeros((len(weights), x.shape[1]))
    coefficients[:, 0] = logit(weights @ y / total) - weights @ offset / total
    step = np.zeros_like(coefficients)
    likelihood = np.full(len(weights), -np.inf)
    todo = np.arange(len(weights))
    for _ in range(_ITERATIONS):
        tried = coefficients[todo] + step[todo]
        eta = tried @ x.T + offset
        reached = (weights[todo] * ((y - 1) * eta + log_expit(eta))).sum(axis=1)
        newton = _newton(y, x, offset, weights[todo], tried)
        newton *= np.minimum(1, _LONGEST / np.abs(newton).max(axis=1, keepdims=True).clip(_EXACT))
        better = reached >= likelihood[todo] - _EXACT * np.abs(reached)
        coefficients[todo[better]], likelihood[todo[better]] = tried[better], reached[better]
        step[todo] = np.where(better[:, None], newton, step[todo] / 2)
        todo = todo[np.abs(step[todo]).max(axis=1) > _EXACT]
        if not len(todo):
            return coefficients
    coefficients[todo] = np.nan
    return coefficients


def _newton(y: np.ndarray, x: np.ndarray, offset: np.ndarray, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The step of Newton's method from coefficients, both of shape (resamples, terms)."""
    terms = x.shape[1]
    p = expit(at @ x.T + offset)
    gradient = (weights * (y - p)) @ x
    products = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    curvature = ((weights * p * (1 - p)) @ products).reshape(-1, terms, terms)
    curvature += 1e-12 * np.eye(terms)  # where all probabilities are 0 or 1, it is 0
    return np.linalg.solve(curvature, gradient[..., None])[..., 0]


def operating_points(y: np.ndarray, p: np.ndarray) -> dict[str, dict[str, float] | None]:
    """Find the thresholds of a sensitivity of `AT` and of a specificity of `AT`: positive is what reaches one.

    Args:
        y: 0 or 1, shape (n,).
        p: shape (n,).

    Returns:
        `sensitivity`: the highest threshold at which the sensitivity is `AT` or more, `specificity`: the lowest at
        which the specificity is; each as threshold, sensitivity and specificity there, None where there is none.
    """
    none: dict[str, dict[str, float] | None] = {"sensitivity": None, "specificity": None}
    positives = int(y.sum())
    if positives in (0, len(y)):
        return none
    order = np.argsort(-p, kind="stable")
    last = np.flatnonzero(np.append(p[order][1:] != p[order][:-1], True))  # of the rows of each threshold
    hits = np.cumsum(y[order])[last]
    sensitivity, specificity = hits / positives, 1 - (last + 1 - hits) / (len(y) - positives)
    places = {
        "sensitivity": np.flatnonzero(sensitivity >= AT - _EXACT)[:1],
        "specificity": np.flatnonzero(specificity >= AT - _EXACT)[-1:],
    }
    return none | {
        name: {
            "threshold": float(p[order][last[place]]),
            "sensitivity": float(sensitivity[place]),
            "specificity": float(specificity[place]),
        }
        for name, indices in places.items()
        for place in indices.tolist()
    }


def resampled(patients: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    """How often each row was drawn with its patient, in blocks of resamples; the first block is the rows themselves.

    Yields:
        float64, shape (some resamples, n).
    """
    n = len(patients)
    yield np.ones((1, n))
    names, patient = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        return
    block = []
    for counts in bootstrap.draws(len(names), resamples):
        block.append(counts[patient].astype(np.float64))
        if (len(block) + 1) * n > _AT_A_TIME:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)


def score(
    y: np.ndarray,
    p: np.ndarray,
    recalibrated: np.ndarray | None,
    patients: np.ndarray,
    resamples: int = RESAMPLES,
) -> dict[str, Score]:
    """Score the probabilities of one label.

    Args:
        y: 0 or 1, shape (n,).
        p: shape (n,).
        recalibrated: shape (n,), scored by `CALIBRATION` too; None leaves that out.
        patients: of each row, text, shape (n,).

    Returns:
        `RANKING`, `CALIBRATION` and, with `recalibrated`, `CALIBRATION` with `recalibrated_` before it.
    """
    names = [*RANKING, *CALIBRATION]
    if recalibrated is not None:
        names += [f"recalibrated_{name}" for name in CALIBRATION]
    blocks = []
    for weights in resampled(patients, resamples):
        columns = [ranking(y, p, weights), calibrated(y, p, weights)]
        if recalibrated is not None:
            columns.append(calibrated(y, recalibrated, weights))
        blocks.append(np.concatenate(columns, axis=1))
    (value,), drawn = blocks[0], np.concatenate(blocks[1:]) if blocks[1:] else np.empty((0, len(names)))
    return {name: with_interval(value[k], drawn[:, k], y) for k, name in enumerate(names)}


def with_interval(value: float, drawn: np.ndarray, y: np.ndarray) -> Score:
    """Return a number with its 95 % interval, of the resamples that have one, or the reason why there is none."""
    if np.isnan(value):
        one_class = len(np.unique(y)) < 2
        reason = one_class_reason(y) if one_class else "the probabilities tell the two classes apart without a mistake"
        return Score(np.nan, np.nan, np.nan, reason)
    if not len(drawn):
        return Score(float(value), np.nan, np.nan, "no interval: there is one patient alone")
    defined = drawn[~np.isnan(drawn)]
    if len(defined) < (1 - _UNDEFINED) * len(drawn):
        lost = 1 - len(defined) / len(drawn)
        return Score(float(value), np.nan, np.nan, f"no interval: {lost:.0%} of the resamples have no such number")
    low, high = np.quantile(defined, [(1 - bootstrap.COVERAGE) / 2, (1 + bootstrap.COVERAGE) / 2])
    return Score(float(value), float(low), float(high))


def one_class_reason(y: np.ndarray) -> str:
    """Why there is no ranking of rows of one class."""
    return f"{'all' if y[0] == 1 else 'none'} of the {len(y):,} have the label"


def recalibrate(y: np.ndarray, p: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Recalibrate by a line through the logits (Platt), fitted on other patients than those it is applied to.

    Returns:
        float64, shape (n,).

    Raises:
        IchError: too few patients have the label, or lack it.
    """
    of_class = [len(np.unique(patients[y == label])) for label in (0, 1)]
    if min(of_class) < FOLDS:
        lacking = "with" if of_class[1] < FOLDS else "without"
        raise IchError(f"{min(of_class)} patients {lacking} the label; {FOLDS} folds of patients need {FOLDS}")
    z, after, fold = calibration.clipped_logit(p), np.empty(len(p)), _folds(y, patients)
    for k in range(FOLDS):
        part = fold == k
        scale, offset = calibration.fit_line(z[~part], y[~part], with_offset=True)
        after[part] = expit(scale * z[part] + offset)
    return after


def _folds(y: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The fold of each row, by patient: patients with the label and those without are dealt out in turn."""
    names, patient = np.unique(patients, return_inverse=True)
    has = np.bincount(patient, y) > 0
    order = np.random.default_rng(0).permutation(len(names))
    order = order[np.argsort(has[order], kind="stable")]
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % FOLDS
    return fold[patient]
