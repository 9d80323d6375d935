"""The optimiser that both stages train with."""

import keras


def adamw(
    steps_per_epoch: int,
    epochs: int,
    learning_rate: float,
    warmup_epochs: float,
    weight_decay: float,
    clip_norm: float,
    **options,
) -> keras.optimizers.Optimizer:
    """AdamW, whose learning rate rises on a line during the warm-up and then falls to 0 on a cosine.

    Biases and the scales of normalisation do not decay.

    Args:
        learning_rate: at the top.
        clip_norm: the gradient's norm over all weights is at most this.
        options: more of `keras.optimizers.AdamW`.
    """
    steps = epochs * steps_per_epoch
    warmup = min(round(warmup_epochs * steps_per_epoch), steps - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else learning_rate,
        decay_steps=steps - warmup,
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=weight_decay, global_clipnorm=clip_norm, **options)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
