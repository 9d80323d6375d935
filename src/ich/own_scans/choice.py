"""Choose which of the series that show the same slices is read: the one with the softer kernel."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import median

import numpy as np

from ich.own_scans.kernels import NOISIER, noise, sharpness
from ich.own_scans.parts import Part, Record, normal_of, turned_orientation

_COVERED = 0.8  # of the sharper series' length that the softer must cover to be read instead
_TILTED = np.cos(np.deg2rad(2))  # between the normals of two series of the same slices
_MOMENT = 60  # seconds; two scans of a patient lie farther apart, two reconstructions of one scan have one time
_NEAR = 0.1  # mm; less than chance makes of two scans
_MIDDLE = 3  # slices whose noise is measured
_TRIED = 8  # slices, spread evenly; a series of which these can be read is taken to be whole
_DAY = 86400.0  # seconds

ReadSlice = Callable[[Record], np.ndarray | None]


def choose(parts: Iterable[Part], read: ReadSlice) -> None:
    """Mark as skipped those parts to be read that show the slices of another one with a sharper kernel.

    Two series show the same slices if they are of one study, have one plane, are of one patient, frame of reference
    and acquisition, of the same moment and contrast agent as far as these are known, and if the softer covers most of
    the other's length. Where no kernel is named and no frame of reference, their positions must be the same as well.
    No part is skipped for one of which fewer than half of the slices can be read.

    Args:
        parts: as `ich.own_scans.series.judge` left them.
        read: gives a slice's HU, None where it cannot be read.
    """
    studies = defaultdict(list)
    for part in parts:
        # Nothing tells that two series without a study, as NIfTI files are, show one patient.
        if part.status == "read" and part.slices[0].facts.study is not None:
            studies[part.slices[0].facts.study].append(part)
    for of_study in studies.values():
        if len(of_study) > 1:
            _choose(of_study, read)


def _choose(parts: list[Part], read: ReadSlice) -> None:
    noises: dict[int, float] = {}
    readable: dict[int, bool] = {}

    def noise_of(part: Part) -> float:
        if id(part) not in noises:
            noises[id(part)] = _noise(part, read)
        return noises[id(part)]

    def can_be_read(part: Part) -> bool:
        if id(part) not in readable:
            readable[id(part)] = _half_is_readable(part, read)
        return readable[id(part)]

    softer = [
        [
            (number, reason)
            for number, other in enumerate(parts)
            if other is not part and _same_slices(part, other) and (reason := _sharper(part, other, noise_of))
        ]
        for part in parts
    ]
    # The softest first, so that none is skipped for one that is skipped itself. A circle, as noise may give, is read.
    open_ones = set(range(len(parts)))
    while ready := [place for place in open_ones if not any(number in open_ones for number, _ in softer[place])]:
        for place in ready:
            there = ((parts[number], reason) for number, reason in softer[place])
            reason = next((reason for other, reason in there if other.status == "read" and can_be_read(other)), None)
            if reason:
                parts[place].status, parts[place].reason, parts[place].detail = "skipped", *reason
        open_ones -= set(ready)


def _sharper(part: Part, other: Part, noise_of: Callable[[Part], float]) -> tuple[str, str] | None:
    """Return why another part is read in place of this one, as a reason and a sentence; None if it is not."""
    facts, of_other = part.slices[0].facts, other.slices[0].facts
    if facts.mono_energetic != of_other.mono_energetic:
        return ("derived", f"computed for one energy, beside {_named(other)}") if facts.mono_energetic else None
    here, there = sharpness(facts.kernel), sharpness(of_other.kernel)
    if here is not None and there is not None:
        return ("sharper_kernel", f"kernel {facts.kernel}, beside {_named(other)}") if here > there else None
    if facts.kernel == of_other.kernel != "":
        return None
    if (facts.reference is None or of_other.reference is None) and not _one_place(part, other):
        return None
    here, there = noise_of(part), noise_of(other)
    if here > NOISIER * there:  # false for NaN
        detail = (
            f"noise in the brain of {here:.1f} HU against {there:.1f} HU of {_named(other)}, as by a sharper kernel"
        )
        return "sharper_kernel", detail
    return None


def _named(part: Part) -> str:
    facts = part.slices[0].facts
    names = (
        *([f"series {facts.series_number:g}"] if facts.series_number is not None else []),
        *([f"of kernel {facts.kernel}"] if facts.kernel else []),
    )
    return " ".join(names) or f"series {facts.series}"


def _same_slices(sharper: Part, softer: Part) -> bool:
    facts, of_other = sharper.slices[0].facts, softer.slices[0].facts
    pairs = (
        (facts.patient, of_other.patient),
        (facts.reference, of_other.reference),
        (facts.acquisition, of_other.acquisition),
    )
    if any(a is not None and b is not None and a != b for a, b in pairs):
        return False
    if bool(facts.contrast) != bool(of_other.contrast):
        return False
    if _taken_apart(sharper, softer):
        return False
    normal = normal_of(turned_orientation(facts.orientation) or ())
    if not abs(float(normal @ normal_of(turned_orientation(of_other.orientation) or ()))) >= _TILTED:
        return False
    ends = [_ends(part, normal) for part in (sharper, softer)]
    length = ends[0][1] - ends[0][0]
    return length > 0 and min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0]) >= _COVERED * length


def _one_place(part: Part, other: Part) -> bool:
    """Whether most slices of a part lie where one of the other lies: a second scan would lie a little beside it."""
    normal = normal_of(turned_orientation(part.slices[0].facts.orientation) or ())
    here, there = (_along(side, normal) for side in (part, other))
    return bool(np.mean(np.abs(here[:, None] - there).min(axis=1) < _NEAR) >= _COVERED)


def _along(part: Part, normal: np.ndarray) -> np.ndarray:
    """Where the slices of a part lie along the normal, mm; without those of unknown position."""
    positions = [record.facts.position for record in part.slices if record.facts.position is not None]
    return np.array(positions).reshape(-1, 3) @ normal


def _ends(part: Part, normal: np.ndarray) -> tuple[float, float]:
    """Where a part begins and ends along a normal, mm; NaN where its positions are unknown."""
    along = _along(part, normal)
    return (float(along.min()), float(along.max())) if len(along) else (float("nan"), float("nan"))


def _taken_apart(part: Part, other: Part) -> bool:
    """Return whether two parts were acquired at different times: by date and time, or by the one that both have."""
    for dated, timed in ((True, True), (True, False), (False, True)):
        here, there = (_moment(side, dated, timed) for side in (part, other))
        if here is not None and there is not None:
            return abs(here - there) > _MOMENT
    return False


def _moment(part: Part, dated: bool, timed: bool) -> float | None:
    """Return when its slices were taken, in seconds; None if unknown."""
    recorded = [(record.facts.date if dated else 0, record.facts.time if timed else 0) for record in part.slices]
    moments = [date * _DAY + time for date, time in recorded if date is not None and time is not None]
    return median(moments) if moments else None


def _half_is_readable(part: Part, read: ReadSlice) -> bool:
    """Whether at least half of a part can be read; of a long one, some slices tell, unless one of them is broken."""
    records, count = part.slices, len(part.slices)
    tried = [read(records[place]) is not None for place in np.linspace(0, count - 1, min(count, _TRIED)).astype(int)]
    if not all(tried):
        tried = [read(record) is not None for record in records]
    return bool(np.mean(tried) * count >= (count + len(part.unread)) / 2)


def _noise(part: Part, read: ReadSlice) -> float:
    """The noise of its middle slices, as of slices of 1 mm: thinner ones have more, by the root of their thickness."""
    middle = len(part.slices) // 2
    first = max(0, middle - _MIDDLE // 2)
    slices = [hu for record in part.slices[first : first + _MIDDLE] if (hu := read(record)) is not None]
    return noise(slices) * (part.slices[0].facts.thickness or 1.0) ** 0.5
