"""Prediction: a run's models on the slices held out and on the test set, in passes, streamed into files."""

import json
import zipfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import expit, log_expit, logsumexp

from ich.competition import folds
from ich.competition.labels import INDEX_NAME, LABELS
from ich.config import Config
from ich.data import augment
from ich.data.generator import DataGenerator
from ich.errors import IchError, one_line
from ich.files import sha256_of, sweep
from ich.images import slice_table
from ich.models import devices
from ich.models.prior import PriorCorrection
from ich.results.predictions import read_predictions, read_provenance, write_predictions
from ich.training import run_directory
from ich.training.chunked_inference import predict_logits
from ich.training.run_directory import Run


def load_model(run: Run, k: int, distribute: str | None = None) -> keras.Model:
    """The model of a fold, as `read_model` reads it.

    Args:
        distribute: as `machine.distribute` says: the devices that share each batch of `predict`.

    Raises:
        IchError: it is not there or cannot be read, be it that another Keras has written it; as `devices.mirrored`.
    """
    path = _model_file(run, k)
    with devices.scope(distribute):
        return read_model(path, f"delete {path.parent} and train the fold again")


def read_model(path: Path, advice: str) -> keras.Model:
    """Read a model in Keras's safe mode: no code of the file is run.

    Args:
        advice: what to do if the file is damaged, for the message.

    Raises:
        IchError: it cannot be read, be it that another Keras has written it.
    """
    try:
        layers = {"ich>PriorCorrection": PriorCorrection}
        return keras.saving.load_model(path, layers, compile=False, safe_mode=True)
    except Exception as error:  # a damaged zip, HDF5 file and config each fail in a way of their own
        writer = _keras_of(path)
        if writer not in (None, keras.__version__):  # what a layer is told changes from version to version
            advice = f"Keras {writer} wrote it, this is {keras.__version__}: pip install keras=={writer}"
        # What a file is refused for comes from Keras, h5py and zipfile.
        if isinstance(error, MemoryError) or type(error).__module__.startswith("tensorflow"):
            advice = "it is not the file that failed: free the memory of the machine and its GPU, and run again"
        raise IchError(f"the model {path} cannot be read ({one_line(error)}); {advice}") from error


def _keras_of(path: Path) -> str | None:
    """The version of Keras that wrote a model; None if its file does not tell."""
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except Exception:  # noqa: BLE001 - zipfile meets a damaged byte with whatever it tripped over
        return None


def generator_options(config: Config, split: str) -> dict:
    """What a model sees of a slice, where its images lie and how many workers read them: arguments of DataGenerator."""
    alone = config.model.neighbours == [0]  # then nobody asks for the table, of which a whole competition's is large
    return {
        "image_dir": config.data.images / split,
        "neighbours": config.model.neighbours,
        "slices": None if alone else run_directory.slices_of(config),
        "workers": config.machine.workers,
        "use_multiprocessing": config.machine.processes,
        "max_queue_size": 16,
    }


def predict_test(run: Run, results: Run | None = None) -> pd.DataFrame:
    """Predict every readable test slice by every fold's model, and the slices held out in the same way.

    Both are the mean over `predict.tta`, as `predict.mean` says, that of the test set over the folds too. Each
    fold's logits of each pass are kept in its directory and not made again, as long as model and slices are the same.

    Writes `run.oof_path`, `run.score_path`, the section predict into `run.config_path` and, last,
    `run.predictions_path`.

    Args:
        results: to whose directory all is written, if not to the run's own; see `runs.Run.elsewhere`.

    Returns:
        Probabilities of the test slices, six float32 columns, indexed by SOPInstanceUID.

    Raises:
        IchError: a fold is not trained, there are no test slices, an image cannot be read, or another process works in
            the directory.
    """
    # Arrow's own pool keeps what it freed, some 30 MB of a table of 100,000 slices; the system's serves TensorFlow too.
    pa.set_memory_pool(pa.system_memory_pool())
    run.check_finished()
    with (results or run).locked_whole():
        return _predict_test(run, results or run)


def _predict_test(run: Run, results: Run) -> pd.DataFrame:
    """As `predict_test`, in a directory that others are kept from."""
    sweep(results.path)
    test = split_slices(run.config, "test")
    if len(test) == 0:
        raise IchError(f"{run.config.data.images} holds no test slices; convert sources that have some")
    section, digest = run.config.predict, run_directory.slices_digest(test)
    total, models = np.zeros((len(test), len(LABELS))), []
    for k in range(run.config.folds.n):
        distribute = run.config.machine.distribute
        model = cache(partial(load_model, run, k, distribute))  # read if a pass is to be made, and once
        for folder in (results.fold(k), results.passes(k)):
            sweep(folder)
        predict_held_out(run, k, model, results)
        for name in section.tta:
            path = results.passes(k) / f"test-{name}.parquet"
            total += to_mean(pass_logits(run, k, "test", name, test.index, digest, model, path), section.mean)
        models.append(model_digest(run, k))
    if not results.score_path.exists() or read_provenance(results.oof_path) is None:
        results.score()
    total /= run.config.folds.n * len(section.tta)
    frame = _frame(from_mean(total, section.mean), test.index)
    made = {"tta": section.tta, "mean": section.mean, "models": models}
    results.keep_predict(section)
    write_predictions(frame, results.predictions_path, made)
    return frame


def predict_held_out(run: Run, k: int, model: Callable[[], keras.Model], results: Run | None = None) -> None:
    """Predict the slices that fold `k` held out, as `predict_test` does its; nothing to do if that was done.

    One pass over the slices as they are is made besides, if it is not among those asked for, so that the score tells
    what the passes bring.

    Writes `fold<k>/oof.parquet`, last.

    Args:
        model: gives the fold's model, whose file is written already. Called if there is a pass to be made.
        results: as `predict_test` takes it.

    Raises:
        IchError: the folds are others than those that the run was trained on, or an image cannot be read.
    """
    results = results or run
    section = run.config.predict
    path = results.fold(k) / "oof.parquet"
    made = {"tta": section.tta, "mean": section.mean, "model": model_digest(run, k)}
    if read_provenance(path) == made:
        return
    run.check_folds()
    table = folds.read_folds(run.config.data.folds_path)
    ids = table.index[table["fold"] == k]
    digest = run_directory.slices_digest(split_slices(run.config, "train").loc[ids])
    total = np.zeros((len(ids), len(LABELS)))
    for name in dict.fromkeys(["none", *section.tta]):
        logits = pass_logits(run, k, "oof", name, ids, digest, model, results.passes(k) / f"oof-{name}.parquet")
        if name in section.tta:
            total += to_mean(logits, section.mean)
    results.forget_results()
    frame = _frame(from_mean(total / len(section.tta), section.mean), ids)
    write_predictions(frame, path, made)


def pass_logits(
    run: Run,
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
    made = {"model": model_digest(run, k), "slices": digest, "pass": name}
    if read_provenance(path) == made:
        run_directory.discard_parts(path)  # they are there if a kill came before their removal
        return read_predictions(path).to_numpy()
    config = run.config
    network = model()
    transforms = augment.passes([name], *network.input_shape[1:3])
    options = generator_options(config, "train" if split == "oof" else split)
    samples = DataGenerator(ids, batch_size=config.predict.batch_size, tta=transforms, **options).at_pass(0)
    logits = predict_logits(network, samples, parts_of(path, made, config), f"fold {k}, {split}, {name}")
    write_predictions(_frame(logits, ids), path, made)
    run_directory.discard_parts(path)
    return logits


def parts_of(path: Path, made: dict, config: Config) -> Path:
    """Where the parts lie of which a file will be put together; of no other model, slices, passes or batch size.

    Args:
        path: of the file.
        made: what decides its content, as JSON takes it.
    """
    key = sha256(json.dumps([made, config.predict.batch_size]).encode()).hexdigest()[:16]
    return path.with_suffix(".parts") / key


def model_digest(run: Run, k: int) -> str:
    """SHA-256 of a fold's model.

    Raises:
        IchError: the file is not there or cannot be read.
    """
    return sha256_of(_model_file(run, k))


def _model_file(run: Run, k: int) -> Path:
    """The path of a fold's model, which can be read."""
    path = run.fold(k) / "model.keras"
    try:
        with path.open("rb"):
            return path
    except FileNotFoundError as error:
        raise IchError(
            f"{path} is missing; give the run that was trained, not a folder that it predicted into, or delete"
            f" {path.parent} and train the fold again"
        ) from error
    except OSError as error:
        raise IchError(f"the model {path} cannot be read ({one_line(error)}); make it readable") from error


def split_slices(config: Config, split: str) -> pd.DataFrame:
    """The readable slices of a split, and what tells one version of them from another: size and crc."""
    return slice_table.readable(run_directory.slices_of(config, run_directory.DIGESTED), split)[["size", "crc"]]


def _frame(values: np.ndarray, ids: pd.Index) -> pd.DataFrame:
    return pd.DataFrame(values.astype(np.float32, copy=False), ids.rename(INDEX_NAME), list(LABELS))


def to_mean(logits: np.ndarray, mean: str) -> np.ndarray:
    """Return what the mean over passes and folds is taken of: probabilities, float64, or the logits."""
    return expit(logits, dtype=np.float64) if mean == "probability" else logits


def from_mean(values: np.ndarray, mean: str) -> np.ndarray:
    """Return probabilities from the mean of what `to_mean` gave."""
    return values if mean == "probability" else expit(values)


def mean_logits(passes: Sequence[np.ndarray], mean: str) -> np.ndarray:
    """The logits of the mean over several passes' logits.

    Args:
        passes: arrays of one shape.
        mean: as `predict.mean` says: of the probabilities, or of the logits.

    Returns:
        float32, as exact where a probability is all but 0 or 1 as elsewhere; of one pass, its own.
    """
    logits = np.stack(passes)
    if len(logits) == 1:
        return logits[0].astype(np.float32, copy=False)
    logits = logits.astype(np.float64)
    if mean == "logit":
        return logits.mean(axis=0).astype(np.float32)
    told, against = (logsumexp(log_expit(sign * logits), axis=0) for sign in (1, -1))
    return (told - against).astype(np.float32)
