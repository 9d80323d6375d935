import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import importlib

import keras
import numpy as np
import pytest

from ich.errors import IchError
from ich.models import backbones

# A small member of each family that builds in a few seconds, the module with its preprocess_input, and its least size.
FAMILIES = {
    "ConvNeXtTiny": ("convnext", 32),
    "DenseNet121": ("densenet", 32),
    "EfficientNetB0": ("efficientnet", 32),
    "EfficientNetV2B0": ("efficientnet_v2", 32),
    "InceptionV3": ("inception_v3", 75),
    "MobileNet": ("mobilenet", 32),
    "MobileNetV2": ("mobilenet_v2", 32),
    "MobileNetV3Small": ("mobilenet_v3", 32),
    "ResNet50": ("resnet", 32),
    "ResNet50V2": ("resnet_v2", 32),
    "VGG16": ("vgg16", 32),
    "Xception": ("xception", 71),
}
OTHERS = [name for name in backbones.BUILDERS if name not in FAMILIES and name != "small_cnn"]
BY_DEFAULT = ["EfficientNetB0", "MobileNet"]  # the quickest of those that scale inside the model, and before it
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in [*FAMILIES, *OTHERS] if name not in BY_DEFAULT]

pytestmark = [
    # Keras remarks on files that lack groups for layers without weights.
    pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning"),
    pytest.mark.filterwarnings("ignore:`input_shape` is undefined or non-square:UserWarning"),
]


@pytest.fixture(autouse=True)
def _forget_models():
    yield
    keras.backend.clear_session()


def some_images(size=32, channels=3, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def gray_images(size=32, channels=3):
    return np.repeat(some_images(size, 1), channels, axis=-1)


def call(model, images):
    return keras.ops.convert_to_numpy(model(images))


def features(model):
    """The part of a classifier before its head."""
    return keras.Model(model.input, model.get_layer("logits").input)


def distance(actual, reference):
    return np.linalg.norm(actual - reference) / np.linalg.norm(reference)


# ------------------------------------------------------------------------------------------------- every entry


def test_every_model_of_keras_is_there():
    theirs = {name for name in dir(keras.applications) if callable(getattr(keras.applications, name))}
    assert set(backbones.BUILDERS) == theirs | {"small_cnn"}


@pytest.mark.parametrize("name", [*BY_DEFAULT, *SLOW])
def test_nine_channels_of_eight_bits_to_six_logits(name):
    size = FAMILIES.get(name, ("", 80))[1]
    model = backbones.build_model(name, (size, size, 9), dropout=0.5)
    logits = call(model, some_images(size, 9))
    assert logits.shape == (2, 6)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert model.name == name
    if name in FAMILIES:
        check_scaling(model.layers[1], *FAMILIES[name])


def check_scaling(first_layer, module, size):
    """Against `preprocess_input` on gray images; its colors have means of their own, ours takes their average."""
    gray = gray_images(size).astype(np.float32)
    theirs = importlib.import_module(f"keras.applications.{module}").preprocess_input(gray.copy())
    if not np.array_equal(theirs, gray):  # else the family scales inside the model: features are compared below
        ours = call(first_layer, gray[..., :1])
        np.testing.assert_allclose(ours, theirs.mean(axis=-1, keepdims=True), atol=0.01 * np.abs(theirs).max())


class FirstLayer(Exception):
    """Ends the building of a network."""


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "EfficientNetB0"])
def test_images_are_scaled_as_the_family_does(name, monkeypatch):
    """By the first layer alone: the network behind it takes seconds to build."""
    rescaling = keras.layers.Rescaling

    def stop(*args, **options):
        raise FirstLayer(rescaling(*args, **options))

    monkeypatch.setattr(backbones.layers, "Rescaling", stop)
    module, size = FAMILIES[name]
    with pytest.raises(FirstLayer) as caught:
        backbones.BUILDERS[name](keras.Input((size, size, 9)), None)
    check_scaling(caught.value.args[0], module, size)


# ------------------------------------------------------------------------------------------------- small_cnn


@pytest.mark.parametrize("channels", [1, 3, 9])
def test_small_cnn_is_small_and_takes_any_channels(channels):
    model = backbones.build_model("small_cnn", (48, 40, channels))
    assert call(model, np.zeros((2, 48, 40, channels), np.uint8)).shape == (2, 6)
    assert 100_000 < model.count_params() < 300_000


def test_all_dtypes_of_the_same_images_give_the_same():
    model = backbones.build_model("small_cnn", (32, 32, 1))
    images = some_images(channels=1)
    expected = model.predict(images, verbose=0)
    for dtype in (np.int16, np.float32, np.float64):
        np.testing.assert_array_equal(model.predict(images.astype(dtype), verbose=0), expected)


def test_dropout_drops_in_training_alone():
    model = backbones.build_model("small_cnn", (32, 32, 1), dropout=0.9)
    images = some_images(channels=1)
    first, second = (keras.ops.convert_to_numpy(features(model)(images, training=True)) for _ in range(2))
    assert not np.array_equal(first, second)
    assert (first == 0).mean() > 0.5
    np.testing.assert_array_equal(call(model, images), call(model, images))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_logits_are_float32_under_mixed_precision(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = backbones.build_model("small_cnn", (32, 32, 3))
    finally:
        keras.config.set_dtype_policy(before)
    assert features(model).output.dtype == policy.removeprefix("mixed_")
    logits = call(model, some_images())
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


# ------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize(
    "name",
    ["small_cnn", "ConvNeXtTiny", *[pytest.param(n, marks=pytest.mark.slow) for n in ("MobileNetV3Small", "VGG16")]],
)
def test_loaded_in_safe_mode_it_predicts_the_same_and_gives_its_features_too(name, tmp_path, monkeypatch):
    # ConvNeXt's layers are Keras's own for it; its 28 million weights take seconds to draw, to save and to load.
    sizes = {"depths": [1] * 4, "projection_dims": [8] * 4}
    convnext = importlib.import_module("keras.src.applications.convnext")
    monkeypatch.setitem(convnext.MODEL_CONFIGS, "tiny", convnext.MODEL_CONFIGS["tiny"] | sizes)
    model = backbones.build_model(name, (32, 32, 2), dropout=0.5)
    logits, features = (
        keras.ops.convert_to_numpy(tensor) for tensor in backbones.with_features(model)(some_images(channels=2))
    )
    np.testing.assert_allclose(logits, call(model, some_images(channels=2)), rtol=1e-5, atol=1e-6)
    kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in model.get_layer("logits").weights)
    np.testing.assert_allclose(features @ kernel + bias, logits, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(call(again, some_images(channels=2)), call(model, some_images(channels=2)))


def test_features_are_the_mean_of_the_last_maps():
    model = backbones.build_model("VGG16", (64, 64, 3))
    maps = keras.Model(model.input, model.get_layer("block5_pool").output)
    _, features = backbones.with_features(model)(some_images(64))
    np.testing.assert_allclose(features, call(maps, some_images(64)).mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OTHERS)
def test_any_model_tells_its_features(name):
    model = backbones.build_model(name, (96, 96, 1))  # the least that all of them take
    logits, features = backbones.with_features(model).outputs
    assert logits.shape == (None, 6)
    assert features.shape == model.get_layer("logits").input.shape


def test_a_model_of_another_kind_tells_none():
    image = keras.Input((8, 8, 1))
    with pytest.raises(IchError, match="has no layer called logits that reads pooled features"):
        backbones.with_features(keras.Model(image, keras.layers.Dense(6)(keras.layers.Flatten()(image))))
    with pytest.raises(IchError, match="has no layer called logits that reads pooled features"):
        backbones.with_features(keras.Model(image, keras.layers.Dense(6, name="logits")(image)))


# ------------------------------------------------------------------------------------------------- weights


def test_weights_of_small_cnn_from_a_file(tmp_path):
    path = tmp_path / "small.weights.h5"
    donor = backbones.build_model("small_cnn", (32, 32, 2))
    features(donor).save_weights(path)
    model = backbones.build_model("small_cnn", (32, 32, 2), weights=path)
    images = some_images(channels=2)
    np.testing.assert_array_equal(call(features(model), images), call(features(donor), images))
    larger = backbones.build_model("small_cnn", (64, 48, 2), weights=path)
    for weight, expected in zip(features(larger).weights, features(donor).weights, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize(
    "name",
    [
        "MobileNet",
        *[pytest.param(name, marks=pytest.mark.slow) for name in ("MobileNetV2", "EfficientNetV2B0", "Xception")],
        *[pytest.param(name, marks=pytest.mark.slow) for name in ("DenseNet121", "ResNet50", "ConvNeXtTiny")],
        pytest.param("MobileNetV3Small", marks=pytest.mark.slow),
    ],
)
def test_a_file_of_a_backbones_weights_means_the_same_on_gray_images(name, channels, tmp_path):
    """Against the model that keras.applications builds from the file, with that family's own preprocessing."""
    module, size = FAMILIES[name]
    build = getattr(keras.applications, name)
    theirs = build(include_top=False, weights=None, pooling="avg", input_shape=(size, size, 3))
    theirs.save_weights(tmp_path / "backbone.weights.h5")
    gray = gray_images(size).astype(np.float32)
    preprocess = importlib.import_module(f"keras.applications.{module}").preprocess_input
    expected = call(theirs, preprocess(gray.copy()))
    ours = backbones.build_model(name, (size, size, channels), weights=str(tmp_path / "backbone.weights.h5"))
    assert distance(call(features(ours), gray_images(size, channels)), expected) < 0.2


@pytest.fixture
def published_efficientnet(tmp_path, monkeypatch):
    """A file of weights like those of EfficientNetB0, with its first three blocks alone, as the published one.

    Input scaling, which is what differs from Keras's network, is before all blocks.
    """
    blocks = importlib.import_module("keras.src.applications.efficientnet").DEFAULT_BLOCKS_ARGS
    monkeypatch.setattr("keras.src.applications.efficientnet.DEFAULT_BLOCKS_ARGS", blocks[:2])
    build = keras.applications.EfficientNetB0
    donor = build(include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3))
    (normalization,) = [layer for layer in donor.layers if isinstance(layer, keras.layers.Normalization)]
    # One mean and deviation for all colors, so that nothing but the roots of three deviations differs from ours.
    normalization.adapt_mean.assign([0.449] * 3)
    normalization.adapt_variance.assign([0.226**2] * 3)
    path = tmp_path / "efficientnet.weights.h5"
    donor.save_weights(path)
    asked = []

    def get_file(*args, **kwargs):
        asked.append(args)
        return str(path)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    return path, asked


@pytest.mark.parametrize("channels", [1, *[pytest.param(channels, marks=pytest.mark.slow) for channels in (3, 9)]])
def test_imagenet_weights_of_efficientnet_mean_the_same_on_gray_images(published_efficientnet, channels, tmp_path):
    path, asked = published_efficientnet
    theirs = keras.applications.EfficientNetB0(
        include_top=False, weights="imagenet", pooling="avg", input_shape=(32, 32, 3)
    )
    expected = call(theirs, gray_images().astype(np.float32))
    gray = gray_images(channels=channels)
    ours = backbones.build_model("EfficientNetB0", (32, 32, channels), weights="imagenet")
    assert len(asked) == 2
    assert distance(call(features(ours), gray), expected) < 0.02
    # The same weights as a file, which Keras itself would read without the factor.
    from_file = backbones.build_model("EfficientNetB0", (32, 32, channels), weights=path)
    np.testing.assert_allclose(call(features(from_file), gray), call(features(ours), gray), rtol=1e-5)
    if channels > 1:
        return
    # The normalization computes with copies of its weights: saving and loading makes them anew.
    ours.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(call(again, gray), call(ours, gray))


def test_every_weight_of_the_file_arrives(tmp_path):
    donor = keras.applications.MobileNet(include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3))
    for weight in donor.weights:
        weight.assign(np.random.default_rng(len(weight.shape)).random(weight.shape) + 0.5)
    donor.save_weights(tmp_path / "a.weights.h5")
    model = backbones.build_model("MobileNet", (32, 32, 3), weights=str(tmp_path / "a.weights.h5"))
    ours = features(model).weights
    assert len(ours) == len(donor.weights)
    for own, expected in zip(ours, donor.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(own), keras.ops.convert_to_numpy(expected))


# ------------------------------------------------------------------------------------------------- what is refused


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(IchError, match=r"no model is called 'ResNet51'; there are small_cnn, ConvNeXtTiny, .*Xception"):
        backbones.build_model("ResNet51", (32, 32, 3))


def test_small_cnn_has_no_imagenet_weights():
    with pytest.raises(IchError, match=r"small_cnn has no ImageNet weights; set model.weights to null"):
        backbones.build_model("small_cnn", (32, 32, 3), weights="imagenet")


def test_weights_that_are_no_file_are_refused(tmp_path):
    with pytest.raises(IchError, match=r"model weights .*no.h5 are no file; expected imagenet, null, or the path"):
        backbones.build_model("small_cnn", (32, 32, 3), weights=tmp_path / "no.h5")


@pytest.mark.parametrize("name", ["small_cnn", "MobileNet"])
def test_weights_that_do_not_fit_are_refused(name, tmp_path):
    other = backbones.build_model("small_cnn", (32, 32, 7))
    features(other).save_weights(tmp_path / "a.weights.h5")
    (tmp_path / "b.weights.h5").write_bytes(b"junk")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(IchError, match=rf"{name} cannot be built for images of shape \(32, 32, 3\) with weights"):
            backbones.build_model(name, (32, 32, 3), weights=path)


def test_an_image_too_small_is_refused():
    with pytest.raises(IchError, match=r"InceptionV3 cannot be built for images of shape \(32, 32, 3\)"):
        backbones.build_model("InceptionV3", (32, 32, 3))


def test_without_network_it_says_what_to_do(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", refuse)
    with pytest.raises(IchError, match=r"no route to host. Without network, download the weights elsewhere and set"):
        backbones.build_model("MobileNet", (32, 32, 3), weights="imagenet")
