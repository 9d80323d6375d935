"""Resumable inference in chunks: predictions of many slices, saved in parts on the way."""

import math
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
from ich.errors import IchError
from ich.files import replacing
from ich.models import devices
from ich.training.parts import part_path, read_part

_PART_SECONDS = 10  # of work at most are lost to a kill
_AT_ONCE = 512  # batches; Keras keeps each one's output until its predict ends, some 5 KB
_KEPT = 2**26  # bytes of such outputs at most, for models that have more than logits


def predict_logits(model: keras.Model, samples: DataGenerator, parts: Path, title: str = "") -> np.ndarray:
    """Return the model's output for all samples, saved in parts on the way as by `predict_parts`.

    Returns:
        float32, shape (slices, 6), in the order of the samples' ids; of a scan model, each slice's mean over the
        windows that show it.

    Raises:
        IchError: an image cannot be read, or a part not be written.
    """
    saved = predict_parts(model, [samples], parts, lambda outputs: outputs[0].astype(np.float32, copy=False), title)
    return samples.mean_over_windows(np.concatenate([read_part(part) for part in saved]))


def predict_parts(
    model: keras.Model,
    passes: Sequence[DataGenerator],
    parts: Path,
    merge: Callable[[list], np.ndarray],
    title: str = "",
) -> list[Path]:
    """Predict all samples into files of some seconds' work each; those that are there are kept.

    A batch goes through all passes before the next batch, and its outputs are merged at once: memory and disk use do
    not depend on the number of passes, nor memory on the number of samples.

    A part ends where a batch does, so that the rest falls into the same batches, whose size can change the last digits:
    with the same machine, model and samples, the result is the same, interrupted or not. Devices that share the batches
    (`ich.models.devices.scope`) get equally many samples: in a batch that they do not divide, the last sample is
    repeated, and its further outputs are dropped.

    Args:
        passes: generators of the same samples in the same order and batches.
        parts: the folder of the parts; it must be of this model, these samples in this order, these passes and this
            batch size alone (`ich.training.parts.parts_folder`).
        merge: merges the passes' outputs for a batch into one array, a row for each sample. It gets a list of arrays,
            or, of a model with several outputs, of lists of arrays.
        title: of the progress bar.

    Returns:
        The .npy files, in the samples' order; `read_part` reads one.

    Raises:
        IchError: an image cannot be read, a part neither read nor written, or `merge` raised it.
    """
    samples = passes[0]
    saving = _Saving(parts, len(passes), merge, samples)
    if saving.count < samples.sample_count:
        values = sum(math.prod(output.shape[1:]) for output in model.outputs)
        batch_bytes = 4 * values * samples.batch_size * len(passes)
        at_once = min(_AT_ONCE, max(1, _KEPT // batch_bytes))
        unit = "slice" if samples.scan is None else "window"
        with tqdm(total=samples.sample_count, initial=saving.count, unit=unit, desc=title) as bar:
            saving.bar = bar
            try:
                for first in range(saving.count // samples.batch_size, len(samples), at_once):
                    with reraising_ich_errors():
                        batches = _Batches(passes, first, at_once, devices.replicas(model))
                        model.predict(batches, verbose=0, callbacks=[saving])
            finally:
                saving.save()
    return saving.saved


class _Batches(keras.utils.PyDataset):
    """Batches of generators: `count` of them from batch `first` on, or the rest, each once in every pass.

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
        x = self.passes[number][self.first + batch]
        short = -len(x["image"] if isinstance(x, dict) else x) % self.multiple
        if not short:
            return x
        return keras.tree.map_structure(lambda values: np.concatenate([values, np.repeat(values[-1:], short, 0)]), x)


class _Saving(keras.callbacks.Callback):
    """Saves outputs as they are predicted, into files named by the number of their first sample."""

    bar: tqdm

    def __init__(self, folder: Path, passes: int, merge: Callable[[list], np.ndarray], samples: DataGenerator):
        super().__init__()
        self.samples = samples
        self.folder, self.passes, self.merge = folder, passes, merge
        self.saved: list[Path] = []
        self.outputs: list = []  # of the current batch, by the passes so far
        self.unsaved: list[np.ndarray] = []
        self.count = 0  # of the slices saved
        while (path := self._path()).exists():
            self.saved.append(path)
            self.count += len(read_part(path))
        self.when = time.monotonic()

    def on_predict_batch_end(self, batch: int, logs: dict) -> None:
        left = self.samples.sample_count - self.count - sum(map(len, self.unsaved))
        size = min(self.samples.batch_size, left)  # without what was repeated
        self.outputs.append(
            keras.tree.map_structure(lambda tensor: keras.ops.convert_to_numpy(tensor)[:size], logs["outputs"])
        )
        if len(self.outputs) < self.passes:
            return
        self.unsaved.append(self.merge(self.outputs))
        self.outputs = []
        self.bar.update(len(self.unsaved[-1]))
        if time.monotonic() - self.when > _PART_SECONDS:
            self.save()

    def save(self) -> None:
        if not self.unsaved:
            return
        part, path = np.concatenate(self.unsaved), self._path()
        with replacing(path) as temporary:
            np.save(temporary, part, allow_pickle=False)
        self.saved.append(path)
        self.count += len(part)
        self.unsaved, self.when = [], time.monotonic()

    def _path(self) -> Path:
        return part_path(self.folder, self.count)


@contextmanager
def reraising_ich_errors() -> Iterator[None]:
    """Raise a generator's IchError as such: TensorFlow passes on its text alone, in an error of its own.

    Also raise IchError if a process that reads for the generator is killed.
    """
    try:
        with parallel.guarded_pools(_pools):
            yield
    except IchError:
        raise
    except Exception as error:
        message = re.search(r"\bIchError: (.*)", str(error))
        if message is None:
            raise
        raise IchError(message[1]) from error


def _pools() -> list[Pool]:
    """Return the pools of processes that read for Keras, from the only record that it keeps of them."""
    try:
        return list(py_dataset_adapter._DATA_POOLS)
    except RuntimeError:  # another thread was just adding one
        return []
