"""Encode and decode PNG files of windowed slices by ISA-L, in a third of libpng's time.

A private chunk marks the files written here and holds the checksum of the filtered rows: while that is right, the rows
have the filters chosen here, even if another program has compressed them again.

Sections are those of the PNG specification, third edition (W3C, 2025).
"""

import numpy as np
from isal import igzip_lib, isal_zlib

from ich.errors import IchError

SIGNATURE = b"\x89PNG\r\n\x1a\n"  # 5.2

_HEADERS = {1: b"\x08\x00\x00\x00\x00", 3: b"\x08\x02\x00\x00\x00"}  # 11.2.1: depth 8, gray or RGB, not interlaced
_OWN = b"icRS"  # 5.4: ancillary, private, not to be copied to an image that was changed
_NONE, _UP = 0, 2  # 9.2: filter types: none; the difference to the row above
_STRIP = 16
"""Rows in a strip. The first row of a strip has no filter, so that all strips are decoded at once, one row of each in a
step; more rows make files smaller and reading slower."""

# Best compression for the time, by number of channels; docs/benchmarks.md has the table. Noise in the brain is full of
# chance repetitions, which cost more than they save: in a single window, only runs of equal bytes are sought.
_DEFLATE = {
    1: {"level": 1, "hist_bits": 2, "mem_level": igzip_lib.MEM_LEVEL_MEDIUM},
    3: {"level": 2, "hist_bits": 15, "mem_level": igzip_lib.MEM_LEVEL_SMALL},
}
_PACKED = 2**18
"""Compressed bytes that are inflated here at most: to 270 MB in a decompression bomb, by deflate's limit of 1,032:1."""


def encode(image: np.ndarray) -> bytes:
    """Return a PNG of the image; its bytes are the same on processors of one kind, its pixels on all.

    Args:
        image: uint8, shape (height, width, 1) for gray, (height, width, 3) for red, green and blue.

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
    if channels == 1:  # with three channels the filter gains nothing
        rows[:, 0] = _filters(pixels)
        rows[1:, 1:] -= pixels[:-1]
        rows[::_STRIP, 1:] = pixels[::_STRIP]
    data = igzip_lib.compress(rows, flag=igzip_lib.COMP_ZLIB, **_DEFLATE[channels])
    header = width.to_bytes(4) + height.to_bytes(4) + _HEADERS[channels]
    chunks = [b"IHDR" + header, _OWN + data[-4:], b"IDAT" + data, b"IEND"]
    return SIGNATURE + b"".join(map(_chunk, chunks))


def size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels from a PNG's header (11.2.1); None if the data are not a PNG."""
    if len(data) < 24 or not data.startswith(SIGNATURE):
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def whole(data: bytes) -> bool:
    """Return whether all chunks of a PNG (5.3) end within the data, up to IEND.

    If one does not, OpenCV allocates as much memory as its damaged length says, up to 4 GB, before it refuses it.
    """
    at = len(SIGNATURE)
    while len(data) >= at + 12:
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4])
    return False


def decode(data: bytes) -> np.ndarray | None:
    """Return the pixels of a PNG that `encode` wrote.

    Returns:
        uint8, shape (height, width, 1 or 3), of three channels read-only and with a byte between rows: where they were
        inflated. None for any other PNG, for more than 256 KiB of data, and for a damaged file: a library decodes or
        refuses those.
    """
    channels = next((count for count, header in _HEADERS.items() if header == data[24:29]), None)
    width, height = size(data) or (0, 0)
    packed = memoryview(data)[57:-16]
    if (
        channels is None
        or 0 in (width, height)
        or data[8:33] != _chunk(b"IHDR" + data[16:29])
        or data[33:49] != _chunk(_OWN + data[-20:-16])
        or data[49:57] != len(packed).to_bytes(4) + b"IDAT"
        or data[-12:] != _chunk(b"IEND")
    ):
        return None
    length = height * (1 + width * channels)
    if len(packed) > _PACKED or length > 1100 * len(packed):
        return None
    try:
        # Verifies the checksum; one step is enough if the length is as expected.
        inflated = isal_zlib.decompress(packed, bufsize=length + 1)
    except igzip_lib.IsalError:
        return None
    if len(inflated) != length:
        return None
    rows = np.frombuffer(inflated, np.uint8).reshape(height, -1)[:, 1:]
    pixels = _unfiltered(rows) if channels == 1 else rows
    return pixels.reshape(height, width, channels)


def _unfiltered(rows: np.ndarray) -> np.ndarray:
    """Return pixels from their differences to the row above, in strips of `_STRIP` rows; shape (height, n).

    Sums within pairs of rows first, then from each pair to the next, and so on: 4 steps instead of 15 row by row. Each
    step releases Python's lock, for which other threads may be waiting.
    """
    height, n = rows.shape
    pixels = np.empty((-(-height // _STRIP) * _STRIP, n), np.uint8)
    pixels[:height] = rows
    summed = 1  # rows
    while summed < _STRIP:
        blocks = pixels.reshape(-1, 2, summed, n)
        blocks[:, 1] += blocks[:, 0, -1:]
        summed *= 2
    return pixels[:height]


def _filters(pixels: np.ndarray) -> np.ndarray:
    """Return the filter type of each row of a gray image of shape (height, width).

    A black row below a black one is the same with and without a filter, and smaller without: the number of a filter
    would end the run of zeros.
    """
    filters = np.full(len(pixels), _UP, np.uint8)
    filters[::_STRIP] = _NONE
    black = pixels.max(axis=1) == 0
    filters[1:][black[1:] & black[:-1]] = _NONE
    return filters


def _chunk(content: bytes) -> bytes:
    """Return a chunk (5.3): the length of its data, its type and data, and their CRC."""
    return (len(content) - 4).to_bytes(4) + content + isal_zlib.crc32(content).to_bytes(4)
