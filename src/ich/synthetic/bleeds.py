"""The five subtypes of bleeding: place, shape, and when a slice counts as positive."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ich.competition.labels import ANY, LABELS
from ich.synthetic.head import WIDEST_Z, Head, ellipsoid, step
from ich.synthetic.tissue import Tissue

# A slice is labeled with a kind where blood of that kind brightens at least VISIBLE_AREA of it, not necessarily in one
# piece, by at least VISIBLE_CONTRAST over the same slice without blood and without noise. The noise is 4 to 6 HU.
# Isodense blood brightens nothing; readers know it by its place: it counts where it fills half of a pixel.
VISIBLE_CONTRAST = 10.0  # HU
VISIBLE_AREA = 50.0  # mm²

_REACH = 70.0  # mm from the middle of the head to its inner table, to turn angles into lengths along the bone


@dataclass(frozen=True)
class Bleed:
    """One bleed, in head coordinates and mm.

    Args:
        kind: one of the five labels.
        form: the shape, a key of `FORMS`.
        center: its middle.
        size: half its extent along x, y and z; along the bone for those that lie on it.
        thickness: of a layer on the bone or the falx; how far blood swells a sulcus or a ventricle.
        hu: of its middle; clotted blood has 50 to 80.
        isodense: days old, as bright as the brain; it takes the place of what is brighter, too.
    """

    kind: str
    form: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    thickness: float
    hu: float
    isodense: bool = False

    def aged(self) -> "Bleed":
        """The same bleed in a later scan: smaller, and paler as hemoglobin is broken down."""
        x, y, z = self.size
        return replace(self, size=(0.88 * x, 0.88 * y, 0.88 * z), thickness=0.85 * self.thickness, hu=self.hu - 6)

    def push(self) -> float:
        """Return by how many mm it moves the brain across the midline."""
        if self.form == "blob":
            return 0.25 * max(self.size[0] - 9, 0)
        return {"lens": 0.3, "crescent": 0.45}.get(self.form, 0.0) * self.thickness

    def faint(self, rng: np.random.Generator) -> "Bleed":
        """The same bleed in a patient with little hemoglobin, and a third of the crescents isodense."""
        if self.form == "crescent" and rng.random() < 0.35:
            return replace(self, hu=rng.uniform(37, 47), isodense=True)
        return replace(self, hu=self.hu - rng.uniform(0, 14))


def _ends(t: Tissue, b: Bleed) -> np.ndarray:
    """From 1 in the middle to 0 beyond the last slices: blood grows paler there, as it fills less of the slice."""
    return np.clip(2.2 * (1 - ((t.z - b.center[2]) / b.size[2]) ** 2), 0, 1)


def _lens(t: Tissue, b: Bleed) -> np.ndarray:
    """Biconvex: bone on one side, stripped dura bulging inwards on the other, held by the sutures."""
    cx, cy, cz = b.center[0], b.center[1], b.center[2] - WIDEST_Z
    z = t.z - np.float32(WIDEST_Z)
    cosine = (t.x * cx + t.y * cy + z * cz) / (np.sqrt(t.x**2 + t.y**2 + z * z) * np.sqrt(cx**2 + cy**2 + cz**2) + 1e-3)
    along = _REACH**2 * 2 * (1 - np.clip(cosine, -1, 1))
    return b.thickness * (1 - along / b.size[1] ** 2) - t.depth


def _crescent(t: Tissue, b: Bleed) -> np.ndarray:
    """Along the inner table, crossing sutures but not the midline, of even thickness until its ends."""
    angle = np.arctan2(t.y, t.x) - np.arctan2(b.center[1], b.center[0])
    angle = np.abs((angle + np.pi) % (2 * np.pi) - np.pi)
    q = (_REACH * angle / b.size[1]) ** 2 + ((t.z - b.center[2]) / b.size[2]) ** 2
    thickness = b.thickness * (1 - np.clip(q, 0, 2) ** 2) + 0.8 * t.grain
    return np.minimum(thickness - t.depth, np.sign(b.center[0]) * t.x - 2)


def _along_falx(t: Tissue, b: Bleed) -> np.ndarray:
    """One flat side on the falx, the other on the brain."""
    q = ((t.y - b.center[1]) / b.size[1]) ** 2 + ((t.z - b.center[2]) / b.size[2]) ** 2
    side = np.sign(b.center[0]) * t.x
    return np.minimum(b.thickness * (1 - np.clip(q, 0, 2)) - side, side + 0.3)


def _in_sulci(t: Tissue, b: Bleed) -> np.ndarray:
    """Blood in place of CSF, within reach of its source."""
    return np.minimum(t.csf + b.thickness, ellipsoid((t.x, t.y, t.z), b.center, b.size) + 4 * t.grain)


def _blob(t: Tissue, b: Bleed) -> np.ndarray:
    return ellipsoid((t.x, t.y, t.z), b.center, b.size) + np.float32(0.13 * min(b.size)) * t.grain


def _in_ventricles(t: Tissue, b: Bleed) -> np.ndarray:
    """A cast of the ventricles within reach of its source; see `_layered` for blood that has sunk."""
    return np.minimum(t.ventricle + b.thickness, ellipsoid((t.x, t.y, t.z), b.center, b.size) + 2 * t.grain)


def _layered(t: Tissue, b: Bleed) -> np.ndarray:
    """Sunk to the back, where a patient lies on: a level across the occipital horns."""
    return np.minimum(_in_ventricles(t, b), t.y - np.float32(b.center[1] - 14))


FORMS: dict[str, Callable[[Tissue, Bleed], np.ndarray]] = {
    "lens": _lens,
    "crescent": _crescent,
    "along_falx": _along_falx,
    "in_sulci": _in_sulci,
    "blob": _blob,
    "in_ventricles": _in_ventricles,
    "layered": _layered,
}


def reaches(bleed: Bleed, low: float, high: float) -> bool:
    """Return whether a slice between these heights may show a bleed; 4 mm allow for the bending of the brain."""
    return bleed.center[2] - bleed.size[2] - 4 < high and bleed.center[2] + bleed.size[2] + 4 > low


def pour(tissue: Tissue, bleeds: Sequence[Bleed]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Paint bleeds into a slice.

    Returns:
        HU, float32, and for each kind the HU by which its blood brightens each pixel; of isodense blood, its share of
        the pixel times twice `VISIBLE_CONTRAST`.
    """
    hu = tissue.hu.copy()
    brighter: dict[str, np.ndarray] = {}
    cavity = step(tissue.depth - 0.3, tissue.edge)
    for bleed in bleeds:
        if not reaches(bleed, float(tissue.z.min()), float(tissue.z.max())):
            continue
        inside = FORMS[bleed.form](tissue, bleed)
        share = cavity * _ends(tissue, bleed) * step(inside, 1.3 * tissue.edge)
        if bleed.form == "blob":  # edema, and serum that a clot presses out
            rim = (
                cavity
                * step(inside + 0.28 * min(bleed.size) + 1.5, 3.0)
                * step(-tissue.ventricle, 2)
                * step(-tissue.csf, 2)
            )
            hu -= 11 * rim * _ends(tissue, bleed)
        blood = np.float32(bleed.hu) + 2.5 * tissue.grain
        gain = share * (2 * VISIBLE_CONTRAST if bleed.isodense else np.maximum(blood - tissue.hu, 0))
        brighter[bleed.kind] = np.maximum(gain, brighter.get(bleed.kind, 0))
        hu += share * (blood - hu if bleed.isodense else np.maximum(blood - hu, 0))
    return hu, brighter


def visible(brighter: dict[str, np.ndarray], pixel_area: float) -> np.ndarray:
    """Return the six labels of a slice, int8, from the brightening that `pour` returned; `pixel_area` in mm²."""
    seen = [
        kind in brighter and float((brighter[kind] >= VISIBLE_CONTRAST).sum()) * pixel_area >= VISIBLE_AREA
        for kind in LABELS[:ANY]
    ]
    return np.array([*seen, any(seen)], np.int8)


# --- bleeds of a patient ------------------------------------------------------------------------------------------


def _on_bone(head: Head, side: float, degrees: float, z: float) -> tuple[float, float, float]:
    """Return a point near the inner table; 0 degrees is straight to the side, 90 to the back, -90 to the front."""
    angle = np.deg2rad(degrees)
    return side * head.half_width * float(np.cos(angle)), head.half_length * float(np.sin(angle)), z


def epidural(head: Head, rng: np.random.Generator) -> Bleed:
    extent = rng.uniform(27, 40)
    center = _on_bone(head, rng.choice((-1, 1)), rng.uniform(-45, 50), rng.uniform(28, 55))
    return Bleed("epidural", "lens", center, (extent, extent, extent), rng.uniform(13, 23), rng.uniform(60, 74))


def subdural(head: Head, rng: np.random.Generator) -> Bleed:
    if rng.random() < 0.15:
        center = (float(rng.choice((-1, 1))), float(rng.uniform(-20, 40)), float(rng.uniform(60, 72)))
        size = (8, rng.uniform(38, 55), rng.uniform(18, 27))
        return Bleed("subdural", "along_falx", center, size, rng.uniform(4.5, 7), rng.uniform(62, 74))
    center = _on_bone(head, rng.choice((-1, 1)), rng.uniform(-25, 25), rng.uniform(42, 60))
    size = (10, rng.uniform(65, 100), rng.uniform(26, 42))
    return Bleed("subdural", "crescent", center, size, rng.uniform(5.5, 12), rng.uniform(56, 72))


def aneurysmal(head: Head, rng: np.random.Generator) -> Bleed:
    center = (float(rng.uniform(-12, 12)), float(rng.uniform(-16, -4)), float(rng.uniform(14, 22)))
    size = (rng.uniform(45, 58), rng.uniform(38, 52), rng.uniform(22, 36))
    return Bleed("subarachnoid", "in_sulci", center, size, rng.uniform(0.9, 1.6), rng.uniform(62, 74))


def convexity(head: Head, rng: np.random.Generator) -> Bleed:
    center = _on_bone(head, rng.choice((-1, 1)), rng.uniform(-60, 45), rng.uniform(30, 65))
    size = (rng.uniform(24, 34), rng.uniform(30, 44), rng.uniform(18, 30))
    return Bleed("subarachnoid", "in_sulci", center, size, rng.uniform(0.9, 1.5), rng.uniform(62, 74))


def deep(head: Head, rng: np.random.Generator) -> Bleed:
    """Draw a hypertensive bleed of the basal ganglia, the thalamus, a lobe, the cerebellum or the pons."""
    middle, spread = (
        ((26, -6, 38), 5), ((13, 8, 38), 4), ((36, 28, 56), 9), ((20, 46, 2), 6), ((2, 10, 4), 2),
    )[rng.choice(5, p=(0.4, 0.2, 0.27, 0.1, 0.03))]  # fmt: skip
    x, y, z = rng.normal(middle, spread)
    radius = rng.uniform(10, 20) if middle[2] > 10 else rng.uniform(8, 13)
    size = tuple(radius * rng.uniform((0.75, 0.9, 0.85), (1.1, 1.4, 1.3)))
    return Bleed("intraparenchymal", "blob", (rng.choice((-1, 1)) * x, y, z), size, 0.0, rng.uniform(60, 76))


def contusion(head: Head, rng: np.random.Generator) -> Bleed:
    """Where the brain hits the bone: frontal and temporal poles."""
    x, y, z = ((20, -62, 26), (40, -20, 6), (46, -36, 32))[rng.integers(3)]
    size = tuple(rng.uniform((8, 8, 10), (13, 15, 17)))
    return Bleed("intraparenchymal", "blob", (rng.choice((-1, 1)) * x, y, z), size, 0.0, rng.uniform(56, 70))


def intraventricular(head: Head, rng: np.random.Generator) -> Bleed:
    if rng.random() < 0.45:
        return Bleed(
            "intraventricular", "layered", (0, 46, 38), (40, 40, 24), rng.uniform(0.5, 1.3), rng.uniform(58, 72)
        )
    center = (float(rng.normal(0, 9)), float(rng.uniform(-8, 18)), float(rng.uniform(34, 44)))
    size = (rng.uniform(20, 32), rng.uniform(36, 55), rng.uniform(22, 34))
    return Bleed("intraventricular", "in_ventricles", center, size, rng.uniform(0.5, 1.3), rng.uniform(58, 74))


@dataclass(frozen=True)
class Cause:
    """A cause of bleeding: the share of patients, the bleed it always brings, and others with their probability."""

    share: float
    always: Callable[[Head, np.random.Generator], Bleed]
    sometimes: tuple[tuple[float, Callable[[Head, np.random.Generator], Bleed]], ...] = ()


# The shares are chosen so that the labels come out as often as in the competition's train set: per slice any 14.3 %,
# subdural 6.3, intraparenchymal 4.8, subarachnoid 4.7, intraventricular 3.5 and epidural 0.42.
CAUSES: dict[str, Cause] = {
    "hypertension": Cause(0.18, deep, ((0.55, intraventricular),)),
    "aneurysm": Cause(0.06, aneurysmal, ((0.50, intraventricular), (0.15, deep))),
    "fall": Cause(0.105, subdural, ((0.40, convexity), (0.40, contusion))),
    "old age": Cause(0.04, subdural),
    "blow": Cause(0.012, epidural, ((0.30, convexity), (0.25, subdural))),
    "concussion": Cause(0.04, convexity, ((0.4, contusion),)),
    "anticoagulant": Cause(0.02, intraventricular),
}
