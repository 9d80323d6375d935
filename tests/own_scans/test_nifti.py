"""NIfTI volumes give axial slices as a DICOM file of them would show them."""

import gzip
import itertools
import struct
import sys

import numpy as np
import pytest
from made_scans import head, write_scan

from ich.dicom.slice_error import DicomError
from ich.own_scans import nifti
from ich.own_scans.find import find_series, read_slices

nibabel = pytest.importorskip("nibabel")


def axial(count=8):
    """HU of the phantom's slices 20 × 32, from the feet to the head, as DICOM shows them."""
    return np.stack([hu[6:26] for hu in head()[:count]])


def volume(hu, axes="RAS", spacing=(0.5, 0.6, 5.0), slope=1, intercept=0):
    """The NIfTI bytes of axial slices, with the array's axes to these sides of the patient."""
    ras = hu[:, ::-1, ::-1].transpose(2, 1, 0)  # to the right, to the front, up
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -30.0, -40.0, 100.0
    image = nibabel.Nifti1Image(ras, affine)
    orientation = nibabel.orientations.axcodes2ornt(axes)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), orientation))
    # 112: scl_slope and scl_inter, which nibabel writes as it thinks best.
    data = image.to_bytes()
    return data[:112] + struct.pack("<ff", slope, intercept) + data[120:]


def series_in(folder, data, name="scan.nii"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    (series,) = find_series([folder]).series
    assert series.files == 1
    return series


ALL_AXES = [
    "".join(sides) for order in itertools.permutations(["RL", "AP", "SI"]) for sides in itertools.product(*order)
]


@pytest.mark.parametrize("axes", ALL_AXES)
def test_slices_look_as_in_dicom_however_the_array_lies(axes):
    read = nifti.Volume(volume(axial(), axes))
    read.check()
    place = read.geometry
    assert (place.rows, place.columns, place.thickness) == (20, 32, 5.0)
    assert place.pixel_spacing == pytest.approx((0.6, 0.5))
    assert place.orientation == pytest.approx((1, 0, 0, 0, 1, 0))
    assert place.z == pytest.approx([100.0 + 5 * k for k in range(8)])
    np.testing.assert_array_equal(np.stack([read.read(k) for k in range(8)]), axial())


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "sub-01/whatever"])
def test_a_volume_is_a_series(tmp_path, name):
    data = volume(axial())
    series = series_in(tmp_path, gzip.compress(data) if name.endswith("gz") else data, name)
    stem = name.split("/")[-1].split(".")[0]
    assert (series.uid, series.status, series.study, series.patient) == (stem, "read", None, None)
    assert [slice_file.uid for slice_file in series.slices] == [f"{stem}.{number}" for number in range(1, 9)]
    assert [slice_file.frame for slice_file in series.slices] == list(range(8))
    assert [slice_file.z for slice_file in series.slices] == pytest.approx([100.0 + 5 * k for k in range(8)])
    assert (series.rows, series.columns, series.spacing, series.thickness) == (20, 32, 5.0, 5.0)
    np.testing.assert_array_equal([hu for _, hu in read_slices(series)], axial())


def test_scaled_values_are_hu(tmp_path):
    stored = (axial() + 1024).astype(np.uint16)
    series = series_in(tmp_path, volume(stored, intercept=-1024))
    np.testing.assert_array_equal([hu for _, hu in read_slices(series)], axial())


def test_version_2_and_a_fourth_axis_of_one_are_read(tmp_path):
    image = nibabel.Nifti1Image.from_bytes(volume(axial()))
    again = nibabel.Nifti2Image(np.asarray(image.dataobj)[..., None], image.affine)
    series = series_in(tmp_path, again.to_bytes())
    np.testing.assert_array_equal([hu for _, hu in read_slices(series)], axial())


@pytest.mark.parametrize(
    ("reason", "said", "data"),
    [
        ("not_hu", "a mask", lambda: volume((axial() > 0).astype(np.uint8))),
        ("not_hu", "windowed", lambda: volume(axial().clip(0, 255).astype(np.uint8))),
        ("not_hu", "a mask", lambda: volume((axial() + 1024).astype(np.uint16))),
        ("not_hu", "another unit", lambda: volume(axial().astype(np.float32) * 100)),
        ("not_hu", "0% are air", lambda: volume(axial().astype(np.float32) * 8 + 7800)),
        ("not_hu", "finite", lambda: volume(np.where(axial() > 500, np.nan, axial()))),
        ("no_orientation", "left may be right", lambda: volume(axial())[:252] + bytes(4) + volume(axial())[256:]),
        ("other_plane", "between them", lambda: volume(axial(), spacing=(0.5, 5.0, 0.5))),
        ("unsupported", "shape", lambda: four_dimensional()),
        ("too_few", "4 slices", lambda: volume(axial(4))),
    ],
)
def test_what_is_no_axial_ct_in_hu_is_skipped(tmp_path, reason, said, data):
    series = series_in(tmp_path, data())
    assert (series.status, series.reason) == ("skipped", reason)
    assert said in series.detail


def four_dimensional():
    image = nibabel.Nifti1Image.from_bytes(volume(axial()))
    return nibabel.Nifti1Image(np.stack([image.dataobj] * 2, axis=-1), image.affine).to_bytes()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-5000], lambda data: data[:360], lambda data: data[:40] + bytes(16) + data[56:]]
)
def test_a_damaged_volume_fails(tmp_path, damage):
    series = series_in(tmp_path, damage(volume(axial())))
    assert (series.status, series.reason) in {("failed", "damaged"), ("skipped", "unsupported")}


def test_a_volume_that_was_cut_since_gives_errors(tmp_path):
    series = series_in(tmp_path, volume(axial()))
    (tmp_path / "scan.nii").write_bytes(volume(axial())[:-5000])
    outcomes = [isinstance(hu, DicomError) for _, hu in read_slices(series)]
    assert outcomes[-1]
    (tmp_path / "scan.nii").write_bytes(volume(axial())[:352])
    assert all(isinstance(hu, DicomError) for _, hu in read_slices(series))
    (tmp_path / "scan.nii").write_bytes(b"")
    assert all(isinstance(hu, DicomError) for _, hu in read_slices(series))


def test_volumes_of_one_name_are_distinguished_by_their_folders(tmp_path):
    for name in ("a/ct.nii", "b/ct.nii", "b/ct.nii.gz", "other.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        data = volume(axial())
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    write_scan(tmp_path / "dicom")
    result = find_series([tmp_path])
    assert {series.uid for series in result.series} == {"a/ct", "b/ct.nii", "b/ct.nii.gz", "other", "1.2.7"}
    assert all(series.status == "read" for series in result.series)


def test_volumes_are_never_skipped_for_the_noise_of_another(tmp_path):
    """They may be of two patients: nothing tells."""
    noise = np.random.default_rng(0).normal(0, 40, axial().shape)
    (tmp_path / "a.nii").write_bytes(volume(axial()))
    (tmp_path / "b.nii").write_bytes(volume((axial() + noise).astype(np.int16)))
    assert [series.status for series in find_series([tmp_path]).series] == ["read", "read"]


def test_without_nibabel_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    series = series_in(tmp_path, volume(axial()))
    assert (series.status, series.reason) == ("skipped", "no_nibabel")
    assert "pip install nibabel" in series.detail


def test_an_archive_of_anything_else_is_no_volume(tmp_path):
    (tmp_path / "logs.gz").write_bytes(gzip.compress(b"x" * 1000))
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b" + b"x" * 1000)
    assert find_series([tmp_path]).others == {"not_dicom": (2, "broken.gz")}
