import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit, logit

from ich.competition import metrics
from ich.errors import IchError
from ich.results import calibration
from ich.results.calibration import Calibration

few = settings(max_examples=10)  # each fits six times
probabilities = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-300, 1e-15, 1 - 1e-15]))


@st.composite
def cases(draw):
    n = draw(st.integers(1, 20))
    y = draw(hnp.arrays(np.int8, (n, 6), elements=st.integers(0, 1)))
    return draw(hnp.arrays(np.float64, (n, 6), elements=probabilities)), y


def soft_loss(p, y):
    """What is minimised, a label each: the log loss towards Platt's targets."""
    positives = y.sum(axis=0)
    t = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))
    p = np.clip(p, 1e-300, 1 - 1e-16)
    return -(t * np.log(p) + (1 - t) * np.log1p(-p)).mean(axis=0)


@pytest.mark.parametrize("kind", calibration.KINDS)
@given(case=cases(), scale=st.floats(0, 5), offset=st.floats(-5, 5))
@few
def test_no_other_line_is_better(kind, case, scale, offset):
    p, y = case
    fitted = calibration.fit(p, y, kind)
    assert np.isfinite([fitted.scale, fitted.offset]).all()
    assert (fitted.scale >= 0).all()
    if kind == "temperature":
        assert (fitted.offset == 0).all()
        offset = 0.0
    z = calibration.clipped_logit(p)
    ours = soft_loss(expit(fitted.scale * z + fitted.offset), y)
    assert (ours <= soft_loss(expit(scale * z + offset), y) + 1e-6).all()
    assert (ours <= soft_loss(expit(z), y) + 1e-6).all()


@given(cases(), st.sampled_from(calibration.KINDS))
@few
def test_it_gives_probabilities_and_reverses_no_order(case, kind):
    p, y = case
    calibrated = calibration.fit(p, y, kind)(p)
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    for k in range(6):
        assert (np.diff(calibrated[np.argsort(p[:, k]), k]) >= -1e-12).all()


def test_it_finds_the_line_that_was_bent():
    rng = np.random.default_rng(0)
    truth = rng.normal(-2, 2, (40_000, 6))
    y = (rng.random(truth.shape) < expit(truth)).astype(np.int8)
    platt = calibration.fit(expit((truth - 1) * 2), y, "platt")
    np.testing.assert_allclose(platt.scale, 0.5, atol=0.03)
    np.testing.assert_allclose(platt.offset, 1, atol=0.1)
    temperature = calibration.fit(expit(truth * 2), y, "temperature")
    np.testing.assert_allclose(temperature.scale, 0.5, atol=0.02)
    calibrated = temperature(expit(truth * 2))
    assert metrics.weighted_log_loss(y, calibrated) < metrics.weighted_log_loss(y, expit(truth * 2)) - 0.01


def test_a_label_without_positives_stays_within_bounds():
    p = np.tile(np.linspace(0.01, 0.2, 50)[:, None], 6)
    calibrated = calibration.fit(p, np.zeros(p.shape), "platt")(p)
    assert (calibrated > 1e-4).all()
    np.testing.assert_allclose(calibrated.mean(axis=0), 1 / 52, rtol=1e-3)


@given(cases())
@few
def test_none_changes_nothing_and_only_some_changes_those(case):
    p, y = case
    assert (Calibration.none()(p) == p).all()
    kept = np.array([True, False, False, True, False, False])
    fitted = calibration.fit(p, y, "platt")
    np.testing.assert_array_equal(fitted.only(kept)(p), np.where(kept, fitted(p), p))


def test_the_logit_is_clipped_as_the_metric_clips():
    edges = calibration.clipped_logit(np.array([0, 1e-300, 0.5, 1], dtype=np.float32))
    np.testing.assert_allclose(edges, [logit(1e-15), logit(1e-15), 0, logit(1 - 1e-15)])


def test_an_unknown_kind_is_refused_with_the_list():
    with pytest.raises(IchError, match="unknown calibration 'isotonic'; expected one of temperature, platt"):
        calibration.fit(np.full((2, 6), 0.5), np.zeros((2, 6)), "isotonic")
