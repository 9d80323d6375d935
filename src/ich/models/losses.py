"""Losses and metrics from logits: the competition's weighted log loss, focal loss, AUC of each label."""

import math
from collections.abc import Callable, Sequence

import keras
from keras import ops

from ich.competition.labels import LABELS, METRIC_WEIGHTS
from ich.errors import IchError


def _checked(given: Sequence[float] | None) -> list[float]:
    weights: list[float] = [*METRIC_WEIGHTS.values()] if given is None else [float(weight) for weight in given]
    if len(weights) != len(LABELS) or not all(0 <= w < math.inf for w in weights) or sum(weights) == 0:
        raise IchError(
            f"expected {len(LABELS)} finite weights of at least 0, not all 0, in the order {', '.join(LABELS)},"
            f" got {weights}"
        )
    return weights


def _shares(weights: list[float], dtype):
    return ops.convert_to_tensor([weight / sum(weights) for weight in weights], dtype=dtype)


def _log_loss(y_true, logits):
    """Log loss of each value, max(x, 0) - x·y + log(1 + exp(-|x|)), which no logit overflows."""
    # Written out, its gradient at a logit of 0 would be what the backend takes for the slopes of max and abs there.
    return ops.binary_crossentropy(y_true, logits, from_logits=True)


def _softplus(x):
    """log(1 + exp(x)) = -log(1 - sigmoid(x))."""
    return _log_loss(ops.zeros_like(x), x)


@keras.saving.register_keras_serializable("ich")
class WeightedBinaryCrossentropy(keras.losses.Loss):
    """Binary cross-entropy from logits, as the weighted mean over the labels.

    With the default weights it is the competition's metric without its clipping at 1e-15.

    Args:
        weights: six numbers of at least 0; None takes the metric's, (1, 1, 1, 1, 1, 2).
        label_smoothing: s, which makes of a label y·(1 - s) + s/2, as in Keras's losses.

    Call:
        y_true: 0 or 1, shape (batch, 6). y_pred: logits, shape (batch, 6). A sample's loss has shape (batch,).

    Raises:
        IchError: weights that are not six, negative, not finite or all 0; a label_smoothing outside [0, 1).
    """

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        name: str = "weighted_binary_crossentropy",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.weights = _checked(weights)
        if not 0 <= label_smoothing < 1:
            raise IchError(f"label_smoothing is {label_smoothing}, expected at least 0 and less than 1")
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        shares = _shares(self.weights, y_pred.dtype)
        smooth = ops.cast(y_true, y_pred.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        return ops.sum(self.of_labels(smooth, y_pred) * shares, axis=-1)

    def of_labels(self, y_true, logits):
        """Return the unweighted loss of each label, of the shape of y_true, between 0 and 1, and logits."""
        return _log_loss(y_true, logits)

    def get_config(self) -> dict:
        return {**super().get_config(), "weights": self.weights, "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("ich")
class WeightedFocalLoss(WeightedBinaryCrossentropy):
    """Focal loss from logits (Lin et al., ICCV 2017, without its alpha), as the weighted mean over the labels.

    The log loss of a label with predicted probability p times (1 - p)^gamma: good predictions count less. The loss of a
    smoothed label is the mean of those of 1 and 0. keras.losses.BinaryFocalCrossentropy clips probabilities at 1e-7,
    beyond which a wrong prediction has no gradient.

    Args:
        gamma: at least 0; 0 gives `WeightedBinaryCrossentropy`, whose other arguments and errors it has.

    Raises:
        IchError: gamma is negative or not finite.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        name: str = "weighted_focal_loss",
        **kwargs,
    ):
        super().__init__(weights, label_smoothing, name=name, **kwargs)
        if not 0 <= gamma < math.inf:
            raise IchError(f"gamma of the focal loss is {gamma}, expected a finite number of at least 0")
        self.gamma = gamma

    def of_labels(self, y_true, logits):
        of_one, of_zero = _softplus(-logits), _softplus(logits)  # minus the logs of p and of 1 - p
        return y_true * ops.exp(-self.gamma * of_zero) * of_one + (1 - y_true) * ops.exp(-self.gamma * of_one) * of_zero

    def get_config(self) -> dict:
        return {**super().get_config(), "gamma": self.gamma}


class SliceHeadLoss(keras.losses.Loss):
    """The loss of a scan model's logits, and that of its slice classifier's behind them, times a weight.

    Deep supervision (Lee et al., AISTATS 2015), so that the slice classifier learns from each slice's own labels too.

    Args:
        loss: of logits (batch, slices, 6); the mean is over slices with a sample weight above 0.
        weight: of the slice classifier's.

    Call:
        y_true: (batch, slices, 6). y_pred: (batch, slices, 12), as `ich.models.scan.with_slice_head` gives it.
    """

    def __init__(self, loss: keras.losses.Loss, weight: float):
        super().__init__(name=loss.name, reduction="mean_with_sample_weight")
        self.loss, self.weight = loss, weight

    def call(self, y_true, y_pred):
        of_scan, of_slices = y_pred[..., : len(LABELS)], y_pred[..., len(LABELS) :]
        return self.loss.call(y_true, of_scan) + self.weight * self.loss.call(y_true, of_slices)


LOSSES: dict[str, Callable[[Sequence[float] | None, float, float], keras.losses.Loss]] = {
    "weighted_bce": lambda weights, smoothing, gamma: WeightedBinaryCrossentropy(weights, smoothing),
    "focal": lambda weights, smoothing, gamma: WeightedFocalLoss(gamma, weights, smoothing),
}
"""Makers of losses from train.label_weights, train.label_smoothing and train.focal_gamma of a config."""


def build_loss(
    name: str, weights: Sequence[float] | None = None, label_smoothing: float = 0.0, gamma: float = 2.0
) -> keras.losses.Loss:
    """Build the loss of a name in `LOSSES`; gamma is that of `WeightedFocalLoss`, the others do without.

    Raises:
        IchError: an unknown name (the message lists the known ones), or values that the loss does not take.
    """
    if name not in LOSSES:
        raise IchError(f"no loss is called {name!r}; there are {', '.join(LOSSES)}")
    return LOSSES[name](weights, label_smoothing, gamma)


@keras.saving.register_keras_serializable("ich")
class WeightedLogLoss(keras.metrics.Metric):
    """The competition's score over all samples since the last reset, whatever the batches.

    It takes logits, as probabilities near 0 and 1 are rounded, and weights as `WeightedBinaryCrossentropy` does. Axes
    before that of the labels are samples; of more than six outputs, the first six are the logits.
    """

    def __init__(self, weights: Sequence[float] | None = None, name: str = "weighted_log_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.weights = _checked(weights)
        self.total = self.add_weight(shape=(len(LABELS),), initializer="zeros", name="total")
        self.count = self.add_weight(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        logits = ops.cast(y_pred[..., : len(LABELS)], self.dtype)
        losses = _log_loss(ops.cast(y_true, self.dtype), logits)
        losses = ops.reshape(losses, (-1, len(LABELS)))
        if sample_weight is None:
            sample_weight = ops.ones(ops.shape(losses)[:1], dtype=self.dtype)
        sample_weight = ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))
        self.total.assign_add(ops.sum(losses * sample_weight, axis=0))
        self.count.assign_add(ops.sum(sample_weight))

    def result(self):
        return ops.divide_no_nan(ops.sum(self.total * _shares(self.weights, self.dtype)), self.count)

    def get_config(self) -> dict:
        return {**super().get_config(), "weights": self.weights}


@keras.saving.register_keras_serializable("ich")
class LabelAUC(keras.metrics.AUC):
    """Area under the ROC curve of one of `LABELS`, named auc_<label>.

    NaN while no sample has the label, or all have it: Keras's own AUC is 0 then, the worst possible. Thresholds are
    even in the logit, from -12 to 12: most probabilities of a label as rare as epidural lie below the first of Keras's
    own, which are 0.005 apart.

    Call:
        y_true: 0 or 1, shape (batch, 6). y_pred: logits, shape (batch, 6).

    Attributes:
        paused: whether a step that Keras compiles now leaves the metric out, which is NaN then.
    """

    def __init__(self, label: str, name: str | None = None, dtype=None):
        thresholds = [1 / (1 + math.exp(-step / 10)) for step in range(-120, 121)]
        super().__init__(thresholds=thresholds, from_logits=True, name=name or f"auc_{label}", dtype=dtype)
        self.label = label
        self.paused = False

    def update_state(self, y_true, y_pred, sample_weight=None):
        if self.paused:
            return
        place = LABELS.index(self.label)
        if sample_weight is not None:
            sample_weight = ops.reshape(sample_weight, (-1,))
        labels, logits = (ops.reshape(values[..., place], (-1,)) for values in (y_true, y_pred))
        super().update_state(labels, ops.cast(logits, self.dtype), sample_weight)

    def result(self):
        if self.paused:
            return ops.convert_to_tensor(math.nan, dtype=self.dtype)
        positives = self.true_positives[0] + self.false_negatives[0]
        negatives = self.true_negatives[0] + self.false_positives[0]
        return ops.where(ops.minimum(positives, negatives) > 0, super().result(), math.nan)

    def get_config(self) -> dict:
        return {"label": self.label, "name": self.name, "dtype": self.dtype}
