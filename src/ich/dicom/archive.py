"""A folder or a zip as one source of slices: what is in it."""

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
"""Of the files that are read as slices, in lower case; what they hold is judged when they are read."""

# A word, in any case: stage_2_train, Stage-2-Train, test images; not trainer, contest, latest.
_SPLIT_WORD = re.compile(r"(?<![^\W\d_])(train|test)(?![^\W\d_])", re.IGNORECASE)
_SHOWN = 5  # extensions of files that are no slices, the most frequent
_COMPANIONS = ("_train.csv", "_sample_submission.csv", ".ds_store", "thumbs.db", "desktop.ini")  # known to all
_HIDDEN = "DICOM file(s) in hidden folders"
_EXTENSION = re.compile(r"\.(?=\w*[a-z])\w{1,10}$", re.ASCII)  # a UID ends in a number, which is none

# One row a member, in columns: of 874,000 members, objects would take 700 MB, and this takes a seventh.
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
    """Members by their place, made of the columns when asked for; a slice of them is a list.

    Args:
        table: of `_INDEX`'s columns.
        left_out: the files of the sources that are not read as slices, for people: counts by extension and of DICOM
            files in hidden folders, and one of each; empty if there are none.
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
        """Those for which the mask is true."""
        return Members(self.table.filter(mask))


def _member(row: dict) -> Member:
    return Member(**row | {key: row[key].decode("utf-8", "surrogateescape") for key in ("source", "name")})


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # whatever encoding the system has now or in a worker


def members(sources: Iterable[Path], split: str | None = None) -> Members:
    r"""All DICOM files (`SUFFIXES`) of the sources, sorted by id.

    A zip that Windows made may separate folders by a backslash, against APPNOTE.TXT 4.4.17.1, and a tool that unpacks
    it elsewhere then leaves it in the files' names: in both it is read as a slash.

    Args:
        sources: folders (any depth) and zips.
        split: "train" or "test" for all of them; None tells them apart by the nearest folder that has one of these
            words in its name, as the competition's `stage_2_train`.

    Raises:
        IchError: a source is missing, no zip, or holds no slices; a slice's split is not told; an id stands twice.
    """
    tables, others = [], _Others()
    for source in sources:
        beside = _Others()
        found = _slices(source.absolute(), split, beside)
        parts = [pa.Table.from_pylist(rows, _INDEX) for rows in _batches(found)]
        if not parts:
            but = f", but {beside}" if beside else ""
            raise IchError(
                f"{source} holds no {_any_of(SUFFIXES)} files{but}; point to the competition's"
                " archive or a folder of its slices"
            )
        tables.extend(parts)
        others.merge(beside)
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
    return Members(index, str(others))


class _Others(dict[str, list]):
    """Files that are not read as slices: by extension, or as hidden, how many there are, and one of them."""

    def add(self, name: str) -> None:
        extension = _EXTENSION.search(_in_slashes(name).lower())
        self._count(extension[0] if extension else "", 1, name)

    def add_hidden(self, name: str) -> None:
        self._count(_HIDDEN, 1, name)

    def merge(self, other: "_Others") -> None:
        for kind, (count, name) in other.items():
            self._count(kind, count, name)

    def _count(self, kind: str, count: int, name: str) -> None:
        self.setdefault(kind, [0, name])[0] += count

    def __str__(self) -> str:
        # Hidden slices first: whoever lacks slices finds them here.
        by_count = sorted(self.items(), key=lambda one: (one[0] != _HIDDEN, -one[1][0], one[0]))
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
    """Open the one CSV of the sources whose name ends so, as `_train.csv` or `_sample_submission.csv`.

    Raises:
        IchError: none, or more than one, is there.
    """
    found: list[Member] = []
    for source in sources:
        every = zip_directory.entries(source) if _is_zip(source) else _plain_files(source)
        found.extend(
            Member(source=str(source), id=ending, split="", **entry)
            for entry in every
            if entry["name"].lower().endswith(ending)
            and not (_is_junk(entry["name"]) or _is_hidden(_in_slashes(entry["name"])))
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
        raise IchError(f"{not_there(source)}; expected a folder or a .zip of DICOM slices") from error
    except OSError as error:
        raise IchError(f"{source} cannot be read: {one_line(error)}") from error


def _slices(source: Path, split: str | None, others: _Others) -> Iterator[dict]:
    """The slices of a source as rows of `_INDEX`; its other files are counted."""
    place = _encoded(str(source))
    for entry in zip_directory.entries(source) if _is_zip(source) else _plain_files(source):
        name = entry["name"]
        if name.lower().endswith(SUFFIXES) and not _is_junk(name):
            path = _in_slashes(name)
            if _is_hidden(path):
                others.add_hidden(name)
                continue
            where = {"source": place, "name": _encoded(name)}
            yield entry | where | {"id": _id_of(path), "split": split or _split_of(source, path)}
        elif not (_is_junk(name) or name.lower().endswith(_COMPANIONS) or _is_hidden(_in_slashes(name))):
            others.add(name)


def _in_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _plain_files(folder: Path) -> Iterator[dict]:
    """The files in a folder at any depth, as fields of `Member`."""
    for name, entry in files(folder):
        try:
            size = entry.stat().st_size
        except OSError:  # a link to nothing; `Member.read` tells it
            size = 0
        yield {"name": name, "size": size}


def files(
    folder: Path,
    prefix: str = "",
    above: frozenset[Path] = frozenset(),
    unreadable: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """The files in a folder at any depth, by their path within it.

    Unlike `Path.rglob`, this follows links and tells of folders that it may not enter.

    Args:
        prefix, above: of the recursion: the folder's path within the first one, and the folders that it lies in.
        unreadable: called with the path of each folder that may not be entered, instead of an error.

    Raises:
        IchError: a folder may not be entered.
    """
    above |= {folder.resolve()}  # a link to one of these would never end
    try:
        with os.scandir(folder) as listing:
            entries = sorted(((entry, entry.is_dir()) for entry in listing), key=lambda one: one[0].name)
    except OSError as error:
        if unreadable is not None:
            unreadable(prefix)
            return
        raise IchError(f"{folder} cannot be read: {one_line(error)}") from error
    for entry, is_folder in entries:
        if is_folder and Path(entry).resolve() not in above:
            yield from files(Path(entry), f"{prefix}{entry.name}/", above, unreadable)
        elif not is_folder and (entry.is_file() or (entry.is_symlink() and not Path(entry).exists())):
            yield prefix + entry.name, entry  # no pipe or device, which could be read for ever


def _is_junk(name: str) -> bool:
    # What macOS adds to an archive or a disk for each file.
    return _in_slashes(name).rpartition("/")[2].startswith("._")


def _is_hidden(path: str) -> bool:
    """Tell whether a folder within the source is hidden: .Trashes, .git, or __MACOSX, which holds no data."""
    return any(folder.startswith(".") or folder == "__MACOSX" for folder in path.split("/")[:-1] if folder != ".")


def _id_of(name: str) -> str:
    stem = name.rpartition("/")[2].rpartition(".")[0]
    # A name in another encoding than the system's comes with surrogates, which no table or terminal takes.
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
    # The source's own name counts too: `--source stage_2_train` is as clear as a folder within a zip.
    for folder in (*reversed(folders.split("/")), source.name):
        words = {word.lower() for word in _SPLIT_WORD.findall(folder)}
        if len(words) == 1:
            return words.pop()
    return None
