"""MixUp and CutMix: each sample of a finished batch becomes a mixture of two, for `DataGenerator(mix=…)`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ich.data import user_code
from ich.errors import IchError

_LEAST_PIXELS = 64  # of an image, below which labels may be as many by chance


@dataclass(frozen=True)
class Mix:
    """Mix each sample of a batch with another one of it; if both ways are given, a batch draws one of them.

    MixUp (Zhang et al., ICLR 2018) is the weighted mean of two images, CutMix (Yun et al., ICCV 2019) one image with a
    rectangle of the other at the same place. The labels' shares are those of the images, by the area really pasted. A
    sample has a partner, a share and a rectangle of its own.

    Of scans, all slices of a sample have the same partner, share and rectangle. Padding, which has the weight 0, is
    neither mixed into a slice nor mixed with one: such a place keeps its image, label and weight. So the mask and the
    positions of a scan remain its own, and no padding reaches a slice that counts.

    Args:
        mixup: alpha of the Beta(alpha, alpha) distribution of the shares; None leaves MixUp out.
        cutmix: the same of the rectangle's area.
        share: of the batches that are mixed.
        parts: of a batch, of one size, within which samples are mixed: with `DataGenerator(augment_on="device")`, the
            devices that share a batch.

    Call:
        images: shape (batch, height, width, channels), or (batch, slices, height, width, channels); changed in place,
            whole numbers are rounded. labels: float32, (batch, …) or (batch, slices, …). weights: None or of the loss,
            (batch,) or (batch, slices). rng: of the batch.

        Returns images, labels and weights. The loss of a mixed sample is that of both labels, each by its share and its
        own weight, as far as the loss is linear in the label, as cross-entropy is.

    Raises:
        IchError: neither way, an alpha or share out of its range; masks as labels, which would have to be cut as the
            images are; numbers of classes as labels, of which two give the number of a third one.
    """

    mixup: float | None = None
    cutmix: float | None = None
    share: float = 1.0
    parts: int = 1

    def __post_init__(self) -> None:
        alphas = [alpha for alpha in (self.mixup, self.cutmix) if alpha is not None]
        if not alphas or not all(0 < alpha < np.inf for alpha in alphas):
            raise IchError(
                f"mixup is {self.mixup!r}, cutmix {self.cutmix!r}; expected a number above 0 for one of them"
            )
        if not 0 < self.share <= 1:
            raise IchError(f"the share of mixed batches is {self.share!r}, expected a number above 0, 1 at most")
        if not isinstance(self.parts, int) or self.parts < 1:
            raise IchError(f"parts is {self.parts!r}, expected a whole number of at least 1")

    def check_labels(self, labels: np.ndarray) -> None:
        """Refuse numbers of classes; raises IchError as said of the class."""
        if (labels > 1).any() and (labels % 1 == 0).all():
            raise IchError(
                f"the labels are whole numbers up to {labels.max():.0f}: mixed as numbers of classes, two would give a"
                " third class; num_classes= makes one-hot labels of them; of what is counted or measured, have mix= be"
                " a function of your own"
            )

    def draw(
        self, count: int, height: int, width: int, weights: np.ndarray | None, rng: np.random.Generator
    ) -> "Drawn | None":
        """Draw with whom and how each sample of a batch is mixed; None if the batch is not.

        Args:
            count: samples. height, width: of the images. weights: as for a call.
        """
        alphas = [(cuts, alpha) for cuts, alpha in ((False, self.mixup), (True, self.cutmix)) if alpha is not None]
        is_mixed, (cuts, alpha) = rng.random() < self.share, alphas[rng.integers(len(alphas))]
        rings = [rng.permutation(part) for part in np.array_split(np.arange(count), self.parts)]
        own = rng.beta(alpha, alpha, count)  # the share of each sample in its mixture
        if not is_mixed or count == 1:
            return None
        boxes = None
        if cuts:
            boxes = _boxes(own, height, width, rng)
            heights, widths = (boxes[:, 2:] - boxes[:, :2]).T
            own = 1 - heights * widths / (height * width)
        partner = np.empty(count, np.int64)
        for ring in rings:
            partner[ring] = np.roll(ring, 1)  # a ring, so that nobody is his own partner
        own = own.reshape(-1, *[1] * (0 if weights is None else weights.ndim - 1))
        if weights is not None:
            own = np.where((weights > 0) & (weights[partner] > 0), own, 1.0)
        return Drawn(rings, partner, own, boxes)

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        _check(images, labels)
        self.check_labels(labels)
        drawn = self.draw(len(images), images.shape[-3], images.shape[-2], weights, rng)
        if drawn is None:
            return images, labels, weights
        for ring in drawn.rings:
            _mix_images(images, ring, drawn)
        return images, *_mix_labels(labels, weights, drawn.partner, drawn.own)


@dataclass(frozen=True)
class Drawn:
    """What `Mix.draw` has drawn for a batch."""

    rings: list[np.ndarray]  # places in the batch; each has the one before it in its ring as its partner
    partner: np.ndarray  # places, int64 (batch,)
    own: np.ndarray  # the share of each sample, or slice of it, in its mixture; (batch,) or (batch, slices)
    boxes: np.ndarray | None  # CutMix's rectangles (top, left, bottom, right), int64 (batch, 4); None is MixUp

    def numbers(self, height: int, width: int) -> np.ndarray:
        """Return the draw as `ich.models.augmented.mix` takes it: float32 (batch, 6 + slices), of images 6 + 1.

        These are how many samples are mixed among themselves, all of the batch or those that a device gets of it; how
        many places behind a sample its partner is, the first one of them following the last; a rectangle (top, left,
        bottom, right); and the share of each slice within it.
        """
        count = len(self.partner)
        among, ahead = np.empty(count, np.int64), np.empty(count, np.int64)
        for ring in self.rings:
            among[ring], ahead[ring] = len(ring), (self.partner[ring] - ring) % len(ring)
        whole = np.tile([0, 0, height, width], (count, 1))
        share = self.own.reshape(count, -1)
        if self.boxes is not None:
            share = np.where(share < 1, 0.0, 1.0)
        boxes = whole if self.boxes is None else self.boxes
        return np.concatenate([among[:, None], ahead[:, None], boxes, share], axis=1).astype(np.float32)


def build(mixup: float | None, cutmix: float | None, share: float, parts: int = 1) -> Mix | None:
    """Return the mix of a config's keys; None if there is none."""
    return None if mixup is None and cutmix is None else Mix(mixup, cutmix, share, parts)


def mix_batch(batch: tuple, mix: Callable, rng: np.random.Generator, name: str) -> tuple:
    """Mix a batch of `ich.data.batch.make_batch`.

    Args:
        batch: (x, labels) or (x, labels, weights); x is an array of images, or a dict of them, as "image", and others,
            which stay as they are.
        mix: as `DataGenerator` takes it.
        rng: of this batch.
        name: of the batch, for messages.

    Raises:
        IchError: whatever `mix` raises, or it gives anything but images, labels and weights of as many samples.
    """
    x, labels, weights = (*batch, None)[:3]
    images = x["image"] if isinstance(x, dict) else x
    given: Any = user_code.call("mix", name, mix, images, labels, weights, rng)
    if not (isinstance(given, tuple) and len(given) == 3):
        raise IchError(f"{name}: mix gave a {type(given).__name__}, expected a tuple of images, labels and weights")
    for what, before, after in zip(("images", "labels", "weights"), (images, labels, weights), given, strict=True):
        if np.shape(after) != np.shape(before) or (before is None) != (after is None):
            raise IchError(f"{name}: mix gave {what} of {np.shape(after)}, expected {np.shape(before)}")
    images, labels, weights = given
    x = x | {"image": images} if isinstance(x, dict) else images
    return (x, labels) if weights is None else (x, labels, weights)


def draw_for_model(batch: tuple, mix: Mix, rng: np.random.Generator) -> tuple:
    """Mix the labels of a batch as `mix_batch`, and put what the model mixes its images by into x, as "mix".

    Args:
        batch, mix, rng: as for `mix_batch`; x is a dict, and "image" has an axis of files before the height.

    Raises:
        IchError: as `Mix`.
    """
    x, labels, weights = (*batch, None)[:3]
    images = x["image"][..., 0, :, :, :]
    _check(images, labels)
    mix.check_labels(labels)
    count, (height, width) = len(images), images.shape[-3:-1]
    drawn = mix.draw(count, height, width, weights, rng)
    if drawn is None:
        slices = images.shape[1] if images.ndim == 5 else 1
        itself = np.arange(count)
        drawn = Drawn([itself], itself, np.ones((count, slices)), None)
    else:
        labels, weights = _mix_labels(labels, weights, drawn.partner, drawn.own)
    x = x | {"mix": drawn.numbers(height, width)}
    return (x, labels) if weights is None else (x, labels, weights)


def _check(images: np.ndarray, labels: np.ndarray) -> None:
    """Refuse images without height and width, and masks as labels."""
    if images.ndim not in (4, 5):
        raise IchError(f"the batch has images of {images.shape}, expected (batch, height, width, channels) to be mixed")
    pixels = images.shape[-3] * images.shape[-2]
    numbers = labels[0].size // (images.shape[1] if images.ndim == 5 else 1)
    if labels.ndim > images.ndim - 2 or (pixels >= _LEAST_PIXELS and numbers and numbers % pixels == 0):
        raise IchError(
            f"the labels of {labels.shape} are masks, which would have to be mixed as the images are; leave mix out, or"
            " have it be a function of your own"
        )


def _boxes(own: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return rectangles (top, left, bottom, right), int64, whose area is 1 - own of the image, but for its borders."""
    sides = np.sqrt(1 - own)[:, None] * [height, width] / 2
    center = rng.random((len(own), 2)) * [height, width]
    corners = np.rint(np.concatenate([center - sides, center + sides], axis=1)).astype(np.int64)
    return np.clip(corners, 0, [height, width, height, width])


def _mix_images(images: np.ndarray, ring: np.ndarray, drawn: Drawn) -> None:
    """Mix the images of a ring in place."""
    last = images[ring[-1]].copy()
    for place in ring[::-1]:  # against the ring: a partner is mixed after all that take of it
        other = last if place == ring[0] else images[drawn.partner[place]]
        for slice_ in np.ndindex(drawn.own.shape[1:]):
            at = place, *slice_
            if drawn.own[at] < 1 and drawn.boxes is not None:
                top, left, bottom, right = drawn.boxes[place]
                images[at][..., top:bottom, left:right, :] = other[slice_][..., top:bottom, left:right, :]
            elif drawn.own[at] < 1:
                images[at] = _mean(images[at], other[slice_], drawn.own[at])


def _mix_labels(
    labels: np.ndarray, weights: np.ndarray | None, partner: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return labels and weights whose loss is the sum of the partners' losses by their shares and weights."""
    theirs: np.ndarray = 1 - own
    mixed_weights = None
    if weights is not None:
        mixed_weights = own * weights + theirs * weights[partner]
        # What counts nothing is not mixed: there `own` is 1.
        own = np.divide(own * weights, mixed_weights, out=np.ones_like(mixed_weights), where=mixed_weights > 0)
        theirs, mixed_weights = 1 - own, mixed_weights.astype(np.float32)
    axes = (..., *[None] * (labels.ndim - own.ndim))
    mixed = own[axes] * labels + theirs[axes] * labels[partner]
    return mixed.astype(np.float32), mixed_weights


def _mean(own: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Return share of `own` and the rest of the other, rounded if they are whole numbers."""
    if own.dtype == np.uint8:  # in a tenth of NumPy's time
        rows = len(own)
        mean = cv2.addWeighted(own.reshape(rows, -1), share, other.reshape(rows, -1), 1 - share, 0)
        return mean.reshape(own.shape)
    mean = share * own.astype(np.float64) + (1 - share) * other
    return np.rint(mean).astype(own.dtype) if own.dtype.kind in "iu" else mean.astype(own.dtype)
