"""Train one fold of a run, or all, and predict the slices that each holds out."""

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import cache, partial
from signal import SIGKILL
from threading import Lock

import keras
import pandas as pd

from ich import parallel
from ich.competition.labels import LABELS
from ich.config import Config
from ich.data.generator import DataGenerator
from ich.errors import IchError
from ich.files import remove, replacing, sweep, write_json
from ich.models import augmented, devices, scan
from ich.models.losses import LabelAUC
from ich.training import curves, fold_setup, initial, pseudo, trackers
from ich.training.callbacks import Checkpoint, EpochLine, KeepBest, TerminateOnNaNLoss, ValidationAUC, read_variables
from ich.training.chunked_inference import reraising_ich_errors
from ich.training.inference import load_model, predict_held_out
from ich.training.joined import Joined
from ich.training.run_data import RunData
from ich.training.run_directory import Run

CHECKPOINT, BEST = "checkpoint.npz", "best.npz"
"""Names of files in the directory of a fold that is being trained."""

_ONE_AT_A_TIME = Lock()  # the threads of a Dask worker share one GPU
_TRAIN = """
import sys
from pathlib import Path
from ich import cli, config
from ich.startup import import_keras
import_keras()
from ich.training import fold
from ich.training.run_directory import Run
run = Run(Path(sys.argv[1]), config.load(Path("/dev/stdin")))
cli.run(lambda: fold.train_fold(run, int(sys.argv[2])))
"""


def train_folds(run: Run) -> None:
    """Train the unfinished folds: one after the other, or with `machine.backend=dask` on the workers of a cluster.

    The workers must start in this directory and see its files; each trains one fold at a time.

    Raises:
        IchError: as `train_fold`, or the cluster cannot be reached.
    """
    todo = [k for k in range(run.config.folds.n) if k not in run.finished_folds()]
    machine = run.config.machine
    if not todo or machine.backend != "dask":
        for k in todo:
            train_fold(run, k)
        return
    print(f"{len(todo)} fold(s) on the cluster at {machine.scheduler}, whose workers' logs show their epochs")
    tasks = ((run, k) for k in todo)
    for k in parallel.unordered(
        _train_in_a_process, tasks, jobs=len(todo), backend="dask", scheduler=machine.scheduler
    ):
        print(f"fold {k}: {run.fold(k)}")


def _train_in_a_process(run: Run, k: int) -> int:
    """Train a fold in a process of its own, as a task of a cluster; return its number.

    In other threads of a worker Dask draws from Python's global random state, by which Keras seeds layers. A process
    can also start others that read images, and frees the GPU when it ends.
    """
    command = [sys.executable, "-c", _TRAIN, str(run.path), str(k)]
    with _ONE_AT_A_TIME:
        done = subprocess.run(command, input=run.config.resolved(), stderr=subprocess.PIPE, text=True)
    if done.returncode == -SIGKILL:
        raise IchError(f"fold {k}: its process {parallel.KILLED} machine.workers: the same command continues")
    if done.returncode:
        message = re.search(r"^error: ((?:(?!^Traceback).)*)\Z", done.stderr.rstrip(), re.MULTILINE | re.DOTALL)
        if message is None:
            raise RuntimeError(f"fold {k} ended with status {done.returncode}: {done.stderr}")
        raise IchError(f"fold {k}: {message[1]}")
    return k


def train_fold(run: Run, k: int) -> None:
    """Train on all folds but `k` and predict fold `k`; nothing to do if that was done.

    An interrupted fold resumes after its last whole epoch: the checkpoint holds all variables, and the samples of an
    epoch depend on its number alone. On the same CPU, with equally many threads, the result is the same to the bit as
    without the interruption; a GPU adds in another order each time.

    The weights kept are those of the last epoch, unless `train.keep` says otherwise: the best epoch's would be chosen
    on the patients whose predictions are then scored, and the out-of-fold score would be better than on new patients.

    Writes model.keras, history.csv, training.json, curves.png and, last, oof.parquet into `run.fold(k)`; before that,
    the checkpoint.

    Raises:
        IchError: there is no such fold, another process trains it, slices of folds.csv have no image, the loss is NaN
            or infinite, a file cannot be read or written, or the backend does not support what the config sets; as
            `initial.source` and `initial.set_weights`.
    """
    config = run.config
    if config.preprocess.files != "channels":
        raise IchError(f"training reads images of preprocess.files=channels, not {config.preprocess.files}")
    if not 0 <= k < config.folds.n:
        raise IchError(f"there is no fold {k}; the config has folds 0 to {config.folds.n - 1}")
    trackers.check_installed(config.machine.log_to)
    if config.train.head_epochs and "mlflow" in config.machine.log_to:
        raise IchError(
            "machine.log_to=mlflow records the settings of one optimizer, and train.head_epochs trains with two; leave"
            " one of both out"
        )
    if k in run.finished_folds():
        _remove_checkpoint(run, k)  # it is there if a kill came between the last two steps
        return
    with run.locked(k):
        data = RunData(config, ["SeriesInstanceUID", "z"])
        _check_folds(config, data)
        _train(run, k, data, initial.source(config, data))
        # By the saved model, so that what is scored is what will predict.
        predict_held_out(run, k, data, cache(partial(load_model, run, k, config.machine.distribute)))
        _remove_checkpoint(run, k)


def _check_folds(config: Config, data: RunData) -> None:
    """Refuse a file of folds of another number than the config's, or with slices that have no image."""
    path, count = config.data.folds_path, data.folds["fold"].max() + 1
    if count != config.folds.n:
        raise IchError(
            f"{path} has {count} folds, the config {config.folds.n}; set folds.n to the file's, or make the folds again"
        )
    missing = data.folds.index.difference(data.readable("train").index)
    if len(missing):
        raise IchError(
            f"{path} lists {len(missing):,} slice(s) that {config.data.images} has no image of, such as {missing[0]};"
            " make the folds again"
        )


def _train(run: Run, k: int, data: RunData, source: Run | None) -> None:
    """Train fold `k`, from the weights of another run if there is one, and write all but its predictions."""
    config = run.config
    keras.backend.clear_session()  # the previous fold leaves its graph
    keras.utils.set_random_seed(config.train.seed + k)
    keras.config.set_dtype_policy(config.train.precision)
    strategy = None
    if config.machine.distribute is not None:
        if config.train.accumulate > 1:  # Keras's condition on the step merges replicas where TensorFlow cannot
            raise IchError(
                "train.accumulate works on one device, machine.distribute shares batches among several; set one of both"
                " to its default"
            )
        strategy = devices.mirrored(train=config.train.batch_size, predict=config.predict.batch_size)
    multiple = strategy.num_replicas_in_sync if strategy else 1
    labeled = pseudo.read(config, data, k)
    joined = [*data.external, *([labeled.joined] if labeled else [])]
    train, held_out = fold_setup.generators(config, data.folds, data.slices, k, multiple, joined)
    with strategy.scope() if strategy else nullcontext():
        aucs = [LabelAUC(label) for label in LABELS]
        model = fold_setup.compiled_model(config, train, aucs)
        if source is not None:
            initial.set_weights(model, source, k)
    facts = data.facts | {"pseudo": labeled.audit if labeled else None} | (initial.facts(source) if source else {})
    run.claim(keras.backend.backend(), devices.names(), facts)
    if source is not None:
        initial.check_same(source, run)
    run.restart(k)
    sweep(run.fold(k))
    _print_start(config, k, train, held_out, data.folds, joined)
    with strategy.scope() if strategy else nullcontext():
        history, seconds = _fit(run, k, model, train, held_out, aucs)
    with replacing(run.fold(k) / "model.keras") as temporary:
        scan.without_slice_head(augmented.without_augmentation(model)).save(temporary)
    with replacing(run.fold(k) / "history.csv") as temporary:
        history.to_csv(temporary)
    write_json(run.fold(k) / "training.json", {"epochs": len(history), "seconds": round(seconds, 1)})
    with replacing(run.fold(k) / "curves.png") as temporary:
        curves.learning_curves({k: history}).savefig(temporary, dpi=110)


def _print_start(
    config: Config,
    k: int,
    train: DataGenerator,
    held_out: DataGenerator,
    table: pd.DataFrame,
    joined: Sequence[Joined],
) -> None:
    """Print what is trained on which devices, and which scores or settings will disappoint."""
    names = devices.names()
    print(f"fold {k}: {len(train.ids):,} slices to train on, {len(held_out.ids):,} held out, on {', '.join(names)}")
    for extra in joined:
        print(f"fold {k}: of these to train on, {extra}")
        for sentence in extra.notes:
            print(f"fold {k}: {sentence}")
    constant = [label for label in LABELS if table.loc[held_out.ids, label].nunique() == 1]
    if constant:
        print(f"fold {k}: the AUC of {', '.join(constant)} is n/a: all slices held out have the label, or none has it")
    if config.train.precision != "float32" and all(name.startswith("cpu") for name in names):
        print(f"warning: no GPU was found, and {config.train.precision} is slow on a CPU", file=sys.stderr)


def _fit(
    run: Run, k: int, model: keras.Model, train: DataGenerator, held_out: DataGenerator, aucs: list[LabelAUC]
) -> tuple[pd.DataFrame, float]:
    """Train, from the checkpoint on if there is one; the model has the weights to keep afterwards.

    Returns:
        (history, seconds): a row for each epoch, and how long all of them took.
    """
    section = run.config.train
    checkpoint = Checkpoint(run.fold(k) / CHECKPOINT)
    done = checkpoint.read_history()
    if done:
        print(f"fold {k}: goes on after epoch {done} of {section.epochs}")
    advice = f"lower train.learning_rate, and give the run another name or delete {run.path}"
    line = EpochLine(f"fold {k}")
    watching: list[keras.callbacks.Callback] = [TerminateOnNaNLoss(train, advice), ValidationAUC(aucs), line]
    if section.keep == "best":
        before = [loss for loss in checkpoint.history.get("val_weighted_log_loss", ()) if not math.isnan(loss)]
        watching.append(KeepBest(run.fold(k) / BEST, "weighted_log_loss", min(before, default=math.inf)))
    if section.ema_momentum is not None:
        watching.append(keras.callbacks.SwapEMAWeights())
    log_to = run.config.machine.log_to
    config = run.config.model_dump(mode="json")
    training = trackers.Training(run.fold(k), run.config.name, k, config, steps=done * len(train))
    tracked = trackers.callbacks(log_to, training)
    validated = [n for n in range(1, section.epochs + 1) if n % section.validate_every == 0 or n == section.epochs]

    def fit(first: int, last: int) -> None:
        if done > first:  # else the checkpoint, if there is one, is of another optimizer, whose work the model has
            checkpoint.restore(model)
        model.fit(
            train,
            validation_data=held_out,
            validation_freq=validated,
            initial_epoch=max(first, done),
            epochs=last,
            shuffle=False,  # the generator shuffles samples; this would shuffle batches, by the global random state
            callbacks=[*watching, *tracking, checkpoint],
            verbose=0,
        )

    with reraising_ich_errors(), devices.synchronized(model), closing(line), tracked as tracking:
        if head := section.head_epochs:
            if done <= head:  # after the last of them too, as the end of `fit` sets the averages of the weights
                with scan.frozen_backbone(model):
                    fold_setup.compile_model(model, run.config, train, aucs, head=True)
                    fit(0, head)
            fold_setup.compile_model(model, run.config, train, aucs)
        fit(head, section.epochs)
    if section.keep == "best":
        read_variables(run.fold(k) / BEST, model.weights)
    seconds = sum(checkpoint.history.pop("seconds", ()))
    # The checkpoint of an earlier version has metrics that this version does not continue.
    complete = {name: values for name, values in checkpoint.history.items() if len(values) == section.epochs}
    return pd.DataFrame(complete).rename_axis("epoch"), seconds


def _remove_checkpoint(run: Run, k: int) -> None:
    """Remove the files that only an unfinished fold needs."""
    remove(run.fold(k) / CHECKPOINT, run.fold(k) / BEST)
