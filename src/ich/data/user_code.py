"""Functions that a user gives to `DataGenerator`: how they are called, what they may give, what they draw from."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ich.errors import IchError, one_line


def call(name: str, sample: str | Path, function: Callable, *args, **kwargs) -> Any:
    """Call a user's function; the error that it raises names the sample, which a worker's traceback does not.

    Args:
        name: of the argument that the function was given as, such as augment.
        sample: the id or the file.

    Raises:
        IchError: whatever the function raises.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:  # a user's code raises anything
        raise IchError(f"{sample}: {name} raised {one_line(error, named=True)}") from error


def call_for_image(name: str, sample: str | Path, function: Callable, *args, min_axes: int = 2) -> np.ndarray:
    """Call a user's function that gives an image.

    Raises:
        IchError: as `call`, or what it gives is no array of numbers of at least so many axes.
    """
    return as_image(call(name, sample, function, *args), name, sample, min_axes)


def as_image(given: Any, name: str, sample: str | Path, min_axes: int = 2) -> np.ndarray:
    """Return what a function gave as an array.

    Raises:
        IchError: it is no array of numbers of at least so many axes.
    """
    try:
        array = np.asarray(given)
    except ValueError:  # a list of arrays of several shapes
        array = None
    if array is None or array.dtype.kind not in "buif" or array.ndim < min_axes:
        what = f"{given.dtype} of {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
        raise IchError(f"{sample}: {name} gave {what}, expected an image, an array of (height, width, channels)")
    return array


def is_users(augment: Any) -> bool:
    """Return whether an augmentation, or a part of it, is not albumentations' own code."""
    if augment is None or type(augment).__module__.split(".")[0] == "albumentations":
        parts = getattr(augment, "transforms", ())
        return type(augment).__name__ == "Lambda" or any(map(is_users, parts))
    return True


def seed_global_states(seed: int) -> None:
    """Seed the random states of NumPy and Python, from which a user's code may draw."""
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy state is what is to be seeded
    random.seed(seed)
