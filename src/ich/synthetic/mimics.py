"""Findings that look like bleeds in one slice and are none: calcifications, vessels, thick dura, operated skulls.

Their HU and outlines are those of bleeds. What tells them apart is how they go on in the neighboring slices: a
calcified plate or a vessel keeps its size and its HU and ends abruptly, where blood tapers off.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ich.synthetic.head import WIDEST_Z, Head, ellipsoid, step
from ich.synthetic.tissue import CSF, MUSCLE, Tissue

_KERF = 1.6  # mm, half the width of a saw cut around a bone flap


@dataclass(frozen=True, slots=True)
class Mimic:
    """One finding, in head coordinates and mm.

    Args:
        form: a key of `MIMICS`.
        center: its middle; its x says on which side it lies.
        size: half its extent along x, y and z.
        hu: of its middle.
    """

    form: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    hu: float


def paint(tissue: Tissue, mimics: Iterable[Mimic]) -> None:
    """Paint findings into a slice without blood, before `bleeds.pour`: changes `tissue.hu`."""
    hu, cavity = tissue.hu, step(tissue.depth - 0.3, tissue.edge)
    for mimic in mimics:
        if mimic.form in ("flap", "no_flap"):
            _operate(tissue, mimic)
            continue
        share = cavity * step(MIMICS[mimic.form](tissue, mimic), 1.3 * tissue.edge)
        hu += share * np.maximum(np.float32(mimic.hu) + 2.5 * tissue.grain - hu, 0)


def _along_z(t: Tissue, m: Mimic) -> np.ndarray:
    """Distance to the two planes that end a finding below and above."""
    return np.float32(m.size[2]) - np.abs(t.z - np.float32(m.center[2]))


def _falx(t: Tissue, m: Mimic) -> np.ndarray:
    """A plate along the falx, on one side of it, of even thickness: a subdural bleed along the falx tapers off."""
    side = np.sign(m.center[0]) * t.x
    plate = np.minimum(m.size[0] + 0.8 * t.grain - side, side + 0.3)
    along = np.minimum(m.size[1] - np.abs(t.y - np.float32(m.center[1])), t.depth - 3)
    return np.minimum(plate, np.minimum(along, _along_z(t, m)))


def _plexus(t: Tissue, m: Mimic) -> np.ndarray:
    """The choroid plexus in the atrium of a ventricle: lies in front of where blood sinks to."""
    return np.minimum(ellipsoid((t.x, t.y, t.z), m.center, m.size) + 0.8 * t.grain, t.ventricle + 1.0)


def _column(t: Tissue, m: Mimic) -> np.ndarray:
    """Calcified nuclei and vessels: the same outline from slice to slice, without edema."""
    x, y, _ = m.center
    outline = ellipsoid((t.x, t.y, t.z * 0), (x, y, 0), (m.size[0], m.size[1], max(m.size[:2])))
    return np.minimum(outline + np.float32(0.13 * min(m.size)) * t.grain, _along_z(t, m))


def _dura(t: Tissue, m: Mimic) -> np.ndarray:
    """A thickened dura over one hemisphere, as thick at its ends as in its middle."""
    distance = np.abs(np.arctan2(t.y, np.sign(m.center[0]) * t.x)) * 70  # mm along the bone
    layer = np.minimum(m.size[0] + 0.8 * t.grain - t.depth, np.sign(m.center[0]) * t.x - 2)
    return np.minimum(layer, np.minimum(m.size[1] - distance, _along_z(t, m)))


MIMICS: dict[str, Callable[[Tissue, Mimic], np.ndarray]] = {
    "falx": _falx,
    "plexus": _plexus,
    "column": _column,
    "dura": _dura,
}


def _operate(t: Tissue, m: Mimic) -> None:
    """Saw out a round piece of the vault; `no_flap` leaves it out. Scar, of the HU of fresh blood, lies under it."""
    hu = t.hu
    cx, cy, cz = m.center[0], m.center[1], m.center[2] - WIDEST_Z
    z = t.z - np.float32(WIDEST_Z)
    norm = np.sqrt(t.x**2 + t.y**2 + z * z) * np.float32(np.sqrt(cx**2 + cy**2 + cz**2)) + np.float32(1e-3)
    along = 70 * np.arccos(np.clip((t.x * cx + t.y * cy + z * cz) / norm, -1, 1))
    inside = np.float32(m.size[1]) - along
    cut = inside if m.form == "no_flap" else _KERF - np.abs(inside)
    bone = step(-t.depth, t.edge) * step(t.depth + 9, t.edge) * (hu > 80)
    hu += bone * step(cut, t.edge) * (MUSCLE - hu)
    scar = step(t.depth - 0.3, t.edge) * step(np.minimum(m.size[0] + 0.8 * t.grain - t.depth, inside), 1.3 * t.edge)
    hu += scar * (np.float32(m.hu) + 2.5 * t.grain - hu)
    defect = np.minimum(inside - 0.5 * m.size[1], 16 + 4 * t.grain - t.depth)  # what the operation left of the brain
    hu += step(t.depth - m.size[0], 2.0) * step(defect, 3.0) * (CSF + 5 - hu)


# --- findings of a patient ----------------------------------------------------------------------------------------


def _side(rng: np.random.Generator) -> float:
    return float(rng.choice((-1, 1)))


def falx(head: Head, rng: np.random.Generator) -> Mimic:
    center = (_side(rng), float(rng.uniform(-35, 30)), 62.0)
    return Mimic("falx", center, (rng.uniform(3, 6), rng.uniform(25, 45), 38.0), rng.uniform(55, 74))


def plexus(head: Head, rng: np.random.Generator) -> Mimic:
    size = tuple(rng.uniform((5, 7, 8), (8, 12, 14)))
    return Mimic("plexus", (_side(rng) * 19.5, float(rng.uniform(34, 42)), 40.0), size, rng.uniform(52, 80))


def nucleus(head: Head, rng: np.random.Generator) -> Mimic:
    x, y, z = ((24, -8, 40), (12, 8, 38), (20, 46, 2), (38, 20, 56))[rng.integers(4)]
    x, y = rng.normal((x, y), 3)
    size = (rng.uniform(5, 9), rng.uniform(7, 13), rng.uniform(14, 26))
    return Mimic("column", (_side(rng) * x, float(y), z), size, rng.uniform(52, 72))


def basilar(head: Head, rng: np.random.Generator) -> Mimic:
    radius = rng.uniform(3.5, 6)
    return Mimic("column", tuple(rng.normal((0, -1, -4), (3, 1.5, 3))), (radius, radius, 24.0), rng.uniform(50, 64))


def dura(head: Head, rng: np.random.Generator) -> Mimic:
    center = (_side(rng), 0.0, float(rng.uniform(45, 60)))
    return Mimic("dura", center, (rng.uniform(3, 6), rng.uniform(60, 95), rng.uniform(32, 50)), rng.uniform(48, 66))


def craniotomy(head: Head, rng: np.random.Generator) -> Mimic:
    angle = np.deg2rad(rng.uniform(-60, 45))
    x, y = head.half_width * float(np.cos(angle)), head.half_length * float(np.sin(angle))
    form = "flap" if rng.random() < 0.7 else "no_flap"
    size = (rng.uniform(3, 6), rng.uniform(24, 38), 0.0)
    return Mimic(form, (_side(rng) * x, y, float(rng.uniform(35, 62))), size, rng.uniform(46, 62))


_SHARES: tuple[tuple[float, Callable[[Head, np.random.Generator], Mimic]], ...] = (
    (0.25, falx),
    (0.35, plexus),
    (0.20, nucleus),
    (0.25, basilar),
    (0.15, dura),
    (0.12, craniotomy),
)


def draw(head: Head, rng: np.random.Generator) -> tuple[Mimic, ...]:
    """Draw the findings of a patient: 1.3 of them on average, with or without bleeds alike."""
    return tuple(make(head, rng) for share, make in _SHARES if rng.random() < share)
