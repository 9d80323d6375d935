"""How sharp a reconstruction kernel is: by its name where the vendor's naming is known, else by the noise of slices.

Sources of the names: the vendors' DICOM conformance statements, and headers of public collections.
"""

import re
from collections.abc import Sequence

import cv2
import numpy as np

SHARP = 50
"""Sharpness from which a kernel is one for bone or lung: its noise hides what the model looks for."""

NOISIER = 1.25
"""Times the noise of another series that make a kernel a sharper one: of two equal ones, chance makes less."""

# Siemens: a letter for the region of the body, or two, and a number that grows with the sharpness: H31s, J70h, Hr40.
_SIEMENS = re.compile(r"[ABCDHIJQSTUV][A-Z]?(\d\d)[A-Z]?")
# Toshiba and Canon: FC and two digits; 20 to 29 are for heads, 30 to 39 and 80 to 89 for bone, 50 to 59 for lungs.
_CANON = re.compile(r"FC(\d)(\d)\b.*")
_CANON_TENS = {0: 30, 1: 30, 2: 30, 3: 60, 4: 30, 5: 60, 6: 30, 8: 70}
# GE writes words, some with HD or a plus for a variant of them.
_GE = {"SOFT": 30, "STANDARD": 40, "STND": 40, "DETAIL": 45, "CHST": 50, "CHEST": 50, "LUNG": 60, "BONE": 65}
_GE |= {"BONEPLUS": 70, "BONE+": 70, "EDGE": 75, "ULTRA": 80}
# Philips: letters, after U for heads and Y for bone and lung in high resolution.
_PHILIPS = {"A": 30, "B": 35, "C": 45, "D": 55, "E": 60, "F": 65, "L": 60}
_PHILIPS |= {"UA": 25, "UB": 30, "UC": 35, "UD": 40, "YA": 55, "YB": 60, "YC": 65, "YD": 70, "YE": 75}
# Words that mean the same in the names of whomever.
_WORDS = {"SMOOTH": 25, "BRAIN": 35, "SHARP": 65, "BONE": 65, "LUNG": 60, "SOFT": 30, "STANDARD": 40}

_BRAIN = (0, 80)  # HU of brain, blood and fluid
_LEAST = 100  # pixels of brain, without which there is no measure


def sharpness(kernel: str) -> float | None:
    """How sharp a ConvolutionKernel is by its name, from 0 to 100; `SHARP` and more are kernels for bone and lung.

    Of one vendor the numbers order the kernels; those of two vendors differ by more than their order says, but the
    series of a study come from one scanner.

    Args:
        kernel: all values of the element, separated by a space; the first is the kernel, others are settings.

    Returns:
        None where the naming is not known.
    """
    words = kernel.upper().replace("_", " ").split()
    name = next((word for word in words if word not in ("HD", "ND")), "")
    if siemens := _SIEMENS.fullmatch(name):
        return float(siemens[1])
    if canon := _CANON.fullmatch(name):
        tens, units = int(canon[1]), int(canon[2])
        return float(_CANON_TENS[tens] + units) if tens in _CANON_TENS else None
    for names in (_GE, _PHILIPS):
        if name in names:
            return float(names[name])
    return next((float(level) for word, level in _WORDS.items() if word in kernel.upper()), None)


def noise(slices: Sequence[np.ndarray]) -> float:
    """Measure the noise of brain in some slices: a sharp kernel multiplies it.

    Args:
        slices: HU, int16, of one series.

    Returns:
        HU: the median over the slices of the standard deviation of what a blur of 5 × 5 pixels takes away, estimated
        from the median of its absolute values; NaN where no slice shows brain.
    """
    deviations = []
    for hu in slices:
        hu = hu.astype(np.float32)
        # By a blurred image, as noise of a sharp kernel leaves the range that brain has.
        blurred = cv2.GaussianBlur(hu, (0, 0), 2)
        brain = ((blurred > _BRAIN[0]) & (blurred < _BRAIN[1])).astype(np.uint8)
        inner = cv2.erode(brain, np.ones((5, 5), np.uint8)).astype(bool)  # edges are no noise
        if np.count_nonzero(inner) >= _LEAST:
            rest = (hu - cv2.blur(hu, (5, 5)))[inner]
            deviations.append(1.4826 * float(np.median(np.abs(rest))))
    return float(np.median(deviations)) if deviations else float("nan")
