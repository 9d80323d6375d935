import io
import zlib

import cv2
import numpy as np
import pytest
from conftest import make_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ich.dicom import reader
from ich.dicom.windows import PRESETS, apply_window
from ich.errors import IchError
from ich.images import png
from ich.images.reading import COLOR_MODES, INTERPOLATIONS, READERS, check, read, recolor, resize, view

GRAY = np.arange(20 * 30, dtype=np.int64).reshape(20, 30) % 251
COLOR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)


def encoded(image, suffix=".png"):
    """The file's bytes; `image` in red, green, blue."""
    blue_first = image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]
    done, data = cv2.imencode(suffix, blue_first)
    assert done
    return data.tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("image", [GRAY, COLOR, np.dstack([COLOR, GRAY])], ids=["gray", "color", "alpha"])
def test_png_comes_back_with_its_channels_in_order(tmp_path, image, dtype):
    image = image.astype(dtype)
    path = tmp_path / "image.png"
    path.write_bytes(encoded(image))
    back = read(path)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, image if image.ndim == 3 else image[..., None])


@pytest.mark.parametrize("channels", [1, 3])
def test_our_png_is_an_array_of_its_own_and_a_view_of_it_has_the_same_pixels(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png.encode(image))
    own, seen = read(tmp_path / "a.png"), view(tmp_path / "a.png")
    assert own.flags.writeable
    assert own.flags.c_contiguous
    for pixels in (own, seen):
        np.testing.assert_array_equal(pixels, image)
        for mode in COLOR_MODES:
            np.testing.assert_array_equal(recolor(pixels, mode), recolor(image, mode))
        for interpolation in INTERPOLATIONS:
            smaller = resize(image, (13, 17), interpolation)
            np.testing.assert_array_equal(resize(pixels, (13, 17), interpolation), smaller)


def by_pillow(image, suffix):
    """The file that Pillow writes."""
    file = io.BytesIO()
    formats = {".jp2": "JPEG2000", ".webp": "WEBP", ".bmp": "BMP"}
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(image).save(file, formats.get(suffix, "TIFF" if "tif" in suffix else "PPM"), **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".TIFF", ".webp", ".jp2", ".ppm", ".pgm", ".pnm"])
@pytest.mark.parametrize("image", [GRAY, COLOR], ids=["gray", "color"])
def test_other_formats_come_back_with_their_channels_in_order(tmp_path, suffix, image):
    image = image.astype(np.uint8)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(by_pillow(image, suffix))
    expected = image if image.ndim == 3 else image[..., None]
    # WebP has no gray.
    np.testing.assert_array_equal(
        read(path), np.repeat(expected, 3, 2) if suffix == ".webp" and image.ndim == 2 else expected
    )


def test_a_bitmap_of_one_bit_is_black_and_white(tmp_path):
    bits = GRAY > 100
    for name in ("image.pbm", "image.bmp", "image.tif"):
        Image.fromarray(bits).save(tmp_path / name)
        np.testing.assert_array_equal(read(tmp_path / name), 255 * bits[..., None].astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("image", [GRAY, COLOR], ids=["gray", "color"])
def test_a_tiff_of_more_bits_comes_back_in_its_type(tmp_path, dtype, image):
    image = (image * 100).astype(dtype)
    path = tmp_path / "image.tif"
    path.write_bytes(encoded(image, ".tif"))
    back = read(path)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, image if image.ndim == 3 else image[..., None])


def test_what_opencv_would_read_in_part_or_spoil_is_refused(tmp_path):
    path = tmp_path / "image.tif"
    gray = Image.fromarray(GRAY.astype(np.uint8))
    gray.save(path, save_all=True, append_images=[gray, gray])
    with pytest.raises(IchError, match=r"image.tif holds several pages, expected one image; write each to a file"):
        read(path)
    for mode in ("RGBA", "CMYK"):  # of which OpenCV multiplies the colors by alpha, and gives the other as they are
        Image.fromarray(np.dstack([COLOR, GRAY]).astype(np.uint8), mode).save(path)
        with pytest.raises(IchError, match=r"image.tif is a TIFF of four channels, which may be alpha or CMYK"):
            read(path)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_comes_back_nearly(tmp_path, suffix):
    smooth = np.dstack([np.full((32, 32), v, np.uint8) for v in (200, 100, 20)])
    path = tmp_path / f"image{suffix}"
    path.write_bytes(encoded(smooth, ".jpg"))
    assert np.abs(read(path).astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("image", [GRAY, COLOR], ids=["gray", "color"])
def test_npy_comes_back_in_its_type(tmp_path, image, dtype):
    path = tmp_path / "image.npy"
    np.save(path, image.astype(dtype))
    back = read(path)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, image if image.ndim == 3 else image[..., None])


@pytest.mark.parametrize("name", ["image.gif", "image"])
def test_an_unknown_suffix_lists_the_known(tmp_path, name):
    with pytest.raises(IchError, match=r"readers for \.png, \.jpg, .*\.npy and \.dcm, none for"):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", READERS)
def test_a_missing_file_and_a_folder_are_reported(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    with pytest.raises(IchError, match=r"image\..* cannot be read: No such file .*was it converted"):
        read(path)
    path.mkdir()
    with pytest.raises(IchError, match="cannot be read: Is a directory"):
        read(path)


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"PK\x03\x04"])
def test_what_is_no_image_is_reported(tmp_path, suffix, data):
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
        np.savez(file, GRAY)
    with pytest.raises(IchError, match="holds no array"):
        read(path)
    for shape in ((), (5,)):
        np.save(path, np.zeros(shape))
        with pytest.raises(IchError, match=r"holds an array of shape .*, expected \(height, width\[, …\]\)"):
            read(path)


def test_volumes_come_as_they_are(tmp_path):
    volume = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.save(tmp_path / "image.npy", volume)
    np.testing.assert_array_equal(read(tmp_path / "image.npy"), volume)


def test_an_array_larger_than_memory_is_refused(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, np.zeros((10, 10)))
    path.write_bytes(path.read_bytes().replace(b"(10, 10)", b"(9**9,9)"))
    with pytest.raises(IchError, match="holds no array"):
        read(path)
    path.write_bytes(path.read_bytes().replace(b"(9**9,9), }      ", b"(999999999999999, 9), }"))
    with pytest.raises(IchError, match="holds no array"):
        read(path)


@pytest.mark.parametrize("image", [GRAY, COLOR], ids=["gray", "color"])
def test_a_cut_png_is_refused_not_half_read(tmp_path, image):
    path = tmp_path / "image.png"
    noise = np.random.default_rng(0).integers(0, 256, (*image.shape[:2], *image.shape[2:])).astype(np.uint8)
    data = encoded(noise)
    for cut in range(0, len(data) - 12, 17):
        path.write_bytes(data[:cut])
        with pytest.raises(IchError, match="holds no image"):
            read(path)


def stored_array():
    file = io.BytesIO()
    np.save(file, COLOR.astype(np.uint8))
    return file.getvalue()


FILES = {
    ".png": encoded(COLOR.astype(np.uint8)),
    ".jpg": encoded(COLOR.astype(np.uint8), ".jpg"),
    ".npy": stored_array(),
}


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
        assert read(path).ndim >= 2
    except IchError as error:
        text = str(error)
        assert "holds no image" in text or "by its header" in text or "holds no array" in text or "of shape" in text


def test_a_length_beyond_the_file_takes_no_memory(tmp_path, monkeypatch):
    """OpenCV would take what the damaged length says: 2.7 GB."""
    monkeypatch.setattr("ich.images.reading.cv2.imdecode", None)
    data = FILES[".png"]
    place = data.index(b"IDAT") - 4
    (tmp_path / "one.png").write_bytes(data[:place] + b"\xa4" + data[place + 1 :])
    with pytest.raises(IchError, match=r"one.png holds no image that can be decoded"):
        read(tmp_path / "one.png")


@pytest.mark.parametrize("name", ["huge.png", "huge.jpg"])
def test_a_png_of_20_000_pixels_a_side_is_refused_by_its_header(tmp_path, name):
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (20_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # a bit a pixel, gray
    rows = zlib.compress(bytes(20_000 * (1 + 20_000 // 8)), 9)
    path = tmp_path / name
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert path.stat().st_size < 60_000
    with pytest.raises(IchError, match="has 20,000 × 20,000 pixels by its header, expected at most 8,192 a side"):
        read(path)


# ------------------------------------------------------------------------------------------------- DICOM


def test_dicom_through_a_window_or_several(tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(make_dicom())
    hu = reader.read(path)[0]
    brain, bone = PRESETS["brain"], PRESETS["bone"]
    np.testing.assert_array_equal(read(path, brain), apply_window(hu, brain)[..., None])
    both = read(path, [brain, bone])
    assert both.shape == (32, 32, 2)
    np.testing.assert_array_equal(both[..., 1], apply_window(hu, bone))


def test_dicom_without_a_window_and_damaged_dicom_are_reported(tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(make_dicom())
    with pytest.raises(IchError, match=r"image\.dcm is read through a window; pass one"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(IchError, match=r"image\.dcm: "):
        read(path, PRESETS["brain"])
    path.unlink()
    with pytest.raises(IchError, match=r"image\.dcm: .*No such file"):
        read(path, PRESETS["brain"])


# ------------------------------------------------------------------------------------------------- colors


@pytest.mark.parametrize("mode", COLOR_MODES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colors_are_those_of_pillow(mode, channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    pillow = Image.fromarray(image[..., 0] if channels == 1 else image)
    expected = np.asarray(pillow.convert({"grayscale": "L", "rgb": "RGB", "rgba": "RGBA"}[mode]))
    result = recolor(image, mode)
    assert result.shape == (20, 30, {"grayscale": 1, "rgb": 3, "rgba": 4}[mode])
    # Gray is rounded at another place.
    assert np.abs(result.astype(int) - expected.reshape(result.shape)).max() <= (mode == "grayscale" and channels > 1)


def test_what_has_no_colors_is_refused():
    with pytest.raises(IchError, match="color_mode is 'bgr', expected one of grayscale, rgb, rgba"):
        recolor(COLOR, "bgr")
    for shape in ((4, 4, 9), (2, 4, 4, 3)):
        with pytest.raises(IchError, match="has no color_mode grayscale, only 1, 3 and 4 channels do"):
            recolor(np.zeros(shape, np.uint8), "grayscale")
    with pytest.raises(IchError, match="an image of int64 has no color_mode; convert it to uint8"):
        recolor(COLOR, "grayscale")


# ------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("channels", [1, 3, 4, 9])
@pytest.mark.parametrize("size", [(11, 20), (20, 30), (71, 60)])
def test_any_number_of_channels_is_scaled_as_each_alone(interpolation, channels, size):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    scaled = resize(image, size, interpolation)
    assert scaled.shape == (*size, channels)
    assert scaled.dtype == np.uint8
    for channel in range(channels):
        alone = resize(image[..., [channel]], size, interpolation)[..., 0]
        assert np.abs(scaled[..., channel].astype(int) - alone).max() <= 1


@pytest.mark.parametrize("size", [(11, 20), (7, 7), (71, 60), (40, 31)])
def test_nearest_is_that_of_pillow(size):
    image = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resize(image[..., None], size, "nearest")[..., 0], expected)


PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("size", [(11, 20), (7, 7), (3, 2), (20, 11), (71, 60), (40, 31), [5, 9]])
@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_smooth_ones_are_those_of_pillow_which_widens_its_filters(interpolation, size, channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    resized = resize(image, size, interpolation)
    assert resized.dtype == np.uint8
    assert resized.flags.writeable
    for channel in range(channels):
        expected = Image.fromarray(image[..., channel]).resize((size[1], size[0]), PILLOW[interpolation])
        np.testing.assert_array_equal(resized[..., channel], expected)


def test_a_reduced_chessboard_is_gray():
    board = (np.indices((128, 128)).sum(0) // 2 % 2 * 255).astype(np.uint8)[..., None]
    for interpolation in PILLOW:
        inside = resize(board, (16, 16), interpolation)[2:-2, 2:-2].astype(int)
        assert np.abs(inside - 127.5).max() < 15, interpolation


@pytest.mark.parametrize("interpolation", ["nearest", *PILLOW])
def test_alpha_weighs_the_colors_as_in_pillow(interpolation):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    how = Image.Resampling.NEAREST if interpolation == "nearest" else PILLOW[interpolation]
    expected = np.asarray(Image.fromarray(image, "RGBA").resize((20, 11), how))
    np.testing.assert_array_equal(resize(image, (11, 20), interpolation, alpha=True), expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64])
def test_other_types_are_scaled_like_uint8_and_keep_theirs(interpolation, dtype):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 2), dtype=np.uint8)
    resized = resize(image.astype(dtype), (9, 14), interpolation)
    assert resized.dtype == dtype
    within = np.abs(resized.clip(0, 255) - resize(image, (9, 14), interpolation).astype(float))  # lanczos goes beyond
    assert within.max() <= (1 if interpolation != "area" else 0.51)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_what_goes_beyond_a_types_limits_is_clipped_and_not_wrapped_around(interpolation, dtype):
    limits = np.iinfo(dtype)
    edge = np.broadcast_to(np.where(np.arange(30) < 15, limits.min, limits.max).astype(dtype)[:, None], (20, 30, 1))
    resized = resize(edge, (20, 60), interpolation)[..., 0].astype(int)
    middle = (int(limits.min) + int(limits.max)) / 2
    assert (resized[:, :28] < middle).all()
    assert (resized[:, 32:] > middle).all()


def test_what_cannot_be_scaled_is_refused():
    with pytest.raises(IchError, match="interpolation is 'cubic', expected one of nearest, bilinear, bicubic, hamming"):
        resize(COLOR, (5, 5), "cubic")
    for size in (5, (5,), (0, 5), (5, 5, 3), (5.0, 5.5), "55"):
        with pytest.raises(IchError, match=r"target_size is .*, expected \(height, width\)"):
            resize(COLOR, size, "nearest")
    with pytest.raises(IchError, match="an image of int64 cannot be scaled; convert it to uint8 or float32"):
        resize(COLOR, (5, 5), "bilinear")
    with pytest.raises(IchError, match=r"shape \(2, 3, 4, 5\) cannot be scaled; expected"):
        resize(np.zeros((2, 3, 4, 5)), (5, 5), "nearest")
    check(None, None, "nearest")
