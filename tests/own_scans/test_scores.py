import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from ich.errors import IchError
from ich.own_scans import scores
from ich.results import bootstrap


def case(seed, n=60, patients=20, ties=True):
    """Labels, probabilities with ties, and patients of which some have several rows."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.35).astype(float)
    p = expit(rng.normal(-0.5, 1.2, n) + y)
    patient = np.array([f"P{number}" for number in rng.integers(0, patients, n)])
    return y, np.round(p, 1 if ties else 6).clip(0.01, 0.99), patient


def slow_ranking(y, p):
    """Each threshold in turn, as one would do it by hand."""
    sensitivity, specificity = [0.0], [0.0]
    for threshold in [*p, 2.0]:
        hit, reject = (p[y == 1] >= threshold).mean(), (p[y == 0] < threshold).mean()
        sensitivity += [hit] * int(reject >= 0.9 - 1e-12)
        specificity += [reject] * int(hit >= 0.9 - 1e-12)
    return [roc_auc_score(y, p), average_precision_score(y, p), max(sensitivity), max(specificity)]


def slow_line(y, z, slope):
    """Intercept with the slope fixed to 1, or intercept and slope, by minimizing the log loss."""

    def loss(x):
        eta = x[0] + (x[1] if slope else 1) * z
        return np.mean(np.logaddexp(0, eta) - y * eta)

    return minimize(loss, [0.0, 1.0][: 1 + slope], tol=1e-12).x


@pytest.mark.parametrize("ties", [True, False])
def test_ranking_of_resamples_is_that_of_their_heaps(ties):
    y, p, _ = case(1, ties=ties)
    weights = np.random.default_rng(2).integers(0, 3, (5, len(y))).astype(float)
    heaps = [slow_ranking(np.repeat(y, w.astype(int)), np.repeat(p, w.astype(int))) for w in weights]
    np.testing.assert_allclose(scores.ranking(y, p, weights), heaps, rtol=1e-12)


def test_calibration_of_resamples_is_that_of_their_heaps():
    y, p, _ = case(3, ties=False)
    weights = np.random.default_rng(4).integers(0, 3, (4, len(y))).astype(float)
    for actual, w in zip(scores.calibrated(y, p, weights), weights.astype(int), strict=True):
        heap, q = np.repeat(y, w), np.repeat(p, w)
        slow = [log_loss(heap, q), slow_line(heap, logit(q), 0)[0], slow_line(heap, logit(q), 1)[1]]
        np.testing.assert_allclose(actual, slow, rtol=1e-5)


def test_calibration_of_certain_probabilities_is_found():
    """Newton's method alone would leap: where all probabilities are nearly 0 or 1, it has no curvature to go by."""
    y = np.array([1.0] * 9 + [0.0] * 6 + [1.0] * 1 + [0.0] * 24)
    p = np.array([1.0] * 15 + [0.0] * 25)
    _, intercept, slope = scores.calibrated(y, p, np.ones((1, 40)))[0]
    z = logit(1 - 1e-15)
    assert expit(intercept + z) * 15 + expit(intercept - z) * 25 == pytest.approx(10)
    assert slope == pytest.approx((logit(9 / 15) - logit(1 / 25)) / (z - logit(1e-15)))
    zeros = scores.calibrated(y, np.zeros(40), np.ones((1, 40)))[0]
    assert expit(zeros[1] + logit(1e-15)) == pytest.approx(0.25)


def test_calibrated_probabilities_have_a_slope_of_1_and_an_intercept_of_0():
    rng = np.random.default_rng(0)
    p = rng.random(50_000)
    y = (rng.random(50_000) < p).astype(float)
    _, intercept, slope = scores.calibrated(y, p, np.ones((1, len(y))))[0]
    assert abs(intercept) < 0.03
    assert abs(slope - 1) < 0.03
    _, intercept, slope = scores.calibrated(y, expit(2 * logit(p) + 1), np.ones((1, len(y))))[0]  # too sure, too high
    assert intercept < -0.3
    assert abs(slope - 0.5) < 0.03


def test_intervals_are_those_of_a_slow_bootstrap(monkeypatch):
    monkeypatch.setattr(scores, "_AT_A_TIME", 1000)  # several blocks
    y, p, patient = case(5)
    estimates = scores.score(y, p, None, patient, 100)
    names = sorted(set(patient))
    slow = []
    for counts in bootstrap.draws(len(names), 100):
        rows = np.concatenate(
            [np.flatnonzero(patient == name).repeat(n) for name, n in zip(names, counts, strict=True)]
        )
        slow.append([roc_auc_score(y[rows], p[rows]), average_precision_score(y[rows], p[rows])])
    for name, drawn in zip(("auc", "average_precision"), np.transpose(slow), strict=True):
        np.testing.assert_allclose(estimates[name][1:3], np.quantile(drawn, [0.025, 0.975]), rtol=1e-9)
    assert estimates["auc"].value == pytest.approx(roc_auc_score(y, p))
    assert estimates["log_loss"].low < estimates["log_loss"].value < estimates["log_loss"].high


def test_what_cannot_be_computed_is_none_with_a_reason():
    y, p, patient = case(6)
    none = scores.score(np.zeros_like(y), p, None, patient)
    assert np.isnan(none["auc"].value)
    assert none["auc"].reason == "none of the 60 have the label"
    assert none["log_loss"].low < none["log_loss"].value  # which one class has too
    apart = scores.score(y, np.where(y == 1, 0.9, 0.1), None, patient)
    assert apart["auc"].value == 1
    assert np.isnan(apart["slope"].value)
    assert "without a mistake" in apart["slope"].reason
    alone = scores.score(y, p, None, np.full(60, "P"))
    assert np.isnan(alone["auc"].low)
    assert "one patient" in alone["auc"].reason
    few = np.zeros_like(y)
    few[patient == patient[0]] = 1
    rare = scores.score(few, p, None, patient)
    assert rare["auc"].value == pytest.approx(roc_auc_score(few, p))
    assert np.isnan(rare["auc"].low)
    assert "of the resamples" in rare["auc"].reason


def test_recalibration_is_judged_on_other_patients():
    rng = np.random.default_rng(7)
    patient = np.repeat([f"P{number:03}" for number in range(100)], 5)
    truth = rng.random(500)
    y = (rng.random(500) < truth).astype(float)
    p = expit(2 * logit(truth) + 1)
    after = scores.recalibrate(y, p, patient)
    estimates = scores.score(y, p, after, patient, 20)
    assert estimates["recalibrated_log_loss"].value < estimates["log_loss"].value - 0.05
    assert abs(estimates["recalibrated_slope"].value - 1) < 0.15
    # The labels of a patient have no say in the patient's own probabilities.
    mask = patient == "P042"
    other = y.copy()
    other[mask] = y[mask][::-1]  # the patient stays in its fold
    changed = scores.recalibrate(other, p, patient) != after
    assert not changed[mask].any()
    assert changed.any()


def test_recalibration_needs_patients_of_both_kinds():
    _, p, patient = case(8)
    few = np.where(patient == patient[0], 1.0, 0.0)
    with pytest.raises(IchError, match=r"^1 patients with the label"):
        scores.recalibrate(few, p, patient)
    with pytest.raises(IchError, match=r"^1 patients without the label"):
        scores.recalibrate(1 - few, p, patient)
