"""The training model applies the augmentation: one bilinear warp of the batch, where the model computes.

`DataGenerator(augment_on="device")` gives what it has drawn beside the images. `with_augmentation` makes a model that
applies it before its first layer, `without_augmentation` the one to save.
"""

from typing import Any

import keras
from keras import ops

from ich.errors import IchError
from ich.models import devices


@keras.saving.register_keras_serializable("ich")
class _Augmented(keras.Model):
    """A functional model whose batches may have draws beside the images; of those without, it changes nothing."""

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # Before Keras checks what the functional model's inputs are, and casts the draws to half precision.
        return super().__call__(self._augment(inputs), *args, **kwargs)

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().call(self._augment(inputs), *args, **kwargs)  # what JAX's trainer calls

    def _augment(self, inputs: Any) -> Any:
        if not (isinstance(inputs, dict) and "augment" in inputs):
            return inputs
        inputs = dict(inputs)
        image = warp(join(inputs.pop("unaugmented")), inputs.pop("augment"))
        if "mask" in inputs and len(image.shape) == 5:  # padding stays 0, whatever the brightness
            image = image * ops.cast(inputs["mask"], image.dtype)[:, :, None, None, None]
        if "mix" in inputs:
            image = mix(image, inputs.pop("mix"))
        return inputs | {"image": image} if isinstance(self.input, dict) else image


def with_augmentation(model: keras.Model) -> keras.Model:
    """Return a model of the same layers that applies what `DataGenerator(augment_on="device")` has drawn.

    It takes that generator's batches to train on, and batches without draws, as for validation, as the model does.

    Args:
        model: a functional or sequential model of images, 0 to 255, or of a dict of inputs, of which one is "image".

    Raises:
        IchError: another kind of model, such as a class with a `train_step` of its own; or one without that input.
    """
    if type(model) is keras.Sequential and model.built:
        given, predicted = model.inputs[0], model.outputs[0]
    elif isinstance(model, _Augmented) or _is_functional(model):
        given, predicted = model.input, model.output
    else:
        raise IchError(
            f"the model {model.name} is a {type(model).__name__}, expected a functional or a built sequential one, made"
            " by keras.Model(inputs, outputs) or keras.Sequential; a train_step of your own would be lost. Give"
            " augment_on='cpu' to train that"
        )
    if isinstance(given, dict) and "image" not in given:
        raise IchError(f"the model {model.name} has the inputs {', '.join(given)}; call that of the images image")
    with devices.scope_of(model):
        return _Augmented(given, predicted, name=model.name)


def without_augmentation(model: keras.Model) -> keras.Model:
    """Invert `with_augmentation`; another model is returned as it is."""
    if not isinstance(model, _Augmented):
        return model
    with devices.scope_of(model):
        return keras.Model(model.input, model.output, name=model.name)


def _is_functional(model: keras.Model) -> bool:
    tensor = keras.Input((1,))
    return type(model) is type(keras.Model(tensor, tensor))


def join(images: Any) -> Any:
    """Join the files of images: (batch, …, files, height, width, channels) to (batch, …, height, width, all channels).

    It takes a GPU no time beside the first convolution. The CPU would write pixel by pixel, in place of rows of them.
    """
    *lead, files, height, width, channels = images.shape
    if files > 1:
        images = ops.moveaxis(images, -4, -2)
    return ops.reshape(images, (-1, *lead[1:], height, width, files * channels))


def warp(images: Any, draws: Any) -> Any:
    """Warp images, bilinearly and with 0 beyond the edge, and change their brightness and contrast.

    `keras.ops.image.affine_transform` is not used: on TensorFlow XLA does not compile it, and on JAX and PyTorch it
    makes a table of three numbers for each channel of each pixel.

    Args:
        images: (batch, height, width, channels), or of scans (batch, n, height, width, channels), all slices of which
            move alike.
        draws: float32 (batch, 8), as `ich.data.affine_draw.IDENTITY`.

    Returns:
        float32, of the shape of `images`, 0 to 255.
    """
    n = images.shape[1] if len(images.shape) == 5 else 1
    height, width, channels = images.shape[-3:]
    count = ops.shape(images)[0]
    pixels = ops.reshape(images, (-1, channels))
    # Not as a matrix product, which GPUs compute with 10 bits; and in float32 under mixed precision, whose 11 bits are
    # whole pixels in the image's lower half.
    m = [ops.reshape(ops.cast(draws[:, k], "float32"), (-1, 1, 1)) for k in range(8)]
    column = ops.reshape(ops.arange(width, dtype="float32"), (1, 1, width))
    row = ops.reshape(ops.arange(height, dtype="float32"), (1, height, 1))
    x, y = m[0] * column + m[1] * row + m[2], m[3] * column + m[4] * row + m[5]  # (batch, height, width)
    left, top = ops.floor(x), ops.floor(y)
    first = ops.reshape(ops.arange(count * n, dtype="int32") * (height * width), (-1, n, 1, 1))  # pixel of an image
    total = 0.0
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        at_x, at_y = left + right, top + below
        weight = (1 - ops.abs(x - at_x)) * (1 - ops.abs(y - at_y))
        inside = (at_x >= 0) & (at_x <= width - 1) & (at_y >= 0) & (at_y <= height - 1)
        weight = ops.where(inside, weight, 0.0)
        place = ops.clip(at_y, 0, height - 1) * width + ops.clip(at_x, 0, width - 1)  # below 2^24: exact
        place = ops.cast(place, "int32")[:, None] + first  # (batch, n, height, width)
        corner = ops.take(pixels, ops.reshape(place, (-1,)), axis=0)
        corner = ops.reshape(ops.cast(corner, "float32"), (-1, n, height, width, channels))
        total = total + corner * weight[:, None, :, :, None]
    contrast, brightness = (values[:, :, :, None, None] for values in m[6:])
    return ops.reshape(ops.clip(total * contrast + brightness, 0.0, 255.0), (-1, *images.shape[1:]))


def mix(images: Any, mixes: Any) -> Any:
    """Mix the images of a batch with others of it, by MixUp or CutMix.

    Args:
        images: float, (batch, height, width, channels) or (batch, n, height, width, channels).
        mixes: float32 (batch, 6 + n), as `ich.data.mixing.Drawn.numbers` gives them; n is 1 without slices.

    Returns:
        Of the shape and dtype of `images`; NaN if these are not all that were to be mixed among themselves.
    """
    height, width, channels = images.shape[-3:]
    count = ops.shape(images)[0]
    partner = ops.mod(ops.arange(count, dtype="int32") + ops.cast(mixes[:, 1], "int32"), count)
    own = ops.reshape(images, (count, -1, height, width, channels))
    other = ops.take(own, partner, axis=0)
    top, left, bottom, right = (ops.reshape(mixes[:, k], (-1, 1, 1, 1)) for k in range(2, 6))
    row = ops.reshape(ops.arange(height, dtype="float32"), (1, 1, height, 1))
    column = ops.reshape(ops.arange(width, dtype="float32"), (1, 1, 1, width))
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    own_share = ops.where(mixes[:, :1] == ops.cast(count, "float32"), mixes[:, 6:], float("nan"))
    share = ops.where(inside, own_share[:, :, None, None], 1.0)[..., None]
    return ops.reshape(own * share + other * (1 - share), (-1, *images.shape[1:]))
