"""The files of a series sorted into parts: one kind, one plane and one stack of slices each, in scan order."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from ich.dicom.member import Member
from ich.images.slice_table import SAME_PLANE, scan_order
from ich.own_scans.header import Facts

_AXIAL = np.cos(np.deg2rad(45))  # of the normal with the axis of the patient: beyond, another plane is nearer
_STACK = 5  # slices of a stack; fewer are none of their own
_OVERLAP = 0.5  # of the shorter of two stacks, from which they are two scans and not two pieces of one
_REPEATED = 0.25  # repeated positions for each distinct one, from which there are several stacks


@dataclass(frozen=True, slots=True)
class Record:
    """A file, or a frame of one, and what it says of itself."""

    member: Member
    file: str  # path within its source, as the user knows it
    facts: Facts


@dataclass
class Part:
    """A series, or a part of it: what `ich.own_scans.series.Series` is made of."""

    records: list[Record]  # all that belong to it
    slices: list[Record] = field(default_factory=list)  # in scan order, after `order`
    z: np.ndarray = field(default_factory=lambda: np.empty(0))  # mm, of each slice
    unread: list[tuple[str, str]] = field(default_factory=list)
    status: str = ""
    reason: str = ""
    detail: str = ""
    notes: list[str] = field(default_factory=list)


Copies = Literal["same", "different", "first_whole", "second_whole"]
"""How two files of one SOPInstanceUID compare: by their pixels and places, or only one of them can be read."""


def split(records: Sequence[Record], compared: Callable[[Record, Record], Copies]) -> list[Part]:
    """Sort the files of one series into parts, whose slices are in no order yet.

    Files that are no slices make a part for each kind. Slices make one for each plane, and for each stack: scans of
    the same place, such as phases of a contrast agent, that were given one SeriesInstanceUID. Pieces of one scan that
    differ in thickness or size but lie behind one another stay together.

    Args:
        records: of one SeriesInstanceUID, in a fixed order.
        compared: compares two files of one SOPInstanceUID.
    """
    parts: list[Part] = []
    kinds = defaultdict(list)
    for record in records:
        kinds[record.facts.kind].append(record)
    images = kinds.pop("", [])
    for kind, of_kind in kinds.items():
        parts.append(Part(of_kind, status="skipped", reason=kind, detail=of_kind[0].facts.why))
    broken = [record for record in images if record.facts.fault]
    whole = [record for record in images if not record.facts.fault]
    slices, duplicates, conflict = _one_of_each(whole, compared)
    if conflict:
        return [*parts, Part(images, status="failed", reason="conflict", detail=conflict)]
    axial, others = _planes(slices)
    if others:
        angle = np.rad2deg(np.arccos(abs(normal_of(others[0].facts.orientation or ())[2])))
        detail = f"the normal of the slices is {angle:.0f}° off the axis of the patient"
        parts.append(Part(others, status="skipped", reason="other_plane", detail=detail))
    stacks = [Part(list(stack), stack) for plane in axial for stack in _stacks(plane)]
    stacks.sort(key=lambda part: -len(part.slices))  # stable
    if (broken or duplicates) and not stacks:
        stacks = [Part([])]
        if not broken:  # duplicates of slices of another plane
            stacks = []
            parts[-1].records += duplicates
    if stacks:
        stacks[0].records += [*broken, *duplicates]
        stacks[0].unread = [(record.file, record.facts.fault) for record in broken]
        if duplicates:
            stacks[0].notes.append(f"{len(duplicates)} file(s) that repeat a slice are left out")
    return stacks + parts


def _one_of_each(
    records: Sequence[Record], compared: Callable[[Record, Record], Copies]
) -> tuple[list[Record], list[Record], str]:
    """The slices, one for each SOPInstanceUID; those that repeat one; and a sentence where two differ."""
    first: dict[Hashable, Record] = {}
    duplicates = []
    for record in records:
        key = (record.facts.uid, record.facts.frame)
        if key not in first:
            first[key] = record
            continue
        outcome = compared(first[key], record)
        if outcome == "different":
            detail = (
                f"{first[key].file} and {record.file} are different slices of the SOPInstanceUID {record.facts.uid}"
            )
            return [], [], detail
        if outcome == "second_whole":
            first[key], record = record, first[key]
        duplicates.append(record)
    return list(first.values()), duplicates, ""


def normal_of(orientation: Sequence[float]) -> np.ndarray:
    """The normal of a slice, of length 1; NaN where a direction is missing or both are one."""
    if len(orientation) != 6:
        return np.full(3, np.nan)
    normal = np.cross(orientation[:3], orientation[3:])
    length = np.linalg.norm(normal)
    return normal / length if length > 0 else np.full(3, np.nan)


def turn_of(orientation: Sequence[float]) -> tuple[bool, bool, bool]:
    """How an axial slice is turned to the usual orientation: its first row in front, its first column at the right.

    Args:
        orientation: ImageOrientationPatient.

    Returns:
        (transpose, flip rows, flip columns), to be done in this order.
    """
    right, down = orientation[:3], orientation[3:]
    transpose = abs(right[0]) < abs(right[1])
    if transpose:
        right, down = down, right
    return transpose, down[1] < 0, right[0] < 0


def turned(hu: np.ndarray, flips: tuple[bool, bool, bool]) -> np.ndarray:
    """The slice in the usual orientation."""
    transpose, rows, columns = flips
    hu = hu.T if transpose else hu
    return np.ascontiguousarray(hu[:: -1 if rows else 1, :: -1 if columns else 1])


def turned_orientation(orientation: tuple[float, ...] | None) -> list[float] | None:
    """The ImageOrientationPatient of a slice once it is turned, so that its normal points to the head."""
    if orientation is None:
        return None
    transpose, rows, columns = turn_of(orientation)
    right, down = orientation[:3], orientation[3:]
    if transpose:
        right, down = down, right
    return [-cosine if columns else cosine for cosine in right] + [-cosine if rows else cosine for cosine in down]


def _planes(records: Sequence[Record]) -> tuple[list[list[Record]], list[Record]]:
    """The slices by axial plane, the largest first, and those of other planes.

    Slices that say nothing of their plane are counted to the largest.
    """
    planes: list[tuple[np.ndarray, list[Record]]] = []
    normals = {}
    for record in records:
        orientation = record.facts.orientation
        if orientation not in normals:
            normals[orientation] = normal_of(turned_orientation(orientation) or ())
    by_orientation = Counter(record.facts.orientation for record in records)
    plane_of: dict[tuple[float, ...] | None, int | None] = {}
    for orientation, _ in by_orientation.most_common():
        normal = normals[orientation]
        if np.isnan(normal).any():
            continue
        if abs(normal[2]) < _AXIAL:
            plane_of[orientation] = None
            continue
        near = (number for number, (other, _) in enumerate(planes) if abs(float(normal @ other)) >= SAME_PLANE)
        number = next(near, len(planes))
        if number == len(planes):
            planes.append((normal, []))
        plane_of[orientation] = number
    others, unknown = [], []
    for record in records:
        if record.facts.orientation not in plane_of:
            unknown.append(record)
        elif (place := plane_of[record.facts.orientation]) is None:
            others.append(record)
        else:
            planes[place][1].append(record)
    axial = sorted((of_plane for _, of_plane in planes), key=len, reverse=True)
    if unknown and axial:
        axial[0] += unknown
    elif unknown and others:
        others += unknown
    elif unknown:
        axial = [unknown]
    return axial, others


def _stacks(records: list[Record]) -> list[list[Record]]:
    """The slices of one plane by stack."""
    stacks = [records]
    keys: list[Callable[[Facts], Hashable]] = [
        lambda facts: facts.kernel,
        lambda facts: facts.acquisition,
        lambda facts: facts.image_type,
        lambda facts: facts.thickness,
        lambda facts: (facts.rows, facts.columns, facts.pixel_spacing),
        lambda facts: facts.contrast,
    ]
    for key in keys:
        stacks = [part for stack in stacks for part in _by(stack, key)]
    return [part for stack in stacks for part in _repeats(stack)]


def _by(records: list[Record], key: Callable[[Facts], Hashable]) -> list[list[Record]]:
    """The slices by the value of a key, if two of the values have stacks that lie in one place."""
    groups: dict[Hashable, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record.facts)].append(record)
    if len(groups) == 1:
        return [records]
    ends = [_ends(group) for group in groups.values() if len(group) >= _STACK]
    for number, stretch in enumerate(ends):
        for other in ends[:number]:
            if stretch is not None and other is not None and _overlap(stretch, other) > _OVERLAP:
                return list(groups.values())
    return [records]


def _along(records: Iterable[Record]) -> np.ndarray:
    """Where each slice lies along the normal of the first that has one, mm; NaN where it is unknown."""
    records = list(records)
    oriented = (record.facts.orientation for record in records if record.facts.orientation is not None)
    normal = normal_of(turned_orientation(next(oriented, None)) or ())
    positions = [record.facts.position or (np.nan,) * 3 for record in records]
    return np.array(positions).reshape(-1, 3) @ normal


def _ends(records: Sequence[Record]) -> tuple[float, float] | None:
    along = _along(records)
    return None if np.isnan(along).all() else (float(np.nanmin(along)), float(np.nanmax(along)))


def _overlap(first: tuple[float, float], second: tuple[float, float]) -> float:
    """How much of the shorter of two stretches the longer covers, from 0 to 1."""
    shorter = min(first[1] - first[0], second[1] - second[0])
    return (min(first[1], second[1]) - max(first[0], second[0])) / shorter if shorter > 0 else 0.0


def _repeats(records: list[Record]) -> list[list[Record]]:
    """The slices by how often their position has come before, if many positions are repeated."""
    along = np.round(_along(records), 2)
    counts = Counter(along[~np.isnan(along)].tolist())
    if not counts or (counts.total() - len(counts)) / len(counts) <= _REPEATED:
        return [records]
    stacks: list[list[Record]] = []
    seen: Counter[float] = Counter()
    places = sorted(range(len(records)), key=lambda place: _by_number(records[place]))
    for place in places:
        at = float(along[place])
        repeat = 0 if np.isnan(at) else seen[at]
        seen[at] += 1
        stacks.extend([] for _ in range(repeat + 1 - len(stacks)))
        stacks[repeat].append(records[place])
    return stacks


def _by_number(record: Record) -> tuple:
    facts = record.facts
    number = np.inf if facts.number is None else facts.number
    return facts.time or 0.0, number, facts.frame or 0, record.file


def order(parts: Sequence[Part]) -> None:
    """Put the slices of each part in scan order, as the slice table has it; those without a position come last.

    All at once, as a table of its own for each part would take 20 ms.
    """
    records = [record for part in parts for record in part.slices]
    if not records:
        return
    starts = np.cumsum([0] + [len(part.slices) for part in parts])
    table = pd.DataFrame(
        {
            "SOPInstanceUID": [_sortable(record.facts) for record in records],
            "SeriesInstanceUID": np.repeat([f"{number}" for number in range(len(parts))], np.diff(starts)),
            "split": "",
            "ImagePositionPatient": [record.facts.position for record in records],
            "ImageOrientationPatient": [turned_orientation(record.facts.orientation) for record in records],
            "place": range(len(records)),
        }
    )
    table = scan_order(table)
    z, at = np.full(len(records), np.nan), np.full(len(records), np.inf)
    z[table["place"]] = table["z"]
    at[table["place"]] = np.arange(len(table))
    at[np.isnan(z)] = np.inf
    for part, start, end in zip(parts, starts[:-1], starts[1:], strict=True):
        places = sorted(range(start, end), key=lambda place: (at[place], *_by_instance(records[place])))
        part.slices, part.z = [records[place] for place in places], z[places]


def _sortable(facts: Facts) -> str:
    return facts.uid or "" if facts.frame is None else f"{facts.uid}.{facts.frame:06}"


def _by_instance(record: Record) -> tuple:
    number = np.inf if record.facts.number is None else record.facts.number
    return number, record.facts.frame or 0, record.file
