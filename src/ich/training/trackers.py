"""Log a training to TensorBoard, Weights & Biases or MLflow by Keras callbacks."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import keras

from ich.errors import IchError, one_line
from ich.files import write_json
from ich.results.result_directory import read_mapping

IDS = "trackers.json"
"""The file in a fold's directory with the trackers' ids of its training."""

_EXPERIMENT = "ich"  # the project's or experiment's name, unless the tracker's environment variable has another


class Training(NamedTuple):
    """The training of a fold, as trackers need it.

    Args:
        folder: of the fold.
        run: the run's name.
        config: plain values.
        steps: number of steps trained before this start; 0 begins a new log.
    """

    folder: Path
    run: str
    fold: int
    config: dict[str, Any]
    steps: int


def check_installed(names: Sequence[str]) -> None:
    """Raise IchError if the package of a tracker is missing."""
    for name in names:
        if find_spec(name) is None:
            raise IchError(f"machine.log_to={name} needs the package {name}: pip install 'ich[{name}]'")


@contextmanager
def callbacks(names: Sequence[str], training: Training) -> Iterator[list[keras.callbacks.Callback]]:
    """Yield callbacks that log to trackers within the block; a resumed training continues its own logs.

    Args:
        names: keys of `TRACKERS`.

    Raises:
        IchError: a tracker needs an account, cannot be reached, or has no log to continue.
    """
    path = training.folder / IDS
    earlier_ids = read_mapping(path, "names the logs of this training") if training.steps and path.exists() else {}
    active, ids = [], {}
    with ExitStack() as stack:
        for name in names:
            training.folder.mkdir(parents=True, exist_ok=True)
            try:
                callback, ids[name] = stack.enter_context(TRACKERS[name](training, earlier_ids.get(name)))
            except Exception as error:  # each raises errors of its own and of its connection
                raise IchError(f"machine.log_to={name}: {one_line(error, named=True)}; {_ADVICE[name]}") from error
            active.append(callback)
        if names:
            write_json(path, ids)
        yield active


_Log = Iterator[tuple[keras.callbacks.Callback, str | None]]


@contextmanager
def _tensorboard(training: Training, id: str | None) -> _Log:
    yield keras.callbacks.TensorBoard(training.folder / "tensorboard", write_graph=False), None


@contextmanager
def _wandb(training: Training, id: str | None) -> _Log:
    import wandb
    from wandb.integration.keras import WandbMetricsLogger

    with wandb.init(
        project=os.environ.get("WANDB_PROJECT", _EXPERIMENT),
        group=training.run,
        name=f"{training.run}-fold{training.fold}",
        config=training.config,
        id=id,
        resume="allow",
        dir=training.folder,
    ) as run:
        yield WandbMetricsLogger(initial_global_step=training.steps), run.id


@contextmanager
def _mlflow(training: Training, id: str | None) -> _Log:
    import mlflow
    from mlflow.keras import MlflowCallback

    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT))
    tags = {"run": training.run, "fold": str(training.fold)}
    with mlflow.start_run(run_id=id, run_name=f"{training.run}-fold{training.fold}", tags=tags) as run:
        mlflow.log_dict(training.config, "config.yaml")
        try:
            yield MlflowCallback(), run.info.run_id
        finally:
            mlflow.flush_async_logging()


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}

_ADVICE = {
    "tensorboard": "leave it out",
    "wandb": "log in (wandb login), work without network (WANDB_MODE=offline), or leave it out",
    "mlflow": f"correct MLFLOW_TRACKING_URI, delete {IDS} in the fold's directory for a new log, or leave it out",
}
