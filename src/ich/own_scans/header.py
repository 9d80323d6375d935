"""What the header of a DICOM file says of its series, its place and its kind, from the first bytes of the file.

Elements that are not asked for are passed over: names and birth dates of patients are never decoded. Section numbers
are those of the DICOM standard, PS3.3 (objects), PS3.5 (encoding) and PS3.10 (files).
"""

import io
import math
import zlib
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from sys import intern
from typing import Any, TypeVar

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset, read_partial
from pydicom.filewriter import write_file_meta_info
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from ich.dicom import elements
from ich.dicom.member import Member
from ich.dicom.reader import STORAGE
from ich.dicom.slice_error import DicomError
from ich.errors import one_line
from ich.own_scans.kind import MONO_ENERGETIC, kind_of_file
from ich.own_scans.sources import ZIP

_TEXTS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("Modality", "SeriesDescription", "ContrastBolusAgent", "BodyPartExamined"),
)
_NUMBERS = (
    *("SeriesNumber", "AcquisitionNumber", "InstanceNumber", "AcquisitionDate", "AcquisitionTime"),
    *("SliceThickness", "Rows", "Columns"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SamplesPerPixel", "NumberOfFrames"),
)
_MORE = ("ImageType", "ConvolutionKernel", "RescaleType", "PhotometricInterpretation", "ContrastBolusAgentSequence")
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in (*_TEXTS, *_NUMBERS, *_MORE, *_FUNCTIONAL_GROUPS)]

_NO_AGENT = {"NONE", "NO", "N", "0", "-", "NATIVE", "WITHOUT", "NO CONTRAST", "WITHOUT CONTRAST"}  # what people write
_PIXELS = 0x7FE00008  # the first of the elements that hold pixels
_INFLATED = 2**24  # bytes of a deflated file that are looked at

Vector = tuple[float, ...]
_T = TypeVar("_T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file says of itself, or one frame of a multi-frame file. None, or "", where it says nothing."""

    uid: str | None = None
    study: str | None = None
    series: str | None = None
    patient: str | None = None
    kind: str = ""  # a word of REASONS for what is no slice of CT; "" for what may be
    why: str = ""  # a sentence with what was found, for such a kind
    fault: str = ""  # why it cannot be read although it belongs to a series; "" if nothing speaks against it
    modality: str = ""
    description: str = ""
    kernel: str = ""
    contrast: str = ""
    body_part: str = ""
    image_type: tuple[str, ...] = ()
    reference: str | None = None  # FrameOfReferenceUID
    series_number: float | None = None
    acquisition: float | None = None
    number: float | None = None  # InstanceNumber
    date: int | None = None  # of the acquisition, days since the year 1
    time: float | None = None  # of the acquisition, seconds of the day
    thickness: float | None = None  # mm
    position: Vector | None = None  # mm
    orientation: Vector | None = None
    pixel_spacing: Vector | None = None  # mm
    rows: int | None = None
    columns: int | None = None
    frame: int | None = None  # from 0, of a multi-frame or NIfTI file

    @property
    def mono_energetic(self) -> bool:
        """Whether it was computed for one energy of X-rays."""
        return bool(MONO_ENERGETIC.intersection(self.image_type))


class NoFacts(Exception):
    """A file that belongs to no series.

    Args:
        reason: a word of `ich.own_scans.reasons.REASONS`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def looks_like_dicom(head: bytes) -> bool:
    """Whether bytes begin as a DICOM file does, or as a dataset without the preamble and the mark (PS3.10, 7.1)."""
    return head[128:132] == b"DICM" or _starts_bare(head)


def _starts_bare(head: bytes) -> bool:
    """Whether bytes begin with a first element of group 2 or 8, in any of the plain encodings."""
    little = head[:2] in (b"\x02\0", b"\x08\0") and head[3:4] == b"\0"
    big = head[:2] in (b"\0\x02", b"\0\x08") and head[2:3] == b"\0"
    return (little or big) and len(head) > 132


def with_preamble(data: bytes) -> bytes:
    """A DICOM file with preamble, mark and transfer syntax, as `ich.dicom.reader` expects it.

    A dataset that begins without them is read by the standard's default, implicit little endian, unless its first
    element shows another plain encoding (PS3.10, 7.1; PS3.5, 10.1).
    """
    if data[128:132] == b"DICM" or not _starts_bare(data):
        return data
    if data[:2] == b"\x02\0":
        return bytes(128) + b"DICM" + data
    meta = FileMetaDataset()
    explicit = data[4:6].isalpha() and data[4:6].isupper()
    big = ExplicitVRBigEndian if data[:1] == b"\0" else ExplicitVRLittleEndian
    meta.TransferSyntaxUID = big if explicit else ImplicitVRLittleEndian
    file = DicomBytesIO()
    write_file_meta_info(file, meta, enforce_standard=False)
    return bytes(128) + b"DICM" + file.getvalue() + data


def read_header(head: bytes, member: Member) -> tuple[Dataset, bool, str]:
    """The elements of `TAGS` of a DICOM file, as far as they can be told apart.

    Args:
        head: the first bytes of the file; more are read if the header is longer.

    Returns:
        (dataset, whether pixel data follow, what is wrong or "").

    Raises:
        NoFacts: it is no DICOM file.
        IchError: it cannot be read.
    """
    if not looks_like_dicom(head):
        # Zips are opened, but for those within one.
        raise NoFacts("nested_zip" if head[:4] in ZIP else "not_dicom" if head else "empty")
    want = len(head)
    while True:
        ds, pixels, fault = _parse(with_preamble(head))
        if pixels or want >= member.size:
            break
        want *= 8
        head = member.head(want)
    if head[128:132] != b"DICM" and not (text_of(ds, "SOPClassUID") or "").startswith(STORAGE):
        raise NoFacts("not_dicom")  # any bytes may begin as a dataset does
    return ds, pixels, fault


def _parse(data: bytes) -> tuple[Dataset, bool, str]:
    last, pixels = 0, False

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal last, pixels
        last, pixels = int(tag), tag >= _PIXELS
        return pixels

    try:
        return _dataset(data, stop), pixels, ""
    except Exception as error:  # noqa: BLE001 - pydicom meets damaged bytes with whatever its parser tripped over
        fault, end = f"the elements cannot be parsed ({one_line(error, named=True)})", last
    with suppress(Exception):  # what comes before the damage names the series in most cases
        return _dataset(data, lambda tag, vr, length: tag >= end), False, fault
    return FileDataset("", {}, file_meta=FileMetaDataset()), False, fault


def _dataset(data: bytes, stop: Callable[[BaseTag, str | None, int], bool]) -> Dataset:
    if DeflatedExplicitVRLittleEndian.encode() in data[:4096]:
        file = io.BytesIO(data)
        meta = read_partial(file, lambda tag, vr, length: tag >> 16 != 2)
        if meta.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            # Here, as pydicom inflates all of it, however much memory that takes.
            file.seek(132)
            read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), _INFLATED)
            ds = read_dataset(io.BytesIO(inflated), False, True, stop_when=stop, specific_tags=TAGS)
            ds.file_meta = meta.file_meta
            return ds
    return read_partial(io.BytesIO(data), stop, force=True, specific_tags=TAGS)


def facts_of(ds: Dataset, pixels: bool, fault: str) -> Facts:
    """What a single-frame file says of itself.

    Args:
        ds, pixels, fault: as `read_header` gives them.

    Raises:
        NoFacts: it is damaged and names no series, or is a DICOMDIR.
    """
    if text_of(ds.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise NoFacts("dicomdir")
    texts = {keyword: text_of(ds, keyword) for keyword in _TEXTS}
    numbers = {keyword: numbers_of(ds, keyword) for keyword in _NUMBERS}
    if texts["SOPClassUID"] is None and texts["SeriesInstanceUID"] is None:
        raise NoFacts("no_identity")
    image_type = tuple(map(intern, texts_of(ds, "ImageType")))
    kind, why = kind_of_file(
        texts["SOPClassUID"] or "",
        texts["Modality"],
        image_type,
        texts_of(ds, "RescaleType"),
        _first(numbers["SamplesPerPixel"]) or 1,
        _first(numbers["NumberOfFrames"]) or 1,
        text_of(ds, "PhotometricInterpretation") or "MONOCHROME2",
    )
    if not fault and kind == "":
        if not pixels:
            fault = "the file ends before its pixel data, or has none"
        elif texts["SOPInstanceUID"] is None:
            fault = "SOPInstanceUID is missing or empty, so that the slice has no name"
    if fault and texts["SeriesInstanceUID"] is None:
        raise NoFacts("no_identity")
    return Facts(
        uid=texts["SOPInstanceUID"],
        study=_interned(texts["StudyInstanceUID"]),
        series=_interned(texts["SeriesInstanceUID"]),
        patient=_interned(texts["PatientID"]),
        kind=kind,
        why=why,
        fault=fault,
        modality=intern(texts["Modality"] or ""),
        description=intern(texts["SeriesDescription"] or ""),
        kernel=intern(kernel_of(ds)),
        contrast=intern(_contrast(ds, texts["ContrastBolusAgent"])),
        body_part=intern(texts["BodyPartExamined"] or ""),
        image_type=_shared(image_type),
        reference=_interned(texts["FrameOfReferenceUID"]),
        series_number=_first(numbers["SeriesNumber"]),
        acquisition=_first(numbers["AcquisitionNumber"]),
        number=_first(numbers["InstanceNumber"]),
        date=days(_first(numbers["AcquisitionDate"])),
        time=seconds(_first(numbers["AcquisitionTime"])),
        thickness=_first(numbers["SliceThickness"]),
        position=_vector(numbers["ImagePositionPatient"], 3),
        orientation=_shared(_vector(numbers["ImageOrientationPatient"], 6)),
        pixel_spacing=_shared(_vector(numbers["PixelSpacing"], 2)),
        rows=_whole(numbers["Rows"]),
        columns=_whole(numbers["Columns"]),
    )


def kernel_of(ds: Dataset) -> str:
    """ConvolutionKernel: all values, separated by a space; "" where there is none."""
    try:
        value = ds.get("ConvolutionKernel")
    except Exception:  # noqa: BLE001 - pydicom meets damaged bytes with whatever its parser tripped over
        return ""
    return " ".join(map(str, value if isinstance(value, MultiValue) else [value or ""])).strip()


def _contrast(ds: Dataset, agent: str | None) -> str:
    """The contrast agent, "" for none."""
    if agent is not None:
        return "" if agent.upper() in _NO_AGENT else agent
    try:
        agents = ds.get("ContrastBolusAgentSequence") or []
        return "; ".join(str(agent[0x00080104].value) for agent in agents if 0x00080104 in agent)  # CodeMeaning
    except Exception:  # noqa: BLE001 - pydicom meets damaged bytes with whatever its parser tripped over
        return ""


def text_of(ds: Dataset, keyword: str) -> str | None:
    """An element's text; None where it is missing, empty or cannot be parsed."""
    with suppress(DicomError):
        return elements.text(ds, keyword)
    return None


def texts_of(ds: Dataset, keyword: str) -> list[str]:
    """All values of an element of text, in capitals; none where it is missing, empty or cannot be parsed."""
    with suppress(DicomError):
        return elements.texts(ds, keyword)
    return []


def numbers_of(ds: Any, keyword: str, count: int | None = None) -> Vector | None:
    """All numbers of an element; None where they are missing, not `count` of them, or not all finite."""
    return elements.numbers(ds, keyword, count)


def _interned(text: str | None) -> str | None:
    return None if text is None else intern(text)


def _first(numbers: Vector | None) -> float | None:
    return numbers[0] if numbers else None


def _vector(numbers: Vector | None, length: int) -> Vector | None:
    return numbers if numbers is not None and len(numbers) == length else None


@lru_cache(4096)
def _shared(value: _T) -> _T:
    """The first of equal values: all slices of a series have one direction, and need one object."""
    return value


def _whole(numbers: Vector | None) -> int | None:
    number = _first(numbers)
    return int(number) if number is not None and number.is_integer() else None


def days(date: float | None) -> int | None:
    """Days since the year 1, of a date that is written YYYYMMDD (PS3.5, 6.2)."""
    with suppress(ValueError):  # no such day
        if date is not None and date.is_integer():
            return datetime.strptime(f"{date:08.0f}", "%Y%m%d").toordinal()
    return None


def seconds(clock: float | None) -> float | None:
    """Seconds of the day, of a time that is written HHMMSS.FFFFFF (PS3.5, 6.2)."""
    if clock is None or not 0 <= clock < 240000:
        return None
    minutes, seconds = divmod(clock, 100)
    return 60 * (minutes // 100 * 60 + minutes % 100) + seconds if math.isfinite(seconds) else None
