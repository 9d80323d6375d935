"""Images whose channels come from several files, put together where they are to lie: in a batch, or in one array."""

import cv2
import numpy as np

from ich.errors import IchError

MOST = 128
"""Channels of an image in OpenCV."""


class Parts:
    """An image whose channels still lie in several arrays; `joined` and `put` write each pixel once.

    Args:
        arrays: uint8 (height, width, n), of one height and width, with 2 to `MOST` channels together.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, arrays: list[np.ndarray]):
        self.arrays = arrays
        self.shape = (*arrays[0].shape[:2], sum(array.shape[2] for array in arrays))

    def joined(self) -> np.ndarray:
        """Return the image as one array."""
        return cv2.merge(self.arrays)  # a tenth of the time of np.concatenate


Image = np.ndarray | Parts


def joined(image: Image) -> np.ndarray:
    """Return an image as one array, of any dtype and shape."""
    return image.joined() if isinstance(image, Parts) else image


def put(image: Image, images: np.ndarray, place: int | tuple[int, ...]) -> None:
    """Write an image to its place in a batch.

    Args:
        images: the batch, contiguous, of the image's dtype; `images[place]` has its shape.
    """
    if not isinstance(image, Parts):
        images[place] = image
        return
    destination = images[place]
    if cv2.merge(image.arrays, destination) is not destination:  # OpenCV takes new memory if it does not fit
        raise ValueError(f"an image of {image.shape} does not fit into {destination.dtype} of {destination.shape}")


def stack(images: list[Image], id: str) -> Image:
    """Return the image that has the channels of several, one after the other.

    Raises:
        IchError: they differ in height, width or dtype.
    """
    arrays = [array for image in images for array in (image.arrays if isinstance(image, Parts) else [image])]
    if len(arrays) == 1:
        return arrays[0]
    if len({(array.shape[:-1], array.dtype) for array in arrays}) > 1:
        shapes = ", ".join(f"{array.dtype} of {array.shape}" for array in arrays)
        raise IchError(f"{id} has images that do not fit into the channels of one: {shapes}; give target_size=")
    if arrays[0].ndim == 3 and arrays[0].dtype == np.uint8 and all(array.size for array in arrays):
        parts = Parts(arrays)
        if parts.shape[2] <= MOST:
            return parts
    return np.concatenate(arrays, axis=-1)
