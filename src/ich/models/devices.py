"""Devices that Keras computes on, and how several of a machine share the work."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras

from ich.errors import IchError
from ich.models import adjustments


def names() -> list[str]:
    """Return the devices that Keras computes on, such as gpu:0."""
    if keras.backend.backend() == "torch":  # for which Keras lists none
        return [str(keras.ops.zeros(()).device)]
    return keras.distribution.list_devices()


def steps_per_execution(steps: int) -> int:
    """Return `steps`, unless Keras's backend takes one at a time.

    Raises:
        IchError: more than one with PyTorch.
    """
    if steps > 1 and keras.backend.backend() == "torch":
        raise IchError(
            f"machine.steps_per_execution is {steps}, and PyTorch takes one step at a time; set it to 1, or"
            " KERAS_BACKEND to tensorflow or jax"
        )
    return steps


def mirrored(**batch_sizes: int) -> Any:
    """Return a MirroredStrategy of all GPUs of this machine, or of its CPU devices if it has none.

    Each device computes a part of each batch, and all keep the same weights.

    Args:
        **batch_sizes: by their section of the config.

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
    """Return the scope to build or load a model in: for all devices, or for one if `machine.distribute` is None.

    Raises:
        IchError: as `mirrored`.
    """
    return nullcontext() if distribute is None else mirrored().scope()


def scope_of(model: keras.Model) -> AbstractContextManager:
    """Return the scope that a model was built in, for another one made of its layers."""
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's models alone have one
    return nullcontext() if strategy is None else strategy.scope()


def replicas(model: keras.Model) -> int:
    """Return how many devices share the batches of a model."""
    strategy = getattr(model, "distribute_strategy", None)
    return 1 if strategy is None else strategy.num_replicas_in_sync


@contextmanager
def synchronized(model: keras.Model) -> Iterator[None]:
    """Synchronize batch normalization over all devices while a model trains in this context.

    Without it each device normalizes its part of a batch and keeps its own moving averages: the model that is validated
    on all of them differs from the saved one, which has those of the first. Layers are as before afterwards, as no
    other backend loads a synchronized one.
    """
    # On one device the formula, and so the rounding, would be another one.
    normalizations = adjustments.batch_norms(model) if replicas(model) > 1 else []
    with adjustments.overridden(normalizations, "synchronized", True):
        yield


def validation_batch_size(samples: int, most: int, devices: int) -> int:
    """Return the largest batch size up to `most` that gives each device a part of the last batch, and equal parts of
    the first.

    TensorFlow cuts a batch into parts of one size, rounded up: of 5 samples, the last of 4 devices gets none, and its
    loss is NaN, or it fails. Keras takes the mean of the first batch over the devices, to see its shape.

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
