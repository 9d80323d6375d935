import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from ich.errors import IchError
from ich.models.losses import WeightedFocalLoss
from ich.models.prior import LossCorrection, PriorCorrection, corrected
from ich.training.inference import read_model


def called(logits, oversampling, training=False):
    layer = PriorCorrection(oversampling)
    return keras.ops.convert_to_numpy(layer(np.asarray(logits, np.float32), training=training))


def marginals(joint):
    """The six labels' probabilities, from those of the 32 sets of the five kinds, shape (..., 32)."""
    kinds = (np.arange(32)[:, None] >> np.arange(5)) & 1
    return joint @ np.column_stack([kinds, kinds.max(axis=1)])


@settings(max_examples=40)
@given(st.floats(0.05, 200), st.integers(0, 99))
def test_what_was_learned_from_the_sampled_comes_back_as_what_is(oversampling, seed):
    """Beside the joint probabilities of all 32 sets of bleeds, sampled by hand."""
    joint = np.random.default_rng(seed).dirichlet(np.full(32, 0.2), 10)  # of ten images
    sampled = joint * np.where(np.arange(32) > 0, oversampling, 1)
    learned = marginals(sampled / sampled.sum(axis=1, keepdims=True)).clip(0, 1)  # sums may round to more
    truth = marginals(joint)
    usual = (learned > 1e-4) & (learned < 1 - 1e-4)  # float32 does not distinguish others from certainty
    with np.errstate(divide="ignore"):
        recovered = expit(called(logit(learned).clip(-40, 40), oversampling).astype(np.float64))
    np.testing.assert_allclose(recovered[usual], truth[usual], rtol=5e-3, atol=1e-6)


def test_any_loses_the_logarithm_and_the_mean_is_the_prevalence_again():
    np.testing.assert_allclose(called(np.zeros((1, 6)), 9.0)[0, 5], -np.log(9), rtol=1e-6)
    # Images that show nothing, of which one in a hundred has a bleed, half of them a subdural one; half are shown.
    corrected_logits = called(logit([[0.1, 0.1, 0.1, 0.1, 0.25, 0.5]]), 99.0)
    np.testing.assert_allclose(expit(corrected_logits), [[0.002] * 4 + [0.005, 0.01]], rtol=1e-4)


def test_training_sees_the_logits_as_they_are():
    logits = np.random.default_rng(0).normal(0, 3, (4, 6))
    np.testing.assert_array_equal(called(logits, 9.0, training=True), logits.astype(np.float32))
    np.testing.assert_array_equal(called(logits, 1.0), logits.astype(np.float32))


@pytest.mark.parametrize("oversampling", [1e-3, 0.5, 30.0])
def test_no_logit_overflows_nor_does_a_label_above_any(oversampling):
    logits = np.array([[300, -300, 30, -30, 0, -300], [5, 4, 3, 2, 1, 0], [-300] * 6, [300] * 6], np.float32)
    actual = called(logits, oversampling)
    assert np.isfinite(actual).all()
    # A label above `any` stands for it.
    np.testing.assert_allclose(actual[1], logits[1] - np.log(oversampling), rtol=1e-5)


@pytest.mark.parametrize("oversampling", [0.0, -1.0, float("inf"), float("nan")])
def test_an_oversampling_that_is_none_is_refused(oversampling):
    with pytest.raises(IchError, match=r"oversampling is .*, expected a finite number above 0"):
        PriorCorrection(oversampling)


def test_it_is_a_part_of_the_saved_model(tmp_path):
    images = keras.Input((6,))
    model = keras.Model(images, keras.layers.Dense(6, name="logits")(images), name="some")
    ours = corrected(model, 4.0)
    ours.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    x = np.random.default_rng(0).normal(0, 1, (3, 6)).astype(np.float32)
    bare, corrected_logits, loaded = (keras.ops.convert_to_numpy(each(x)) for each in (model, ours, again))
    np.testing.assert_array_equal(corrected_logits, loaded)
    np.testing.assert_allclose(corrected_logits, called(bare, 4.0), rtol=1e-5)
    np.testing.assert_allclose(corrected_logits[:, 5], bare[:, 5] - np.log(4), rtol=1e-5)


def loss_corrected(logits, *settings, training=False):
    layer = LossCorrection(*settings)
    return keras.ops.convert_to_numpy(layer(np.asarray(logits, np.float32), training=training))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.02, 0.3])
def test_what_minimizes_the_loss_comes_back_as_the_probability(gamma, smoothing):
    """Beside the minimum of the expected loss, by trying 100,001 logits."""
    tried = np.linspace(-9, 9, 100_001, dtype=np.float32)
    loss = WeightedFocalLoss(gamma, label_smoothing=smoothing)
    of_positive, of_negative = (np.asarray(loss.of_labels(np.float32(label), tried), np.float64) for label in (1, 0))
    probabilities = np.array([0.004, 0.03, 0.3, 0.5, 0.9, 0.996])
    shown = probabilities * (1 - smoothing) + smoothing / 2
    best = tried[[np.argmin(p * of_positive + (1 - p) * of_negative) for p in shown]]
    # Labels smoothed by s leave an error of the order of s / 20 where one of both is unlikely.
    np.testing.assert_allclose(expit(loss_corrected(best, gamma, smoothing)), probabilities, 2e-3, smoothing / 20)
    if gamma == smoothing == 0:
        np.testing.assert_array_equal(loss_corrected(best), best)
    elif smoothing == 0:
        assert (np.abs(loss_corrected(best, gamma)) > np.abs(best))[best != 0].all()


@pytest.mark.parametrize("settings", [(2.0, 0.0), (0.0, 0.1), (1.5, 0.02)])
def test_the_order_stays_and_no_logit_overflows(settings):
    order = loss_corrected(np.linspace(-4, 4, 300), *settings)
    assert (np.diff(order) > 0).all()
    far = loss_corrected([-1e30, -300, -30, 0, 30, 300, 1e30], *settings)
    assert np.isfinite(far).all()
    assert far[3] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(far, -far[::-1], rtol=1e-3, atol=1e-5)
    assert (np.diff(far) > -1e-5).all()  # float32 does not distinguish them


def test_training_learns_without_the_correction_of_the_loss():
    logits = np.random.default_rng(0).normal(0, 3, (4, 12)).astype(np.float32)
    np.testing.assert_array_equal(loss_corrected(logits, 2.0, 0.1, training=True), logits)


@pytest.mark.parametrize("settings", [(-1.0, 0.0), (float("nan"), 0.0), (0.0, 1.0), (0.0, -0.1)])
def test_a_loss_that_is_none_is_refused(settings):
    with pytest.raises(IchError, match=r"gamma is .* and label_smoothing .*, expected"):
        LossCorrection(*settings)


def test_the_loss_is_corrected_before_the_prior(tmp_path):
    images = keras.Input((6,))
    model = keras.Model(images, keras.layers.Dense(6, name="logits")(images))
    ours = corrected(model, 4.0, gamma=2.0, label_smoothing=0.1)
    ours.save(tmp_path / "model.keras")
    again = read_model(tmp_path / "model.keras", "")
    x = np.random.default_rng(0).normal(0, 1, (3, 6)).astype(np.float32)
    bare, corrected_logits, loaded = (keras.ops.convert_to_numpy(each(x)) for each in (model, ours, again))
    np.testing.assert_array_equal(corrected_logits, loaded)
    np.testing.assert_allclose(corrected_logits, called(loss_corrected(bare, 2.0, 0.1), 4.0), rtol=1e-4, atol=1e-5)
    assert corrected(model) is model
