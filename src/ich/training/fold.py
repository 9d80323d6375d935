"""Training: one fold of a run, and its out-of-fold predictions."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import cache, partial
from signal import SIGKILL
from threading import Lock

import keras
import numpy as np
import pandas as pd

from ich import parallel
from ich.competition import folds
from ich.competition.labels import LABELS
from ich.config import Config, Train
from ich.data import augment, sampling
from ich.data.generator import DataGenerator
from ich.errors import IchError
from ich.files import remove, replacing, sweep, write_json
from ich.images import slice_table
from ich.models import backbones, devices, prior
from ich.models.losses import LabelAUC, WeightedLogLoss, build_loss
from ich.models.optimizers import adamw
from ich.results.predictions import read_predictions
from ich.training import curves, run_directory, trackers
from ich.training.callbacks import Checkpoint, EpochLine, KeepBest, TerminateOnNaNLoss, ValidationAUC, read_variables
from ich.training.chunked_inference import unwrapped
from ich.training.inference import generator_options, load_model, predict_held_out
from ich.training.run_directory import Run

CHECKPOINT, BEST = "checkpoint.npz", "best.npz"
"""Names of files in the directory of a fold that is being trained."""

_ALONE = Lock()  # of a worker's threads, one at a time: they have one GPU
_TRAIN = """
import sys
from pathlib import Path
from ich import cli, config
from ich.startup import import_keras
import_keras()
from ich.training import fold, run_directory
run = run_directory.Run(Path(sys.argv[1]), config.load(Path("/dev/stdin")))
cli.run(lambda: fold.train_fold(run, int(sys.argv[2])))
"""


def train_folds(run: Run) -> None:
    """Train the folds that are not finished: one after the other, or with `machine.backend=dask` a fold a worker.

    The cluster's workers start in this directory, and see its files; each trains one fold at a time.

    Raises:
        IchError: as `train_fold`, or there is no such cluster.
    """
    todo = [k for k in range(run.config.folds.n) if k not in run.finished_folds()]
    machine = run.config.machine
    if not todo or machine.backend != "dask":
        for k in todo:
            train_fold(run, k)
        return
    print(f"{len(todo)} fold(s) on the cluster at {machine.scheduler}, whose workers' logs tell of their epochs")
    tasks = ((run, k) for k in todo)
    done = parallel.unordered(_train_there, tasks, jobs=len(todo), backend="dask", scheduler=machine.scheduler)
    for k in done:
        print(f"fold {k}: {run.fold(k)}")


def _train_there(run: Run, k: int) -> int:
    """A task of a cluster: train a fold, and tell which.

    In a process of its own: in other threads of its workers Dask draws from Python's global random state, which Keras
    seeds the layers by. It may have processes that read images, too, and gives the GPU back when it ends.
    """
    command = [sys.executable, "-c", _TRAIN, str(run.path), str(k)]
    with _ALONE:
        done = subprocess.run(command, input=run.config.resolved(), stderr=subprocess.PIPE, text=True)
    if done.returncode == -SIGKILL:
        raise IchError(f"fold {k}: its process {parallel.KILLED} machine.workers: the same command continues")
    if done.returncode:
        told = re.search(r"^error: ((?:(?!^Traceback).)*)\Z", done.stderr.rstrip(), re.MULTILINE | re.DOTALL)
        if told is None:
            raise RuntimeError(f"fold {k} ended with status {done.returncode}: {done.stderr}")
        raise IchError(f"fold {k}: {told[1]}")
    return k


def train_fold(run: Run, k: int) -> None:
    """Train on all folds but `k` and predict fold `k`; nothing to do if that was done.

    A fold that was interrupted goes on after its last whole epoch: the checkpoint holds all variables, and what an
    epoch shows depends on its number alone. On the same CPU, with as many threads, it ends in the very same numbers as
    one that ran through; a GPU adds in another order each time.

    The weights kept are those of the last epoch, unless `train.keep` says otherwise. To keep those of the best one
    would choose them on the patients whose predictions are then scored, and the out-of-fold score would be better than
    any on new patients.

    Writes model.keras, history.csv, training.json, curves.png and, last, oof.parquet into `run.fold(k)`; before that,
    the checkpoint.

    Raises:
        IchError: there is no such fold, another process trains it, slices of folds.csv have no image, the loss is NaN
            or infinite, a file cannot be read or written, or the backend cannot do what the config asks of it.
    """
    config = run.config
    if config.preprocess.files != "channels":
        raise IchError(f"training reads images of preprocess.files=channels, not {config.preprocess.files}")
    if not 0 <= k < config.folds.n:
        raise IchError(f"there is no fold {k}; the config has folds 0 to {config.folds.n - 1}")
    trackers.check_installed(config.machine.log_to)
    if k in run.finished_folds():
        _forget(run, k)  # if it was killed between the last two steps
        return
    with run.locked(k):
        _train_fold(run, k)


def _train_fold(run: Run, k: int) -> None:
    """As `train_fold`, with a fold that is not finished and that others are kept from."""
    config = run.config
    table = folds.read_folds(config.data.folds_path)
    if table["fold"].max() != config.folds.n - 1:
        raise IchError(
            f"{config.data.folds_path} has {table['fold'].max() + 1} folds, the config {config.folds.n};"
            " set folds.n to the file's, or make the folds again"
        )
    without = table.index.difference(slice_table.readable(run_directory.slices_of(config), "train").index)
    if len(without):
        raise IchError(
            f"{config.data.folds_path} lists {len(without):,} slice(s) that {config.data.images} has no image of, such"
            f" as {without[0]}; make the folds again"
        )

    keras.backend.clear_session()  # the fold before leaves its graph
    keras.utils.set_random_seed(config.train.seed + k)
    keras.config.set_dtype_policy(config.train.precision)
    strategy = None
    if config.machine.distribute is not None:
        strategy = devices.mirrored(train=config.train.batch_size, predict=config.predict.batch_size)
    train, held_out = _generators(config, table, k, multiple=strategy.num_replicas_in_sync if strategy else 1)
    first = train[0]
    with strategy.scope() if strategy else nullcontext():
        aucs = [LabelAUC(label) for label in LABELS]
        model = backbones.build_model(
            config.model.name, first[0].shape[1:], weights=config.model.weights, dropout=config.model.dropout
        )
        sample = train.sampling.of if isinstance(train.sampling, sampling.Multiple) else train.sampling
        if isinstance(sample, sampling.PositiveShare):
            model = prior.corrected(model, sample.oversampling)
        model.compile(
            optimizer=_optimizer(config.train, steps_per_epoch=len(train)),
            loss=_loss(config.train),
            metrics=[WeightedLogLoss(), *aucs],
            steps_per_execution=devices.steps_per_execution(config.machine.steps_per_execution),
        )
        # Else `fit` builds these from a batch that it draws, and on JAX and PyTorch each epoch then begins with what
        # the workers read for the one before.
        model.optimizer.build(model.trainable_variables)
        model.test_on_batch(*first)
        model.reset_metrics()
    names = devices.names()
    run.claim(keras.backend.backend(), names)
    run.restart(k)
    sweep(run.fold(k))
    print(f"fold {k}: {len(train.ids):,} slices to train on, {len(held_out.ids):,} held out, on {', '.join(names)}")
    alike = [label for label in LABELS if table.loc[held_out.ids, label].nunique() == 1]
    if alike:
        print(f"fold {k}: the AUC of {', '.join(alike)} is n/a: all slices held out have the label, or none has it")
    if config.train.precision != "float32" and all(name.startswith("cpu") for name in names):
        print(f"warning: no GPU was found, and {config.train.precision} is slow on a CPU", file=sys.stderr)
    with strategy.scope() if strategy else nullcontext():
        history, seconds = _fit(run, k, model, train, held_out, aucs)
    with replacing(run.fold(k) / "model.keras") as temporary:
        model.save(temporary)
    with replacing(run.fold(k) / "history.csv") as temporary:
        history.to_csv(temporary)
    write_json(run.fold(k) / "training.json", {"epochs": len(history), "seconds": round(seconds, 1)})
    with replacing(run.fold(k) / "curves.png") as temporary:
        curves.learning_curves({k: history}).savefig(temporary, dpi=110)
    # Of what was saved, so that nothing else can be scored than what will predict.
    predict_held_out(run, k, cache(partial(load_model, run, k, config.machine.distribute)))
    _tell_shift(run, k, table)
    _forget(run, k)


def _tell_shift(run: Run, k: int, table: pd.DataFrame) -> None:
    """Warn of a loss that shifts probabilities, by how far held-out predictions are off."""
    causes = run.config.train.shifting
    if not causes:
        return
    told = read_predictions(run.fold(k) / "oof.parquet").mean()
    found = table.loc[table["fold"] == k, list(LABELS)].mean()
    sizes = ", ".join(f"{label} {told[label]:.4f} (found {found[label]:.4f})" for label in LABELS)
    print(
        f"warning: {' and '.join(causes)}: probabilities are shifted, which costs log loss; the means of those held out"
        f" are {sizes}. When all folds are trained and predicted, scripts/blend.py {run.path} --calibrate platt --out"
        f" {run.path}-calibrated corrects them",
        file=sys.stderr,
    )


def _fit(
    run: Run, k: int, model: keras.Model, train: DataGenerator, held_out: DataGenerator, aucs: list[LabelAUC]
) -> tuple[pd.DataFrame, float]:
    """Train from the last checkpoint on, if there is one; the weights to keep are in the model then.

    Returns:
        (history, seconds): a row for each epoch, and how long all of them took.
    """
    section = run.config.train
    checkpoint = Checkpoint(run.fold(k) / CHECKPOINT)
    done = checkpoint.restore(model)
    if done:
        print(f"fold {k}: goes on after epoch {done} of {section.epochs}")
    advice = f"lower train.learning_rate, and give the run another name or delete {run.path}"
    line = EpochLine(f"fold {k}")
    watching: list[keras.callbacks.Callback] = [TerminateOnNaNLoss(train, advice), ValidationAUC(aucs), line]
    if section.keep == "best":
        before = checkpoint.history.get("val_weighted_log_loss", ())
        watching.append(KeepBest(run.fold(k) / BEST, "weighted_log_loss", min(before, default=math.inf)))
    if section.ema_momentum is not None:
        watching.append(keras.callbacks.SwapEMAWeights())
    log_to = run.config.machine.log_to
    config = run.config.model_dump(mode="json")
    training = trackers.Training(run.fold(k), run.config.name, k, config, steps=done * len(train))
    with unwrapped(), devices.synchronized(model), closing(line), trackers.callbacks(log_to, training) as tracking:
        model.fit(
            train,
            validation_data=held_out,
            initial_epoch=done,
            epochs=section.epochs,
            shuffle=False,  # the generator shuffles samples; this would shuffle batches, by the global random state
            callbacks=[*watching, *tracking, checkpoint],
            verbose=0,
        )
    if section.keep == "best":
        read_variables(run.fold(k) / BEST, model.weights)
    seconds = sum(checkpoint.history.pop("seconds", ()))
    # A checkpoint of an earlier version has columns that this one does not go on with.
    whole = {name: values for name, values in checkpoint.history.items() if len(values) == section.epochs}
    return pd.DataFrame(whole).rename_axis("epoch"), seconds


def _forget(run: Run, k: int) -> None:
    """Remove what only an unfinished fold needs."""
    remove(run.fold(k) / CHECKPOINT, run.fold(k) / BEST)


def _generators(config: Config, table: pd.DataFrame, k: int, multiple: int) -> tuple[DataGenerator, DataGenerator]:
    """Of the samples to train on, of which each batch holds a multiple of so many, and of those held out."""
    labels = table[list(LABELS)]
    options = generator_options(config, "train")
    of_fold = table.index[table["fold"] == k]
    size = devices.validation_batch_size(len(of_fold), config.predict.batch_size, multiple)
    held_out = DataGenerator(of_fold, labels, batch_size=size, shuffle=False, **options)
    height, width = held_out[0][0].shape[1:3]
    augment.passes(config.predict.tta, height, width)  # a name that is none is told before the training
    ids, sample = _sampling(config, table[table["fold"] != k])
    if multiple > 1:
        sample = sampling.Multiple(multiple, len(ids), sample)
    train = DataGenerator(
        ids,
        labels,
        batch_size=config.train.batch_size,
        shuffle=True,
        augment=augment.pipeline(config.train.augment, height, width),
        sampling=sample,
        seed=config.train.seed,
        **options,
    )
    return train, held_out


def _sampling(
    config: Config, table: pd.DataFrame
) -> tuple[pd.Index, Callable[[np.random.Generator], np.ndarray] | None]:
    """The samples to train on, and which of them an epoch shows."""
    section = config.train
    if section.slices_per_series is not None:
        rows = slice_table.readable(run_directory.slices_of(config), "train").loc[table.index]
        rows = rows.sort_values(["SeriesInstanceUID", "order"])
        series = rows["SeriesInstanceUID"]
        return rows.index, sampling.PerSeries(series, section.slices_per_series, section.centre_weighted)
    if section.positive_share is not None:
        return table.index, sampling.PositiveShare(table["any"].to_numpy(), section.positive_share)
    return table.index, None


def _optimizer(section: Train, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    averaging = {} if section.ema_momentum is None else {"use_ema": True, "ema_momentum": section.ema_momentum}
    return adamw(
        steps_per_epoch,
        epochs=section.epochs,
        learning_rate=section.learning_rate,
        warmup_epochs=section.warmup_epochs,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
        **averaging,
    )


def _loss(section: Train) -> keras.losses.Loss:
    return build_loss(section.loss, section.label_weights, section.label_smoothing, section.focal_gamma)
