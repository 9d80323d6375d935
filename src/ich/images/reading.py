"""Read image files as arrays; convert their colors and scale them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tokenize import TokenError  # raised by NumPy's parser of headers

import cv2
import numpy as np
from PIL import Image

from ich.dicom import reader
from ich.dicom.slice_error import DicomError
from ich.dicom.windows import Window, apply_windows
from ich.errors import IchError, one_line
from ich.images import png

MAX_SIDE = 8192
"""Pixels; a PNG whose header says more is damaged or a decompression bomb, and is refused before allocation."""

_PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}
_OPENCV = {"nearest": cv2.INTER_NEAREST_EXACT, "area": cv2.INTER_AREA}

INTERPOLATIONS = ("nearest", *_PILLOW, "area")
"""Keras's names, with the same pixels: Pillow's, whose filters widen when they reduce, against aliasing. And OpenCV's
`area`, with which `ich.images.render` reduces."""

COLOR_MODES = ("grayscale", "rgb", "rgba")
"""Keras's names."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF 6.0, section 2, and BigTIFF


def _read_cv2(path: Path) -> np.ndarray:
    data = path.read_bytes()
    size = png.size(data)  # whatever the suffix: cv2 goes by the content
    if size is not None:
        if max(size) > MAX_SIDE:
            raise IchError(
                f"{path} has {size[0]:,} × {size[1]:,} pixels by its header, expected at most {MAX_SIDE:,} a side"
            )
        image = png.decode(data)
        if image is not None:
            return image
    readable = data and (size is None or png.whole(data))
    buffer = np.frombuffer(data, np.uint8)
    pages: Sequence = ()
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED) if readable else None
        if image is not None and data[:4] in _TIFF:
            pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED, range=(0, 2))[1]
    except cv2.error:  # in other formats: sides beyond OpenCV's own limit
        image = None
    if image is None:
        raise IchError(
            f"{path} holds no image that can be decoded ({len(data):,} bytes); delete it, and write it again"
        )
    if len(pages) > 1:
        raise IchError(f"{path} holds several pages, expected one image; write each to a file, or give reader=")
    if image.ndim == 2:
        return image[..., None]
    # alpha or CMYK: OpenCV does not say which, and may have multiplied by it
    if image.shape[2] == 4 and data[:4] in _TIFF:
        raise IchError(f"{path} is a TIFF of four channels, which may be alpha or CMYK; convert it to PNG")
    if image.dtype not in (np.uint8, np.uint16, np.float32):  # cvtColor takes no other dtypes
        return np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[2]]])
    # cv2 returns blue first; a fourth channel, alpha, stays last.
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError, SyntaxError, TokenError, OverflowError, TypeError) as error:
        raise IchError(f"{path} holds no array that can be read without unpickling ({one_line(error)})") from error
    if array.ndim < 2:
        raise IchError(f"{path} holds an array of shape {array.shape}, expected (height, width[, …])")
    return array[..., None] if array.ndim == 2 else array


def _read_dcm(path: Path, windows: Sequence[Window]) -> np.ndarray:
    try:
        return apply_windows(reader.read(path)[0], windows)
    except DicomError as error:
        raise IchError(f"{path}: {error}") from error


# Formats that OpenCV decodes in every build. Not GIF: not all builds do, and only the first frame is decoded.
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".pbm", ".pgm", ".ppm", ".pnm")

READERS: dict[str, Callable[[Path], np.ndarray]] = dict.fromkeys(_IMAGES, _read_cv2) | {".npy": _read_npy}

SUFFIXES = (*READERS, ".dcm")


def read(path: Path, window: Window | Sequence[Window] | None = None) -> np.ndarray:
    """Read an image by its suffix: one of `READERS`, or .dcm through one window or several, one channel each.

    Returns:
        The file's dtype (uint8 for the PNGs of `ich.images.convert` and for a window), shape (height, width, channels):
        one channel for a gray image, three in the order red, green, blue. Arrays of more dimensions (volumes) are
        returned unchanged.

    Raises:
        IchError: no reader for the suffix, a .dcm without a window, a missing file or one that does not decode, or a
            TIFF of several pages or four channels.
    """
    image = view(path, window)
    return image if image.flags.writeable else image.copy()


def view(path: Path, window: Window | Sequence[Window] | None = None) -> np.ndarray:
    """Read an image as `read` does, to copy it elsewhere: the array may be read-only, and its rows lie apart."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".dcm":
            if window is None:
                raise IchError(f"{path} is read through a window; pass one, such as window=PRESETS['brain']")
            return _read_dcm(path, [window] if isinstance(window, Window) else window)
        if suffix not in READERS:
            raise IchError(f"{path}: there are readers for {', '.join(READERS)} and .dcm, none for {suffix!r}")
        return READERS[suffix](path)
    except OSError as error:
        raise IchError(f"{path} cannot be read: {one_line(error)}; was it converted?") from error


def check(color_mode: str | None, target_size: tuple[int, int] | None, interpolation: str) -> None:
    """Refuse arguments that `recolor` and `resize` do not take.

    Raises:
        IchError: an unknown color_mode or interpolation, or a size other than a height and a width of at least 1.
    """
    if color_mode is not None and color_mode not in COLOR_MODES:
        raise IchError(f"color_mode is {color_mode!r}, expected one of {', '.join(COLOR_MODES)}")
    if interpolation not in INTERPOLATIONS:
        raise IchError(f"interpolation is {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")
    size = np.asarray((1, 1) if target_size is None else target_size)
    if size.shape != (2,) or size.dtype.kind not in "iu" or size.min() < 1:
        raise IchError(f"target_size is {target_size}, expected (height, width)")


def recolor(image: np.ndarray, color_mode: str) -> np.ndarray:
    """Convert an image of 1, 3 or 4 channels to the channels of the mode: grayscale 1, rgb 3, rgba 4.

    Gray is 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601), as in Keras and Pillow, which may round to the next
    level; missing alpha is 255.

    Raises:
        IchError: an unknown mode, an image of other channels, or a dtype that OpenCV does not take.
    """
    check(color_mode, None, "nearest")
    expected, channels = (1, 3, 4)[COLOR_MODES.index(color_mode)], image.shape[-1]
    if channels == expected:
        return image
    codes = {
        (1, 3): cv2.COLOR_GRAY2RGB,
        (1, 4): cv2.COLOR_GRAY2RGBA,
        (3, 1): cv2.COLOR_RGB2GRAY,
        (3, 4): cv2.COLOR_RGB2RGBA,
        (4, 1): cv2.COLOR_RGBA2GRAY,
        (4, 3): cv2.COLOR_RGBA2RGB,
    }
    if image.ndim != 3 or (channels, expected) not in codes:
        raise IchError(f"an image of shape {image.shape} has no color_mode {color_mode}, only 1, 3 and 4 channels do")
    try:
        out = cv2.cvtColor(image, codes[channels, expected])
    except cv2.error as error:
        raise IchError(f"an image of {image.dtype} has no color_mode; convert it to uint8") from error
    return out if out.ndim == 3 else out[..., None]


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str, alpha: bool = False) -> np.ndarray:
    """Scale to (height, width), whatever the proportions; any number of channels.

    Args:
        interpolation: one of `INTERPOLATIONS`. All but nearest and area compute in float32 what is not uint8.
        alpha: weight the first three channels by the fourth, as Keras and Pillow do in RGBA; without it, and with
            nearest and area, each channel is scaled by itself.

    Raises:
        IchError: an unknown interpolation, an invalid size, or an image of a dtype that cannot be scaled.
    """
    check(None, size, interpolation)
    if image.shape[:2] == tuple(size):
        return image
    if image.ndim != 3:
        raise IchError(f"an image of shape {image.shape} cannot be scaled; expected (height, width, channels)")
    refusal = f"an image of {image.dtype} cannot be scaled; convert it to uint8 or float32"
    channels = image.shape[-1]
    if interpolation in _PILLOW:
        if not (image.dtype.kind == "f" or (image.dtype.kind in "iu" and image.dtype.itemsize <= 2)):
            raise IchError(refusal)
        if image.dtype == np.uint8 and (channels == 3 or (channels == 4 and alpha)):
            return np.array(Image.fromarray(image).resize((size[1], size[0]), _PILLOW[interpolation]))
        return np.stack([_by_pillow(image[..., at], size, interpolation) for at in range(channels)], axis=-1)
    try:
        # At most four channels at a time: `area` takes no more.
        parts = [
            cv2.resize(image[..., first : first + 4], (size[1], size[0]), interpolation=_OPENCV[interpolation])
            for first in range(0, channels, 4)
        ]
    except cv2.error as error:
        raise IchError(refusal) from error
    parts = [part if part.ndim == 3 else part[..., None] for part in parts]  # cv2 drops a single channel
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _by_pillow(channel: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Return one channel scaled by Pillow, in its dtype; integers are rounded and clipped."""
    scalable = channel if channel.dtype == np.uint8 else channel.astype(np.float32)
    scaled = np.asarray(Image.fromarray(scalable).resize((size[1], size[0]), _PILLOW[interpolation]))
    if channel.dtype.kind == "f" or channel.dtype == np.uint8:
        return scaled.astype(channel.dtype)
    limits = np.iinfo(channel.dtype)
    return np.clip(np.rint(scaled), limits.min, limits.max).astype(channel.dtype)
