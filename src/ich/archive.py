"""A folder or a zip as one source of slices: what is in it."""

import io
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from ich.errors import IchError, one_line
from ich.member import Member

SPLITS = ("train", "test")

_SPLIT_FOLDER = re.compile(r"(?:^|_)(train|test)(?:_|$)")  # stage_2_train, stage_2_train_images, test, …

# The zip format, APPNOTE.TXT 6.3. Sizes and offsets of 0xFFFFFFFF stand in the zip64 extra field instead.
_ENTRY = struct.Struct("<4s4xHH4xLLLHHH8xL")  # 4.3.12: signature, flags, method, CRC, sizes, three lengths, offset
_END = struct.Struct("<4s8xLLH")  # 4.3.16: signature, the directory's size and offset, length of the comment
_END64_LOCATOR = struct.Struct("<4s4xQ4x")  # 4.3.15: signature, offset of the next
_END64 = struct.Struct("<4s36xQQ")  # 4.3.14: signature, the directory's size and offset
_FULL = 0xFFFFFFFF
_ZIP64_EXTRA = 1  # 4.5.3
_UTF8 = 0x800  # 4.4.4

# One row a member, in columns: of 874,000 members, objects would take 700 MB, and this takes a seventh.
_INDEX = pa.schema(
    [
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("name", pa.binary()),  # a file's name need not be text
        ("id", pa.string()),
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("size", pa.int64()),
        ("offset", pa.int64()),
        ("packed", pa.int64()),
        ("method", pa.int32()),
        ("crc", pa.int64()),
    ]
)


class Members(Sequence[Member]):
    """Members by their place, made of the columns when asked for; a slice of them is a list."""

    def __init__(self, table: pa.Table):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place):
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return [_member(row) for row in self.table.slice(start, max(0, stop - start)).to_pylist()[::step]]
        return _member(self.table.slice(range(len(self))[place], 1).to_pylist()[0])

    def where(self, mask: pa.BooleanArray) -> "Members":
        """Those for which the mask is true."""
        return Members(self.table.filter(mask))


def _member(row: dict) -> Member:
    return Member(**row | {"name": os.fsdecode(row["name"])})


def members(sources: Iterable[Path], split: str | None = None) -> Members:
    """All `.dcm` files of the sources, sorted by id.

    Args:
        sources: folders (any depth) and zips.
        split: "train" or "test" for all of them; None tells them apart by the nearest folder with `train` or `test`
            in its name, as the competition's `stage_2_train`.

    Raises:
        IchError: a source is missing, no zip, or holds no slices; a slice's split is not told; an id stands twice.
    """
    tables = []
    for source in sources:
        found = (_of_zip if _is_zip(source) else _of_folder)(source.absolute(), split)
        parts = [pa.Table.from_pylist(rows, _INDEX) for rows in _batches(found)]
        if not parts:
            raise IchError(
                f"{source} holds no .dcm files; point to the competition's archive or a folder of its slices"
            )
        tables.extend(parts)
    index = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    index = index.sort_by([("id", "ascending"), ("name", "ascending")])
    counts = pc.value_counts(index["id"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(twice):
        places = map(_member, index.filter(pc.equal(index["id"], twice[0])).to_pylist())
        where = " and ".join(f"{place.source}: {place.name}" for place in places)
        raise IchError(
            f"{len(twice)} slice(s) stand twice in the sources, {twice[0]} as {where};"
            " give each slice once (stage 1's slices are part of stage 2)"
        )
    del tables
    pa.default_memory_pool().release_unused()  # what sorting took, twice the index, stays the pool's own otherwise
    return Members(index)


def _batches(rows: Iterator[dict], size: int = 65_536) -> Iterator[list[dict]]:
    while batch := list(islice(rows, size)):
        yield batch


def open_table(sources: Iterable[Path], ending: str) -> BinaryIO:
    """Open the one CSV of the sources whose name ends so, as `_train.csv` or `_sample_submission.csv`.

    Raises:
        IchError: none, or more than one, is there.
    """
    found: list[Member] = []
    for source in sources:
        every = _entries(source) if _is_zip(source) else _plain_files(source)
        found.extend(
            Member(source=str(source), id=ending, split="", **entry)
            for entry in every
            if entry["name"].endswith(ending) and not _is_junk(entry["name"])
        )
    if len(found) != 1:
        names = ", ".join(f"{file.source}: {file.name}" for file in found) or "none"
        raise IchError(
            f"expected one file …{ending} in {', '.join(map(str, sources))}, found {names};"
            " name the file to take in the config's data section"
        )
    table = io.BytesIO(found[0].read())
    table.name = found[0].name  # for messages
    return table


def _is_zip(source: Path) -> bool:
    try:
        return not stat.S_ISDIR(source.stat().st_mode)
    except FileNotFoundError as error:
        raise IchError(f"{source} does not exist; expected a folder or a .zip of DICOM slices") from error
    except OSError as error:
        raise IchError(f"{source} cannot be read: {one_line(error)}") from error


def _of_zip(source: Path, split: str | None) -> Iterator[dict]:
    for entry in _entries(source):
        if _is_slice(entry["name"]):
            yield _row(source, split, entry)


def _of_folder(source: Path, split: str | None) -> Iterator[dict]:
    for entry in _plain_files(source):
        if _is_slice(entry["name"]):
            yield _row(source, split, entry)


def _row(source: Path, split: str | None, entry: dict) -> dict:
    name = entry["name"]
    place = {"source": str(source), "name": os.fsencode(name)}
    return entry | place | {"id": _id_of(name), "split": split or _split_of(source, name)}


def _entries(source: Path) -> Iterator[dict]:
    """The files in a zip's directory, as fields of `Member`.

    By our own reading of it, because zipfile makes an object of each entry: 600 MB and ten seconds for 874,000, where
    this takes the directory's own 100 MB and two seconds.
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
        if not name.endswith("/"):
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


def _plain_files(folder: Path) -> Iterator[dict]:
    """The files in a folder at any depth, as fields of `Member`."""
    for name, entry in _files(folder):
        try:
            size = entry.stat().st_size
        except OSError:  # a link to nothing; `Member.read` tells it
            size = 0
        yield {"name": name, "size": size}


def _files(
    folder: Path, prefix: str = "", above: frozenset[Path] = frozenset()
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """The files in a folder at any depth, by their path within it.

    Unlike `Path.rglob`, this follows links and tells of folders that it may not enter.
    """
    above |= {folder.resolve()}  # a link to one of these would never end
    try:
        with os.scandir(folder) as listing:
            entries = [(entry, entry.is_dir()) for entry in listing]
    except OSError as error:
        raise IchError(f"{folder} cannot be read: {one_line(error)}") from error
    for entry, is_folder in entries:
        if is_folder and Path(entry).resolve() not in above:
            yield from _files(Path(entry), f"{prefix}{entry.name}/", above)
        elif not is_folder and (entry.is_file() or (entry.is_symlink() and not Path(entry).exists())):
            yield prefix + entry.name, entry  # no pipe or device, which could be read for ever


def _is_slice(name: str) -> bool:
    return name[-4:].lower() == ".dcm" and not _is_junk(name)


def _is_junk(name: str) -> bool:
    return name.rpartition("/")[2].startswith("._")  # what macOS adds to an archive or a disk for each file


def _id_of(name: str) -> str:
    stem = name.rpartition("/")[2][: -len(".dcm")]
    # A name in another encoding than the system's comes with surrogates, which no table or terminal takes.
    return stem if stem.isascii() else stem.encode("utf-8", "backslashreplace").decode()


def _split_of(source: Path, name: str) -> str:
    split = _split_in(source, name.rpartition("/")[0])
    if split is None:
        raise IchError(f"{source}: no folder of {name} has `train` or `test` in its name; say which it is (`split`)")
    return split


@lru_cache  # slices are many, their folders few
def _split_in(source: Path, folders: str) -> str | None:
    # The source's own name counts too: `--source stage_2_train` is as clear as a folder within a zip.
    for folder in (*reversed(folders.split("/")), source.stem if source.suffix else source.name):
        if match := _SPLIT_FOLDER.search(folder):
            return match[1]
    return None
