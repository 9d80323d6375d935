"""Write slices of the competition's kind as a PACS exports them: to try what reads anybody's scans.

Nothing is left by which the competition's way finds a slice: files have no extension and no telling name, identifiers
are DICOM's (`1.2.…`), pixels are JPEG Lossless. Beside each series lie a localizer, the same slices by a sharp kernel,
and a structured report; a DICOMDIR lists all (PS3.10, 8).
"""

import io
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import cv2
import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
)
from tqdm import tqdm

from ich import folders
from ich.dicom import archive, reader
from ich.dicom.member import Member
from ich.dicom.reader import DicomError
from ich.errors import IchError, one_line

_ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's, for identifiers of examples
_SHARPENED = 1.5  # times the difference to the smoothed slice is added: edges and noise as a bone kernel has them


def write_export(source: Path, out: Path, split: str, series: int | None = None) -> dict[str, str]:
    """Write the slices of an archive as an export of their scans.

    Args:
        source: a zip or folder laid out like the competition's.
        out: a folder that is not there yet; it has the name when all is written.
        split: train or test.
        series: how many series to take, by their identifiers; None takes all.

    Returns:
        The competition's id of each soft-tissue slice, by its new SOPInstanceUID. A slice that cannot be read is not
        exported.

    Raises:
        IchError: `out` is there, in use or cannot be written, the source cannot be read, or it has no such series.
    """

    def check() -> None:
        if out.exists():
            raise IchError(f"{out} is there; name a new folder")

    with folders.locked(out.parent, check, f"export-{out.name}"):
        try:
            return _write(_series_of(source, split, series), out)
        except OSError as error:
            raise IchError(f"cannot write {out}: {one_line(error)}; make room or rights for it") from error


def _series_of(source: Path, split: str, count: int | None) -> list[list[Member]]:
    """Return the readable slices of a split by series, of so many series, all for None."""
    series: dict[str, list[Member]] = defaultdict(list)
    for member in archive.members([source]):
        if member.split == split:
            try:
                series[reader.read(member.read())[1].SeriesInstanceUID or ""].append(member)
            except DicomError:
                continue  # one is cut, as in the competition
    if not series:
        raise IchError(f"{source} has no readable {split} slices; name an archive that has some")
    return [series[uid] for uid in sorted(series)[:count]]


def _write(chosen: list[list[Member]], out: Path) -> dict[str, str]:
    """Write the series beside `out` and rename the whole to it; return the ids by new SOPInstanceUID."""
    ids: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix=".ich-", dir=out.parent) as folder:
        files = FileSet()
        for number, members in enumerate(tqdm(chosen, desc="export", unit="series", disable=None)):
            for ds, original in _exported([member.read() for member in members], number):
                files.add(ds)
                if original:
                    ids[str(ds.SOPInstanceUID)] = original
        files.write(Path(folder, "export"))
        Path(folder, "export", "README.TXT").write_text("Head CT, exported for research.\n", encoding="utf-8")
        Path(folder, "export").rename(out)
    return ids


def _exported(contents: list[bytes], number: int) -> Iterator[tuple[Dataset, str]]:
    """Yield what a PACS has of a series, and the competition's id of each of its slices ("" for all else).

    Args:
        contents: the slices' files.
        number: of the series in the export, from 0.
    """
    slices = [(pydicom.dcmread(io.BytesIO(content)), *reader.read(content)) for content in contents]
    slices.sort(key=lambda entry: (entry[2].ImagePositionPatient or (0, 0, 0))[2])
    patient = f"P{int(sha256(str(slices[0][0].PatientID).encode()).hexdigest()[:8], 16)}"
    study = _uid("study", slices[0][0].StudyInstanceUID)
    common = {"PatientID": patient, "PatientName": f"Doe^{patient}", "PatientBirthDate": "19500101"}
    common |= {"StudyInstanceUID": study, "StudyDate": "20200101", "StudyTime": "120000", "StudyID": str(number + 1)}
    soft = common | {"SeriesNumber": 2, "SeriesDescription": "HEAD 5MM", "ConvolutionKernel": "STANDARD"}
    bone = common | {"SeriesNumber": 3, "SeriesDescription": "HEAD BONE", "ConvolutionKernel": "BONEPLUS"}
    places = np.random.default_rng(number).permutation(len(slices))  # files are not numbered in scan order
    for place in places:
        ds, hu, header = slices[place]
        original = str(ds.SOPInstanceUID)
        own = {"InstanceNumber": int(place) + 1, "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}
        yield _compressed(_renamed(ds, soft | own, "soft", header.SeriesInstanceUID, original)), original
        sharp = _with_pixels(ds, _sharpened(hu))
        yield _renamed(sharp, bone | own, "bone", header.SeriesInstanceUID, original), ""
    scout = {"SeriesNumber": 1, "SeriesDescription": "SCOUT", "InstanceNumber": 1}
    scout |= {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    ds, hu, header = slices[0]
    projection = _with_pixels(
        ds, np.stack([hu.max(axis=0) for _, hu, _ in slices[::-1] if hu.shape == slices[0][1].shape])
    )
    yield _renamed(projection, common | scout, "scout", header.SeriesInstanceUID, ""), ""
    yield _report(common | {"SeriesNumber": 4, "SeriesDescription": "REPORT"}, study), ""


def _uid(*parts: str) -> UID:
    """Return an identifier of DICOM made of names, always the same."""
    return UID(_ROOT + str(int(sha256("/".join(map(str, parts)).encode()).hexdigest()[:24], 16)))


def _renamed(ds: FileDataset, elements: dict, kind: str, series: str | None, id: str) -> FileDataset:
    """Return a slice with the elements and identifiers of the export."""
    with pydicom.config.disable_value_validation():  # the competition's identifiers are no valid ones
        ds = pydicom.dcmread(io.BytesIO(_bytes(ds)))
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SeriesInstanceUID = _uid("series", kind, str(series))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = _uid("slice", kind, str(series), id)
    ds.FrameOfReferenceUID = _uid("frame", str(series))
    return ds


def _bytes(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds)
    return buffer.getvalue()


def _with_pixels(ds: FileDataset, hu: np.ndarray) -> FileDataset:
    """Return a slice with other pixels, 12 bits unsigned."""
    with pydicom.config.disable_value_validation():
        ds = pydicom.dcmread(io.BytesIO(_bytes(ds)))
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.Rows, ds.Columns = hu.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope = -1024, 1
    if "PixelPaddingValue" in ds:
        del ds.PixelPaddingValue
    ds.PixelData = (hu.astype(np.int32) + 1024).clip(0, 4095).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def _sharpened(hu: np.ndarray) -> np.ndarray:
    smooth = cv2.GaussianBlur(hu.astype(np.float32), (0, 0), 1.0)
    return np.rint(hu + _SHARPENED * (hu - smooth)).clip(-1024, 3071).astype(np.int16)


def _compressed(ds: FileDataset) -> FileDataset:
    """Return a slice as JPEG Lossless, first-order prediction (PS3.5, A.4.1), by GDCM, which works on files."""
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder, "plain"), Path(folder, "packed")
        plain.write_bytes(_bytes(ds))
        image = gdcm.ImageReader()
        image.SetFileName(str(plain))
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        if not image.Read():
            raise IchError(f"GDCM cannot read the slice {ds.SOPInstanceUID}")
        change.SetInput(image.GetImage())
        if not change.Change():
            raise IchError(f"GDCM cannot encode the slice {ds.SOPInstanceUID} as JPEG Lossless")
        writer = gdcm.ImageWriter()
        writer.SetFile(image.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(packed))
        if not writer.Write():
            raise IchError(f"GDCM cannot write the slice {ds.SOPInstanceUID}")
        written = pydicom.dcmread(packed)
        # Of GDCM's file the pixels alone: it changes other elements as it sees fit.
        ds.PixelData = written.PixelData
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    return ds


def _report(elements: dict, study: UID) -> Dataset:
    """Return a structured report of one sentence (PS3.3, A.35.1)."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.Modality, ds.InstanceNumber = "SR", 1
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    ds.SeriesInstanceUID, ds.SOPInstanceUID = _uid("series", "report", study), _uid("report", study)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.ContentDate, ds.ContentTime = elements["StudyDate"], elements["StudyTime"]
    ds.CompletionFlag, ds.VerificationFlag = "PARTIAL", "UNVERIFIED"
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = "18748-4", "LN", "Diagnostic Imaging Report"
    ds.ConceptNameCodeSequence = Sequence([title])
    return ds
