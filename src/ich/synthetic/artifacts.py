"""What a scanner makes of a slice of its own accord: beam hardening at the skull base, and a moving patient."""

from dataclasses import dataclass

import cv2
import numpy as np

from ich.synthetic.head import Plane

_BASE = 14.0  # mm above or below the petrous bones within which they harden the beam


@dataclass(frozen=True, slots=True)
class Motion:
    """A movement while one slice is taken: to the right and down in mm, and a rotation in degrees."""

    right: float
    down: float
    rotation: float


def harden(hu: np.ndarray, plane: Plane, strength: float, rng: np.random.Generator) -> None:
    """Add dark and bright bars between the petrous bones, and streaks of each slice's own: changes `hu`.

    Args:
        hu: float32, shape (rows, columns).
        strength: HU of the bars.
    """
    x, y, z = plane.points(*hu.shape)
    if float(np.abs(z).min()) > 2.5 * _BASE:
        return
    near = np.exp(-((z / np.float32(_BASE)) ** 2)) * np.clip((np.float32(58) - np.abs(x)) / 15, 0, 1)
    bars = -0.6 * np.exp(-(((y - 18) / 9) ** 2))
    for _ in range(6):
        middle, width, slope, height = rng.uniform(-25, 50), rng.uniform(1.5, 4), rng.normal(0, 0.15), rng.normal()
        bars += height * np.exp(-(((y - middle - slope * x) / np.float32(width)) ** 2))
    soft = (hu > -60) & (hu < 150)
    hu += np.where(soft, np.float32(strength) * near * bars, 0)


def move(hu: np.ndarray, motion: Motion, spacing: float) -> np.ndarray:
    """Return the mean of a slice before and after a movement: edges double, and bone smears over the brain."""
    rows, columns = hu.shape
    matrix = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), motion.rotation, 1.0)
    matrix = matrix + np.array([[0, 0, motion.right], [0, 0, motion.down]]) / spacing
    moved = cv2.warpAffine(hu, matrix, (columns, rows), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.float32(0.6) * hu + np.float32(0.4) * moved


def draw_motion(rng: np.random.Generator) -> Motion:
    return Motion(float(rng.normal(0, 2)), float(rng.normal(0, 2)), float(rng.normal(0, 2.5)))
