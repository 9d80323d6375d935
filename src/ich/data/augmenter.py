"""Augmenting a sample, seeded for that sample alone, in any thread or process."""

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ich.data import user_code
from ich.errors import IchError


class Augmenter:
    """Augments an image, and its mask if it has one, the same way for the same seed.

    Args:
        augment: an albumentations transform or Compose, a function of an image and a `numpy.random.Generator`, or None.
    """

    def __init__(self, augment: Callable | None):
        self.augment = augment
        self._seeded = _SeededTransform(augment) if hasattr(augment, "set_random_state") else None

    def __call__(
        self, image: np.ndarray, label: np.ndarray | None, id: str, seed: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the augmented image, of two axes at least, and the label, augmented alike if it is a mask.

        Args:
            image: shape (height, width, channels).
            label: a mask if it has two axes or more, (height, width[, channels]).

        Raises:
            IchError: whatever `augment` raises, anything but an image from it, or a mask that it cannot augment.
        """
        if self.augment is None:
            return image, label
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


class _SeededTransform(threading.local):
    """An albumentations transform that is seeded for each call.

    A Compose holds the state of its random numbers: each thread has a copy, for which it calls this `__init__`.
    """

    def __init__(self, transform: Any):
        self.original, self.transform = transform, copy.deepcopy(transform)
        # Not set_random_seed: it gives each transform of a Compose the same random numbers, so that those of equal
        # probability would happen together or not at all, and takes four times as long.
        self.numpy, self.python = np.random.PCG64(0), random.Random()
        self.transform.set_random_state(np.random.Generator(self.numpy), self.python)
        self.state = self.numpy.state

    def __call__(self, image: np.ndarray, mask: np.ndarray | None, seed: int) -> tuple[Any, Any]:
        # The state itself, as a new generator costs more than all that is drawn from it.
        self.state["state"]["state"] = seed
        self.numpy.state = self.state
        self.python.seed(seed)
        if mask is None:
            return self.transform(image=image)["image"], None
        both = self.transform(image=image, mask=mask)
        return both["image"], both["mask"]

    def __reduce__(self):
        return type(self), (self.original,)
