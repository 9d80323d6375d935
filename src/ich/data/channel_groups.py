"""Hands albumentations an image's channels in groups of four, where that gives the same pixels in less time.

OpenCV's functions take four channels at most. To an image with more, albumentations applies them in slices of four
channels, which OpenCV copies first, and joins the results by `np.dstack`, in each transform: at nine channels that is
most of the time of a warp. Here the image is split once before several transforms and joined once behind them.
"""

import itertools
from typing import Any

import albumentations as A
import cv2
import numpy as np

from ich.data import channels, user_code

_GROUP = 4  # channels of a group
_LEAST_PIXELS = 10_000  # in images with fewer, the calls for more groups take what is saved

SLOW: tuple[type[A.BasicTransform], ...] = (
    A.Affine,
    A.Blur,
    A.CropAndPad,
    A.ElasticTransform,
    A.GaussianBlur,
    A.GridDistortion,
    A.LongestMaxSize,
    A.MedianBlur,
    A.MotionBlur,
    A.OpticalDistortion,
    A.Pad,
    A.PadIfNeeded,
    A.Perspective,
    A.RandomResizedCrop,
    A.RandomScale,
    A.RandomSizedCrop,
    A.Resize,
    A.Rotate,
    A.SafeRotate,
    A.ShiftScaleRotate,
    A.SmallestMaxSize,
)
"""Transforms of each channel by itself that are faster with groups, the time to split and to join included."""

FAST: tuple[type[A.BasicTransform], ...] = (
    A.CenterCrop,
    A.CoarseDropout,
    A.Crop,
    A.D4,
    A.GridDropout,
    A.HorizontalFlip,
    A.InvertImg,
    A.NoOp,
    A.RandomBrightnessContrast,
    A.RandomCrop,
    A.RandomCropFromBorders,
    A.RandomGamma,
    A.RandomRotate90,
    A.Transpose,
    A.VerticalFlip,
)
"""Transforms of each channel by itself that are not: they get groups only beside one that is."""

_CONTAINERS = (A.Compose, A.OneOf, A.OneOrOther, A.RandomOrder, A.Sequential, A.SomeOf)


def use_groups(transform: Any) -> Any:
    """Return a transform of albumentations that does the same by groups of channels, where that is known to be so.

    A Compose is changed in place: of its transforms, those in a row that work on each channel by itself get groups,
    all with the same random numbers. All other transforms, those of users among them, get the whole image.

    Args:
        transform: with its random state set.
    """
    if type(transform) is not A.Compose:
        return _Groups([transform]) if _is_separable(transform) and _is_slow(transform) else transform
    if transform.processors or transform.save_applied_params:  # these look at the image after each transform
        return transform
    inner: list[Any] = []
    for separable, in_a_row in itertools.groupby(transform.transforms, _is_separable):
        together = list(in_a_row)
        inner += [_Groups(together)] if separable and any(map(_is_slow, together)) else together
    transform.transforms = inner
    return transform


def _is_separable(transform: Any) -> bool:
    """Return whether a transform works on each channel by itself, and the same way on each."""
    if type(transform) in _CONTAINERS:
        return all(map(_is_separable, transform.transforms))
    if type(transform) not in SLOW + FAST or user_code.has_user_code(transform):
        return False
    fill = getattr(transform, "fill", 0)  # a color, or a name of what draws one
    return isinstance(fill, (int, float)) and getattr(transform, "brightness_by_max", True)  # else by the image's mean


def _is_slow(transform: Any) -> bool:
    return type(transform) in SLOW or any(map(_is_slow, getattr(transform, "transforms", ())))


class _Groups:
    """Transforms that are called one after the other, as by a Compose, with an image's channels in groups."""

    def __init__(self, transforms: list[Any]):
        self.transforms = transforms
        self.names = ["image"]  # of the groups; to albumentations all are images of one draw

    def __call__(self, **data: Any) -> dict[str, Any]:
        image = data["image"]
        in_groups = (
            image.ndim == 3
            and image.dtype == np.uint8
            and _GROUP < image.shape[2] <= channels.MOST
            and image.shape[0] * image.shape[1] >= _LEAST_PIXELS
        )
        if in_groups:
            groups = _split(image)
            for number in range(len(self.names), len(groups)):
                self.names.append(f"image, group {number}")
                for transform in self.transforms:
                    transform.add_targets({self.names[number]: "image"})
            data |= zip(self.names, groups, strict=False)
        for transform in self.transforms:
            data = transform(**data)
        if in_groups:
            data["image"] = _join([data.pop(name) for name in self.names[: len(groups)]], image.shape[2])
        return data


def _split(image: np.ndarray) -> list[np.ndarray]:
    """Split an image (height, width, channels) as albumentations does; an odd pair of channels is two groups.

    OpenCV's functions may give another gray level for another number of channels.
    """
    count = image.shape[2]
    rest = count % _GROUP
    sizes = [_GROUP] * (count // _GROUP) + ([1, 1] if rest == 2 else [rest] if rest else [])
    groups = [np.empty((*image.shape[:2], size), image.dtype) for size in sizes]
    cv2.mixChannels([image], groups, _same_places(count))
    return groups


def _join(groups: list[np.ndarray], count: int) -> np.ndarray:
    joined = np.empty((*groups[0].shape[:2], count), groups[0].dtype)
    cv2.mixChannels(groups, [joined], _same_places(count))  # a fifth of the time of np.dstack
    return joined


def _same_places(count: int) -> list[int]:
    return [place for channel in range(count) for place in (channel, channel)]
