"""From a file's bytes to its elements: other files, damaged ones, and those that end early."""

import io
import logging
import random
import warnings

import numpy as np
import pydicom
import pytest
from conftest import UID_A, make_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from made_slices import (
    CODECS,
    SYNTAXES,
    failure,
    packed,
    refused,
    values,
)
from pydicom.dataelem import RawDataElement
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ich.dicom.parsing import parse
from ich.dicom.reader import AIR, read
from ich.dicom.slice_error import KINDS, DicomError


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


@pytest.mark.parametrize("data", [b"", b"DICM", b"\0" * 500, b"<html>no such file</html>" * 20, b"\x89PNG\r\n\x1a\n"])
def test_other_files_are_not_dicom(data):
    refused(data, "not_dicom", "DICM")


def test_damaged_elements_are_not_dicom():
    data = make_dicom(syntax=DeflatedExplicitVRLittleEndian)
    at = data.index(bytes.fromhex("0200 1000")) + 8 + len(DeflatedExplicitVRLittleEndian) + 40
    refused(data[:at] + b"\xff" * 20 + data[at + 20 :], "not_dicom", "cannot be parsed")


def test_an_element_cut_in_two_is_reported(monkeypatch):
    def cut(file):
        raise EOFError("unexpected end of file")

    monkeypatch.setattr(pydicom, "dcmread", cut)
    refused(make_dicom(syntax=ExplicitVRBigEndian), "truncated", "ends inside an element")


def test_a_missing_file_is_unreadable(tmp_path):
    refused(tmp_path / "missing.dcm", "unreadable", "No such file")
    refused(tmp_path, "unreadable", "Is a directory")


def test_random_bytes_after_the_mark_are_refused():
    generator = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in range(0, 3000, 97):
            failure(b"\0" * 128 + b"DICM" + generator.randbytes(length))


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
def test_cut_anywhere_it_is_reported_as_cut(syntax, tmp_path):
    noise = values(12, shape=(24, 24), seed=1)
    data = packed(make_dicom(noise), syntax, tmp_path) if syntax in CODECS else make_dicom(noise, syntax=syntax)
    whole, ends = read(data)[0], ends_of_elements(data)
    for cut in [*range(0, len(data) - 1300, 7), *range(max(0, len(data) - 1300), len(data) - 8, 29)]:
        try:
            hu, _ = read(data[:cut])
        except DicomError as error:
            refusal = error
        else:
            np.testing.assert_array_equal(hu, whole)
            continue
        # At the end of an element nothing shows that there was more.
        kinds = ("not_dicom",) if cut < 132 else ("truncated", "no_pixels") if cut in ends else ("truncated",)
        assert refusal.kind in kinds, (cut, len(data), refusal.reason)
        assert refusal.identity.get("SOPInstanceUID") in (None, UID_A)
        assert refusal.identity.get("PatientID") in (None, "ID_aaaaaaaa1")


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
        refusal = error
        assert refusal.kind in KINDS
        assert refusal.reason
    else:
        assert hu.dtype == np.int16
        assert hu.shape == (header.Rows, header.Columns)
        assert hu.min() >= AIR


def content(ds):
    """All that was read of a file: its elements as they stand in it, and how they are encoded."""
    meta = {}
    for tag in list(ds.file_meta.keys()):  # pydicom decodes some of them on reading, so that none is compared undecoded
        try:
            meta[tag] = repr(ds.file_meta[tag])
        except Exception as error:  # noqa: BLE001 - pydicom's are of any type, for damaged bytes
            meta[tag] = type(error)
    return [*ds.items()], meta, ds.original_encoding, ds.original_character_set, ds.preamble


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=str)
def test_a_file_in_the_usual_form_is_parsed_without_pydicom_and_as_by_it(syntax, monkeypatch):
    data = make_dicom(syntax=syntax, StudyID="", PatientName="")
    expected = content(pydicom.dcmread(io.BytesIO(data)))
    monkeypatch.delattr(pydicom, "dcmread")
    ds = parse(data)
    assert content(ds) == expected
    assert ds.Rows == 32  # pydicom decodes further


def test_more_than_the_usual_form_is_parsed_as_by_pydicom():
    sequence = pydicom.Dataset()
    sequence.ReferencedSOPInstanceUID = "1.2"
    plain, implicit = make_dicom(), make_dicom(syntax=ImplicitVRLittleEndian)
    first, pixels = bytes.fromhex("08001600"), bytes.fromhex("e07f1000")
    for data in (
        # A length that reads as an explicit VR; a delimiter, at which pydicom stops.
        implicit.replace(first, bytes.fromhex("08000100 42410000") + b"\0" * 0x4142 + first),
        implicit.replace(pixels, bytes.fromhex("feff0de0 00000000") + pixels),
        make_dicom(SpecificCharacterSet="ISO_IR 192", PatientName="Ä^B"),
        make_dicom(ReferencedImageSequence=[sequence]),
        make_dicom(syntax=ImplicitVRLittleEndian, ReferencedImageSequence=[sequence]),
        plain.replace(b"CS\x02\0CT", b"QQ\x02\0CT"),  # no VR of the standard
        plain + b"\0" * 5,
        plain + bytes.fromhex("fcfffcff 4f420000 04000000 00000000"),  # padding after the pixels (PS3.10, 7.2)
        plain.replace(ExplicitVRLittleEndian.encode() + b"\0", ImplicitVRLittleEndian.encode() + b"\0\0\0"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert content(parse(data)) == content(pydicom.dcmread(io.BytesIO(data)))


@settings(max_examples=150, deadline=2000)
@given(
    data=st.sampled_from([data for data in MUTATED if DeflatedExplicitVRLittleEndian.encode() not in data]),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 255, None]), st.integers(0, 255)), max_size=4
    ),
    cut=st.none() | st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_parsed_as_by_pydicom(data, changes, cut):  # a deflated file is refused when it is cut
    damaged = bytearray(data)
    head = max(140, len(data) - 2048)
    for place, extreme, byte in changes:
        damaged[132 + int(place * (head - 132))] = byte if extreme is None else extreme
    if cut is not None:
        del damaged[int(cut * len(data)) :]
    try:
        expected = content(pydicom.dcmread(io.BytesIO(bytes(damaged))))
    except Exception:  # noqa: BLE001 - pydicom's are of any type, for damaged bytes
        expected = None
    try:
        parsed = content(parse(bytes(damaged)))
    except DicomError:
        parsed = None
    assert parsed == expected
