"""Read the bytes of a DICOM file and parse its elements, or raise the reason why not.

Section numbers are those of the DICOM standard, PS3.5 (encoding) and PS3.10 (files).
"""

import io
import struct
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.charset import default_encoding
from pydicom.dataelem import DataElement, RawDataElement, empty_value_for_VR
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from ich.dicom.slice_error import DicomError
from ich.errors import one_line

# The competition's UIDs, ID_…, are not valid: pydicom would warn of, and log, four in every slice.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_MAX_INFLATED = 2**27  # bytes; twice those of the largest image that is read

_ELEMENT = struct.Struct("<HH2sH")  # group, element, VR, length (7.1.2)
_IMPLICIT_ELEMENT = struct.Struct("<HHL")  # group, element, length (7.1.3)
_LENGTH = struct.Struct("<L")
_LONG = {vr.encode(): vr.value for vr in EXPLICIT_VR_LENGTH_32}  # VRs with two unused bytes and a length of four
_SHORT = {vr.encode(): vr.value for vr in VR if vr.encode().isalpha() and vr not in EXPLICIT_VR_LENGTH_32}
_EMPTY: dict[str | None, bytes] = {
    vr: b"" for vr in (*_SHORT.values(), *_LONG.values()) if empty_value_for_VR(vr, raw=True) == b""
}
_UNDEFINED = 0xFFFFFFFF
_CHARACTER_SET = (0x0008, 0x0005)
_META_LENGTH, _TRANSFER_SYNTAX = 0x00020000, 0x00020010
_EXPLICIT = {ExplicitVRLittleEndian.encode(): True, ImplicitVRLittleEndian.encode(): False}


def file_bytes(source: str | Path | bytes | BinaryIO) -> bytes:
    """Return the bytes of a file.

    Raises:
        DicomError: it cannot be read.
    """
    try:
        if isinstance(source, (str, Path)):
            source = Path(source).read_bytes()
        return source if isinstance(source, bytes) else source.read()
    except OSError as error:
        raise DicomError("unreadable", f"cannot be read: {one_line(error)}") from error


def parse(data: bytes) -> FileDataset:
    """Parse the elements of a DICOM file.

    Raises:
        DicomError: it is not DICOM, damaged, cut, or inflates to more than a slice needs.
    """
    try:
        plain = _parse_plain(data)
        if plain is not None:
            return plain
        if DeflatedExplicitVRLittleEndian.encode() in data[:65536]:
            _check_inflated(data)
        return pydicom.dcmread(io.BytesIO(data))
    except DicomError:
        raise
    except InvalidDicomError as error:
        raise DicomError(
            "not_dicom", "no DICM prefix after the first 128 bytes, expected a DICOM file (PS3.10, 7.1)"
        ) from error
    except EOFError as error:
        raise DicomError("truncated", "the file ends inside an element before the pixel data") from error
    except Exception as error:  # pydicom raises errors of any type for damaged bytes
        if ends_early(data):
            raise DicomError("truncated", "the file ends inside an element before the pixel data") from error
        raise DicomError("not_dicom", f"the elements cannot be parsed ({one_line(error, named=True)})") from error


@lru_cache(maxsize=4096)  # files hold the same few; a limit, as damaged ones may hold any
def tag_of(number: int) -> BaseTag:
    """Return a tag, for a number the same object each time: dicts compare others by a function in Python."""
    return BaseTag(number)


def _parse_plain(data: bytes) -> FileDataset | None:
    """Parse the elements of a file in the usual form as pydicom does, in a third of its time.

    Returns:
        What `pydicom.dcmread` returns; None for a file in any other form, damaged ones among them. The usual form is
        implicit or explicit VR, little endian, without a character set, without elements of undefined length, and
        whole to its last byte.
    """
    if data[128:132] != b"DICM":
        return None
    meta, at = _plain_elements(data, 132, explicit=True, meta=True)
    syntax = meta.get(tag_of(_TRANSFER_SYNTAX))
    explicit = _EXPLICIT.get((syntax.value or b"").rstrip(b"\0")) if syntax is not None and syntax.VR == "UI" else None
    if explicit is None or not _is_plain(meta):
        return None
    if not explicit and data[at + 4 : at + 6].isupper():  # may be an explicit VR, against the syntax
        return None
    elements, end = _plain_elements(data, at, explicit=explicit, meta=False)
    if not elements or end != len(data):
        return None
    ds = FileDataset(io.BytesIO(data), elements, data[:128], FileMetaDataset(meta), not explicit, True)
    ds.file_meta.set_original_encoding(False, True, default_encoding)
    ds.set_original_encoding(not explicit, True, default_encoding)
    return ds


def _is_plain(meta: dict[BaseTag, DataElement | RawDataElement]) -> bool:
    """Return whether the elements of the meta information that pydicom decodes on reading are sure to be decoded."""
    first, length = next(iter(meta.values())), meta.get(tag_of(_META_LENGTH))
    return first.VR in ("UL", "OB", "UI") and (length is None or (length.VR, len(length.value or b"")) == ("UL", 4))


def _plain_elements(
    data: bytes, at: int, *, explicit: bool, meta: bool
) -> tuple[dict[BaseTag, DataElement | RawDataElement], int]:
    """Return the elements of the file meta information (group 2) or of the data set, and where they end.

    They end before an element that is not in the usual form, and those of the meta information before another group.
    """
    elements: dict[BaseTag, DataElement | RawDataElement] = {}
    last = len(data) - 8
    while at <= last:
        start, vr = at + 8, None
        if explicit:
            group, element, code, length = _ELEMENT.unpack_from(data, at)
            vr = _SHORT.get(code)
            if vr is None:
                vr = _LONG.get(code)
                if vr is None or start + 4 > len(data):
                    break
                (length,) = _LENGTH.unpack_from(data, start)
                start += 4
        else:
            group, element, length = _IMPLICIT_ELEMENT.unpack_from(data, at)
        if (group == 2) != meta or group in (0, 0xFFFE) or (group, element) == _CHARACTER_SET:
            break
        end = start + length
        if length == _UNDEFINED or end > len(data):
            break
        tag = tag_of(group << 16 | element)
        value = data[start:end] if length else _EMPTY.get(vr)
        elements[tag] = RawDataElement(tag, vr, length, value, start, not explicit, True)
        at = end
    return elements, at


def ends_early(data: bytes) -> bool:
    """Return whether the file ends inside an element: pydicom reports that for some elements only."""
    file = _EndDetector(data)
    with suppress(Exception):  # reading this file raised before
        pydicom.dcmread(file)
    return file.exhausted


class _EndDetector(io.BytesIO):
    """Bytes that record in `exhausted` when a read asks for more than they hold."""

    exhausted = False
    _at_end = False

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        # At the start of an element pydicom asks for 8 bytes: there a file may end, once.
        ends = not data and size == 8 and not self._at_end
        self._at_end |= ends
        self.exhausted |= len(data) < (size or 0) and not ends
        return data


def _check_inflated(data: bytes) -> None:
    """Refuse a deflated file of far more bytes than an image has: pydicom inflates any size at once."""
    file = io.BytesIO(data)
    file.seek(132)  # after the preamble and the DICM prefix (PS3.10, 7.1)
    read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    deflated = file.read()
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    inflating.decompress(deflated, _MAX_INFLATED)
    if deflated and not inflating.eof and not inflating.unconsumed_tail:
        raise DicomError("truncated", "the file ends before its deflated elements do")
    if inflating.unconsumed_tail:
        raise DicomError(
            "unsupported",
            f"its elements inflate to more than {_MAX_INFLATED:,} bytes, more than any slice that is read here",
        )
