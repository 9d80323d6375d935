"""The network that reads a scan: convolutions along z, a bidirectional GRU, six logits a slice.

After the second stages of the competition's 1st place (convolutions and a bidirectional GRU on features, scores and
gaps) and 2nd (a bidirectional LSTM on embeddings and their differences to both neighbours), made small, as there are
only as many samples as scans.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.models.losses import WeightedBinaryCrossentropy
from ich.models.optimizers import adamw
from ich.second_stage.scan_features import SQUASH, drawn_kinds, drawn_rows, embedding_scale, noisy, slice_inputs
from ich.second_stage.scans import Scans, batches, padded

_FAR = 1e9
_KINDS = len(LABELS) - 1  # `any` is the last label, and no kind
_PLAIN = 42  # features of a slice beside its embedding
_CORE = 6  # features of a kind whose mean and maximum over the scan it is told, too
# Lengths are padded to a multiple of this when predicting: a length not seen before costs a trace.
_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Network:
    """Its shape, and how it learns; `ich.config.Sequence` has the defaults and says what each is."""

    width: int
    dilations: Sequence[int]
    units: int
    dropout: float
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_epochs: float
    weight_decay: float
    clip_norm: float
    ema: float
    window: int
    noise: float
    shuffle_kinds: float
    label_weights: Sequence[float] | None


def build(features: int, network: Network, scale: tuple[np.ndarray, np.ndarray] | None = None) -> keras.Model:
    """A network that knows nothing yet.

    The five kinds of bleeding are read by the same weights, each as a sequence of its own that is told of its scores,
    of those of `any` and of the strongest other kind, and which kind it is: how a bleed runs through slices is much
    alike for all, and a thousand scans are few. `any` is read from what was found of the five.

    Padding reaches nothing: it is set to 0 before each convolution, as what lies beyond a scan's ends is, the GRU keeps
    its state over it, and means and maxima leave it out. Nothing is normalised: over a batch, padding would count, and
    with each slice normalised for itself (tried) the network learned more slowly and scored no better.

    Args:
        features: of each slice, as `ich.second_stage.scan_features.slice_inputs` gives them; the last are the embedding
            and its differences.
        scale: means and variances of the embedding, a part of the model then; None takes it as it is.

    Returns:
        A model from float32 (batch, length, features), named slices, and bool (batch, length), named real, true for
        slices and false for the padding behind them, to float32 logits (batch, length, 6); what it gives for padding
        means nothing. Before training, it gives the first stage's logits, squashed.
    """
    slices = keras.Input((None, features), name="slices")
    real = keras.Input((None,), dtype="bool", name="real")
    squashed = SQUASH * slices[..., : len(LABELS)]
    views = _KindViews()(slices)
    here = _Apart()(ops.logical_and(ops.ones_like(views[..., :1]) > 0, real[..., None, None]))
    x = _Apart()(views)
    x = layers.Dense(network.width)(layers.Concatenate()([x, *_of_scan(x[..., :_CORE], here)]))
    if features > _PLAIN:
        embedding = slices[..., _PLAIN:] if scale is None else _scaled(slices[..., _PLAIN:], *scale, network.dropout)
        embedding = layers.Dense(_KINDS * network.width)(embedding)
        x = layers.Add()([x, _Apart()(layers.Reshape((-1, _KINDS, network.width))(embedding))])
    for dilation in network.dilations:
        y = ops.where(here, layers.Activation("gelu")(x), 0.0)
        y = layers.Conv1D(network.width, 5, padding="same", dilation_rate=dilation)(y)
        x = layers.Add()([x, layers.Dropout(network.dropout)(y)])
    if network.units:
        gru = layers.GRU(network.units, return_sequences=True)
        x = layers.Concatenate()([x, layers.Bidirectional(gru)(x, mask=here[..., 0])])
    x = layers.Dropout(network.dropout)(layers.Concatenate()([x, *_of_scan(x, here)]))
    x = layers.Dense(network.width, activation="gelu")(x)
    correction = _Together()(layers.Dense(1, kernel_initializer="zeros")(x))[..., 0]
    kinds = correction + squashed[..., :_KINDS]
    found = _Together()(x)
    found = [ops.max(found, axis=2), ops.mean(found, axis=2), ops.max(kinds, axis=-1, keepdims=True) / SQUASH]
    found = layers.Concatenate()([*found, slices[..., :_PLAIN]])
    found = layers.Dense(network.width, activation="gelu")(layers.Dropout(network.dropout)(found))
    any_ = layers.Dense(1, kernel_initializer="zeros")(found) + squashed[..., _KINDS:]
    return keras.Model([slices, real], layers.Concatenate()([kinds, any_]), name="recurrent")


@keras.saving.register_keras_serializable("ich")
class _KindViews(layers.Layer):
    """What each kind of bleeding is told of each slice: (batch, length, features) to (batch, length, 5, n).

    The first `_CORE` are the scores of the kind, of `any` and of the strongest other kind, each by both scales of
    `ich.second_stage.scan_features.slice_inputs`; then the differences of the first two, the mean of the other kinds,
    the slice's place, and which kind it is.
    """

    def call(self, slices):
        n = len(LABELS)
        groups = [slices[..., first : first + n] for first in range(0, 6 * n, n)]  # both scales, then differences
        kinds = ops.stack([group[..., :_KINDS] for group in groups], axis=-1)
        of_any = ops.stack([group[..., _KINDS:] for group in groups], axis=-1) + ops.zeros_like(kinds)
        others = [[j for j in range(_KINDS) if j != k] for k in range(_KINDS)]
        others = ops.stack([ops.take(kinds[..., :2], js, axis=2) for js in others], axis=2)
        which = ops.zeros_like(kinds[..., :1]) + ops.eye(_KINDS, dtype=kinds.dtype)
        place = ops.zeros_like(kinds[..., :1]) + slices[..., None, 6 * n : _PLAIN]
        core = [kinds[..., :2], of_any[..., :2], ops.max(others, axis=3)]
        return ops.concatenate(
            [*core, kinds[..., 2:], of_any[..., 2:], ops.mean(others[..., 0], axis=3)[..., None], place, which], axis=-1
        )


@keras.saving.register_keras_serializable("ich")
class _Apart(layers.Layer):
    """Each kind of a scan a sequence of its own: (batch, length, 5, n) to (batch · 5, length, n)."""

    def call(self, x):
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, ops.shape(x)[1], x.shape[-1]))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, x.shape[1], x.shape[3]), x.dtype)


@keras.saving.register_keras_serializable("ich")
class _Together(layers.Layer):
    """What `_Apart` took apart: (batch · 5, length, n) to (batch, length, 5, n)."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True  # the GRU's mask ends here: padding is told by the input

    def compute_mask(self, inputs, mask=None):
        return None

    def call(self, x):
        return ops.transpose(ops.reshape(x, (-1, _KINDS, ops.shape(x)[1], x.shape[-1])), (0, 2, 1, 3))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, x.shape[1], _KINDS, x.shape[2]), x.dtype)


def _scaled(embedding: keras.KerasTensor, mean: np.ndarray, variance: np.ndarray, dropout: float) -> keras.KerasTensor:
    """Embeddings of mean 0 and variance 1, and their differences to that scale.

    Some of them are dropped in training: of hundreds of numbers, which the first stage fitted to the slices that it
    saw, the network shall trust none alone.
    """
    scale = layers.Normalization(
        mean=np.concatenate([mean, 0 * mean, 0 * mean]), variance=np.tile(variance, 3), name="embedding_scale"
    )
    return layers.Dropout(dropout)(scale(embedding))


def _of_scan(x: keras.KerasTensor, here: keras.KerasTensor) -> list[keras.KerasTensor]:
    """The mean and the maximum over each scan's slices, told to all of them."""
    count = ops.sum(ops.cast(here, "float32"), axis=1, keepdims=True)
    mean = ops.sum(ops.where(here, x, 0.0), axis=1, keepdims=True) / count
    peak = ops.max(ops.where(here, x, -_FAR), axis=1, keepdims=True)
    return [ops.zeros_like(x) + mean, ops.zeros_like(x) + peak]


class ScanBatches(keras.utils.PyDataset):
    """Scans to learn from, shuffled and augmented anew each epoch.

    What is drawn depends on the seed, the epoch and the scan alone.

    Args:
        labels: 0 or 1, (slices, 6), in the order of the scans' slices.
        window, noise, shuffle_kinds: as `drawn_rows`, `noisy` and `drawn_kinds` of `ich.second_stage.scan_features`
            take them.

    Items:
        ({slices, real}, labels, weights): what `build` takes, float32 (batch, window, 6), and 1 for slices, 0 for
        padding.
    """

    def __init__(
        self,
        scans: Scans,
        labels: np.ndarray,
        batch_size: int,
        window: int,
        noise: float,
        shuffle_kinds: float,
        seed: int,
    ):
        super().__init__()
        self.scans = scans
        self.labels = labels.astype(np.float32)
        self.batch_size = min(batch_size, len(scans))
        self.window = window
        self.noise = noise
        self.shuffle_kinds = shuffle_kinds
        self.seed = seed
        self.epoch = -1
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self.scans) // self.batch_size  # what is left over waits for the next epoch's order

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self.order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.scans))

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        inputs, labels = [], []
        for scan in self.order[index * self.batch_size : (index + 1) * self.batch_size]:
            rng = np.random.default_rng([self.seed, self.epoch, scan])
            start, end = self.scans.starts[scan : scan + 2]
            rows = start + drawn_rows(end - start, self.window, rng)
            kinds = drawn_kinds(self.shuffle_kinds, rng)
            logits = noisy(self.scans.logits[rows][:, kinds], self.noise, rng)
            inputs.append(slice_inputs(logits, self.scans.z[rows], self.scans.embeddings[rows]))
            labels.append(self.labels[rows][:, kinds])
        real = padded([np.ones(len(part), bool) for part in inputs], self.window)
        x = {"slices": padded(inputs, self.window), "real": real}
        return x, padded(labels, self.window), real.astype(np.float32)


def train(scans: Scans, labels: np.ndarray, network: Network, seed: int) -> tuple[keras.Model, pd.DataFrame]:
    """Train a network; its weights are the exponential mean of those of the last epochs' steps.

    Args:
        labels: 0 or 1, (slices, 6), in the order of the scans' slices.

    Returns:
        The model, and its history, a row an epoch.

    Raises:
        IchError: the loss is no number any more.
    """
    keras.utils.set_random_seed(seed)
    data = ScanBatches(scans, labels, network.batch_size, network.window, network.noise, network.shuffle_kinds, seed)
    scale = embedding_scale(scans.embeddings) if scans.embeddings.shape[1] else None
    model = build(data[0][0]["slices"].shape[-1], network, scale)
    compile_for(model, network, len(data))
    stop = keras.callbacks.TerminateOnNaN()
    history = model.fit(data, epochs=network.epochs, shuffle=False, verbose=0, callbacks=[stop])
    if len(history.epoch) < network.epochs or not np.isfinite(history.history["loss"][-1]):
        raise IchError(
            f"the loss is no number any more in epoch {len(history.epoch)}; lower"
            " sequence.learning_rate, and give the second stage another name (--name) or delete its directory"
        )
    return model, pd.DataFrame(history.history).rename_axis("epoch")


def compile_for(model: keras.Model, network: Network, steps_per_epoch: int) -> None:
    """Give a network its optimiser and its loss, the mean over real slices."""
    model.compile(
        optimizer=adamw(
            steps_per_epoch,
            epochs=network.epochs,
            learning_rate=network.learning_rate,
            warmup_epochs=network.warmup_epochs,
            weight_decay=network.weight_decay,
            clip_norm=network.clip_norm,
            use_ema=True,
            ema_momentum=network.ema,
        ),
        # The usual mean would count the padding as slices of loss 0.
        loss=WeightedBinaryCrossentropy(network.label_weights, reduction="mean_with_sample_weight"),
        jit_compile=False,  # XLA's convolutions take four times as long on a CPU
    )
    # Else the first step makes the optimiser's variables, and a step that makes variables is traced twice.
    model.optimizer.build(model.trainable_variables)


def mean_of(models: Sequence[keras.Model]) -> keras.Model:
    """One model that gives the mean of several ones' logits."""
    if len(models) == 1:
        return models[0]
    inputs = [keras.Input(one.shape[1:], dtype=one.dtype, name=one.name) for one in models[0].inputs]
    for number, model in enumerate(models):
        model.name = f"seed{number}"  # names within a model differ
    return keras.Model(inputs, layers.Average()([model(inputs) for model in models]), name="recurrent")


def predict(model: keras.Model, scans: Scans, batch_size: int) -> np.ndarray:
    """Logits of all slices, the mean of each scan read forwards and backwards.

    Returns:
        float32, (slices, 6), in the order of the scans' slices.
    """
    logits = np.zeros((len(scans.ids), len(LABELS)), np.float32)
    for which in batches(scans, batch_size):
        pieces = [np.arange(scans.starts[i], scans.starts[i + 1]) for i in which]
        length = -(-scans.lengths[which].max() // _MULTIPLE) * _MULTIPLE
        real = padded([np.ones(len(rows), bool) for rows in pieces], length)
        for step in (1, -1):
            inputs = [
                slice_inputs(scans.logits[rows], scans.z[rows], scans.embeddings[rows])
                for rows in (rows[::step] for rows in pieces)
            ]
            told = model.predict_on_batch([padded(inputs, length), real])
            for rows, one in zip(pieces, told, strict=True):
                logits[rows] += one[: len(rows)][::step] / 2
    return logits
