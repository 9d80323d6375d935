"""One DICOM file of a source, and how its bytes are read where they lie."""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from isal import igzip_lib, isal_zlib

from ich.errors import IchError, one_line

# The zip format, APPNOTE.TXT 6.3, 4.3.7: signature, flags, lengths of name and extra field.
_LOCAL_HEADER = struct.Struct("<4s2xH18xHH")
_ENCRYPTED = 1  # 4.4.4

_MAX_BYTES = 2**28  # of a slice; more is none, and is refused before memory is taken


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

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            IchError: the bytes cannot be had: unreadable, damaged, or packed in a way that is not read here.
        """
        if max(self.size, self.packed or 0) > _MAX_BYTES:
            raise IchError(f"{self.source}: {self.name} has {self.size:,} bytes, more than any slice ({_MAX_BYTES:,})")
        try:
            if self.offset is None or self.packed is None:
                return Path(self.source, self.name).read_bytes()
            with Path(self.source).open("rb") as file:
                return self._unpack(file, self.offset, self.packed)
        except OSError as error:
            raise IchError(f"{self.source}: {self.name} cannot be read: {one_line(error)}") from error
        except (igzip_lib.IsalError, struct.error) as error:
            raise IchError(f"{self.source}: {self.name} is damaged: {one_line(error)}") from error

    def _unpack(self, file: BinaryIO, offset: int, packed: int) -> bytes:
        file.seek(offset)
        signature, flags, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise IchError(f"{self.source}: {self.name} is not where the zip's directory says; download the zip again")
        if flags & _ENCRYPTED:
            raise IchError(f"{self.source}: {self.name} is encrypted; unpack it with its password and give the folder")
        file.seek(name_length + extra_length, 1)
        data = file.read(packed)
        if self.method == zipfile.ZIP_DEFLATED:
            data = isal_zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.size + 1)
        elif self.method != zipfile.ZIP_STORED:
            raise IchError(f"{self.source}: {self.name} is packed by method {self.method}, expected deflate or none")
        if len(data) != self.size or isal_zlib.crc32(data) != self.crc:
            raise IchError(f"{self.source}: {self.name} is damaged: its checksum differs from the zip's directory")
        return data
