"""Albumentations pipelines by name."""

import os
from collections.abc import Callable

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for a newer version

import albumentations as A
import cv2

from ich.errors import IchError


def _light(height: int, width: int) -> list[A.BasicTransform]:
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            rotate=(-15, 15), translate_percent=(-0.05, 0.05), scale=(0.95, 1.05), interpolation=cv2.INTER_LINEAR, p=0.8
        ),
    ]


def _heavy(height: int, width: int) -> list[A.BasicTransform]:
    """What the competition's best entries share: see the ranges in their published configs (1st to 5th place)."""
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            rotate=(-30, 30), translate_percent=(-0.1, 0.1), scale=(0.9, 1.1), interpolation=cv2.INTER_LINEAR, p=0.8
        ),
        A.RandomResizedCrop(size=(height, width), scale=(0.7, 1.0), ratio=(0.9, 1.1), p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=0.5),
    ]


PIPELINES: dict[str, Callable[[int, int], list[A.BasicTransform]]] = {
    "none": lambda height, width: [],
    "light": _light,
    "heavy": _heavy,
}


def pipeline(name: str, height: int, width: int) -> A.Compose | None:
    """The pipeline of that name for images of height × width pixels; None for `none`.

    It maps uint8 (height, width, channels), any number of channels, to the same shape and dtype. What it fills in
    beyond the image's edge is 0, below every window.

    Raises:
        IchError: there is no such pipeline; the message lists those that exist.
    """
    if name not in PIPELINES:
        raise IchError(f"no augmentation is called {name!r}; there are {', '.join(PIPELINES)}")
    transforms = PIPELINES[name](height, width)
    return A.Compose(transforms) if transforms else None
