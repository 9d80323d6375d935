"""Paint the tissues of a phantom head on one slice plane, in HU; coordinates and distances are those of `head`."""

from dataclasses import dataclass

import numpy as np

from ich.synthetic.head import Head, Plane, ellipsoid, inner_table, sample, skull_base, step, tube

# Mean HU of the tissues at 120 kV, as in radiology's textbooks.
AIR, FAT, SKIN, MUSCLE, CSF, WHITE_MATTER, GRAY_MATTER, BLOOD_POOL = -1000, -90, 25, 55, 7, 28, 37, 52
CORTICAL_BONE, DIPLOE, CALCIFICATION = 1350, 650, 220

# Course of the left half of the ventricles and of the Sylvian fissure: x, y, z and radius in mm. The right is mirrored.
_LATERAL_VENTRICLE = (
    (12, -38, 35, 2.2), (9, -26, 39, 4.2), (5.5, -10, 43, 3.8), (8, 6, 51, 3.8),
    (15, 22, 48, 4.4), (22, 34, 40, 5.6), (20, 55, 34, 2.4),
)  # fmt: skip
_TEMPORAL_HORN = ((23, 34, 40, 4.5), (31, 18, 24, 2.0), (29, -2, 12, 1.4))
_SYLVIAN_FISSURE = ((9, -14, 13, 1.3), (33, -20, 18, 1.8), (42, -8, 27, 1.9), (46, 8, 36, 1.6), (48, 22, 44, 1.0))


@dataclass(frozen=True)
class Tissue:
    """A slice through the head without blood: HU before noise, and the fields that say where blood may go.

    All are float32 of one shape; distances are in mm, above 0 inside.
    """

    hu: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    depth: np.ndarray  # below the inner table
    csf: np.ndarray  # distance into sulci, fissures and cisterns
    ventricle: np.ndarray  # distance into the ventricles
    grain: np.ndarray  # noise, unit variance, waves of about 20 mm
    edge: float  # width of a border, mm


def render(head: Head, plane: Plane, shape: tuple[int, int], shift: tuple | None = None) -> Tissue:
    """The tissues of a slice, on a raster of `shape` (rows, columns).

    Args:
        shift: what a bleed pushes aside: its center (mm) and how far it moves the brain across the midline (mm).
    """
    x, y, z = plane.points(*shape)
    wx, wy, wz, folds, grain = sample([*head.warp, head.sulci, head.grain], plane, shape)
    edge = max(1.1, 1.3 * float(np.linalg.norm(plane.along_rows)) / shape[1])

    vault = inner_table(head, x + 1.2 * wx, y + 1.2 * wy, z) + 0.25 * grain
    base = z - skull_base(x + wx, y + wy) + 0.6 * grain
    depth = np.minimum(vault, np.float32(0.75) * base)

    hu = np.full(shape, AIR, np.float32)
    _paint_outside(head, hu, (x, y, z), vault, base, (wx, grain, folds), edge)
    _paint_bone(head, hu, (x, y, z), vault, depth, (wx, grain), edge)

    # Brain coordinates bend with the noise and with what a bleed pushes aside; the skull's do not.
    bx, by, bz = x + 1.6 * wx, y + 2.0 * wy, z + 1.5 * wz
    if shift is not None:
        (cx, cy, cz), push = shift
        near = np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / np.float32(2 * 40**2))
        bx = bx + np.float32(np.sign(cx) * push) * near * step(vault, 40)
    csf, ventricle = _paint_brain(head, hu, (x, y, z), (bx, by, bz), depth, vault, (folds, wy), edge)
    return Tissue(hu, bx, by, bz, depth, csf, ventricle, grain, edge)


def _paint_outside(
    head: Head, hu: np.ndarray, p: tuple, vault: np.ndarray, base: np.ndarray, noise: tuple, edge: float
) -> None:
    """Scalp, face and neck: what lies outside the cranial cavity."""
    x, y, z = p
    wx, grain, folds = noise
    ax = np.abs(x)
    low = step(20 - z, 30)
    muscle_bulk = 9 * low * step(y + 55, 30)  # temporal and neck muscles keep the head wide where the skull narrows
    skin = vault + np.float32(head.skull + head.scalp) + muscle_bulk
    nose = ellipsoid(p, (0, -head.half_length + 1, -24), (12, 15, 22))
    skin = np.maximum(skin, nose)
    _paint(hu, step(skin, edge), SKIN)
    _paint(hu, step(skin - 2.2, edge), FAT)
    temporal = ellipsoid((ax, y, z), (head.half_width + 2, -28, -5), (16, 42, 46))
    muscle = np.maximum(np.minimum(temporal, skin - 3.5 - wx), np.minimum(skin - 5 - wx, np.minimum(12 - z, y - 10)))
    _paint(hu, step(muscle + grain, 2 * edge) * (0.8 + 0.2 * step(np.abs(folds) * 9 - 0.6, 2)), MUSCLE)
    _paint(hu, step(nose - 2, edge), 20)
    if float(z.min()) > 22:
        return
    # Deep to the outer shell and under the fossae's floor: fat, muscle and the air of the sinuses between thin bones.
    under = step(-base - 3.0, 3.0) * step(vault + 6, 3)
    _paint(hu, under * (0.8 + 0.2 * step(np.abs(folds) * 9 - 1.0, 2)), MUSCLE)
    face = step(-base, 3.0) * step(skin - 4, 3) * step(-y - 5 - 0.3 * ax, 6)
    walls = np.abs(folds) * 4 + np.abs(grain) * 2 - 1.0
    for center, radii, cells in (
        ((0, -58, -6), (15, 30, 22), 1.0),  # ethmoid and nasal cavity
        ((0, -20, -8), (14, 13, 11), 0.3),  # sphenoid sinus
        ((29, -60, -34), (15, 17, 15), 0.0),  # maxillary sinuses
        ((12, 3.5 - head.half_length, 15), (11, 5.5, 9), 0.2),  # frontal sinuses
    ):
        cavity = ellipsoid((ax, y, z), center, radii)
        _paint(hu, face * step(cavity + 3.0, edge), 900)
        air = np.minimum(cavity, walls) if cells == 1.0 else cavity + cells * grain
        _paint(hu, face * step(air, edge), AIR)
    orbit = ellipsoid((ax, y, z), (30, -59, -4), (19, 27, 18))
    _paint(hu, face * step(np.minimum(orbit + 2.5, y + head.half_length - 12), edge), 1000)
    _paint(hu, face * step(orbit, edge), FAT)
    globe = ellipsoid((ax, y, z), (31, -head.half_length + 13, -4), (12, 12.5, 12))
    rectus = np.minimum(1.8 - np.abs(np.abs(ax - 30 + 0.1 * (y + 60)) - 11.5 - 0.16 * (y + 60)), orbit)
    nerve = np.minimum(1.9 - np.abs(ax - 23 + 0.25 * (y + 60)), 8 - np.abs(z + 4))
    _paint(hu, face * step(np.minimum(np.maximum(rectus, nerve), np.minimum(orbit, -y - 40)), edge), 45)
    _paint(hu, step(skin, edge) * step(globe + 1.2, edge), 55)
    _paint(hu, step(skin, edge) * step(globe - 0.8, edge), 12)
    _paint(hu, step(ellipsoid((ax, y, z), (31, -head.half_length + 4.5, -4), (5, 2.4, 5)), edge), 80)
    ear = ellipsoid((ax, y, z), (head.half_width * 0.72, 24, -10), (26, 4.5, 5))
    _paint(hu, step(ear, edge), AIR)


def _paint_bone(
    head: Head, hu: np.ndarray, p: tuple, vault: np.ndarray, depth: np.ndarray, noise: tuple, edge: float
) -> None:
    x, y, z = p
    wx, grain = noise
    thickness = np.float32(head.skull) * (1 + 0.12 * wx) + 0.12 * np.maximum(y - 40, 0) * step(vault + 20, 20)
    thickness = thickness * (0.55 + 0.45 * step(depth - vault + 4, 8))  # the base is thinner than the vault
    bone = np.minimum(-depth, depth + thickness)
    middle = np.abs(depth / thickness + np.float32(0.5))
    marrow = DIPLOE + (CORTICAL_BONE - DIPLOE) * step(middle - 0.22, 0.2)
    _paint(hu, step(bone, edge), marrow)
    if float(z.min()) < 15:  # mastoid air cells and the dense petrous bone
        ax = np.abs(x)
        petrous = ellipsoid((ax, y, z), (36, 28, -6), (26, 15, 13)) + 1.5 * grain
        outside = step(-depth, edge)
        _paint(hu, outside * step(petrous, edge), CORTICAL_BONE)
        cells = np.minimum(ellipsoid((ax, y, z), (54, 36, -6), (10, 13, 14)), 3 * np.abs(grain) - 1.6)
        _paint(hu, outside * step(cells, edge), -700)


def _paint_brain(
    head: Head, hu: np.ndarray, still: tuple, p: tuple, depth: np.ndarray, vault: np.ndarray, noise: tuple, edge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Brain, CSF and falx, painted into `hu`; returns the distances into the CSF outside and inside the ventricles."""
    x, y, z = p
    folds, wander = noise
    ax = np.abs(x)
    mirrored = (ax, y, z)
    cavity = step(depth, edge)

    # The tentorium's tent: below it and behind the petrous ridge lie cerebellum and brain stem.
    tent = 30 - 0.42 * ax - 0.30 * np.abs(y - 28)
    infratentorial = np.minimum(tent - z, y - 2 - 0.55 * ax + 4)
    hind = step(infratentorial, 3.0)

    # Sulci are where a noise field crosses zero: winding lines of even width, widest at the surface.
    spacing = float(np.linalg.norm([still[0][0, -1] - still[0][0, 0], still[1][0, -1] - still[1][0, 0]])) / (
        x.shape[1] - 1
    )
    gy, gx = np.gradient(folds)
    slope = np.sqrt(gx * gx + gy * gy) / np.float32(spacing)
    to_sulcus = np.abs(folds) / (slope + np.float32(0.08))
    gap = 0.4 + 2.0 * head.atrophy
    width = (0.25 + 1.25 * head.atrophy) * (1 + 0.45 * wander) - 0.5 * step(12 - z, 20)
    inward = (vault - gap) / (11 + 8 * head.atrophy + 4 * wander)
    opening = width * np.clip(1.15 - inward, 0, 1) - 4 * np.maximum(inward - 1.15, 0)
    sulcus = opening - to_sulcus - 4 * hind

    fissure = 0.7 + 1.3 * head.atrophy * np.clip(1.2 - vault / 26, 0, 1) - ax
    fissure = np.minimum(fissure, np.minimum(27 - vault, np.where(y < 0, z - 16, z - 27)))
    ring = np.hypot(x, y - 11)
    cisterns = (
        tube(mirrored, _SYLVIAN_FISSURE, 0.55 + 1.0 * head.atrophy),
        ellipsoid(mirrored, (0, -11, 12), (12, 9, 6)) + 1.0 * folds,
        np.minimum(
            np.minimum(0.6 + 0.9 * head.atrophy + 0.4 * wander - np.abs(ring - 17.5), y - 6), 9 - np.abs(z - 18)
        ),
        ellipsoid(mirrored, (0, 30, 25), (8, 4.5, 7)),
        ellipsoid(mirrored, (0, 3, -5), (13, 3.2, 13)),
        ellipsoid(mirrored, (0, 64, -19), (13, 5 + 3 * head.atrophy, 9)),
    )
    outer = np.maximum.reduce([sulcus, fissure, gap - depth, *cisterns])

    v = head.ventricles
    squeezed = (ax * np.float32(1.15), y, z)
    third = ellipsoid(mirrored, (0, -1, 25), (2.3 * v, 14, 11))
    lateral = np.maximum(tube(squeezed, _LATERAL_VENTRICLE, v), tube(squeezed, _TEMPORAL_HORN, v))
    lateral = np.minimum(lateral, ax - 0.9)  # the septum between the two
    fourth = ellipsoid(mirrored, (0, 37, -3), (7.5 * v, 5 * v, 10)) - 0.08 * ax * ax * (y < 36)
    inner = np.maximum(np.maximum(lateral, third), fourth)

    gray = np.maximum.reduce([
        3.6 - (depth - gap),
        np.minimum(opening + 3.0 - to_sulcus, 24 - vault) - 4 * hind,
        ellipsoid(mirrored, (24, -8, 36), (6.5, 16, 12)),  # lentiform nucleus
        ellipsoid(mirrored, (11.5, 8, 37), (8.5, 14, 10)),  # thalamus
        np.minimum(tube(squeezed, ((17, -30, 39, 4.5), (13.5, -12, 45, 3.8), (15, 4, 53, 2.5))), -lateral),  # caudate
        3 - np.abs(ellipsoid(mirrored, (40, -2, 32), (9, 22, 18))) - 0.8,  # insular cortex
    ])  # fmt: skip
    tissue = WHITE_MATTER + (GRAY_MATTER - WHITE_MATTER) * step(gray, 3.0)
    tissue += hind * (34 + 1.5 * np.sin(folds * 3 + z) - tissue)
    tissue += 7 * np.exp(-np.maximum(depth, 0) / 4)  # beam hardening under the skull
    _paint(hu, cavity, tissue)

    _paint(hu, cavity * step(outer, edge), CSF + 3)
    _paint(hu, cavity * step(inner, edge), CSF)

    # The falx and the sinus at its rim do not move with the brain.
    fx, fy, fz = still
    falx = np.minimum(
        0.55 - np.abs(fx), np.minimum(np.where(fy < 0, 24, 34) - vault, np.where(fy < 0, fz - 18, fz - 24))
    )
    _paint(hu, cavity * step(falx, edge), BLOOD_POOL)
    rim = np.minimum(4.2 - vault - 0.9 * np.abs(fx), np.where(fy > 0, fz - 6, fz - 60))
    _paint(hu, cavity * step(rim, edge), BLOOD_POOL)
    _paint(hu, 0.7 * cavity * step(np.minimum(0.6 - np.abs(tent - z) * 0.35, y - 10), 2 * edge), BLOOD_POOL - 5)

    pineal, plexus, plaque = head.calcified
    for present, spot in (
        (pineal, lambda: ellipsoid(mirrored, (0, 22, 29), (2.6, 2.8, 3.2))),
        (plexus, lambda: ellipsoid(mirrored, (22 / 1.15, 36, 40), (2.4, 4.0, 4.0))),
        (plaque, lambda: ellipsoid((fx, fy, fz), (0.8, -45, 70), (1.8, 7, 5))),
    ):
        if present:
            _paint(hu, cavity * step(spot(), edge), CALCIFICATION)
    return outer, inner


def _paint(hu: np.ndarray, share: np.ndarray, value: np.ndarray | float) -> None:
    hu += share * (value - hu)
