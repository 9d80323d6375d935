import io
import logging
import pickle
import random
import warnings

import numpy as np
import pydicom
import pytest
from conftest import UID_A, make_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.pixels import apply_modality_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    RLELossless,
)

from ich.dicom import pixels, reader
from ich.dicom.reader import AIR, read
from ich.dicom.slice_error import KINDS, DicomError
from ich.dicom.windows import PRESETS, apply_window

SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
]
# As in the competition: bits stored, signed, intercept, range of the values.
STORED_AS = [(12, False, -1024), (12, False, -1000), (12, True, 0), (16, True, -1024), (16, True, 0)]


def values(bits=12, signed=False, shape=(32, 24), seed=0, low=None, high=None):
    """Random stored values over the range of so many bits, its two ends among them."""
    low = (-(2 ** (bits - 1)) if signed else 0) if low is None else low
    high = (2 ** (bits - (1 if signed else 0)) - 1) if high is None else high
    dtype = np.dtype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")
    stored = np.random.default_rng(seed).integers(low, high, shape, endpoint=True).astype(dtype)
    stored.flat[:2] = low, high
    return stored


def oracle_hu(data):
    """pydicom's own way, in float64, and then what this project promises on top: whole units, none below air."""
    ds = pydicom.dcmread(io.BytesIO(data))
    return np.clip(np.rint(np.asarray(apply_modality_lut(ds.pixel_array, ds), np.float64)), AIR, 32767)


def failure(data):
    with pytest.raises(DicomError) as caught:
        read(data)
    assert caught.value.kind in KINDS
    assert str(caught.value) == caught.value.reason
    return caught.value


def refused(data, kind, *said):
    """`data` is refused as `kind`, with a sentence that says each of `said`."""
    error = failure(data)
    assert error.kind == kind, error.reason
    for word in said:
        assert str(word) in error.reason


# ---------------------------------------------------------------------------------------------- Hounsfield units


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
@pytest.mark.parametrize(("bits", "signed", "intercept"), STORED_AS)
def test_agrees_with_pydicom_in_every_encoding(syntax, bits, signed, intercept):
    data = make_dicom(values(bits, signed), syntax=syntax, BitsStored=bits, RescaleIntercept=intercept)
    hu, header = read(data)
    assert hu.dtype == np.int16
    np.testing.assert_array_equal(hu, oracle_hu(data))
    assert header.repaired == ()
    assert (header.BitsStored, header.PixelRepresentation) == (bits, int(signed))
    ds = pydicom.dcmread(io.BytesIO(data))
    real = np.asarray(apply_modality_lut(ds.pixel_array, ds), np.float64)
    for window in PRESETS.values():
        share = np.clip((real - (window.center - window.width / 2)) / window.width, 0, 1)
        assert np.abs(apply_window(hu, window) - np.rint(share * 255)).max() <= 1


@given(
    bits=st.integers(1, 16),
    signed=st.booleans(),
    wide=st.booleans(),
    slope=st.sampled_from([1, 1.0, 2, 0.5, 0.1, 1.25, 2.44140625, -1]),
    intercept=st.sampled_from([-1024, -1000, -8192, 0.5, -1023.5, 1000]),
    seed=st.integers(0, 99),
)
def test_agrees_with_pydicom_at_any_depth_and_scale(bits, signed, wide, slope, intercept, seed):
    stored = values(bits, signed, (6, 5), seed)
    if wide:
        stored = stored.astype(stored.dtype.kind + "4")
    data = make_dicom(stored, BitsStored=bits, RescaleSlope=slope, RescaleIntercept=intercept)
    hu, header = read(data)
    np.testing.assert_array_equal(hu, oracle_hu(data))
    assert (header.RescaleSlope, header.RescaleIntercept) == (slope, intercept)


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


CODECS = ["JPEGLSLossless", "JPEG2000Lossless", "JPEGLosslessProcess14_1"]


def packed(plain, codec, folder):
    """The slice with its pixels compressed by GDCM, which decodes them too but encodes by code of its own."""
    gdcm = pytest.importorskip("gdcm")
    (folder / "plain.dcm").write_bytes(plain)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, codec)))
    change.SetInput(reader.GetImage())
    if not change.Change():
        pytest.skip(f"this gdcm does not encode {codec}")
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(folder / "packed.dcm"))
    assert writer.Write()
    data = (folder / "packed.dcm").read_bytes()
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID.is_compressed
    return data


def changed(data, *elements):
    """The slice with other elements: (tag or keyword, VR, value)."""
    ds = pydicom.dcmread(io.BytesIO(data))
    for tag, vr, value in elements:
        ds.add_new(tag, vr, value)
    file = io.BytesIO()
    ds.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("bits", "signed", "intercept"), [(12, False, -1024), (16, True, -1024)])
def test_lossless_jpeg_gives_the_same_units(tmp_path, codec, bits, signed, intercept):
    stored = values(bits, signed, low=-2000 if signed else 0, high=4000)
    plain = make_dicom(stored, BitsStored=bits, RescaleIntercept=intercept)
    np.testing.assert_array_equal(read(packed(plain, codec, tmp_path))[0], read(plain)[0])


def test_monochrome1_changes_how_values_are_shown_not_what_they_mean():
    plain, inverted = make_dicom(), make_dicom(PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(inverted)[0], read(plain)[0])
    assert read(inverted)[1].PhotometricInterpretation == "MONOCHROME1"


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


def test_what_int16_does_not_hold_is_clipped_not_wrapped():
    stored = np.array([[0, 1000], [30000, 65535]], np.uint16)
    hu, _ = read(make_dicom(stored, BitsStored=16, RescaleSlope=2, RescaleIntercept=0))
    assert hu.tolist() == [[0, 2000], [32767, 32767]]


# -------------------------------------------------------------------------------------------------------- repairs


def wrapped(hu):
    """Stored as the 123 odd files of the competition are: HU modulo 4096 in 12 bits, intercept about 0."""
    return (hu.astype(np.int32) % 4096).astype(np.uint16)


def head(air_share=0.4, low=-1000):
    hu = np.random.default_rng(1).integers(-50, 90, (40, 40)).astype(np.int16)
    hu = abs(hu) if air_share == 0 else hu
    hu[: int(40 * air_share)] = low
    hu[-2:] = 1800  # bone
    return hu


@pytest.mark.parametrize("intercept", [0, 1])
def test_wrapped_files_are_unwrapped_and_told(intercept):
    hu, header = read(make_dicom(wrapped(head()), RescaleIntercept=intercept))
    np.testing.assert_array_equal(hu, head())
    assert header.repaired == ("wrapped",)
    assert header.RescaleIntercept == -1000


@pytest.mark.parametrize(
    ("why", "stored", "tags"),
    [
        ("the usual intercept", values(), {"RescaleIntercept": -1024}),
        ("another usual intercept", values(), {"RescaleIntercept": -1000}),
        ("signed", values(12, True), {"RescaleIntercept": 0}),
        ("16 bits", wrapped(head()), {"RescaleIntercept": 0, "BitsStored": 16}),
        ("no air that wrapped, but a little metal", wrapped(head(0)), {"RescaleIntercept": 0}),
        ("an intercept far from 0", wrapped(head()), {"RescaleIntercept": 1000}),
        ("another slope", wrapped(head()), {"RescaleIntercept": 0, "RescaleSlope": 0.5}),
        ("blank", np.zeros((16, 16), np.uint16), {"RescaleIntercept": 0}),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_look_alikes_of_wrapped_files_are_untouched(why, stored, tags):
    if "metal" in why:
        stored[0, :10] = 4000  # 10 pixels of 1,600
    data = make_dicom(stored, **tags)
    hu, header = read(data)
    assert header.repaired == ()
    np.testing.assert_array_equal(hu, oracle_hu(data))


@pytest.mark.parametrize("bits", [7, 11, 12, 13, 15])
def test_missing_sign_bits_are_mended_and_told(bits):
    stored = values(bits, True)
    bare = stored & (2**bits - 1)  # the unused high bits are 0
    hu, header = read(make_dicom(bare.astype(stored.dtype), BitsStored=bits, RescaleIntercept=0))
    np.testing.assert_array_equal(hu, np.maximum(stored.astype(int), AIR))
    assert header.repaired == ("sign",)


@pytest.mark.parametrize("name", [b"ct", b"Ct", b" ct ", b"cT\0\0"])
def test_a_modality_in_lower_case_is_ct_and_noted(name):
    hu, header = read(make_dicom(raw={"Modality": name}))
    np.testing.assert_array_equal(hu, read(make_dicom())[0])
    assert header.repaired == ("modality",)
    hu, header = read(make_dicom(wrapped(head()), raw={"Modality": name}, RescaleIntercept=0))
    np.testing.assert_array_equal(hu, head())
    assert header.repaired == ("wrapped", "modality")


@pytest.mark.parametrize("name", [b" CT ", b"CT  ", b"  ", b""])
def test_blanks_around_a_modality_are_no_part_of_it(name):  # PS3.5, 6.2
    assert read(make_dicom(raw={"Modality": name}))[1].repaired == ()
    refused(make_dicom(raw={"Modality": b" mr "}), "not_ct", "'mr', expected CT")


def test_metal_beyond_the_stored_bits_is_metal_where_the_sign_is_carried_through():
    hu, header = read(make_dicom(np.array([[-1000, 3071]], np.int16), BitsStored=12, RescaleIntercept=0))
    assert hu.tolist() == [[-1000, 3071]]
    assert header.repaired == ("more_bits",)


@pytest.mark.parametrize(
    ("stored", "bits"),
    [
        (np.array([[0, 4096]], np.uint16), 12),
        (np.array([[0, 4096]], np.int16), 12),
        (np.array([[-1, 40000]], np.int32), 16),
        (np.array([[0, 70000]], np.uint32), 16),
        (np.array([[-40000, 0]], np.int32), 16),
    ],
)
def test_values_beyond_the_stored_bits_are_refused(stored, bits):
    refused(make_dicom(stored, BitsStored=bits), "bad_pixels", stored.min(), stored.max(), f"{bits} bits")


# --------------------------------------------------------------------------------- what stands above the stored bits


def tissue(shape=(24, 24), seed=0):
    """HU of air to bone, of which the first rows are air."""
    hu = np.random.default_rng(seed).integers(-1000, 1999, shape, endpoint=True)
    hu[:4] = -1000
    return hu


def test_signed_values_without_sign_bits_and_padding_with_them():
    hu = tissue((64, 64))
    stored = (hu & 0xFFF).astype(np.uint16)
    stored[:8], hu[:8] = 0xF830, AIR  # -2000
    read_hu, header = read(make_dicom(stored, BitsStored=12, PixelRepresentation=1, RescaleIntercept=0))
    np.testing.assert_array_equal(read_hu, hu)
    assert header.repaired == ("sign",)


def with_overlay(data, bit, **more):
    overlay = [(0x60000010, "US", 24), (0x60000011, "US", 24), (0x60000100, "US", 16), (0x60000102, "US", bit)]
    return changed(data, *overlay, *((tag, "OW", value) for tag, value in more.items()))


@given(
    bits=st.integers(12, 15),
    signed=st.booleans(),
    above=st.sampled_from(["zero", "sign", "junk", "overlay"]),
    padding=st.sampled_from([None, -2000, -2048, -3024, -32768]),
    declared=st.booleans(),
    other_vr=st.booleans(),
    syntax=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless]),
    seed=st.integers(0, 999),
)
@settings(max_examples=250, deadline=2000)
def test_bits_above_the_stored_ones_are_no_part_of_the_value(
    bits, signed, above, padding, declared, other_vr, syntax, seed
):
    hu, rng = tissue(seed=seed), np.random.default_rng(seed)
    field = (hu if signed else hu + 1024) & (2**bits - 1)
    bit = int(rng.integers(bits, 16))
    high = {
        "zero": 0,
        "sign": (-1 if signed else 0) << bits & np.where(hu < 0, 0xFFFF, 0),
        "junk": rng.integers(0, 2 ** (16 - bits), hu.shape) << bits,
        "overlay": rng.integers(0, 2, hu.shape) << bit,
    }[above]
    words = (field | high).astype(np.uint16)
    expected = hu.copy()
    if padding is not None:
        words[:3] = padding & 0xFFFF
        expected[words == padding & 0xFFFF] = AIR  # among other bits, by chance, a value may be the padding's
    tags = {"BitsStored": bits, "PixelRepresentation": int(signed), "RescaleIntercept": 0 if signed else -1024}
    data = make_dicom(words, syntax=syntax, **tags)
    if above == "overlay":
        data = with_overlay(data, bit)
    if padding is not None and declared:
        unsigned = signed if other_vr else not signed
        data = changed(data, (0x00280120, "US" if unsigned else "SS", padding & 0xFFFF if unsigned else padding))
    told = None
    try:
        got, header = read(data)
    except DicomError as error:
        told = error
    if padding is None:
        np.testing.assert_array_equal(oracle_hu(data), expected)
    known = declared or padding in (None, -2000 if signed else None)
    if above in ("junk", "overlay") and not known:
        return  # what no element names is lost among other bits
    if above == "junk" and bits == 15:  # one bit is too few to tell chance from a wrong BitsStored
        assert told is None or (told.kind == "bad_pixels" and "nothing tells" in told.reason)
        return
    assert told is None, told.reason
    np.testing.assert_array_equal(got, expected)
    assert header.repaired == {"zero": ("sign",) if signed else (), "junk": ("high_bits",)}.get(above, ())


def test_what_nothing_decides_is_refused():
    hu = tissue((40, 40))
    unsigned = (hu + 1024).astype(np.uint16)
    few = unsigned.copy()
    few[9, :9] += 4096  # metal of more bits than are told, or an overlay whose elements are gone
    refused(make_dicom(few), "bad_pixels", "more than 12 bits hold", "nothing tells")
    one = unsigned.copy()
    one[9, 9] |= 0x8000  # a pixel alone is no padding
    refused(make_dicom(one), "bad_pixels", "nothing tells")
    signed_after_all = hu.astype(np.int16).view(np.uint16)
    refused(make_dicom(signed_after_all, RescaleIntercept=0), "bad_pixels", "nothing tells")
    more_bits = (hu + 8192).astype(np.uint16)
    refused(make_dicom(more_bits, RescaleIntercept=-8192), "bad_pixels", "nothing tells")
    half = hu.copy()
    half[20:] &= 0xFFF
    half[20:] |= 0x1000 * (half[20:] > 3000)  # signs carried here, and other bits there
    refused(make_dicom(half.astype(np.int16), BitsStored=12, RescaleIntercept=0), "bad_pixels", "nothing tells")


def test_an_overlay_beside_the_pixels_says_nothing_of_their_bits():
    words = (tissue() + 1024).astype(np.uint16)
    words[9, :9] += 4096
    data = with_overlay(make_dicom(words), 12)
    np.testing.assert_array_equal(read(data)[0], oracle_hu(data))
    beside = changed(data, (0x60003000, "OW", b"\0" * 72))
    refused(beside, "bad_pixels", "nothing tells")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless], ids=lambda s: s.name)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high"), [(12, 15), (12, 12), (13, 14), (12, 13)])
def test_values_that_end_below_the_high_bit_are_read(syntax, signed, bits, high):
    hu = tissue()
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
def test_a_high_bit_that_cannot_be_is_told(high):
    refused(make_dicom(HighBit=high), "bad_tag", f"HighBit is {high}", "BitsStored 12")


@pytest.mark.parametrize("bits", [12, 16])
def test_a_jpeg_2000_stream_of_the_other_sign_is_no_white_air(tmp_path, bits):
    hu = tissue().astype(np.int16)
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


@pytest.mark.parametrize(("intercept", "padding"), [(-1024, [63536]), (-1024, [63536, 62512]), (-8192, [62512])])
def test_padding_of_16_bits_that_the_header_does_not_name_is_air(intercept, padding):
    hu = np.random.default_rng(0).integers(-1000, 2000, (32, 24))
    words = (hu - intercept).astype(np.uint16)
    for row, value in enumerate(padding):
        words[row] = value
        hu[row] = AIR
    read_hu, header = read(make_dicom(words, BitsStored=16, HighBit=15, RescaleIntercept=str(intercept)))
    np.testing.assert_array_equal(read_hu, hu)
    assert header.repaired == ()


@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda s: s.name)
def test_padding_above_all_tissue_is_air(vr, syntax):
    hu = tissue()
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
    words = (tissue() + 1024).astype(np.uint16)
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


# --------------------------------------------------------------------------------------------- what is no slice in HU


@pytest.mark.parametrize(
    ("tags", "kind", "said"),
    [
        ({"RescaleType": "ED"}, "not_hu", "RescaleType is ED, expected HU"),
        ({"RescaleType": "Z_EFF"}, "not_hu", "Z_EFF"),
        ({"RescaleType": "HU_MOD"}, "not_hu", "HU_MOD"),
        ({"RescaleType": ["HU", "mgml"]}, "not_hu", "MGML"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer", "ORIGINAL/PRIMARY/LOCALIZER"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "CT_SOM5 TOP", "localizer"]}, "localizer", "no slice"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary_capture", "Secondary Capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2", "Modality": "OT"}, "secondary_capture", "Secondary Capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4"}, "not_ct", "expected CT Image Storage"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}, "not_ct", "Positron Emission Tomography"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR", "drop": ["PixelData"]}, "not_ct", "'SR'"),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1", "drop": ["RescaleSlope", "RescaleIntercept"]},
            "unsupported",
            "an Enhanced CT (multi-frame) is not read here",
        ),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.2"}, "unsupported", "Enhanced CT"),
        ({"NumberOfFrames": 3, "drop": ["RescaleSlope"]}, "unsupported", "3 frame(s)"),
    ],
)
def test_what_is_no_slice_in_hounsfield_units_is_told(tags, kind, said):
    refused(make_dicom(**tags), kind, said)


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleType": "HU"},
        {"RescaleType": "hu "},
        {"RescaleType": "US"},  # unspecified: GDCM writes it into whatever it converts
        {"RescaleType": ""},
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]},
        {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        {"ImageType": ""},
        {"drop": ["SOPClassUID"]},  # as in the competition
        {"SOPClassUID": "ID_0123456789"},
        {"SOPClassUID": "1.3.12.2.1107.5.9.1"},
    ],
    ids=str,
)
def test_what_is_said_of_a_slice_in_hounsfield_units_changes_nothing(tags):
    np.testing.assert_array_equal(read(make_dicom(**tags))[0], read(make_dicom())[0])


# ------------------------------------------------------------------------------------------- readable, though unusual


def test_the_lowest_intercept_of_sixteen_bits_is_read():
    stored = np.array([[31768, 32768], [32808, 65535]], np.uint16)
    hu, _ = read(make_dicom(stored, BitsStored=16, RescaleIntercept=-32768))
    assert hu.tolist() == [[-1000, 0], [40, 32767]]


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


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 3), (4, 1), (1, 4), (2, 2), (1, 5)])
@pytest.mark.parametrize(("bits", "signed", "intercept"), STORED_AS)
@pytest.mark.parametrize("slope", [1, 0.5])
def test_a_few_pixels_are_an_image_too(shape, bits, signed, intercept, slope):
    stored = np.full(shape, 100, np.int16 if signed else np.uint16)
    stored.flat[-1] = 0
    hu, header = read(make_dicom(stored, BitsStored=bits, RescaleIntercept=intercept, RescaleSlope=slope))
    assert (hu.shape, hu.dtype, (header.Rows, header.Columns)) == (shape, np.int16, shape)
    np.testing.assert_array_equal(hu, np.maximum(stored.astype(int) * slope + intercept, AIR))


# --------------------------------------------------------------------------------------------------------- header


def test_header_is_typed_and_complete():
    data = make_dicom(WindowCenter=["00036", "00036"], WindowWidth=80, PixelSpacing=["0.488281", "0.488281"])
    assert read(data)[1] == reader.Header(
        SOPInstanceUID=UID_A,
        PatientID="ID_aaaaaaaa1",
        StudyInstanceUID="ID_bbbbbbbbb1",
        SeriesInstanceUID="ID_ccccccccc1",
        ImagePositionPatient=(-125.0, -100.0, 20.0),
        ImageOrientationPatient=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        PixelSpacing=(0.488281, 0.488281),
        Rows=32,
        Columns=32,
        BitsStored=12,
        PixelRepresentation=0,
        PhotometricInterpretation="MONOCHROME2",
        RescaleIntercept=-1024.0,
        RescaleSlope=1.0,
        WindowCenter=(36.0, 36.0),
        WindowWidth=(80.0,),
        repaired=(),
    )
    for value in read(data)[1].ImagePositionPatient:
        assert type(value) is float  # not one of pydicom's


@pytest.mark.parametrize("name", ["A\n1", "A\r1", "A\n", "\tA", "A\x1b[31m", "A\x1f"])
def test_a_control_character_is_part_of_a_patients_name(name):
    # PS3.5, 6.2 forbids it, but who is told apart by it must not become one.
    assert read(make_dicom(PatientID=name))[1].PatientID == name
    assert read(make_dicom(PatientID=f" {name}  "))[1].PatientID == name


OPTIONAL = [
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "WindowCenter",
    "WindowWidth",
]


@pytest.mark.parametrize("keyword", OPTIONAL)
def test_a_missing_or_empty_optional_element_is_none(keyword):
    for data in (make_dicom(drop=[keyword]), make_dicom(raw={keyword: b""}), make_dicom(raw={keyword: b"  "})):
        hu, header = read(data)
        assert getattr(header, keyword) is None
        np.testing.assert_array_equal(hu, read(make_dicom())[0])


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("value", [b"abc ", b"1\\2\\3\\4 ", b"nan\\nan\\nan", b"1e999\\0\\0", b"1\\\\2", b"\\\\"])
def test_geometry_that_is_no_set_of_numbers_is_none(keyword, value):
    assert getattr(read(make_dicom(raw={keyword: value}))[1], keyword) is None


def test_values_given_several_times_count_if_they_agree():
    assert read(make_dicom(RescaleIntercept=[-1024, -1024], RescaleSlope=[1, 1]))[1].RescaleIntercept == -1024
    refused(make_dicom(RescaleIntercept=[-1024, 0]), "bad_tag", "RescaleIntercept", "-1024", "0")


@pytest.mark.parametrize("keyword", ["SamplesPerPixel", "Modality", "HighBit"])
def test_elements_that_have_an_obvious_default_may_be_missing(keyword):
    np.testing.assert_array_equal(read(make_dicom(drop=[keyword]))[0], read(make_dicom())[0])


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "keyword",
    [
        "SOPInstanceUID",
        "RescaleSlope",
        "RescaleIntercept",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "PixelRepresentation",
        "TransferSyntaxUID",
    ],
)
def test_a_missing_element_is_named(keyword):
    refused(make_dicom(drop=[keyword]), "missing_tag", keyword, "missing")


@pytest.mark.parametrize("value", [b"abc ", b"1;0 ", b"nan ", b"inf ", b"1e999 ", b"1\\2 ", b"\xff\xfe"])
@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept", "NumberOfFrames"])
def test_a_nonsensical_number_is_named(keyword, value):
    refused(make_dicom(raw={keyword: value}), "bad_tag", keyword)


@pytest.mark.parametrize(
    ("tags", "kind", "said"),
    [
        ({"RescaleSlope": 0}, "bad_tag", "RescaleSlope 0"),
        ({"RescaleSlope": "1e30"}, "bad_tag", "no Hounsfield units"),
        ({"RescaleIntercept": "1e9"}, "bad_tag", "no Hounsfield units"),
        ({"Modality": "MR"}, "not_ct", "'MR', expected CT"),
        ({"Rows": 0}, "bad_tag", "0 × 32"),
        ({"Rows": 65535, "Columns": 65535}, "bad_tag", "65535 × 65535, expected 1 to 4096"),
        ({"NumberOfFrames": 2}, "unsupported", "2 frame(s)"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "unsupported", "3 sample(s) a pixel"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported", "PALETTE COLOR"),
        ({"PhotometricInterpretation": ""}, "unsupported", "None"),
        ({"BitsAllocated": 12}, "bad_tag", "BitsAllocated 12"),
        ({"BitsAllocated": 64, "BitsStored": 64}, "bad_tag", "BitsAllocated 64"),
        ({"BitsStored": 0}, "bad_tag", "BitsStored 0"),
        ({"BitsStored": 17}, "bad_tag", "BitsStored 17"),
        ({"PixelRepresentation": 2}, "bad_tag", "PixelRepresentation 2"),
        ({"Rows": 33}, "truncated", "2,048 bytes of pixel data, expected 2,112"),
        ({"raw": {"Rows": b"\x20"}}, "bad_tag", "Rows"),
        ({"raw": {"Rows": b"\x20\x00\x21\x00"}}, "bad_tag", "Rows is [32, 33]"),
        ({"raw": {"NumberOfFrames": b"1.5 "}}, "bad_tag", "NumberOfFrames"),
        ({"raw": {"NumberOfFrames": b"9" * 400}}, "bad_tag", "NumberOfFrames"),
        ({"raw": {"SOPInstanceUID": b""}}, "missing_tag", "no name"),
        ({"drop": ["PixelData"]}, "no_pixels", "no PixelData"),
        ({"raw": {"PixelData": b""}}, "no_pixels", "empty"),
    ],
)
def test_what_cannot_be_read_is_told(tags, kind, said):
    refused(make_dicom(**tags), kind, said)


def test_a_number_in_parts_is_named():
    # A sequence where a number belongs.
    data = make_dicom().replace(b"\x28\x00\x53\x10DS", b"\x28\x00\x53\x10SQ")
    assert failure(data).kind in ("bad_tag", "not_dicom", "missing_tag", "no_pixels", "truncated")


def test_pixel_data_of_another_type_are_told():
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


def test_compressed_pixels_that_do_not_decode_are_told():
    data = make_dicom(syntax=RLELossless)
    at = data.index(b"\xe0\x7f\x10\x00OB") + 12 + 8 + 8
    refused(data[:at] + b"\xff" * 64 + data[at + 64 :], "bad_pixels", "RLE Lossless does not decode")
    refused(data[: at + 100], "truncated", "ends inside an element")


def test_decoded_to_another_shape_is_told(monkeypatch):
    monkeypatch.setattr(pixels, "pixel_array", lambda ds, **_: np.zeros((2, 32, 32), np.uint16))
    refused(make_dicom(syntax=RLELossless), "bad_pixels", "(2, 32, 32), expected (32, 32)")


@pytest.mark.parametrize("data", [b"", b"DICM", b"\0" * 500, b"<html>no such file</html>" * 20, b"\x89PNG\r\n\x1a\n"])
def test_other_files_are_not_dicom(data):
    refused(data, "not_dicom", "DICM")


def test_damaged_elements_are_not_dicom():
    data = make_dicom(syntax=DeflatedExplicitVRLittleEndian)
    at = data.index(bytes.fromhex("0200 1000")) + 8 + len(DeflatedExplicitVRLittleEndian) + 40
    refused(data[:at] + b"\xff" * 20 + data[at + 20 :], "not_dicom", "cannot be parsed")


def test_an_element_cut_in_two_is_told(monkeypatch):
    def cut(file):
        raise EOFError("unexpected end of file")

    monkeypatch.setattr(pydicom, "dcmread", cut)
    refused(make_dicom(), "truncated", "ends inside an element")


def test_a_missing_file_is_unreadable(tmp_path):
    refused(tmp_path / "missing.dcm", "unreadable", "No such file")
    refused(tmp_path, "unreadable", "Is a directory")


def ends_of_elements(data):
    """Where an element ends and the next may begin: the file meta's, and before the pixel data."""
    ds = pydicom.dcmread(io.BytesIO(data))
    elements = [*ds.file_meta, *(e for e in map(ds.get_item, sorted(ds.keys())) if e.tag.group < 0x7FE0)]
    if ds.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        elements = [*ds.file_meta]
    lengths = [e.length if isinstance(e, RawDataElement) else 0 for e in elements]
    places = [e.value_tell if isinstance(e, RawDataElement) else e.file_tell for e in elements]
    return {132} | {place + length for place, length in zip(places, lengths, strict=True)}


@pytest.mark.parametrize("syntax", [*SYNTAXES, *CODECS], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_cut_anywhere_it_is_told_so(syntax, tmp_path):
    noise = values(12, shape=(24, 24), seed=1)
    data = packed(make_dicom(noise), syntax, tmp_path) if syntax in CODECS else make_dicom(noise, syntax=syntax)
    whole, ends = read(data)[0], ends_of_elements(data)
    for cut in [*range(0, len(data) - 1300, 7), *range(max(0, len(data) - 1300), len(data) - 8, 29)]:
        try:
            hu, _ = read(data[:cut])
        except DicomError as error:
            told = error
        else:
            np.testing.assert_array_equal(hu, whole)
            continue
        # At the end of an element nothing tells that there was more.
        kinds = ("not_dicom",) if cut < 132 else ("truncated", "no_pixels") if cut in ends else ("truncated",)
        assert told.kind in kinds, (cut, len(data), told.reason)
        assert told.identity.get("SOPInstanceUID") in (None, UID_A)
        assert told.identity.get("PatientID") in (None, "ID_aaaaaaaa1")


MUTATED = [make_dicom(syntax=syntax) for syntax in SYNTAXES] + [
    make_dicom(SpecificCharacterSet="ISO_IR 100", NumberOfFrames=1, PatientName="A^B", RescaleSlope=[1, 1])
]


@settings(max_examples=600, deadline=2000)
@given(
    data=st.sampled_from(MUTATED),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 255, None]), st.integers(0, 255)), max_size=6
    ),
    cut=st.none() | st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_read_or_refused_and_nothing_else(data, changes, cut):
    damaged = bytearray(data)
    head = max(140, len(data) - 2048)  # where most of what can go wrong lies
    for place, extreme, byte in changes:
        damaged[132 + int(place * (head - 132))] = byte if extreme is None else extreme
    if cut is not None:
        del damaged[int(cut * len(data)) :]
    try:
        hu, header = read(bytes(damaged))
    except DicomError as error:
        told = error
        assert told.kind in KINDS
        assert told.reason
    else:
        assert hu.dtype == np.int16
        assert hu.shape == (header.Rows, header.Columns)
        assert hu.min() >= AIR


@settings(max_examples=300, deadline=2000)
@given(
    keyword=st.sampled_from([*OPTIONAL, "Modality", "SOPInstanceUID", "RescaleSlope", "RescaleIntercept", "Rows",
                             "BitsStored", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"]),
    value=st.binary(max_size=24) | st.text(alphabet="0123456789.-+eE\\ ", max_size=16).map(str.encode),
    charset=st.sampled_from([b"ISO_IR 192", b"nonsense", b"utf-7", b"ISO 2022 87", b"rot13", b"zlib", b""]),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_any_value_in_any_element_is_read_or_refused(keyword, value, charset):
    data = make_dicom(raw={keyword: value + b"\0" * (len(value) % 2)}, SpecificCharacterSet="ISO_IR 192")
    data = data.replace(b"ISO_IR 192", charset[:10].ljust(10))
    try:
        hu, header = read(data)
    except DicomError as error:
        error.reason.encode(errors="backslashreplace")
    else:
        assert hu.shape == (header.Rows, header.Columns)
        for text in (header.SOPInstanceUID, header.PatientID, header.StudyInstanceUID, header.SeriesInstanceUID):
            (text or "").encode()  # a table takes it


@pytest.mark.filterwarnings("ignore")
def test_text_that_no_table_takes_is_made_harmless():
    data = make_dicom(raw={"PatientID": b"ID+2AA-"}, SpecificCharacterSet="ISO_IR 192")
    assert read(data.replace(b"ISO_IR 192", b"utf-7     "))[1].PatientID == "ID?"  # half of a surrogate pair


def test_random_bytes_after_the_mark_are_refused():
    generator = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in range(0, 3000, 97):
            failure(b"\0" * 128 + b"DICM" + generator.randbytes(length))


def test_the_error_survives_the_way_from_a_worker_process():
    error = pickle.loads(pickle.dumps(DicomError("truncated", "12 bytes, expected 24", {"PatientID": "ID_a"})))
    assert (type(error), error.kind, error.reason) == (DicomError, "truncated", "12 bytes, expected 24")
    assert str(error) == "12 bytes, expected 24"
    assert error.identity == {"PatientID": "ID_a"}


def test_a_slice_without_pixels_still_tells_what_it_is_of():
    whole = make_dicom()
    identity = {"SOPInstanceUID": UID_A, "PatientID": "ID_aaaaaaaa1"}
    identity |= {"StudyInstanceUID": "ID_bbbbbbbbb1", "SeriesInstanceUID": "ID_ccccccccc1"}
    for data in (whole[:-99], make_dicom(drop=["PixelData"]), make_dicom(RescaleSlope=0)):
        assert failure(data).identity == identity
    assert failure(make_dicom(drop=["StudyInstanceUID", "PixelData"])).identity == {
        keyword: value for keyword, value in identity.items() if keyword != "StudyInstanceUID"
    }
    assert failure(b"no slice at all").identity == {}


# ------------------------------------------------------------------------------------------------ how it is called


def test_path_text_bytes_and_file_give_the_same(tmp_path):
    data = make_dicom()
    path = tmp_path / "slice.dcm"
    path.write_bytes(data)
    hu, header = read(data)
    for source in (path, str(path), io.BytesIO(data)):
        again, other = read(source)
        np.testing.assert_array_equal(again, hu)
        assert other == header
    with path.open("rb") as file:
        np.testing.assert_array_equal(read(file)[0], hu)
        assert not file.closed


def test_ids_that_are_no_valid_uids_are_read_in_silence(caplog, recwarn):
    data = make_dicom()
    recwarn.clear()
    with caplog.at_level(logging.DEBUG):
        assert read(data)[1].StudyInstanceUID == "ID_bbbbbbbbb1"
    assert not caplog.records
    assert not recwarn.list


def test_the_result_can_be_written_to():
    hu, _ = read(make_dicom(values(16, True), BitsStored=16, RescaleIntercept=0))
    hu[0, 0] = 1  # not a view of the file's bytes
