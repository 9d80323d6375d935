"""Augmenting a sample, seeded for that sample alone, in any thread or process."""

import copy
import math
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ich.data import channels, user_code
from ich.errors import IchError

_LEAST_PIXELS = 64
"""Of an image that may have a flattened mask. Below, a label may have as many numbers by chance."""


class Augmenter:
    """Augments an image, and its mask if it has one, the same way for the same seed.

    Args:
        augment: an albumentations transform or Compose, a function of an image and a `numpy.random.Generator`, or None.
    """

    def __init__(self, augment: Callable | None):
        self.augment = augment
        self._seeded = _SeededTransform(augment) if hasattr(augment, "set_random_state") else None
        self._moves = self._seeded is None or _moves_pixels(augment)

    def __call__(
        self, image: channels.Image, label: np.ndarray | None, id: str, seed: int, numbers: int = 1
    ) -> tuple[channels.Image, np.ndarray | None]:
        """Return the augmented image, of two axes at least, and the label, augmented alike if it is a mask.

        Without `augment` both are returned as they are.

        Args:
            image: shape (height, width, channels).
            label: a mask if it has two axes or more, (height, width[, channels]); None if there is none, or it stands
                in a table.
            numbers: how many numbers the label in a table has.

        Raises:
            IchError: whatever `augment` raises, anything but an image from it, or a mask that it cannot augment, such
                as a flattened one.
        """
        if self.augment is None:
            return image, label
        self.check_label(image, label, id, numbers)
        image = channels.joined(image)
        mask = label if label is not None and label.ndim >= 2 else None
        if mask is not None and self._seeded is None:
            raise IchError(
                f"the labels of {id} are a mask of {mask.shape}, and augment is a function of the image alone; give an"
                " albumentations transform, which augments both alike"
            )
        if mask is not None and (image.ndim != 3 or mask.ndim > 3 or mask.shape[:2] != image.shape[:2]):
            raise IchError(
                f"the labels of {id} have the shape {mask.shape}, and its image of {image.shape} cannot be augmented"
                " with them: a mask has the height and width that the image has in the network; resize it, or leave"
                " augment out"
            )
        if self._seeded is None:
            given = user_code.call("augment", id, self.augment, image, np.random.default_rng(seed))
        else:
            given, mask = user_code.call("augment", id, self._seeded, image, mask, seed)
        augmented = user_code.as_image(given, "augment", id)
        if augmented.ndim == 2 and image.ndim == 3:  # OpenCV's functions drop an axis of one channel
            augmented = augmented[..., None]
        return augmented, label if mask is None else mask

    def check_label(self, image: channels.Image, label: np.ndarray | None, id: str, numbers: int = 1) -> None:
        """Refuse a label that may be a flattened mask, if pixels move; arguments as for a call.

        Raises:
            IchError: as said.
        """
        if label is not None:
            numbers = label.size if label.ndim == 1 else 1
        if numbers < _LEAST_PIXELS or not self._moves:
            return
        pixels = math.prod(image.shape[:-1])
        if pixels >= _LEAST_PIXELS and numbers % pixels == 0:
            raise IchError(
                f"the labels of {id} are {numbers:,} numbers, its image of {image.shape} has {pixels:,} pixels: a"
                " flattened mask would not be augmented with the image; have a function labels=… give it as"
                " (height, width[, classes]), and flatten it in the model; labels that are no mask need an"
                " augmentation in the model"
            )


def _moves_pixels(augment: Any) -> bool:
    """Whether a transform of albumentations, or a part of it, moves pixels and does not change their values alone."""
    if hasattr(augment, "transforms"):
        return any(map(_moves_pixels, augment.transforms))
    return "mask" in augment.targets


class Seeded(threading.local):
    """A copy of an albumentations transform for each thread, to be seeded for each sample.

    A Compose holds the state of its random numbers: each thread calls this `__init__`.
    """

    def __init__(self, transform: Any):
        self.original, self.transform = transform, copy.deepcopy(transform)
        # Not set_random_seed: it gives each transform of a Compose the same random numbers, so that those of equal
        # probability would happen together or not at all, and takes four times as long.
        self.numpy, self.python = np.random.PCG64(0), random.Random()
        self.transform.set_random_state(np.random.Generator(self.numpy), self.python)
        self.state = self.numpy.state

    def seed(self, seed: int) -> None:
        """Set the state of the copy's random numbers; `seed` has 128 bits."""
        # The state itself, as a new generator costs more than all that is drawn from it.
        self.state["state"]["state"] = seed
        self.numpy.state = self.state
        self.python.seed(seed)

    def __reduce__(self):
        return type(self), (self.original,)


class _SeededTransform(Seeded):
    """An albumentations transform that is seeded for each call."""

    def __init__(self, transform: Any):
        from ich.data import channel_groups  # only here: a generator without transforms needs no albumentations

        super().__init__(transform)
        self.transform = channel_groups.use_groups(self.transform)

    def __call__(self, image: np.ndarray, mask: np.ndarray | None, seed: int) -> tuple[Any, Any]:
        self.seed(seed)
        if mask is None:
            return self.transform(image=image)["image"], None
        both = self.transform(image=image, mask=mask)
        return both["image"], both["mask"]
