"""Models by name: a short factory, and one dict of what it can build."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

from ich.competition.labels import LABELS
from ich.errors import IchError, one_line
from ich.models import devices

Backbone = Callable[[keras.KerasTensor, str | None], keras.KerasTensor]
"""Maps an image tensor of 0 to 255, shape (batch, height, width, channels), and weights to features (batch, n)."""


def small_cnn(images: keras.KerasTensor, weights: str | None) -> keras.KerasTensor:
    """Five blocks of convolution, for the demo and for tests: 0.2 million parameters, minutes on a CPU."""
    if weights == "imagenet":
        raise IchError("small_cnn has no ImageNet weights; set model.weights to null")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    for index, filters in enumerate((16, 24, 48, 96, 128)):
        # The first step is wide and skips every other pixel: most of the time would be spent there else.
        x = layers.Conv2D(
            filters, 5 if index == 0 else 3, strides=2 if index == 0 else 1, padding="same", use_bias=False
        )(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
        if index:
            x = layers.MaxPooling2D()(x)
    # A bleed covers a small part of the slice: the maximum sees it, the mean sees how much there is.
    features = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    if weights is not None:
        keras.Model(images, features).load_weights(weights)
    return features


# How each family of keras.applications wants 0 to 255 scaled, as (scale, offset). Its colour channels' own means and
# deviations are replaced by their averages: our channels are windows or neighbouring slices, not colours.
_TF = (1 / 127.5, -1.0)
_TORCH = (1 / (255 * 0.226), -0.449 / 0.226)
_CAFFE = (1.0, -114.8)
_V2_LARGE = (1 / 128, -1.0)
_INSIDE = (1.0, 0.0)  # the model scales by itself

# EfficientNet's published weights expect inputs divided by the root of the deviation once more, and Keras adds that
# layer for weights="imagenet" only. Here it is a factor of the first kernel, so that a file of those weights works too.
_EFFICIENTNET_GAIN = 0.226**-0.5


def _application(build: Callable[..., keras.Model], scaling: tuple[float, float], gain: float = 1.0) -> Backbone:
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
    "ConvNeXtTiny": _application(keras.applications.ConvNeXtTiny, _TORCH),
    "ConvNeXtSmall": _application(keras.applications.ConvNeXtSmall, _TORCH),
    "ConvNeXtBase": _application(keras.applications.ConvNeXtBase, _TORCH),
    "ConvNeXtLarge": _application(keras.applications.ConvNeXtLarge, _TORCH),
    "ConvNeXtXLarge": _application(keras.applications.ConvNeXtXLarge, _TORCH),
    "DenseNet121": _application(keras.applications.DenseNet121, _TORCH),
    "DenseNet169": _application(keras.applications.DenseNet169, _TORCH),
    "DenseNet201": _application(keras.applications.DenseNet201, _TORCH),
    "EfficientNetB0": _application(keras.applications.EfficientNetB0, _INSIDE, _EFFICIENTNET_GAIN),
    "EfficientNetB1": _application(keras.applications.EfficientNetB1, _INSIDE, _EFFICIENTNET_GAIN),
    "EfficientNetB2": _application(keras.applications.EfficientNetB2, _INSIDE, _EFFICIENTNET_GAIN),
    "EfficientNetB3": _application(keras.applications.EfficientNetB3, _INSIDE, _EFFICIENTNET_GAIN),
    "EfficientNetB4": _application(keras.applications.EfficientNetB4, _INSIDE, _EFFICIENTNET_GAIN),
    "EfficientNetB5": _application(keras.applications.EfficientNetB5, _INSIDE, _EFFICIENTNET_GAIN),
    "EfficientNetB6": _application(keras.applications.EfficientNetB6, _INSIDE, _EFFICIENTNET_GAIN),
    "EfficientNetB7": _application(keras.applications.EfficientNetB7, _INSIDE, _EFFICIENTNET_GAIN),
    "EfficientNetV2B0": _application(keras.applications.EfficientNetV2B0, _TORCH),
    "EfficientNetV2B1": _application(keras.applications.EfficientNetV2B1, _TORCH),
    "EfficientNetV2B2": _application(keras.applications.EfficientNetV2B2, _TORCH),
    "EfficientNetV2B3": _application(keras.applications.EfficientNetV2B3, _TORCH),
    "EfficientNetV2S": _application(keras.applications.EfficientNetV2S, _V2_LARGE),
    "EfficientNetV2M": _application(keras.applications.EfficientNetV2M, _V2_LARGE),
    "EfficientNetV2L": _application(keras.applications.EfficientNetV2L, _V2_LARGE),
    "InceptionResNetV2": _application(keras.applications.InceptionResNetV2, _TF),
    "InceptionV3": _application(keras.applications.InceptionV3, _TF),
    "MobileNet": _application(keras.applications.MobileNet, _TF),
    "MobileNetV2": _application(keras.applications.MobileNetV2, _TF),
    "MobileNetV3Large": _application(keras.applications.MobileNetV3Large, _TF),
    "MobileNetV3Small": _application(keras.applications.MobileNetV3Small, _TF),
    "NASNetLarge": _application(keras.applications.NASNetLarge, _TF),
    "NASNetMobile": _application(keras.applications.NASNetMobile, _TF),
    "ResNet50": _application(keras.applications.ResNet50, _CAFFE),
    "ResNet101": _application(keras.applications.ResNet101, _CAFFE),
    "ResNet152": _application(keras.applications.ResNet152, _CAFFE),
    "ResNet50V2": _application(keras.applications.ResNet50V2, _TF),
    "ResNet101V2": _application(keras.applications.ResNet101V2, _TF),
    "ResNet152V2": _application(keras.applications.ResNet152V2, _TF),
    "VGG16": _application(keras.applications.VGG16, _CAFFE),
    "VGG19": _application(keras.applications.VGG19, _CAFFE),
    "Xception": _application(keras.applications.Xception, _TF),
}


def build_model(
    name: str, input_shape: tuple[int, int, int], weights: str | Path | None = None, dropout: float = 0.0
) -> keras.Model:
    """Build a slice classifier.

    Args:
        name: a key of `BUILDERS`: `small_cnn`, or a model of keras.applications.
        input_shape: (height, width, channels); any number of channels.
        weights: "imagenet"; the path of a file with the backbone's weights without top, for three channels as
            keras.applications publishes them (for small_cnn: of its own); or None to begin at random. For another
            number of channels the first convolution takes the mean of its kernel over the three, scaled so that the
            response to a grey image is the same.
        dropout: share of the features that training drops before the last layer.

    Returns:
        A model from images of 0 to 255, any dtype, shape (batch, height, width, channels), to float32 logits of shape
        (batch, 6).

    Raises:
        IchError: an unknown name, weights that are not there or do not fit, an input shape the model cannot take.
    """
    if name not in BUILDERS:
        raise IchError(f"no model is called {name!r}; there are {', '.join(BUILDERS)}")
    if weights not in (None, "imagenet") and not Path(weights).is_file():
        raise IchError(f"model weights {weights} are no file; expected imagenet, null, or the path of a weights file")
    images = keras.Input(input_shape, name="image")
    try:
        features = BUILDERS[name](images, None if weights is None else str(weights))
    except IchError:
        raise
    except Exception as error:  # a download, an HDF5 file and a shape each fail in a way of their own
        raise IchError(
            f"{name} cannot be built for images of shape {input_shape} with weights {weights}: {one_line(error)}."
            " Without network, download the weights elsewhere and set model.weights to the file's path"
        ) from error
    features = layers.Dropout(dropout)(features)
    # float32 under mixed precision too: the loss needs the digits.
    logits = layers.Dense(len(LABELS), dtype="float32", name="logits")(features)
    return keras.Model(images, logits, name=name)


def with_features(model: keras.Model) -> keras.Model:
    """The same classifier, which tells besides what its last layer reads: the pooled features of the backbone.

    Args:
        model: as `build_model` gives it.

    Returns:
        A model of two outputs: logits of shape (batch, 6), and features of shape (batch, n), in the precision that
        the model works with. Of keras.applications they are the global average of the last maps (ConvNeXt normalizes
        it), of small_cnn the average and the maximum.

    Raises:
        IchError: the model has no layer called logits that reads features.
    """
    last = next((layer for layer in model.layers if layer.name == "logits"), None)
    if last is None or len(last.input.shape) != 2:
        raise IchError(
            f"the model {model.name} has no layer called logits that reads pooled features, by which they are found;"
            " expected one of ich.models.backbones.build_model"
        )
    # Behind the dropout, which lets all through when predicting.
    with devices.scope_of(model):
        return keras.Model(model.inputs, [model.outputs[0], last.input], name=f"{model.name}_with_features")


def _transplant(donor: keras.Model, model: keras.Model, gain: float) -> None:
    """Copy all weights to a model of other input channels; the first kernel is multiplied by `gain`."""
    first = True
    for theirs, ours in zip(donor.weights, model.weights, strict=True):
        value = keras.ops.convert_to_numpy(theirs)
        kernel = value.ndim == 4  # (height, width, in, out); what else has a place a channel is a statistic
        if theirs.shape != ours.shape:
            axis = value.ndim - 2 if kernel else value.ndim - 1
            channels = ours.shape[axis]
            value = np.repeat(value.mean(axis=axis, keepdims=True), channels, axis=axis)
            if kernel:
                value *= theirs.shape[axis] / channels
        ours.assign(value * gain if first and kernel else value)
        first = first and not kernel
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights, taken here
