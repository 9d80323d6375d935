"""What is found in folders, zips and files, and how many files of which kind."""

import io
import os
import zipfile

import numpy as np
import pydicom
import pytest
from conftest import crashing, jpeg_lossless, make_dicom
from made_scans import head, write_scan
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from ich.dicom import reader
from ich.dicom.slice_error import DicomError
from ich.errors import IchError
from ich.own_scans.find import find_series, read_slices
from ich.own_scans.reasons import REASONS


def total(result):
    """All files that were found; each reason is one that is explained."""
    reasons = {series.reason for series in result.series if series.status != "read"} | set(result.others)
    assert reasons <= set(REASONS)
    assert all((series.reason == "") == (series.status == "read") == bool(series.slices) for series in result.series)
    assert all(series.detail for series in result.series if series.status != "read")
    assert len({series.uid for series in result.series}) == len(result.series)
    return sum(series.files for series in result.series) + sum(count for count, _ in result.others.values())


def the_read(result):
    (series,) = (candidate for candidate in result.series if candidate.status == "read")
    return series


def files_in(folder):
    return sum(path.is_file() for path in folder.rglob("*"))


def dicomdir():
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.9"
    ds.FileSetID = "EXPORT"
    ds.DirectoryRecordSequence = [pydicom.Dataset()]
    file = io.BytesIO()
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def test_a_pacs_export_is_found_by_what_its_files_hold(tmp_path):
    paths = write_scan(tmp_path / "PAT000/STU00001/SER00002")
    (tmp_path / "DICOMDIR").write_bytes(dicomdir())
    (tmp_path / "damaged").write_bytes(make_dicom()[:200])
    (tmp_path / "readme.txt").write_text("how to open the viewer, in more than one hundred and thirty two bytes" * 3)
    (tmp_path / "PAT000/thumbnail.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(400))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".hidden").mkdir()
    write_scan(tmp_path / ".hidden", series="1.2.9")
    result = find_series([tmp_path])
    series = the_read(result)
    assert series.uid == "1.2.7"
    assert (series.study, series.patient, series.modality, series.kernel) == ("1.2.3", "p1", "CT", "STANDARD")
    assert (series.files, series.rows, series.columns) == (6, 32, 32)
    assert (series.thickness, series.spacing, series.pixel_spacing) == (5.0, 5.0, (0.5, 0.5))
    assert [slice_file.file for slice_file in series.slices] == [str(path.relative_to(tmp_path)) for path in paths]
    assert [slice_file.uid for slice_file in series.slices] == [f"1.2.7.{number}" for number in range(1, 7)]
    assert [slice_file.z for slice_file in series.slices] == [0, 5, 10, 15, 20, 25]
    assert {reason: count for reason, (count, _) in result.others.items()} == {
        "dicomdir": 1,
        "empty": 1,
        "hidden": 7,
        "no_identity": 1,
        "not_dicom": 2,
    }
    assert total(result) == files_in(tmp_path)
    for (slice_file, hu), expected in zip(read_slices(series), head(), strict=False):
        np.testing.assert_array_equal(hu, expected)
        assert hu.dtype == np.int16
        assert slice_file.frame is None


def test_a_zip_a_folder_of_zips_and_a_single_file_are_sources(tmp_path):
    paths = write_scan(tmp_path / "scan")
    (tmp_path / "zips").mkdir()
    with zipfile.ZipFile(tmp_path / "zips/export", "w", zipfile.ZIP_DEFLATED) as file:
        for path in paths:
            file.write(path, f"DICOM\\{path.name}")
        file.writestr("__MACOSX/x", "resource")
        file.writestr("folder/", "")
        file.writestr("./inner.zip", b"PK\x03\x04" + bytes(200))
    (tmp_path / "zips/broken.zip").write_bytes((tmp_path / "zips/export").read_bytes()[:-30])
    direct, within = find_series([tmp_path / "zips/export"]), find_series([tmp_path / "zips"])
    assert the_read(direct).slices[0].file == f"DICOM/{paths[0].name}"
    assert the_read(within).slices[0].file == f"export/DICOM/{paths[0].name}"
    assert direct.others == {"hidden": (1, "__MACOSX/x"), "nested_zip": (1, "./inner.zip")}
    assert within.others == {
        "damaged_zip": (1, "broken.zip"),
        "hidden": (1, "export/__MACOSX/x"),
        "nested_zip": (1, "export/./inner.zip"),
    }
    for result in (direct, within):
        for (_, hu), expected in zip(read_slices(the_read(result)), head(), strict=False):
            np.testing.assert_array_equal(hu, expected)
    single = find_series([paths[0]], all_series=True)
    assert [slice_file.file for slice_file in the_read(single).slices] == [paths[0].name]
    assert [series.status for series in find_series([paths[0]]).series] == ["skipped"]


def test_a_source_given_twice_counts_once(tmp_path):
    write_scan(tmp_path / "scan")
    result = find_series([tmp_path, tmp_path / "scan"])
    assert total(result) == 6
    assert the_read(result).notes == the_read(find_series([tmp_path])).notes


def test_links_are_followed_and_never_in_a_circle(tmp_path):
    write_scan(tmp_path / "elsewhere/scan")
    (tmp_path / "source/sub").mkdir(parents=True)
    (tmp_path / "source/sub/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source/sub/circle").symlink_to(tmp_path / "source")
    (tmp_path / "source/nothing").symlink_to(tmp_path / "nowhere")
    result = find_series([tmp_path / "source"])
    assert the_read(result).files == 6
    assert result.others == {"unreadable": (1, "nothing")}


def test_what_the_system_refuses_is_counted(tmp_path, monkeypatch):
    write_scan(tmp_path / "scan")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = find_series([tmp_path])
    assert the_read(result).files == 6
    assert result.others == {"unreadable": (1, "closed/")}
    with pytest.raises(IchError, match="may enter"):
        find_series([tmp_path / "closed"])


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(IchError, match="does not exist"):
        find_series([tmp_path / "nothing"])


def test_files_without_preamble_are_read_if_they_are_plainly_dicom(tmp_path):
    for number, path in enumerate(write_scan(tmp_path / "scan")):
        data = path.read_bytes()
        meta = data.index(b"\x08\0\x08\0CS")  # where the first group after the file meta information begins
        # With the file meta information, and without.
        path.write_bytes(data[132:] if number % 2 else data[meta:])
    (tmp_path / "text").write_bytes(b"\x08\0\x05\0" + b"no DICOM at all, but begins so" * 20)
    result = find_series([tmp_path])
    assert result.others == {"not_dicom": (1, "text")}
    for (_, hu), expected in zip(read_slices(the_read(result)), head(), strict=False):
        np.testing.assert_array_equal(hu, expected)


def test_a_slice_that_cannot_be_read_comes_as_its_error(tmp_path):
    paths = write_scan(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    paths[3].write_bytes(paths[3].read_bytes()[:600])  # within the header
    result = find_series([tmp_path])
    series = the_read(result)
    assert total(result) == 6
    outcomes = [hu.kind if isinstance(hu, DicomError) else "" for _, hu in read_slices(series)]
    assert outcomes == ["", "", "truncated", "", ""]
    assert [file for file, _ in series.unread] == [paths[3].name]
    paths[0].unlink()
    assert next(read_slices(series))[1].kind == "unreadable"


def test_a_header_that_is_damaged_behind_its_names_counts_to_its_series(tmp_path):
    path = write_scan(tmp_path)[3]
    data = path.read_bytes()
    at = data.index(b"\x28\0\x02\0US")
    path.write_bytes(data[:at] + b"\x20\0\xfe\xffSQ\0\0\xff\xff\xff\xff" + b"no items" + data[at:])
    series = the_read(find_series([tmp_path]))
    assert (series.files, len(series.slices)) == (6, 5)
    ((file, reason),) = series.unread
    assert file == path.name
    assert "cannot be parsed" in reason


def test_slices_are_ordered_as_the_slice_table_orders_them(tmp_path):
    from ich.images import slice_table

    paths = write_scan(tmp_path, change={4: {"ImagePositionPatient": [-125.0, -100.0, 10.004]}}, slices=9)
    rows = []
    for path in paths:
        _, facts = reader.read(path)
        keys = ("SOPInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient")
        rows.append({key: getattr(facts, key) for key in keys} | {"split": "train"})
    table = slice_table.scan_order(slice_table.to_frame(rows))
    series = the_read(find_series([tmp_path]))
    assert [slice_file.uid for slice_file in series.slices] == table["SOPInstanceUID"].tolist()
    assert [slice_file.z for slice_file in series.slices] == table["z"].tolist()


def test_names_and_birth_dates_are_not_held(tmp_path):
    write_scan(tmp_path)
    write_scan(tmp_path / "b", series="1.2.8", Modality="SR")
    assert b"Doe^Jane" in next(tmp_path.glob("IMG*")).read_bytes()
    text = repr(find_series([tmp_path]))
    assert "Doe" not in text
    assert "19500101" not in text


def test_a_long_header_is_read_to_its_end(tmp_path):
    write_scan(tmp_path, slices=5, TextValue="x" * 300_000)
    assert the_read(find_series([tmp_path])).files == 5


def test_deflated_files_are_found_without_inflating_all(tmp_path):
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    write_scan(tmp_path, syntax=DeflatedExplicitVRLittleEndian)
    assert the_read(find_series([tmp_path])).files == 6


def test_names_that_are_no_text_are_shown_by_their_bytes(tmp_path):
    write_scan(tmp_path / os.fsdecode(b"\xff"))
    result = find_series([tmp_path])
    series = the_read(result)
    assert all(slice_file.file.startswith("\\udcff/") for slice_file in series.slices)
    assert all(isinstance(hu, np.ndarray) for _, hu in read_slices(series))


@pytest.mark.parametrize("codec", ["JPEGLosslessProcess14_1", "JPEG2000Lossless"])
def test_compressed_slices_are_read(tmp_path, codec):
    pytest.importorskip("gdcm")
    for path in write_scan(tmp_path, slices=5):
        path.write_bytes(jpeg_lossless(path.read_bytes(), codec=codec))
    for (_, hu), expected in zip(read_slices(the_read(find_series([tmp_path]))), head(), strict=False):
        np.testing.assert_array_equal(hu, expected)


def test_a_slice_that_crashes_its_decoder_stops_no_other(tmp_path):
    pytest.importorskip("gdcm")
    for number, path in enumerate(write_scan(tmp_path)):
        data = jpeg_lossless(path.read_bytes())
        path.write_bytes(crashing(data) if number == 3 else data)
    for number, (_, hu) in enumerate(read_slices(the_read(find_series([tmp_path])))):
        if number == 3:
            assert hu.kind == "bad_pixels"
            assert "crashes the decoder" in hu.reason
        else:
            np.testing.assert_array_equal(hu, head()[number])


def test_a_zip_without_files_and_what_is_no_file_are_counted(tmp_path):
    write_scan(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in/a.zip", "w") as file:
        file.writestr("folder/", "")
    zipfile.ZipFile(tmp_path / "in/b.zip", "w").close()
    os.mkfifo(tmp_path / "in/pipe")
    os.mkfifo(tmp_path / "in/.pipe")
    (tmp_path / "in/null").symlink_to(os.devnull)
    result = find_series([tmp_path / "in"])
    assert result.others == {"empty": (2, "a.zip"), "hidden": (1, ".pipe"), "special": (2, "null")}
    assert total(result) == len(list((tmp_path / "in").iterdir()))
    with pytest.raises(IchError, match="is a pipe"):
        find_series([tmp_path / "in/pipe"])


def test_a_description_with_a_backslash_is_as_the_file_has_it(tmp_path):
    write_scan(tmp_path, SeriesDescription=["HEAD", "n"])
    assert the_read(find_series([tmp_path])).description == "HEAD\\n"
