"""One DICOM slice: from its bytes to Hounsfield units and a typed header.

Section numbers are those of the DICOM standard, PS3.3 (objects) and PS3.5 (encoding).
"""

import io
import math
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder, pixel_array
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from ich.errors import IchError, one_line

# The competition's UIDs read ID_…, which are not valid ones: pydicom would warn, and log, of four in every slice.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

KINDS: dict[str, str] = {
    "unreadable": "the system cannot read the file",
    "not_dicom": "the bytes are no DICOM file, or are damaged so that its elements cannot be told apart",
    "truncated": "the file ends before its pixel data does",
    "no_pixels": "the file holds no pixel data",
    "missing_tag": "an element without which Hounsfield units or the slice's identity are unknown is not there",
    "bad_tag": "such an element holds a value that cannot be",
    "not_ct": "the image is of another modality",
    "unsupported": "the image is one that this project has no reading for (colour, several frames)",
    "bad_pixels": "the pixel data do not decode, or do not fit what the header says of them",
}

AIR = -1024
"""HU; the lowest that CT means. Scanners pad outside the field of view with -2000 and less: read as air."""

MAX_SIDE = 4096
"""Pixels; more Rows or Columns than any CT has are a damaged header, and are refused before memory is taken."""

_MAX_INFLATED = 2**27  # bytes; twice the largest image that is read
_TOP = np.iinfo(np.int16).max  # HU
_WRAP = 4096  # a 12-bit pixel holds values below this
_WRAPPED_SHARE = 0.01  # share of pixels; a head CT has far more air than this, metal above 3,000 HU far less


class DicomError(IchError):
    """A slice that cannot be read.

    Args:
        kind: one of `KINDS`.
        reason: a sentence: what was found and what was expected.
        identity: the identifiers of slice, patient, study and series that could be read all the same, by keyword.
    """

    def __init__(self, kind: str, reason: str, identity: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.identity = identity or {}

    def __reduce__(self) -> tuple[type, tuple[str, str, dict[str, str]]]:
        return type(self), (self.kind, self.reason, self.identity)  # so that it comes back whole from a worker process


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
    repaired: tuple[str, ...]  # what was mended on reading: "wrapped", "sign"


def read(source: str | Path | bytes | BinaryIO) -> tuple[np.ndarray, Header]:
    """Read a CT slice.

    HU = stored value × RescaleSlope + RescaleIntercept (C.7.6.3, C.8.2.1), rounded to whole units, at least `AIR`.
    MONOCHROME1 changes how values are shown, not what they mean (C.7.6.3.1.2), so HU are the same for both.

    Two defects are mended and told in `Header.repaired`:
    - "wrapped": 12 bits stored, unsigned, intercept about 0, so that air would have no value: it was stored modulo
      4096. Found in 123 files of the competition; described by J. Howard, "Cleaning the data for rapid prototyping",
      Kaggle 2019. They are read as (stored + 1000) modulo 4096, with the intercept −1000.
    - "sign": signed values whose unused high bits are 0 instead of repeating the sign (PS3.5, 8.1.1 leaves them open).

    Args:
        source: a path, the file's bytes, or a binary file object at its start.

    Returns:
        HU as int16 of shape (Rows, Columns), and the header.

    Raises:
        DicomError: the slice cannot be read; its `kind` is one of `KINDS`.
    """
    ds = _parse(source)
    try:
        return _read(ds)
    except DicomError as error:
        raise DicomError(error.kind, error.reason, _identity(ds)) from error


def _identity(ds: FileDataset) -> dict[str, str]:
    identity = {}
    for keyword in ("SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        with suppress(DicomError):  # of the element itself
            identity[keyword] = _text(ds, keyword)
    return {keyword: text for keyword, text in identity.items() if text is not None}


def _read(ds: FileDataset) -> tuple[np.ndarray, Header]:
    modality = _text(ds, "Modality")
    if modality not in (None, "CT"):
        raise DicomError("not_ct", f"Modality is {modality!r}, expected CT")
    if "PixelData" not in ds:  # first, as a file that is cut early lacks much else, which would not tell why
        raise DicomError("no_pixels", "there is no PixelData element; the file may have been cut before it")
    slope, intercept = _number(ds, "RescaleSlope"), _number(ds, "RescaleIntercept")
    if not (0 < abs(slope) <= _TOP and abs(intercept) <= _TOP):
        raise DicomError(
            "bad_tag", f"RescaleSlope {slope} and RescaleIntercept {intercept} make no Hounsfield units of the pixels"
        )
    uid = _text(ds, "SOPInstanceUID")
    if uid is None:
        raise DicomError("missing_tag", "SOPInstanceUID is missing or empty, so that the slice has no name")
    bits, signed = _integer(ds, "BitsStored"), _integer(ds, "PixelRepresentation")
    stored, repaired = _stored_values(ds, bits, signed)
    about_0 = abs(intercept) < 100 and intercept.is_integer()
    if bits == 12 and not signed and slope == 1 and about_0 and _has_wrapped_air(stored):
        stored = (stored + np.uint16(1000)) % _WRAP
        intercept = -1000.0
        repaired = (*repaired, "wrapped")
    header = Header(
        SOPInstanceUID=uid,
        PatientID=_text(ds, "PatientID"),
        StudyInstanceUID=_text(ds, "StudyInstanceUID"),
        SeriesInstanceUID=_text(ds, "SeriesInstanceUID"),
        ImagePositionPatient=_numbers(ds, "ImagePositionPatient", 3),
        ImageOrientationPatient=_numbers(ds, "ImageOrientationPatient", 6),
        PixelSpacing=_numbers(ds, "PixelSpacing", 2),
        Rows=stored.shape[0],
        Columns=stored.shape[1],
        BitsStored=bits,
        PixelRepresentation=signed,
        PhotometricInterpretation=_text(ds, "PhotometricInterpretation"),
        RescaleIntercept=intercept,
        RescaleSlope=slope,
        WindowCenter=_numbers(ds, "WindowCenter"),
        WindowWidth=_numbers(ds, "WindowWidth"),
        repaired=repaired,
    )
    return _rescale(stored, slope, intercept), header


def _parse(source: str | Path | bytes | BinaryIO) -> FileDataset:
    try:
        if isinstance(source, (str, Path)):
            source = Path(source).read_bytes()
        data = source if isinstance(source, bytes) else source.read()
    except OSError as error:
        raise DicomError("unreadable", f"cannot be read: {one_line(error)}") from error
    try:
        if DeflatedExplicitVRLittleEndian.encode() in data[:65536]:
            _check_inflated(data)
        return pydicom.dcmread(io.BytesIO(data))
    except DicomError:
        raise
    except InvalidDicomError as error:
        raise DicomError(
            "not_dicom", "no DICM mark after the first 128 bytes, expected a DICOM file (PS3.10, 7.1)"
        ) from error
    except EOFError as error:
        raise DicomError("truncated", "the file ends inside an element before the pixel data") from error
    except Exception as error:  # pydicom meets damaged bytes with whatever its parser tripped over
        raise DicomError("not_dicom", f"the elements cannot be parsed ({one_line(error, named=True)})") from error


def _check_inflated(data: bytes) -> None:
    """Refuse a deflated file that takes far more memory than an image does: pydicom inflates it whole, at any size."""
    file = io.BytesIO(data)
    file.seek(132)  # behind the preamble and its mark (PS3.10, 7.1)
    read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    inflating.decompress(file.read(), _MAX_INFLATED)
    if inflating.unconsumed_tail:
        raise DicomError("unsupported", f"its elements inflate to more than {_MAX_INFLATED:,} bytes, no slice does")


def _stored_values(ds: FileDataset, bits: int, signed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pixel values as stored, checked against the header; and what was mended."""
    rows, columns = _integer(ds, "Rows"), _integer(ds, "Columns")
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise DicomError("bad_tag", f"the image is {rows} × {columns}, expected 1 to {MAX_SIDE} rows and columns")
    samples, frames = _integer(ds, "SamplesPerPixel", 1), _integer(ds, "NumberOfFrames", 1)
    photometric = _text(ds, "PhotometricInterpretation")
    if samples != 1 or frames != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DicomError(
            "unsupported", f"{samples} sample(s) a pixel, {frames} frame(s), {photometric}; expected one grey frame"
        )
    allocated = _integer(ds, "BitsAllocated")
    if allocated not in (8, 16, 32) or not 1 <= bits <= min(allocated, 16) or signed not in (0, 1):
        raise DicomError(
            "bad_tag",
            f"BitsAllocated {allocated}, BitsStored {bits}, PixelRepresentation {signed}; expected 8, 16 or 32 bits"
            " allocated, no more stored than allocated and than 16, and 0 or 1",
        )
    name = _text(ds.file_meta, "TransferSyntaxUID")
    if name is None:
        raise DicomError("missing_tag", "TransferSyntaxUID is missing, so that the encoding of the pixels is unknown")
    syntax = UID(name)
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise DicomError("unsupported", f"TransferSyntaxUID {name} is no transfer syntax of the standard")
    shape = (rows, columns)
    # Of the uncompressed ones, bytes in big-endian words are left to pydicom too: they come in swapped pairs.
    native = not syntax.is_compressed and (syntax.is_little_endian or allocated > 8)
    raw = _decode_native(ds, shape, allocated, signed) if native else _decode(ds, shape, syntax)
    return _fit_bits(raw, bits, signed)


def _decode_native(ds: FileDataset, shape: tuple[int, int], allocated: int, signed: int) -> np.ndarray:
    data, expected = _value(ds, "PixelData"), shape[0] * shape[1] * allocated // 8
    if data is None:
        raise DicomError("no_pixels", "the PixelData element is empty")
    if not isinstance(data, bytes):
        raise DicomError("bad_tag", f"PixelData is of type {ds['PixelData'].VR}, expected bytes (OB or OW)")
    if len(data) < expected:
        raise DicomError("truncated", f"{len(data):,} bytes of pixel data, expected {expected:,}")
    if len(data) > expected + expected % 2:  # an odd number of bytes is padded to an even one (PS3.5, 7.1.1)
        raise DicomError("bad_pixels", f"{len(data):,} bytes of pixel data, more than the {expected:,} of the image")
    order = "<" if ds.original_encoding[1] else ">"
    dtype = np.dtype(f"{order}{'i' if signed else 'u'}{allocated // 8}")
    return np.frombuffer(data, dtype, count=shape[0] * shape[1]).reshape(shape)


def _decode(ds: FileDataset, shape: tuple[int, int], syntax: UID) -> np.ndarray:
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise DicomError("unsupported", f"nothing installed here decodes {syntax.name}")
    try:
        # Unused bits stay as they are: to cut them off would turn padding of -3000 into 1096, which is bone.
        raw = pixel_array(ds, correct_unused_bits=False)
    except Exception as error:  # each decoder library has errors of its own
        raise DicomError("bad_pixels", f"{syntax.name} does not decode ({one_line(error, named=True)})") from error
    if raw.shape != shape:
        raise DicomError("bad_pixels", f"decoded to {raw.shape}, expected {shape}")
    return raw


def _fit_bits(raw: np.ndarray, bits: int, signed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Bring values into 16 bits and check that they are ones that `bits` can hold."""
    low, high = int(raw.min()), int(raw.max())
    if signed:
        if low >= 0 and 2 ** (bits - 1) <= high < 2**bits:
            wide = raw.astype(np.int32)  # 2**bits may be beyond the pixels' own type
            return np.where(wide < 2 ** (bits - 1), wide, wide - 2**bits).astype(np.int16), ("sign",)
        # Where negative values carry their sign through the unused bits, those beyond the range mean what they say:
        # padding below it, metal above.
        fits = low >= -(2**15) and high < (2**15 if low < 0 else 2 ** (bits - 1))
    else:
        fits = high < 2**bits
    if not fits:
        raise DicomError("bad_pixels", f"stored values from {low} to {high}, more than {bits} bits hold")
    return raw.astype(np.int16 if signed else np.uint16, copy=False), ()


def _has_wrapped_air(stored: np.ndarray) -> bool:
    return np.count_nonzero(stored >= _WRAP - 1000) > _WRAPPED_SHARE * stored.size


def _rescale(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    if slope != 1 or not intercept.is_integer():
        return np.clip(np.rint(stored * slope + intercept), AIR, _TOP).astype(np.int16)
    hu = cv2.add(stored, intercept, dtype=cv2.CV_16S)  # saturates at what 16 bits hold
    return cv2.max(hu, AIR, dst=hu)


def _value(ds: Dataset, keyword: str) -> Any:
    """The element's value; None where it is missing or empty."""
    try:
        value = ds.get(keyword)
    except Exception as error:  # pydicom parses an element when it is asked for, and damaged ones fail in any way
        raise DicomError("bad_tag", f"{keyword} cannot be parsed ({one_line(error, named=True)})") from error
    if value is None or (isinstance(value, (str, bytes, list, MultiValue)) and len(value) == 0):
        return None
    return value


def _plain(ds: Dataset, keyword: str) -> tuple[float, ...] | str | None:
    """Numbers or text of an element that are written as nearly all are; None for any other, which is pydicom's to read.

    pydicom allows for all that may be, and takes more time for a slice's two dozen elements than its pixels take.
    """
    tag, vr = _tag_and_vr(keyword)
    raw = ds.get_item(tag)
    if not isinstance(raw, RawDataElement) or raw.VR not in (None, vr) or not raw.value:
        return None
    if vr == "US" and len(raw.value) == 2:
        return (float(int.from_bytes(raw.value, "little" if raw.is_little_endian else "big")),)
    if vr == "DS" and _PLAIN_NUMBERS.fullmatch(raw.value):
        return tuple(map(float, raw.value.split(b"\\")))
    if vr in ("UI", "LO", "CS") and _PLAIN_TEXT.fullmatch(raw.value):
        return raw.value.rstrip(b"\0").decode("ascii")
    return None


_PLAIN_NUMBERS = re.compile(rb" *[-+]?\d+(\.\d*)? *(\\ *[-+]?\d+(\.\d*)? *)*")
_PLAIN_TEXT = re.compile(rb"[A-Za-z0-9_.-][A-Za-z0-9_. -]*\0?")


@cache
def _tag_and_vr(keyword: str) -> tuple[BaseTag, str]:
    tag = Tag(keyword)
    return tag, dictionary_VR(tag)


def _text(ds: Dataset, keyword: str) -> str | None:
    value = _plain(ds, keyword) or _value(ds, keyword)
    if value is None:
        return None
    # Some character sets decode to surrogates, which no table takes.
    return str(value).encode("utf-8", "replace").decode().strip() or None


def _number(ds: FileDataset, keyword: str) -> float:
    """A finite number; one that is given several times must be the same each time."""
    value = _plain(ds, keyword)
    if value is not None and len(value) == 1 and math.isfinite(value[0]):
        return value[0]
    value = _value(ds, keyword)
    if value is None:
        raise DicomError("missing_tag", f"{keyword} is missing or empty, expected a number")
    values = value if isinstance(value, (MultiValue, list)) else [value]
    try:
        (number,) = {float(v) for v in values}
    except (ValueError, TypeError, OverflowError) as error:
        raise DicomError("bad_tag", f"{keyword} is {value!r}, expected a number") from error
    if not math.isfinite(number):
        raise DicomError("bad_tag", f"{keyword} is {number}, expected a finite number")
    return number


def _integer(ds: FileDataset, keyword: str, default: int | None = None) -> int:
    if default is not None and _plain(ds, keyword) is None and _value(ds, keyword) is None:
        return default
    number = _number(ds, keyword)
    if not number.is_integer():
        raise DicomError("bad_tag", f"{keyword} is {number}, expected a whole number")
    return int(number)


def _numbers(ds: FileDataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """All numbers of an element; None where there are not `count` of them, or one is not finite."""
    try:
        numbers = _plain(ds, keyword)
        if numbers is None:
            value = _value(ds, keyword)
            numbers = tuple(float(v) for v in (value if isinstance(value, (MultiValue, list)) else [value]))
    except (DicomError, ValueError, TypeError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) and count in (None, len(numbers)) else None
