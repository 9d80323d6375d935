import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.errors import IchError
from ich.images import READERS, read

GREY = np.arange(20 * 30, dtype=np.int64).reshape(20, 30) % 251
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def encoded(image, suffix=".png"):
    """The file's bytes; `image` in red, green, blue."""
    blue_first = image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]
    done, data = cv2.imencode(suffix, blue_first)
    assert done
    return data.tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("image", [GREY, COLOUR, np.dstack([COLOUR, GREY])], ids=["grey", "colour", "alpha"])
def test_png_comes_back_with_its_channels_in_order(tmp_path, image, dtype):
    image = image.astype(dtype)
    path = tmp_path / "image.png"
    path.write_bytes(encoded(image))
    back = read(path)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, image if image.ndim == 3 else image[..., None])


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_comes_back_nearly(tmp_path, suffix):
    smooth = np.dstack([np.full((32, 32), v, np.uint8) for v in (200, 100, 20)])
    path = tmp_path / f"image{suffix}"
    path.write_bytes(encoded(smooth, ".jpg"))
    assert np.abs(read(path).astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_npy_comes_back_in_its_type(tmp_path, image, dtype):
    path = tmp_path / "image.npy"
    np.save(path, image.astype(dtype))
    back = read(path)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, image if image.ndim == 3 else image[..., None])


@pytest.mark.parametrize("name", ["image.gif", "image", "image.dcm"])
def test_an_unknown_suffix_lists_the_known(tmp_path, name):
    with pytest.raises(IchError, match=r"readers for \.png, \.jpg, \.jpeg, \.npy, none for"):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", READERS)
def test_a_missing_file_and_a_folder_are_told(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    with pytest.raises(IchError, match=r"image\..* cannot be read: No such file .*was it converted"):
        read(path)
    path.mkdir()
    with pytest.raises(IchError, match="cannot be read: Is a directory"):
        read(path)


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"PK\x03\x04"])
def test_what_is_no_image_is_told(tmp_path, suffix, data):
    path = tmp_path / f"image{suffix}"
    path.write_bytes(data)
    with pytest.raises(IchError, match=r"image\..*holds no (image|array)"):
        read(path)


def test_arrays_of_objects_archives_and_other_shapes_are_refused(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, np.array([[{"run": "me"}]], dtype=object), allow_pickle=True)
    with pytest.raises(IchError, match="without unpickling"):
        read(path)
    with path.open("wb") as file:
        np.savez(file, GREY)
    with pytest.raises(IchError, match="holds no array"):
        read(path)
    for shape in ((), (5,), (2, 3, 4, 5)):
        np.save(path, np.zeros(shape))
        with pytest.raises(IchError, match=r"expected \(height, width\[, channels\]\)"):
            read(path)


def test_an_array_larger_than_memory_is_refused(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, np.zeros((10, 10)))
    path.write_bytes(path.read_bytes().replace(b"(10, 10)", b"(9**9,9)"))
    with pytest.raises(IchError, match="holds no array"):
        read(path)
    path.write_bytes(path.read_bytes().replace(b"(9**9,9), }      ", b"(999999999999999, 9), }"))
    with pytest.raises(IchError, match="holds no array"):
        read(path)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_cut_png_is_refused_not_half_read(tmp_path, image):
    path = tmp_path / "image.png"
    noise = np.random.default_rng(0).integers(0, 256, (*image.shape[:2], *image.shape[2:])).astype(np.uint8)
    data = encoded(noise)
    for cut in range(0, len(data) - 12, 17):
        path.write_bytes(data[:cut])
        with pytest.raises(IchError, match="holds no image"):
            read(path)


FILES = {".png": encoded(COLOUR.astype(np.uint8)), ".jpg": encoded(COLOUR.astype(np.uint8), ".jpg")}


@settings(max_examples=150, deadline=2000)
@given(
    suffix=st.sampled_from(list(FILES)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_a_damaged_image_is_read_or_refused_and_nothing_else(tmp_path_factory, suffix, changes):
    data = bytearray(FILES[suffix])
    for place, byte in changes:
        data[int(place * len(data))] = byte
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(data)
    try:
        assert read(path).ndim == 3
    except IchError as error:
        told = str(error)
        assert "holds no image" in told or "says that it has" in told


def test_a_png_that_claims_to_be_huge_is_refused_by_its_header(tmp_path):
    path = tmp_path / "huge.png"
    _, png = cv2.imencode(".png", np.zeros((4, 4), np.uint8))
    data = bytearray(png.tobytes())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    path.write_bytes(data)
    with pytest.raises(IchError, match="says that it has 20,000 × 20,000 pixels"):
        read(path)
