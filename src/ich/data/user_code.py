"""Functions that a user gives to `DataGenerator`: how they are called, what they may give, what they draw from."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ich.errors import IchError, one_line


def call(name: str, sample: str | Path, function: Callable, *args) -> Any:
    """Call a user's function, given as the argument `name`, for a sample: a worker's traceback does not say which.

    Raises:
        IchError: whatever the function raises, with the sample.
    """
    try:
        return function(*args)
    except Exception as error:  # a user's code raises anything
        raise IchError(f"{sample}: {name} raised {one_line(error, named=True)}") from error


def as_image(given: Any, name: str, sample: str | Path, min_axes: int = 2) -> np.ndarray:
    """Return what a user's function gave as an array.

    Raises:
        IchError: it is no array of numbers of at least so many axes.
    """
    try:
        array = np.asarray(given)
    except ValueError:  # a list of arrays of several shapes
        array = np.asarray(None)
    if array.dtype.kind not in "buif" or array.ndim < min_axes:
        what = f"{given.dtype} of {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
        raise IchError(f"{sample}: {name} gave {what}, expected an image, an array of (height, width, channels)")
    return array


def has_user_code(augment: Any) -> bool:
    """Return whether an augmentation, or a part of it, is not albumentations' own code."""
    if augment is None or type(augment).__module__.split(".")[0] == "albumentations":
        parts = getattr(augment, "transforms", ())
        return type(augment).__name__ == "Lambda" or any(map(has_user_code, parts))
    return True


def seed_global_states(seed: int) -> None:
    """Seed the random states of NumPy and Python, from which a user's code may draw."""
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy state is what is to be seeded
    random.seed(seed)
