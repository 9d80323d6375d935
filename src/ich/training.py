"""Training: one fold of a run, and its out-of-fold predictions."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
import pandas as pd
from scipy.special import expit

from ich import augment, folds, models, runs, slices
from ich.config import Config
from ich.errors import IchError
from ich.files import replacing
from ich.generator import DataGenerator
from ich.labels import INDEX_NAME, LABELS
from ich.losses import WeightedBinaryCrossentropy, WeightedLogLoss


def train_fold(run: runs.Run, k: int) -> None:
    """Train on all folds but `k` and predict fold `k`; nothing to do if that was done.

    The weights kept are those of the last epoch. To keep those of the best one would choose them on the patients whose
    predictions are then scored, and the out-of-fold score would be better than any on new patients.

    Writes model.keras, history.csv and, last, oof.parquet into `run.fold(k)`.

    Raises:
        IchError: there is no such fold, or slices of folds.csv have no image.
    """
    config = run.config
    if config.preprocess.files != "channels":
        raise IchError(f"training reads images of preprocess.files=channels, not {config.preprocess.files}")
    if not 0 <= k < config.folds.n:
        raise IchError(f"there is no fold {k}; the config has folds 0 to {config.folds.n - 1}")
    if k in run.finished_folds():
        return
    table = folds.read_folds(config.data.folds_path)
    if table["fold"].max() != config.folds.n - 1:
        raise IchError(
            f"{config.data.folds_path} has {table['fold'].max() + 1} folds, the config {config.folds.n};"
            " set folds.n to the file's, or make the folds again"
        )
    without = table.index.difference(slices.readable(runs.slice_table(config), "train").index)
    if len(without):
        raise IchError(
            f"{config.data.folds_path} lists {len(without):,} slice(s) that {config.data.images} has no image of, such"
            f" as {without[0]}; make the folds again"
        )

    keras.backend.clear_session()  # the fold before leaves its graph
    keras.utils.set_random_seed(config.train.seed + k)
    keras.config.set_dtype_policy(config.train.precision)
    train, held_out = _generators(config, table, k)
    model = models.build_model(
        config.model.name, train[0][0].shape[1:], weights=config.model.weights, dropout=config.model.dropout
    )
    model.compile(
        optimizer=_optimizer(config, steps_per_epoch=len(train)),
        loss=WeightedBinaryCrossentropy(config.train.label_weights),
        metrics=[WeightedLogLoss()],
    )
    devices = keras.distribution.list_devices()
    run.claim(devices)
    run.restart(k)
    print(f"fold {k}: {len(train.ids):,} slices to train on, {len(held_out.ids):,} held out, on {', '.join(devices)}")
    if config.train.precision != "float32" and all(device.startswith("cpu") for device in devices):
        print(f"warning: no GPU was found, and {config.train.precision} is slow on a CPU", file=sys.stderr)
    with _unwrapped():
        history = model.fit(
            train,
            validation_data=held_out,
            epochs=config.train.epochs,
            shuffle=False,  # the generator shuffles samples; this would shuffle batches, by the global random state
            callbacks=[keras.callbacks.TerminateOnNaN()],
            verbose=_verbose(),
        )
    if len(history.epoch) < config.train.epochs or not np.isfinite(history.history["loss"][-1]):
        raise IchError(
            f"the loss of fold {k} is no number any more in epoch {len(history.epoch)}; lower train.learning_rate, and"
            f" give the run another name or delete {run.path}"
        )

    with replacing(run.fold(k) / "model.keras") as temporary:
        model.save(temporary)
    with replacing(run.fold(k) / "history.csv") as temporary:
        pd.DataFrame(history.history).rename_axis("epoch").to_csv(temporary)
    runs.write_predictions(predict(model, held_out), run.fold(k) / "oof.parquet")


def predict(model: keras.Model, samples: DataGenerator) -> pd.DataFrame:
    """Probabilities of all samples.

    Returns:
        Six float32 columns, indexed by the generator's ids in their order.

    Raises:
        IchError: an image cannot be read.
    """
    with _unwrapped():
        logits = model.predict(samples, verbose=_verbose())
    probabilities = expit(logits.astype(np.float64))
    return pd.DataFrame(probabilities.astype(np.float32), index=samples.ids.rename(INDEX_NAME), columns=list(LABELS))


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise a generator's IchError as what it is: TensorFlow hands its text on, within an error of its own."""
    try:
        yield
    except IchError:
        raise
    except Exception as error:
        told = re.search(r"\bIchError: (.*)", str(error))
        if told is None:
            raise
        raise IchError(told[1]) from error


def generator_options(config: Config) -> dict:
    """Where images lie and how many workers read them, as arguments of DataGenerator."""
    return {"workers": config.machine.workers, "use_multiprocessing": config.machine.processes, "max_queue_size": 16}


def _verbose() -> str | int:
    """Keras's progress bar in a terminal; in a log, a line an epoch."""
    return "auto" if sys.stderr.isatty() else 2


def _generators(config: Config, table: pd.DataFrame, k: int) -> tuple[DataGenerator, DataGenerator]:
    """Of the samples to train on, and of those held out."""
    labels, image_dir = table[list(LABELS)], config.data.images / "train"
    options = {"image_dir": image_dir, **generator_options(config)}
    held_out = DataGenerator(table.index[table["fold"] == k], labels, batch_size=config.predict.batch_size, **options)
    height, width = held_out[0][0].shape[1:3]
    train = DataGenerator(
        table.index[table["fold"] != k],
        labels,
        batch_size=config.train.batch_size,
        shuffle=True,
        augment=augment.pipeline(config.train.augment, height, width),
        seed=config.train.seed,
        **options,
    )
    return train, held_out


def _optimizer(config: Config, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    section = config.train
    steps = section.epochs * steps_per_epoch
    warmup = min(round(section.warmup_epochs * steps_per_epoch), steps - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else section.learning_rate,
        decay_steps=steps - warmup,
        warmup_target=section.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=section.weight_decay, global_clipnorm=section.clip_norm)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
