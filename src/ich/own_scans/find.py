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

from ich.dicom import reader
from ich.dicom.member import Member
from ich.dicom.slice_error import DicomError
from ich.errors import IchError, printable
from ich.own_scans import header, nifti
from ich.own_scans.choice import choose
from ich.own_scans.header import Facts, NoFacts
from ich.own_scans.kind import MULTI_FRAME
from ich.own_scans.multiframe import Frames, frames_of
from ich.own_scans.nifti import NoVolume
from ich.own_scans.parts import Copies, Part, Record, order, split, turn_of, turned
from ich.own_scans.series import Series, SliceFile, judge, skip_dynamic, tell_of_shared_uids, to_series
from ich.own_scans.sources import ZIP, File, count, distinct, files_of, files_of_zip

MAX_BYTES = 2**31
"""Of a file; a multi-frame file of 600 slices has a seventh of it."""


_HEAD = 2**15  # bytes of each file that are read first; few headers are longer


@dataclass(frozen=True)
class Found:
    """What the sources hold.

    The files of `series` and the counts of `others` together are all files, those in a zip instead of the zip: nothing
    is left out without a word.
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
    with _silent():
        groups = _by_series(distinct(file for source in sources for file in files_of(source, others)), others)
    parts = {key: split(records, _compared) for key, records in groups.items()}
    every = [part for of_series in parts.values() for part in of_series]
    order(every)
    for part in every:
        judge(part, all_series)
    if not all_series:
        for of_series in parts.values():
            skip_dynamic(of_series)
        choose(every, _hu_of)
    tell_of_shared_uids(every)
    return Found(_in_order(parts), dict(sorted(others.items())))


def _by_series(files: list[File], others: dict[str, tuple[int, str]]) -> dict[tuple, list[Record]]:
    """The files by study and series; those of no series are counted."""
    groups: dict[tuple, list[Record]] = defaultdict(list)
    volumes: list[File] = []
    with tqdm(total=len(files), desc="headers", unit="file", disable=None) as bar:
        while files:
            within_zips: list[File] = []
            for file in files:
                try:
                    head = file.member.head(_HEAD)
                    if head[:4] in ZIP and file.member.offset is None:
                        within_zips += files_of_zip(file, others)
                    elif nifti.looks_like_nifti(head):
                        volumes.append(file)
                    else:
                        for facts in _facts(file.member, head):
                            groups[facts.study, _series_of(facts, file)].append(Record(file.member, file.name, facts))
                except NoFacts as error:
                    count(others, error.reason, file.name)
                except IchError:
                    count(others, "unreadable", file.name)
                bar.update()
            files = distinct(within_zips)
            bar.total += len(files)
        for file, series in zip(volumes, _distinct_names(volumes), strict=True):
            try:
                slices = nifti.slices_of(file.member.read(MAX_BYTES), series)
                groups[None, series] = [Record(file.member, file.name, facts) for facts in slices]
            except IchError:
                count(others, "unreadable", file.name)
    return groups


def read_slices(series: Series) -> Iterator[tuple[SliceFile, np.ndarray | DicomError]]:
    """Read the slices of a series in its order.

    Yields:
        Each slice, and its HU as int16 of shape (rows, columns), anterior at the top and the patient's right on the
        left; or why it cannot be read.
    """
    for member, of_file in groupby(series.slices, lambda file: file.member):
        slices = list(of_file)
        yield from zip(slices, _read(member, [file.frame for file in slices]), strict=True)


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
    read_one = Frames(data).read if framed else (lambda _: reader.read(data))

    def read(number: int) -> np.ndarray:
        hu, facts = read_one(number)
        if facts.ImageOrientationPatient is None:
            return hu
        flips = turn_of(facts.ImageOrientationPatient)
        return turned(hu, flips) if any(flips) else hu

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


def _compared(record: Record, other: Record) -> Copies:
    """How two files of one SOPInstanceUID compare."""
    first, second = _hu_of(record), _hu_of(other)
    if first is None or second is None:
        return "second_whole" if second is not None else "first_whole"
    same = record.facts.position == other.facts.position and np.array_equal(first, second)
    return "same" if same else "different"


def _facts(member: Member, head: bytes) -> Iterable[Facts]:
    """What a file says of itself, or each of its frames.

    Args:
        head: the file's first bytes; more are read if the header is longer.

    Raises:
        NoFacts: it belongs to no series.
    """
    ds, pixels, fault = header.read_header(head, member)
    facts = header.facts_of(ds, pixels, fault)
    if facts.kind == "" and header.text_of(ds, "SOPClassUID") in MULTI_FRAME:
        return frames_of(ds, facts)
    return [facts]


def _series_of(facts: Facts, file: File) -> str:
    """The SeriesInstanceUID, or the folder of a file that names none: nothing else tells what belongs together."""
    return facts.series or f"folder {Path(file.member.source).name}/{file.name.rpartition('/')[0]}".rstrip("/")


def _distinct_names(volumes: Sequence[File]) -> list[str]:
    """A name for each NIfTI file: its own without its ending, with so much of its path as tells it from the others."""
    levels = []
    for file in volumes:
        path = re.sub(r"\.nii(\.gz)?$", "", file.name, flags=re.IGNORECASE)
        levels.append((path.rpartition("/")[2], path, file.name, f"{file.member.source}/{file.member.name}"))
    counts = Counter(level for names in levels for level in set(names))
    return [printable(next(level for level in names if counts[level] == 1 or level == names[-1])) for names in levels]


def _in_order(parts: dict[tuple, list[Part]]) -> list[Series]:
    """The series by study, number and uid, each with a uid of its own and the count of its files."""
    of_uid: dict[str, list[Part]] = defaultdict(list)
    for (_, series), of_series in sorted(parts.items(), key=lambda item: item[0][0] or ""):
        of_uid[series] += of_series
    names = {}
    for series, of_series in of_uid.items():
        # The uid without a number goes to the part that is read, else to the longest.
        of_series.sort(key=lambda part: (part.status != "read", -len(part.slices)))
        for number, part in enumerate(of_series, 1):
            names[id(part)] = printable(series) + (f"#{number}" if number > 1 else "")

    def place(key: tuple) -> tuple:
        number = parts[key][0].records[0].facts.series_number
        return key[0] or "", np.inf if number is None else number, key[1]

    ordered: list[Series] = []
    counted: set[tuple[str, str]] = set()
    for key in sorted(parts, key=place):
        for part in sorted(parts[key], key=lambda part: (part.status != "read", -len(part.slices))):
            files = {(record.member.source, record.member.name) for record in part.records} - counted
            counted |= files
            ordered.append(to_series(part, names[id(part)], len(files)))
    return ordered
