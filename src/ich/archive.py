"""A folder or a zip as one source of slices: what is in it, and the bytes of each member, read where they lie."""

import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from ich.errors import IchError

SPLITS = ("train", "test")

_SPLIT_FOLDER = re.compile(r"(?:^|_)(train|test)(?:_|$)")  # stage_2_train, stage_2_train_images, test, …
_LOCAL_HEADER = struct.Struct("<4s2xH18xHH")  # signature, flags, lengths of name and extra field (APPNOTE 4.3.7)
_ENCRYPTED = 1  # of the flags (APPNOTE 4.4.4)

_MAX_BYTES = 2**28  # of a slice; more is none, and is refused before memory is taken


@dataclass(frozen=True, slots=True)
class Member:
    """One DICOM file of a source: where its bytes are, and what its place says of it.

    A zip's directory is read once, by `members`; a worker that gets this needs no directory to read the bytes.
    """

    source: str  # the folder or the zip
    name: str  # path within it
    id: str  # the file's name without .dcm: the SOPInstanceUID, as the competition's label files know the slice
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
            if self.offset is None:
                return Path(self.source, self.name).read_bytes()
            with Path(self.source).open("rb") as file:
                return self._unpack(file)
        except OSError as error:
            raise IchError(f"{self.source}: {self.name} cannot be read: {error.strerror or error}") from error
        except (zlib.error, struct.error) as error:
            raise IchError(f"{self.source}: {self.name} is damaged: {error}") from error

    def _unpack(self, file: BinaryIO) -> bytes:
        file.seek(self.offset)
        signature, flags, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise IchError(f"{self.source}: {self.name} is not where the zip's directory says; download the zip again")
        if flags & _ENCRYPTED:
            raise IchError(f"{self.source}: {self.name} is encrypted; unpack it with its password and give the folder")
        file.seek(name_length + extra_length, 1)
        data = file.read(self.packed)
        if self.method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.size + 1)
        elif self.method != zipfile.ZIP_STORED:
            raise IchError(f"{self.source}: {self.name} is packed by method {self.method}, expected deflate or none")
        if len(data) != self.size or zlib.crc32(data) != self.crc:
            raise IchError(f"{self.source}: {self.name} is damaged: its checksum differs from the zip's directory")
        return data


def members(sources: Iterable[Path], split: str | None = None) -> list[Member]:
    """All `.dcm` files of the sources, sorted by id.

    Args:
        sources: folders (any depth) and zips.
        split: "train" or "test" for all of them; None tells them apart by the nearest folder with `train` or `test`
            in its name, as the competition's `stage_2_train`.

    Raises:
        IchError: a source is missing, no zip, or holds no slices; a slice's split is not told; an id stands twice.
    """
    found: list[Member] = []
    for source in sources:
        before = len(found)
        found.extend(_of_zip(source, split) if _is_zip(source) else _of_folder(source, split))
        if len(found) == before:
            raise IchError(
                f"{source} holds no .dcm files; point to the competition's archive or a folder of its slices"
            )
    found.sort(key=lambda m: (m.id, m.source, m.name))
    twice = [id for id, count in Counter(m.id for m in found).items() if count > 1]
    if twice:
        where = " and ".join(f"{m.source}: {m.name}" for m in found if m.id == twice[0])
        raise IchError(
            f"{len(twice)} slice(s) stand twice in the sources, {twice[0]} as {where};"
            " give each slice once (stage 1's slices are part of stage 2)"
        )
    return found


@contextmanager
def open_table(sources: Iterable[Path], ending: str) -> Iterator[BinaryIO]:
    """Open the one CSV of the sources whose name ends so, as `_train.csv` or `_sample_submission.csv`.

    Raises:
        IchError: none, or more than one, is there.
    """
    found: list[tuple[Path, str]] = []
    for source in sources:
        if _is_zip(source):
            with _open_zip(source) as file:
                names = file.namelist()
        else:
            names = [name for name, _ in _files(source)]
        found.extend((source, name) for name in names if name.endswith(ending) and not _is_junk(name))
    if len(found) != 1:
        names = ", ".join(f"{source}: {name}" for source, name in found) or "none"
        raise IchError(
            f"expected one file …{ending} in {', '.join(map(str, sources))}, found {names};"
            " name the file to take in the config's data section"
        )
    source, name = found[0]
    with ExitStack() as stack:
        try:
            if _is_zip(source):
                file = stack.enter_context(stack.enter_context(_open_zip(source)).open(name))
            else:
                file = stack.enter_context((source / name).open("rb"))
        except (zipfile.BadZipFile, RuntimeError, OSError) as error:  # RuntimeError: encrypted, or an unknown packing
            raise IchError(f"{source}: {name} cannot be read ({error}); unpack it, or download it again") from error
        try:
            yield file
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise IchError(f"{source}: {name} is damaged ({error}); download it again") from error


def _is_zip(source: Path) -> bool:
    try:
        return not stat.S_ISDIR(source.stat().st_mode)
    except FileNotFoundError as error:
        raise IchError(f"{source} does not exist; expected a folder or a .zip of DICOM slices") from error
    except OSError as error:
        raise IchError(f"{source} cannot be read: {error.strerror or error}") from error


def _open_zip(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise IchError(f"{source} is no readable zip ({error}); download it again or give a folder") from error


def _of_zip(source: Path, split: str | None) -> Iterator[Member]:
    with _open_zip(source) as archive:
        for info in archive.infolist():
            if not _is_slice(info.filename):
                continue
            yield Member(
                source=str(source),
                name=info.filename,
                id=_id_of(info.filename),
                split=split or _split_of(source, info.filename),
                size=info.file_size,
                offset=info.header_offset,
                packed=info.compress_size,
                method=info.compress_type,
                crc=info.CRC,
            )


def _of_folder(source: Path, split: str | None) -> Iterator[Member]:
    for name, entry in _files(source):
        if not _is_slice(name):
            continue
        try:
            size = entry.stat().st_size
        except OSError:  # a link to nothing; `Member.read` tells it
            size = 0
        yield Member(source=str(source), name=name, id=_id_of(name), split=split or _split_of(source, name), size=size)


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
        raise IchError(f"{folder} cannot be read: {error.strerror or error}") from error
    for entry, is_folder in entries:
        if is_folder and Path(entry).resolve() not in above:
            yield from _files(Path(entry), f"{prefix}{entry.name}/", above)
        elif not is_folder and (entry.is_file() or entry.is_symlink()):
            yield prefix + entry.name, entry


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
