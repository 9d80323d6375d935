"""Training callbacks: checkpoint, best weights, AUCs in validation alone, a line for each epoch, NaN loss."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from ich.data.generator import DataGenerator
from ich.errors import IchError, one_line, or_na
from ich.files import replacing
from ich.models.losses import LabelAUC


class Checkpoint(keras.callbacks.Callback):
    """Writes the state of the training after each epoch to one file: variables and history.

    The variables of model and optimizer include the moving averages of the weights, the steps of the schedule, the loss
    scale of mixed precision and the random state of dropout. The samples of an epoch depend on its number alone.

    keras.callbacks.BackupAndRestore overwrites its file in place, writes the epoch's number into a second file, so that
    a kill between the two trains an epoch twice, and drops the history of earlier epochs.

    Args:
        path: of the file, .npz.

    Attributes:
        history: metric -> its values by epoch, including those before a restart; up to its last one, NaN where an epoch
            has none.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.history: dict[str, list[float]] = {}

    def read_history(self) -> int:
        """Read the history up to the last epoch, if there is a checkpoint.

        Returns:
            The number of finished epochs: `initial_epoch` of `fit`.

        Raises:
            IchError: the checkpoint cannot be read.
        """
        if not self.path.exists():
            return 0
        self.history = json.loads(_stored(self.path)[0])
        return len(self.history["loss"])

    def restore(self, model: keras.Model) -> int:
        """Restore a compiled model to its state after the last epoch, if there is a checkpoint.

        Returns:
            The number of finished epochs: `initial_epoch` of `fit`.

        Raises:
            IchError: the checkpoint cannot be read, or belongs to another model.
        """
        if not self.path.exists():
            return 0
        if not model.optimizer.built:  # a second build would add LossScaleOptimizer's variables again
            model.optimizer.build(model.trainable_variables)
        self.history = json.loads(read_variables(self.path, _state(model)))
        return len(self.history["loss"])

    def on_epoch_end(self, epoch, logs=None):
        for name, value in logs.items():
            values = self.history.setdefault(name, [])
            values += [math.nan] * (epoch - len(values))  # of epochs without validation
            values.append(float(value))
        write_variables(self.path, _state(self.model), json.dumps(self.history))


class KeepBest(keras.callbacks.Callback):
    """Writes the model's weights after each validation with the best value so far.

    With averaged weights it must come before keras.callbacks.SwapEMAWeights, which replaces the averages in the model
    after the validation.

    Args:
        path: of the file, .npz.
        monitor: the metric's name without val_; lower is better.
        best: the best value before a restart.
    """

    def __init__(self, path: Path, monitor: str, best: float = math.inf):
        super().__init__()
        self.path, self.monitor, self.best = path, monitor, best

    def on_test_end(self, logs=None):
        if logs[self.monitor] < self.best:
            write_variables(self.path, self.model.weights)
            self.best = logs[self.monitor]


class ValidationAUC(keras.callbacks.Callback):
    """Computes AUCs in validation alone: in a small training step they take longer than the network.

    Keras compiles training and validation steps separately, each with the metrics that are not paused.

    Args:
        metrics: AUC metrics that the model is compiled with.
    """

    def __init__(self, metrics: Sequence[LabelAUC]):
        super().__init__()
        self.metrics = metrics

    def on_train_begin(self, logs=None):
        self._pause(True)

    def on_test_begin(self, logs=None):
        self._pause(False)

    def on_test_end(self, logs=None):
        self._pause(True)

    def on_train_end(self, logs=None):
        self._pause(False)

    def on_epoch_end(self, epoch, logs=None):
        for metric in self.metrics:  # values of the training; those of validation begin with val_
            del logs[metric.name]

    def _pause(self, paused: bool) -> None:
        for metric in self.metrics:
            metric.paused = paused


class EpochLine(keras.callbacks.Callback):
    """Prints a line for each epoch, in a terminal after a progress bar.

    Adds the epoch's seconds, with validation, to the logs of the callbacks after it.

    Args:
        title: of the line, such as "fold 0".
    """

    def __init__(self, title: str):
        super().__init__()
        self.title = title
        self._bar = None

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()
        self._name = f"{self.title}, epoch {epoch + 1}/{self.params['epochs']}"
        # None: no bar where the output is not a terminal, such as a log file.
        self._bar = tqdm(total=self.params["steps"], desc=self._name, unit="batch", leave=False, disable=None)

    def on_train_batch_end(self, batch, logs=None):
        self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self._bar.update(batch + 1 - self._bar.n)  # `batch` is the last of several steps per execution

    def on_test_begin(self, logs=None):
        if self._bar is not None:
            self._bar.set_postfix_str("validating")

    def on_epoch_end(self, epoch, logs=None):
        self.close()
        logs["seconds"] = time.perf_counter() - self._start
        print(
            f"{self._name}: loss {logs['loss']:.4f}, validation loss {or_na(logs.get('val_loss', math.nan), '.4f')},"
            f" AUC of any {or_na(logs.get('val_auc_any', math.nan), '.4f')}, {logs['seconds']:.1f} s",
            flush=True,
        )

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class TerminateOnNaNLoss(keras.callbacks.Callback):
    """Ends the training at the first batch with a NaN or infinite loss, and names its samples.

    keras.callbacks.TerminateOnNaN ends the epoch as if it were complete: the checkpoint would hold NaN weights. With
    several steps per execution, the samples of all of them are named.

    Args:
        samples: the training's samples.
        advice: the end of the message.

    Raises:
        IchError: from `fit`, when a loss is not finite.
    """

    def __init__(self, samples: DataGenerator, advice: str):
        super().__init__()
        self.samples, self.advice = samples, advice

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self._first = batch

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):  # the mean of the epoch so far
            batches = range(self._first, min(self._first + self.model.steps_per_execution, len(self.samples)))
            first, last = batches[0] + 1, batches[-1] + 1
            place = f"batch {first}" if first == last else f"batches {first} to {last}"
            ids = [str(id) for index in batches for id in self.samples.ids_of(index)]
            raise IchError(
                f"the loss is {logs['loss']} in epoch {self._epoch + 1}, {place}, with the slices {', '.join(ids)};"
                f" {self.advice}"
            )


def write_variables(path: Path, variables: Sequence[keras.Variable], note: str = "") -> None:
    """Write the values of variables, in their order, and a note.

    Raises:
        IchError: the system refuses; an existing file is unchanged.
    """
    values = {f"{place:05}": keras.ops.convert_to_numpy(variable) for place, variable in enumerate(variables)}
    with replacing(path) as temporary:
        np.savez(temporary, note=np.array(note), **values)


def read_variables(path: Path, variables: Sequence[keras.Variable]) -> str:
    """Set variables to the values of a file of `write_variables`.

    Returns:
        The note.

    Raises:
        IchError: the file cannot be read, or has other variables.
    """
    note, values = _stored(path)
    if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
        raise IchError(f"the checkpoint {path} has the variables of another model than the config's; {_advice(path)}")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return note


def _stored(path: Path) -> tuple[str, list[np.ndarray]]:
    """Return the note and the values of a file of `write_variables`; raises IchError if it cannot be read."""
    try:
        # NumPy leaves a damaged archive open that it has opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            note, *values = (stored[name] for name in sorted(stored.files, key=lambda name: (name != "note", name)))
    except Exception as error:  # zipfile, zlib and NumPy raise different errors for a damaged file
        raise IchError(f"the checkpoint {path} cannot be read ({one_line(error)}); {_advice(path)}") from error
    return str(note), values


def _advice(path: Path) -> str:
    return f"delete {path.parent} to train the fold from its start"


def _state(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.optimizer.variables]
