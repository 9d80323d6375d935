"""The network over a scan: convolutions along z, a bidirectional GRU, six logits a slice.

After the second stages of the competition's 1st place (convolutions and a bidirectional GRU on features, scores and
gaps) and 2nd (a bidirectional LSTM on embeddings and their differences to both neighbors), but small, as there are only
as many samples as scans.
"""

import keras
import numpy as np
import pandas as pd
from keras import layers, ops

from ich.competition.labels import ANY, LABELS
from ich.config import Sequence
from ich.errors import IchError
from ich.models.losses import WeightedBinaryCrossentropy
from ich.models.optimizers import adamw
from ich.second_stage.scan_features import SQUASH, drawn_kinds, drawn_rows, embedding_scale, noisy, slice_inputs
from ich.second_stage.scans import Scans, batches, padded

_PLAIN = 42  # features of a slice beside its embedding
_CORE = 6  # features of a subtype whose mean and maximum over the scan are inputs, too
# Lengths are padded to multiples of these: each new length costs a trace in prediction, and on JAX a compilation.
_MULTIPLE = 16  # when predicting
_STEP = 4  # in training
_POOL = 16  # batches that exchange scans of like length


def build(features: int, section: Sequence, scale: tuple[np.ndarray, np.ndarray] | None = None) -> keras.Model:
    """Build the untrained network.

    The five subtypes of bleeding share their weights: each is a sequence of its own with its scores, those of `any` and
    of the strongest other subtype, and a one-hot code of the subtype. How a bleed extends over slices is similar for
    all, and a thousand scans are few. `any` is computed from the five.

    Padding has no effect: it is set to 0 before each convolution, as is what lies beyond a scan's ends, the GRU keeps
    its state over it, and means and maxima leave it out. Nothing is normalized: batch normalization would count the
    padding, and with layer normalization (tried) the network learned more slowly and scored no better.

    Args:
        features: of each slice, as `ich.second_stage.scan_features.slice_inputs` gives them; the last are the embedding
            and its differences.
        section: of the config: the network's shape.
        scale: means and variances of the embedding, which become part of the model; None leaves it unscaled.

    Returns:
        A model from float32 (batch, length, features), named slices, and bool (batch, length), named real, true for
        slices and false for the padding behind them, to float32 logits (batch, length, 6), undefined for padding.
        Before training, it gives the first stage's logits, squashed.
    """
    slices = keras.Input((None, features), name="slices")
    real = keras.Input((None,), dtype="bool", name="real")
    squashed = SQUASH * slices[..., : len(LABELS)]
    views = SubtypeViews()(slices)
    mask = FoldLabelsIntoBatch()(ops.logical_and(ops.ones_like(views[..., :1]) > 0, real[..., None, None]))
    x = FoldLabelsIntoBatch()(views)
    x = layers.Dense(section.width)(layers.Concatenate()([x, *_over_scan(x[..., :_CORE], mask)]))
    if features > _PLAIN:
        embedding = slices[..., _PLAIN:]
        if scale is not None:
            mean, variance = scale  # of the embedding; its two differences are scaled alike
            mean, variance = np.concatenate([mean, 0 * mean, 0 * mean]), np.tile(variance, 3)
            embedding = layers.Normalization(mean=mean, variance=variance, name="embedding_scale")(embedding)
            # The first stage fitted these hundreds of numbers to the slices that it saw: rely on none alone.
            embedding = layers.Dropout(section.dropout)(embedding)
        embedding = layers.Dense(ANY * section.width)(embedding)
        x = layers.Add()([x, FoldLabelsIntoBatch()(layers.Reshape((-1, ANY, section.width))(embedding))])
    for dilation in section.dilations:
        y = ops.where(mask, layers.Activation("gelu")(x), 0.0)
        y = layers.Conv1D(section.width, 5, padding="same", dilation_rate=dilation)(y)
        x = layers.Add()([x, layers.Dropout(section.dropout)(y)])
    if section.units:
        gru = layers.GRU(section.units, return_sequences=True)
        x = layers.Concatenate()([x, layers.Bidirectional(gru)(x, mask=mask[..., 0])])
    x = layers.Dropout(section.dropout)(layers.Concatenate()([x, *_over_scan(x, mask)]))
    x = layers.Dense(section.width, activation="gelu")(x)
    correction = UnfoldLabels()(layers.Dense(1, kernel_initializer="zeros")(x))[..., 0]
    subtypes = correction + squashed[..., :ANY]
    x = UnfoldLabels()(x)
    pooled = [ops.max(x, axis=2), ops.mean(x, axis=2), ops.max(subtypes, axis=-1, keepdims=True) / SQUASH]
    x = layers.Concatenate()([*pooled, slices[..., :_PLAIN]])
    x = layers.Dense(section.width, activation="gelu")(layers.Dropout(section.dropout)(x))
    any_ = layers.Dense(1, kernel_initializer="zeros")(x) + squashed[..., ANY:]
    return keras.Model([slices, real], layers.Concatenate()([subtypes, any_]), name="recurrent")


# The registered names are those that saved models have.
@keras.saving.register_keras_serializable("ich", "_KindViews")
class SubtypeViews(layers.Layer):
    """Select the features of each subtype of bleeding: (batch, length, features) to (batch, length, 5, n).

    The first `_CORE` are the scores of the subtype, of `any` and of the strongest other subtype, each by both scales of
    `ich.second_stage.scan_features.slice_inputs`; then the differences of the first two, the mean of the other
    subtypes, the slice's place, and a one-hot code of the subtype.
    """

    def call(self, slices):
        n = len(LABELS)
        groups = [slices[..., first : first + n] for first in range(0, 6 * n, n)]  # both scales, then differences
        own = ops.stack([group[..., :ANY] for group in groups], axis=-1)
        of_any = ops.stack([group[..., ANY:] for group in groups], axis=-1) + ops.zeros_like(own)
        others = [[j for j in range(ANY) if j != k] for k in range(ANY)]
        others = ops.stack([ops.take(own[..., :2], js, axis=2) for js in others], axis=2)
        one_hot = ops.zeros_like(own[..., :1]) + ops.eye(ANY, dtype=own.dtype)
        place = ops.zeros_like(own[..., :1]) + slices[..., None, 6 * n : _PLAIN]
        core = [own[..., :2], of_any[..., :2], ops.max(others, axis=3)]
        return ops.concatenate(
            [*core, own[..., 2:], of_any[..., 2:], ops.mean(others[..., 0], axis=3)[..., None], place, one_hot], axis=-1
        )


@keras.saving.register_keras_serializable("ich", "_Apart")
class FoldLabelsIntoBatch(layers.Layer):
    """Make each subtype of a scan a sequence of its own: (batch, length, 5, n) to (batch · 5, length, n)."""

    def call(self, x):
        return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, ops.shape(x)[1], x.shape[-1]))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, x.shape[1], x.shape[3]), x.dtype)


@keras.saving.register_keras_serializable("ich", "_Together")
class UnfoldLabels(layers.Layer):
    """Invert `FoldLabelsIntoBatch`: (batch · 5, length, n) to (batch, length, 5, n)."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True  # the GRU's mask ends here: the model has padding as an input

    def compute_mask(self, inputs, mask=None):
        return None

    def call(self, x):
        return ops.transpose(ops.reshape(x, (-1, ANY, ops.shape(x)[1], x.shape[-1])), (0, 2, 1, 3))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, x.shape[1], ANY, x.shape[2]), x.dtype)


def _over_scan(x: keras.KerasTensor, mask: keras.KerasTensor) -> list[keras.KerasTensor]:
    """Compute the mean and the maximum over each scan's slices, repeated for all of them."""
    count = ops.sum(ops.cast(mask, "float32"), axis=1, keepdims=True)
    mean = ops.sum(ops.where(mask, x, 0.0), axis=1, keepdims=True) / count
    peak = ops.max(ops.where(mask, x, -1e9), axis=1, keepdims=True)
    return [ops.zeros_like(x) + mean, ops.zeros_like(x) + peak]


class ScanBatches(keras.utils.PyDataset):
    """Training batches of scans, shuffled and augmented anew each epoch; each scan is in one batch of it.

    What is drawn depends on the seed, the epoch and the scan alone, the order on the seed and the epoch. Samples of
    similar length share a batch, so that little is padded: the epoch's order is cut into pools of `_POOL` batches, a
    pool sorted by length and cut into batches, and these shuffled.

    Args:
        labels: 0 or 1, (slices, 6), in the order of the scans' slices.
        section: of the config: batch_size, max_batches, window, noise and shuffle_kinds.

    Items:
        ({slices, real}, labels, weights): what `build` takes, float32 (batch, length, 6), and 0 for padding. A slice
        weighs the same in all batches, whose weights add up to 1 in the mean over the epoch.
    """

    def __init__(self, scans: Scans, labels: np.ndarray, section: Sequence, seed: int):
        super().__init__()
        self.scans = scans
        self.labels = labels.astype(np.float32)
        self.section = section
        self.seed = seed
        self.epoch = -1
        self.on_epoch_end()

    def __len__(self) -> int:
        return min(max(1, round(len(self.scans) / self.section.batch_size)), self.section.max_batches)

    def on_epoch_end(self) -> None:
        self.epoch += 1
        rng = np.random.default_rng([self.seed, self.epoch])
        lengths = np.array([len(self._drawn_rows(scan)[0]) for scan in range(len(self.scans))])
        self.weight = np.float32(len(self) / lengths.sum())
        batches = np.array_split(rng.permutation(len(self.scans)), len(self))  # their sizes differ by one at most
        self.order = []
        for first in range(0, len(batches), _POOL):
            sizes = [len(batch) for batch in batches[first : first + _POOL]]
            pool = np.concatenate(batches[first : first + _POOL])
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            of_pool = np.split(pool, np.cumsum(sizes)[:-1])
            self.order += [of_pool[k] for k in rng.permutation(len(of_pool))]

    def _drawn_rows(self, scan: int) -> tuple[np.ndarray, np.random.Generator]:
        """Draw the rows of a scan's sample; what else is drawn for it comes from the generator after that."""
        rng = np.random.default_rng([self.seed, self.epoch, scan])
        start, end = self.scans.starts[scan : scan + 2]
        return start + drawn_rows(end - start, self.section.window, rng), rng

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        inputs, labels = [], []
        for scan in self.order[index]:
            rows, rng = self._drawn_rows(scan)
            order = drawn_kinds(self.section.shuffle_kinds, rng)
            logits = noisy(self.scans.logits[rows][:, order], self.section.noise, rng)
            inputs.append(slice_inputs(logits, self.scans.z[rows], self.scans.embeddings[rows]))
            labels.append(self.labels[rows][:, order])
        # Keras derives the shape of all batches from the first two.
        length = _rounded_up(max(map(len, inputs)), _STEP) if index else self.section.window + _STEP
        real = padded([np.ones(len(part), bool) for part in inputs], length)
        return {"slices": padded(inputs, length), "real": real}, padded(labels, length), real * self.weight


def train(scans: Scans, labels: np.ndarray, section: Sequence, seed: int) -> tuple[keras.Model, pd.DataFrame]:
    """Train a network; its weights are an exponential moving average over the steps.

    Args:
        labels: 0 or 1, (slices, 6), in the order of the scans' slices.

    Returns:
        The model, and its history, a row an epoch.

    Raises:
        IchError: the loss becomes NaN.
    """
    keras.utils.set_random_seed(seed)
    data = ScanBatches(scans, labels, section, seed)
    scale = embedding_scale(scans.embeddings) if scans.embeddings.shape[1] else None
    model = build(data[0][0]["slices"].shape[-1], section, scale)
    compile_model(model, section, len(data))
    stop = keras.callbacks.TerminateOnNaN()
    history = model.fit(data, epochs=section.epochs, shuffle=False, verbose=0, callbacks=[stop])
    if len(history.epoch) < section.epochs or not np.isfinite(history.history["loss"][-1]):
        raise IchError(
            f"NaN loss in epoch {len(history.epoch)}; lower sequence.learning_rate, and give the second stage another"
            " name (--name) or delete its directory"
        )
    return model, pd.DataFrame(history.history).rename_axis("epoch")


def compile_model(model: keras.Model, section: Sequence, steps_per_epoch: int) -> None:
    """Give a network its optimizer and its loss, the sum over the slices by the weights of `ScanBatches`."""
    model.compile(
        optimizer=adamw(
            steps_per_epoch,
            epochs=section.epochs,
            learning_rate=section.learning_rate,
            warmup_epochs=section.warmup_epochs,
            weight_decay=section.weight_decay,
            clip_norm=section.clip_norm,
            use_ema=True,
            ema_momentum=section.ema,
        ),
        # A mean over each batch would give the slices of short scans, which share batches, a larger weight.
        loss=WeightedBinaryCrossentropy(section.label_weights, reduction="sum"),
        jit_compile=False,  # XLA's convolutions take four times as long on a CPU
    )
    # Otherwise the first step creates the optimizer's variables, and such a step is traced twice.
    model.optimizer.build(model.trainable_variables)


def _rounded_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def mean_of(models: list[keras.Model]) -> keras.Model:
    """Join networks into one model that gives the mean of their logits."""
    if len(models) == 1:
        return models[0]
    inputs = [keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name) for tensor in models[0].inputs]
    for number, model in enumerate(models):
        model.name = f"seed{number}"  # names within a model must differ
    return keras.Model(inputs, layers.Average()([model(inputs) for model in models]), name="recurrent")


def predict(model: keras.Model, scans: Scans, batch_size: int) -> np.ndarray:
    """Predict logits of all slices, the mean of each scan read forwards and backwards.

    Returns:
        float32, (slices, 6), in the order of the scans' slices.
    """
    logits = np.zeros((len(scans.ids), len(LABELS)), np.float32)
    for batch in batches(scans, batch_size):
        length = _rounded_up(scans.lengths[batch].max(), _MULTIPLE)
        rows = [scans.rows(i)[::step] for step in (1, -1) for i in batch]
        real = padded([np.ones(len(of_scan), bool) for of_scan in rows], length)
        inputs = [slice_inputs(scans.logits[r], scans.z[r], scans.embeddings[r]) for r in rows]
        outputs = model.predict_on_batch([padded(inputs, length), real])
        for of_scan, output in zip(rows, outputs, strict=True):
            logits[of_scan] += output[: len(of_scan)] / 2
    return logits
