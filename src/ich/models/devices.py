"""What Keras computes on, and how several devices of a machine share the work."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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

    Each device computes a part of each batch, and all keep the same weights.

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


def scope(distribute: str | None) -> AbstractContextManager:
    """Where a model is built or loaded that all devices share, or, for None, one that works on one of them.

    Args:
        distribute: as `machine.distribute` says.

    Raises:
        IchError: as `mirrored`.
    """
    return nullcontext() if distribute is None else mirrored().scope()


def scope_of(model: keras.Model) -> AbstractContextManager:
    """The scope that a model was built in, for one that is made of its layers."""
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's models alone have one
    return nullcontext() if strategy is None else strategy.scope()


def replicas(model: keras.Model) -> int:
    """How many devices share the batches of a model."""
    strategy = getattr(model, "distribute_strategy", None)
    return 1 if strategy is None else strategy.num_replicas_in_sync


@contextmanager
def synchronized(model: keras.Model) -> Iterator[None]:
    """Train a model in this context: its batch normalization takes mean and variance of whole batches, on all devices.

    Else each device takes those of its part, and keeps moving averages of its own: what is validated on all of them is
    then another model than the one saved, which has the first one's. The layers are as before afterwards, as no other
    backend loads such a layer.
    """
    # A private method, as `layers` stops at a nested model or a layer made of others.
    found = [one for one in model._flatten_layers() if isinstance(one, keras.layers.BatchNormalization)]
    if replicas(model) == 1:  # for which it would be another formula, rounded otherwise
        found = []
    before = [one.synchronized for one in found]
    for one in found:
        one.synchronized = True
    try:
        yield
    finally:
        for one, value in zip(found, before, strict=True):
            one.synchronized = value


def validation_batch_size(samples: int, most: int, devices: int) -> int:
    """The largest batch size, of at most `most`, at which each device gets some of the last batch, and as much of the
    first as every other.

    TensorFlow shares a batch out in pieces of one size, rounded up: of 5 samples and 4 devices, the last gets none. Its
    loss is NaN, or it fails. From the first batch, Keras takes the mean over the devices, to see its shape.

    Raises:
        IchError: there is no such size.
    """
    for size in range(most - most % devices, 0, -devices):
        last = samples % size or size
        if -(-last // -(-last // devices)) == devices and min(size, samples) % devices == 0:
            return size
    raise IchError(
        f"{samples} held-out slices in batches of {most} or less cannot be shared by {devices} devices so that each"
        " gets some of each batch; raise predict.batch_size, or set machine.distribute to null"
    )
