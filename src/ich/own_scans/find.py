"""Find the series in folders, zips and single files, decide which of them are read, and read their slices."""

import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, repeat
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ich.dicom import archive, reader, zip_directory
from ich.dicom.member import Member
from ich.dicom.reader import DicomError
from ich.errors import IchError, not_there, one_line, printable
from ich.own_scans import header, nifti
from ich.own_scans.choice import choose
from ich.own_scans.header import Facts, NoFacts
from ich.own_scans.multiframe import Frames, frames_of
from ich.own_scans.nifti import NoVolume
from ich.own_scans.parts import Part, Record, split, turn_of, turned
from ich.own_scans.series import Series, SliceFile, judge, to_series

MAX_BYTES = 2**31
"""Of a file; a multi-frame file of 600 slices has a seventh of it."""

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class Found:
    """What the sources hold.

    The files of `series` and the counts of `others` together are all files: nothing is left out without a word.
    """

    series: list[Series]  # by study, series number and uid
    others: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Files of no series: by a word of `ich.own_scans.reasons.REASONS`, how many, and the first of them."""


def find_series(sources: Sequence[Path], all_series: bool = False) -> Found:
    """Find the series in the sources, by what the files hold and not by their names, and choose those to be read.

    Args:
        sources: folders (any depth), zips, also within folders, and single files.
        all_series: read also series that share their positions with one of a softer kernel, and those of fewer than
            `ich.own_scans.series.LEAST_SLICES` slices.

    Raises:
        IchError: a source does not exist or cannot be read.
    """
    others: dict[str, tuple[int, str]] = {}
    files = _distinct(file for source in sources for file in _files_of(source, others))
    groups: dict[tuple, list[Record]] = defaultdict(list)
    volumes = []
    with _silent(), tqdm(total=len(files), desc="headers", unit="file", disable=None) as bar:
        for member, name in files:
            try:
                for facts in _facts(member):
                    groups[facts.study, _series_of(facts, member, name)].append(Record(member, name, facts))
            except NoFacts as error:
                if error.reason == "not_dicom" and nifti.looks_like_nifti(member.head(1024)):
                    volumes.append((member, name))
                    continue
                _count(others, error.reason, name)
            except IchError:
                _count(others, "unreadable", name)
            bar.update()
        for (member, name), series in zip(volumes, _distinct_names(volumes), strict=True):
            try:
                facts_of_slices = nifti.slices_of(member.read(MAX_BYTES), series)
                groups[None, series] = [Record(member, name, facts) for facts in facts_of_slices]
            except IchError:
                _count(others, "unreadable", name)
            bar.update()
    parts = {key: split(records, _differ) for key, records in groups.items()}
    every = [part for of_series in parts.values() for part in of_series]
    for part in every:
        judge(part, all_series)
    if not all_series:
        choose(every, _hu_of)
    return Found(_in_order(parts), dict(sorted(others.items())))


def read_slices(series: Series) -> Iterator[tuple[SliceFile, np.ndarray | DicomError]]:
    """Read the slices of a series in its order.

    Yields:
        Each slice, and its HU as int16 of shape (rows, columns), anterior at the top and the patient's right on the
        left; or why it cannot be read.
    """
    for member, of_file in groupby(series.slices, lambda one: one.member):
        slices = list(of_file)
        yield from zip(slices, _read(member, [one.frame for one in slices]), strict=True)


def _read(member: Member, frames: Sequence[int | None]) -> Iterator[np.ndarray | DicomError]:
    """Read a file, or frames of it."""
    try:
        read = _reader_of(member.read(MAX_BYTES), frames[0] is not None)
    except DicomError as error:
        yield from repeat(error, len(frames))
        return
    except IchError as error:
        yield from repeat(DicomError("unreadable", str(error)), len(frames))
        return
    for frame in frames:
        try:
            yield read(frame or 0)
        except DicomError as error:
            yield error


def _reader_of(data: bytes, framed: bool) -> Callable[[int], np.ndarray]:
    """What reads a file's slice by its number, in the usual orientation."""
    if framed and nifti.looks_like_nifti(data[:1024]):
        try:
            return nifti.Volume(data).read
        except NoVolume as error:
            raise DicomError("bad_pixels", error.detail) from error
    data = header.with_preamble(data)
    frames = Frames(data) if framed else None

    def read(number: int) -> np.ndarray:
        hu, facts = frames.read(number) if frames else reader.read(data)
        if facts.ImageOrientationPatient is None:
            return hu
        turn = turn_of(facts.ImageOrientationPatient)
        return turned(hu, turn) if any(turn) else hu

    return read


@contextmanager
def _silent() -> Iterator[None]:
    """Within the block, pydicom says nothing of odd values: of a damaged file it would fill the screen."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _hu_of(record: Record) -> np.ndarray | None:
    (hu,) = _read(record.member, [record.facts.frame])
    return None if isinstance(hu, DicomError) else hu


def _differ(one: Record, other: Record) -> bool:
    """Whether two files hold different slices; one that cannot be read says nothing against it."""
    try:
        first, second = (record.member.read(MAX_BYTES) for record in (one, other))
    except IchError:
        return True
    if first == second:
        return False
    if one.facts.position != other.facts.position:
        return True
    hu, of_other = _hu_of(one), _hu_of(other)
    return hu is None or of_other is None or not np.array_equal(hu, of_other)


def _facts(member: Member) -> Iterable[Facts]:
    ds, pixels, fault = header.read_header(member.head, member.size)
    facts = header.facts_of(ds, pixels, fault)
    if facts.kind == "" and header.text_of(ds, "SOPClassUID") in header.MULTI_FRAME:
        return frames_of(ds, facts)
    return [facts]


def _series_of(facts: Facts, member: Member, name: str) -> str:
    """The SeriesInstanceUID, or the folder of a file that names none: nothing else tells what belongs together."""
    return facts.series or f"folder {Path(member.source).name}/{name.rpartition('/')[0]}".rstrip("/")


def _distinct_names(volumes: Sequence[tuple[Member, str]]) -> list[str]:
    """A name for each NIfTI file: its own without its ending, with so much of its path as tells it from the others."""
    levels = []
    for member, name in volumes:
        path = re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)
        levels.append((path.rpartition("/")[2], path, name, f"{member.source}/{name}"))
    counts = Counter(level for one in levels for level in set(one))
    return [printable(next(level for level in one if counts[level] == 1 or level == one[-1])) for one in levels]


def _in_order(parts: dict[tuple, list[Part]]) -> list[Series]:
    """The series by study, number and uid, each with a uid of its own and the count of its files."""

    def place(key: tuple) -> tuple:
        number = parts[key][0].records[0].facts.series_number
        return key[0] or "", np.inf if number is None else number, key[1]

    found: list[Series] = []
    names: Counter[str] = Counter()
    counted: set[tuple[str, str]] = set()
    for key in sorted(parts, key=place):
        for part in sorted(parts[key], key=lambda part: part.status != "read"):  # stable
            files = {(record.member.source, record.member.name) for record in part.records} - counted
            counted |= files
            names[key[1]] += 1
            uid = printable(key[1]) + (f"#{names[key[1]]}" if names[key[1]] > 1 else "")
            found.append(to_series(part, uid, len(files)))
    return found


# ------------------------------------------------------------------------------------------------------------- files


def _files_of(source: Path, others: dict[str, tuple[int, str]]) -> Iterator[tuple[Member, str]]:
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
        _count(others, "unreadable", folder)

    for name, entry in archive.files(source, unreadable=unreadable):
        try:
            size = entry.stat().st_size
        except OSError:
            _count(others, "unreadable", name)  # a link to nothing
            continue
        if _hidden(name):
            _count(others, "hidden", name)
        else:
            yield from _opened(Member(str(source), name, entry.name, "", size), f"{name}/", others)


def _opened(member: Member, within: str, others: dict[str, tuple[int, str]]) -> Iterator[tuple[Member, str]]:
    """A file; of a zip the files in it, whose names then begin with `within`."""
    try:
        begin = member.head(4)
    except IchError:
        _count(others, "unreadable", member.name)
        return
    if begin not in _ZIP:
        yield member, member.name
        return
    place = Path(member.source, member.name)
    try:
        entries = list(zip_directory.entries(place))
    except IchError:
        _count(others, "damaged_zip", member.name)
        return
    for entry in entries:
        path = entry["name"].replace("\\", "/")
        if _hidden(path) or path.startswith("__MACOSX/"):
            _count(others, "hidden", within + path)
        else:
            yield Member(source=str(place), id=path.rpartition("/")[2], split="", **entry), within + path


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _distinct(files: Iterable[tuple[Member, str]]) -> list[tuple[Member, str]]:
    """Each file once, however many of the sources it lies in."""
    return list({f"{member.source}/{member.name}": (member, name) for member, name in files}.values())


def _count(others: dict[str, tuple[int, str]], reason: str, name: str) -> None:
    count, first = others.get(reason, (0, printable(name)))
    others[reason] = count + 1, first
