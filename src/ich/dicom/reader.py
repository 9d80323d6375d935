"""One DICOM slice: from its bytes to Hounsfield units and a typed header.

Section numbers are those of the DICOM standard, PS3.3 (objects) and PS3.5 (encoding).
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from ich.dicom import elements, parsing, pixels
from ich.dicom.bits import AIR
from ich.dicom.slice_error import DicomError

STORAGE = "1.2.840.10008.5.1.4.1.1."
"""How the SOPClassUID of what can be stored begins, in the standard's own classes."""
SECONDARY_CAPTURE = f"{STORAGE}7."
"""How that of a Secondary Capture begins, with a dot behind it: of one frame, or of several, 7.1 to 7.4."""

_TOP = np.iinfo(np.int16).max  # HU
_FARTHEST = 2**16  # HU; of RescaleIntercept, as stored values are of 16 bits at most
_WRAP = 4096  # a 12-bit pixel holds values below this
_DENSEST = 30_000  # HU; dense metal reaches it, in few pixels
_DENSE_SHARE = 0.1  # of the pixels; the air around a head and the corners of a slice are more
_FEWEST = 1024  # pixels; of fewer, a share says nothing
_WRAPPED_SHARE = 0.01  # share of pixels; a head CT has far more air than this, metal above 3,000 HU far less


@dataclass(frozen=True, slots=True)
class Header:
    """What the pipeline needs of a slice's elements; fields in DICOM's spelling are as in the file.

    A missing identifier of patient, study or series is None, and so is geometry that is missing or no set of finite
    numbers. RescaleSlope and RescaleIntercept are those that gave the HU, after a repair.
    """

    SOPInstanceUID: str
    PatientID: str | None
    StudyInstanceUID: str | None
    SeriesInstanceUID: str | None
    ImagePositionPatient: tuple[float, ...] | None  # mm, three
    ImageOrientationPatient: tuple[float, ...] | None  # direction cosines of a row and a column, six
    PixelSpacing: tuple[float, ...] | None  # mm between rows, between columns
    Rows: int
    Columns: int
    BitsStored: int
    PixelRepresentation: int  # 0 unsigned, 1 signed
    PhotometricInterpretation: str
    RescaleIntercept: float
    RescaleSlope: float
    WindowCenter: tuple[float, ...] | None
    WindowWidth: tuple[float, ...] | None
    repaired: tuple[str, ...]  # what was mended on reading, as `read` lists it


def read(source: str | Path | bytes | BinaryIO) -> tuple[np.ndarray, Header]:
    """Read a CT slice.

    HU = stored value × RescaleSlope + RescaleIntercept (C.7.6.3, C.8.2.1), rounded to whole units, at least `AIR`.
    MONOCHROME1 changes how values are shown, not what they mean (C.7.6.3.1.2), so HU are the same for both.

    Padding that lies above all tissue is air (C.7.5.1.1.2). Bytes after the last pixel, less than
    another image, are left out (PS3.5, 8.1.1).

    What is mended stands in `Header.repaired`; without a note, the values are those that the header says:
    - "wrapped": 12 bits stored, unsigned, intercept about 0, so that air would have no value: it was stored modulo
      4096. Found in 123 files of the competition; described by J. Howard, "Cleaning the data for rapid prototyping",
      Kaggle 2019. They are read as (stored + 1024) modulo 4096, with the intercept −1024.
    - "sign": signed values whose unused high bits are 0 instead of repeating the sign (PS3.5, 8.1.1 leaves them open).
    - "unsigned": values that PixelRepresentation calls signed, but whose highest bit is no sign: bone of an unsigned
      12-bit value with an intercept of −1024.
    - "more_bits": signed values above what BitsStored says, as metal is, counted with all their bits.
    - "high_bits": unused high bits that mean nothing; they are left out.
    - "modality": Modality is "CT" in lower case, though a code string is upper case (PS3.5, 6.2).

    "sign" to "high_bits" are decided by `ich.dicom.bits.stored_values`.

    Args:
        source: a path, the file's bytes, or a binary file object at its start.

    Returns:
        HU as int16 of shape (Rows, Columns), and the header.

    Raises:
        DicomError: the slice cannot be read; its `kind` is one of `KINDS`.
    """
    data = parsing.file_bytes(source)
    ds = parsing.parse(data)
    try:
        if elements.raw_element(ds, "PixelData") is None:
            _refuse_without_pixels(ds, data)
        return read_parsed(ds)
    except DicomError as error:
        raise DicomError(error.kind, error.reason, _identity(ds)) from error


def _identity(ds: FileDataset) -> dict[str, str]:
    identity = {}
    for keyword in ("SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        with suppress(DicomError):  # of the element itself
            raw = elements.raw_element(ds, keyword)
            # Of an element that was cut, half may be there: another's identity.
            if not isinstance(raw, RawDataElement) or len(raw.value or b"") == raw.length:
                identity[keyword] = elements.text(ds, keyword)
    return {keyword: text for keyword, text in identity.items() if text is not None}


def read_parsed(ds: FileDataset) -> tuple[np.ndarray, Header]:
    """Read a CT slice whose elements are parsed already, as `read` does; HU and header.

    Raises:
        DicomError: the slice cannot be read; without its identity.
    """
    _check_kind(ds)
    samples, frames = elements.integer(ds, "SamplesPerPixel", 1), elements.integer(ds, "NumberOfFrames", 1)
    photometric = elements.text(ds, "PhotometricInterpretation")
    if samples != 1 or frames != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DicomError(
            "unsupported", f"{samples} sample(s) a pixel, {frames} frame(s), {photometric}; expected one gray frame"
        )
    bits_stored, signed = elements.integer(ds, "BitsStored"), elements.integer(ds, "PixelRepresentation")
    words = pixels.stored_words(ds, bits_stored, signed)
    slope, intercept = elements.number(ds, "RescaleSlope"), elements.number(ds, "RescaleIntercept")
    if not (0 < abs(slope) <= _TOP and abs(intercept) <= _FARTHEST):
        raise DicomError(
            "bad_tag", f"RescaleSlope {slope} and RescaleIntercept {intercept} make no Hounsfield units of the pixels"
        )
    uid = elements.text(ds, "SOPInstanceUID")
    if uid is None:
        raise DicomError("missing_tag", "SOPInstanceUID is missing or empty, so that the slice has no name")
    stored, air, repaired = pixels.stored_values(ds, words, bits_stored, (slope, intercept))
    # Such files name the intercept 0 or 1, whatever it was.
    if bits_stored == 12 and not signed and slope == 1 and intercept in (0, 1) and _has_wrapped_air(stored):
        stored = (stored + np.uint16(-AIR)) % _WRAP
        intercept = float(AIR)
        repaired = (*repaired, "wrapped")
    if elements.text(ds, "Modality") not in (None, "CT"):
        repaired = (*repaired, "modality")
    header = Header(
        SOPInstanceUID=uid,
        PatientID=elements.text(ds, "PatientID"),
        StudyInstanceUID=elements.text(ds, "StudyInstanceUID"),
        SeriesInstanceUID=elements.text(ds, "SeriesInstanceUID"),
        ImagePositionPatient=elements.numbers(ds, "ImagePositionPatient", 3),
        ImageOrientationPatient=elements.numbers(ds, "ImageOrientationPatient", 6),
        PixelSpacing=elements.numbers(ds, "PixelSpacing", 2),
        Rows=stored.shape[0],
        Columns=stored.shape[1],
        BitsStored=bits_stored,
        PixelRepresentation=signed,
        PhotometricInterpretation=photometric,
        RescaleIntercept=intercept,
        RescaleSlope=slope,
        WindowCenter=elements.numbers(ds, "WindowCenter"),
        WindowWidth=elements.numbers(ds, "WindowWidth"),
        repaired=repaired,
    )
    low, high = _range(stored)
    hu = _rescale(stored, slope, intercept, low, high)
    if air is not None:
        hu[air] = AIR
    if max(low * slope, high * slope) + intercept > _DENSEST:
        _check_plausible(hu)
    return hu, header


def _check_kind(ds: FileDataset) -> None:
    """Refuse what is no slice of a CT in HU by what its elements say."""
    sop_class = elements.text(ds, "SOPClassUID") or ""
    if f"{sop_class}.".startswith(SECONDARY_CAPTURE):
        raise DicomError("secondary_capture", "SOPClassUID is that of a Secondary Capture, expected CT Image Storage")
    modality = elements.text(ds, "Modality")
    if modality is not None and modality.upper() != "CT":
        raise DicomError("not_ct", f"Modality is {modality!r}, expected CT")
    if sop_class in (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        raise DicomError(
            "unsupported", "an Enhanced CT (multi-frame) is not read here; convert it to one file a slice first"
        )
    if sop_class != CTImageStorage and sop_class.startswith(STORAGE):
        raise DicomError("not_ct", f"SOPClassUID is that of {UID(sop_class).name}, expected CT Image Storage")
    image_type = elements.texts(ds, "ImageType")
    if "LOCALIZER" in image_type:
        raise DicomError("localizer", f"ImageType is {'/'.join(image_type)}: a localizer (C.8.2.1.1.1), no slice")
    # C.11.1.1.2; missing, it is HU (C.8.2.1). "US" is no unit but "unspecified": GDCM, and so ITK, writes it into what
    # it converts, whatever that is.
    other = set(elements.texts(ds, "RescaleType")) - {"HU", "US", ""}
    if other:
        raise DicomError("not_hu", f"RescaleType is {', '.join(sorted(other))}, expected HU (Hounsfield units) or none")


def _refuse_without_pixels(ds: FileDataset, data: bytes) -> None:
    if parsing.ends_early(data):  # first, as of what is there half may be missing
        raise DicomError("truncated", "the file ends inside an element, in the pixel data or before them")
    _check_kind(ds)
    raise DicomError("no_pixels", "there is no PixelData element; the file may have been cut before it")


def _check_plausible(hu: np.ndarray) -> None:
    """Refuse HU that no CT has: air or padding, a large part of a slice, that was read as large numbers."""
    if hu.size < _FEWEST or hu.max() <= _DENSEST:
        return
    share = np.count_nonzero(hu > _DENSEST) / hu.size
    if share > _DENSE_SHARE:
        raise DicomError(
            "bad_pixels",
            f"{share:.0%} of the pixels are above {_DENSEST:,} HU, which little metal reaches: the header does not say"
            " rightly how pixels are stored (sign, padding, intercept); export the slice again",
        )


def _has_wrapped_air(stored: np.ndarray) -> bool:
    return bool(np.count_nonzero(stored >= _WRAP - 1000) > _WRAPPED_SHARE * stored.size)


def _range(stored: np.ndarray) -> tuple[int, int]:
    """Return bounds of the stored values, the upper one of them the greatest; of unsigned values the lower one is 0."""
    return int(stored.min()) if stored.dtype.kind == "i" else 0, int(stored.max())


def _rescale(stored: np.ndarray, slope: float, intercept: float, low: int, high: int) -> np.ndarray:
    """Return HU of stored values from `low` to `high`."""
    if slope != 1 or not intercept.is_integer():
        return np.clip(np.rint(stored * slope + intercept), AIR, _TOP).astype(np.int16)
    # OpenCV's stubs know neither a number as an argument, nor that it gives an array.
    opencv: Any = cv2
    if high <= _TOP and min(intercept, low + intercept) >= -_TOP and max(intercept, high + intercept) <= _TOP:
        hu = stored.view(np.int16) + np.int16(intercept)  # a third of OpenCV's time
    else:
        hu = opencv.add(stored, intercept, dtype=cv2.CV_16S)  # saturates at what 16 bits hold
    if low + intercept >= AIR:
        return hu
    return opencv.max(hu, AIR, dst=hu) if hu.size > 1 else np.maximum(hu, AIR)  # one pixel is a number to OpenCV
