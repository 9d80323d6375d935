"""The optimizer that both stages train with."""

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
    """Build AdamW with a linear warm-up to `learning_rate`, then cosine decay to 0.

    Biases and the scales of normalization do not decay.

    Args:
        clip_norm: the largest norm of the gradient over all weights.
        **options: others of `keras.optimizers.AdamW`.
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
