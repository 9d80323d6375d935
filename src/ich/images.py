"""Images from files: a path to an array, its colours and its size."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from ich import dicom
from ich.errors import IchError
from ich.windows import Window, apply_window

MAX_SIDE = 8192
"""Pixels; a PNG whose header says more is damaged or a trap, and is refused before memory is taken for it."""

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "area": cv2.INTER_AREA,
}
"""By Keras's names, and `area`, which reduces without aliasing; the pixels are OpenCV's, not Pillow's."""

COLOR_MODES = ("grayscale", "rgb", "rgba")
"""Keras's."""


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
    if array.ndim < 2:
        raise IchError(f"{path} holds an array of shape {array.shape}, expected (height, width[, …])")
    return array[..., None] if array.ndim == 2 else array


def _read_dcm(path: Path, window: Window) -> np.ndarray:
    return apply_window(dicom.read(path)[0], window)[..., None]


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".png": _read_cv2,
    ".jpg": _read_cv2,
    ".jpeg": _read_cv2,
    ".npy": _read_npy,
}


def read(path: Path, window: Window | None = None) -> np.ndarray:
    """Read an image by its suffix: .png, .jpg, .jpeg, .npy, or .dcm through a window.

    Returns:
        The file's dtype (uint8 for the PNGs of `ich.convert` and for a window), shape (height, width, channels): one
        channel for a grey image, three in the order red, green, blue. Arrays of more dimensions, volumes, come as they
        are.

    Raises:
        IchError: no reader for the suffix, a .dcm without a window, no file, or one that does not decode.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".dcm":
            if window is None:
                raise IchError(f"{path} is read through a window; say which, such as window=PRESETS['brain']")
            return _read_dcm(path, window)
        if suffix not in READERS:
            raise IchError(f"{path}: there are readers for {', '.join(READERS)} and .dcm, none for {suffix!r}")
        return READERS[suffix](path)
    except OSError as error:
        raise IchError(f"{path} cannot be read: {error.strerror or error}; was it converted?") from error


def recolor(image: np.ndarray, color_mode: str) -> np.ndarray:
    """Bring an image of 1, 3 or 4 channels to those of the mode: grayscale 1, rgb 3, rgba 4.

    Grey is 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601), as Keras and Pillow have it; alpha that is missing is
    255.

    Raises:
        IchError: an unknown mode, or an image of other channels.
    """
    if color_mode not in COLOR_MODES:
        raise IchError(f"color_mode is {color_mode!r}, expected one of {', '.join(COLOR_MODES)}")
    wanted, channels = (1, 3, 4)[COLOR_MODES.index(color_mode)], image.shape[-1]
    if channels == wanted:
        return image
    codes = {
        (1, 3): cv2.COLOR_GRAY2RGB,
        (1, 4): cv2.COLOR_GRAY2RGBA,
        (3, 1): cv2.COLOR_RGB2GRAY,
        (3, 4): cv2.COLOR_RGB2RGBA,
        (4, 1): cv2.COLOR_RGBA2GRAY,
        (4, 3): cv2.COLOR_RGBA2RGB,
    }
    if image.ndim != 3 or (channels, wanted) not in codes:
        raise IchError(f"an image of shape {image.shape} has no color_mode {color_mode}, only 1, 3 and 4 channels do")
    out = cv2.cvtColor(image, codes[channels, wanted])
    return out if out.ndim == 3 else out[..., None]


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Scale to (height, width), whatever the proportions; any number of channels.

    Raises:
        IchError: an unknown interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise IchError(f"interpolation is {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")
    if image.shape[:2] == tuple(size):
        return image
    out = cv2.resize(image, (size[1], size[0]), interpolation=INTERPOLATIONS[interpolation])
    return out if out.ndim == 3 else out[..., None]  # cv2 drops a single channel
