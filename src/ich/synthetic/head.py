"""A phantom head's measures and noise, and analytic distances to its structures on a slice plane.

Head coordinates are millimeters: x to the patient's left, y to the back, z to the vertex; the origin lies in the middle
of the cranial cavity at the level of the orbitomeatal line. Distances are positive inside a structure, and only
approximate: good to a fraction of a millimeter at a border, which is where they count.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
from scipy import ndimage

WIDEST_Z = 35.0  # the level, in mm, where the cranial cavity is widest
LOWEST_Z = -30.0  # the foramen magnum, below which no scan of ours reaches

_VOXEL = 4.0  # mm between samples of a noise volume; the shortest wave in it is about 18 mm
_NOISE_ORIGIN = np.array([-111.0, -126.0, -60.0])
_NOISE_SHAPE = (56, 64, 48)


@dataclass(frozen=True)
class Head:
    """One patient's anatomy. Lengths in mm; `atrophy` runs from 0 (young, tight sulci) to 1 (old, wide ones)."""

    half_width: float
    half_length: float
    height: float  # from the widest level to the inner table at the vertex
    skull: float
    scalp: float
    atrophy: float
    ventricles: float  # factor on their radii
    calcified: tuple[bool, ...]  # pineal gland, choroid plexus, falx
    sulci: np.ndarray  # noise volumes, float32, unit variance
    warp: np.ndarray
    grain: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, *, noise: bool = True) -> "Head":
        """Draw a patient; without `noise` volumes, enough to place a bleed, not to render."""
        atrophy = rng.uniform(0, 1)
        scale = rng.normal(1, 0.035)
        nothing = np.empty(0, np.float32)
        head = cls(
            half_width=scale * rng.normal(68, 2.0),
            half_length=scale * rng.normal(84, 2.0),
            height=scale * rng.normal(61, 2.0),
            skull=rng.uniform(4.5, 7.5),
            scalp=rng.uniform(4, 8),
            atrophy=atrophy,
            ventricles=0.95 + 0.6 * atrophy + rng.uniform(-0.1, 0.15),
            calcified=tuple((rng.random(3) < (0.6, 0.5, 0.25)).tolist()),
            sulci=nothing,
            warp=nothing,
            grain=nothing,
        )
        if not noise:
            return head
        white = rng.standard_normal((5, *_NOISE_SHAPE), dtype=np.float32)
        warp = np.stack([_band(volume, 14.0, None) for volume in white[1:4]])
        return replace(head, sulci=_band(white[0], 4.2, 8.0), warp=warp, grain=_band(white[4], 4.0, 9.0))


def _band(white: np.ndarray, fine: float, coarse: float | None) -> np.ndarray:
    """White noise between two Gaussian scales in mm, scaled to unit variance; no lower bound if `coarse` is None."""
    noise = ndimage.gaussian_filter(white, fine / _VOXEL, mode="wrap", truncate=3)
    if coarse is not None:
        noise -= ndimage.gaussian_filter(white, coarse / _VOXEL, mode="wrap", truncate=3)
    return noise / noise.std()


@dataclass(frozen=True)
class Plane:
    """Where a slice lies in head coordinates: the outer corner of its first pixel and its two full edges, in mm."""

    corner: np.ndarray
    along_rows: np.ndarray  # from the first to past the last column
    along_columns: np.ndarray  # from the first to past the last row

    def points(self, rows: int, columns: int) -> np.ndarray:
        """Head coordinates of the pixel centers of a rows x columns raster: float32, shape (3, rows, columns)."""
        right = ((np.arange(columns, dtype=np.float32) + 0.5) / columns)[None, None, :]
        down = ((np.arange(rows, dtype=np.float32) + 0.5) / rows)[None, :, None]
        corner, u, v = (
            np.asarray(a, np.float32)[:, None, None] for a in (self.corner, self.along_rows, self.along_columns)
        )
        return corner + u * right + v * down


def step(distance: np.ndarray, edge: float) -> np.ndarray:
    """The share of a pixel inside, from the distance to the border in mm: a ramp `edge` mm wide."""
    share = distance * np.float32(1 / edge)
    share += np.float32(0.5)
    return np.clip(share, 0, 1, out=share)


def ellipsoid(p: tuple, center: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """Distance to an ellipsoid's surface, scaled by its smallest radius."""
    q = sum(((a - c) / r) ** 2 for a, c, r in zip(p, map(np.float32, center), map(np.float32, radii), strict=True))
    return (1 - np.sqrt(q)) * np.float32(min(radii))


def tube(p: tuple, course: tuple, widen: float = 1.0) -> np.ndarray:
    """Distance to a chain of round cones; those that pass far above or below the slice are left out."""
    x, y, z = p
    low, high = float(z.min()), float(z.max())
    nearest = np.full(x.shape, -50, np.float32)
    for start, end in pairwise(course):
        if min(start[2], end[2]) - 12 > high or max(start[2], end[2]) + 12 < low:
            continue
        a, b = np.asarray(start[:3], np.float32), np.asarray(end[:3], np.float32)
        axis = b - a
        dx, dy, dz = x - a[0], y - a[1], z - a[2]
        t = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / np.float32(axis @ axis), 0, 1)
        away = np.sqrt((dx - t * axis[0]) ** 2 + (dy - t * axis[1]) ** 2 + (dz - t * axis[2]) ** 2)
        radius = np.float32(start[3] * widen) + t * np.float32((end[3] - start[3]) * widen)
        np.maximum(nearest, radius - away, out=nearest)
    return nearest


def sample(volumes: Iterable[np.ndarray], plane: Plane, shape: tuple[int, int]) -> list[np.ndarray]:
    """Noise volumes on a slice. They hold no short waves, so a 3 mm raster is sampled and enlarged."""
    rows, columns = (min(n, max(8, round(np.linalg.norm(e) / 3))) for n, e in
                     zip(shape, (plane.along_columns, plane.along_rows), strict=True))  # fmt: skip
    points = plane.points(rows, columns)
    index = (points - _NOISE_ORIGIN[:, None, None].astype(np.float32)) / np.float32(_VOXEL)
    small = (ndimage.map_coordinates(v, index, order=1, mode="grid-wrap", output=np.float32) for v in volumes)
    return [cv2.resize(s, shape[::-1], interpolation=cv2.INTER_CUBIC) for s in small]


def inner_table(head: Head, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Distance below the inner table of the vault, measured along the ray from the middle of the head."""
    v = y / np.float32(head.half_length)
    u = x / (np.float32(head.half_width) * (1 + np.float32(0.13) * v - np.float32(0.07) * v * v))
    narrowing = 1 - np.float32(0.20) * np.clip((30 - z) / 60, 0, 1.2)
    up = np.maximum(z - np.float32(WIDEST_Z), 0)
    around = (np.abs(u) ** np.float32(2.3) + np.abs(v) ** np.float32(2.3)) ** np.float32(2.2 / 2.3)
    share = (around / narrowing ** np.float32(2.2) + (up / np.float32(head.height)) ** np.float32(2.2)) ** np.float32(
        1 / 2.2
    )
    return np.sqrt(x * x + y * y + up * up) * (1 / np.maximum(share, np.float32(0.03)) - 1)


def skull_base(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Height z of the floor of the three cranial fossae."""
    ax = np.abs(x)
    wing = y + np.float32(14) + np.float32(0.45) * ax  # below 0: in front of the sphenoid's wing
    petrous = y - np.float32(3) - np.float32(0.68) * ax  # above 0: behind the petrous ridge
    orbit = np.exp(-((ax - 31) ** 2 + (y + 58) ** 2) / np.float32(450))
    front = 2 + 18 * orbit
    middle = -17 + 10 * (((ax - 38) / 17) ** 2 + ((y + 6) / 26) ** 2)
    sella = 7 - 9 * step(ax - 15, 6)
    middle = np.maximum(np.clip(middle, -17, 6), sella)
    back = -36 + 26 * ((ax / 50) ** 2 + ((y - 33) / 46) ** 2)
    ridge = 7 - 1.3 * np.maximum(np.abs(petrous) * np.float32(0.83) - 3, 0) - 0.8 * np.maximum(20 - ax, 0)
    floor = middle + step(-wing, 5) * (front - middle)
    floor = floor + step(petrous, 5) * (back - floor)
    floor = np.maximum(floor, np.where(ax < 62, ridge, -30))
    canal = step(15 - np.hypot(x, y - 30), 4)
    return floor - 40 * canal * (floor < -20)
