"""A zip's directory: which files it holds, and where."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ich.errors import IchError, one_line

# The zip format, APPNOTE.TXT 6.3. Sizes and offsets of 0xFFFFFFFF stand in the zip64 extra field instead.
_ENTRY = struct.Struct("<4s4xHH4xLLLHHH8xL")  # 4.3.12: signature, flags, method, CRC, sizes, three lengths, offset
_END = struct.Struct("<4s8xLLH")  # 4.3.16: signature, the directory's size and offset, length of the comment
_END64_LOCATOR = struct.Struct("<4s4xQ4x")  # 4.3.15: signature, offset of the next
_END64 = struct.Struct("<4s36xQQ")  # 4.3.14: signature, the directory's size and offset
_FULL = 0xFFFFFFFF
_ZIP64_EXTRA = 1  # 4.5.3
_UTF8 = 0x800  # 4.4.4


def entries(source: Path) -> Iterator[dict]:
    """The files in a zip's directory, as fields of `ich.dicom.member.Member`.

    By our own reading of it: of a directory with a wrong length in an entry, zipfile loses the entries behind it
    without an error, and it makes an object of each entry, 600 MB and four times as long for 874,000.

    Raises:
        IchError: it cannot be read, or is damaged.
    """
    try:
        with source.open("rb") as file:
            directory, shift = _directory(file)
    except (OSError, struct.error, ValueError) as error:
        raise _no_zip(source, error) from error
    at = 0
    while at < len(directory):
        try:
            signature, flags, method, crc, packed, size, name_length, extra_length, comment_length, offset = (
                _ENTRY.unpack_from(directory, at)
            )
            if signature != b"PK\x01\x02":
                raise ValueError(f"no entry of its directory at byte {at:,}")
            end = at + _ENTRY.size + name_length
            name = bytes(directory[at + _ENTRY.size : end]).decode("utf-8" if flags & _UTF8 else "cp437")
            if _FULL in (size, packed, offset):
                size, packed, offset = _zip64(directory[end : end + extra_length], size, packed, offset)
            if offset + shift < 0 or max(size, packed, offset + shift) >= 2**63:
                raise ValueError(f"its directory says of {name!r:.200} what cannot be")
        except (struct.error, ValueError) as error:
            raise _no_zip(source, error) from error
        at = end + extra_length + comment_length
        if at > len(directory):
            raise _no_zip(source, ValueError(f"the entry {name!r:.200} reaches beyond its directory"))
        if not name.endswith(("/", "\\")):
            yield {
                "name": name,
                "size": size,
                "offset": offset + shift,
                "packed": packed,
                "method": method,
                "crc": crc,
            }


def _directory(file: BinaryIO) -> tuple[memoryview, int]:
    """A zip's directory, and what is to be added to its offsets (a zip may stand behind other bytes)."""
    length = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, length - _END.size - 0xFFFF))  # the longest comment that may follow
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0:
        raise ValueError("its end, with the place of the directory, is not there")
    _, size, offset, _ = _END.unpack_from(tail, at)
    end = start + at
    if end >= _END64_LOCATOR.size:
        file.seek(end - _END64_LOCATOR.size)
        signature, place = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
        if signature == b"PK\x06\x07":
            # Behind other bytes, its place is not as told; but unless it is of a later version, it ends right here.
            for end in (place, start + at - _END64_LOCATOR.size - _END64.size):
                if 0 <= end <= length:
                    file.seek(end)
                    signature, size, offset = _END64.unpack(file.read(_END64.size))
                    if signature == b"PK\x06\x06":
                        break
            else:
                raise ValueError("its zip64 end is not where it should be")
    if size > end:
        raise ValueError(f"its directory should have {size:,} bytes and ends at byte {end:,}")
    file.seek(end - size)
    return memoryview(file.read(size)), end - size - offset


def _zip64(extra: memoryview, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The numbers that did not fit into 32 bits, in the order in which the field has those of them that did not."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == _ZIP64_EXTRA:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            try:
                size, packed, offset = (next(numbers) if n == _FULL else n for n in (size, packed, offset))
            except RuntimeError as error:  # what a generator makes of the StopIteration
                raise ValueError("an entry lacks its zip64 numbers") from error
            return size, packed, offset
        at += 4 + length
    return size, packed, offset  # a file of that very size


def _no_zip(source: Path, error: Exception) -> IchError:
    return IchError(f"{source} is no readable zip ({one_line(error)}); download it again or give a folder")
