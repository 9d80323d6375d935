"""The scan model, untrained, on windows of small random images."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

from ich.errors import IchError
from ich.models import backbones, gradcam, scan
from ich.models.losses import LabelAUC, SliceHeadLoss, WeightedLogLoss, build_loss
from ich.training import inference

N = 5
SHAPE = (32, 32, 2)
BUILD = partial(backbones.build_model, "small_cnn", dropout=0.1)
KINDS = pytest.mark.parametrize("kind", scan.KINDS)


def build(kind="gru", **options):
    keras.utils.set_random_seed(0)
    model = scan.build_scan_model(BUILD, N, SHAPE, kind, units=8, **options)
    last = model.get_layer("logits")  # zeros before the training would hide all that it reads
    last.kernel.assign(np.random.default_rng(0).normal(size=last.kernel.shape))
    return model


def windows(real=(5, 3, 1)):
    rng = np.random.default_rng(1)
    mask = (np.arange(N) < np.array(real)[:, None]).astype(np.float32)
    z = np.cumsum(rng.uniform(1, 9, (len(real), N)), axis=1).astype(np.float32)
    return {"image": rng.integers(0, 256, (len(real), N, *SHAPE), dtype=np.uint8), "mask": mask, "z": z - z[:, :1]}


def labels(x):
    return np.random.default_rng(2).integers(0, 2, (*x["mask"].shape, 6)).astype(np.float32)


def predict(model, x):
    return model.predict(x, verbose=0)


@KINDS
def test_what_stands_in_place_of_padding_reaches_nothing(kind):
    model, x = build(kind), windows()
    real = x["mask"] > 0
    other = {name: array.copy() for name, array in x.items()}
    other["image"][~real], other["z"][~real] = 99, 1e4
    assert (predict(model, x)[real] == predict(model, other)[real]).all()

    def gradients(x):
        import tensorflow as tf

        trained = scan.with_slice_head(model)
        loss = SliceHeadLoss(build_loss("weighted_bce"), 0.5)
        with tf.GradientTape() as tape:  # batch normalization in training mode too
            value = loss(labels(windows()), trained(x, training=True), sample_weight=x["mask"])
        return [np.asarray(tf.convert_to_tensor(g)) for g in tape.gradient(value, trained.trainable_variables)]

    for dropout in (layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dropout)):
        dropout.rate = 0
    for first, second in zip(gradients(x), gradients(other), strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)


@KINDS
def test_a_shorter_window_is_predicted_as_without_its_padding(kind):
    model, x = build(kind), windows((3,))
    short = scan.build_scan_model(BUILD, 3, SHAPE, kind, units=8)
    short.set_weights(model.get_weights())
    cut = {name: array[:, :3] for name, array in x.items()}
    np.testing.assert_allclose(predict(model, x)[:, :3], predict(short, cut), atol=1e-5)


@KINDS
def test_each_slice_sees_the_others_and_their_distances(kind):
    model, x = build(kind), windows((5,))
    before = predict(model, x)
    for change in ("image", "z"):
        other = {name: array.copy() for name, array in x.items()}
        other[change][:, 4] += np.array(60, other[change].dtype)
        assert (np.abs(predict(model, other) - before) > 1e-6).any(axis=-1)[0, :4].any()


@KINDS
def test_before_training_it_is_the_slice_classifier(kind):
    model, x = scan.build_scan_model(BUILD, N, SHAPE, kind, units=8), windows((5,))
    of_slices = predict(scan.slice_model(model), x["image"][0])
    np.testing.assert_allclose(predict(model, x)[0], of_slices, atol=1e-6)
    both = predict(scan.with_slice_head(model), x)
    np.testing.assert_allclose(both[0, :, 6:], of_slices, atol=1e-6)


@KINDS
def test_saved_and_loaded_in_safe_mode_it_predicts_the_same(kind, tmp_path):
    trained = scan.with_slice_head(build(kind))
    path = tmp_path / "model.keras"
    scan.without_slice_head(trained).save(path)
    loaded, x = inference.read_model(Path(path), ""), windows()
    assert (predict(loaded, x) == predict(trained, x)[..., :6]).all()
    assert scan.is_scan_model(loaded)
    assert (scan.image_shape(loaded), scan.slices_of(loaded)) == (SHAPE, N)
    logits, embeddings = backbones.with_features(loaded).outputs
    assert (logits.shape, embeddings.shape[:2]) == ((None, N, 6), (None, N))
    heat = gradcam.heatmaps(scan.slice_model(loaded), x["image"][0], np.zeros(N, int))
    assert heat.shape == (N, *SHAPE[:2])


def test_a_slice_classifier_is_none():
    model = BUILD(SHAPE)
    assert not scan.is_scan_model(model)
    assert scan.slice_model(model) is model is scan.without_slice_head(model)
    assert (scan.image_shape(model), scan.slices_of(model)) == (SHAPE, None)


@pytest.mark.parametrize("loss", ["weighted_bce", "focal"])
def test_the_loss_is_the_mean_over_slices_of_both_heads(loss):
    x = windows()
    real, y = x["mask"] > 0, labels(x)
    outputs = np.random.default_rng(3).normal(size=(*y.shape[:2], 12)).astype(np.float32)
    single = build_loss(loss)
    expected = [single.call(y[real], outputs[real][:, part]) for part in (slice(6), slice(6, 12))]
    given = SliceHeadLoss(build_loss(loss), 0.5)(y, outputs, sample_weight=x["mask"])
    np.testing.assert_allclose(given, np.mean(expected[0]) + 0.5 * np.mean(expected[1]), rtol=1e-5)


def test_metrics_are_of_real_slices_and_the_scans_logits():
    x = windows()
    real, y = x["mask"] > 0, labels(x)
    outputs = np.random.default_rng(3).normal(size=(*y.shape[:2], 12)).astype(np.float32)
    for metric in (WeightedLogLoss(), LabelAUC("any")):
        metric.update_state(y, outputs, sample_weight=x["mask"])
        whole = float(metric.result())
        metric.reset_state()
        metric.update_state(y[real], outputs[real][:, :6])
        np.testing.assert_allclose(whole, float(metric.result()), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lstm"}, "no scan model is called 'lstm'; there are gru"),
        ({"kind": "attention", "units": 6}, "units is 6, expected a multiple of 4"),
        ({"remat": True}, "model.scan.remat does not work with TensorFlow"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(IchError, match=message):
        scan.build_scan_model(BUILD, N, SHAPE, **options)


def test_the_backbone_is_that_of_the_slice_classifier():
    alone = BUILD(SHAPE)
    model = scan.with_slice_head(build())
    for whole in (alone, model):
        weights = [weight for layer in scan.backbone(whole) for weight in layer.weights]
        assert len(weights) == len(alone.weights) - 2
        assert {id(weight) for weight in weights} < {id(weight) for weight in whole.weights}


def test_a_frozen_backbone_learns_nothing_and_is_as_before_afterwards():
    model = build()
    layer = next(part for part in scan.backbone(model) if part.weights)
    layer.trainable = False  # as asked for elsewhere
    before = [weight.trainable for weight in model.weights]
    with scan.frozen_backbone(model):
        backbone = {id(weight) for each in scan.backbone(model) for weight in each.weights}
        assert not any(id(weight) in backbone for weight in model.trainable_weights)
        assert len(model.trainable_weights) > 2
    assert [weight.trainable for weight in model.weights] == before
    assert not layer.trainable
