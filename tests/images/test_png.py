import io
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from ich.errors import IchError
from ich.images import png

KINDS = {1: 0, 3: 2}  # the color types of gray and RGB

images = st.tuples(st.integers(1, 80), st.integers(1, 40), st.sampled_from([1, 3])).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 40, 128, 254, 255]))
)


def chunk(kind, data):
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png_of(image, filters=0, tail=b"", interlaced=0, width=None, stream=None, mark=b"", own=False):
    """A PNG of 8 bits of an image (height, width, channels), its rows said to be filtered; with our mark if `own`."""
    height, wide, channels = image.shape
    rows = np.insert(image.reshape(height, -1), 0, filters, axis=1)
    header = (width or wide).to_bytes(4) + height.to_bytes(4) + bytes([8, KINDS[channels], 0, 0, interlaced])
    stream = stream or zlib.compress(rows.tobytes() + tail)
    mark = stream[-4:] if own else mark
    marked = chunk(b"icRS", mark) if mark else b""
    return png.SIGNATURE + chunk(b"IHDR", header) + marked + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def by_opencv(data):
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return image[..., None] if image.ndim == 2 else image[..., ::-1]


@given(images)
def test_others_read_what_is_written_and_so_do_we(image):
    data = png.encode(image)
    np.testing.assert_array_equal(by_opencv(data), image)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))).reshape(image.shape), image)
    np.testing.assert_array_equal(png.decode(data), image)
    assert png.size(data) == image.shape[1::-1]


def test_black_rows_have_no_filter_and_are_read():
    image = np.zeros((90, 20, 1), np.uint8)
    image[30:41] = np.random.default_rng(0).integers(1, 256, (11, 20, 1))
    rows = zlib.decompress(png.encode(image)[57:-16])
    filters = np.frombuffer(rows, np.uint8).reshape(90, 21)[:, 0]
    assert np.flatnonzero(filters).tolist() == [30, 31, *range(33, 42)]
    np.testing.assert_array_equal(png.decode(png.encode(image)), image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", [np.s_[::2], np.s_[:, ::-1], np.s_[3:70, 5:20]])
def test_any_view_is_written(channels, view):
    image = np.random.default_rng(0).integers(0, 256, (90, 70, channels), dtype=np.uint8)[view]
    before = image.copy()
    np.testing.assert_array_equal(by_opencv(png.encode(image)), before)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 1), np.uint16),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 0, 1), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_it_does_not_write(image):
    with pytest.raises(IchError, match=r"uint8 of shape \(height, width, 1 or 3\), got"):
        png.encode(image)


def test_any_other_file_is_left_to_a_library():
    image = np.random.default_rng(0).integers(0, 256, (70, 17, 1), dtype=np.uint8)
    plain, ours = png_of(image), png.encode(image)
    # A tool that filters the rows anew and, against the standard, keeps a chunk that it does not know.
    kept = png_of(image, filters=1, mark=ours[41:45])
    others = {
        "empty": b"",
        "no PNG": b"GIF89a" + bytes(40),
        "a signature alone": png.SIGNATURE,
        "of another writer": plain,
        "filtered by another": kept,
        "cut": ours[:-13],
        "cut within the pixels": ours[:200],
        "continued": ours + b"more",
        "with a chunk that is not known": ours[:-12] + chunk(b"teXt", b"a") + ours[-12:],
        "with a palette": ours[:33] + chunk(b"PLTE", bytes(3)) + ours[33:],
        "of 16 bits": cv2.imencode(".png", image.astype(np.uint16))[1].tobytes(),
        "with another length": ours[:51] + bytes([ours[51] ^ 1]) + ours[52:],
        "with a byte of the pixels changed": ours[:90] + bytes([ours[90] ^ 1]) + ours[91:],
        "with another checksum": ours[:-17] + bytes([ours[-17] ^ 1]) + ours[-16:],
        "with more data": png_of(image, tail=b"1", own=True),
        "with less data": png_of(image[:, :-1], width=17, own=True),
        "interlaced": png_of(image, interlaced=1, own=True),
        "of no width": png_of(image[:, :0], own=True),
        "that is no stream": png_of(image, stream=b"nonsense", own=True),
        "whose header was changed": ours[:19] + bytes([ours[19] ^ 1]) + ours[20:],
        "of more data than is inflated here": png.encode(
            np.random.default_rng(0).integers(0, 256, (600, 600, 1), np.uint8)
        ),
    }
    assert png.decode(ours) is not None
    for what, data in others.items():
        assert png.decode(data) is None, what


def test_compressed_anew_it_is_still_read():
    image = np.random.default_rng(0).integers(0, 256, (70, 17, 1), dtype=np.uint8)
    ours = png.encode(image)
    stream = zlib.compress(zlib.decompress(ours[57:-16]), 9)
    again = ours[:49] + chunk(b"IDAT", stream) + ours[-12:]
    np.testing.assert_array_equal(png.decode(again), image)


def test_no_memory_is_taken_for_what_a_header_alone_says():
    image = np.zeros((4, 4, 1), np.uint8)
    assert png.decode(png_of(image, width=2**31 - 1, own=True)) is None
    assert png.decode(png_of(image, tail=bytes(50_000_000), own=True)) is None


def test_a_png_is_whole_if_its_chunks_end_within_it():
    data = png.encode(np.zeros((20, 30, 1), np.uint8))
    assert png.whole(data)
    assert png.whole(data + b"more")
    assert not any(png.whole(data[:length]) for length in range(len(data)))
    place = data.index(b"IDAT") - 4
    assert not png.whole(data[:place] + b"\xa4" + data[place + 1 :])
