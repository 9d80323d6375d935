import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from ich.competition import metrics
from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.models.losses import (
    LOSSES,
    LabelAUC,
    WeightedBinaryCrossentropy,
    WeightedFocalLoss,
    WeightedLogLoss,
    build_loss,
)


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float64)))


def some(n=20, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (n, 6)).astype(np.float32), rng.normal(0, scale, (n, 6)).astype(np.float32)


@st.composite
def batches(draw):
    n = draw(st.integers(1, 24))
    y = draw(hnp.arrays(np.float32, (n, 6), elements=st.sampled_from([0.0, 1.0])))
    logits = draw(hnp.arrays(np.float32, (n, 6), elements=st.floats(-20, 20, width=32)))
    cuts = draw(st.lists(st.integers(1, n), max_size=5)) if n > 1 else []
    return y, logits, sorted({cut for cut in cuts if cut < n})


@given(batches())
def test_the_loss_and_the_streamed_metric_equal_the_reference_on_any_batching(case):
    y, logits, cuts = case
    expected = metrics.weighted_log_loss(y, sigmoid(logits))
    assert float(WeightedBinaryCrossentropy()(y, logits)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    metric = WeightedLogLoss()
    for part_y, part_logits in zip(np.split(y, cuts), np.split(logits, cuts), strict=True):
        metric.update_state(part_y, part_logits)
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(
    st.lists(st.floats(0, 100), min_size=6, max_size=6).filter(lambda weights: sum(weights) > 1e-3), st.integers(0, 99)
)
@settings(max_examples=25)
def test_other_weights_equal_the_reference_too(weights, seed):
    y, logits = some(seed=seed)
    expected = metrics.weighted_log_loss(y, sigmoid(logits), weights)
    assert float(WeightedBinaryCrossentropy(weights)(y, logits)) == pytest.approx(expected, rel=1e-4)
    metric = WeightedLogLoss(weights)
    metric.update_state(y, logits)
    assert float(metric.result()) == pytest.approx(expected, rel=1e-4)


def test_a_sample_has_a_loss_of_its_own():
    y, logits = some()
    each = keras.ops.convert_to_numpy(WeightedBinaryCrossentropy(reduction=None)(y, logits))
    assert each.shape == (20,)
    expected = [metrics.weighted_log_loss(y[i : i + 1], sigmoid(logits[i : i + 1])) for i in range(20)]
    np.testing.assert_allclose(each, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("logit", [0.0, 12.0, -12.0, 200.0, -200.0, 30000.0])
def test_no_logit_overflows_in_any_dtype(dtype, logit):
    y = np.array([[1, 0, 1, 0, 1, 0]], dtype=np.float32)
    logits = keras.ops.cast(np.full((1, 6), logit), dtype)
    exact = float(keras.ops.cast(logits, "float32")[0, 0])
    softplus = np.logaddexp(0, [-exact, exact])  # of a label that is 1, and 0
    expected = (3 * softplus[0] + 4 * softplus[1]) / 7
    loss, metric = WeightedBinaryCrossentropy(), WeightedLogLoss()
    metric.update_state(y, logits)
    assert keras.backend.standardize_dtype(loss(y, logits).dtype) == "float32"
    assert float(loss(y, logits)) == pytest.approx(expected, rel=1e-5)
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_probability_less_label_times_the_weight():
    tf = pytest.importorskip("tensorflow")
    y, logits = some()
    logits[0] = [300, -300, 300, -300, 0, 0]  # at 0 the formula's parts have kinks, their sum has none
    x = tf.Variable(logits)
    with tf.GradientTape() as tape:
        value = WeightedBinaryCrossentropy()(y, x)
    expected = (sigmoid(logits) - y) * np.array([1, 1, 1, 1, 1, 2]) / 7 / len(y)
    np.testing.assert_allclose(tape.gradient(value, x).numpy(), expected, rtol=1e-4, atol=1e-9)


def test_reset_forgets_and_an_empty_metric_is_zero():
    y, logits = some()
    metric = WeightedLogLoss()
    assert float(metric.result()) == 0
    metric.update_state(1 - y, logits)
    metric.reset_state()
    metric.update_state(y, logits)
    assert float(metric.result()) == pytest.approx(metrics.weighted_log_loss(y, sigmoid(logits)), rel=1e-5)


def test_sample_weights_are_as_good_as_repeated_samples():
    y, logits = some(4)
    counts = np.array([1, 3, 0, 2])
    for shape in ((4,), (4, 1)):
        metric = WeightedLogLoss()
        metric.update_state(y, logits, sample_weight=counts.reshape(shape))
        expected = metrics.weighted_log_loss(np.repeat(y, counts, axis=0), sigmoid(np.repeat(logits, counts, axis=0)))
        assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_fit_and_evaluate_report_the_score_of_all_samples(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        y, x = some(23)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Activation("linear", dtype="float32")])
        model.compile(loss=WeightedBinaryCrossentropy(), metrics=[WeightedLogLoss()])
        scores = model.evaluate(x, y, batch_size=5, verbose=0, return_dict=True)  # the last batch holds 3
    finally:
        keras.config.set_dtype_policy(before)
    expected = metrics.weighted_log_loss(y, sigmoid(x))
    assert scores["weighted_log_loss"] == pytest.approx(expected, rel=1e-5)
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cls", [WeightedBinaryCrossentropy, WeightedLogLoss])
def test_saved_and_loaded_with_its_weights(cls):
    original = cls([1, 2, 3, 4, 5, 6])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(original), safe_mode=True)
    assert type(again) is cls
    assert again.get_config() == original.get_config()
    assert again.weights == [1, 2, 3, 4, 5, 6] if cls is WeightedBinaryCrossentropy else True


def slow_focal(y, logits, gamma, smoothing=0.0, weights=(1, 1, 1, 1, 1, 2)):
    """The formula of the paper, for a label of 1 and one of 0, as they are mixed by smoothing."""
    p = sigmoid(logits)
    positive, negative = -((1 - p) ** gamma) * np.log(p), -(p**gamma) * np.log(1 - p)
    y = y * (1 - smoothing) + smoothing / 2
    return float(np.average((y * positive + (1 - y) * negative).mean(axis=0), weights=weights))


@settings(max_examples=25)
@given(st.floats(0, 6), st.floats(0, 0.9), st.integers(0, 99))
def test_focal_loss_and_smoothing_equal_the_reference(gamma, smoothing, seed):
    y, logits = some(seed=seed)
    loss = float(WeightedFocalLoss(gamma, label_smoothing=smoothing)(y, logits))
    assert loss == pytest.approx(slow_focal(y, logits, gamma, smoothing), rel=1e-4, abs=1e-7)
    plain = float(WeightedBinaryCrossentropy(label_smoothing=smoothing)(y, logits))
    assert plain == pytest.approx(slow_focal(y, logits, 0, smoothing), rel=1e-4)


def test_focal_loss_is_kerass_where_that_is_exact():
    y, logits = some()
    theirs = keras.losses.BinaryFocalCrossentropy(gamma=2.0, from_logits=True)(y, logits)
    assert float(WeightedFocalLoss(2.0, weights=[1] * 6)(y, logits)) == pytest.approx(float(theirs), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_has_a_gradient_at_every_logit(gamma):
    tf = pytest.importorskip("tensorflow")
    y = np.array([[1, 0, 1, 0, 1, 0]], dtype=np.float32)
    x = tf.Variable([[300.0, -300.0, -300.0, 300.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        value = WeightedFocalLoss(gamma)(y, x)
    gradient = tape.gradient(value, x).numpy()[0]
    np.testing.assert_allclose(gradient[:2], 0, atol=1e-9)  # certain and right
    np.testing.assert_allclose(gradient[2:4], [-1 / 7, 1 / 7], rtol=1e-5)  # certain and wrong: as of the log loss
    # At p = 1/2: of (1 - p)^gamma log p, by the logit.
    slope = 0.5**gamma * (0.5 + gamma * 0.5 * np.log(2))
    np.testing.assert_allclose(gradient[4:], [-slope / 7, 2 * slope / 7], rtol=1e-5)


@pytest.mark.parametrize("gamma", [-1.0, float("inf"), float("nan")])
def test_a_gamma_that_is_none_is_refused(gamma):
    with pytest.raises(IchError, match=r"gamma of the focal loss is .*, expected a finite number of at least 0"):
        WeightedFocalLoss(gamma)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("cls", [WeightedBinaryCrossentropy, WeightedFocalLoss])
def test_a_smoothing_that_is_none_is_refused(cls, smoothing):
    with pytest.raises(IchError, match=r"label_smoothing is .*, expected at least 0 and less than 1"):
        cls(label_smoothing=smoothing)


def test_a_loss_by_its_name():
    loss = build_loss("weighted_bce", [1, 2, 3, 4, 5, 6], 0.1, 1.5)
    assert (type(loss), loss.weights, loss.label_smoothing) == (WeightedBinaryCrossentropy, [1, 2, 3, 4, 5, 6], 0.1)
    loss = build_loss("focal", [1, 2, 3, 4, 5, 6], 0.1, 1.5)
    assert (type(loss), loss.weights, loss.label_smoothing, loss.gamma) == (
        WeightedFocalLoss,
        [1, 2, 3, 4, 5, 6],
        0.1,
        1.5,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_of_a_sample_and_falls_with_better_logits(name):
    y, logits = some()
    loss = build_loss(name)
    good, bad = (np.asarray(loss.call(y, sign * (8 * y - 4))) for sign in (1, -1))
    assert good.shape == (20,)
    assert (good < bad).all()
    assert np.isfinite(np.asarray(loss.call(y, logits))).all()


def test_an_unknown_loss_is_refused():
    with pytest.raises(IchError, match=r"no loss is called 'dice'; there are weighted_bce, focal"):
        build_loss("dice")


@pytest.mark.parametrize("original", [WeightedFocalLoss(1.5, [1, 2, 3, 4, 5, 6], 0.1), LabelAUC("epidural")])
def test_focal_loss_and_auc_are_saved_and_loaded(original):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(original), safe_mode=True)
    assert type(again) is type(original)
    assert again.get_config() == original.get_config()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("label", ["epidural", "any"])
def test_auc_of_a_label_is_the_area_under_its_own_curve(label, dtype):
    """Of a label as rare as epidural too, of which most probabilities lie below 0.005."""
    rng = np.random.default_rng(0)
    y = (rng.random((4000, 6)) < 0.01).astype(np.float32)
    logits = (rng.normal(-7, 1, (4000, 6)) + y * 1.5).astype(np.float32)
    stored = keras.ops.cast(logits, dtype)
    metric = LabelAUC(label)
    assert metric.name == f"auc_{label}"
    for part in range(0, 4000, 700):
        metric.update_state(y[part : part + 700], stored[part : part + 700])
    place = LABELS.index(label)
    exact = keras.ops.convert_to_numpy(keras.ops.cast(stored, "float32"))[:, place]
    assert float(metric.result()) == pytest.approx(roc_auc_score(y[:, place], exact), abs=3e-3)


@pytest.mark.parametrize("has", [0, 1])
def test_there_is_no_auc_without_positives_or_without_negatives(has):
    y, x = some(200)
    y[:, LABELS.index("epidural")] = has
    metrics = [LabelAUC("epidural"), LabelAUC("any")]
    for metric in metrics:
        assert np.isnan(float(metric.result()))  # of no sample at all
        metric.update_state(y, x)
    epidural, any_ = (float(metric.result()) for metric in metrics)
    assert np.isnan(epidural)
    assert any_ == pytest.approx(roc_auc_score(y[:, 5], x[:, 5]), abs=5e-3)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_auc_in_fit_is_that_of_all_samples(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        y, x = some(200)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Activation("linear", dtype="float32")])
        model.compile(loss=WeightedBinaryCrossentropy(), metrics=[LabelAUC(label) for label in LABELS])
        scores = model.evaluate(x, y, batch_size=7, verbose=0, return_dict=True)
    finally:
        keras.config.set_dtype_policy(before)
    for place, label in enumerate(LABELS):
        assert scores[f"auc_{label}"] == pytest.approx(roc_auc_score(y[:, place], x[:, place]), abs=5e-3)


@pytest.mark.parametrize("cls", [WeightedBinaryCrossentropy, WeightedLogLoss])
@pytest.mark.parametrize(
    "weights",
    [
        [],
        [1] * 5,
        [1] * 7,
        [0] * 6,
        [1, 1, 1, 1, 1, -1],
        [1, 1, 1, 1, 1, float("nan")],
        [1, 1, 1, 1, 1, float("inf")],
    ],
)
def test_weights_that_make_no_mean_are_refused(cls, weights):
    with pytest.raises(IchError, match="expected 6 finite weights of at least 0, not all 0, in the order epidural"):
        cls(weights)
