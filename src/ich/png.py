"""PNG files of windowed slices, written and read by ISA-L: a third of the time that libpng takes for either.

Sections are those of the PNG specification, third edition (W3C, 2025).
"""

import numpy as np
from isal import igzip_lib, isal_zlib

from ich.errors import IchError

SIGNATURE = b"\x89PNG\r\n\x1a\n"  # 5.2

_HEADERS = {1: b"\x08\x00\x00\x00\x00", 3: b"\x08\x02\x00\x00\x00"}  # 11.2.1: depth 8, grey or RGB, not interlaced
_NONE, _UP = 0, 2  # 9.2: a row as it is; the difference to the row above
_STRIP = 16
"""Rows. Of each strip the first has no filter, so that all strips can be undone at once, a row of each in a step; more
rows make files smaller and reading slower."""

# What compresses slices best in the least time, by channels; benchmarks/RESULTS.md has the table. Noise in the brain is
# full of chance repetitions, which cost more than they save: of one window, only runs of equal bytes are sought.
_DEFLATE = {
    1: {"level": 1, "hist_bits": 2, "mem_level": igzip_lib.MEM_LEVEL_MEDIUM},
    3: {"level": 2, "hist_bits": 15, "mem_level": igzip_lib.MEM_LEVEL_SMALL},
}


def encode(image: np.ndarray) -> bytes:
    """A PNG of the image; the bytes are the same on processors of one kind, the pixels on all.

    Args:
        image: uint8, shape (height, width, 1) for grey, (height, width, 3) for red, green and blue.

    Raises:
        IchError: any other dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in _HEADERS or 0 in image.shape:
        raise IchError(f"a PNG holds uint8 of shape (height, width, 1 or 3), got {image.dtype} of {image.shape}")
    height, width, channels = image.shape
    pixels = image.reshape(height, -1)
    rows = np.empty((height, 1 + pixels.shape[1]), np.uint8)
    rows[:, 0] = _NONE
    rows[:, 1:] = pixels
    if channels == 1:  # of three, the filter gains nothing
        rows[:, 0] = _filters(pixels)
        rows[1:, 1:] -= pixels[:-1]
        rows[::_STRIP, 1:] = pixels[::_STRIP]
    data = igzip_lib.compress(rows, flag=igzip_lib.COMP_ZLIB, **_DEFLATE[channels])
    header = width.to_bytes(4) + height.to_bytes(4) + _HEADERS[channels]
    return SIGNATURE + _chunk(b"IHDR" + header) + _chunk(b"IDAT" + data) + _chunk(b"IEND")


def size(data: bytes) -> tuple[int, int] | None:
    """Width and height as a PNG's header says (11.2.1), in pixels; None of what is no PNG."""
    if len(data) < 24 or not data.startswith(SIGNATURE):
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def whole(data: bytes) -> bool:
    """Whether all chunks of a PNG (5.3) end within the file, up to IEND.

    Of one that does not, OpenCV takes as much memory as the damaged length says, up to 4 GB, before it refuses it.
    """
    at = len(SIGNATURE)
    while len(data) >= at + 12:
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4])
    return False


def decode(data: bytes) -> np.ndarray | None:
    """The pixels of a PNG such as `encode` writes: 8 bits, grey or red, green, blue, with its filters or none.

    Returns:
        uint8, shape (height, width, 1 or 3); None of any other PNG, and of a damaged one: those are a library's to
        judge.
    """
    channels = next((count for count, header in _HEADERS.items() if header == data[24:29]), None)
    width, height = size(data) or (0, 0)
    if channels is None or not width or not height:
        return None
    at, kind, stream = len(SIGNATURE), b"", []
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4])
        chunk, crc = data[at + 4 : end], data[end : end + 4]
        kind = chunk[:4]
        if kind not in (b"IHDR", b"IDAT", b"IEND") or isal_zlib.crc32(chunk).to_bytes(4) != crc:
            return None
        if kind == b"IDAT":
            stream.append(chunk[4:])
        at = end + 4
    row = 1 + width * channels
    inflater = isal_zlib.decompressobj()
    try:
        found = inflater.decompress(b"".join(stream), height * row + 1)  # at most one byte more than there may be
    except isal_zlib.error:
        return None
    if not inflater.eof or len(found) != height * row:
        return None
    rows = np.frombuffer(found, np.uint8).reshape(height, row)
    filters, pixels = rows[:, 0], rows[:, 1:].copy()
    if filters.any():
        for k in range(1, _STRIP):
            below = pixels[k::_STRIP]
            below += pixels[k - 1 :: _STRIP][: len(below)]
        if not np.array_equal(filters, _filters(pixels)):
            return None
    return pixels.reshape(height, width, channels)


def _filters(pixels: np.ndarray) -> np.ndarray:
    """The filter of each row of a grey image, shape (height, width).

    Black rows below black ones are the same with a filter and without, and smaller without: a filter's number would end
    the run of zeros.
    """
    filters = np.full(len(pixels), _UP, np.uint8)
    filters[::_STRIP] = _NONE
    black = pixels.max(axis=1) == 0
    filters[1:][black[1:] & black[:-1]] = _NONE
    return filters


def _chunk(content: bytes) -> bytes:
    """5.3: a chunk's length, its kind and data, and their CRC."""
    return (len(content) - 4).to_bytes(4) + content + isal_zlib.crc32(content).to_bytes(4)
