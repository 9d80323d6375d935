"""Draws of an augmentation that the training model applies: an affine matrix, brightness and contrast of each sample.

A warp of nine channels on the CPU takes several times as long as to decode them. With `DataGenerator(augment_on=
"device")` the numbers are drawn here, by the transforms of albumentations themselves, with the random numbers that the
same sample gets on the CPU; `ich.models.augmented` applies them, in one warp in place of one for each transform.
"""

from collections.abc import Iterable
from typing import Any

import albumentations as A
import cv2
import numpy as np

from ich.data import channels
from ich.data.augmenter import Seeded
from ich.data.mixing import Mix
from ich.errors import IchError

IDENTITY = np.array([1, 0, 0, 0, 1, 0, 1, 0], np.float32)
"""The draw that changes nothing. Of a draw, the first six numbers map a pixel (column, row) of the result to a place
in the image: (m0 column + m1 row + m2, m3 column + m4 row + m5), the center of the upper left pixel being (0, 0). The
last two are the factor of its gray levels and what is added to these then, before both are cut to 0 to 255."""


class AffineDraw:
    """Draws what an albumentations Compose would do to an image, as eight numbers.

    Its transforms may be HorizontalFlip, Affine and RandomResizedCrop to the image's size, bilinear and with 0 beyond
    the edge, and RandomBrightnessContrast as the last one.

    Raises:
        IchError: any other augmentation; the message says why.
    """

    def __init__(self, augment: Any):
        if augment is None:
            raise _refused("there is none")
        if type(augment) is not A.Compose:
            raise _refused(f"it is a {type(augment).__name__}, no A.Compose")
        if augment.processors or augment.save_applied_params:
            raise _refused("the Compose processes boxes or keypoints, or records its draws")
        for place, transform in enumerate(augment.transforms, 1):
            if reason := _reason_against(transform, is_last=place == len(augment.transforms)):
                raise _refused(f"{type(transform).__name__} {reason}")
        self._seeded = Seeded(augment)

    def __call__(self, image: channels.Image, seed: int) -> np.ndarray:
        """Return the draw for an image of the seed that `ich.data.augmenter.Augmenter` takes; float32, as `IDENTITY`.

        Args:
            image: uint8 (height, width, channels), of which the shape counts alone.

        Raises:
            IchError: a crop is scaled to another size than the image's.
        """
        self._seeded.seed(seed)
        compose, data = self._seeded.transform, {"image": image}
        matrix, contrast = np.eye(3), IDENTITY[6:]
        # What Compose and its transforms do when they are called, but for the pixels.
        if compose.py_random.random() < compose.p:
            for transform in compose.transforms:
                if transform.should_apply():
                    drawn = transform.update_transform_params(transform.get_params(), data)
                    drawn |= transform.get_params_dependent_on_data(drawn, data)
                    if isinstance(transform, A.RandomBrightnessContrast):
                        contrast = np.array([drawn["alpha"], drawn["beta"]])
                    else:
                        matrix = matrix @ _matrix(transform, drawn, *image.shape[:2])
        return np.concatenate([matrix[:2].ravel(), contrast]).astype(np.float32)

    def of_batch(self, images: np.ndarray, seeds: Iterable[int]) -> np.ndarray:
        """Return the draws of a batch, float32 (batch, 8), from their seeds.

        Args:
            images: (batch, …, height, width, channels), of which the shape counts alone.
        """
        image = images[(0,) * (images.ndim - 3)]
        return np.stack([self(image, seed) for seed in seeds])

    def check(self, image: channels.Image, label: np.ndarray | None, id: str) -> None:
        """Check that the model can augment a sample.

        Raises:
            IchError: an image that is not uint8 (height, width, channels), or a mask as label.
        """
        if image.dtype != np.uint8 or image.ndim != 3:
            raise IchError(
                f"{id} is {image.dtype} of {image.shape}, expected uint8 (height, width, channels), which the training"
                " model augments; have the reader give that, or give augment_on='cpu'"
            )
        if label is not None and label.ndim >= 2:
            raise IchError(
                f"the labels of {id} are a mask of {label.shape}, which the training model does not augment with the"
                " image; give augment_on='cpu'"
            )


def for_model(augment: Any, mix: Any, preprocess: Any) -> AffineDraw:
    """Return the draws of a generator whose model augments; arguments are those of `DataGenerator`.

    Raises:
        IchError: as `AffineDraw`, or what would have to come before or after the augmentation is not in the model.
    """
    if mix is not None and not isinstance(mix, Mix):
        raise IchError(
            "mix is a function of images that the training model has yet to augment; give an ich.data.mixing.Mix, which"
            " the model applies behind the augmentation, or augment_on='cpu'"
        )
    if preprocess is not None:
        raise IchError(
            "preprocess is given the augmented image, which only the training model has; do the same by its first"
            " layers, or with augment_on='cpu'"
        )
    return AffineDraw(augment)


def _refused(reason: str) -> IchError:
    return IchError(
        f"the training model cannot apply this augmentation: {reason}. It applies a Compose of HorizontalFlip, Affine"
        " and RandomResizedCrop, and RandomBrightnessContrast as the last one, such as ich.data.augment.pipeline("
        "'heavy', height, width); have the CPU apply any other, by augment_on='cpu'"
    )


def _reason_against(transform: Any, is_last: bool) -> str | None:
    """Return why a transform is none that the model applies as the CPU does."""
    kind = type(transform)
    if kind is A.RandomBrightnessContrast:
        if not is_last:
            return "does not come last: the model changes gray levels behind the warp"
        return None if transform.brightness_by_max else "takes the image's mean, which is not known before the warp"
    if kind is A.HorizontalFlip:
        return None
    if kind not in (A.Affine, A.RandomResizedCrop):
        return "is none of those that it applies"
    if transform.interpolation != cv2.INTER_LINEAR:
        return "is not bilinear"
    if kind is A.RandomResizedCrop:
        return "averages areas" if transform.area_for_downscale else None
    if transform.fill != 0 or transform.border_mode != cv2.BORDER_CONSTANT:
        return "fills what is beyond the edge with anything but 0"
    return "fits the size of its result" if transform.fit_output else None


def _matrix(transform: Any, drawn: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Return the matrix from pixels of a transform's result to places in its image, float64, shape (3, 3)."""
    if isinstance(transform, A.HorizontalFlip):
        return np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]], np.float64)
    if isinstance(transform, A.Affine):
        return np.linalg.inv(drawn["matrix"])
    if tuple(transform.size) != (height, width):
        raise _refused(f"RandomResizedCrop gives {transform.size}, the images are {height} × {width}")
    left, top, right, bottom = drawn["crop_coords"]
    x, y = (right - left) / width, (bottom - top) / height
    # Scaling keeps the edges of the image in their place, half a pixel beyond the centers of the outermost pixels.
    return np.array([[x, 0, (x - 1) / 2 + left], [0, y, (y - 1) / 2 + top], [0, 0, 1]])
