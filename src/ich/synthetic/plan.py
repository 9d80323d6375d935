"""Plan an archive before rendering: its patients, scanner settings, bleeds, and the oddities of its files."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from ich.errors import IchError
from ich.synthetic import artifacts, mimics
from ich.synthetic.artifacts import Motion
from ich.synthetic.bleeds import CAUSES, Bleed, Cause
from ich.synthetic.head import LOWEST_Z, WIDEST_Z, Head, Plane
from ich.synthetic.mimics import Mimic
from ich.synthetic.pixel_format import COMMON_FORMATS, RARE_FORMATS, PixelFormat

# Irregularities of the real archive that a reader must handle. All occur in an archive of at least 8 train patients; a
# smaller one may lack some of the pixel formats. All but the first five are in the train set only.
ODDITIES: dict[str, str] = {
    "tilted": "gantry tilt: ImageOrientationPatient is not axial and z is not the distance along the slice normal",
    "multi-valued window": "WindowCenter and WindowWidth are ['00036', '00036'] and the like",
    "padded": "-2000 stored outside the circular field of view: -3024 HU, or -2000 HU where the intercept is 0",
    "unsigned 12-bit, -1024": "the common format, with the next one",
    "signed 16-bit, -1024": "the common format, with the one before",
    "unsigned 12-bit, -1000": "a rare format",
    "signed 12-bit, 0": "a rare format",
    "signed 16-bit, 0": "a rare format",
    "wrapped": "12-bit unsigned, intercept 0 or 1, stored HU modulo 4096; adding 1000 modulo 4096 gives HU + 1000",
    "not square": "a whole series of 512 x 404 or 600 x 512 pixels (rows x columns)",
    "another size": "one slice of 768 x 768 or 408 x 408 in a series of 512 x 512",
    "same z": "two slices of a series at one position",
    "truncated": "the pixel data stop short",
    "listed twice": "an image's six labels appear twice in the train CSV, equal",
}


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """A slice before it is rendered."""

    uid: str
    table: float  # position of the table, mm
    rows: int
    columns: int
    spacing: float  # mm between pixels
    stored_as: PixelFormat
    oddities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hard:
    """What makes a series as hard to read as real ones.

    Args:
        thickness: of a slice, mm; what lies within it is averaged (the partial volume effect).
        mimics: findings that look like bleeds.
        beam_hardening: HU of the bars between the petrous bones.
        motion: by the place of a slice in the series, how the patient moved meanwhile.
    """

    thickness: float
    mimics: tuple[Mimic, ...]
    beam_hardening: float
    motion: dict[int, Motion]


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    """A series before it is rendered."""

    split: str  # train or test
    patient_id: str
    study_uid: str
    series_uid: str
    anatomy: int  # seed of the head
    noise: int  # seed of this scan
    slices: tuple[SlicePlan, ...]
    bleeds: tuple[Bleed, ...]
    tilt: float  # of the gantry, radians
    rotation: tuple[tuple[float, ...], ...]  # 3 x 3, head to patient coordinates
    origin: tuple[float, float, float]  # of head coordinates, in patient coordinates, mm
    sharpness: float  # of the kernel: standard deviation of its blur, pixels of 0.45 mm
    noise_level: float  # HU
    holder: bool
    padded: bool
    explicit: bool
    window: tuple[str, ...]
    hard: Hard | None = None

    @property
    def orientation(self) -> tuple[float, ...]:
        """ImageOrientationPatient."""
        return (1.0, 0.0, 0.0, 0.0, float(np.cos(self.tilt)), float(-np.sin(self.tilt)))

    def position(self, s: SlicePlan) -> tuple[float, float, float]:
        """ImagePositionPatient: the center of the first pixel, mm. The table moves along z, tilted or not."""
        width, height = (s.columns - 1) * s.spacing, (s.rows - 1) * s.spacing
        return -width / 2, -height / 2 * np.cos(self.tilt), s.table + height / 2 * np.sin(self.tilt)

    @property
    def shift(self) -> tuple[tuple[float, float, float], float] | None:
        """The center of the largest bleed and by how many mm it shifts the midline, 7 at most; None without bleeds."""
        largest = max(self.bleeds, key=Bleed.push, default=None)
        return None if largest is None else (largest.center, min(largest.push(), 7.0))

    def plane(self, s: SlicePlan) -> Plane:
        """The slice in head coordinates."""
        rotation = np.array(self.rotation)
        orientation = np.array(self.orientation)
        right, down = orientation[:3] * s.spacing, orientation[3:] * s.spacing
        corner = np.array(self.position(s)) - (right + down) / 2
        return Plane(
            (corner - np.array(self.origin)) @ rotation, s.columns * right @ rotation, s.rows * down @ rotation
        )

    def planes(self, s: SlicePlan) -> list[Plane]:
        """The planes whose mean a slice shows: one, or several within its thickness."""
        plane = self.plane(s)
        if self.hard is None:
            return [plane]
        normal = np.cross(plane.along_rows, plane.along_columns)
        normal *= self.hard.thickness / np.linalg.norm(normal)
        return [replace(plane, corner=plane.corner + share * normal) for share in (-1 / 3, 0, 1 / 3)]


def draw_plan(
    *,
    patients: int = 40,
    test_patients: int = 8,
    seed: int = 0,
    bleed_factor: float = 1.0,
    size: int = 512,
    min_slices: int = 20,
    max_slices: int = 40,
    hard: bool = False,
) -> list[SeriesPlan]:
    """Draw patients, scanner settings and bleeds of an archive.

    Args:
        patients: in the train set; about one in seven has two studies.
        bleed_factor: how many times as many bleeds as in the competition. A cause that strikes a share p of patients
            strikes 1 - (1 - p)^factor of them, which is p times the factor while that is small. Epidural bleeds are
            so rare that a small archive would have none: theirs grow with the factor's square.
        size: rows and columns of an ordinary slice.
        min_slices, max_slices: in a series. All series reach from the skull base to above the vertex.
        hard: the same patients, as hard to read as real ones: faint and isodense bleeds, findings that look like
            bleeds (`ich.synthetic.mimics`), partial volume, beam hardening, motion, more noise.

    Raises:
        IchError: an argument is out of range.
    """
    if patients < 1 or test_patients < 0:
        raise IchError(
            f"an archive needs 1 train patient or more and 0 test patients or more, got {patients}, {test_patients}"
        )
    if size < 32:
        raise IchError(f"slices need 32 x 32 pixels or more, got size {size}")
    if seed < 0:
        raise IchError(f"a seed is a whole number of 0 or more, got {seed}")
    if not 2 <= min_slices <= max_slices:
        raise IchError(f"a series needs 2 slices or more and min <= max, got {min_slices} to {max_slices}")
    if not (np.isfinite(bleed_factor) and bleed_factor >= 0):
        raise IchError(f"the bleed factor must be a number of 0 or more, got {bleed_factor}")
    causes = _causes(patients, test_patients, bleed_factor, np.random.default_rng([seed, 0]))
    series: list[SeriesPlan] = []
    for i, of_patient in enumerate(causes):
        rng = np.random.default_rng([seed, 1, i])
        patient = f"ID_{_hex(8, seed, i)}"
        split = "train" if i < patients else "test"
        anatomy = int(rng.integers(2**31))
        head = Head.draw(np.random.default_rng(anatomy), noise=False)
        bleeds = _bleeds_of(head, of_patient, rng)
        studies = 2 if rng.random() < 0.15 else 1
        for study in range(studies):
            key = (seed, i, study)
            slices = round(min_slices + (max_slices - min_slices) * rng.triangular(0, 0.35, 1))
            series.append(_draw_series(rng, key, split, patient, anatomy, head, bleeds, slices, size, i == study == 0))
            bleeds = tuple(b.aged() for b in bleeds)
    if hard:
        series = _made_hard(series, seed)
    return _with_oddities(series, size, np.random.default_rng([seed, 2]))


def _hex(digits: int, *key: object) -> str:
    """Return hexadecimal digits of a hash of the key, the same on every machine."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:digits]


def _causes(patients: int, test_patients: int, factor: float, rng: np.random.Generator) -> list[list[Cause]]:
    """Draw the causes of bleeding of each patient, the train set's first.

    Each cause has its share of a split's patients, rounded at random, and only who they are is drawn: in an archive of
    40 patients, independent draws would leave the prevalences to chance.
    """
    of_patient: list[list[Cause]] = [[] for _ in range(patients + test_patients)]
    for name, cause in CAUSES.items():
        power = factor**2 if name == "blow" else factor
        share = 1 - (1 - cause.share) ** power
        for start, stop in ((0, patients), (patients, len(of_patient))):
            count = int(share * (stop - start) + rng.random())
            for i in rng.permutation(np.arange(start, stop))[:count]:
                of_patient[i].append(cause)
    return of_patient


def _bleeds_of(head: Head, causes: Sequence[Cause], rng: np.random.Generator) -> tuple[Bleed, ...]:
    """Draw at most one bleed of each form: two causes may share one."""
    bleeds: dict[str, Bleed] = {}
    for cause in causes:
        drawn = [cause.always(head, rng)]
        drawn += [make(head, rng) for chance, make in cause.sometimes if rng.random() < chance]
        for bleed in drawn:
            bleeds.setdefault(bleed.form, bleed)
    return tuple(bleeds.values())


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Return the 3 x 3 rotation from head to patient coordinates about z, x and y, in radians."""
    (cz, sz), (cx, sx), (cy, sy) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, roll))
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return about_z @ about_x @ about_y


def _draw_series(
    rng: np.random.Generator,
    key: tuple,
    split: str,
    patient_id: str,
    anatomy: int,
    head: Head,
    bleeds: tuple[Bleed, ...],
    slices: int,
    size: int,
    tilted: bool = False,
) -> SeriesPlan:
    """Draw the patient's position and the scanner's settings; `tilted` forces a gantry tilt, else drawn."""
    tilt = float(np.deg2rad(rng.uniform(6, 16))) if rng.random() < 0.4 or tilted else 0.0
    rotation = _rotation(*np.deg2rad(rng.normal((0, 0, 0), (5, 2.5, 2))) + np.array([0, -tilt, 0]))
    spacing = float(rng.choice([0.449219, 0.468750, 0.488281, 0.494863])) * 512 / size
    bottom, top = LOWEST_Z + 2, WIDEST_Z + head.height + head.skull + 3
    step = (top - bottom) / slices
    start = round(float(rng.uniform(-60, 250)), 1)
    # The table passes the middle of the scanned range through the middle of the field of view.
    middle = start + step * (slices - 1) / 2
    offset = np.array([*rng.normal(0, 4, 2), middle]) - rotation @ np.array([0, 0, (bottom + top) / 2])
    common = COMMON_FORMATS[int(rng.random() < 0.52)]
    signed = common.signed
    return SeriesPlan(
        split=split,
        patient_id=patient_id,
        study_uid=f"ID_{_hex(10, 'study', *key)}",
        series_uid=f"ID_{_hex(10, 'series', *key)}",
        anatomy=anatomy,
        noise=int(rng.integers(2**31)),
        slices=tuple(
            SlicePlan(f"ID_{_hex(9, 'slice', *key, k)}", start + k * step, size, size, spacing, common)
            for k in range(slices)
        ),
        bleeds=bleeds,
        tilt=tilt,
        rotation=tuple(map(tuple, rotation.tolist())),
        origin=tuple(offset.tolist()),
        sharpness=float(rng.uniform(0.6, 1.0)),
        noise_level=float(rng.uniform(3.2, 5.5)),
        holder=bool(rng.random() < 0.6),
        padded=bool(signed and rng.random() < 0.5),
        explicit=bool(signed or rng.random() < 0.4),
        window=("30", "80")
        if signed
        else [("40", "80"), ("00036", "00080") * 2, ("00040", "00080") * 2][rng.integers(3)],
    )


def _made_hard(plan: list[SeriesPlan], seed: int) -> list[SeriesPlan]:
    """Make series hard to read; a patient's findings are the same in each study."""
    hard_plan = []
    for series in plan:
        rng = np.random.default_rng([seed, 3, series.anatomy])
        head = Head.draw(np.random.default_rng(series.anatomy), noise=False)
        findings = mimics.draw(head, rng)
        bleeds = tuple(bleed.faint(rng) for bleed in series.bleeds)
        rng = np.random.default_rng([seed, 4, series.noise])
        count = int(rng.integers(1, 5)) if rng.random() < 0.2 else 0
        first = int(rng.integers(len(series.slices)))
        moved = range(first, min(first + count, len(series.slices)))
        hard = Hard(
            thickness=(series.slices[-1].table - series.slices[0].table) / (len(series.slices) - 1),
            mimics=findings,
            beam_hardening=float(rng.uniform(6, 16)),
            motion={k: artifacts.draw_motion(rng) for k in moved},
        )
        noise = float(rng.uniform(4.5, 8.5))
        hard_plan.append(replace(series, bleeds=bleeds, noise_level=noise, hard=hard))
    return hard_plan


def _with_oddities(plan: list[SeriesPlan], size: int, rng: np.random.Generator) -> list[SeriesPlan]:
    """Give each oddity to the next train series of a shuffled order, and name all oddities of each slice."""
    order = cycle(rng.permutation([i for i, series in enumerate(plan) if series.split == "train"]).tolist())
    edits: list[Callable[[SeriesPlan], SeriesPlan]] = [
        lambda series: _stored(series, COMMON_FORMATS[1], padded=True, window=("30", "80")),
        lambda series: _stored(series, COMMON_FORMATS[0], window=("00036", "00080", "00036", "00080")),
        *(partial(_stored, stored_as=rare, padded=rare.bits_stored == 16) for rare in RARE_FORMATS),
        lambda series: _wrapped(_stored(series, COMMON_FORMATS[0])),
        partial(_resized, rows=512 * size // 512, columns=404 * size // 512),
        partial(_resized, rows=600 * size // 512, columns=size),
        lambda series: _rescaled(_rescaled(series, 0.55, 768 / 512), 0.75, 408 / 512),
        _with_repeat,
        lambda series: _edited(series, 0.4, "truncated"),
        lambda series: _edited(series, 0.6, "listed twice"),
    ]
    for edit in edits:
        i = next(order)
        plan[i] = edit(plan[i])
    return [_noted(series) for series in plan]


def _stored(
    series: SeriesPlan, stored_as: PixelFormat, padded: bool = False, window: tuple = ("40", "80")
) -> SeriesPlan:
    slices = tuple(replace(s, stored_as=stored_as) for s in series.slices)
    return replace(series, slices=slices, padded=padded, window=window)


def _resized(series: SeriesPlan, rows: int, columns: int) -> SeriesPlan:
    return replace(series, slices=tuple(replace(s, rows=rows, columns=columns) for s in series.slices))


def _edited(series: SeriesPlan, place: float, *oddities: str, **changes: Any) -> SeriesPlan:
    """Change one slice, at `place` from 0, the first, to 1, the last."""
    slices = list(series.slices)
    k = round(place * (len(slices) - 1))
    slices[k] = replace(slices[k], oddities=(*slices[k].oddities, *oddities), **changes)
    return replace(series, slices=tuple(slices))


def _rescaled(series: SeriesPlan, place: float, factor: float) -> SeriesPlan:
    """Put one slice on a raster `factor` times as fine, of the same field of view."""
    s = series.slices[round(place * (len(series.slices) - 1))]
    rows, columns = round(s.rows * factor), round(s.columns * factor)
    return _edited(series, place, "another size", rows=rows, columns=columns, spacing=s.spacing / factor)


def _wrapped(series: SeriesPlan) -> SeriesPlan:
    """Store five middle slices modulo 4096, with intercept 0 or 1, as both exist."""
    for k, intercept in enumerate((0, 0, 0, 1, 1)):
        series = _edited(series, 0.3 + 0.1 * k, stored_as=PixelFormat(intercept=intercept, wrapped=True))
    return series


def _with_repeat(series: SeriesPlan) -> SeriesPlan:
    """Repeat the middle slice: another image, with other noise, at the same place."""
    k = len(series.slices) // 2
    first = replace(series.slices[k], oddities=(*series.slices[k].oddities, "same z"))
    again = replace(first, uid=f"ID_{_hex(9, 'again', first.uid)}")
    return replace(series, slices=(*series.slices[:k], first, again, *series.slices[k + 1 :]))


def _noted(series: SeriesPlan) -> SeriesPlan:
    """Name all oddities of each slice, in the order of `ODDITIES`."""
    of_series = {"tilted": series.tilt, "multi-valued window": len(series.window) > 2, "padded": series.padded}
    same_size = len({(s.rows, s.columns) for s in series.slices}) == 1
    slices = []
    for s in series.slices:
        names = {*s.oddities, s.stored_as.name, *(name for name, present in of_series.items() if present)}
        names |= {"not square"} if same_size and s.rows != s.columns else set()
        slices.append(replace(s, oddities=tuple(name for name in ODDITIES if name in names)))
    return replace(series, slices=tuple(slices))
