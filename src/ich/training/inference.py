"""Predict held-out slices and the test set by a run's models, one file for each pass of TTA."""

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import expit, log_expit, logsumexp

from ich.competition.labels import INDEX_NAME, LABELS
from ich.config import Config
from ich.data import augment
from ich.data.generator import DataGenerator
from ich.errors import IchError, one_line
from ich.files import sha256_of, sweep
from ich.models import adjustments, devices, hub, scan
from ich.models.prior import LossCorrection, PriorCorrection
from ich.results.predictions import read_predictions, read_provenance, write_predictions
from ich.results.result_directory import how_to_predict
from ich.training.chunked_inference import predict_logits
from ich.training.parts import discard_parts, parts_folder
from ich.training.run_data import RunData, read_slices, slices_digest
from ich.training.run_directory import Run
from ich.training.run_score import score_run

_LAYERS = {
    f"ich>{layer.__name__}": layer
    for layer in (
        PriorCorrection,
        LossCorrection,
        adjustments.GeM,
        hub.HubBackbone,
        scan.FoldSlices,
        scan.UnfoldSlices,
        scan.NeighborDifferences,
        scan.PositionsInMillimeters,
    )
}
"""Our own layers in models, by the names that files have."""


def load_model(run: Run, k: int, distribute: str | None = None) -> keras.Model:
    """Read the model of a fold, by `read_model`.

    Args:
        distribute: as `machine.distribute` says: the devices that share each batch of `predict`.

    Raises:
        IchError: it is not there or cannot be read; as `devices.mirrored`.
    """
    path = _model_file(run, k)
    with devices.scope(distribute):
        return read_model(path, f"delete {path.parent} and train the fold again")


def read_model(path: Path, advice: str) -> keras.Model:
    """Read a model in Keras's safe mode, which runs no code of the file.

    Args:
        advice: what to do if the file is damaged, for the message.

    Raises:
        IchError: it cannot be read, such as one written by another version of Keras, or a package that it is made of
            is not installed.
    """
    try:
        return keras.saving.load_model(path, _LAYERS, compile=False, safe_mode=True)
    except Exception as error:  # a damaged zip, HDF5 file and config each fail in a way of their own
        if (ours := _ich_error_within(error)) is not None:
            raise IchError(f"the model {path} cannot be read: {ours}") from error
        writer = metadata_of(path).get("keras_version")
        if writer not in (None, keras.__version__):  # arguments of layers change from version to version
            advice = f"Keras {writer} wrote it, this is {keras.__version__}: pip install keras=={writer}"
        # A damaged file is refused by Keras, h5py or zipfile.
        if isinstance(error, MemoryError) or type(error).__module__.startswith("tensorflow"):
            advice = "the file is not at fault: free the memory of the machine and its GPU, and run again"
        raise IchError(f"the model {path} cannot be read ({one_line(error)}); {advice}") from error


def _ich_error_within(error: BaseException | None) -> IchError | None:
    """Return the error that one of our layers raised, which Keras wraps in one of its own."""
    while error is not None and not isinstance(error, IchError):
        error = error.__cause__ or error.__context__
    return error


def metadata_of(path: Path) -> dict[str, str]:
    """Return which Keras wrote a model's file and when: keras_version, date_saved; nothing if it does not say."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {key: str(value) for key, value in json.loads(archive.read("metadata.json")).items()}
    except Exception:  # noqa: BLE001 - zipfile raises many kinds of errors for damaged files
        return {}


@dataclass(frozen=True, slots=True)
class Slices:
    """The slices of one file of predictions, and how a model reads them.

    Args:
        part: oof or test.
        ids: SOPInstanceUIDs, in the file's order.
        digest: `ich.training.run_data.slices_digest`.
        options: arguments of DataGenerator, from `generator_options`.
    """

    part: str
    ids: pd.Index
    digest: str
    options: dict[str, Any]

    @classmethod
    def held_out(cls, config: Config, data: RunData, k: int) -> "Slices":
        """Return the slices that fold `k` holds out."""
        return cls._of("oof", data.held_out(k), generator_options(config, "train", data.slices))

    @classmethod
    def of_test(cls, config: Config, data: RunData) -> "Slices":
        """Return the readable slices of the test set, of which there may be none."""
        return cls._of("test", data.readable("test"), generator_options(config, "test", data.slices))

    @classmethod
    def _of(cls, part: str, rows: pd.DataFrame, options: dict[str, Any]) -> "Slices":
        return cls(part, rows.index, slices_digest(rows), options)


def generator_options(config: Config, split: str, slices: pd.DataFrame | None = None) -> dict[str, Any]:
    """Return arguments of DataGenerator: what a model sees of a slice, where images lie, how many workers read them.

    Args:
        split: train or test.
        slices: the slice table; None reads it if the model reads several slices of a scan.
    """
    window = config.model.scan
    is_alone = config.model.neighbours == [0] and window is None
    if not is_alone and slices is None:
        slices = read_slices(config)
    return {
        "image_dir": config.data.images / split,
        "neighbours": config.model.neighbours,
        "slices": None if is_alone else slices,
        "scan": None if window is None else window.slices,
        "workers": config.machine.workers,
        "use_multiprocessing": config.machine.processes,
        "max_queue_size": 16,
    }


def predict_test(run: Run, results: Run | None = None) -> pd.DataFrame:
    """Predict every readable test slice by every fold's model, and the held-out slices in the same way.

    Both are the mean over the passes of `predict.tta`, of probabilities or logits by `predict.mean`; the test set's is
    also the mean over the folds. The logits of each fold and pass are kept in its directory, and not computed again as
    long as model and slices are the same.

    Writes `run.oof_path`, `run.score_path`, the section predict into `run.config_path` and, last,
    `run.predictions_path`.

    Args:
        results: to whose directory all is written, if not to the run's own; see `ich.training.results_folder`.

    Returns:
        Probabilities of the test slices, six float32 columns, indexed by SOPInstanceUID.

    Raises:
        IchError: a fold is not trained, there are no test slices, an image cannot be read, or another process works in
            the directory.
    """
    # Arrow's own pool keeps what it freed, some 30 MB of a table of 100,000 slices; the system's serves TensorFlow too.
    pa.set_memory_pool(pa.system_memory_pool())
    run.check_finished()
    results = results or run
    with results.locked_whole():
        sweep(results.path)
        data = RunData(run.config)
        test = Slices.of_test(run.config, data)
        if len(test.ids) == 0:
            raise IchError(f"{run.config.data.images} holds no test slices; convert sources that have some")
        return _predict_folds(run, data, test, results)


def _predict_folds(run: Run, data: RunData, test: Slices, results: Run) -> pd.DataFrame:
    """Predict by the model of each fold, as `predict_test`, in a directory that other processes are kept from."""
    section = run.config.predict
    mean, digests = MeanOfPasses(len(test.ids), section.mean), []
    for k in range(run.config.folds.n):
        model = cache(partial(load_model, run, k, run.config.machine.distribute))  # read once, if at all
        for folder in (results.fold(k), results.passes(k)):
            sweep(folder)
        predict_held_out(run, k, data, model, results)
        for tta in section.tta:
            path = results.passes(k) / f"test-{tta}.parquet"
            mean.add(pass_logits(run, k, test, tta, model, path))
        digests.append(model_digest(run, k))
    if not results.score_path.exists() or read_provenance(results.oof_path) is None:
        score_run(results)
    frame = _frame(mean.probabilities(), test.ids)
    results.keep_predict(section)
    provenance = {"tta": section.tta, "mean": section.mean, "models": digests}
    write_predictions(frame, results.predictions_path, provenance)
    return frame


def predict_held_out(
    run: Run, k: int, data: RunData, model: Callable[[], keras.Model], results: Run | None = None
) -> None:
    """Predict the slices that fold `k` held out, as `predict_test` the test set; nothing to do if that was done.

    If the slices as they are (the pass none) are not among the passes, they are predicted too, so that the score shows
    what TTA gains.

    Writes `fold<k>/oof.parquet`, last.

    Args:
        data: of the run's config.
        model: returns the fold's model, whose file is written already. Called if a pass is to be predicted.
        results: as for `predict_test`.

    Raises:
        IchError: the folds are others than those that the run was trained on, or an image cannot be read.
    """
    results = results or run
    section = run.config.predict
    path = results.fold(k) / "oof.parquet"
    provenance = {"tta": section.tta, "mean": section.mean, "model": model_digest(run, k)}
    if read_provenance(path) == provenance:
        return
    run.check_data(data.folds_digest)
    slices = Slices.held_out(run.config, data, k)
    mean = MeanOfPasses(len(slices.ids), section.mean)
    for tta in dict.fromkeys(["none", *section.tta]):
        logits = pass_logits(run, k, slices, tta, model, results.passes(k) / f"oof-{tta}.parquet")
        if tta in section.tta:
            mean.add(logits)
    results.forget_results()
    frame = _frame(mean.probabilities(), slices.ids)
    write_predictions(frame, path, provenance)


def check_test_pass(run: Run, k: int, tta: str, model: str) -> tuple[Path, dict]:
    """Check that a file holds the test logits of one TTA pass of fold k's model, as `predict_test` writes them.

    Args:
        model: digest of the model.

    Returns:
        The file, and its provenance.

    Raises:
        IchError: it is missing or damaged, or of another model or pass.
    """
    file = run.passes(k) / f"test-{tta}.parquet"
    provenance = read_provenance(file)
    if provenance is None:
        raise IchError(f"{file} is missing or damaged; {how_to_predict(run.path)}")
    if (provenance.get("model"), provenance.get("pass")) != (model, tta):
        raise IchError(f"{file} is not by the model in {run.fold(k)}; {how_to_predict(run.path)}")
    return file, provenance


def pass_logits(run: Run, k: int, slices: Slices, tta: str, model: Callable[[], keras.Model], path: Path) -> np.ndarray:
    """Return the logits of one TTA pass of a fold's model, from its file if that is of this model and these slices.

    Args:
        tta: name of the pass.
        model: as for `predict_held_out`.
        path: of the file, which is written if it is not there.

    Returns:
        float32, shape (slices, 6).
    """
    provenance = {"model": model_digest(run, k), "slices": slices.digest, "pass": tta}
    if read_provenance(path) == provenance:
        discard_parts(path)  # they are there if a kill came before their removal
        return read_predictions(path).to_numpy()
    network, batch_size = model(), run.config.predict.batch_size
    transforms = augment.passes([tta], *scan.image_shape(network)[:2])
    samples = DataGenerator(slices.ids, batch_size=batch_size, tta=transforms, **slices.options).at_pass(0)
    folder = parts_folder(path, provenance, batch_size)
    logits = predict_logits(network, samples, folder, f"fold {k}, {slices.part}, {tta}")
    write_predictions(_frame(logits, slices.ids), path, provenance)
    discard_parts(path)
    return logits


def model_digest(run: Run, k: int) -> str:
    """Return the SHA-256 of a fold's model file.

    Raises:
        IchError: the file is not there or cannot be read.
    """
    return sha256_of(_model_file(run, k))


def _model_file(run: Run, k: int) -> Path:
    """Return the path of a fold's model, after a check that it can be read."""
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


def _frame(values: np.ndarray, ids: pd.Index) -> pd.DataFrame:
    return pd.DataFrame(values.astype(np.float32, copy=False), ids.rename(INDEX_NAME), list(LABELS))


class MeanOfPasses:
    """The mean over TTA passes and folds, all of one weight.

    Args:
        slices: their number.
        mean: `predict.mean`: of the probabilities, or of the logits.
    """

    def __init__(self, slices: int, mean: str):
        self._total, self._count = np.zeros((slices, len(LABELS))), 0
        self._of_probabilities = mean == "probability"

    def add(self, logits: np.ndarray) -> None:
        """Add the logits of one pass of one fold's model, shape (slices, 6)."""
        self._total += expit(logits, dtype=np.float64) if self._of_probabilities else logits
        self._count += 1

    def probabilities(self) -> np.ndarray:
        """Return the probabilities, float64, shape (slices, 6)."""
        mean = self._total / self._count
        return mean if self._of_probabilities else expit(mean)


def mean_logits(passes: Sequence[np.ndarray], mean: str) -> np.ndarray:
    """Return the logits of the mean over several passes.

    Args:
        passes: logits, arrays of one shape.
        mean: `predict.mean`: of the probabilities, or of the logits.

    Returns:
        float32, exact also where probabilities are close to 0 or 1; of one pass, its own.
    """
    logits = np.stack(passes)
    if len(logits) == 1:
        return logits[0].astype(np.float32, copy=False)
    logits = logits.astype(np.float64)
    if mean == "logit":
        return logits.mean(axis=0).astype(np.float32)
    log_p, log_not_p = (logsumexp(log_expit(sign * logits), axis=0) for sign in (1, -1))
    return (log_p - log_not_p).astype(np.float32)
