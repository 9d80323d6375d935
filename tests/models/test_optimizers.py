import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest

from ich.errors import IchError
from ich.models import backbones
from ich.models.optimizers import FactoredAdamW, adamw


@pytest.mark.parametrize(
    ("epochs", "warmup", "steps", "rates"),
    [
        (2, 1.0, 4, {0: 0, 2: 0.5, 4: 1, 6: 0.5, 8: 0}),
        (2, 0.0, 4, {0: 1, 4: 0.5, 8: 0}),
        (1, 9.0, 4, {0: 0, 3: 1, 4: 0}),
        (1, 1.0, 1, {0: 1, 1: 0}),
    ],
)
def test_the_learning_rate_rises_to_its_top_and_falls_to_zero(epochs, warmup, steps, rates):
    optimizer = adamw(steps, epochs=epochs, learning_rate=1.0, warmup_epochs=warmup, weight_decay=0.0, clip_norm=1.0)
    schedule = optimizer._learning_rate
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6)


def test_weight_decay_spares_biases_and_normalization():
    optimizer = adamw(4, epochs=1, learning_rate=1e-3, warmup_epochs=0.0, weight_decay=0.1, clip_norm=1.0)
    model = backbones.build_model("small_cnn", (32, 32, 1))
    optimizer.build(model.trainable_variables)
    decayed = {variable.name for variable in model.trainable_variables if optimizer._use_weight_decay(variable)}
    assert decayed == {"kernel"}


OPTIONS = {"learning_rate": 0.05, "warmup_epochs": 1.0, "weight_decay": 0.1, "clip_norm": 0.3}


def trained(batch_size, samples=24, epochs=2, accumulate=1, factors=None, **options):
    """A small network's weights, averages and optimizer, after training on samples in their order."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4, activation="tanh", name="hidden"), keras.layers.Dense(2, name="last")]
    )
    rng = np.random.default_rng(0)
    x, y = (rng.normal(0, 1, (samples, size)).astype(np.float32) for size in (5, 2))
    optimizer = adamw(
        -(-samples // batch_size), epochs=epochs, accumulate=accumulate, factors=factors, **OPTIONS, **options
    )
    model.compile(optimizer, "mse")
    for _ in range(epochs):
        for start in range(0, samples, batch_size):
            model.train_on_batch(x[start : start + batch_size], y[start : start + batch_size])
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    averages = getattr(optimizer, "_model_variables_moving_average", [])
    return [[keras.ops.convert_to_numpy(weight) for weight in some] for some in (model.weights, averages)], optimizer


@pytest.mark.parametrize("factors", [None, [0.1, 0.1, 1, 1]])
def test_accumulated_batches_learn_as_one_of_their_size(factors):
    """Warm-up, cosine, clipping, decay and averages too; 3 batches of 4 as one of 12, in 4 updates."""
    options = {"use_ema": True, "ema_momentum": 0.6, "factors": factors}
    small, optimizer = trained(4, accumulate=3, **options)
    large, _ = trained(12, **options)
    for ours, theirs in zip(small, large, strict=True):
        assert len(ours) == 4
        for own, reference in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(own, reference, rtol=2e-4, atol=2e-6)
    assert (int(optimizer.iterations), int(optimizer._iterations)) == (4, 12)
    assert float(optimizer.learning_rate) == pytest.approx(0, abs=1e-8)


def test_batches_that_do_not_fill_the_last_update_are_left_out_and_the_rate_still_ends_at_0():
    """5 batches an epoch, 10 in all: updates after the 4th and the 8th, across the epochs."""
    _, optimizer = trained(4, samples=20, accumulate=4)
    assert int(optimizer.iterations) == 2
    assert float(optimizer.learning_rate) == pytest.approx(0, abs=1e-8)
    accumulated = [keras.ops.convert_to_numpy(gradient) for gradient in optimizer._accumulated_gradients]
    assert all(np.abs(gradient).max() > 0 for gradient in accumulated)  # the checkpoint holds them
    assert all(any(gradient is each for each in optimizer.variables) for gradient in optimizer._accumulated_gradients)
    with pytest.raises(IchError, match=r"has 10 batches in 2 epoch\(s\), and train.accumulate takes 11 for an update"):
        trained(4, samples=20, accumulate=11)


def test_a_variable_learns_at_its_factor_of_the_rate():
    """One step of AdamW is the rate, whatever the gradient, plus the decay."""
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    before = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    optimizer = adamw(9, 1, **OPTIONS | {"warmup_epochs": 0.0}, factors=[0.1, 0.2, 1, 1])
    optimizer.build(model.trainable_variables)
    optimizer.apply([keras.ops.ones(variable.shape) for variable in model.trainable_variables])
    for variable, value, factor, decay in zip(
        model.trainable_variables, before, [0.1, 0.2, 1, 1], [0.1, 0] * 2, strict=True
    ):
        expected = value * (1 - 0.05 * factor * decay) - 0.05 * factor
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, rtol=1e-4, atol=1e-6)


def test_factors_of_1_are_keras_own():
    (ours, _), _ = trained(12, factors=[1.0] * 4)
    (theirs, _), _ = trained(12)
    for own, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own, reference, rtol=1e-5, atol=1e-7)


def test_its_config_makes_it_again():
    optimizer = adamw(4, 1, **OPTIONS, accumulate=2, factors=[0.5, 1])
    again = FactoredAdamW.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
