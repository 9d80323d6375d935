"""Enhanced CT: the frames of one file, each as what a file of a single slice says and holds.

A frame's place, scale and kind stand in functional groups, of the frame or shared by all (PS3.3, C.7.6.16). Legacy
Converted Enhanced CT, which archives make of single slices, has the same.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from sys import intern

import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import CTImageStorage

from ich.dicom import parsing, reader
from ich.dicom.slice_error import DicomError
from ich.errors import one_line
from ich.own_scans.header import Facts, days, kernel_of, numbers_of, seconds, text_of, texts_of
from ich.own_scans.kind import kind_of_image

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_OF_ALL = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
)
"""What all frames share as elements of the file, and a file of one slice has too."""

_OF_GROUPS = {
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
}
"""What stands in the functional groups: by the group, elements that a file of one slice has itself."""


_CLOCK = re.compile(r"[0-9]{14}(\.[0-9]+)?")  # YYYYMMDDHHMMSS.FFFFFF (PS3.5, 6.2)


def frames_of(ds: Dataset, file: Facts) -> Iterator[Facts]:
    """What each frame says of itself.

    Args:
        ds: the header, with its functional groups.
        file: what it says of all frames.

    Yields:
        One for each frame; or the file's own, with its fault, where the groups do not tell of each frame.
    """
    count = numbers_of(ds, "NumberOfFrames")
    shared, groups = _items(ds, _SHARED), _items(ds, _PER_FRAME)
    if file.fault or file.uid is None:
        yield file
        return
    if not groups or (count and count[0] != len(groups)):
        counts = f"NumberOfFrames is {count[0] if count else 'missing'}, functional groups are there for {len(groups)}"
        yield replace(file, fault=f"{counts}; expected one for each frame")
        return
    for number, group in enumerate(groups):
        yield _frame(file, number, [group, *shared])


def _frame(file: Facts, number: int, groups: list[Dataset]) -> Facts:
    named = {name: _group(groups, name) for name in (*_OF_GROUPS, *_MORE_GROUPS)}
    kind = tuple(map(intern, texts_of(named["CTImageFrameTypeSequence"], "FrameType"))) or file.image_type
    content = named["FrameContentSequence"]
    fault = kind_of_image(kind, texts_of(named["PixelValueTransformationSequence"], "RescaleType"))
    acquisition = numbers_of(content, "FrameAcquisitionNumber")
    clock = text_of(content, "FrameAcquisitionDateTime") or text_of(content, "FrameReferenceDateTime") or ""
    clock = re.sub(r"[-+][0-9]{4}$", "", clock)  # the zone is one for all
    thickness = numbers_of(named["PixelMeasuresSequence"], "SliceThickness")
    return replace(
        file,
        uid=f"{file.uid}.{number + 1}",
        frame=number,
        number=float(number + 1),
        kind=fault[0] if fault else "",
        why=fault[1] if fault else "",
        image_type=kind,
        kernel=intern(kernel_of(named["CTReconstructionSequence"])) or file.kernel,
        acquisition=acquisition[0] if acquisition else file.acquisition,
        date=days(float(clock[:8])) if _CLOCK.fullmatch(clock) else file.date,
        time=seconds(float(clock[8:])) if _CLOCK.fullmatch(clock) else file.time,
        thickness=thickness[0] if thickness else file.thickness,
        position=numbers_of(named["PlanePositionSequence"], "ImagePositionPatient", 3) or file.position,
        orientation=numbers_of(named["PlaneOrientationSequence"], "ImageOrientationPatient", 6) or file.orientation,
        pixel_spacing=numbers_of(named["PixelMeasuresSequence"], "PixelSpacing", 2) or file.pixel_spacing,
    )


_MORE_GROUPS = ("CTImageFrameTypeSequence", "FrameContentSequence", "CTReconstructionSequence")


def _items(ds: Dataset, keyword: str) -> list[Dataset]:
    try:
        return list(ds.get(keyword) or [])
    except Exception:  # noqa: BLE001 - pydicom meets damaged bytes with whatever its parser tripped over
        return []


def _group(groups: list[Dataset], keyword: str) -> Dataset:
    """A functional group: the frame's own, else the one that all share; empty where there is none."""
    return next((item for group in groups for item in _items(group, keyword)[:1]), Dataset())


class Frames:
    """The frames of one file, read one by one.

    Args:
        data: the file's bytes, with preamble.

    Raises:
        DicomError: the file cannot be parsed or holds no pixels.
    """

    def __init__(self, data: bytes) -> None:
        self._ds = parsing.parse(data)
        self._shared = _items(self._ds, _SHARED)
        self._groups = _items(self._ds, _PER_FRAME)
        try:
            self._pixels = self._ds.PixelData
        except Exception as error:  # pydicom meets damaged bytes with whatever its parser tripped over
            raise DicomError("no_pixels", f"there is no PixelData element ({one_line(error, named=True)})") from error

    def read(self, number: int) -> tuple[np.ndarray, reader.Header]:
        """The HU of a frame and its header, as `ich.dicom.reader.read` gives those of a slice.

        Args:
            number: of the frame, from 0.

        Raises:
            DicomError: the frame cannot be read.
        """
        if number >= len(self._groups):
            raise DicomError("truncated", f"there are functional groups for {len(self._groups)} frames, not more")
        return reader.read_parsed(self._single(number))

    def _single(self, number: int) -> FileDataset:
        """The frame as the dataset of a file of one slice."""
        of_file = self._ds
        implicit, little = map(bool, of_file.original_encoding)
        ds = FileDataset("", {}, file_meta=of_file.file_meta, is_implicit_VR=implicit, is_little_endian=little)
        _copy(of_file, ds, _OF_ALL)
        groups = [self._groups[number], *self._shared]
        for name, keywords in _OF_GROUPS.items():
            _copy(_group(groups, name), ds, keywords)
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = f"{text_of(of_file, 'SOPInstanceUID')}.{number + 1}"
        ds.PixelData = self._pixels_of(number)
        ds["PixelData"].VR = of_file["PixelData"].VR
        return ds

    def _pixels_of(self, number: int) -> bytes:
        ds = self._ds
        try:
            if ds.file_meta.TransferSyntaxUID.is_compressed:
                # With an extended offset table each frame is one fragment (PS3.5, A.4), which are counted as well.
                return encapsulate([get_frame(self._pixels, number, number_of_frames=len(self._groups))])
            size = int(ds.Rows) * int(ds.Columns) * int(ds.BitsAllocated) // 8
        except Exception as error:  # pydicom meets damaged bytes with whatever its parser tripped over
            raise DicomError("bad_pixels", f"the frame cannot be had ({one_line(error, named=True)})") from error
        pixels = self._pixels[number * size : (number + 1) * size]
        if len(pixels) < size:
            raise DicomError("truncated", f"{len(pixels):,} bytes of the frame's pixel data, expected {size:,}")
        return pixels


def _copy(of: Dataset, to: Dataset, keywords: tuple[str, ...]) -> None:
    for keyword in keywords:
        if keyword in of:
            to[keyword] = of.get_item(keyword)
