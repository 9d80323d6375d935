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
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.utils import get_j2k_parameters
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    JPEG2000TransferSyntaxes,
    LegacyConvertedEnhancedCTImageStorage,
)

from ich.dicom import bits
from ich.dicom.bits import AIR
from ich.errors import IchError, one_line

# The competition's UIDs read ID_…, which are not valid ones: pydicom would warn, and log, of four in every slice.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

KINDS: dict[str, str] = {
    "unreadable": "the system cannot read the file",
    "not_dicom": "the bytes are no DICOM file, or are damaged so that its elements cannot be told apart",
    "truncated": "the file ends before its pixel data does, or before them within another element",
    "no_pixels": "the file holds no pixel data",
    "missing_tag": "an element without which Hounsfield units or the slice's identity are unknown is not there",
    "bad_tag": "such an element holds a value that cannot be",
    "not_ct": "the image is of another modality, or no CT image by its SOPClassUID",
    "secondary_capture": "the image is a Secondary Capture: a screen save or a scanned page, whose values are no HU",
    "localizer": "the image is a localizer (scout), a projection of the patient and no slice",
    "not_hu": "the values are another quantity than Hounsfield units, by RescaleType",
    "unsupported": "the image is one that this project has no reading for (colour, several frames)",
    "bad_pixels": "the pixel data do not decode, or do not fit what the header says of them",
}

MAX_SIDE = 4096
"""Pixels; more Rows or Columns than any CT has are a damaged header, and are refused before memory is taken."""

_MAX_INFLATED = 2**27  # bytes; twice the largest image that is read
_TOP = np.iinfo(np.int16).max  # HU
_FARTHEST = 2**16  # HU; of RescaleIntercept, as stored values are of 16 bits at most
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
      Kaggle 2019. They are read as (stored + 1000) modulo 4096, with the intercept −1000.
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
    data = _bytes(source)
    ds = _parse(data)
    try:
        if _raw(ds, "PixelData") is None:
            _refuse_without_pixels(ds, data)
        return _read(ds)
    except DicomError as error:
        raise DicomError(error.kind, error.reason, _identity(ds)) from error


def _identity(ds: FileDataset) -> dict[str, str]:
    identity = {}
    for keyword in ("SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        with suppress(DicomError):  # of the element itself
            raw = _raw(ds, keyword)
            # Of an element that was cut, half may be there: another's identity.
            if not isinstance(raw, RawDataElement) or len(raw.value or b"") == raw.length:
                identity[keyword] = _text(ds, keyword)
    return {keyword: text for keyword, text in identity.items() if text is not None}


def _read(ds: FileDataset) -> tuple[np.ndarray, Header]:
    _check_kind(ds)
    samples, frames = _integer(ds, "SamplesPerPixel", 1), _integer(ds, "NumberOfFrames", 1)
    photometric = _text(ds, "PhotometricInterpretation")
    if samples != 1 or frames != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DicomError(
            "unsupported", f"{samples} sample(s) a pixel, {frames} frame(s), {photometric}; expected one grey frame"
        )
    bits_stored, signed = _integer(ds, "BitsStored"), _integer(ds, "PixelRepresentation")
    words = _words(ds, bits_stored, signed)
    slope, intercept = _number(ds, "RescaleSlope"), _number(ds, "RescaleIntercept")
    if not (0 < abs(slope) <= _TOP and abs(intercept) <= _FARTHEST):
        raise DicomError(
            "bad_tag", f"RescaleSlope {slope} and RescaleIntercept {intercept} make no Hounsfield units of the pixels"
        )
    uid = _text(ds, "SOPInstanceUID")
    if uid is None:
        raise DicomError("missing_tag", "SOPInstanceUID is missing or empty, so that the slice has no name")
    stored, air, repaired = _stored_values(ds, words, bits_stored, (slope, intercept))
    about_0 = abs(intercept) < 100 and intercept.is_integer()
    if bits_stored == 12 and not signed and slope == 1 and about_0 and _has_wrapped_air(stored):
        stored = (stored + np.uint16(1000)) % _WRAP
        intercept = -1000.0
        repaired = (*repaired, "wrapped")
    if _text(ds, "Modality") not in (None, "CT"):
        repaired = (*repaired, "modality")
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
        BitsStored=bits_stored,
        PixelRepresentation=signed,
        PhotometricInterpretation=photometric,
        RescaleIntercept=intercept,
        RescaleSlope=slope,
        WindowCenter=_numbers(ds, "WindowCenter"),
        WindowWidth=_numbers(ds, "WindowWidth"),
        repaired=repaired,
    )
    hu = _rescale(stored, slope, intercept)
    if air is not None:
        hu[air] = AIR
    return hu, header


def _bytes(source: str | Path | bytes | BinaryIO) -> bytes:
    try:
        if isinstance(source, (str, Path)):
            source = Path(source).read_bytes()
        return source if isinstance(source, bytes) else source.read()
    except OSError as error:
        raise DicomError("unreadable", f"cannot be read: {one_line(error)}") from error


def _parse(data: bytes) -> FileDataset:
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
        if _ends_early(data):
            raise DicomError("truncated", "the file ends inside an element before the pixel data") from error
        raise DicomError("not_dicom", f"the elements cannot be parsed ({one_line(error, named=True)})") from error


class _Watched(io.BytesIO):
    """Bytes that notice when more was asked of them than they hold."""

    exhausted = False
    _ended = False

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        # Where an element may begin, 8 bytes are asked for, and a file may end; once.
        ends = not data and size == 8 and not self._ended
        self._ended |= ends
        self.exhausted |= len(data) < (size or 0) and not ends
        return data


def _ends_early(data: bytes) -> bool:
    """Whether the file ends inside an element. Pydicom tells it of some elements only, and takes time to ask others."""
    file = _Watched(data)
    with suppress(Exception):  # whatever it is, it was met before
        pydicom.dcmread(file)
    return file.exhausted


def _check_inflated(data: bytes) -> None:
    """Refuse a deflated file that takes far more memory than an image does: pydicom inflates it whole, at any size."""
    file = io.BytesIO(data)
    file.seek(132)  # behind the preamble and its mark (PS3.10, 7.1)
    read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    deflated = file.read()
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    inflating.decompress(deflated, _MAX_INFLATED)
    if deflated and not inflating.eof and not inflating.unconsumed_tail:
        raise DicomError("truncated", "the file ends before its deflated elements do")
    if inflating.unconsumed_tail:
        raise DicomError("unsupported", f"its elements inflate to more than {_MAX_INFLATED:,} bytes, no slice does")


def _check_kind(ds: FileDataset) -> None:
    """Refuse what is no slice of a CT in HU by what its elements say."""
    sop_class = _text(ds, "SOPClassUID") or ""
    if f"{sop_class}.".startswith(_SECONDARY_CAPTURE):
        raise DicomError("secondary_capture", "SOPClassUID is that of a Secondary Capture, expected CT Image Storage")
    modality = _text(ds, "Modality")
    if modality is not None and modality.upper() != "CT":
        raise DicomError("not_ct", f"Modality is {modality!r}, expected CT")
    if sop_class in (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        raise DicomError(
            "unsupported", "an Enhanced CT (multi-frame) is not read here; convert it to one file a slice first"
        )
    if sop_class != CTImageStorage and sop_class.startswith(_STANDARD_STORAGE):
        raise DicomError("not_ct", f"SOPClassUID is that of {UID(sop_class).name}, expected CT Image Storage")
    image_type = _texts(ds, "ImageType")
    if "LOCALIZER" in image_type:
        raise DicomError("localizer", f"ImageType is {'/'.join(image_type)}: a localizer (C.8.2.1.1.1), no slice")
    # C.11.1.1.2; missing, it is HU (C.8.2.1). "US" is no unit but "unspecified": GDCM, and so ITK, writes it into what
    # it converts, whatever that is.
    other = set(_texts(ds, "RescaleType")) - {"HU", "US", ""}
    if other:
        raise DicomError("not_hu", f"RescaleType is {', '.join(sorted(other))}, expected HU (Hounsfield units) or none")


def _refuse_without_pixels(ds: FileDataset, data: bytes) -> None:
    if _ends_early(data):  # first, as of what is there half may be missing
        raise DicomError("truncated", "the file ends inside an element, in the pixel data or before them")
    _check_kind(ds)
    raise DicomError("no_pixels", "there is no PixelData element; the file may have been cut before it")


def _words(ds: FileDataset, bits_stored: int, signed: int) -> np.ndarray:
    """The pixels as they are stored, with all the bits that are allocated to each, checked against the header."""
    rows, columns = _integer(ds, "Rows"), _integer(ds, "Columns")
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise DicomError("bad_tag", f"the image is {rows} × {columns}, expected 1 to {MAX_SIDE} rows and columns")
    allocated = _integer(ds, "BitsAllocated")
    if allocated not in (8, 16, 32) or not 1 <= bits_stored <= min(allocated, 16) or signed not in (0, 1):
        raise DicomError(
            "bad_tag",
            f"BitsAllocated {allocated}, BitsStored {bits_stored}, PixelRepresentation {signed}; expected 8, 16 or 32"
            " bits allocated, no more stored than allocated and than 16, and 0 or 1",
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
    return _decode_native(ds, shape, allocated, signed) if native else _decode(ds, shape, syntax, signed)


def _decode_native(ds: FileDataset, shape: tuple[int, int], allocated: int, signed: int) -> np.ndarray:
    data, expected = _value(ds, "PixelData"), shape[0] * shape[1] * allocated // 8
    if data is None:
        raise DicomError("no_pixels", "the PixelData element is empty")
    if not isinstance(data, bytes):
        raise DicomError("bad_tag", f"PixelData is of type {ds['PixelData'].VR}, expected bytes (OB or OW)")
    if len(data) < expected:
        raise DicomError("truncated", f"{len(data):,} bytes of pixel data, expected {expected:,}")
    if len(data) >= 2 * expected:  # no padding: more frames, or Rows and Columns of another image
        raise DicomError(
            "bad_pixels", f"{len(data):,} bytes of pixel data, which is {len(data) // expected} such images"
        )
    order = "<" if ds.original_encoding[1] else ">"
    dtype = np.dtype(f"{order}{'i' if signed else 'u'}{allocated // 8}")
    return np.frombuffer(data, dtype, count=shape[0] * shape[1]).reshape(shape)


def _decode(ds: FileDataset, shape: tuple[int, int], syntax: UID, signed: int) -> np.ndarray:
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise DicomError("unsupported", f"nothing installed here decodes {syntax.name}")
    try:
        # Unused bits stay as they are: to cut them off would turn padding of -3000 into 1096, which is bone.
        raw = pixel_array(ds, correct_unused_bits=False)
        contrary = not signed and syntax in JPEG2000TransferSyntaxes and _is_signed(ds)
        if contrary:  # what the stream says, before pydicom makes of it what PixelRepresentation says
            raw = pixel_array(ds, correct_unused_bits=False, apply_j2k_sign_correction=False)
    except Exception as error:  # each decoder library has errors of its own
        raise DicomError("bad_pixels", f"{syntax.name} does not decode ({one_line(error, named=True)})") from error
    if raw.shape != shape:
        raise DicomError("bad_pixels", f"decoded to {raw.shape}, expected {shape}")
    if contrary and (raw.view(f"i{raw.itemsize}") < 0).any():
        raise DicomError(
            "bad_pixels", "the JPEG 2000 stream holds negative values, PixelRepresentation says that there are none"
        )
    return raw


def _is_signed(ds: FileDataset) -> bool:
    return get_j2k_parameters(get_frame(ds.PixelData, 0, number_of_frames=1)).get("is_signed", False)


def _stored_values(
    ds: FileDataset, words: np.ndarray, bits_stored: int, scale: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """The pixel values in 16 bits; where they are air whatever they say, None for nowhere; and what was mended."""
    used = words.itemsize * 8
    high_bit = _integer(ds, "HighBit", bits_stored - 1)
    if not bits_stored - 1 <= high_bit < used:
        raise DicomError("bad_tag", f"HighBit is {high_bit} of {used}, BitsStored {bits_stored}; expected one less")
    padding = _padding(ds, words)
    try:
        if high_bit != bits_stored - 1:
            by = high_bit - bits_stored + 1
            words, used = bits.shifted(words, by, _overlaid(ds, range(by))), used - by
        # Padding that is below air needs no care, nor has it a say of which bits count.
        if bits.fits(words, bits_stored) and (
            padding is None or max(value * scale[0] + scale[1] for value in padding) <= bits.METAL
        ):
            air = bits.unnamed_padding(words, scale)
            return words.astype(np.int16 if words.dtype.kind == "i" else np.uint16, copy=False), air, ()
        overlaid = _overlaid(ds, range(high_bit + 1, words.itemsize * 8))
        return bits.stored_values(words, bits_stored, used=used, scale=scale, overlaid=overlaid, padding=padding)
    except DicomError:
        raise
    except IchError as error:
        raise DicomError("bad_pixels", str(error)) from error


def _padding(ds: FileDataset, words: np.ndarray) -> tuple[int, int] | None:
    """The least and the greatest value that is padding (C.7.5.1.1.2), as numbers of the words' kind.

    Its 16 bits count: many files give them the VR of the other PixelRepresentation.
    """
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if _raw(ds, keyword) is None or _value(ds, keyword) is None:
            break
        pattern = _integer(ds, keyword) & 0xFFFF
        ends.append(pattern - 0x10000 if words.dtype.kind == "i" and pattern >> 15 else pattern)
    return (min(ends), max(ends)) if ends else None


def _overlaid(ds: FileDataset, unused: range) -> bool:
    """Whether an overlay stands in these bits of the pixels (C.9.2; retired, but files hold it)."""
    for group in range(0x6000, 0x6020, 2):
        position = ds.get((group, 0x0102))
        if position is not None and (group, 0x3000) not in ds and position.value in unused:
            return True
    return False


def _has_wrapped_air(stored: np.ndarray) -> bool:
    return bool(np.count_nonzero(stored >= _WRAP - 1000) > _WRAPPED_SHARE * stored.size)


def _rescale(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    if slope != 1 or not intercept.is_integer():
        return np.clip(np.rint(stored * slope + intercept), AIR, _TOP).astype(np.int16)
    # OpenCV takes a fifth of NumPy's time; its stubs know neither a number as an argument, nor that it gives an array.
    opencv: Any = cv2
    hu = opencv.add(stored, intercept, dtype=cv2.CV_16S)  # saturates at what 16 bits hold
    return opencv.max(hu, AIR, dst=hu) if hu.size > 1 else np.maximum(hu, AIR)  # one pixel is a number to OpenCV


def _value(ds: Dataset, keyword: str) -> Any:
    """The element's value; None where it is missing or empty."""
    if _raw(ds, keyword) is None:  # pydicom takes longer to find nothing
        return None
    try:
        value = ds.get(keyword)
    except Exception as error:  # pydicom parses an element when it is asked for, and damaged ones fail in any way
        raise DicomError("bad_tag", f"{keyword} cannot be parsed ({one_line(error, named=True)})") from error
    if value is None or (isinstance(value, (str, bytes, list, MultiValue)) and len(value) == 0):
        return None
    return value


def _plain(ds: Dataset, keyword: str) -> tuple[str, RawDataElement | None]:
    """Return the VR of an element, and the element if it is encoded by it and has not been read yet.

    Values in the usual form are decoded here, all others by pydicom, which takes more time for a slice's two dozen
    elements than its pixels take.
    """
    vr, raw = _tag_and_vr(keyword)[1], _raw(ds, keyword)
    return vr, raw if isinstance(raw, RawDataElement) and raw.VR in (None, vr) and raw.value else None


def _plain_numbers(ds: Dataset, keyword: str) -> tuple[float, ...] | None:
    """Return the numbers of an element in the usual form; None for any other."""
    vr, raw = _plain(ds, keyword)
    if raw is None or raw.value is None:
        return None
    if vr == "US" and len(raw.value) == 2:
        return (float(int.from_bytes(raw.value, "little" if raw.is_little_endian else "big")),)
    if vr == "DS" and _PLAIN_NUMBERS.fullmatch(raw.value):
        return tuple(map(float, raw.value.split(b"\\")))
    return None


def _plain_text(ds: Dataset, keyword: str) -> str | None:
    """Return the text of an element in the usual form; None for any other."""
    vr, raw = _plain(ds, keyword)
    if raw is None or raw.value is None or vr not in ("UI", "LO", "CS") or not _PLAIN_TEXT.fullmatch(raw.value):
        return None
    return raw.value.rstrip(b"\0").decode("ascii")


_STANDARD_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SECONDARY_CAPTURE = f"{_STANDARD_STORAGE}7."  # with its multi-frame kinds, 7.1 to 7.4

_PLAIN_NUMBERS = re.compile(rb" *[-+]?\d+(\.\d*)? *(\\ *[-+]?\d+(\.\d*)? *)*")
_PLAIN_TEXT = re.compile(rb"[A-Za-z0-9_.-][A-Za-z0-9_. -]*\0?")


def _raw(ds: Dataset, keyword: str) -> RawDataElement | DataElement | None:
    """The element as it was read; None where it is missing."""
    return ds.get_item(_tag_and_vr(keyword)[0], keep_deferred=True)  # else an empty one of a damaged VR is converted


@cache
def _tag_and_vr(keyword: str) -> tuple[BaseTag, str]:
    tag = Tag(keyword)
    return tag, dictionary_VR(tag)


def _text(ds: Dataset, keyword: str) -> str | None:
    value = _plain_text(ds, keyword) or _value(ds, keyword)
    if value is None:
        return None
    # Some character sets decode to surrogates, which no table takes.
    return str(value).encode("utf-8", "replace").decode().strip(" \0") or None  # what pads (PS3.5, 6.2) is no part


def _texts(ds: Dataset, keyword: str) -> list[str]:
    """All values of an element of text, in capitals; none where it is missing or empty."""
    value = _value(ds, keyword) if _raw(ds, keyword) is not None else None
    values = value if isinstance(value, (MultiValue, list)) else [value]
    return [str(one).strip().upper() for one in values if one is not None]


def _number(ds: FileDataset, keyword: str) -> float:
    """A finite number; one that is given several times must be the same each time."""
    value = _plain_numbers(ds, keyword)
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
    plain = _plain_numbers(ds, keyword)
    if plain is None and default is not None and _value(ds, keyword) is None:
        return default
    number = plain[0] if plain is not None and len(plain) == 1 else _number(ds, keyword)
    if not number.is_integer():
        raise DicomError("bad_tag", f"{keyword} is {number}, expected a whole number")
    return int(number)


def _numbers(ds: FileDataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """All numbers of an element; None where there are not `count` of them, or one is not finite."""
    try:
        numbers = _plain_numbers(ds, keyword)
        if numbers is None:
            value = _value(ds, keyword)
            numbers = tuple(float(v) for v in (value if isinstance(value, (MultiValue, list)) else [value]))
    except (DicomError, ValueError, TypeError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) and count in (None, len(numbers)) else None
