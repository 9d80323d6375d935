"""Correct the predictions of a network that was trained on oversampled positives to the true prevalence."""

import math

import keras
from keras import ops

from ich.competition.labels import ANY
from ich.errors import IchError


@keras.saving.register_keras_serializable("ich")
class PriorCorrection(keras.layers.Layer):
    """Take the oversampling of samples with `any` out of logits; in training, leave them as they are.

    Let an epoch show a sample with `any` r times as often as one without, and let the network learn the probability q
    of `any` and p of a label from it. By Bayes' rule (Elkan, IJCAI 2001, theorem 2; Saerens et al., Neural Computation
    14, 2002), if sampling depends on `any` alone:

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


def corrected(model: keras.Model, oversampling: float) -> keras.Model:
    """Return the classifier with a `PriorCorrection` behind it."""
    return keras.Model(model.inputs, PriorCorrection(oversampling)(model.outputs[0]), name=model.name)
