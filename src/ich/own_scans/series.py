"""A series of slices: its description, whether it is read, and notes for the user."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ich.dicom.member import Member
from ich.errors import printable
from ich.own_scans.header import Facts
from ich.own_scans.kernels import SHARP, sharpness
from ich.own_scans.parts import Part, normal_of, turn_of

_T = TypeVar("_T")

LEAST_SLICES = 5
"""Of a series that is read unless all are."""

_PHASES = 4  # scans of one place in one series; more are a movie, of which each scan alone has too little dose
_USUAL = "anterior at the top and the patient's right on the left"
_HEAD = 100  # mm; from the skull base to the vertex it is 120 to 160
_TILT = 1.0  # degrees; less is not worth telling
_STEP = 1.5  # times the usual step, from which a slice may be missing
_OTHER_BODY = {"CHEST", "ABDOMEN", "PELVIS", "HEART", "LSPINE", "TSPINE", "LEG", "KNEE", "HIP", "FOOT", "LUNG"}
_OTHER_BODY |= {"SHOULDER", "EXTREMITY", "LIVER", "THORAX", "WHOLEBODY", "ABDOMENPELVIS", "CHESTABDPELVIS"}


@dataclass(frozen=True, slots=True)
class SliceFile:
    """One slice to read."""

    member: Member  # where its bytes are
    file: str  # path within its source, as the user knows it
    uid: str  # SOPInstanceUID; of a frame "<SOPInstanceUID>.<frame from 1>", of NIfTI "<stem>.<slice from 1>"
    z: float  # mm along the normal of the slices, NaN where it is unknown
    frame: int | None = None  # from 0, of a multi-frame or NIfTI file


@dataclass(frozen=True, slots=True)
class Series:
    """A series, or the part of one that has one plane and one stack of slices.

    Several of one SeriesInstanceUID have "#2", "#3" and so on after it, from the second on.
    """

    uid: str  # unique
    study: str | None
    patient: str | None
    status: str  # "read", "skipped" or "failed"
    reason: str  # a word of REASONS, "" where it is read
    detail: str  # a sentence with what was found
    notes: tuple[str, ...]  # sentences: what is to be told of it, but is no reason to skip it
    slices: tuple[SliceFile, ...]  # in scan order; empty unless it is read
    unread: tuple[tuple[str, str], ...]  # files of it that are known to be broken: the file and a sentence
    files: int  # all of its files, duplicates and broken ones too; a file that several have counts at the first
    modality: str
    description: str
    kernel: str
    thickness: float | None  # mm
    spacing: float | None  # mm between neighboring slices, the median
    pixel_spacing: tuple[float, float] | None  # mm between rows, between columns; as `read_slices` turns them
    oriented: bool  # all slices say how they lie in the patient, so that `read_slices` has right on the left
    rows: int | None
    columns: int | None


def judge(part: Part, all_series: bool) -> None:
    """Decide whether a part can be read, for itself alone; writes its status, reason, detail and notes."""
    if part.reason:
        return
    if not part.slices:
        part.status, part.reason = "failed", "damaged"
        part.detail = f"{_files(len(part.unread))}, the first: {part.unread[0][1]}"
        return
    if len(part.slices) < LEAST_SLICES and not all_series:
        part.status, part.reason = "skipped", "too_few"
        broken = f", and {_files(len(part.unread))}" if part.unread else ""
        part.detail = f"{_slices(len(part.slices))}{broken}; expected {LEAST_SLICES} slices or more"
        return
    part.status = "read"
    part.notes += _notes(part)


def skip_dynamic(parts: Sequence[Part]) -> None:
    """Mark the scans of one series as skipped if they are more than the phases of a contrast agent are."""
    read = [part for part in parts if part.status == "read"]
    if len(read) > _PHASES:
        for part in read:
            part.status, part.reason = "skipped", "dynamic"
            part.detail = f"{len(read)} scans under one SeriesInstanceUID, as of a perfusion study"


def tell_of_shared_uids(parts: Iterable[Part]) -> None:
    """Note of each part to be read how many of its slices another one has too, by their SOPInstanceUID."""
    read = [part for part in parts if part.status == "read"]
    counts = Counter(record.facts.uid for part in read for record in part.slices)
    for part in read:
        if shared := sum(counts[record.facts.uid] > 1 for record in part.slices):
            part.notes.append(f"{_slices(shared)} with a SOPInstanceUID that a slice of another series has too")


def to_series(part: Part, uid: str, files: int) -> Series:
    """Make a `Series` of a part that was judged."""
    facts = [record.facts for record in part.slices or part.records]
    first = facts[0]
    read = part.status == "read"
    spacing = _most([header.pixel_spacing for header in facts])
    rows, columns = _most([(header.rows, header.columns) for header in facts]) or (None, None)
    if first.orientation is not None and turn_of(first.orientation)[0]:
        rows, columns = columns, rows
        spacing = None if spacing is None else spacing[::-1]
    slices = (
        SliceFile(record.member, record.file, record.facts.uid or "", float(z), record.facts.frame)
        for record, z in zip(part.slices, part.z, strict=True)
    )
    return Series(
        uid=uid,
        study=first.study,
        patient=_most([header.patient for header in facts]),
        status=part.status,
        reason=part.reason,
        detail=printable(part.detail),
        notes=tuple(part.notes) if read else (),
        slices=tuple(slices) if read else (),
        unread=tuple(part.unread),
        files=files,
        modality=printable(first.modality),
        description=printable(first.description),
        kernel=printable(first.kernel),
        thickness=_most([header.thickness for header in facts]),
        spacing=spacing_of(part.z),
        pixel_spacing=None if spacing is None else (spacing[0], spacing[1]),
        oriented=len(_orientations(facts)) == len(facts),
        rows=rows,
        columns=columns,
    )


def _orientations(facts: Sequence[Facts]) -> list[tuple[float, ...]]:
    """ImageOrientationPatient of the slices that have one that tells directions."""
    valid = {
        known for known in {header.orientation for header in facts} if known and np.isfinite(normal_of(known)).all()
    }
    return [header.orientation for header in facts if header.orientation in valid]


def spacing_of(z: np.ndarray) -> float | None:
    """The median of the steps between neighboring slices that lie apart, mm; None where there are none."""
    steps = _steps(z)
    return float(np.median(steps)) if len(steps) else None


def _steps(z: np.ndarray) -> np.ndarray:
    steps = np.diff(z[~np.isnan(z)])
    return steps[steps > 0]


def _notes(part: Part) -> list[str]:
    facts = [record.facts for record in part.slices]
    return [note for note in (*_of_headers(facts), *_of_geometry(facts, part.z)) if note]


def _of_headers(facts: Sequence[Facts]) -> list[str]:
    notes = []
    if facts[0].series is None:
        notes.append("the files name no SeriesInstanceUID: those of one folder are taken as one series")
    if any(header.contrast for header in facts):
        notes.append("a contrast agent was given: what it enhances can look like blood")
    kernel = facts[0].kernel
    if (sharpness(kernel) or 0) >= SHARP:
        notes.append(f"the kernel {printable(kernel)} is a sharp one, for bone or lung: noise can hide or feign blood")
    if any(header.mono_energetic for header in facts):
        notes.append("computed for one energy of X-rays: its contrast differs from that of an ordinary CT")
    parts = {header.body_part.upper().replace(" ", "") for header in facts} & _OTHER_BODY
    if parts:
        notes.append(f"BodyPartExamined is {', '.join(sorted(parts))}: only of heads predictions mean anything")
    if len({header.patient for header in facts}) > 1:
        notes.append(f"the slices name {len({header.patient for header in facts})} different patients")
    sizes = Counter((header.rows, header.columns) for header in facts)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        odd = ", ".join(f"{rows} × {columns}" for rows, columns in sorted(set(sizes) - {usual}, key=str)[:3])
        notes.append(f"{_slices(len(facts) - sizes[usual])} of another size than {usual[0]} × {usual[1]}: {odd}")
    return notes


def _of_geometry(facts: Sequence[Facts], z: np.ndarray) -> list[str]:
    notes = []
    oriented = _orientations(facts)
    if not oriented:
        notes.append(f"no ImageOrientationPatient: taken as axial, {_USUAL}")
    else:
        if lacking := len(facts) - len(oriented):
            notes.append(f"{_slices(lacking)} without ImageOrientationPatient: taken as axial, {_USUAL}")
        tilt = np.rad2deg(np.arccos(min(1.0, abs(float(normal_of(oriented[0])[2])))))
        if tilt >= _TILT:
            notes.append(f"the slices are tilted by {tilt:.0f}° (gantry or reformatted)")
        if any(turn_of(oriented[0])):
            notes.append(f"the images are turned to the usual orientation, {_USUAL}")
    unknown = int(np.isnan(z).sum())
    if unknown == len(z):
        by = "InstanceNumber" if all(header.number is not None for header in facts) else "InstanceNumber and file name"
        notes.append(f"the positions of the slices are unknown: they are in the order of {by}")
        return notes
    if unknown:
        notes.append(f"{_slices(unknown)} without a position, placed last")
    known = z[~np.isnan(z)]
    if ties := int((np.diff(known) == 0).sum()):
        notes.append(f"{_slices(ties)} at the position of another")
    steps, usual = _steps(z), spacing_of(z)
    if usual is not None:
        # Beside each step the ones before and after, as a spacing that changes once leaves no slice out.
        beside = np.maximum(np.r_[0, steps[:-1]], np.r_[steps[1:], 0])
        gaps = steps[(steps > _STEP * beside) & (len(steps) > 1)]
        if len(gaps):
            notes.append(f"{len(gaps)} gap(s) of up to {gaps.max():.1f} mm, where slices may be missing")
        low, high = np.quantile(steps, [0.1, 0.9])
        if high > _STEP * low:
            notes.append(f"the distance between slices changes, from {low:.1f} to {high:.1f} mm")
        covered = float(known[-1] - known[0]) + usual
        if covered < _HEAD:
            notes.append(f"covers {covered:.0f} mm along the slices, less than a whole head")
    return notes


def _most(values: Iterable[_T | None]) -> _T | None:
    """The value that most have, of several the first; None where none has one."""
    counts = Counter(value for value in values if value is not None)
    return counts.most_common(1)[0][0] if counts else None


def _slices(count: int) -> str:
    return f"{count} slice" if count == 1 else f"{count} slices"


def _files(count: int) -> str:
    return f"{count} broken file" if count == 1 else f"{count} broken files"
