import pytest

from ich.models import backbones
from ich.models.optimizers import adamw


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
