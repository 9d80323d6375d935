"""The bytes of a DICOM file, and its elements parsed, or the reason why not.

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

# The competition's UIDs read ID_…, which are not valid ones: pydicom would warn, and log, of four in every slice.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_MAX_INFLATED = 2**27  # bytes; twice the largest image that is read


def file_bytes(source: str | Path | bytes | BinaryIO) -> bytes:
    try:
        if isinstance(source, (str, Path)):
            source = Path(source).read_bytes()
        return source if isinstance(source, bytes) else source.read()
    except OSError as error:
        raise DicomError("unreadable", f"cannot be read: {one_line(error)}") from error


def parse(data: bytes) -> FileDataset:
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
        if ends_early(data):
            raise DicomError("truncated", "the file ends inside an element before the pixel data") from error
        raise DicomError("not_dicom", f"the elements cannot be parsed ({one_line(error, named=True)})") from error


def ends_early(data: bytes) -> bool:
    """Whether the file ends inside an element. Pydicom tells it of some elements only, and takes time to ask others."""
    file = _Watched(data)
    with suppress(Exception):  # whatever it is, it was met before
        pydicom.dcmread(file)
    return file.exhausted


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
