"""The scan model: a slice classifier on each slice of a window, and layers over the window, trained end to end.

As in the RSNA challenges from 2022 on: a 2.5-D network with a recurrent or attention layer over the slices (the 1st
place of 2023, abdominal trauma), and in the best published score of this challenge (arXiv:2205.07556).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import keras
import numpy as np
from keras import layers, ops

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.models import adjustments, backbones, devices

SLICE_MODEL = "slice_model"
"""Name of the layer that is a whole slice classifier."""

_BOTH_HEADS = "scan_and_slice_logits"
_GAP = 10.0  # mm that count as 1: the order of a slice distance
_SHORTEST, _LONGEST = 4.0, 800.0  # wavelengths of positions in mm: below a slice distance, above a head
_HEADS = 4


@keras.saving.register_keras_serializable("ich")
class FoldSlices(layers.Layer):
    """Make a batch of slices of a batch of windows: (batch, n, …) to (batch · n, …).

    Padding is replaced by the window's first slice, so that its pixels never reach a batch normalization.
    """

    def call(self, images, mask):
        shown = ops.reshape(mask, (-1, mask.shape[1], *[1] * (len(images.shape) - 2))) > 0
        return ops.reshape(ops.where(shown, images, images[:, :1]), (-1, *images.shape[2:]))

    def compute_output_spec(self, images, mask):
        return keras.KerasTensor((None, *images.shape[2:]), self.compute_dtype)


@keras.saving.register_keras_serializable("ich")
class UnfoldSlices(layers.Layer):
    """Invert `FoldSlices` for features of slices: (batch · n, f) to float32 (batch, n, f)."""

    def __init__(self, slices: int, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.slices = slices

    def call(self, x):
        return ops.reshape(x, (-1, self.slices, x.shape[-1]))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, self.slices, x.shape[-1]), self.compute_dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "slices": self.slices}


@keras.saving.register_keras_serializable("ich")
class NeighborDifferences(layers.Layer):
    """Concatenate features with their differences from both neighbors in the window, and with the distances.

    Call:
        x: features, (batch, n, f). z: mm, (batch, n). mask: (batch, n), 1 for slices and 0 for padding behind them.
        Returns (batch, n, 3 f + 2); a neighbor beyond the window differs in nothing and is 0 mm away.
    """

    def call(self, x, z, mask):
        z = z[..., None] / _GAP
        both = ops.concatenate([x, z], axis=-1)
        before = both - ops.concatenate([both[:, :1], both[:, :-1]], axis=1)
        after = ops.concatenate([both[:, 1:], both[:, -1:]], axis=1) - both
        has_next = ops.concatenate([mask[:, 1:], mask[:, :1] * 0], axis=1)[..., None]
        return ops.concatenate([x, before, after * has_next], axis=-1)

    def compute_output_spec(self, x, z, mask):
        return keras.KerasTensor((*x.shape[:-1], 3 * x.shape[-1] + 2), self.compute_dtype)


@keras.saving.register_keras_serializable("ich")
class PositionsInMillimeters(layers.Layer):
    """Add sines and cosines of positions in mm to features, the positional encoding of Vaswani et al., 2017.

    Call:
        x: (batch, n, f), f even. z: mm, (batch, n). Returns the shape of x.
    """

    def call(self, x, z):
        count = x.shape[-1] // 2
        waves = np.geomspace(_SHORTEST, _LONGEST, count)
        angle = z[..., None] * ops.convert_to_tensor(2 * math.pi / waves, dtype=x.dtype)
        return x + ops.concatenate([ops.sin(angle), ops.cos(angle)], axis=-1)

    def compute_output_spec(self, x, z):
        return keras.KerasTensor(x.shape, self.compute_dtype)


def _gru(x, z, mask, units: int, depth: int, dropout: float):
    for _ in range(depth):
        x = layers.Dropout(dropout)(x)
        gru = layers.GRU(units, return_sequences=True, dtype="float32")
        x = layers.Bidirectional(gru, dtype="float32")(x, mask=mask > 0)
    return x


def _attention(x, z, mask, units: int, depth: int, dropout: float):
    """Apply pre-norm transformer blocks; the attention mask leaves padding out."""
    x = PositionsInMillimeters(dtype="float32")(x, z)
    for _ in range(depth):
        y = layers.LayerNormalization(dtype="float32")(x)
        attention = layers.MultiHeadAttention(_HEADS, units // _HEADS, dropout=dropout, dtype="float32")
        x = x + attention(y, y, attention_mask=mask[:, None, :] > 0)
        y = layers.LayerNormalization(dtype="float32")(x)
        y = layers.Dense(2 * units, activation="gelu", dtype="float32")(y)
        x = x + layers.Dropout(dropout)(layers.Dense(units, dtype="float32")(y))
    return layers.LayerNormalization(dtype="float32")(x)


KINDS: dict[str, Callable] = {"gru": _gru, "attention": _attention}
"""Layers over the slices, by `model.scan.kind`."""


def build_scan_model(
    build_slice_model: Callable[[tuple[int, int, int]], keras.Model],
    slices: int,
    image_shape: tuple[int, int, int],
    kind: str = "gru",
    units: int = 128,
    depth: int = 1,
    dropout: float = 0.2,
    remat: bool = False,
) -> keras.Model:
    """Build the untrained scan model.

    Its logits are the slice classifier's plus a correction by the layers over the slices, which is 0 before the
    training: with the weights of a trained slice classifier, it predicts the same as that classifier.

    Args:
        build_slice_model: builds the slice classifier for images of a shape, as `backbones.build_model` does.
        slices: n, of a window.
        image_shape: (height, width, channels).
        kind: a key of `KINDS`: gru, bidirectional; or attention, a transformer encoder.
        units: of a GRU in each direction, or the width of the encoder.
        depth: layers of GRUs, or blocks of the encoder.
        dropout: before each GRU and the last layer, in the encoder's attention and behind its blocks.
        remat: compute the slice classifier's activations again in the backward pass in place of keeping them, by
            keras.RematScope; on JAX and PyTorch.

    Returns:
        A model of the inputs image, (batch, n, height, width, channels), 0 to 255; mask, (batch, n), 1 for slices and 0
        for padding behind them; z, (batch, n), mm; to float32 logits (batch, n, 6), undefined for padding.

    Raises:
        IchError: an unknown kind, a width that is no multiple of 4 for attention, remat on TensorFlow; as
            `build_slice_model`.
    """
    if kind not in KINDS:
        raise IchError(f"no scan model is called {kind!r}; there are {', '.join(KINDS)}")
    if kind == "attention" and units % _HEADS:
        raise IchError(f"attention has {_HEADS} heads: units is {units}, expected a multiple of {_HEADS}")
    if remat and keras.backend.backend() == "tensorflow":
        # In a compiled step its gradients take no keyword arguments, which layers get. With keras.remat on parts of a
        # batch, a step of EfficientNetV2-B0 took 1.7 times as long and 1.6 times the memory (CPU, Keras 3.15.1).
        raise IchError(
            "model.scan.remat does not work with TensorFlow, whose steps fail under keras.RematScope; set it to false"
            " and train.batch_size lower with train.accumulate, or KERAS_BACKEND to jax or torch"
        )
    image = keras.Input((slices, *image_shape), name="image")
    mask = keras.Input((slices,), name="mask", dtype="float32")
    z = keras.Input((slices,), name="z", dtype="float32")
    with keras.RematScope() if remat else nullcontext():
        classifier = backbones.with_features(build_slice_model(image_shape))
    classifier.name = SLICE_MODEL
    slice_logits, features = classifier(FoldSlices()(image, mask))
    slice_logits, features = UnfoldSlices(slices)(slice_logits), UnfoldSlices(slices)(features)
    x = layers.Dense(units, dtype="float32")(features)
    x = NeighborDifferences(dtype="float32")(layers.LayerNormalization(dtype="float32")(x), z, mask)
    x = layers.Dense(units, activation="gelu", dtype="float32")(layers.Concatenate(dtype="float32")([x, slice_logits]))
    x = layers.Dropout(dropout, dtype="float32")(KINDS[kind](x, z, mask, units, depth, dropout))
    # Its name is that in a slice classifier, by which the embeddings are found as its input.
    correction = layers.Dense(len(LABELS), kernel_initializer="zeros", dtype="float32", name="logits")(x)
    logits = layers.Add(dtype="float32", name="scan_logits")([slice_logits, correction])
    return keras.Model({"image": image, "mask": mask, "z": z}, logits, name=f"scan_{kind}")


def is_scan_model(model: keras.Model) -> bool:
    """Return whether a model is one of `build_scan_model`, or wraps one."""
    return any(layer.name == SLICE_MODEL for layer in model.layers)


def slice_model(model: keras.Model) -> keras.Model:
    """Return the slice classifier of a scan model, which shares its weights; a slice classifier as it is."""
    if not is_scan_model(model):
        return model
    inner = model.get_layer(SLICE_MODEL)
    with devices.scope_of(model):
        return keras.Model(inner.inputs, inner.outputs[0], name=SLICE_MODEL)


def backbone(model: keras.Model) -> list[layers.Layer]:
    """Return the backbone's layers of a slice classifier or a scan model: all before the slice logits."""
    return [layer for layer in slice_model(model).layers if layer.name != "logits"]


@contextmanager
def frozen_backbone(model: keras.Model) -> Iterator[None]:
    """Freeze the backbone within the context, so that the layers behind it train alone; compile the model in it too.

    The frozen layers work as in prediction: batch normalization by its moving statistics, which stay.
    """
    frozen = [inner for layer in backbone(model) for inner in layer._flatten_layers()]  # with layers within layers
    with adjustments.overridden(frozen, "trainable", False):
        yield


def image_shape(model: keras.Model) -> tuple[int, int, int]:
    """Return (height, width, channels) of the images that a scan model or a slice classifier takes."""
    return tuple(_image(model).shape[-3:])


def slices_of(model: keras.Model) -> int | None:
    """Return how many slices a scan model reads at once; None of a slice classifier."""
    return _image(model).shape[1] if is_scan_model(model) else None


def with_slice_head(model: keras.Model) -> keras.Model:
    """Return the scan model with its slice classifier's logits behind its own, (batch, n, 12), to train both."""
    slice_logits = model.get_layer("scan_logits").input[0]
    with devices.scope_of(model):
        both = layers.Concatenate(dtype="float32", name=_BOTH_HEADS)([model.outputs[0], slice_logits])
        return keras.Model(model.input, both, name=model.name)


def without_slice_head(model: keras.Model) -> keras.Model:
    """Invert `with_slice_head`; another model is returned as it is."""
    last = next((layer for layer in model.layers if layer.name == _BOTH_HEADS), None)
    if last is None:
        return model
    with devices.scope_of(model):
        return keras.Model(model.input, last.input[0], name=model.name)


def _image(model: keras.Model) -> keras.KerasTensor:
    return next(tensor for tensor in model.inputs if len(tensor.shape) >= 4)
