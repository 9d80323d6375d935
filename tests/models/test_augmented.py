"""Of one backend of Keras, that of the process; the last test but one runs the others on all backends."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import json
import subprocess
import sys
from importlib.util import find_spec

import cv2
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data import augment, mixing
from ich.data.affine_draw import IDENTITY, AffineDraw
from ich.errors import IchError
from ich.models import augmented

HEIGHT, WIDTH, CHANNELS = 37, 46, 3
FLIP = np.array([-1, 0, WIDTH - 1, 0, 1, 0, 1, 0], np.float32)
DRAW = AffineDraw(augment.pipeline("heavy", HEIGHT, WIDTH))


def noise(*lead, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*lead, HEIGHT, WIDTH, CHANNELS), dtype=np.uint8)


def warped(images, draws):
    return keras.ops.convert_to_numpy(augmented.warp(keras.ops.convert_to_tensor(images), np.asarray(draws)))


def slowly(image, draw):
    """The same of one image, in float64, pixel by pixel of four corners."""
    draw, warped_image = draw.astype(np.float64), np.zeros(image.shape)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            x, y = (draw[k] * column + draw[k + 1] * row + draw[k + 2] for k in (0, 3))
            for at_x in (int(np.floor(x)), int(np.floor(x)) + 1):
                for at_y in (int(np.floor(y)), int(np.floor(y)) + 1):
                    if 0 <= at_x < image.shape[1] and 0 <= at_y < image.shape[0]:
                        warped_image[row, column] += (1 - abs(x - at_x)) * (1 - abs(y - at_y)) * image[at_y, at_x]
    return np.clip(warped_image * draw[6] + draw[7], 0, 255)


def test_noise_is_interpolated_as_by_a_loop_over_pixels():
    images = noise(5)
    draws = [DRAW(images[0], seed) for seed in range(10**30, 10**30 + 5)]
    actual = warped(images, draws)
    assert actual.dtype == np.float32
    for image, draw, result in zip(images, draws, actual, strict=True):
        np.testing.assert_allclose(result, slowly(image, draw), atol=0.05)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**128 - 1), move=st.tuples(*[st.floats(-60, 60, width=32)] * 2))
def test_opencv_gives_the_same_to_one_gray_level(seed, move):
    """cv2.remap takes maps in float32 and rounds them to 1/32 pixel: of a smooth image, that is below a gray level."""
    image = np.zeros((HEIGHT, WIDTH, CHANNELS), np.float32)  # black at its edge, which OpenCV blends with 0 as well
    image[6:-6, 6:-6] = 255
    image = cv2.GaussianBlur(image, (0, 0), 3).round()
    draw = DRAW(image.astype(np.uint8), seed)
    draw[[2, 5]] += move
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    maps = draw[0] * x + draw[1] * y + draw[2], draw[3] * x + draw[4] * y + draw[5]
    expected = np.clip(cv2.remap(image, *maps, cv2.INTER_LINEAR, borderValue=0) * draw[6] + draw[7], 0, 255)
    assert np.abs(warped(image.astype(np.uint8)[None], draw[None])[0] - expected).max() < 1


def test_the_identity_and_a_flip_are_exact():
    images = noise(3)
    np.testing.assert_array_equal(warped(images, [IDENTITY] * 3), images)
    np.testing.assert_array_equal(warped(images, [FLIP] * 3), images[:, :, ::-1])
    np.testing.assert_array_equal(warped(images, [IDENTITY, FLIP, IDENTITY])[1], images[1, :, ::-1])


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("scan", [(), (4,)])
def test_files_are_joined_by_their_channels(scan, files):
    images = noise(2, *scan, files)
    expected = np.concatenate([images[..., file, :, :, :] for file in range(files)], axis=-1)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(augmented.join(images)), expected)
    image = keras.Input((*scan, HEIGHT, WIDTH, files * CHANNELS), name="image")
    same = augmented.with_augmentation(keras.Model(image, keras.layers.Activation("linear")(image)))
    predicted = same.predict({"unaugmented": images, "augment": np.stack([IDENTITY, FLIP])}, verbose=0)
    np.testing.assert_array_equal(predicted[0], expected[0])
    np.testing.assert_array_equal(predicted[1], expected[1, ..., ::-1, :])


def test_slices_of_a_scan_are_warped_as_images():
    scans = noise(2, 4)
    draws = [DRAW(scans[0, 0], seed) for seed in (5, 6)]
    actual = warped(scans, draws)
    assert actual.shape == scans.shape
    for scan, draw, result in zip(scans, draws, actual, strict=True):
        np.testing.assert_allclose(result, warped(scan, [draw] * 4), atol=1e-3)


@pytest.mark.parametrize("way", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "share": 0.5}], ids=str)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("slices", [None, 3])
def test_the_model_mixes_what_the_cpu_mixes(way, parts, slices):
    """The CPU rounds to gray levels. Of two devices, each mixes the half that it gets."""
    lead = (8,) if slices is None else (8, slices)
    images = noise(*lead)
    labels = np.random.default_rng(1).uniform(size=(*lead, 6)).astype(np.float32)
    weights = None if slices is None else np.random.default_rng(2).integers(0, 2, lead).astype(np.float32)
    mix = mixing.Mix(**way, parts=parts)
    mixes = set()
    for seed in range(6):
        expected = mix(images.copy(), labels, weights, np.random.default_rng(seed))
        x = {"image": images[..., None, :, :, :]}
        batch = (x, labels) if weights is None else (x, labels, weights)
        x, *rest = mixing.draw_for_model(batch, mix, np.random.default_rng(seed))
        for actual, reference in zip(rest, expected[1:], strict=False):
            np.testing.assert_array_equal(actual, reference)
        halves = np.split(images.astype(np.float32), parts), np.split(x["mix"], parts)
        is_mixed = (expected[0] != images).any()
        if is_mixed:
            mixture = np.concatenate(
                [keras.ops.convert_to_numpy(augmented.mix(*half)) for half in zip(*halves, strict=True)]
            )
            np.testing.assert_allclose(mixture, expected[0], atol=0.51)
        else:
            np.testing.assert_allclose(keras.ops.convert_to_numpy(augmented.mix(images.astype("f4"), x["mix"])), images)
        mixes.add(bool(is_mixed))
    assert mixes == ({True, False} if "share" in way else {True})


def test_a_batch_shared_by_more_devices_than_it_was_drawn_for_is_no_number():
    images = noise(8).astype(np.float32)
    batch = {"image": images[:, None]}, np.eye(8, 6)
    x, _ = mixing.draw_for_model(batch, mixing.Mix(mixup=1.0), np.random.default_rng(0))
    assert np.isnan(keras.ops.convert_to_numpy(augmented.mix(images[:4], x["mix"][:4]))).all()


def small(inputs=None, name="image"):
    image = keras.Input((HEIGHT, WIDTH, CHANNELS), name=name)
    x = keras.layers.Conv2D(2, 3)(image / 255)
    x = keras.layers.Dense(6, dtype="float32")(keras.layers.Flatten()(x))
    return keras.Model(image if inputs is None else {name: image}, x, name="small")


@pytest.mark.parametrize("inputs", [None, dict])
def test_batches_without_draws_are_the_models_own_and_it_is_saved_without(tmp_path, inputs):
    model = small(inputs)
    training = augmented.with_augmentation(model)
    images, draws = noise(2), np.stack([FLIP, IDENTITY])
    own = {"image": images} if inputs else images
    np.testing.assert_array_equal(training.predict(own, verbose=0), model.predict(own, verbose=0))
    by_hand = warped(images, draws)
    np.testing.assert_allclose(
        training.predict({"unaugmented": images[:, None], "augment": draws}, verbose=0),
        model.predict({"image": by_hand} if inputs else by_hand, verbose=0),
        atol=1e-5,
    )
    losses = []
    for network, x in (
        (training, {"unaugmented": images[:, None], "augment": draws}),
        (model, {"image": by_hand} if inputs else by_hand),
    ):
        network.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
        losses.append(network.train_on_batch(x, np.eye(2, 6)))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert [weight is original for weight, original in zip(training.weights, model.weights, strict=True)] == [True] * 4
    plain = augmented.without_augmentation(training)
    assert augmented.without_augmentation(model) is model
    assert plain.get_config() == model.get_config()
    plain.save(tmp_path / "model.keras")
    saved = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(saved.predict(own, verbose=0), model.predict(own, verbose=0), atol=1e-5)


@pytest.mark.parametrize("inputs", [None, dict])
def test_a_model_that_does_not_augment_lacks_its_input(inputs):
    with pytest.raises(ValueError, match=r'Missing data for input "?image"?|structure of `?inputs'):
        small(inputs).predict({"unaugmented": noise(2, 1), "augment": np.stack([FLIP] * 2)}, verbose=0)


def test_all_outputs_are_kept_in_their_structure_and_a_checkpoint_is_loaded(tmp_path):
    image = keras.Input((HEIGHT, WIDTH, CHANNELS), name="image")
    mean = keras.layers.GlobalAveragePooling2D()(image)
    training = augmented.with_augmentation(keras.Model(image, {"mean": mean, "largest": keras.ops.max(mean, axis=-1)}))
    batch = {"unaugmented": noise(2, 1), "augment": np.stack([FLIP, IDENTITY])}
    expected = training.predict(batch, verbose=0)
    assert set(expected) == {"mean", "largest"}
    assert set(augmented.without_augmentation(training).output) == {"mean", "largest"}
    training.save(tmp_path / "checkpoint.keras")
    again = keras.saving.load_model(tmp_path / "checkpoint.keras").predict(batch, verbose=0)
    np.testing.assert_allclose(again["mean"], expected["mean"], rtol=1e-5)


def test_a_sequential_model_augments_and_others_are_refused():
    layers = [keras.Input((HEIGHT, WIDTH, CHANNELS)), keras.layers.GlobalAveragePooling2D()]
    images, draws = noise(2), np.stack([FLIP, DRAW(noise(), 3)])
    training = augmented.with_augmentation(keras.Sequential(layers))
    predicted = training.predict({"unaugmented": images[:, None], "augment": draws}, verbose=0)
    np.testing.assert_allclose(predicted, warped(images, draws).mean(axis=(1, 2)), rtol=1e-4)

    class Own(keras.Model):
        pass

    functional = small()
    with pytest.raises(IchError, match="is a Own, expected a functional or a built sequential one"):
        augmented.with_augmentation(Own(functional.input, functional.output))
    with pytest.raises(IchError, match="has the inputs x; call that of the images image"):
        augmented.with_augmentation(small(dict, "x"))


def test_padding_of_scans_stays_black():
    image, mask = keras.Input((2, HEIGHT, WIDTH, CHANNELS), name="image"), keras.Input((2,), name="mask")
    largest = keras.layers.Lambda(lambda x: keras.ops.max(x, axis=(2, 3, 4)))(image)
    training = augmented.with_augmentation(keras.Model({"image": image, "mask": mask}, largest))
    brighter = IDENTITY + np.array([0, 0, 0, 0, 0, 0, 0, 30], np.float32)
    scans = np.zeros((1, 2, HEIGHT, WIDTH, CHANNELS), np.uint8)
    batch = {"unaugmented": scans[:, :, None], "augment": brighter[None], "mask": np.array([[1.0, 0.0]], np.float32)}
    np.testing.assert_array_equal(training.predict(batch, verbose=0), [[30, 0]])


@pytest.mark.parametrize("compile_it", [False, True])
def test_half_precision_keeps_the_coordinates(compile_it):
    """At 300 pixels half precision distinguishes quarters of a pixel; a move by 0.4 of one is not one by 0.5."""
    if compile_it and keras.backend.backend() == "torch":
        pytest.skip("what compiles for PyTorch takes minutes")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        image = keras.Input((8, 320, 1), name="image")
        model = augmented.with_augmentation(keras.Model(image, keras.layers.Activation("linear")(image)))
        model.compile(jit_compile=compile_it)
        ramp = np.tile((np.arange(320) % 2 * 200).astype(np.uint8)[None, None, :, None], (1, 8, 1, 1))
        draw = IDENTITY.copy()
        draw[2] = 0.1
        predicted = model.predict({"unaugmented": ramp[:, None], "augment": draw[None]}, verbose=0).astype(np.float64)
        np.testing.assert_allclose(predicted[0, 0, 200:300, 0], np.where(np.arange(200, 300) % 2, 180, 20), atol=0.3)
        assert predicted.dtype == np.float64
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.backends
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend(backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-m", "not backends and not slow"]
    done = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": backend}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


TWO_DEVICES = """
import json, sys
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from ich.data import mixing
from ich.data.affine_draw import IDENTITY
from ich.models import augmented, devices
results = {}
images = np.random.default_rng(0).integers(0, 256, (8, 20, 24, 1), dtype=np.uint8)
draws, labels = np.tile(IDENTITY, (8, 1)), np.eye(8, 6, dtype=np.float32)
for parts in (1, 2):
    mix = mixing.Mix(mixup=1.0, parts=parts)
    batch = {"image": images[:, None], "augment": draws}, labels
    x, _ = mixing.draw_for_model(batch, mix, np.random.default_rng(0))
    with devices.mirrored(all=8).scope():
        image = keras.Input((20, 24, 1), name="image")
        model = augmented.with_augmentation(keras.Model(image, keras.layers.GlobalAveragePooling2D()(image)))
    x["unaugmented"] = x.pop("image")
    results[parts] = model.predict(x, batch_size=8, verbose=0)[:, 0].tolist()
    expected, _, _ = mix(images.copy(), labels, None, np.random.default_rng(0))
    results["expected"] = expected.mean(axis=(1, 2, 3)).tolist()
    results["replicas"] = devices.replicas(model)
print(json.dumps(results))
"""


@pytest.mark.slow
def test_two_devices_each_mix_their_own_part():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow alone shares batches")
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["replicas"] == 2
    np.testing.assert_allclose(results["2"], results["expected"], atol=0.1)
    assert np.isnan(results["1"]).all()
