"""Albumentations pipelines by name: to train with, and the passes of test-time augmentation (TTA)."""

import os
from collections.abc import Callable, Sequence

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for a newer version

import albumentations as A
import cv2

from ich.errors import IchError

_CROP = 0.9  # of a side, within the 0.7 to 1 of the area that training crops to


def _light(height: int, width: int) -> list[A.BasicTransform]:
    shift, scale = (-0.05, 0.05), (0.95, 1.05)
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(rotate=(-15, 15), translate_percent=shift, scale=scale, interpolation=cv2.INTER_LINEAR, p=0.8),
    ]


def _heavy(height: int, width: int) -> list[A.BasicTransform]:
    """What the published configs of the competition's 1st to 5th place share."""
    shift, scale = (-0.1, 0.1), (0.9, 1.1)
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(rotate=(-30, 30), translate_percent=shift, scale=scale, interpolation=cv2.INTER_LINEAR, p=0.8),
        A.RandomResizedCrop(size=(height, width), scale=(0.7, 1.0), ratio=(0.9, 1.1), p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=0.5),
    ]


PIPELINES: dict[str, Callable[[int, int], list[A.BasicTransform]]] = {
    "none": lambda height, width: [],
    "light": _light,
    "heavy": _heavy,
}


def pipeline(name: str, height: int, width: int) -> A.Compose | None:
    """Return the pipeline of a name for images of height × width pixels; None for `none`.

    It maps uint8 (height, width, channels), any number of channels, to the same shape and dtype, and fills what lies
    beyond the image's edge with 0, below every window.

    Raises:
        IchError: there is no such pipeline; the message lists those that exist.
    """
    if name not in PIPELINES:
        raise IchError(f"no augmentation is called {name!r}; there are {', '.join(PIPELINES)}")
    transforms = PIPELINES[name](height, width)
    return A.Compose(transforms) if transforms else None


def _crop(down: float, right: float) -> Callable[[int, int], A.BasicTransform]:
    """Crop from 0, the upper or left edge, to 1, the lower or right, and scale back to the image's size."""

    def build(height: int, width: int) -> A.BasicTransform:
        rows, columns = max(1, round(_CROP * height)), max(1, round(_CROP * width))
        top, left = round(down * (height - rows)), round(right * (width - columns))
        return A.Compose([A.Crop(left, top, left + columns, top + rows), A.Resize(height, width)])

    return build


def _rotation(degrees: float) -> Callable[[int, int], A.BasicTransform]:
    """Rotate counter-clockwise."""
    return lambda height, width: A.Affine(rotate=(degrees, degrees), interpolation=cv2.INTER_LINEAR, p=1)


PASSES: dict[str, Callable[[int, int], A.BasicTransform | None]] = {
    "none": lambda height, width: None,
    "flip": lambda height, width: A.HorizontalFlip(p=1),
    "crop": _crop(0.5, 0.5),
    "crop_top_left": _crop(0, 0),
    "crop_top_right": _crop(0, 1),
    "crop_bottom_left": _crop(1, 0),
    "crop_bottom_right": _crop(1, 1),
    "rotate_left": _rotation(10),
    "rotate_right": _rotation(-10),
}
"""The transforms of TTA passes, for images of height × width pixels. Nothing in them is random."""


def passes(names: Sequence[str], height: int, width: int) -> list[A.BasicTransform | None]:
    """Return the TTA passes of these names, for `DataGenerator(tta=…)`.

    Each maps uint8 (height, width, channels), any number of channels, to the same shape and dtype.

    Raises:
        IchError: there is no such pass (the message lists those that exist), or one is named twice.
    """
    for place, name in enumerate(names):
        if name not in PASSES:
            raise IchError(f"no TTA pass is called {name!r}; there are {', '.join(PASSES)}")
        if name in names[:place]:
            raise IchError(f"the pass {name!r} stands twice in {', '.join(names)}; each counts once in the mean")
    return [PASSES[name](height, width) for name in names]
