"""List the slices in folders and zips."""

import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from ich.dicom import zip_directory
from ich.dicom.member import Member
from ich.errors import IchError, not_there, one_line, printable

SPLITS = ("train", "test")

SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
"""Of files that are read as slices, in lower case; their content is checked when they are read."""

# A word, in any case: stage_2_train, Stage-2-Train, test images; not trainer, contest, latest.
_SPLIT_WORD = re.compile(r"(?<![^\W\d_])(train|test)(?![^\W\d_])", re.IGNORECASE)
_SHOWN = 5  # number of extensions named in messages, the most frequent of other files
_COMPANIONS = (
    "_train.csv",
    "_sample_submission.csv",
    ".ds_store",
    "thumbs.db",
    "desktop.ini",
)  # well-known files that are not counted
_HIDDEN = "DICOM file(s) in hidden folders"
_EXTENSION = re.compile(
    r"\.(?=\w*[a-z])\w{1,10}$", re.ASCII
)  # with a letter, as a UID ends in a number, not an extension

# One row a member: 874,000 members take a seventh of the 700 MB that objects would.
_INDEX = pa.schema(
    [
        ("source", pa.dictionary(pa.int32(), pa.binary())),  # a file's name need not be text
        ("name", pa.binary()),
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
    """Sequence of members, created from the columns of a table on access; a slice of it is a list.

    Args:
        table: with the columns of `_INDEX`.
        left_out: a text on the files that are not read as slices: counts by extension and of DICOM files in hidden
            folders, with one example each; empty if there are none.
    """

    def __init__(self, table: pa.Table, left_out: str = ""):
        self.table, self.left_out = table, left_out

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place):
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return [_member(row) for row in self.table.slice(start, max(0, stop - start)).to_pylist()[::step]]
        return _member(self.table.slice(range(len(self))[place], 1).to_pylist()[0])

    def where(self, mask: pa.BooleanArray) -> "Members":
        """Return the members for which the mask is true."""
        return Members(self.table.filter(mask))


def _member(row: dict) -> Member:
    return Member(**row | {key: row[key].decode("utf-8", "surrogateescape") for key in ("source", "name")})


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # independent of the system's encoding, here and in a worker


def members(sources: Iterable[Path], split: str | None = None) -> Members:
    r"""Return all DICOM files (`SUFFIXES`) of the sources, sorted by id.

    Zips written on Windows may separate folders by a backslash, against APPNOTE.TXT 4.4.17.1, and tools that unpack
    them on other systems leave it in the files' names: both are read as a slash.

    Args:
        sources: folders (any depth) and zips.
        split: "train" or "test" for all of them; None takes it from the nearest folder with one of these words in its
            name, as the competition's `stage_2_train`.

    Raises:
        IchError: a source is missing, not a zip, or holds no slices; a slice's split is unknown; an id occurs twice.
    """
    tables, all_other_files = [], _OtherFiles()
    for source in sources:
        other_files = _OtherFiles()
        slices = _slices(source.absolute(), split, other_files)
        parts = [pa.Table.from_pylist(rows, _INDEX) for rows in _batches(slices)]
        if not parts:
            instead = f", but {other_files}" if other_files else ""
            raise IchError(
                f"{source} holds no {_any_of(SUFFIXES)} files{instead}; point to the competition's"
                " archive or a folder of its slices"
            )
        tables.extend(parts)
        all_other_files.merge(other_files)
    index = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    index = index.sort_by([("id", "ascending"), ("name", "ascending")])
    counts = pc.value_counts(index["id"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(twice):
        copies = map(_member, index.filter(pc.equal(index["id"], twice[0])).to_pylist())
        paths = " and ".join(f"{member.source}: {member.name}" for member in copies)
        raise IchError(
            f"{len(twice)} slice(s) are twice in the sources, {twice[0]} as {paths};"
            " give each slice once (stage 1's slices are part of stage 2)"
        )
    del tables
    pa.default_memory_pool().release_unused()  # else the pool keeps what sorting took, twice the index
    return Members(index, str(all_other_files))


class _OtherFiles(dict[str, list]):
    """Count of the files that are not read as slices, and one example: by extension, or as hidden."""

    def add(self, name: str) -> None:
        extension = _EXTENSION.search(_in_slashes(name).lower())
        self._count(extension[0] if extension else "", 1, name)

    def add_hidden(self, name: str) -> None:
        self._count(_HIDDEN, 1, name)

    def merge(self, other: "_OtherFiles") -> None:
        for kind, (count, name) in other.items():
            self._count(kind, count, name)

    def _count(self, kind: str, count: int, name: str) -> None:
        self.setdefault(kind, [0, name])[0] += count

    def __str__(self) -> str:
        # Hidden slices first: they may be the slices that a user misses.
        by_count = sorted(self.items(), key=lambda item: (item[0] != _HIDDEN, -item[1][0], item[0]))
        parts = [
            f"{count:,} {kind or 'without an extension'} (such as {printable(name)})"
            for kind, (count, name) in by_count[:_SHOWN]
        ]
        more = sum(count for _, (count, _) in by_count[_SHOWN:])
        return ", ".join(parts + [f"{more:,} of {len(by_count) - _SHOWN} other kinds"] * (more > 0))


def _any_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _batches(rows: Iterator[dict], size: int = 65_536) -> Iterator[list[dict]]:
    while batch := list(islice(rows, size)):
        yield batch


def open_table(sources: Iterable[Path], ending: str) -> BinaryIO:
    """Open the only CSV of the sources with this ending, such as `_train.csv` or `_sample_submission.csv`.

    Raises:
        IchError: there is none, or more than one.
    """
    tables: list[Member] = []
    for source in sources:
        entries = zip_directory.entries(source) if _is_zip(source) else _plain_files(source)
        tables.extend(
            Member(source=str(source), id=ending, split="", **entry)
            for entry in entries
            if entry["name"].lower().endswith(ending)
            and not (_is_junk(entry["name"]) or _is_hidden(_in_slashes(entry["name"])))
        )
    if len(tables) != 1:
        names = ", ".join(f"{file.source}: {file.name}" for file in tables) or "none"
        raise IchError(
            f"expected one file …{ending} in {', '.join(map(str, sources))}, found {names};"
            " name the file to take in the config's data section"
        )
    table = io.BytesIO(tables[0].read())
    table.name = tables[0].name  # for messages
    return table


def _is_zip(source: Path) -> bool:
    try:
        return not stat.S_ISDIR(source.stat().st_mode)
    except FileNotFoundError as error:
        raise IchError(f"{not_there(source)}; expected a folder or a .zip of DICOM slices") from error
    except OSError as error:
        raise IchError(f"{source} cannot be read: {one_line(error)}") from error


def _slices(source: Path, split: str | None, other_files: _OtherFiles) -> Iterator[dict]:
    """Yield the slices of a source as rows of `_INDEX`, and count its other files."""
    encoded_source = _encoded(str(source))
    for entry in zip_directory.entries(source) if _is_zip(source) else _plain_files(source):
        name = entry["name"]
        if name.lower().endswith(SUFFIXES) and not _is_junk(name):
            path = _in_slashes(name)
            if _is_hidden(path):
                other_files.add_hidden(name)
                continue
            names = {"source": encoded_source, "name": _encoded(name)}
            yield entry | names | {"id": _id_of(path), "split": split or _split_of(source, path)}
        elif not (_is_junk(name) or name.lower().endswith(_COMPANIONS) or _is_hidden(_in_slashes(name))):
            other_files.add(name)


def _in_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _plain_files(folder: Path) -> Iterator[dict]:
    """Yield the files in a folder at any depth, as fields of `Member`."""
    for name, entry in files(folder):
        try:
            size = entry.stat().st_size
        except OSError:  # a broken link, which `Member.read` reports
            size = 0
        yield {"name": name, "size": size}


def files(
    folder: Path,
    prefix: str = "",
    above: frozenset[Path] = frozenset(),
    unreadable: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield the files in a folder at any depth, by their path within it.

    Unlike `Path.rglob`, this follows links and reports folders that cannot be entered.

    Args:
        prefix, above: for the recursion: the folder's path within the first one, and the folders that contain it.
        unreadable: called with the path of each folder that cannot be entered, instead of an error, a slash
            behind it; and with that of each pipe, socket or device.

    Raises:
        IchError: a folder cannot be entered.
    """
    above |= {folder.resolve()}  # a link to one of these would recurse forever
    try:
        with os.scandir(folder) as listing:
            entries = sorted(((entry, entry.is_dir()) for entry in listing), key=lambda item: item[0].name)
    except OSError as error:
        if unreadable is not None:
            unreadable(prefix)
            return
        raise IchError(f"{folder} cannot be read: {one_line(error)}") from error
    for entry, is_folder in entries:
        if is_folder and Path(entry).resolve() not in above:
            yield from files(Path(entry), f"{prefix}{entry.name}/", above, unreadable)
        elif not is_folder and (entry.is_file() or (entry.is_symlink() and not Path(entry).exists())):
            yield prefix + entry.name, entry
        elif not is_folder and unreadable is not None:
            unreadable(prefix + entry.name)  # a pipe or device, which could be read forever


def _is_junk(name: str) -> bool:
    # macOS adds such a file for each one to archives and disks.
    return _in_slashes(name).rpartition("/")[2].startswith("._")


def _is_hidden(path: str) -> bool:
    """Return whether a folder of the path is hidden: .Trashes, .git, or __MACOSX, which holds no data."""
    return any(
        folder.startswith(".") or folder == "__MACOSX" for folder in path.split("/")[:-1] if folder not in (".", "..")
    )


def _id_of(name: str) -> str:
    stem = name.rpartition("/")[2].rpartition(".")[0]
    # A name in another encoding than the system's has surrogates, which neither tables nor terminals take.
    return stem if stem.isascii() else stem.encode("utf-8", "backslashreplace").decode()


def _split_of(source: Path, name: str) -> str:
    folders = name.rpartition("/")[0]
    split = _split_in(source, folders)
    if split is None:
        raise IchError(
            f"{source}: no folder of {printable(name)} has the word `train` or `test` in its name, or one has both;"
            " rename one, or set data.split to what all slices are"
        )
    return split


@lru_cache  # slices are many, their folders few
def _split_in(source: Path, folders: str) -> str | None:
    # The source's own name counts too: `--source stage_2_train` is as clear as a folder in a zip.
    for folder in (*reversed(folders.split("/")), source.name):
        words = {word.lower() for word in _SPLIT_WORD.findall(folder)}
        if len(words) == 1:
            return words.pop()
    return None
