"""The files that folders, zips and single files hold: each is to be looked at, or counted as hidden or unreadable."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ich.dicom import archive, zip_directory
from ich.dicom.member import Member
from ich.errors import IchError, not_there, one_line, printable

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
"""How a zip begins, one with files or an empty one."""


def files_of(source: Path, others: dict[str, tuple[int, str]]) -> Iterator[tuple[Member, str]]:
    """The files of a source, each with its path within it as the user knows it; hidden and empty ones are counted."""
    try:
        is_folder = source.is_dir()
        source.stat()
    except FileNotFoundError as error:
        raise IchError(f"{not_there(source)}; expected a folder, a zip or a file of CT slices") from error
    except OSError as error:
        raise IchError(f"{source} cannot be read: {one_line(error)}") from error
    source = source.absolute()
    if not is_folder:
        member = Member(str(source.parent), source.name, source.name, "", source.stat().st_size)
        yield from _opened(member, "", others)
        return

    def unreadable(folder: str) -> None:
        if not folder:
            raise IchError(f"{source} cannot be read; expected a folder that this user may enter")
        count(others, "unreadable", folder)

    for name, entry in archive.files(source, unreadable=unreadable):
        try:
            size = entry.stat().st_size
        except OSError:
            count(others, "unreadable", name)  # a link to nothing
            continue
        if _hidden(name):
            count(others, "hidden", name)
        else:
            yield from _opened(Member(str(source), name, entry.name, "", size), f"{name}/", others)


def _opened(member: Member, within: str, others: dict[str, tuple[int, str]]) -> Iterator[tuple[Member, str]]:
    """A file; of a zip the files in it, whose names then begin with `within`."""
    try:
        begin = member.head(4)
    except IchError:
        count(others, "unreadable", member.name)
        return
    if begin not in ZIP:
        yield member, printable(member.name)
        return
    place = Path(member.source, member.name)
    try:
        entries = list(zip_directory.entries(place))
    except IchError:
        count(others, "damaged_zip", member.name)
        return
    for entry in entries:
        path = entry["name"].replace("\\", "/")
        if _hidden(path) or path.startswith("__MACOSX/"):
            count(others, "hidden", within + path)
        else:
            yield Member(source=str(place), id=path.rpartition("/")[2], split="", **entry), printable(within + path)


def _hidden(path: str) -> bool:
    return any(part.startswith(".") and part.strip(".") for part in path.split("/"))  # ./x is not


def distinct(files: Iterable[tuple[Member, str]]) -> list[tuple[Member, str]]:
    """Each file once, however many of the sources it lies in."""
    return list({f"{member.source}/{member.name}": (member, name) for member, name in files}.values())


def count(others: dict[str, tuple[int, str]], reason: str, name: str) -> None:
    """Count a file that belongs to no series, by its reason; the first one's name is kept."""
    so_far, first = others.get(reason, (0, printable(name)))
    others[reason] = so_far + 1, first
