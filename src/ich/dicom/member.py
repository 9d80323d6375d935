"""One DICOM file of a source, and how its bytes are read where they lie."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from isal import igzip_lib, isal_zlib

from ich.errors import IchError, one_line

# The zip format, APPNOTE.TXT 6.3, 4.3.7: signature, flags, lengths of name and extra field.
_LOCAL_HEADER = struct.Struct("<4s2xH18xHH")
_ENCRYPTED = 1  # 4.4.4

MAX_BYTES = 2**28
"""Of a slice; more is none, and is refused before memory is taken."""


@dataclass(frozen=True, slots=True)
class Member:
    """One DICOM file of a source: where its bytes are, and what its place says of it.

    A zip's directory is read once, by `members`; a worker that gets this needs no directory to read the bytes.
    """

    source: str  # the folder or the zip
    name: str  # path within it
    id: str  # the file's name without its ending: the SOPInstanceUID, as the competition's label files know the slice
    split: str  # train or test
    size: int  # bytes, unpacked
    # Of a zip's member, else None:
    offset: int | None = None  # of the local header, bytes
    packed: int | None = None  # bytes
    method: int | None = None  # zipfile.ZIP_STORED or ZIP_DEFLATED
    crc: int | None = None

    def read(self, limit: int = MAX_BYTES) -> bytes:
        """The file's bytes.

        Args:
            limit: bytes; more are refused before memory is taken.

        Raises:
            IchError: the bytes cannot be had: unreadable, damaged, too many, or packed in a way that is not read here.
        """
        if max(self.size, self.packed or 0) > limit:
            raise IchError(f"{self.source}: {self.name} has {self.size:,} bytes, more than any slice ({limit:,})")
        with self._reporting_errors():
            if self.offset is None or self.packed is None:
                return Path(self.source, self.name).read_bytes()
            with Path(self.source).open("rb") as file:
                return self._unpack(file, self.offset, self.packed)

    def head(self, count: int) -> bytes:
        """The file's first bytes, at most so many, which a zip's checksum says nothing of.

        Raises:
            IchError: as `read`.
        """
        with self._reporting_errors():
            if self.offset is None or self.packed is None:
                with Path(self.source, self.name).open("rb") as file:
                    return file.read(count)
            with Path(self.source).open("rb") as file:
                self._find(file, self.offset)
                data = file.read(min(self.packed, count + 1024))
            return self._inflate(data, count) if self.method == zipfile.ZIP_DEFLATED else data[:count]

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise IchError(f"{self.source}: {self.name} cannot be read: {one_line(error)}") from error
        except (igzip_lib.IsalError, struct.error) as error:
            raise IchError(f"{self.source}: {self.name} is damaged: {one_line(error)}") from error

    def _find(self, file: BinaryIO, offset: int) -> None:
        """Move to the member's data.

        Raises:
            IchError: they are not there, or packed in a way that is not read here.
        """
        file.seek(offset)
        signature, flags, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise IchError(f"{self.source}: {self.name} is not where the zip's directory says; download the zip again")
        if flags & _ENCRYPTED:
            raise IchError(f"{self.source}: {self.name} is encrypted; unpack it with its password and give the folder")
        if self.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise IchError(f"{self.source}: {self.name} is packed by method {self.method}, expected deflate or none")
        file.seek(name_length + extra_length, 1)

    def _inflate(self, data: bytes, most: int) -> bytes:
        return isal_zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, most)

    def _unpack(self, file: BinaryIO, offset: int, packed: int) -> bytes:
        self._find(file, offset)
        data = file.read(packed)
        if self.method == zipfile.ZIP_DEFLATED:
            data = self._inflate(data, self.size + 1)
        if len(data) != self.size or isal_zlib.crc32(data) != self.crc:
            raise IchError(f"{self.source}: {self.name} is damaged: its checksum differs from the zip's directory")
        return data
