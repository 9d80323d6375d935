"""Correct what a network learns from oversampled positives, a focal loss or smoothed labels to true probabilities."""

import math

import keras
from keras import ops

from ich.competition.labels import ANY
from ich.errors import IchError


@keras.saving.register_keras_serializable("ich")
class PriorCorrection(keras.layers.Layer):
    """Correct logits for the oversampling of samples with `any`; in training, return them unchanged.

    Let an epoch show a sample with `any` r times as often as one without, and let q be the probability of `any` and p
    that of a label that the network learns from it. By Bayes' rule (Elkan, IJCAI 2001, theorem 2; Saerens et al.,
    Neural Computation 14, 2002), if sampling depends on `any` alone:

        P(label) = p / (q + r (1 - q)),    as a sample with the label has `any`,

    so that the odds are p / (1 - p) · 1 / (1 + (r - 1) t) with t = (1 - q) / (1 - p). For `any` itself t is 1, and the
    logit falls by log r. Where the network predicts a label with more than q, q is raised to p.

    Args:
        oversampling: r, more than 0.

    Call:
        logits: shape (batch, 6). Returns float32 of the same shape.

    Raises:
        IchError: r is not finite or not more than 0.
    """

    def __init__(self, oversampling: float, name: str = "prior_correction", **kwargs):
        super().__init__(name=name, **{"dtype": "float32"} | kwargs)
        if not 0 < oversampling < math.inf:
            raise IchError(f"oversampling is {oversampling}, expected a finite number above 0")
        self.oversampling = float(oversampling)

    def call(self, logits, training=None):
        if training:
            return logits
        highest = ops.maximum(logits, logits[..., ANY : ANY + 1])
        # 1 - p is exp(-softplus(logit)), which no logit overflows.
        t = ops.exp(ops.softplus(logits) - ops.softplus(highest))
        return logits - ops.log1p((self.oversampling - 1) * t)

    def compute_output_spec(self, logits, training=None):
        return keras.KerasTensor(logits.shape, "float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "oversampling": self.oversampling}


@keras.saving.register_keras_serializable("ich")
class LossCorrection(keras.layers.Layer):
    """Turn logits that minimize a focal loss of smoothed labels into those of probabilities; not in training.

    The focal loss -(1 - q)^gamma log q is smallest at a q nearer to 1/2 than the probability p (Charoenphakdee et al.,
    CVPR 2021): p / (1 - p) = h(q) / h(1 - q) with h(q) = q / ((1 - q)^gamma - gamma (1 - q)^(gamma - 1)
    q log q). With z = logit q and g(z) = exp(z) log(1 + exp(-z)), which is between 0 and 1, this is

        logit p = (1 + gamma) z + log(1 + gamma g(-z)) - log(1 + gamma g(z)).

    Of labels smoothed by s it is the p of p (1 - s) + s / 2. An output below s / 2 or above 1 - s / 2, an error of
    the network, would give no probability: v = p and v = 1 - p are replaced by v / 2 + sqrt(v² / 4 + e²), which is
    more than 0, keeps the order, and is next to v where that is large against e = s / 20. In simulations with errors of
    0.05 to 0.5 in the logit, e between s / 60 and s / 10 cost the least log loss.

    Args:
        gamma: exponent of the focal loss, at least 0; 0 for the log loss.
        label_smoothing: s, at least 0 and less than 1.

    Call:
        logits: of any shape. Returns float32 of the same shape.

    Raises:
        IchError: a gamma or a label smoothing that is out of range.
    """

    def __init__(self, gamma: float = 0.0, label_smoothing: float = 0.0, name: str = "loss_correction", **kwargs):
        super().__init__(name=name, **{"dtype": "float32"} | kwargs)
        if not 0 <= gamma < math.inf or not 0 <= label_smoothing < 1:
            raise IchError(
                f"gamma is {gamma} and label_smoothing {label_smoothing}, expected a finite number of at least 0, and"
                " one of at least 0 and less than 1"
            )
        self.gamma, self.label_smoothing = float(gamma), float(label_smoothing)

    def call(self, logits, training=None):
        if training:
            return logits
        if self.gamma:
            logits = (1 + self.gamma) * logits + self._log_of_g(-logits) - self._log_of_g(logits)
        if self.label_smoothing:
            logits = ops.log(self._unsmoothed(logits)) - ops.log(self._unsmoothed(-logits))
        return logits

    def _log_of_g(self, z):
        z = ops.minimum(z, 30.0)  # beyond, g is 1 in float32
        return ops.log1p(self.gamma * ops.exp(z) * ops.softplus(-z))

    def _unsmoothed(self, z):
        v = (ops.sigmoid(z) - self.label_smoothing / 2) / (1 - self.label_smoothing)
        return v / 2 + ops.sqrt(v * v / 4 + (self.label_smoothing / 20) ** 2)

    def compute_output_spec(self, logits, training=None):
        return keras.KerasTensor(logits.shape, "float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "gamma": self.gamma, "label_smoothing": self.label_smoothing}


def corrected(
    model: keras.Model, oversampling: float = 1.0, gamma: float = 0.0, label_smoothing: float = 0.0
) -> keras.Model:
    """Append to a classifier a `LossCorrection` and then a `PriorCorrection`, each only if it has an effect."""
    logits = model.outputs[0]
    if gamma or label_smoothing:
        logits = LossCorrection(gamma, label_smoothing)(logits)
    if oversampling != 1:
        logits = PriorCorrection(oversampling)(logits)
    return model if logits is model.outputs[0] else keras.Model(model.input, logits, name=model.name)
