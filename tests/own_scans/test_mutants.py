"""What becomes of damaged files: no crash, and nothing is dropped without a word."""

import gzip
import io
import random
import warnings
import zipfile

import numpy as np
import pytest
from damage import cut, flip, hole, repeat
from made_scans import head, write_scan
from test_multiframe import enhanced
from test_nifti import axial, volume

from ich.dicom.slice_error import DicomError
from ich.own_scans.find import find_series, read_slices
from ich.own_scans.reasons import REASONS

HEADER = 900  # bytes of the file of a slice that come before its pixels, about


def flip_header(rng, data):
    return flip(rng, data[:HEADER]) + data[HEADER:]


def flip_a_bit(rng, data):
    at = rng.randrange(min(len(data), HEADER))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def cut_header(rng, data):
    return data[: rng.randrange(min(len(data), HEADER))]


def empty(rng, data):
    return b""


def swap_tags(rng, data):
    """Two short stretches change places, such as two elements."""
    start = rng.randrange(132, HEADER - 80)
    middle, end = start + 2 * rng.randrange(1, 20), start + 2 * rng.randrange(20, 40)
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def no_preamble(rng, data):
    return data[rng.choice([132, 128, 100, 340]) :]


def text(rng, data):
    return "".join(rng.choices("abc \n", k=rng.randrange(500))).encode()


DAMAGES = [flip, flip_header, flip_a_bit, cut, cut_header, empty, hole, repeat, swap_tags, no_preamble, text]


def survive(folder, files):
    """All of the files are in the counts, and all slices are read or tell why not; the series, and HU by file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of it may fill the screen
        result = find_series([folder], all_series=True)
    assert sum(series.files for series in result.series) + sum(count for count, _ in result.others.values()) == files
    assert len({series.uid for series in result.series}) == len(result.series)
    read = {}
    for series in result.series:
        assert series.status == "read" or (series.reason in REASONS and series.detail)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for slice_file, hu in read_slices(series):
                assert isinstance(hu, DicomError) or (hu.dtype == np.int16 and hu.ndim == 2)
                read[slice_file.file, slice_file.frame] = hu
        listed = {slice_file.file for slice_file in series.slices} | {file for file, _ in series.unread}
        assert len(listed) <= series.files or series.slices[0].frame is not None
    assert set(result.others) <= set(REASONS)
    return result, read


def scan_of(count, folder):
    """Files of one scan with a place and a name of their own, by patching those of one slice."""
    (path,) = write_scan(folder, slices=1, first=1000.25, uid="1.2.7.1000")
    data = path.read_bytes()
    path.unlink()
    for number in range(count):
        named = data.replace(b"1.2.7.1000.1", f"1.2.7.{1000 + number}.1".encode())
        yield named.replace(b"1000.25", f"{1000.25 + number / 4:.2f}".encode())


def test_500_mutants_of_a_scan_are_counted_and_read_or_refused(tmp_path):
    rng = random.Random(15)
    for number, data in enumerate(scan_of(560, tmp_path)):
        mutant = data if number % 10 == 0 else DAMAGES[number % len(DAMAGES)](rng, data)
        (tmp_path / f"{number:03}").write_bytes(mutant)
    result, read = survive(tmp_path, 560)
    for number in range(0, 560, 10):  # the whole ones
        np.testing.assert_array_equal(read[f"{number:03}", None], head()[0])
    scan = max(result.series, key=lambda series: series.files)
    assert scan.uid == "1.2.7"
    assert scan.unread
    # What is broken behind its names is counted to its series.
    assert scan.files > 300
    assert {"not_dicom", "empty"} <= set(result.others)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("enhanced", enhanced),
        ("ct.nii", lambda: volume(axial())),
        ("ct.nii.gz", lambda: gzip.compress(volume(axial()), mtime=0)),
    ],
)
def test_mutants_of_files_of_many_slices(tmp_path, name, make):
    rng, data = random.Random(1), make()
    for number in range(44):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / name).write_bytes(DAMAGES[number % len(DAMAGES)](rng, data))
    survive(tmp_path, 44)


def test_mutants_of_a_zip(tmp_path):
    paths = write_scan(tmp_path / "scan")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, path.name)
            path.unlink()
    rng = random.Random(2)
    for number in range(44):
        (tmp_path / f"{number}.zip").write_bytes(DAMAGES[number % len(DAMAGES)](rng, file.getvalue()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = find_series([tmp_path])
    counts = sum(series.files for series in result.series) + sum(count for count, _ in result.others.values())
    damaged = result.others["damaged_zip"][0]
    assert damaged > 5
    assert counts >= 44
    for series in result.series:
        assert len(list(read_slices(series))) == len(series.slices)
