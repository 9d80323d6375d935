"""The files that folders, zips and single files hold: each is to be looked at, or counted as hidden or unreadable."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ich.dicom import archive, zip_directory
from ich.dicom.member import Member
from ich.errors import IchError, not_there, one_line, printable

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
"""How a zip begins, one with files or an empty one."""


class File(NamedTuple):
    """A file to be looked at."""

    member: Member
    name: str  # path within its source, as the user knows it
    within: str  # what the names of its files begin with, if it is a zip


def files_of(source: Path, others: dict[str, tuple[int, str]]) -> Iterator[File]:
    """The files of a source; hidden ones, and what cannot be read, are counted to the others.

    Raises:
        IchError: it does not exist or cannot be read.
    """
    try:
        is_folder, size = source.is_dir(), source.stat().st_size
    except FileNotFoundError as error:
        raise IchError(f"{not_there(source)}; expected a folder, a zip or a file of CT slices") from error
    except OSError as error:
        raise IchError(f"{source} cannot be read: {one_line(error)}") from error
    if not (is_folder or source.is_file()):
        raise IchError(f"{source} is a pipe, a socket or a device; expected a folder, a zip or a file of CT slices")
    source = source.absolute()
    if not is_folder:
        yield File(Member(str(source.parent), source.name, source.name, "", size), printable(source.name), "")
        return

    def unreadable(name: str) -> None:
        if not name:
            raise IchError(f"{source} cannot be read; expected a folder that this user may enter")
        special = not name.endswith("/")
        count(others, "hidden" if special and _hidden(name) else "special" if special else "unreadable", name)

    for name, entry in archive.files(source, unreadable=unreadable):
        if _hidden(name):
            count(others, "hidden", name)
            continue
        try:
            member = Member(str(source), name, entry.name, "", entry.stat().st_size)
        except OSError:
            count(others, "unreadable", name)  # a link to nothing
            continue
        yield File(member, printable(name), f"{name}/")


def files_of_zip(file: File, others: dict[str, tuple[int, str]]) -> Iterator[File]:
    """The files in a zip; hidden ones, and a zip that is damaged or has no files, are counted to the others."""
    source = Path(file.member.source, file.member.name)
    try:
        entries = list(zip_directory.entries(source))
    except IchError:
        count(others, "damaged_zip", file.name)
        return
    if not entries:
        count(others, "empty", file.name)
    for entry in entries:
        name = entry["name"].replace("\\", "/")
        if _hidden(name):
            count(others, "hidden", file.within + name)
        else:
            member = Member(source=str(source), id=name.rpartition("/")[2], split="", **entry)
            yield File(member, printable(file.within + name), "")


def _hidden(path: str) -> bool:
    """Whether a file, or a folder that it lies in, is hidden, or macOS's own addition to a zip."""
    return any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in path.split("/"))


def distinct(files: Iterable[File]) -> list[File]:
    """Each file once, however many of the sources it lies in."""
    return list({f"{file.member.source}/{file.member.name}": file for file in files}.values())


def count(others: dict[str, tuple[int, str]], reason: str, name: str) -> None:
    """Count a file that belongs to no series, by its reason; the first one's name is kept."""
    so_far, first = others.get(reason, (0, printable(name)))
    others[reason] = so_far + 1, first
