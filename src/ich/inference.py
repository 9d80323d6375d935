"""Prediction: a run's models on the test set."""

from pathlib import Path

import keras
import numpy as np
import pandas as pd

from ich import runs, slices
from ich.errors import IchError
from ich.generator import DataGenerator
from ich.training import generator_options, predict


def load_model(run: runs.Run, k: int) -> keras.Model:
    """The model of a fold, read in Keras's safe mode: no code of the file is run.

    Raises:
        IchError: it is not there or cannot be read.
    """
    path = run.fold(k) / "model.keras"
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged zip, HDF5 file and config each fail in a way of their own
        raise IchError(
            f"the model {path} cannot be read ({error}); delete {path.parent} and train the fold again"
        ) from error


def predict_test(run: runs.Run, out: Path | None = None) -> pd.DataFrame:
    """Predict every readable test slice by every fold's model; the mean of the probabilities.

    Each fold's predictions are kept in its directory and not made again. Writes `run.predictions_path`, or all under
    the same names into the folder `out`.

    Raises:
        IchError: a fold is not trained, or there are no test slices.
    """
    run.check_finished()
    out = out or run.path
    ids = slices.readable(runs.slice_table(run.config), "test").index
    if len(ids) == 0:
        raise IchError(f"{run.config.data.images} holds no test slices; convert sources that have some")
    folds = [
        _predict_fold(run, k, ids, out / f"fold{k}" / "predictions_test.parquet") for k in range(run.config.folds.n)
    ]
    probabilities = np.mean([fold.to_numpy() for fold in folds], axis=0, dtype=np.float64)
    mean = pd.DataFrame(probabilities.astype(np.float32), index=folds[0].index, columns=folds[0].columns)
    runs.write_predictions(mean, out / run.predictions_path.name)
    return mean


def _predict_fold(run: runs.Run, k: int, ids: pd.Index, path: Path) -> pd.DataFrame:
    if path.exists():
        frame = runs.read_predictions(path)
        if frame.index.equals(ids):
            return frame
    samples = DataGenerator(
        ids,
        image_dir=run.config.data.images / "test",
        batch_size=run.config.predict.batch_size,
        **generator_options(run.config),
    )
    frame = predict(load_model(run, k), samples)
    runs.write_predictions(frame, path)
    return frame
