"""A slice from its bytes to Hounsfield units and header; its pixels, elements and bits have files of their own."""

import io
import pickle

import numpy as np
import pydicom
import pytest
from conftest import UID_A, make_dicom
from hypothesis import given
from hypothesis import strategies as st
from made_slices import (
    STORED_AS,
    SYNTAXES,
    failure,
    oracle_hu,
    refused,
    values,
)
from pydicom.pixels import apply_modality_lut

from ich.dicom import reader
from ich.dicom.reader import AIR, read
from ich.dicom.slice_error import DicomError
from ich.dicom.windows import PRESETS, apply_window

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


def test_monochrome1_changes_how_values_are_shown_not_what_they_mean():
    plain, inverted = make_dicom(), make_dicom(PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(inverted)[0], read(plain)[0])
    assert read(inverted)[1].PhotometricInterpretation == "MONOCHROME1"


def test_what_int16_does_not_hold_is_clipped_not_wrapped():
    stored = np.array([[0, 1000], [30000, 65535]], np.uint16)
    hu, _ = read(make_dicom(stored, BitsStored=16, RescaleSlope=2, RescaleIntercept=0))
    assert hu.tolist() == [[0, 2000], [32767, 32767]]


def test_the_lowest_intercept_of_sixteen_bits_is_read():
    stored = np.array([[31768, 32768], [32808, 65535]], np.uint16)
    hu, _ = read(make_dicom(stored, BitsStored=16, RescaleIntercept=-32768))
    assert hu.tolist() == [[-1000, 0], [40, 32767]]


@pytest.mark.parametrize(
    ("why", "padding", "tags"),
    [
        ("signed values under an unsigned header", None, {"RescaleIntercept": 0}),
        ("unnamed padding below a slope of 1/2", -2000, {"RescaleSlope": 0.5}),
        ("unnamed padding of the lowest value", 0x8000, {}),
        ("unnamed padding of all ones", 0xFFFF, {}),
    ],
)
def test_air_and_padding_that_would_be_read_as_metal_are_refused(why, padding, tags):
    hu = np.full((64, 64), 40)
    hu[:20] = -1000
    slope, intercept = tags.get("RescaleSlope", 1), tags.get("RescaleIntercept", -1024)
    stored = (hu - intercept) / slope
    if padding is not None:
        stored[:10] = padding
    data = make_dicom(
        stored.astype(np.int64).astype(np.uint16), BitsStored=16, RescaleIntercept=intercept, RescaleSlope=slope
    )
    with pytest.raises(DicomError, match="above 30,000 HU") as refused:
        read(data)
    assert refused.value.kind == "bad_pixels"


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 3), (4, 1), (1, 4), (2, 2), (1, 5)])
@pytest.mark.parametrize(("bits", "signed", "intercept"), STORED_AS)
@pytest.mark.parametrize("slope", [1, 0.5])
def test_a_few_pixels_are_an_image_too(shape, bits, signed, intercept, slope):
    stored = np.full(shape, 100, np.int16 if signed else np.uint16)
    stored.flat[-1] = 0
    hu, header = read(make_dicom(stored, BitsStored=bits, RescaleIntercept=intercept, RescaleSlope=slope))
    assert (hu.shape, hu.dtype, (header.Rows, header.Columns)) == (shape, np.int16, shape)
    np.testing.assert_array_equal(hu, np.maximum(stored.astype(int) * slope + intercept, AIR))


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
def test_wrapped_files_are_mended_and_reported(intercept):
    hu, header = read(make_dicom(wrapped(head()), RescaleIntercept=intercept))
    np.testing.assert_array_equal(hu, head())
    assert header.repaired == ("wrapped",)
    assert header.RescaleIntercept == -1024


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
def test_what_is_no_slice_in_hounsfield_units_is_reported(tags, kind, said):
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


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("tags", "kind", "said"),
    [
        ({"RescaleSlope": 0}, "bad_tag", "RescaleSlope 0"),
        ({"RescaleSlope": "1e30"}, "bad_tag", "no Hounsfield units"),
        ({"RescaleIntercept": "1e9"}, "bad_tag", "no Hounsfield units"),
        ({"Modality": "MR"}, "not_ct", "'MR', expected CT"),
        ({"NumberOfFrames": 2}, "unsupported", "2 frame(s)"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "unsupported", "3 sample(s) a pixel"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported", "PALETTE COLOR"),
        ({"PhotometricInterpretation": ""}, "unsupported", "None"),
        ({"raw": {"SOPInstanceUID": b""}}, "missing_tag", "no name"),
    ],
)
def test_what_cannot_be_read_is_reported(tags, kind, said):
    refused(make_dicom(**tags), kind, said)


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


def test_the_result_can_be_written_to():
    hu, _ = read(make_dicom(values(16, True), BitsStored=16, RescaleIntercept=0))
    hu[0, 0] = 1  # not a view of the file's bytes
