"""The config of one experiment: its sections, which are in the modules beside this one, and the section machine."""

from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator

from ich.config.data import Data, Folds, Preprocess
from ich.config.model import Model
from ich.config.section import Section, as_list, refuse_unused
from ich.config.sequence import Sequence
from ich.config.train import Predict, Train


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("1 works in this process, -1 on all cores, 0 not at all")
    return value


class Machine(Section):
    """What works on a run: it changes no result."""

    # Workers that convert, as joblib's n_jobs: 1 works in the process itself, -1 on all cores.
    jobs: Annotated[int, AfterValidator(_not_zero)] = -1
    # What these workers are. With dask, a cluster converts, and trains the folds of train_kfold, one on each worker.
    backend: Literal["processes", "threads", "dask"] = "processes"
    # Address of the Dask scheduler, such as tcp://10.0.0.5:8786.
    scheduler: str | None = None
    # Threads or processes that read and augment images.
    workers: int = Field(4, ge=1)
    # Read with processes in place of threads.
    processes: bool = False
    # Batches for each call of the backend, as in Keras's `compile` (not with PyTorch): above 1 the GPU waits less,
    # because Keras syncs on the loss once a call.
    steps_per_execution: int = Field(1, ge=1)
    # Compile by XLA (with PyTorch: torch.compile), as in Keras's `compile`: auto does so on a GPU, not with PyTorch.
    jit_compile: Literal["auto"] | bool = "auto"
    # mirrored: divide each batch among all GPUs of the machine (TensorFlow only).
    distribute: Literal["mirrored"] | None = None
    # Where each fold's training is logged: tensorboard (into the fold's directory), wandb (Weights & Biases), mlflow;
    # each needs its package (pip install 'ich[wandb]').
    log_to: Annotated[list[Literal["tensorboard", "wandb", "mlflow"]], BeforeValidator(as_list)] = Field([])

    @field_validator("scheduler")
    @classmethod
    def _has_a_cluster(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("backend", "dask") != "dask":
            return refuse_unused(
                cls, "scheduler", value, "needs machine.backend=dask, which alone has a scheduler", info
            )
        return value

    @field_validator("distribute")
    @classmethod
    def _one_step_each(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("steps_per_execution", 1) > 1:
            raise ValueError("needs machine.steps_per_execution=1: TensorFlow fails in Keras's loop over several steps")
        if value is not None and info.data.get("jit_compile") is True:
            raise ValueError("needs machine.jit_compile=auto or false: XLA compiles nothing that several devices share")
        return value


class Config(Section):
    """One experiment: all that decides its result, where its data are, and what works on it."""

    # Name of the run: its directory is runs/NAME, its submission submissions/NAME.csv.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    data: Data
    preprocess: Preprocess = Preprocess()
    folds: Folds = Folds()
    model: Model = Model()
    train: Train = Train()
    predict: Predict = Predict()
    sequence: Sequence = Sequence()
    machine: Machine = Machine()

    _unused: dict[str, str] = PrivateAttr({})

    @field_validator("train")
    @classmethod
    def _scans_are_whole(cls, value: Train, info: ValidationInfo) -> Train:
        model = info.data.get("model")
        for key in ("slices_per_series", "positive_share"):
            if model is not None and model.scan is not None and getattr(value, key) is not None:
                raise ValueError(f"model.scan shows whole scans, each slice once an epoch; set train.{key}=null")
        return value

    @property
    def unused(self) -> dict[str, str]:
        """The keys whose values, other than the defaults, no stage reads, as another key decides; a sentence each."""
        return self._unused

    def resolved(self) -> str:
        """The config as YAML, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
