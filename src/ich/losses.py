"""The competition's metric as a Keras loss and as a streaming Keras metric, both on logits."""

import math
from collections.abc import Sequence

import keras
from keras import ops

from ich.errors import IchError
from ich.labels import LABELS, METRIC_WEIGHTS


def _checked(weights: Sequence[float] | None) -> list[float]:
    weights = list(METRIC_WEIGHTS.values()) if weights is None else [float(w) for w in weights]
    if len(weights) != len(LABELS) or not all(0 <= w < math.inf for w in weights) or sum(weights) == 0:
        raise IchError(
            f"expected {len(LABELS)} finite weights of at least 0, not all 0, in the order {', '.join(LABELS)},"
            f" got {weights}"
        )
    return weights


def _log_loss(y_true, logits):
    """Log loss of each value, max(x, 0) - x·y + log(1 + exp(-|x|)), which no logit overflows.

    By Keras's own function: written out, the gradient at a logit of exactly 0 is not 1/2 - y, but what each backend
    takes for the slopes of max and abs there.
    """
    return ops.binary_crossentropy(y_true, logits, from_logits=True)


@keras.saving.register_keras_serializable("ich")
class WeightedBinaryCrossentropy(keras.losses.Loss):
    """Binary cross-entropy from logits, as the weighted mean over the labels.

    With the default weights it is the competition's metric, but for the metric's clipping at 1e-15.

    Args:
        weights: six numbers of at least 0; None takes the metric's, (1, 1, 1, 1, 1, 2).

    Call:
        y_true: 0 or 1, shape (batch, 6). y_pred: logits, shape (batch, 6). A sample's loss has shape (batch,).

    Raises:
        IchError: weights that are not six, negative, not finite or all 0.
    """

    def __init__(self, weights: Sequence[float] | None = None, name: str = "weighted_binary_crossentropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.weights = _checked(weights)

    def call(self, y_true, y_pred):
        shares = ops.convert_to_tensor([w / sum(self.weights) for w in self.weights], dtype=y_pred.dtype)
        return ops.sum(_log_loss(ops.cast(y_true, y_pred.dtype), y_pred) * shares, axis=-1)

    def get_config(self) -> dict:
        return {**super().get_config(), "weights": self.weights}


@keras.saving.register_keras_serializable("ich")
class WeightedLogLoss(keras.metrics.Metric):
    """The competition's score over all samples since the last reset: the same for any cut into batches.

    Takes logits, so that certain predictions lose nothing to rounding.

    Args:
        weights: as for `WeightedBinaryCrossentropy`.
    """

    def __init__(self, weights: Sequence[float] | None = None, name: str = "weighted_log_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.weights = _checked(weights)
        self.total = self.add_weight(shape=(len(LABELS),), initializer="zeros", name="total")
        self.count = self.add_weight(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        logits = ops.cast(y_pred, self.dtype)
        losses = _log_loss(ops.cast(y_true, self.dtype), logits)
        if sample_weight is None:
            sample_weight = ops.ones(ops.shape(losses)[:1], dtype=self.dtype)
        sample_weight = ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))
        self.total.assign_add(ops.sum(losses * sample_weight, axis=0))
        self.count.assign_add(ops.sum(sample_weight))

    def result(self):
        shares = ops.convert_to_tensor([w / sum(self.weights) for w in self.weights], dtype=self.dtype)
        return ops.divide_no_nan(ops.sum(self.total * shares), self.count)

    def get_config(self) -> dict:
        return {**super().get_config(), "weights": self.weights}
