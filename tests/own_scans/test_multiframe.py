"""Enhanced CT gives the slices that the same scan gives in single files."""

import io

import numpy as np
import pydicom
import pytest
from conftest import make_dicom
from made_scans import head, write_scan
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)

from ich.dicom.slice_error import DicomError
from ich.own_scans.find import find_series, read_slices

COUNT = 6


def item(**elements):
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def frame_groups(number, place, **change):
    """The functional groups of a frame."""
    content = item(StackID="1", FrameAcquisitionNumber=1, FrameAcquisitionDateTime="20200101101500.5")
    groups = {
        "FrameContentSequence": [content],
        "PlanePositionSequence": [item(ImagePositionPatient=[-125.0, -100.0, place])],
        "PixelValueTransformationSequence": [item(RescaleIntercept=-1024 + number, RescaleSlope=1, RescaleType="HU")],
    }
    return item(**groups | change)


def shared_groups(**change):
    groups = {
        "PlaneOrientationSequence": [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        "PixelMeasuresSequence": [item(PixelSpacing=[0.5, 0.5], SliceThickness=5)],
        "CTImageFrameTypeSequence": [item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])],
        "CTReconstructionSequence": [item(ConvolutionKernel="STANDARD")],
    }
    return item(**groups | change)


def enhanced(syntax=ExplicitVRLittleEndian, sop_class=EnhancedCTImageStorage, frames=None, shared=None, **tags):
    """The bytes of a multi-frame file; frame k holds slice k of the phantom, whose intercept is -1024 + k."""
    stored = [(head()[k] + 1024 - k).clip(0, 4095).astype(np.uint16) for k in range(COUNT)]
    ds = pydicom.dcmread(io.BytesIO(make_dicom(stored[0], syntax=ExplicitVRLittleEndian)))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept"):
        del ds[keyword]
    del ds.RescaleSlope
    with pydicom.config.disable_value_validation():
        usual = {"SOPInstanceUID": "1.2.7.9", "SeriesInstanceUID": "1.2.7", "StudyInstanceUID": "1.2.3"}
        for keyword, value in (usual | {"SOPClassUID": sop_class, "NumberOfFrames": COUNT} | tags).items():
            setattr(ds, keyword, value)
        # The frames lie in no order of their own.
        ds.PerFrameFunctionalGroupsSequence = frames or [frame_groups(k, 50.0 - 5 * k) for k in range(COUNT)]
        ds.SharedFunctionalGroupsSequence = [shared or shared_groups()]
        order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
        if syntax == RLELossless:
            ds.PixelData = encapsulate([rle(image) for image in stored])
        else:
            ds.PixelData = b"".join(image.astype(order).tobytes() for image in stored)
        ds["PixelData"].VR = "OB" if syntax == RLELossless else "OW"
        ds.file_meta.TransferSyntaxUID = syntax
        file = io.BytesIO()
        encoding = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
        pydicom.dcmwrite(file, ds, **encoding)
    return file.getvalue()


def rle(stored):
    ds = pydicom.dcmread(io.BytesIO(make_dicom(stored)))
    ds.compress(RLELossless, generate_instance_uid=False)
    return pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)


def the_series(folder, data, **options):
    (folder / "file").write_bytes(data)
    result = find_series([folder], **options)
    assert sum(series.files for series in result.series) + sum(count for count, _ in result.others.values()) == 1
    return result.series


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("sop_class", [EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage])
def test_frames_are_slices_with_a_place_and_a_scale_of_their_own(tmp_path, syntax, sop_class):
    (series,) = the_series(tmp_path, enhanced(syntax, sop_class))
    assert (series.status, series.files, series.thickness, series.spacing) == ("read", 1, 5.0, 5.0)
    assert (series.kernel, series.pixel_spacing, series.rows) == ("STANDARD", (0.5, 0.5), 32)
    assert [slice_file.uid for slice_file in series.slices] == [f"1.2.7.9.{k + 1}" for k in reversed(range(COUNT))]
    assert [slice_file.frame for slice_file in series.slices] == list(reversed(range(COUNT)))
    assert [slice_file.z for slice_file in series.slices] == [25, 30, 35, 40, 45, 50]
    for slice_file, hu in read_slices(series):
        np.testing.assert_array_equal(hu, head()[slice_file.frame])


def test_frames_that_are_no_slices_are_left_out(tmp_path):
    localizer = [item(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"])]
    frames = [frame_groups(k, 50.0 - 5 * k) for k in range(COUNT)]
    frames[2] = frame_groups(2, 40.0, CTImageFrameTypeSequence=localizer)
    read, skipped = the_series(tmp_path, enhanced(frames=frames))
    assert (read.status, [slice_file.frame for slice_file in read.slices], read.files) == ("read", [5, 4, 3, 1, 0], 1)
    assert (skipped.reason, skipped.files) == ("localizer", 0)


@pytest.mark.parametrize(
    ("reason", "shared"),
    [
        ("other_plane", {"PlaneOrientationSequence": [item(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])]}),
        ("derived", {"CTImageFrameTypeSequence": [item(FrameType=["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"])]}),
    ],
)
def test_a_file_whose_frames_are_no_slices_is_skipped(tmp_path, reason, shared):
    (series,) = the_series(tmp_path, enhanced(shared=shared_groups(**shared)))
    assert (series.status, series.reason) == ("skipped", reason)


def test_frames_of_another_quantity_are_skipped(tmp_path):
    z_eff = [item(RescaleIntercept=0, RescaleSlope=0.1, RescaleType="Z_EFF")]
    frames = [frame_groups(k, 5.0 * k, PixelValueTransformationSequence=z_eff) for k in range(COUNT)]
    (series,) = the_series(tmp_path, enhanced(frames=frames))
    assert (series.status, series.reason) == ("skipped", "not_hu")


def test_a_frame_without_a_scale_comes_as_its_error(tmp_path):
    frames = [frame_groups(k, 50.0 - 5 * k) for k in range(COUNT)]
    del frames[1].PixelValueTransformationSequence
    (series,) = the_series(tmp_path, enhanced(frames=frames))
    kinds = {slice_file.frame: getattr(hu, "kind", "") for slice_file, hu in read_slices(series)}
    assert kinds == {k: "missing_tag" if k == 1 else "" for k in range(COUNT)}


def test_groups_that_do_not_tell_of_each_frame_fail_the_file(tmp_path):
    (series,) = the_series(tmp_path, enhanced(NumberOfFrames=COUNT + 1))
    assert (series.status, series.reason) == ("failed", "damaged")
    assert "NumberOfFrames is 7" in series.detail


def test_frames_behind_the_end_of_a_file_come_as_errors(tmp_path):
    (series,) = the_series(tmp_path, enhanced())
    data = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(data[: -2 * 32 * 32 - 100])
    kinds = {slice_file.frame: getattr(hu, "kind", "") for slice_file, hu in read_slices(series)}
    assert kinds == {0: "", 1: "", 2: "", 3: "", 4: "truncated", 5: "truncated"}
    (tmp_path / "file").write_bytes(data[:400])
    assert all(isinstance(hu, DicomError) for _, hu in read_slices(series))
    (tmp_path / "file").write_bytes(b"")
    assert all(isinstance(hu, DicomError) for _, hu in read_slices(series))


def test_a_multi_frame_series_beside_a_sharper_one_is_read(tmp_path):
    (tmp_path / "file").write_bytes(enhanced(SeriesInstanceUID="1.2.8", PatientID="p1"))
    write_scan(tmp_path / "sharp", ConvolutionKernel="BONE", first=25.0, FrameOfReferenceUID="1.2.5", slices=6)
    result = find_series([tmp_path])
    assert {series.uid: series.reason or series.status for series in result.series} == {
        "1.2.7": "sharper_kernel",
        "1.2.8": "read",
    }
