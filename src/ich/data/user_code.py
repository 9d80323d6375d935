"""Functions that a user gives to `DataGenerator`: how they are called, what they may give, what they draw from."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
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


def has_user_code(function: Any) -> bool:
    """Return whether a function, or a part of an augmentation, is not albumentations' own code.

    A function that an albumentations transform was given, or that was put in place of one of its methods, is a part.
    """
    if function is None:
        return False
    if not _of_albumentations(type(function)) or type(function).__name__ == "Lambda":
        return True
    if not all(map(_of_albumentations, filter(callable, vars(function).values()))):
        return True
    return any(map(has_user_code, getattr(function, "transforms", ())))


def _of_albumentations(defined: Any) -> bool:
    return str(getattr(defined, "__module__", None)).split(".")[0] == "albumentations"


def seed_global_states(seed: int) -> None:
    """Seed the global random states from which a user's code may draw in the calling thread.

    They are those of NumPy, Python and OpenCV and, if torch has been imported, torch's on the CPU.
    """
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy state is what is to be seeded
    random.seed(seed)
    cv2.setRNGSeed(seed % 2**31)
    torch = sys.modules.get("torch")
    if torch is not None:
        # Not torch.manual_seed, which seeds devices too: a forked process must not touch them.
        torch.default_generator.manual_seed(seed % 2**64)
