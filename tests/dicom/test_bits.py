"""What the reader makes of the bits above BitsStored, of padding and of overlays."""

import io

import numpy as np
import pydicom
import pytest
from conftest import make_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from made_slices import changed, oracle_hu, refused, tissue, values, with_overlay
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from ich.dicom import bits
from ich.dicom.reader import AIR, read
from ich.dicom.slice_error import DicomError
from ich.errors import IchError

PADDING = 0xF830  # -2000 in 16 bits


def smooth(shape=(64, 64)):
    """HU of a head that changes slowly from pixel to pixel, with bone around it, int64."""
    y, x = np.indices(shape)
    distance = np.hypot(y - shape[0] / 2, x - shape[1] / 2) / shape[0]
    noise = np.random.default_rng(0).integers(0, 17, shape)
    return np.where(distance < 0.4, 35, -1000) + (1600 * np.exp(-(((distance - 0.4) / 0.03) ** 2))).astype(int) + noise


def slice_of(words, signed, intercept, stored=12):
    tags = {"BitsStored": stored, "HighBit": stored - 1, "PixelRepresentation": int(signed)}
    return make_dicom(np.asarray(words).astype(np.uint16), RescaleIntercept=intercept, **tags)


def is_read(data, hu, *repaired):
    got, header = read(data)
    np.testing.assert_array_equal(got, np.maximum(hu, AIR))
    assert header.repaired == repaired


def is_refused(data, *parts):
    with pytest.raises(DicomError) as caught:
        read(data)
    assert caught.value.kind == "bad_pixels"
    for part in parts:
        assert part in caught.value.reason


# ------------------------------------------------------------------------------------ unsigned values, called signed


@pytest.mark.parametrize("hu", [tissue(), smooth(), tissue(high=3071), np.array([[-1000, 40, 1500]])],
                         ids=["noise", "smooth", "metal", "three_pixels"])  # fmt: skip
@pytest.mark.parametrize("intercept", [-1024, -1000])
def test_bone_of_unsigned_values_in_a_signed_field_is_no_air(hu, intercept):
    hu = np.where((hu > 3000) & (np.indices(hu.shape)[1] % 4 > 0), hu - 700, hu)  # of CT, 1 % at most is metal
    is_read(slice_of(hu - intercept, 1, intercept), hu, "unsigned")


def test_values_whose_sign_was_not_extended_are_no_metal():
    for hu in (tissue(), smooth(), tissue(low=-1024)):
        is_read(slice_of(hu & 0xFFF, 1, 0), hu, "sign")


@pytest.mark.parametrize("rows", [0, 2, 32])
def test_padding_of_16_bits_beside_unsigned_values_is_air(rows):
    words, hu = tissue() + 1024, tissue()
    words[:rows], hu[:rows] = PADDING, AIR
    words[-1, -1], hu[-1, -1] = PADDING, AIR
    is_read(slice_of(words, 1, -1024), hu, "unsigned")


def test_padding_that_was_cut_to_the_stored_bits_is_no_bone():
    words = tissue() + 1024
    words[:8] = PADDING & 0xFFF  # 1,072 HU without a sign
    is_refused(slice_of(words, 1, -1024), "PixelRepresentation is 1", "do not decide", "1,000 HU")


def test_values_that_speak_for_both_readings_are_refused():
    # An intercept of -1000, values of metal (or air a little below -1000) and of bone in equal numbers.
    # An intercept of -1000: 3,090 HU is -1,006 HU if there is a sign.
    hu = np.minimum(smooth(), 900)
    hu[40, :30] = 3090
    is_read(slice_of(hu + 1000, 1, -1000), np.where(hu == 3090, -1006, hu), "sign")
    hu[41, :30] = np.arange(1500, 1530)
    is_refused(slice_of(hu + 1000, 1, -1000), "do not decide")
    white = np.where(smooth() < -900, 3071, np.minimum(smooth(), 900))
    is_refused(slice_of(white + 1024, 1, -1024), "do not decide")


def test_negative_values_that_carry_their_sign_stay_negative_beside_unsigned_ones():
    hu = smooth()
    hu[0, :9] = -1040  # noise of air below the lowest value
    bone = int(np.count_nonzero(hu > 1023))
    assert bone > 9
    is_read(slice_of(hu + 1024, 1, -1024), hu, "more_bits")


# ----------------------------------------------------------------------------------- bits that are no part of a value


@pytest.mark.parametrize(("signed", "intercept", "also"), [(0, -1024, ()), (1, 0, ()), (1, -1024, ("unsigned",))])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("make", [tissue, smooth])
def test_chance_bits_are_left_out_and_padding_among_them_is_air(make, signed, intercept, also, padded):
    hu = make()
    words = (hu - intercept & 0xFFF) | np.random.default_rng(1).integers(0, 16, hu.shape) << 12
    if padded:
        words[:6] = PADDING
    hu[words == PADDING] = AIR
    is_read(slice_of(words, signed, intercept), hu, "high_bits", *also)


@pytest.mark.parametrize(("signed", "intercept", "also"), [(0, -1024, ()), (1, 0, ()), (1, -1024, ("unsigned",))])
@pytest.mark.parametrize("constant", [1, 8, 15])
@pytest.mark.parametrize("make", [tissue, smooth])
def test_bits_that_all_pixels_have_are_left_out(make, constant, signed, intercept, also):
    hu = make()
    words = (hu - intercept & 0xFFF) | constant << 12
    is_read(slice_of(words, signed, intercept), hu, "high_bits", *also)
    words[:8], hu[:8] = PADDING, AIR
    if constant != 15:
        is_read(slice_of(words, signed, intercept), hu, "high_bits", *also)
    elif intercept:  # the padding's stored bits would be bone
        is_refused(slice_of(words, signed, intercept), "copies of the sign" if signed else "nothing tells")


@pytest.mark.parametrize(("signed", "intercept", "also"), [(0, -1024, ()), (1, 0, ()), (1, -1024, ("unsigned",))])
@pytest.mark.parametrize("bit", [12, 13, 15])
@pytest.mark.parametrize("make", [tissue, smooth])
def test_what_is_left_of_an_overlay_is_left_out(make, bit, signed, intercept, also):
    hu = make()
    mask = np.zeros(hu.shape, int)
    mask[20:30, 20:40] = 1
    is_read(slice_of((hu - intercept & 0xFFF) | mask << bit, signed, intercept), hu, "high_bits", *also)


def test_a_few_pixels_of_an_overlay_are_left_out_where_no_value_grows_into_their_bit():
    hu, mask = smooth((128, 128)), np.zeros((128, 128), int)
    mask[60:66, [60, 64, 68]] = 1  # 18 of 16,384
    for bit in (13, 15):
        is_read(slice_of((hu + 1024) | mask << bit, 0, -1024), hu, "high_bits")
    is_refused(slice_of((hu + 1024) | mask << 12, 0, -1024), "nothing tells")  # as metal of 13 bits would be
    corrupt = np.where(mask, 0x8000 + np.random.default_rng(0).integers(0, 4096, mask.shape), hu + 1024)
    is_refused(slice_of(corrupt, 0, -1024), "nothing tells")


@pytest.mark.parametrize("radius", [3, 6, 10])
@pytest.mark.parametrize("peak", [4000, 9000, 25000])
@pytest.mark.parametrize(("signed", "intercept"), [(0, -1024), (1, -1024), (1, 0)])
def test_metal_of_more_bits_is_never_cut(radius, peak, signed, intercept):
    hu = smooth()
    y, x = np.indices(hu.shape)
    share = 1 / (1 + np.exp(np.clip((np.hypot(y - 32, x - 32) - radius) * 2, -50, 50)))
    hu = (hu + (peak - hu) * share).astype(int)
    data = slice_of(hu - intercept, signed, intercept)
    if signed and not intercept:
        is_read(data, hu, "more_bits")
    else:
        is_refused(data, "nothing tells")


@pytest.mark.parametrize(("signed", "intercept", "repaired"), [(0, -1024, ()), (1, -1024, ("unsigned",)), (1, 0, ())])
@pytest.mark.parametrize("numbers", [(-2000, -3000), (-2048, -32768), (-3024, -2000)])
def test_two_numbers_of_padding_are_air(numbers, signed, intercept, repaired):
    hu = tissue()
    words = hu - intercept
    words[:4], words[4:8], hu[:8] = *numbers, AIR
    is_read(slice_of(words & 0xFFFF, signed, intercept), hu, *repaired)
    words[8:12] = -4000  # scanners pad with two numbers at most
    if not signed:
        is_refused(slice_of(words & 0xFFFF, signed, intercept), "nothing tells")


@pytest.mark.parametrize("intercept", [-1024, 0])
def test_signed_values_below_an_overlay_have_the_sign_that_makes_them_ct(intercept):
    hu = tissue((24, 24))
    words = (hu - intercept & 0xFFF) | np.random.default_rng(0).integers(0, 2, hu.shape) << 12
    ds = pydicom.dcmread(io.BytesIO(slice_of(words, 1, intercept)))
    for element, value in ((0x0010, 24), (0x0011, 24), (0x0100, 16), (0x0102, 12)):
        ds.add_new((0x6000, element), "US", value)
    file = io.BytesIO()
    ds.save_as(file)
    is_read(file.getvalue(), hu, *(["unsigned"] if intercept else []))


@pytest.mark.parametrize("seed", range(12))
def test_values_without_a_repair_are_those_of_pydicom(seed):
    rng = np.random.default_rng(seed)
    signed, intercept = int(rng.integers(2)), int(rng.choice([-1024, -1000, 0]))
    mask = (rng.random((32, 32)) < rng.choice([0.001, 0.1, 0.5, 1])) * int(rng.integers(16)) << 12
    words = (tissue((32, 32), seed) - intercept & 0xFFF) | mask
    data = slice_of(words, signed, intercept)
    try:
        got, header = read(data)
    except DicomError:
        return
    if header.repaired == ():
        ds = pydicom.dcmread(io.BytesIO(data))
        np.testing.assert_array_equal(got, np.maximum(ds.pixel_array.astype(int) + intercept, AIR))


def test_nothing_is_decided_for_values_that_16_bits_do_not_hold():
    words = np.full((8, 8), 100, np.int32)
    words[0, :4] = 40000
    words[1] = -5
    with pytest.raises(IchError, match="nothing tells"):
        bits.stored_values(words, 16, used=32, scale=(1, -1024))


# --------------------------------------------------------------- signs, and bits above those that are stored


@pytest.mark.parametrize("bits", [7, 11, 12, 13, 15])
def test_missing_sign_bits_are_mended_and_reported(bits):
    stored = values(bits, True)
    bare = stored & (2**bits - 1)  # the unused high bits are 0
    hu, header = read(make_dicom(bare.astype(stored.dtype), BitsStored=bits, RescaleIntercept=0))
    np.testing.assert_array_equal(hu, np.maximum(stored.astype(int), AIR))
    assert header.repaired == ("sign",)


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


def test_signed_values_without_sign_bits_and_padding_with_them():
    hu = tissue((64, 64))
    stored = (hu & 0xFFF).astype(np.uint16)
    stored[:8], hu[:8] = 0xF830, AIR  # -2000
    read_hu, header = read(make_dicom(stored, BitsStored=12, PixelRepresentation=1, RescaleIntercept=0))
    np.testing.assert_array_equal(read_hu, hu)
    assert header.repaired == ("sign",)


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
    hu, rng = tissue((24, 24), seed), np.random.default_rng(seed)
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
    refusal = None
    try:
        got, header = read(data)
    except DicomError as error:
        refusal = error
    if padding is None:
        np.testing.assert_array_equal(oracle_hu(data), expected)
    known = declared or padding in (None, -2000 if signed else None)
    if above in ("junk", "overlay") and not known:
        return  # what no element names is lost among other bits
    if above == "junk" and bits == 15:  # one bit is too few to distinguish chance from a wrong BitsStored
        assert refusal is None or (refusal.kind == "bad_pixels" and "nothing tells" in refusal.reason)
        return
    assert refusal is None, refusal.reason
    np.testing.assert_array_equal(got, expected)
    assert header.repaired == {"zero": ("sign",) if signed else (), "junk": ("high_bits",)}.get(above, ())


def test_what_nothing_decides_is_refused():
    hu = tissue((40, 40))
    unsigned = (hu + 1024).astype(np.uint16)
    few = unsigned.copy()
    few[9, :9] += 4096  # metal of more bits than are declared, or an overlay whose elements are gone
    refused(make_dicom(few), "bad_pixels", "more than 12 bits hold", "nothing tells")
    single = unsigned.copy()
    single[9, 9] |= 0x8000  # a pixel alone is no padding
    refused(make_dicom(single), "bad_pixels", "nothing tells")
    signed_after_all = hu.astype(np.int16).view(np.uint16)
    refused(make_dicom(signed_after_all, RescaleIntercept=0), "bad_pixels", "nothing tells")
    more_bits = (hu + 8192).astype(np.uint16)
    refused(make_dicom(more_bits, RescaleIntercept=-8192), "bad_pixels", "nothing tells")
    half = hu.copy()
    half[20:] &= 0xFFF
    half[20:] |= 0x1000 * (half[20:] > 3000)  # signs carried here, and other bits there
    refused(make_dicom(half.astype(np.int16), BitsStored=12, RescaleIntercept=0), "bad_pixels", "nothing tells")


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


def test_unnamed_padding_beside_an_overlay_is_air():
    y, x = np.indices((64, 64))
    corner = np.hypot(y - 31.5, x - 31.5) > 32
    hu = np.where(np.hypot(y - 31.5, x - 31.5) < 18, 40, -990) + np.random.default_rng(0).integers(-12, 13, y.shape)
    stored = np.where(corner, 0xF830, (hu + 1024) | ((y < 10) << 12)).astype(np.uint16)
    data = with_overlay(make_dicom(stored, BitsStored=12, RescaleIntercept=-1024), 12)
    np.testing.assert_array_equal(read(data)[0], np.where(corner, -1024, hu))
