"""Set up the training of a fold: generators of training and validation, and the compiled model."""

from collections.abc import Callable, Sequence
from functools import partial

import keras
import numpy as np
import pandas as pd

from ich.competition.labels import LABELS
from ich.config import Config, Model, ScanModel, Train
from ich.data import augment, mixing, sampling
from ich.data.generator import DataGenerator
from ich.models import augmented, backbones, devices, prior, scan
from ich.models.losses import LabelAUC, SliceHeadLoss, WeightedLogLoss, build_loss
from ich.models.optimizers import adamw
from ich.training.inference import generator_options
from ich.training.joined import Joined, training_set


def generators(
    config: Config,
    table: pd.DataFrame,
    slices: pd.DataFrame,
    k: int,
    multiple: int,
    joined: Sequence[Joined] = (),
) -> tuple[DataGenerator, DataGenerator]:
    """Return the generators of training and validation.

    Args:
        table: the folds.
        slices: the slice table.
        multiple: each training batch holds a multiple of so many samples.
        joined: further slices to train on.
    """
    labels = table[list(LABELS)]
    options = generator_options(config, "train", slices)
    of_fold = table.index[table["fold"] == k]
    held_out = DataGenerator(of_fold, labels, shuffle=False, **options)
    held_out.batch_size = devices.validation_batch_size(held_out.sample_count, config.predict.batch_size, multiple)
    held_out.set_epoch(0)
    height, width, _ = image_shape(held_out[0][0])
    augment.passes(config.predict.tta, height, width)  # refuses an unknown pass before the training
    labels, slices, options = training_set(labels[table["fold"] != k], slices, options, joined)
    ids, sample = _sampling(config, labels, slices)
    on_device = config.train.augment_on == "device"
    train = DataGenerator(
        ids,
        labels,
        batch_size=config.train.batch_size,
        shuffle=True,
        augment=augment.pipeline(config.train.augment, height, width),
        augment_on=config.train.augment_on,
        sampling=sample,
        mix=mixing.build(config.train.mixup, config.train.cutmix, config.train.mix_share, multiple if on_device else 1),
        seed=config.train.seed,
        **options,
    )
    if config.train.fixed_batches:
        train.sampling = sampling.Filled(config.train.batch_size, train.sample_count, sample)
        train.set_epoch(0)
    elif multiple > 1:
        train.sampling = sampling.Multiple(multiple, train.sample_count, sample)
        train.set_epoch(0)
    return train, held_out


def image_shape(x: np.ndarray | dict[str, np.ndarray]) -> tuple[int, int, int]:
    """Return height, width and channels of the images in a batch's input, which is a dict if there is more."""
    if isinstance(x, dict) and "unaugmented" in x:
        files, height, width, channels = x["unaugmented"].shape[-4:]
        return height, width, files * channels
    height, width, channels = (x["image"] if isinstance(x, dict) else x).shape[-3:]
    return height, width, channels


def _sampling(
    config: Config, table: pd.DataFrame, slices: pd.DataFrame
) -> tuple[pd.Index, Callable[[np.random.Generator], np.ndarray] | None]:
    """Return the samples to train on, and what draws those of an epoch; None shows all."""
    section = config.train
    if section.slices_per_series is not None:
        rows = slices.set_index("SOPInstanceUID").loc[table.index]
        rows = rows.sort_values(["SeriesInstanceUID", "order"])
        series = rows["SeriesInstanceUID"]
        return rows.index, sampling.PerSeries(series, section.slices_per_series, section.centre_weighted)
    if section.positive_share is not None:
        return table.index, sampling.PositiveShare(table["any"].to_numpy(), section.positive_share)
    return table.index, None


def compiled_model(config: Config, train: DataGenerator, aucs: list[LabelAUC]) -> keras.Model:
    """Build and compile the untrained model, for the images of the generator."""
    section = config.model
    if config.train.init_from is not None:  # which sets all weights that are published
        section = section.model_copy(update={"weights": None})
    model = _untrained(section, image_shape(train[0][0]))
    sample = train.sampling.of if isinstance(train.sampling, sampling.WholeBatches) else train.sampling
    gamma = config.train.focal_gamma if config.train.loss == "focal" else 0.0
    oversampling = sample.oversampling if isinstance(sample, sampling.PositiveShare) else 1.0
    model = prior.corrected(model, oversampling, gamma, config.train.label_smoothing)
    if config.model.scan is not None and config.model.scan.slice_loss:
        model = scan.with_slice_head(model)
    if config.train.augment_on == "device":
        model = augmented.with_augmentation(model)
    if config.train.head_epochs:
        _optimizer(config.train, model, len(train), head=True)  # raises before the training what it raises
    compile_model(model, config, train, aucs)
    return model


def compile_model(
    model: keras.Model, config: Config, train: DataGenerator, aucs: list[LabelAUC], head: bool = False
) -> None:
    """Compile a model to train what is trainable of it: all epochs but those of the head, or these alone."""
    model.compile(
        optimizer=_optimizer(config.train, model, len(train), head),
        loss=_loss(config.train, config.model.scan),
        weighted_metrics=[WeightedLogLoss(), *aucs],  # plain metrics would count a scan's padding as slices
        steps_per_execution=devices.steps_per_execution(config.machine.steps_per_execution),
        jit_compile=config.machine.jit_compile,
    )
    # Otherwise `fit` builds these from a batch that it draws, and on JAX and PyTorch each epoch then begins with what
    # the workers read for the previous one.
    model.optimizer.build(model.trainable_variables)
    model.test_on_batch(*train[0])
    model.reset_metrics()


def _untrained(section: Model, image_shape: tuple[int, int, int]) -> keras.Model:
    build = partial(
        backbones.build_model,
        section.name,
        weights=section.weights,
        dropout=section.dropout,
        drop_path=section.drop_path,
        gem=section.gem,
        freeze_batch_norm=section.freeze_batch_norm,
    )
    window = section.scan
    if window is None:
        return build(image_shape)
    return scan.build_scan_model(
        build,
        window.slices,
        image_shape,
        kind=window.kind,
        units=window.units,
        depth=window.depth,
        dropout=section.dropout,
        remat=window.remat,
    )


def _optimizer(
    section: Train, model: keras.Model, steps_per_epoch: int, head: bool = False
) -> keras.optimizers.Optimizer:
    factors = None
    if section.backbone_rate != 1:
        slow = {id(variable) for layer in scan.backbone(model) for variable in layer.trainable_variables}
        factors = [section.backbone_rate if id(variable) in slow else 1.0 for variable in model.trainable_variables]
    averaging = {} if section.ema_momentum is None else {"use_ema": True, "ema_momentum": section.ema_momentum}
    return adamw(
        steps_per_epoch,
        epochs=section.head_epochs if head else section.epochs - section.head_epochs,
        learning_rate=section.learning_rate,
        warmup_epochs=0.0 if head else section.warmup_epochs,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
        accumulate=section.accumulate,
        factors=factors,
        **averaging,
    )


def _loss(section: Train, window: ScanModel | None) -> keras.losses.Loss:
    loss = build_loss(section.loss, section.label_weights, section.label_smoothing, section.focal_gamma)
    if window is None:
        return loss
    if window.slice_loss:
        return SliceHeadLoss(loss, window.slice_loss)
    loss.reduction = "mean_with_sample_weight"  # the mean would count the padding as slices of loss 0
    return loss
