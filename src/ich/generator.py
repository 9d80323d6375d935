"""DataGenerator: images and labels in batches, for Keras."""

import copy
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import albumentations as A
import keras
import numpy as np
import pandas as pd

from ich import images
from ich.errors import IchError


class DataGenerator(keras.utils.PyDataset):
    """Batches of uint8 images (batch, height, width, channels) and, with labels, float32 labels (batch, n).

    What a sample looks like depends on (seed, epoch, id) alone: not on the number of workers, threads or processes, on
    the batch size, or on the other samples. Each epoch has an order and augmentations of its own; every sample appears
    in it once, and the last batch holds what is left.

    Args:
        ids: the samples, each once; the file of one is `image_dir/<id><suffix>`.
        labels: a frame indexed by id with a column a label, or None to predict: batches are then images alone.
        image_dir: the images' folder.
        batch_size: samples in a batch.
        shuffle: a new order of the samples each epoch. Refused without labels, where order is what ties a prediction
            to its sample.
        augment: an albumentations Compose, or None; each thread works with a copy of its own, seeded for each sample.
        seed: of order and augmentation.
        epoch: the first epoch's number, for a run that goes on (`fit(initial_epoch=…)`).
        suffix: of the image files; `ich.images.READERS` lists those that are read.
        **kwargs: workers, use_multiprocessing, max_queue_size, as keras.utils.PyDataset takes them.

    Raises:
        IchError: no ids, ids twice, ids without labels, labels that are not finite, shuffle without labels, a batch
            size below 1; at reading, an image that cannot be read, is not uint8, or differs in shape from the first.

    Example:
        >>> train = DataGenerator(ids, labels, image_dir="images/brain/train", shuffle=True, augment=compose)
        >>> model.fit(train, epochs=10)
    """

    def __init__(
        self,
        ids: Sequence[str] | pd.Index,
        labels: pd.DataFrame | None = None,
        *,
        image_dir: str | Path,
        batch_size: int = 32,
        shuffle: bool = False,
        augment: A.Compose | None = None,
        seed: int = 0,
        epoch: int = 0,
        suffix: str = ".png",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.ids = pd.Index(ids)
        if len(self.ids) == 0:
            raise IchError("there are no samples: the list of ids is empty")
        if not self.ids.is_unique:
            twice = self.ids[self.ids.duplicated()]
            raise IchError(f"{len(twice)} id(s) are listed twice, such as {twice[0]}; give each sample once")
        if batch_size < 1:
            raise IchError(f"batch_size is {batch_size}, expected at least 1")
        if shuffle and labels is None:
            raise IchError("shuffle needs labels: without them, order is what ties a prediction to its sample")
        self.labels = None if labels is None else _label_array(self.ids, labels)
        self.image_dir = Path(image_dir)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        self.suffix = suffix
        self._local = threading.local()
        self._shape: tuple[int, ...] | None = None
        self._begun = False
        self.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Batch `index` of this epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        epoch, order = self._plan
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        batch = np.stack([self._image(self.ids[row], epoch) for row in rows])
        return batch if self.labels is None else (batch, self.labels[rows])

    def on_epoch_begin(self) -> None:
        """Keras calls it, after workers of the epoch have started."""
        self._begun = True

    def on_epoch_end(self) -> None:
        """Go to the next epoch. Keras calls it; workers of the next epoch start after it.

        `fit` calls it once before the first epoch too: what has not begun does not end, or epochs would be off by one.
        A loop of one's own calls `set_epoch`.
        """
        if self._begun:
            self.set_epoch(self._plan[0] + 1)

    def set_epoch(self, epoch: int) -> None:
        """Make the next batches those of this epoch (0-based)."""
        order = np.arange(len(self.ids))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        self._plan = epoch, order  # one assignment, so that no thread sees the order of another epoch
        self._begun = False

    def _image(self, id: str, epoch: int) -> np.ndarray:
        path = self.image_dir / f"{id}{self.suffix}"
        image = images.read(path)
        if image.dtype != np.uint8:
            raise IchError(f"{path} holds {image.dtype}, expected uint8, 0 to 255; convert it")
        if self.augment is not None:
            augment = self._augment_of_thread()
            augment.set_random_seed(_sample_seed(self.seed, epoch, id))
            image = augment(image=image)["image"]
        if self._shape is None:
            self._shape = image.shape
        if image.shape != self._shape:
            raise IchError(f"{path} gives {image.shape}, the first image gave {self._shape}; convert to one size")
        return image

    def _augment_of_thread(self) -> A.Compose:
        # A Compose holds the state of its random numbers: shared by threads, it gives other images in each run.
        if not hasattr(self._local, "augment"):
            self._local.augment = copy.deepcopy(self.augment)
        return self._local.augment

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_local"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._local = threading.local()


def _label_array(ids: pd.Index, labels: pd.DataFrame) -> np.ndarray:
    """Labels in the order of the ids, looked up once; float32, shape (len(ids), columns)."""
    if not labels.index.is_unique:
        raise IchError(f"the labels list {labels.index[labels.index.duplicated()][0]} twice; merge its rows first")
    places = labels.index.get_indexer(ids)
    if (places < 0).any():
        without = ids[places < 0]
        raise IchError(f"{len(without)} id(s) have no labels, such as {without[0]}; leave them out or label them")
    array = labels.to_numpy(dtype=np.float32)[places]
    if not np.isfinite(array).all():
        raise IchError(f"the labels of {ids[~np.isfinite(array).all(axis=1)][0]} are not all numbers")
    return array


def _sample_seed(seed: int, epoch: int, id: str) -> int:
    """32 bits from all three. Python's own hash of a string differs from process to process."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
