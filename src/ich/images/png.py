"""PNG files of windowed slices, written and read by ISA-L: a third of the time that libpng takes for either.

Files that are written here are told by a chunk of their own, which holds the checksum of the filtered rows: as long as
that is right, the rows have the filters that they were given here, whoever has compressed them anew.

Sections are those of the PNG specification, third edition (W3C, 2025).
"""

import numpy as np
from isal import igzip_lib, isal_zlib

from ich.errors import IchError

SIGNATURE = b"\x89PNG\r\n\x1a\n"  # 5.2

_HEADERS = {1: b"\x08\x00\x00\x00\x00", 3: b"\x08\x02\x00\x00\x00"}  # 11.2.1: depth 8, grey or RGB, not interlaced
_OWN = b"icRS"  # 5.4: ancillary, private, not to be copied to an image that was changed
_NONE, _UP = 0, 2  # 9.2: a row as it is; the difference to the row above
_STRIP = 16
"""Rows. Of each strip the first has no filter, so that all strips can be undone at once, a row of each in a step; more
rows make files smaller and reading slower."""

# What compresses slices best in the least time, by channels; docs/benchmarks.md has the table. Noise in the brain is
# full of chance repetitions, which cost more than they save: of one window, only runs of equal bytes are sought.
_DEFLATE = {
    1: {"level": 1, "hist_bits": 2, "mem_level": igzip_lib.MEM_LEVEL_MEDIUM},
    3: {"level": 2, "hist_bits": 15, "mem_level": igzip_lib.MEM_LEVEL_SMALL},
}
_PACKED = 2**18
"""Bytes that are inflated here at most: to 270 MB if they are a trap, as deflate packs up to 1,032 bytes into one."""


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
    chunks = [b"IHDR" + header, _OWN + data[-4:], b"IDAT" + data, b"IEND"]
    return SIGNATURE + b"".join(map(_chunk, chunks))


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
    """The pixels of a PNG that `encode` wrote.

    Returns:
        uint8, shape (height, width, 1 or 3); None of any other PNG, of one with more than 256 KiB of data, and of a
        damaged one: those are a library's to judge.
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
        # Checks their checksum, and needs no second step if there are as many as there should be.
        found = isal_zlib.decompress(packed, bufsize=length + 1)
    except igzip_lib.IsalError:
        return None
    if len(found) != length:
        return None
    rows = np.frombuffer(found, np.uint8).reshape(height, -1)[:, 1:]
    pixels = _unfiltered(rows) if channels == 1 else rows.copy()
    return pixels.reshape(height, width, channels)


def _unfiltered(rows: np.ndarray) -> np.ndarray:
    """Pixels from their differences to the row above, in strips of `_STRIP` rows; (height, n).

    Within pairs of rows first, then from each pair to the next, and so on. To add row by row would take 15 steps in
    place of these 4; at each, NumPy lets go of Python's lock, for which other threads are waiting.
    """
    height, n = rows.shape
    pixels = np.empty((-(-height // _STRIP) * _STRIP, n), np.uint8)
    pixels[:height] = rows
    done = 1
    while done < _STRIP:
        blocks = pixels.reshape(-1, 2, done, n)
        blocks[:, 1] += blocks[:, 0, -1:]
        done *= 2
    return pixels[:height]


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
