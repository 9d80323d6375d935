"""Grad-CAM: where in a slice a network sees a label (Selvaraju et al., ICCV 2017, arXiv:1610.02391)."""

import cv2
import keras
import numpy as np

from ich.errors import IchError
from ich.images import reading


def heatmaps(model: keras.Model, slices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return heatmaps of the features that raise a label's logit.

    The last feature maps before global pooling are summed, each weighted by the mean of the logit's gradient over it;
    negative values are cut off. The maps are coarse, 1/32 of the slice for most networks, and are enlarged bilinearly:
    they show what the network looked at, not where a bleed ends.

    Args:
        model: of one input of images, as `ich.models.backbones.build_model` gives it.
        slices: what the model takes, shape (n, height, width, channels), 0 to 255.
        labels: for each slice, the index of the label in the model's output, shape (n,).

    Returns:
        float32, shape (n, height, width), the largest of each slice 1; all 0 if no feature raises the logit.

    Raises:
        IchError: the model has several inputs, no feature maps, or runs on another backend than TensorFlow.
    """
    trunk, head = split(model)
    heat = of_all_labels(head, trunk.predict_on_batch(slices))
    heat = np.take_along_axis(heat, labels[:, None, None, None], axis=1)[:, 0, ..., None]
    peak = heat.max(axis=(1, 2, 3), keepdims=True)
    heat = np.divide(heat, peak, out=np.zeros_like(heat), where=peak > 0)
    return np.stack([reading.resize(coarse, slices.shape[1:3], "bilinear")[..., 0] for coarse in heat])


def of_all_labels(head: keras.Model, maps: np.ndarray) -> np.ndarray:
    """Return Grad-CAM of every label, as coarse as the feature maps.

    Args:
        head: from feature maps to logits, as `split` gives it.
        maps: (n, height, width, channels), as the model before it gives them.

    Returns:
        float32, (n, labels, height, width), 0 or more: what the features at a place add to the logit, by the gradient.

    Raises:
        IchError: Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise IchError(f"Grad-CAM takes gradients by TensorFlow, and Keras runs on {keras.backend.backend()}")
    import tensorflow as tf

    watched = tf.convert_to_tensor(maps)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(watched)
        logits = tf.unstack(head(watched, training=False), axis=1)
    heat = []
    for of_label in logits:  # slices do not mix in the head: the gradient of the sum is that of each slice
        weights = tf.reduce_mean(tf.cast(tape.gradient(of_label, watched), "float32"), axis=(1, 2), keepdims=True)
        heat.append(tf.reduce_sum(weights * tf.cast(watched, "float32"), axis=-1))
    return np.maximum(np.stack(heat, axis=1), 0)


def overlaid(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a gray slice, uint8 (height, width), under a heatmap of any size, as uint8 RGB (height, width, 3)."""
    heat = cv2.resize(heat, picture.shape[::-1], interpolation=cv2.INTER_LINEAR)
    colors = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    share = 0.6 * heat[..., None]
    return np.rint(picture[..., None] * (1 - share) + colors * share).astype(np.uint8)


def split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Split a model at the last feature maps that are pooled; the two parts, one after the other, are the model.

    Raises:
        IchError: the model has several inputs, or no layer that pools feature maps.
    """
    if len(model.inputs) != 1:
        raise IchError(f"the model has {len(model.inputs)} inputs; Grad-CAM is of models of one image")
    # Layers are sorted by their inputs: the last maps that are pooled feed the classifier, earlier ones a squeeze-and-
    # excitation. Not the last layer that gives maps: it may lie inside a nested model. What has weights does not pool,
    # such as a vision transformer that is one layer from the image to features.
    maps = [
        layer.input
        for layer in model.layers
        if isinstance(getattr(layer, "output", None), keras.KerasTensor)
        and isinstance(layer.input, keras.KerasTensor)
        and len(layer.input.shape) == 4 > len(layer.output.shape)
        and not layer.weights
    ]
    if not maps:
        raise IchError(
            "the model pools no feature maps (batch, height, width, channels); Grad-CAM has nothing to weigh. Of a"
            " vision transformer (ViT, DINO) features are the class token's and the patch tokens' mean"
        )
    return keras.Model(model.inputs[0], maps[-1]), keras.Model(maps[-1], model.outputs[0])
