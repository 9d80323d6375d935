"""Images from files: a path to an array."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from ich.errors import IchError

MAX_SIDE = 8192
"""Pixels; a PNG whose header says more is damaged or a trap, and is refused before memory is taken for it."""


def _read_cv2(path: Path) -> np.ndarray:
    data = np.fromfile(path, dtype=np.uint8)
    if path.suffix.lower() == ".png" and data.size >= 24:
        width, height = data[16:24].view(">u4").tolist()  # of the first chunk, IHDR (PNG specification, 11.2.2)
        if max(width, height) > MAX_SIDE:
            raise IchError(f"{path} says that it has {width:,} × {height:,} pixels, at most {MAX_SIDE:,} are read")
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if image is None:
        raise IchError(f"{path} holds no image that can be decoded ({data.size:,} bytes); make it again")
    if image.ndim == 2:
        return image[..., None]
    # cv2 gives blue first; a fourth channel, alpha, stays last.
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise IchError(f"{path} holds no array that can be read without unpickling ({error})") from error
    if array.ndim not in (2, 3):
        raise IchError(f"{path} holds an array of shape {array.shape}, expected (height, width[, channels])")
    return array if array.ndim == 3 else array[..., None]


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".png": _read_cv2,
    ".jpg": _read_cv2,
    ".jpeg": _read_cv2,
    ".npy": _read_npy,
}


def read(path: Path) -> np.ndarray:
    """Read an image by its suffix.

    Returns:
        The file's dtype (uint8 for the PNGs of `ich.convert`), shape (height, width, channels): one channel for a grey
        image, three in the order red, green, blue.

    Raises:
        IchError: no reader for the suffix, no file, or one that does not decode.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise IchError(f"{path}: there are readers for {', '.join(READERS)}, none for {path.suffix or 'no suffix'!r}")
    try:
        return reader(path)
    except OSError as error:
        raise IchError(f"{path} cannot be read: {error.strerror or error}; was it converted?") from error
