"""What Keras computes on, and how several devices of a machine share the work."""

from typing import Any

import keras

from ich.errors import IchError


def names() -> list[str]:
    """What Keras computes on, such as gpu:0."""
    if keras.backend.backend() == "torch":  # for which Keras does not tell
        return [str(keras.ops.zeros(()).device)]
    return keras.distribution.list_devices()


def steps_per_execution(steps: int) -> int:
    """As many, if Keras's backend can.

    Raises:
        IchError: PyTorch, and more than one.
    """
    if steps > 1 and keras.backend.backend() == "torch":
        raise IchError(
            f"machine.steps_per_execution is {steps}, and PyTorch takes one step at a time; set it to 1, or"
            " KERAS_BACKEND to tensorflow or jax"
        )
    return steps


def mirrored(**batch_sizes: int) -> Any:
    """The tf.distribute.MirroredStrategy of all GPUs of this machine, or of its CPU devices if it has none.

    Each device computes a part of each batch, and all keep the same weights. Batch normalization sees a part alone.

    Args:
        **batch_sizes: by the section of the config that says them.

    Raises:
        IchError: another backend than TensorFlow, or batches that the devices cannot share evenly.
    """
    if keras.backend.backend() != "tensorflow":
        raise IchError(
            f"machine.distribute=mirrored works with TensorFlow, Keras runs on {keras.backend.backend()};"
            " set KERAS_BACKEND=tensorflow, or machine.distribute to null"
        )
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    for name, size in batch_sizes.items():
        if size % len(devices):
            raise IchError(
                f"{name}.batch_size is {size}, which {len(devices)} devices cannot share evenly; make it a multiple of"
                f" {len(devices)}, or set machine.distribute to null"
            )
    return tf.distribute.MirroredStrategy([device.name for device in devices])
