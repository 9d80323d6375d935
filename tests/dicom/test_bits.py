"""What the reader makes of the bits above BitsStored, of padding and of overlays."""

import io

import numpy as np
import pydicom
import pytest
from conftest import make_dicom

from ich.dicom import bits
from ich.dicom.reader import AIR, read
from ich.dicom.slice_error import DicomError
from ich.errors import IchError

PADDING = 0xF830  # -2000 in 16 bits


def tissue(shape=(64, 64), seed=0, low=-1000, high=1999):
    """Random HU from air to bone, int64, of which the first rows are air."""
    hu = np.random.default_rng(seed).integers(low, high, shape, endpoint=True)
    hu[: shape[0] // 8] = low
    return hu


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
