"""Values of elements: text and numbers, missing, empty, several or nonsensical."""

from contextlib import suppress

import numpy as np
import pytest
from conftest import make_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from made_slices import failure, refused

from ich.dicom.reader import read
from ich.dicom.slice_error import DicomError


@pytest.mark.parametrize("name", ["A\n1", "A\r1", "A\n", "\tA", "A\x1b[31m", "A\x1f"])
def test_a_control_character_is_part_of_a_patients_name(name):
    # PS3.5, 6.2 forbids it, but who is distinguished by it must not become one.
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
        ({"raw": {"Rows": b"\x20"}}, "bad_tag", "Rows"),
        ({"raw": {"Rows": b"\x20\x00\x21\x00"}}, "bad_tag", "Rows is [32, 33]"),
        ({"raw": {"NumberOfFrames": b"1.5 "}}, "bad_tag", "NumberOfFrames"),
        ({"raw": {"NumberOfFrames": b"9" * 400}}, "bad_tag", "NumberOfFrames"),
    ],
)
def test_an_integer_that_is_none_is_reported(tags, kind, said):
    refused(make_dicom(**tags), kind, said)


def test_a_number_in_parts_is_named():
    # A sequence where a number belongs.
    data = make_dicom().replace(b"\x28\x00\x53\x10DS", b"\x28\x00\x53\x10SQ")
    assert failure(data).kind in ("bad_tag", "not_dicom", "missing_tag", "no_pixels", "truncated")


@pytest.mark.parametrize("content", [b"ORIGINAL\\PRIMARY\\AXIAL ", b"CT", b""])
@pytest.mark.parametrize("tag", [b"\x08\x00\x08\x00", b"\x08\x00\x60\x00"], ids=["ImageType", "Modality"])
def test_a_sequence_where_text_belongs_is_read_or_refused(tag, content):
    """The items of such a sequence fail in pydicom when they are printed, not when the element is asked for."""
    data = make_dicom(ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    start = data.index(tag + b"CS")
    end = start + 8 + int.from_bytes(data[start + 6 : start + 8], "little")
    sequence = tag + b"SQ\0\0" + len(content).to_bytes(4, "little") + content
    with suppress(DicomError):
        read(data[:start] + sequence + data[end:])


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
