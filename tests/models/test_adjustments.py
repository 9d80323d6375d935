import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from keras import layers

from ich.errors import IchError
from ich.models import adjustments, backbones, gradcam
from ich.models.optimizers import adamw
from ich.training.inference import read_model


@pytest.fixture(autouse=True)
def fresh():
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session()


def some_images(count=4, size=32, channels=1):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def body_of(model):
    """A classifier without dropout and last layer."""
    return keras.Model(model.input, model.get_layer("logits").input)


def small(name="pooled", norm=True):
    """A backbone of few layers that pools the mean, as an entry of `BUILDERS`."""

    def build(images, weights):
        x = layers.Conv2D(4, 3, strides=4)(layers.Rescaling(1 / 255)(images))
        if norm:
            x = layers.BatchNormalization(momentum=0.5)(x)
        return layers.GlobalAveragePooling2D()(layers.ReLU()(x))

    return build


@pytest.fixture
def pooled(monkeypatch):
    monkeypatch.setitem(backbones.BUILDERS, "pooled", small())
    monkeypatch.setitem(backbones.BUILDERS, "no_norm", small(norm=False))


# ------------------------------------------------------------------------------------------------- GeM


@pytest.mark.parametrize("exponent", [1.5, 3, 40])
def test_gem_is_the_generalized_mean(exponent):
    maps = np.random.default_rng(0).normal(1, 2, (3, 5, 4, 6)).astype(np.float32)
    expected = (np.maximum(maps.astype(np.float64), 1e-6) ** exponent).mean(axis=(1, 2)) ** (1 / exponent)
    np.testing.assert_allclose(array(adjustments.GeM(exponent)(maps)), expected, rtol=1e-4)


def test_gem_lies_between_the_mean_and_the_maximum():
    maps = np.random.default_rng(0).random((2, 4, 4, 3), dtype=np.float32)
    first_order, third_order, high_order = (array(adjustments.GeM(p)(maps)) for p in (1, 3, 100))
    np.testing.assert_allclose(first_order, maps.mean(axis=(1, 2)), rtol=1e-5)
    assert (first_order < third_order).all()
    assert (third_order < high_order).all()
    assert (high_order < maps.max(axis=(1, 2))).all()


def test_the_gradient_of_gem_is_right_and_finite_where_all_is_0():
    import tensorflow as tf

    maps = np.random.default_rng(0).random((1, 2, 3, 1)).astype(np.float32)
    for values in (maps, np.zeros_like(maps), maps * 1e6, -maps):
        watched = tf.constant(values)
        with tf.GradientTape() as tape:
            tape.watch(watched)
            pooled = adjustments.GeM(30)(watched)
        assert np.isfinite(array(tape.gradient(pooled, watched))).all()
    watched, step = tf.constant(maps), 1e-3
    with tf.GradientTape() as tape:
        tape.watch(watched)
        pooled = adjustments.GeM(3)(watched)
    raised = maps.copy()
    raised[0, 1, 2] += step
    slope = (array(adjustments.GeM(3)(raised)) - array(pooled)).item() / step
    assert array(tape.gradient(pooled, watched))[0, 1, 2, 0] == pytest.approx(slope, rel=0.02)


def test_gem_of_half_precision_computes_in_single():
    maps = np.full((1, 4, 4, 2), 300, np.float16)  # whose cube half precision does not hold
    pooled = adjustments.GeM(3, dtype="mixed_float16")(maps)
    assert keras.backend.standardize_dtype(pooled.dtype) == "float16"
    np.testing.assert_allclose(array(pooled), 300)


def test_a_model_pools_by_gem_and_is_saved_so(pooled, tmp_path):
    model = backbones.build_model("pooled", (32, 32, 1), gem=3)
    images = some_images()
    trunk, head = gradcam.split(model)
    maps = array(trunk(images))
    expected = (np.maximum(maps, 1e-6) ** 3).mean(axis=(1, 2)) ** (1 / 3)
    np.testing.assert_allclose(array(body_of(model)(images)), expected, rtol=1e-4)
    np.testing.assert_allclose(array(head(maps)), array(model(images)), rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(read_model(tmp_path / "model.keras", "")(images)), array(model(images)))


@pytest.mark.parametrize("name", ["MobileNetV3Small", pytest.param("ConvNeXtTiny", marks=pytest.mark.slow)])
def test_gem_comes_in_the_place_of_the_last_mean(name):
    """Squeeze-and-excitations average too, and ConvNeXt normalizes what it has pooled."""
    model = backbones.build_model(name, (32, 32, 1), gem=2)
    maps = gradcam.split(model)[0](some_images())
    assert maps.shape[1:3] == (1, 1)
    expected = adjustments.GeM(2)(maps)
    if name == "ConvNeXtTiny":
        expected = keras.Model(model.get_layer("gem").output, model.get_layer("logits").input)(expected)
        np.testing.assert_allclose(array(expected).mean(axis=1), 0, atol=1e-4)
    features = array(body_of(model)(some_images()))
    np.testing.assert_allclose(features, array(expected), rtol=1e-4, atol=1e-6)


def test_what_does_not_pool_the_mean_takes_no_gem():
    with pytest.raises(
        IchError, match=r"model.gem is 3, and small_cnn does not pool the mean .* set model.gem to null"
    ):
        backbones.build_model("small_cnn", (32, 32, 1), gem=3)


# ------------------------------------------------------------------------------------------------- stochastic depth


def rows(body):
    """How many different features a training step gives of equal images: stochastic depth makes a choice for each."""
    images = np.repeat(some_images(1), 32, axis=0)
    assert len(np.unique(array(body(images)).round(4), axis=0)) == 1
    return len(np.unique(array(body(images, training=True)).round(4), axis=0))


def rates_of(body):
    return [layer.rate for layer in body.layers if isinstance(layer, layers.Dropout) and layer.noise_shape is not None]


def test_the_rates_of_an_efficientnet_are_scaled():
    """Keras's own rise to 0.2 behind the last of 21 blocks."""
    body = body_of(backbones.build_model("EfficientNetV2B0", (32, 32, 1), drop_path=0.1))
    rates = rates_of(body)
    assert len(rates) == 15  # the others have no residual
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.1 * 20 / 21)
    assert rows(body) > 1


def test_the_rate_is_that_of_the_samples_whose_branch_is_dropped(monkeypatch):
    def residual(images, weights):
        x = layers.Rescaling(1 / 255)(images)
        branch = layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(layers.Conv2D(1, 3, padding="same")(x))
        return layers.GlobalAveragePooling2D()(layers.Add()([x, branch]))

    monkeypatch.setitem(backbones.BUILDERS, "residual", residual)
    shares = {}
    for rate in (None, 0.6, 0.0):
        body = body_of(backbones.build_model("residual", (8, 8, 1), drop_path=rate))
        images = np.repeat(some_images(1, 8), 2000, axis=0)
        shares[rate] = np.isclose(array(body(images, training=True))[:, 0], images[0].mean() / 255, atol=1e-6).mean()
    assert shares[None] == pytest.approx(0.2, abs=0.04)
    assert shares[0.6] == pytest.approx(0.6, abs=0.05)
    assert shares[0.0] == 0


@pytest.mark.slow
def test_a_convnext_gets_stochastic_depth(tmp_path):
    model = backbones.build_model("ConvNeXtTiny", (32, 32, 1), drop_path=0.5)
    np.testing.assert_allclose(rates_of(model), np.linspace(0, 0.5, 18))
    plain = backbones.build_model("ConvNeXtTiny", (32, 32, 1))
    plain.set_weights(model.get_weights())
    np.testing.assert_allclose(array(model(some_images())), array(plain(some_images())), rtol=1e-4, atol=1e-6)
    for weight in model.weights:
        if weight.name == "gamma":  # so that the branches count
            weight.assign(np.ones(weight.shape))
    assert rows(body_of(model)) > 1
    model.save(tmp_path / "model.keras")
    again = read_model(tmp_path / "model.keras", "")
    np.testing.assert_array_equal(array(again(some_images())), array(model(some_images())))


def test_what_has_no_stochastic_depth_is_refused():
    with pytest.raises(
        IchError, match=r"model.drop_path is 0.0, and small_cnn has no stochastic depth; set model.drop"
    ):
        backbones.build_model("small_cnn", (32, 32, 1), drop_path=0.0)


# ------------------------------------------------------------------------------------------------- frozen normalization


def trained(model, ema=None):
    """Weights before and after two steps; statistics that are not those of the images."""
    for weight in model.weights:
        if "moving" in weight.name:
            weight.assign(weight + 0.3)
    before = {weight.path: array(weight) for weight in model.weights}
    options = {} if ema is None else {"use_ema": True, "ema_momentum": ema}
    optimizer = adamw(2, 1, learning_rate=0.1, warmup_epochs=0, weight_decay=0.1, clip_norm=1, **options)
    model.compile(optimizer, "mse")
    callbacks = [] if ema is None else [keras.callbacks.SwapEMAWeights()]
    targets = np.random.default_rng(1).random((4, 6))
    model.fit(some_images(), targets, batch_size=2, epochs=1, verbose=0, callbacks=callbacks)
    return {
        path: np.abs(array(weight) - before[path]).max() for path, weight in zip(before, model.weights, strict=True)
    }


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_frozen_normalization_neither_learns_nor_measures(pooled, ema, tmp_path):
    model = backbones.build_model("pooled", (32, 32, 1), freeze_batch_norm=True)
    (norm,) = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    moved = trained(model, ema)
    still = {weight.path for weight in norm.weights}
    assert {path for path, distance in moved.items() if distance == 0} == still
    assert len(still) == 4
    body = body_of(model)
    np.testing.assert_array_equal(array(body(some_images(), training=True)), array(body(some_images())))
    # A saved model that is trained on keeps it.
    model.save(tmp_path / "model.keras")
    again = read_model(tmp_path / "model.keras", "")
    np.testing.assert_array_equal(array(again(some_images())), array(model(some_images())))
    assert sorted(distance == 0 for distance in trained(again, ema).values()).count(True) == 4


def test_without_the_key_it_does_both(pooled):
    assert not [
        path for path, distance in trained(backbones.build_model("pooled", (32, 32, 1))).items() if not distance
    ]


def test_what_has_no_normalization_is_refused(pooled):
    with pytest.raises(IchError, match=r"model.freeze_batch_norm is true, and no_norm has no batch normalization; set"):
        backbones.build_model("no_norm", (32, 32, 1), freeze_batch_norm=True)


def test_a_first_kernel_answers_a_gray_image_with_any_channels_as_before():
    kernel = np.random.default_rng(0).random((3, 3, 3, 8))
    for channels in (1, 3, 9):
        fitted = adjustments.with_channels(kernel, channels)
        assert fitted.shape == (3, 3, channels, 8)
        np.testing.assert_allclose(fitted.sum(axis=2), kernel.sum(axis=2))
