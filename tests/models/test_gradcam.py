import keras
import numpy as np
import pytest
from keras import layers

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.models import backbones, gradcam

SOME = ("small_cnn", "MobileNetV3Small", "VGG16", "ConvNeXtTiny")  # squeeze-and-excitation, no norm, nested models


@pytest.fixture(autouse=True)
def fresh():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)


def images(n=2, size=64, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def check_split(name, size):
    model = backbones.build_model(name, (size, size, 3))
    trunk, head = gradcam.split(model)
    assert len(trunk.output.shape) == 4
    x = images(size=size)
    np.testing.assert_allclose(head(trunk(x)), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SOME)
def test_the_two_halves_are_the_model(name):
    check_split(name, 64)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in backbones.BUILDERS if name not in SOME])
def test_the_two_halves_are_any_model(name):
    check_split(name, 96)  # the least that all of them take


def test_of_mean_pooling_and_one_layer_it_is_the_weighted_sum_of_maps():
    """Then the gradient is the layer's weights (Zhou et al., arXiv:1512.04150), and can be written down."""
    inputs = keras.Input((16, 16, 3))
    maps = layers.Conv2D(5, 3, padding="same", activation="relu")(inputs)
    dense = layers.Dense(6)
    model = keras.Model(inputs, dense(layers.GlobalAveragePooling2D()(maps)))
    x = images(n=6, size=16)
    heatmaps = gradcam.heatmaps(model, x, np.arange(6))
    values = np.asarray(keras.Model(inputs, maps)(x))
    for k in range(6):
        expected = np.maximum(values[k] @ np.asarray(dense.kernel)[:, k], 0)
        np.testing.assert_allclose(heatmaps[k], expected / max(expected.max(), 1e-30), rtol=1e-4, atol=1e-5)
    assert heatmaps.dtype == np.float32


def test_the_heat_is_where_the_sign_is():
    """A network that calls bright squares: heat on the square, none where there is none to see."""
    inputs = keras.Input((32, 32, 1))
    maps = layers.AveragePooling2D(4)(layers.Rescaling(1 / 255, offset=-0.5)(inputs))
    dense = layers.Dense(1, kernel_initializer="ones")
    model = keras.Model(inputs, dense(layers.GlobalMaxPooling2D()(layers.ReLU()(maps))))
    x = np.zeros((2, 32, 32, 1), np.uint8)
    x[0, 4:12, 20:28] = 255
    heat = gradcam.heatmaps(model, x, np.zeros(2, int))
    assert heat.shape == (2, 32, 32)
    assert heat[0].max() == 1
    assert heat[0, 4:12, 20:28].min() > 0.3
    assert heat[0, 16:].max() == 0
    assert (heat[1] == 0).all()


def test_several_inputs_are_refused():
    image, age = keras.Input((16, 16, 3)), keras.Input((1,))
    features = layers.Concatenate()([layers.GlobalAveragePooling2D()(image), age])
    with pytest.raises(IchError, match="2 inputs; Grad-CAM is of models of one image"):
        gradcam.heatmaps(keras.Model([image, age], layers.Dense(6)(features)), images(size=16), np.zeros(2, int))


def test_a_model_without_maps_is_refused():
    inputs = keras.Input((7,))
    with pytest.raises(IchError, match="pools no feature maps"):
        gradcam.split(keras.Model(inputs, layers.Dense(len(LABELS))(inputs)))


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(IchError, match="by TensorFlow, and Keras runs on jax"):
        gradcam.of_all_labels(None, np.zeros((2, 4, 4, 8), np.float32))


def test_maps_of_all_labels_are_those_of_each_alone():
    """The oracle takes the gradient of one slice's one logit, as the paper writes it."""
    import tensorflow as tf

    trunk, head = gradcam.split(backbones.build_model("small_cnn", (64, 64, 3)))
    maps = np.asarray(trunk(images()))
    heatmaps = gradcam.of_all_labels(head, maps)
    assert heatmaps.shape == (2, 6, *maps.shape[1:3])
    assert heatmaps.dtype == np.float32
    for n, slice_maps in enumerate(maps):
        for k in range(6):
            watched = tf.constant(slice_maps[None])
            with tf.GradientTape() as tape:
                tape.watch(watched)
                logit = head(watched)[0, k]
            weights = np.asarray(tape.gradient(logit, watched))[0].mean(axis=(0, 1))
            np.testing.assert_allclose(heatmaps[n, k], np.maximum(slice_maps @ weights, 0), rtol=1e-4, atol=1e-6)
