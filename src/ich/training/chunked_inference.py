"""Resumable inference in chunks: predictions of many slices, saved as parts while they are made."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import Pool
from pathlib import Path

import keras
import numpy as np
from keras.src.trainers.data_adapters import py_dataset_adapter
from tqdm import tqdm

from ich import parallel
from ich.data.generator import DataGenerator
from ich.errors import IchError, one_line
from ich.files import replacing
from ich.models import devices

_PART_SECONDS = 10  # of work at most are lost to a kill
_AT_ONCE = 512  # batches; Keras keeps a tensor of each until its predict ends, some 5 KB
_KEPT = 2**26  # bytes of such tensors at most, of models that give more than logits


def predict_logits(model: keras.Model, samples: DataGenerator, parts: Path, title: str = "") -> np.ndarray:
    """The model's output for all samples, saved in parts on the way, as `predict_parts` does.

    Returns:
        float32, shape (samples, 6), in the samples' order.

    Raises:
        IchError: an image cannot be read, or a part not be written.
    """
    saved = predict_parts(model, [samples], parts, lambda told: told[0].astype(np.float32, copy=False), title)
    return np.concatenate([read_part(part) for part in saved])


def predict_parts(
    model: keras.Model,
    passes: Sequence[DataGenerator],
    parts: Path,
    merge: Callable[[list], np.ndarray],
    title: str = "",
) -> list[Path]:
    """What the model makes of all samples, in files of some seconds' work; those that are there are not made again.

    A batch goes through all passes before the next one, and what they gave is merged at once: neither memory nor disk
    depends on how many there are, nor memory on how many samples.

    A part ends where a batch does, so that what is left falls into the same batches, whose size can change the last
    digits: with the same machine, model and samples, the result is the same, interrupted or not. Devices that share the
    batches (`ich.models.devices.scope`) get as many samples each: the last one is repeated in a batch that they do not
    divide, and what comes of it is dropped.

    Args:
        passes: generators of the same samples in the same order and batches.
        parts: the folder of the parts, of this model, these samples in this order, these passes and this batch size
            alone.
        merge: makes one array of what the passes gave for a batch, a row a sample. It gets a list of arrays, or, of a
            model with several outputs, of lists of arrays.
        title: of the progress bar.

    Returns:
        The .npy files, in the samples' order; `read_part` reads one.

    Raises:
        IchError: an image cannot be read, a part neither read nor written, or `merge` raised it.
    """
    samples = passes[0]
    saving = _Saving(parts, len(passes), merge, samples)
    if saving.count < len(samples.ids):
        numbers = sum(output.shape[-1] for output in model.outputs)
        kept = 4 * numbers * samples.batch_size * len(passes)
        at_once = min(_AT_ONCE, max(1, _KEPT // kept))
        with tqdm(total=len(samples.ids), initial=saving.count, unit="slice", desc=title) as bar:
            saving.bar = bar
            try:
                for first in range(saving.count // samples.batch_size, len(samples), at_once):
                    with unwrapped():
                        batches = _Batches(passes, first, at_once, devices.replicas(model))
                        model.predict(batches, verbose=0, callbacks=[saving])
            finally:
                saving.save()
    return saving.saved


def read_part(path: Path) -> np.ndarray:
    """What `predict_parts` saved, in memory as far as it is looked at.

    Raises:
        IchError: the file is damaged.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IchError(
            f"{path} cannot be read ({one_line(error)}); delete it, and its slices are predicted anew"
        ) from error


class _Batches(keras.utils.PyDataset):
    """The batches of generators from batch `first` on, `count` of them or what is left, each once in every pass.

    The last sample of a batch is repeated until `multiple` divides it.
    """

    def __init__(self, passes: Sequence[DataGenerator], first: int, count: int, multiple: int):
        samples = passes[0]
        super().__init__(samples.workers, samples.use_multiprocessing, samples.max_queue_size)
        self.passes, self.first, self.count = passes, first, min(count, len(samples) - first)
        self.multiple = multiple

    def __len__(self) -> int:
        return self.count * len(self.passes)

    def __getitem__(self, index: int):
        batch, number = divmod(index, len(self.passes))
        images = self.passes[number][self.first + batch]
        short = -len(images) % self.multiple
        return np.concatenate([images, np.repeat(images[-1:], short, axis=0)]) if short else images


class _Saving(keras.callbacks.Callback):
    """Saves what a model gives as it comes, into files named by the place of their first sample."""

    bar: tqdm

    def __init__(self, folder: Path, passes: int, merge: Callable[[list], np.ndarray], samples: DataGenerator):
        super().__init__()
        self.samples = samples
        self.folder, self.passes, self.merge = folder, passes, merge
        self.saved: list[Path] = []
        self.told: list = []  # of a batch, by the passes so far
        self.fresh: list[np.ndarray] = []
        self.count = 0  # of the slices saved
        while (path := self._path()).exists():
            self.saved.append(path)
            self.count += len(read_part(path))
        self.when = time.monotonic()

    def on_predict_batch_end(self, batch: int, logs: dict) -> None:
        left = len(self.samples.ids) - self.count - sum(map(len, self.fresh))
        real = min(self.samples.batch_size, left)  # without what was repeated
        self.told.append(keras.tree.map_structure(lambda one: keras.ops.convert_to_numpy(one)[:real], logs["outputs"]))
        if len(self.told) < self.passes:
            return
        self.fresh.append(self.merge(self.told))
        self.told = []
        self.bar.update(len(self.fresh[-1]))
        if time.monotonic() - self.when > _PART_SECONDS:
            self.save()

    def save(self) -> None:
        if not self.fresh:
            return
        part, path = np.concatenate(self.fresh), self._path()
        with replacing(path) as temporary:
            np.save(temporary, part, allow_pickle=False)
        self.saved.append(path)
        self.count += len(part)
        self.fresh, self.when = [], time.monotonic()

    def _path(self) -> Path:
        return self.folder / f"{self.count:09}.npy"


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise a generator's IchError as what it is: TensorFlow hands its text on, within an error of its own.

    And one if a process that reads for the generator is killed.
    """
    try:
        with parallel.told_of_killed_workers(_pools):
            yield
    except IchError:
        raise
    except Exception as error:
        told = re.search(r"\bIchError: (.*)", str(error))
        if told is None:
            raise
        raise IchError(told[1]) from error


def _pools() -> list[Pool]:
    """The pools of processes that read for Keras, of which it keeps this record alone."""
    try:
        return list(py_dataset_adapter._DATA_POOLS)
    except RuntimeError:  # another thread was just adding one
        return []
