"""The optimizer that both stages train with."""

from collections.abc import Sequence

import keras
from keras import ops

from ich.errors import IchError


@keras.saving.register_keras_serializable("ich")
class FactoredAdamW(keras.optimizers.AdamW):
    """AdamW with a factor of the learning rate for each variable, for which k accumulated batches are one step.

    With `gradient_accumulation_steps` Keras's own looks the learning rate up by the number of batches, not of updates,
    and averages the weights (`use_ema`) after each batch, although most of them change nothing: k batches would not
    learn as one that is k times as large.

    Args:
        factors: of the learning rate and of the weight decay, one for each variable that it is built with, in their
            order; None for 1.
        **options: as `keras.optimizers.AdamW` takes them; the learning rate is a schedule.
    """

    def __init__(self, *, factors: Sequence[float] | None = None, **options):
        super().__init__(**options)
        self.factors = None if factors is None else [float(factor) for factor in factors]

    def _get_current_learning_rate(self):
        return self._learning_rate(self.iterations)  # which are updates, where Keras's _iterations are batches

    def _apply_weight_decay(self, variables):
        """Leave the weight decay to `update_step`, which knows the variable's factor."""

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype)
        if self.factors is not None:
            rate = rate * self.factors[self._get_variable_index(variable)]
        if self._use_weight_decay(variable):
            self.assign_sub(variable, variable * (self.weight_decay * rate))
        super().update_step(gradient, variable, rate)

    def _update_model_variables_moving_average(self, trainable_variables):
        if not self.gradient_accumulation_steps:
            return super()._update_model_variables_moving_average(trainable_variables)
        updated = ops.equal((self._iterations + 1) % self.gradient_accumulation_steps, 0)
        kept = ops.where(updated, self.ema_momentum, 1.0)
        kept = ops.where(ops.equal(self.iterations, 0), 0.0, kept)  # the average begins with the first weights
        for variable, average in zip(trainable_variables, self._model_variables_moving_average, strict=True):
            momentum = ops.cast(kept, variable.dtype)
            average.assign(momentum * average + (1 - momentum) * variable)

    def get_config(self) -> dict:
        return {**super().get_config(), "factors": self.factors}


def adamw(
    steps_per_epoch: int,
    epochs: int,
    learning_rate: float,
    warmup_epochs: float,
    weight_decay: float,
    clip_norm: float,
    accumulate: int = 1,
    factors: Sequence[float] | None = None,
    **options,
) -> keras.optimizers.Optimizer:
    """Build AdamW with a linear warm-up to `learning_rate`, then cosine decay to 0.

    Biases and the scales of normalization do not decay.

    Args:
        steps_per_epoch: batches.
        clip_norm: the largest norm of the gradient over all weights, after accumulation.
        accumulate: k, the number of batches whose mean gradient makes an update. They are counted through the whole
            training: an update may take batches of two epochs, and fewer than k at its end, where the rate is next to
            0, make none.
        factors: as `FactoredAdamW` takes them.
        **options: others of `keras.optimizers.AdamW`.

    Raises:
        IchError: the training has fewer than k batches.
    """
    updates = epochs * steps_per_epoch // accumulate
    if updates == 0:
        raise IchError(
            f"the training has {epochs * steps_per_epoch} batches in {epochs} epoch(s), and train.accumulate takes"
            f" {accumulate} for an update; lower it or train.batch_size"
        )
    warmup = min(round(warmup_epochs * steps_per_epoch / accumulate), updates - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else learning_rate,
        decay_steps=updates - warmup,
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    options |= {"learning_rate": schedule, "weight_decay": weight_decay, "global_clipnorm": clip_norm}
    if accumulate > 1 or factors is not None:
        steps = accumulate if accumulate > 1 else None  # Keras refuses 1
        optimizer = FactoredAdamW(factors=factors, gradient_accumulation_steps=steps, **options)
    else:
        optimizer = keras.optimizers.AdamW(**options)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
