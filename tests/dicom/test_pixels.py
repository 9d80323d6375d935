"""Stored values from pixel data: byte order, compression, the high bit, padding and overlays."""

import io

import numpy as np
import pydicom
import pytest
from conftest import make_dicom
from made_slices import (
    CODECS,
    changed,
    oracle_hu,
    packed,
    refused,
    tissue,
    values,
    with_overlay,
)
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    RLELossless,
)

from ich.dicom import decoding, pixels
from ich.dicom.reader import AIR, read
from ich.dicom.slice_error import DicomError


@pytest.mark.parametrize("vr", ["OB", "OW"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda s: s.name)
def test_bytes_come_in_the_order_that_pydicom_gives(vr, syntax):
    stored = values(8, shape=(8, 8))
    data = make_dicom(stored, syntax=syntax, BitsStored=8)
    if vr == "OW":  # of big-endian words, the bytes are swapped in pairs (PS3.5, 7.3)
        data = data.replace(
            b"\x7f\xe0\x00\x10OB" if syntax == ExplicitVRBigEndian else b"\xe0\x7f\x10\x00OB", b"@@@@@@"
        )
        data = data.replace(
            b"@@@@@@", b"\x7f\xe0\x00\x10OW" if syntax == ExplicitVRBigEndian else b"\xe0\x7f\x10\x00OW"
        )
    assert vr == pydicom.dcmread(io.BytesIO(data))["PixelData"].VR
    np.testing.assert_array_equal(read(data)[0], oracle_hu(data))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("bits", "signed", "intercept"), [(12, False, -1024), (16, True, -1024)])
def test_lossless_jpeg_gives_the_same_units(tmp_path, codec, bits, signed, intercept):
    stored = values(bits, signed, low=-2000 if signed else 0, high=4000)
    plain = make_dicom(stored, BitsStored=bits, RescaleIntercept=intercept)
    np.testing.assert_array_equal(read(packed(plain, codec, tmp_path))[0], read(plain)[0])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless], ids=lambda s: s.name)
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("padding", [-2000, -3024, -32768])
def test_padding_becomes_air(syntax, bits, padding):
    # -3024 in 12 bits is not what 12 bits hold: masked to them it would read as 1072 HU, which is bone.
    stored = values(bits, True, low=-1024, high=2000)
    expected = stored.copy()
    stored[:, :5], expected[:, :5] = padding, AIR
    hu, header = read(make_dicom(stored, syntax=syntax, BitsStored=bits, RescaleIntercept=0))
    np.testing.assert_array_equal(hu, expected)
    assert header.repaired == ()


def test_an_overlay_beside_the_pixels_says_nothing_of_their_bits():
    words = (tissue((24, 24)) + 1024).astype(np.uint16)
    words[9, :9] += 4096
    data = with_overlay(make_dicom(words), 12)
    np.testing.assert_array_equal(read(data)[0], oracle_hu(data))
    beside = changed(data, (0x60003000, "OW", b"\0" * 72))
    refused(beside, "bad_pixels", "nothing tells")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless], ids=lambda s: s.name)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high"), [(12, 15), (12, 12), (13, 14), (12, 13)])
def test_values_that_end_below_the_high_bit_are_read(syntax, signed, bits, high):
    hu = tissue((24, 24))
    field = (hu if signed else hu + 1024).astype(np.int16 if signed else np.uint16)
    tags = {"BitsStored": bits, "HighBit": high, "RescaleIntercept": 0 if signed else -1024}
    by = high - bits + 1
    got, header = read(make_dicom(field << by, syntax=syntax, **tags))
    np.testing.assert_array_equal(got, hu)
    assert header.repaired == ()
    junk = (field << by) | np.random.default_rng(0).integers(0, 2**by, hu.shape).astype(field.dtype)
    np.testing.assert_array_equal(read(with_overlay(make_dicom(junk, syntax=syntax, **tags), 0))[0], hu)
    refused(make_dicom(junk, syntax=syntax, **tags), "bad_pixels", f"the lowest {by} bits")
    refused(make_dicom(field, syntax=syntax, **tags), "bad_pixels", "HighBit")


@pytest.mark.parametrize("high", [0, 10, 16, 40])
def test_a_high_bit_that_cannot_be_is_reported(high):
    refused(make_dicom(HighBit=high), "bad_tag", f"HighBit is {high}", "BitsStored 12")


@pytest.mark.parametrize("bits", [12, 16])
def test_a_jpeg_2000_stream_of_the_other_sign_is_no_white_air(tmp_path, bits):
    hu = tissue((24, 24)).astype(np.int16)
    data = packed(make_dicom(hu, BitsStored=bits, RescaleIntercept=0), "JPEG2000Lossless", tmp_path)
    np.testing.assert_array_equal(read(data)[0], hu)
    unsigned = changed(data, ("PixelRepresentation", "US", 0))
    refused(unsigned, "bad_pixels", "JPEG 2000", "negative", "PixelRepresentation")
    # Where both signs mean the same, there is nothing to decide.
    data = packed(make_dicom(abs(hu), BitsStored=bits, RescaleIntercept=0), "JPEG2000Lossless", tmp_path)
    np.testing.assert_array_equal(read(changed(data, ("PixelRepresentation", "US", 0)))[0], abs(hu))
    # The reverse: an unsigned stream of what are negative values by the header.
    words = (hu.astype(int) & (2**bits - 1)).astype(np.uint16)
    data = packed(make_dicom(words, BitsStored=bits, RescaleIntercept=0), "JPEG2000Lossless", tmp_path)
    np.testing.assert_array_equal(read(changed(data, ("PixelRepresentation", "US", 1)))[0], hu)


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda s: s.name)
def test_padding_above_all_tissue_is_air(vr, syntax):
    hu = tissue((24, 24))
    words = (hu + 1024).astype(np.uint16)
    words[:8], hu[:8] = 63536, AIR
    value = 63536 if vr == "US" else -2000
    data = changed(make_dicom(words, syntax=syntax, BitsStored=16), (0x00280120, vr, value))
    np.testing.assert_array_equal(read(data)[0], hu)
    assert read(data)[1].repaired == ()
    # 4095 of 12 bits, where every value fits.
    words[:8] = 4095
    np.testing.assert_array_equal(read(make_dicom(words, PixelPaddingValue=4095))[0], hu)
    # Of a file that was wrapped, it is no air that wrapped.
    odd = make_dicom(np.where(words == 4095, 4095, words % 2000).astype(np.uint16), PixelPaddingValue=4095,
                     RescaleIntercept=0)  # fmt: skip
    assert read(odd)[1].repaired == ()


@pytest.mark.parametrize("ends", [(60000, 65535), (65535, 60000)])
def test_a_range_of_padding_is_air_to_its_ends(ends):
    words = (tissue((24, 24)) + 1024).astype(np.uint16)
    words[0, :4] = 59999, 60000, 62000, 65535
    data = make_dicom(words, BitsStored=16, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1])
    expected = oracle_hu(data)
    assert expected[0, 0] == 32767
    expected[0, 1:4] = AIR
    np.testing.assert_array_equal(read(data)[0], expected)


def test_padding_that_looks_like_tissue_stays_and_an_empty_one_says_nothing():
    data = make_dicom(PixelPaddingValue=1064)  # 40 HU
    np.testing.assert_array_equal(read(data)[0], oracle_hu(data))
    data = changed(make_dicom(), (0x00280120, "US", None))
    np.testing.assert_array_equal(read(data)[0], oracle_hu(data))
    refused(changed(make_dicom(), (0x00280120, "US", [1, 2])), "bad_tag", "PixelPaddingValue is [1, 2]")


@pytest.mark.parametrize("more", [1, 2, 3, 64, 4094])
def test_bytes_after_the_last_pixel_are_left_out(more):
    stored = values(shape=(32, 64))
    data = make_dicom(stored, pixels=stored.tobytes() + b"\x7f" * (more + more % 2))
    np.testing.assert_array_equal(read(data)[0], read(make_dicom(stored))[0])


@pytest.mark.parametrize("images", [2, 3])
def test_bytes_of_another_image_after_the_last_pixel_are_no_padding(images):
    stored = values(shape=(5, 7))
    with pytest.raises(
        DicomError, match=rf"^{70 * images} bytes of pixel data, which is {images} such images$"
    ) as error:
        read(make_dicom(stored, pixels=stored.tobytes() * images))
    assert error.value.kind == "bad_pixels"


@pytest.mark.parametrize(
    ("tags", "kind", "said"),
    [
        ({"Rows": 0}, "bad_tag", "0 × 32"),
        ({"Rows": 65535, "Columns": 65535}, "bad_tag", "65535 × 65535, expected 1 to 4096"),
        ({"BitsAllocated": 12}, "bad_tag", "BitsAllocated 12"),
        ({"BitsAllocated": 64, "BitsStored": 64}, "bad_tag", "BitsAllocated 64"),
        ({"BitsStored": 0}, "bad_tag", "BitsStored 0"),
        ({"BitsStored": 17}, "bad_tag", "BitsStored 17"),
        ({"PixelRepresentation": 2}, "bad_tag", "PixelRepresentation 2"),
        ({"Rows": 33}, "truncated", "2,048 bytes of pixel data, expected 2,112"),
        ({"drop": ["PixelData"]}, "no_pixels", "no PixelData"),
        ({"raw": {"PixelData": b""}}, "no_pixels", "empty"),
    ],
)
def test_pixel_data_that_cannot_be_are_reported(tags, kind, said):
    refused(make_dicom(**tags), kind, said)


def test_pixel_data_of_another_type_are_reported():
    data = make_dicom().replace(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00UT")
    refused(data, "bad_tag", "PixelData is of type UT")


@pytest.mark.parametrize("uid", ["1.2.3.4", "nonsense", "1.2.840.10008.1.2.4.9999", "1.2.840.10008.1.1"])
def test_an_unknown_transfer_syntax_is_named(uid):
    old, new = (u.encode() + b"\0" * (len(u) % 2) for u in (str(ExplicitVRLittleEndian), uid))
    header = b"\x02\x00\x10\x00UI"
    data = make_dicom()
    assert header + bytes([len(old), 0]) + old in data
    data = data.replace(header + bytes([len(old), 0]) + old, header + bytes([len(new), 0]) + new)
    refused(data, "unsupported", uid)


def test_a_transfer_syntax_without_a_decoder_is_named(monkeypatch):
    def none(syntax):
        raise NotImplementedError

    monkeypatch.setattr(pixels, "get_decoder", none)
    refused(make_dicom(syntax=RLELossless), "unsupported", "decodes RLE Lossless")
    monkeypatch.undo()
    if not pydicom.pixels.get_decoder(HTJ2KLossless).is_available:
        ds = pydicom.dcmread(io.BytesIO(make_dicom(syntax=RLELossless)))
        ds.file_meta.TransferSyntaxUID = HTJ2KLossless
        file = io.BytesIO()
        ds.save_as(file)
        refused(file.getvalue(), "unsupported", "High-Throughput JPEG 2000")


def test_compressed_pixels_that_do_not_decode_are_reported():
    data = make_dicom(syntax=RLELossless)
    at = data.index(b"\xe0\x7f\x10\x00OB") + 12 + 8 + 8
    refused(data[:at] + b"\xff" * 64 + data[at + 64 :], "bad_pixels", "RLE Lossless does not decode")
    refused(data[: at + 100], "truncated", "ends inside an element")


def test_decoded_to_another_shape_is_reported(monkeypatch):
    monkeypatch.setattr(decoding, "decode", lambda *_: (np.zeros((2, 32, 32), np.uint16), False))
    refused(make_dicom(syntax=RLELossless), "bad_pixels", "(2, 32, 32), expected (32, 32)")
