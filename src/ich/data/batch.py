"""Making a batch: samples stacked in one array, with their labels, weights and extra inputs."""

import ctypes
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np

from ich.data import channels, shared_memory
from ich.data.scan_windows import PADDING
from ich.errors import IchError

_MAPPED = 2**17  # bytes of an array from which on glibc maps it anew, unless set otherwise
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None


class Sample(NamedTuple):
    """What a batch takes of a sample."""

    row: int  # its place in the list of ids
    id: str
    image: channels.Image
    label: np.ndarray | None = None  # float32, of any shape, if labels come from a function
    seed: int = 0  # of its augmentation


def make_batch(
    samples: Iterable[Sample],
    count: int,
    labels: np.ndarray | Callable | None = None,
    weights: np.ndarray | None = None,
    extra: dict[str, np.ndarray] | None = None,
    in_worker: bool = False,
    draw: Any = None,
) -> Any:
    """Make a batch of `count` samples, at least 1, as they come.

    Args:
        labels, weights, extra: of all rows, each an array of shape (rows, …); for a function as labels, samples hold
            their own.
        in_worker: whether the batch goes from a worker process to its parent.
        draw: an `affine_draw.AffineDraw`, if the model augments.

    Returns:
        x, (x, labels) or (x, labels, weights). x is an array of shape (count, *image.shape), or, with `extra` or
        `draw`, a dict of it, as "image", of the others, and of the draws, as "augment".

    Raises:
        IchError: the samples' own labels differ in shape.
    """
    rows, own_labels, seeds = np.empty(count, np.int64), [], []
    for place, sample in enumerate(samples):
        if place == 0:
            first = sample
            images = _empty_images((count, *first.image.shape), first.image.dtype, in_worker)
        channels.put(sample.image, images, place)
        rows[place] = sample.row
        if sample.label is not None and first.label is not None:
            if sample.label.shape != first.label.shape:
                raise IchError(
                    f"the labels of {sample.id} have the shape {sample.label.shape}, those of {first.id}"
                    f" {first.label.shape}; give all samples labels of one shape"
                )
            own_labels.append(sample.label)
        seeds.append(sample.seed)
    x = images if extra is None else {"image": images} | {name: column[rows] for name, column in extra.items()}
    if draw is not None:
        x = (x if isinstance(x, dict) else {"image": x}) | {"augment": draw.of_batch(images, seeds)}
    if labels is None:
        return x
    y = np.stack(own_labels) if callable(labels) else labels[rows]
    return (x, y) if weights is None else (x, y, weights[rows])


def name_unaugmented(batch: Any) -> Any:
    """Call the images of a batch "unaugmented", where the model has yet to augment them.

    A model that does not, as `ich.models.augmented.with_augmentation` was forgotten, then lacks its input; Keras would
    feed it "image" and drop the draws.

    Args:
        batch: x, (x, labels) or (x, labels, weights); x is a dict.
    """
    x, *others = batch if isinstance(batch, tuple) else (batch,)
    x = {"unaugmented" if name == "image" else name: value for name, value in x.items()}
    return (x, *others) if others else x


def make_scan_batch(
    images: Iterable[channels.Image],
    rows: np.ndarray,
    inputs: dict[str, np.ndarray],
    labels: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    in_worker: bool = False,
) -> Any:
    """Make a batch of windows of slices.

    Args:
        images: of the slices of all windows, one after the other.
        rows: of the slices in the list of ids, `scan_windows.PADDING` for what windows lack; shape (windows, n).
        inputs: further inputs, as `ScanWindows.inputs` gives them.
        labels, weights, in_worker: as for `make_batch`.

    Returns:
        x, or (x, labels, weights). x is `inputs` and "image", shape (windows, n, *image.shape), all 0 for padding, as
        labels and weights are, of shape (windows, n, …).
    """
    shown = rows != PADDING
    for first, (window, place, image) in enumerate(zip(*np.nonzero(shown), images, strict=True)):
        if first == 0:
            stacked = _empty_images((*rows.shape, *image.shape), image.dtype, in_worker)
        channels.put(image, stacked, (window, place))
    stacked[~shown] = 0
    x = {"image": stacked} | inputs
    if labels is None:
        return x
    y = labels[rows]
    y[~shown] = 0
    return x, y, shown.astype(np.float32) if weights is None else np.where(shown, weights[rows], np.float32(0))


def _empty_images(shape: tuple[int, ...], dtype: np.dtype, in_worker: bool) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    if size >= _MAPPED * shape[0] and _mallopt is not None:
        # Have glibc serve arrays of up to 32 MB from memory that it keeps, 128 MB of it (mallopt(3)). It does so by
        # itself unless a threshold is set, and TensorFlow sets one: each image is then put into memory new from the
        # system, page by page, which takes a fifth of its time.
        _mallopt(_M_MMAP_THRESHOLD, 2**25)
        _mallopt(_M_TRIM_THRESHOLD, 2**27)
    if in_worker:
        return shared_memory.empty(shape, dtype)
    # At a multiple of 64 bytes TensorFlow takes an array over as it is; others it copies.
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def enter_process(parallel: bool) -> bool:
    """Prepare the process that makes a batch; return whether it is a worker process of Keras's.

    Args:
        parallel: whether workers make batches at the same time; OpenCV's own threads would fight for their cores.
    """
    in_worker = multiprocessing.current_process().name.startswith("Keras_worker")
    if in_worker:
        # A terminal's Ctrl-C reaches workers too. One that died of it would take its batch along, for which Keras
        # waits for ever; the process that trains ends them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parallel:
        cv2.setNumThreads(1)
    return in_worker
