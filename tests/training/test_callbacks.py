import math
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest

from ich.data.generator import DataGenerator
from ich.errors import IchError
from ich.models.losses import LabelAUC, WeightedBinaryCrossentropy
from ich.training.callbacks import Checkpoint, FiniteLoss, HideMissingAUC, KeepBest, read_variables, write_variables

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def network(seed=0, **options):
    """With all that has a state: a random layer, statistics, a schedule, moving averages."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Dense(4),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential([keras.Input((3,)), *layers])
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 50)
    model.compile(keras.optimizers.AdamW(schedule, use_ema=True, ema_momentum=0.9, **options), "mse", metrics=["mae"])
    return model


@pytest.fixture
def xy():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=(20, 1)).astype(np.float32)


def values(variables):
    return [keras.ops.convert_to_numpy(variable).tolist() for variable in variables]


def fit(model, xy, *callbacks, **options):
    return model.fit(*xy, batch_size=6, shuffle=False, verbose=0, callbacks=list(callbacks), **options)


def test_a_model_restored_ends_where_one_that_ran_through_ends(xy, tmp_path):
    through, expected = network(), Checkpoint(tmp_path / "through.npz")
    kept = fit(through, xy, keras.callbacks.SwapEMAWeights(), expected, validation_data=xy, epochs=5).history
    assert expected.history == kept

    first = network()
    callbacks = [keras.callbacks.SwapEMAWeights(), Checkpoint(tmp_path / "c.npz")]
    fit(first, xy, *callbacks, validation_data=xy, epochs=2)
    second, checkpoint = network(seed=99), Checkpoint(tmp_path / "c.npz")  # another start, which must not matter
    done = checkpoint.restore(second)
    assert done == 2
    callbacks = [keras.callbacks.SwapEMAWeights(), checkpoint]
    fit(second, xy, *callbacks, validation_data=xy, initial_epoch=done, epochs=5)
    assert checkpoint.history == expected.history
    assert values(second.variables) == values(through.variables)
    assert values(second.optimizer.variables) == values(through.optimizer.variables)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("built", [False, True])
def test_the_loss_scale_of_mixed_precision_comes_back(xy, tmp_path, built):
    def scaled(seed):
        model = network(seed)
        model.compile(keras.optimizers.LossScaleOptimizer(model.optimizer), "mse")
        if built:  # as a training has it that goes on
            model.optimizer.build(model.trainable_variables)
        return model

    first, second = scaled(0), scaled(99)
    fit(first, xy, Checkpoint(tmp_path / "c.npz"), epochs=2)
    assert Checkpoint(tmp_path / "c.npz").restore(second) == 2
    assert values(second.optimizer.variables) == values(first.optimizer.variables)


def test_without_a_checkpoint_training_begins(tmp_path):
    model = network()
    before = values(model.variables)
    assert Checkpoint(tmp_path / "none.npz").restore(model) == 0
    assert values(model.variables) == before


def test_the_best_is_kept_as_it_was_evaluated_and_survives_a_restart(xy, tmp_path):
    """Of averaged weights: what is kept must give the very score that the validation told."""
    rng = np.random.default_rng(1)
    other = xy[0], rng.normal(size=(20, 1)).astype(np.float32)  # nothing to be learnt: it gets worse
    model, best = network(), KeepBest(tmp_path / "best.npz", "mae")
    averaging = keras.callbacks.SwapEMAWeights()
    history = fit(model, xy, best, averaging, validation_data=other, epochs=12).history["val_mae"]
    assert best.best == min(history) < history[-1]
    found = network(seed=5)
    read_variables(tmp_path / "best.npz", found.weights)
    assert found.evaluate(*other, verbose=0, return_dict=True)["mae"] == pytest.approx(min(history), rel=1e-6)

    stored = (tmp_path / "best.npz").read_bytes()
    again = KeepBest(tmp_path / "best.npz", "mae", best=min(history))
    fit(network(seed=3), xy, again, averaging, validation_data=other, epochs=1)
    assert (again.best < min(history)) == ((tmp_path / "best.npz").read_bytes() != stored)
    never = KeepBest(tmp_path / "best.npz", "mae", best=0.0)
    stored = (tmp_path / "best.npz").read_bytes()
    fit(network(seed=3), xy, never, averaging, validation_data=other, epochs=1)
    assert (tmp_path / "best.npz").read_bytes() == stored


def reader(path):
    return np.full((1, 1, 3), 255 if path.stem == "s7" else int(path.stem[1:]), np.uint8)


@pytest.mark.parametrize(("workers", "steps"), [(1, 1), (3, 1), (2, 2), (1, 5)])
def test_a_loss_that_is_no_number_names_the_batches_that_made_it(workers, steps):
    ids = [f"s{number}" for number in range(20)]
    samples = DataGenerator(
        ids,
        lambda one: [0.0],
        reader=reader,
        shuffle=True,
        batch_size=3,
        seed=5,
        epoch=1,
        workers=workers,
        preprocess=lambda image: np.where(image == 255, np.inf, image).astype(np.float32).ravel(),
    )
    batch = next(index for index in range(len(samples)) if "s7" in samples.ids_of(index))
    assert batch > 0
    first = batch - batch % steps
    these = range(first, min(first + steps, len(samples)))
    wanted = ", ".join(id for one in these for id in samples.ids_of(one))
    told = f"batch {batch + 1}" if steps == 1 else f"batches {first + 1} to {these[-1] + 1}"
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=steps)
    model.optimizer.learning_rate = 0.0
    watch = FiniteLoss(samples, "do something")
    with pytest.raises(IchError) as caught:
        model.fit(samples, callbacks=[watch], shuffle=False, verbose=0, initial_epoch=1, epochs=3)
    assert str(caught.value) == (
        f"the loss is no number any more in epoch 2, {told}, of the slices {wanted}; do something"
    )


@pytest.mark.parametrize("damage", ["junk", "cut", "empty", "folder"])
def test_a_damaged_checkpoint_is_a_sentence(tmp_path, damage):
    path = tmp_path / "c.npz"
    write_variables(path, network().variables, "{}")
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"junk": b"junk", "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(IchError, match=r"the checkpoint .*c.npz cannot be read \(.*; delete .* to train the fold from"):
        Checkpoint(path).restore(network())


def test_a_checkpoint_of_which_any_byte_changed_is_refused_in_a_line_or_as_it_was(tmp_path):
    path, model = tmp_path / "c.npz", network()
    write_variables(path, model.variables, "{}")
    whole, before = path.read_bytes(), values(model.variables)
    directory = whole.index(b"PK\x01\x02")
    refused = []
    for at in [*range(0, directory, directory // 100), *range(directory, len(whole), 3)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            read_variables(path, model.variables)
        except IchError as error:
            refused.append(str(error))
        assert values(model.variables) == before, at
    assert len(refused) > 60
    assert not [told for told in refused if "\n" in told]


def test_a_checkpoint_with_an_object_inside_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "c.npz", note=np.array({"a": 1}, dtype=object))
    with pytest.raises(IchError, match=r"cannot be read \(Object arrays cannot be loaded"):
        Checkpoint(tmp_path / "c.npz").restore(network())


def test_variables_of_another_model_are_refused_and_nothing_is_set(tmp_path):
    model = network()
    before = values(model.variables)
    write_variables(tmp_path / "c.npz", model.variables[:-1])
    with pytest.raises(IchError, match=r"c.npz is of another model than the config's; delete"):
        read_variables(tmp_path / "c.npz", model.variables)
    assert values(model.variables) == before


def test_the_note_comes_back(tmp_path):
    write_variables(tmp_path / "c.npz", [], '{"ä": 1e-17}')
    assert read_variables(tmp_path / "c.npz", []) == '{"ä": 1e-17}'


def test_an_auc_that_does_not_exist_is_kept_and_not_printed(tmp_path, capsys):
    metrics = [LabelAUC("epidural"), LabelAUC("any")]
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6)])
    model.compile("sgd", WeightedBinaryCrossentropy(), metrics=metrics)
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    y = (x > 0).astype(np.float32)
    y[:, 0] = 0
    checkpoint = Checkpoint(tmp_path / "c.npz")
    for verbose in (1, 2):
        model.fit(x, y, validation_data=(x, y), verbose=verbose, callbacks=[checkpoint, HideMissingAUC()])
        printed = capsys.readouterr().out
        assert "nan" not in printed
        assert "auc_any" in printed
        assert "auc_epidural" not in printed
    assert np.isnan(checkpoint.history["val_auc_epidural"]).all()
    assert len(checkpoint.history["val_auc_any"]) == len(checkpoint.history["auc_epidural"]) == 2
    logs = {"val_loss": math.nan, "auc_any": math.nan}
    HideMissingAUC().on_epoch_end(0, logs)
    assert list(logs) == ["val_loss"]  # a loss that is NaN is never hidden
