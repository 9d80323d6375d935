"""Read the bytes of a DICOM file and parse its elements, or raise the reason why not.

Section numbers are those of the DICOM standard, PS3.5 (encoding) and PS3.10 (files).
"""

import io
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ich.dicom.slice_error import DicomError
from ich.errors import one_line

# The competition's UIDs, ID_…, are not valid: pydicom would warn of, and log, four in every slice.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_MAX_INFLATED = 2**27  # bytes; twice those of the largest image that is read


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
