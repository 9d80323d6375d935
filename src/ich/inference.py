"""Prediction: a run's models on the slices held out and on the test set, in passes, streamed into files."""

import json
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from hashlib import file_digest, sha256
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import expit
from tqdm import tqdm

from ich import augment, folds, parallel, runs, slices
from ich.config import Config
from ich.errors import IchError
from ich.files import replacing, sweep
from ich.generator import DataGenerator
from ich.labels import INDEX_NAME, LABELS
from ich.predictions import read_predictions, read_provenance, write_predictions

_PART_SECONDS = 10  # of work at most are lost to a kill
_AT_ONCE = 512  # batches; Keras keeps a tensor of each until its predict ends, some 5 KB


def load_model(run: runs.Run, k: int) -> keras.Model:
    """The model of a fold, read in Keras's safe mode: no code of the file is run.

    Raises:
        IchError: it is not there or cannot be read, be it that another Keras has written it.
    """
    path = run.fold(k) / "model.keras"
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged zip, HDF5 file and config each fail in a way of their own
        advice = f"delete {path.parent} and train the fold again"
        writer = _keras_of(path)
        if writer not in (None, keras.__version__):  # what a layer is told changes from version to version
            advice = f"Keras {writer} wrote it, this is {keras.__version__}: pip install keras=={writer}"
        raise IchError(f"the model {path} cannot be read ({error}); {advice}") from error


def _keras_of(path: Path) -> str | None:
    """The version of Keras that wrote a model; None if its file does not tell."""
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError):
        return None


def generator_options(config: Config, split: str) -> dict:
    """What a model sees of a slice, where its images lie and how many workers read them: arguments of DataGenerator."""
    alone = config.model.neighbours == [0]  # then nobody asks for the table, of which a whole competition's is large
    return {
        "image_dir": config.data.images / split,
        "neighbours": config.model.neighbours,
        "slices": None if alone else runs.slice_table(config),
        "workers": config.machine.workers,
        "use_multiprocessing": config.machine.processes,
        "max_queue_size": 16,
    }


def predict_test(run: runs.Run, results: runs.Run | None = None) -> pd.DataFrame:
    """Predict every readable test slice by every fold's model, and the slices held out in the same way.

    Both are the mean over `predict.test_time`, as `predict.mean` says, that of the test set over the folds too. Each
    fold's logits of each pass are kept in its directory and not made again, as long as model and slices are the same.

    Writes `run.oof_path`, `run.score_path` and, last, `run.predictions_path`.

    Args:
        results: to whose directory all is written, if not to the run's own; see `runs.Run.elsewhere`.

    Returns:
        Probabilities of the test slices, six float32 columns, indexed by SOPInstanceUID.

    Raises:
        IchError: a fold is not trained, there are no test slices, or an image cannot be read.
    """
    # Arrow's own pool keeps what it freed, some 30 MB of a table of 100,000 slices; the system's serves TensorFlow too.
    pa.set_memory_pool(pa.system_memory_pool())
    run.check_finished()
    results = results or run
    for k in range(run.config.folds.n):
        for folder in (results.path, results.fold(k), results.passes(k)):
            sweep(folder)
    test = _slices(run.config, "test")
    if len(test) == 0:
        raise IchError(f"{run.config.data.images} holds no test slices; convert sources that have some")
    section, digest = run.config.predict, runs.slices_digest(test)
    total, models = np.zeros((len(test), len(LABELS))), []
    for k in range(run.config.folds.n):
        model = cache(partial(load_model, run, k))  # read if there is a pass to be made, and once
        predict_held_out(run, k, model, results)
        for name in section.test_time:
            path = results.passes(k) / f"test-{name}.parquet"
            total += _to_mean(_pass(run, k, "test", name, test.index, digest, model, path), section.mean)
        models.append(_digest(run, k))
    if not results.score_path.exists():
        results.score()
    total /= run.config.folds.n * len(section.test_time)
    frame = _frame(_from_mean(total, section.mean), test.index)
    made = {"test_time": section.test_time, "mean": section.mean, "models": models}
    write_predictions(frame, results.predictions_path, made)
    return frame


def predict_held_out(run: runs.Run, k: int, model: Callable[[], keras.Model], results: runs.Run | None = None) -> None:
    """Predict the slices that fold `k` held out, as `predict_test` does its; nothing to do if that was done.

    One pass over the slices as they are is made besides, if it is not among those asked for, so that the score tells
    what the passes bring.

    Writes `fold<k>/oof.parquet`, last.

    Args:
        model: gives the fold's model, whose file is written already. Called if there is a pass to be made.
        results: as `predict_test` takes it.
    """
    results = results or run
    section = run.config.predict
    path = results.fold(k) / "oof.parquet"
    made = {"test_time": section.test_time, "mean": section.mean, "model": _digest(run, k)}
    if read_provenance(path) == made:
        return
    table = folds.read_folds(run.config.data.folds_path)
    ids = table.index[table["fold"] == k]
    digest = runs.slices_digest(_slices(run.config, "train").loc[ids])
    total = np.zeros((len(ids), len(LABELS)))
    for name in dict.fromkeys(["none", *section.test_time]):
        logits = _pass(run, k, "oof", name, ids, digest, model, results.passes(k) / f"oof-{name}.parquet")
        if name in section.test_time:
            total += _to_mean(logits, section.mean)
    results.forget_results()
    frame = _frame(_from_mean(total / len(section.test_time), section.mean), ids)
    write_predictions(frame, path, made)


def predict_logits(model: keras.Model, samples: DataGenerator, parts: Path, title: str = "") -> np.ndarray:
    """The model's output for all samples, saved in parts on the way; those that are there are not made again.

    A part ends where a batch does, so that what is left falls into the same batches, whose size can change the last
    digits: with the same machine, model and samples, the result is the same, interrupted or not.

    Args:
        parts: the folder of the parts, of this model, these samples in this order, and this batch size alone.
        title: of the progress bar.

    Returns:
        float32, shape (samples, 6), in the samples' order.

    Raises:
        IchError: an image cannot be read, or a part not be written.
    """
    saving = _Saving(parts)
    if saving.count < len(samples.ids):
        with tqdm(total=len(samples.ids), initial=saving.count, unit="slice", desc=title) as bar:
            saving.bar = bar
            try:
                for first in range(saving.count // samples.batch_size, len(samples), _AT_ONCE):
                    with unwrapped():
                        model.predict(_Batches(samples, first, _AT_ONCE), verbose=0, callbacks=[saving])
            finally:
                saving.save()
    return np.concatenate(saving.saved)


class _Batches(keras.utils.PyDataset):
    """The batches of a generator from batch `first` on, `count` of them or what is left."""

    def __init__(self, samples: DataGenerator, first: int, count: int):
        super().__init__(samples.workers, samples.use_multiprocessing, samples.max_queue_size)
        self.samples, self.first, self.count = samples, first, min(count, len(samples) - first)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return self.samples[self.first + index]


class _Saving(keras.callbacks.Callback):
    """Saves what a model gives as it comes, into files named by the place of their first sample."""

    bar: tqdm

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.saved: list[np.ndarray] = []
        self.fresh: list[np.ndarray] = []
        self.count = 0  # of the slices saved
        while (path := self._path()).exists():
            try:
                self.saved.append(np.load(path, allow_pickle=False))
            except (OSError, ValueError, EOFError) as error:
                raise IchError(
                    f"{path} cannot be read ({error}); delete it, and its slices are predicted anew"
                ) from error
            self.count += len(self.saved[-1])
        self.when = time.monotonic()

    def on_predict_batch_end(self, batch: int, logs: dict) -> None:
        self.fresh.append(keras.ops.convert_to_numpy(logs["outputs"]).astype(np.float32, copy=False))
        self.bar.update(len(self.fresh[-1]))
        if time.monotonic() - self.when > _PART_SECONDS:
            self.save()

    def save(self) -> None:
        if not self.fresh:
            return
        part = np.concatenate(self.fresh)
        with replacing(self._path()) as temporary:
            np.save(temporary, part, allow_pickle=False)
        self.saved.append(part)
        self.count += len(part)
        self.fresh, self.when = [], time.monotonic()

    def _path(self) -> Path:
        return self.folder / f"{self.count:09}.npy"


def _pass(
    run: runs.Run,
    k: int,
    split: str,
    name: str,
    ids: pd.Index,
    digest: str,
    model: Callable[[], keras.Model],
    path: Path,
) -> np.ndarray:
    """The logits of one pass of a fold's model over slices, float32, shape (ids, 6); from the file, if it is of them.

    Args:
        split: oof, or test.
        digest: of the slices.
        model: as `predict_held_out` takes it.
        path: of the file.
    """
    made = {"model": _digest(run, k), "slices": digest, "pass": name}
    parts = path.with_suffix(".parts")
    if read_provenance(path) == made:
        shutil.rmtree(parts, ignore_errors=True)  # they are there if a kill came before their removal
        return read_predictions(path).to_numpy()
    config = run.config
    key = sha256(json.dumps([made, config.predict.batch_size]).encode()).hexdigest()[:16]
    network = model()
    transforms = augment.passes([name], *network.input_shape[1:3])
    options = generator_options(config, "train" if split == "oof" else split)
    samples = DataGenerator(ids, batch_size=config.predict.batch_size, test_time=transforms, **options).at_pass(0)
    logits = predict_logits(network, samples, parts / key, f"fold {k}, {split}, {name}")
    write_predictions(_frame(logits, ids), path, made)
    shutil.rmtree(parts, ignore_errors=True)  # those of other models and slices too
    return logits


def _digest(run: runs.Run, k: int) -> str:
    path = run.fold(k) / "model.keras"
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IchError(
            f"the model {path} cannot be read ({error.strerror}); delete {path.parent} and train the fold again"
        ) from error


def _slices(config: Config, split: str) -> pd.DataFrame:
    """The readable slices of a split, and what tells one version of them from another."""
    return slices.readable(runs.slice_table(config, runs.DIGESTED), split)[["size", "crc"]]


def _frame(values: np.ndarray, ids: pd.Index) -> pd.DataFrame:
    return pd.DataFrame(values.astype(np.float32, copy=False), ids.rename(INDEX_NAME), list(LABELS))


def _to_mean(logits: np.ndarray, mean: str) -> np.ndarray:
    """What means are taken of, in float64."""
    return expit(logits, dtype=np.float64) if mean == "probability" else logits


def _from_mean(values: np.ndarray, mean: str) -> np.ndarray:
    """Probabilities from a mean."""
    return values if mean == "probability" else expit(values)


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise a generator's IchError as what it is: TensorFlow hands its text on, within an error of its own.

    And end where a process that reads for the generator was killed.
    """
    try:
        with parallel.ended_by_killed_workers():
            yield
    except IchError:
        raise
    except Exception as error:
        told = re.search(r"\bIchError: (.*)", str(error))
        if told is None:
            raise
        raise IchError(told[1]) from error
