"""Build slice classifiers by name: one dict of backbones, and six logits behind them."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

from ich.competition.labels import LABELS
from ich.errors import IchError, one_line
from ich.models import adjustments, devices, hub

Backbone = Callable[[keras.KerasTensor, str | None], keras.KerasTensor]
"""Maps an image tensor of 0 to 255, shape (batch, height, width, channels), and weights to features (batch, n)."""


def small_cnn(images: keras.KerasTensor, weights: str | None) -> keras.KerasTensor:
    """Five blocks of convolution with 0.2 million parameters: minutes on a CPU, for the demo and for tests."""
    if weights == "imagenet":
        raise IchError("small_cnn has no ImageNet weights; set model.weights to null")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    for index, filters in enumerate((16, 24, 48, 96, 128)):
        # The first convolution is wide and has a stride of 2, or most of the time would be spent there.
        size, strides = (3, 1) if index else (5, 2)
        x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
        if index:
            x = layers.MaxPooling2D()(x)
    # A bleed covers a small part of the slice: the maximum sees whether there is one, the mean how much.
    features = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    if weights is not None:
        keras.Model(images, features).load_weights(weights)
    return features


# How each family of keras.applications scales 0 to 255, as (scale, offset). The means and deviations of its color
# channels are replaced by their averages: our channels are windows or neighboring slices, not colors.
_TF = (1 / 127.5, -1.0)
_TORCH = (1 / (255 * 0.226), -0.449 / 0.226)
_CAFFE = (1.0, -114.8)
_V2_LARGE = (1 / 128, -1.0)
_INSIDE = (1.0, 0.0)  # the model has a layer of its own for it

# EfficientNet's published weights expect inputs divided once more by the root of the deviation, and Keras adds that
# layer for weights="imagenet" only. Here it is a factor of the first kernel, so that a file of those weights works too.
_EFFICIENTNET_GAIN = 0.226**-0.5


def _family(scaling: tuple[float, float], names: str, gain: float = 1.0) -> dict[str, Backbone]:
    """The backbones of these models of keras.applications by name; `gain` multiplies their first kernel's weights."""
    return {name: _application(getattr(keras.applications, name), scaling, gain) for name in names.split()}


def _application(build: Callable[..., keras.Model], scaling: tuple[float, float], gain: float) -> Backbone:
    def backbone(images: keras.KerasTensor, weights: str | None) -> keras.KerasTensor:
        scaled = images if scaling == _INSIDE else layers.Rescaling(scaling[0], offset=scaling[1])(images)
        options = {"include_top": False, "pooling": "avg"}
        if "include_preprocessing" in inspect.signature(build).parameters:
            options["include_preprocessing"] = False  # ConvNeXt's would turn one channel into three
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This model usually expects 1 or 3 input channels")
            model = build(weights=None, input_tensor=scaled, **options)
        if weights is not None:
            donor = build(weights=weights, input_shape=(*images.shape[1:3], 3), **options)
            _transplant(donor, model, gain)
        return model.output

    return backbone


BUILDERS: dict[str, Backbone] = {
    "small_cnn": small_cnn,
    **_family(_TORCH, "ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge"),
    **_family(_TORCH, "DenseNet121 DenseNet169 DenseNet201"),
    **_family(_INSIDE, "EfficientNetB0 EfficientNetB1 EfficientNetB2 EfficientNetB3", _EFFICIENTNET_GAIN),
    **_family(_INSIDE, "EfficientNetB4 EfficientNetB5 EfficientNetB6 EfficientNetB7", _EFFICIENTNET_GAIN),
    **_family(_TORCH, "EfficientNetV2B0 EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3"),
    **_family(_V2_LARGE, "EfficientNetV2S EfficientNetV2M EfficientNetV2L"),
    **_family(_TF, "InceptionResNetV2 InceptionV3"),
    **_family(_TF, "MobileNet MobileNetV2 MobileNetV3Large MobileNetV3Small NASNetLarge NASNetMobile"),
    **_family(_CAFFE, "ResNet50 ResNet101 ResNet152"),
    **_family(_TF, "ResNet50V2 ResNet101V2 ResNet152V2"),
    **_family(_CAFFE, "VGG16 VGG19"),
    **_family(_TF, "Xception"),
}


def build_model(
    name: str,
    input_shape: tuple[int, int, int],
    weights: str | Path | None = None,
    dropout: float = 0.0,
    *,
    drop_path: float | None = None,
    gem: float | None = None,
    freeze_batch_norm: bool = False,
) -> keras.Model:
    """Build the untrained slice classifier.

    Args:
        name: a key of `BUILDERS`: `small_cnn`, or a model of keras.applications; or `hub:` and a preset of keras-hub,
            as `ich.models.hub.features` takes it.
        input_shape: (height, width, channels); any number of channels.
        weights: of the backbone: "imagenet"; the path of a file without top, for three channels, as keras.applications
            publishes them (for small_cnn: its own); or None for random ones. For another number of channels the first
            kernel becomes its mean over the three, scaled so that the response to a gray image is the same. A preset of
            keras-hub has its own: imagenet, or None.
        dropout: share of the features that training drops before the last layer.
        drop_path: rate of stochastic depth in the last residual block; None leaves the backbone's own.
        gem: exponent of `adjustments.GeM`, which pools in the place of the mean; None for the mean.
        freeze_batch_norm: as `adjustments.freeze_batch_norm`.

    Returns:
        A model from images of 0 to 255, any dtype, shape (batch, height, width, channels), to float32 logits of shape
        (batch, 6).

    Raises:
        IchError: an unknown name, weights that are missing or do not fit, an input shape the model cannot take, or what
            the backbone has not got: stochastic depth, a mean of maps, batch normalization.
    """
    images = keras.Input(input_shape, name="image")
    own_weights = None if weights is None else str(weights)
    if name.startswith(hub.PREFIX):
        body = keras.Model(images, hub.features(name.removeprefix(hub.PREFIX), images, own_weights, drop_path))
    else:
        body = _body(name, images, own_weights)
        if drop_path is not None:
            body = adjustments.with_drop_path(body, drop_path, name)
    if gem is not None:
        body = adjustments.with_gem(body, gem, name)
    if freeze_batch_norm:
        adjustments.freeze_batch_norm(body, name)
    features = layers.Dropout(dropout)(body.output)
    # float32 under mixed precision too: the loss needs the digits.
    logits = layers.Dense(len(LABELS), dtype="float32", name="logits")(features)
    return keras.Model(images, logits, name="hub" if name.startswith(hub.PREFIX) else name)  # without a slash


def _body(name: str, images: keras.KerasTensor, weights: str | None) -> keras.Model:
    """Return a backbone of `BUILDERS` as a model from images to features."""
    if name not in BUILDERS:
        raise IchError(f"no model is called {name!r}; there are {', '.join(BUILDERS)}, and hub:PRESET of keras-hub")
    if weights not in (None, "imagenet") and not Path(weights).is_file():
        raise IchError(f"model weights {weights} are no file; expected imagenet, null, or the path of a weights file")
    try:
        return keras.Model(images, BUILDERS[name](images, weights))
    except IchError:
        raise
    except Exception as error:  # a download, an HDF5 file and a shape each fail in a way of their own
        raise IchError(
            f"{name} cannot be built for images of shape {images.shape[1:]} with weights {weights}: {one_line(error)}."
            " Without network, download the weights elsewhere and set model.weights to the file's path"
        ) from error


def with_features(model: keras.Model) -> keras.Model:
    """Add the pooled features of the backbone, which the last layer reads, to the outputs of a classifier.

    Args:
        model: as `build_model` gives it.

    Returns:
        A model of two outputs: logits of shape (batch, 6), and features of shape (batch, n), in the model's compute
        dtype: the global average of the last maps (ConvNeXt normalizes it), for small_cnn the average and the maximum.
        Of a scan model both have an axis of slices, and features are those of the layers over the slices.

    Raises:
        IchError: the model has no layer called logits that reads features.
    """
    last = next((layer for layer in model.layers if layer.name == "logits"), None)
    if last is None or len(last.input.shape) not in (2, 3):
        raise IchError(
            f"the model {model.name} has no layer called logits that reads pooled features, by which they are found;"
            " expected one of ich.models.backbones.build_model"
        )
    # Behind the dropout, which lets all through when predicting.
    with devices.scope_of(model):
        return keras.Model(model.input, [model.outputs[0], last.input], name=f"{model.name}_with_features")


def _transplant(donor: keras.Model, model: keras.Model, gain: float) -> None:
    """Copy all weights to a model with another number of input channels; multiply the first kernel by `gain`."""
    first = True
    for theirs, ours in zip(donor.weights, model.weights, strict=True):
        value = keras.ops.convert_to_numpy(theirs)
        kernel = value.ndim == 4  # (height, width, in, out); other weights with a channel axis are statistics
        if theirs.shape != ours.shape:
            if kernel:
                value = adjustments.with_channels(value, ours.shape[2])
            else:
                value = np.repeat(value.mean(axis=-1, keepdims=True), ours.shape[-1], axis=-1)
        ours.assign(value * gain if first and kernel else value)
        first = first and not kernel
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights, taken here
