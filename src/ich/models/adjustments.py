"""Adjust a network: channels of its images, stochastic depth, GeM pooling, attributes of its layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np
from keras import layers, ops

from ich.errors import IchError

_DROP_CONNECT = 0.2  # of EfficientNets in keras.applications, for the block behind their last
_LEAST = 1e-6  # floor of features in GeM: the root has no gradient at 0


@keras.saving.register_keras_serializable("ich")
class GeM(layers.Layer):
    """Pool feature maps by the generalized mean, (mean of x^p)^(1/p) (Radenović et al., arXiv:1711.02512).

    With p = 1 it is the mean, and the larger p, the nearer to the maximum. Negative features count as 0.

    Args:
        exponent: p, a constant.

    Call:
        maps: (batch, height, width, n). Returns (batch, n); computed in float32.
    """

    def __init__(self, exponent: float, **kwargs):
        super().__init__(**kwargs)
        self.exponent = float(exponent)

    def call(self, maps):
        x = ops.maximum(ops.cast(maps, "float32"), _LEAST)
        # Divided by the largest, a constant of the gradient as it cancels: no power overflows or vanishes.
        largest = ops.stop_gradient(ops.max(x, axis=(1, 2), keepdims=True))
        mean = ops.mean((x / largest) ** self.exponent, axis=(1, 2))
        return ops.cast(mean ** (1 / self.exponent) * largest[:, 0, 0], self.compute_dtype)

    def compute_output_spec(self, maps):
        return keras.KerasTensor((maps.shape[0], maps.shape[-1]), self.compute_dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "exponent": self.exponent}


def with_gem(body: keras.Model, exponent: float, name: str) -> keras.Model:
    """Replace the global average of a backbone by `GeM`; the normalization behind the average stays.

    Args:
        body: from images to features.
        name: name of the backbone, for the message.

    Raises:
        IchError: its features are not the average of its last maps.
    """
    means = [k for k, layer in enumerate(body.layers) if isinstance(layer, layers.GlobalAveragePooling2D)]
    behind = body.layers[means[-1] + 1 :] if means else []
    # An earlier average is a squeeze-and-excitation's; only ConvNeXt has a layer behind the last, a normalization.
    if not means or not all(isinstance(layer, layers.LayerNormalization) for layer in behind):
        raise IchError(
            f"model.gem is {exponent}, and {name} does not pool the mean of feature maps, which GeM would replace; set"
            " model.gem to null"
        )
    x = GeM(exponent, name="gem")(body.layers[means[-1]].input)
    for layer in behind:
        x = layer(x)
    return keras.Model(body.input, x)


def with_drop_path(body: keras.Model, rate: float, name: str) -> keras.Model:
    """Add stochastic depth to a backbone of keras.applications: its residual blocks are skipped at random in training.

    The rate rises from 0 for the first block to `rate` behind the last (Huang et al., arXiv:1603.09382).

    Args:
        body: from images to features.
        name: name of the backbone, for the message.

    Raises:
        IchError: it has no blocks to drop.
    """
    dropped = [layer for layer in body.layers if isinstance(layer, layers.Dropout) and layer.noise_shape is not None]
    for layer in dropped:  # EfficientNet has them, at a rate of its own
        layer.rate *= rate / _DROP_CONNECT
    if dropped:
        return body
    # ConvNeXt, which keras.applications builds at rate 0, has an identity in their place.
    places = [
        layer.name for layer in body.layers if layer.name.startswith("convnext") and layer.name.endswith("_identity")
    ]
    if not places:
        raise IchError(
            f"model.drop_path is {rate}, and {name} has no stochastic depth; set model.drop_path to null, or take an"
            " EfficientNet, a ConvNeXt, or a hub: backbone that has it"
        )
    rates = dict(zip(places, drop_rates(rate, len(places)), strict=True))

    def replaced(layer: layers.Layer) -> layers.Layer:
        if layer.name in rates:
            return sample_dropout(rates[layer.name], 4, name=layer.name)
        return type(layer).from_config(layer.get_config())

    changed = keras.models.clone_model(body, input_tensors=body.input, clone_function=replaced)
    changed.set_weights(body.get_weights())
    return changed


def drop_rates(rate: float, blocks: int) -> list[float]:
    """Return the drop rate of each block, from 0 for the first to `rate` for the last; a single block has `rate`."""
    return [float(value) for value in np.linspace(0, rate, blocks)] if blocks > 1 else [rate] * blocks


def sample_dropout(rate: float, dimensions: int, **options) -> layers.Dropout:
    """Return a dropout of whole samples, which on a residual branch is stochastic depth."""
    return layers.Dropout(rate, noise_shape=(None, *[1] * (dimensions - 1)), **options)


@contextmanager
def overridden(body_layers: Sequence[layers.Layer], attribute: str, value: bool) -> Iterator[None]:
    """Set an attribute of layers within the context, and restore each layer's own value after it."""
    before = [getattr(layer, attribute) for layer in body_layers]
    for layer in body_layers:
        setattr(layer, attribute, value)
    try:
        yield
    finally:
        for layer, own in zip(body_layers, before, strict=True):
            setattr(layer, attribute, own)


def freeze_batch_norm(body: layers.Layer, name: str) -> None:
    """Freeze the batch normalization of a backbone: it uses its stored statistics in training too, and learns nothing.

    Args:
        body: a backbone, as a model or a layer.
        name: name of the backbone, for the message.

    Raises:
        IchError: it has none.
    """
    normalizations = batch_norms(body)
    if not normalizations:
        raise IchError(
            f"model.freeze_batch_norm is true, and {name} has no batch normalization; set model.freeze_batch_norm to"
            " false"
        )
    for layer in normalizations:
        layer.trainable = False


def has_frozen_batch_norm(body: layers.Layer) -> bool:
    """Return whether `freeze_batch_norm` was applied."""
    normalizations = batch_norms(body)
    return bool(normalizations) and not any(layer.trainable for layer in normalizations)


def batch_norms(body: layers.Layer) -> list[layers.BatchNormalization]:
    """Return all batch normalizations, also of nested models and layers."""
    # A private method, as `layers` stops at a nested model or a layer made of others.
    return [layer for layer in body._flatten_layers() if isinstance(layer, layers.BatchNormalization)]


def with_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Fit the first kernel to another number of channels, with the same response to a gray image.

    Args:
        kernel: (height, width, channels, filters).
    """
    mean = kernel.mean(axis=2, keepdims=True) * (kernel.shape[2] / channels)
    return np.repeat(mean, channels, axis=2)
