import io
import math
import os
import resource
import signal
import sys
from contextlib import closing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest

from ich.data.generator import DataGenerator
from ich.errors import IchError
from ich.models.losses import LabelAUC, WeightedBinaryCrossentropy
from ich.training.callbacks import (
    Checkpoint,
    EpochLine,
    KeepBest,
    TerminateOnNaNLoss,
    ValidationAUC,
    read_variables,
    write_variables,
)


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
    """Of averaged weights: what is kept must give the very score that the validation reported."""
    rng = np.random.default_rng(1)
    other = xy[0], rng.normal(size=(20, 1)).astype(np.float32)  # nothing to be learnt: it gets worse
    model, best = network(), KeepBest(tmp_path / "best.npz", "mae")
    averaging = keras.callbacks.SwapEMAWeights()
    history = fit(model, xy, best, averaging, validation_data=other, epochs=12).history["val_mae"]
    assert best.best == min(history) < history[-1]
    restored = network(seed=5)
    read_variables(tmp_path / "best.npz", restored.weights)
    assert restored.evaluate(*other, verbose=0, return_dict=True)["mae"] == pytest.approx(min(history), rel=1e-6)

    stored = (tmp_path / "best.npz").read_bytes()
    again = KeepBest(tmp_path / "best.npz", "mae", best=min(history))
    again.set_model(network(seed=3))
    again.on_test_end({"mae": min(history) + 0.1})
    assert (again.best, (tmp_path / "best.npz").read_bytes()) == (min(history), stored)
    again.on_test_end({"mae": min(history) - 0.1})
    assert again.best == min(history) - 0.1
    read_variables(tmp_path / "best.npz", restored.weights)
    assert values(restored.weights) == values(again.model.weights)


def test_without_room_for_a_checkpoint_the_last_one_stays(tmp_path):
    """A limit of the system on the size of files stands for the full disk: writes fail in the middle all the same."""
    model, checkpoint = network(), Checkpoint(tmp_path / "c.npz")
    model.optimizer.build(model.trainable_variables)
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(0, {"loss": 1.0})
    before = values(model.variables)
    model.set_weights([2 * weight for weight in model.get_weights()])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(IchError, match=r"cannot write .*c.npz: .*; make room or rights for it, then run again"):
            checkpoint.on_epoch_end(1, {"loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]
    assert Checkpoint(tmp_path / "c.npz").restore(model) == 1
    assert values(model.variables) == before


def reader(path):
    return np.full((1, 1, 3), 255 if path.stem == "s7" else int(path.stem[1:]), np.uint8)


@pytest.mark.parametrize(("workers", "steps"), [(1, 1), (3, 1), (2, 2), (1, 5)])
def test_a_loss_that_is_no_number_names_the_batches_that_made_it(workers, steps):
    ids = [f"s{number}" for number in range(20)]
    samples = DataGenerator(
        ids,
        lambda id_: [0.0],
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
    slices = ", ".join(id for index in these for id in samples.ids_of(index))
    batches = f"batch {batch + 1}" if steps == 1 else f"batches {first + 1} to {these[-1] + 1}"
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=steps)
    model.optimizer.learning_rate = 0.0
    model.set_weights([np.ones((3, 1)), np.zeros(1)])  # of one sign, so that infinity makes infinity
    watch = TerminateOnNaNLoss(samples, "do something")
    with pytest.raises(IchError) as caught:
        model.fit(samples, callbacks=[watch], shuffle=False, verbose=0, initial_epoch=1, epochs=3)
    kinds = ["inf"] if steps == 1 else ["inf", "nan"]  # a step behind it makes it NaN
    messages = [f"the loss is {kind} in epoch 2, {batches}, with the slices {slices}; do something" for kind in kinds]
    assert str(caught.value) in messages


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
    assert not [message for message in refused if "\n" in message]


def test_a_checkpoint_with_an_object_inside_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "c.npz", note=np.array({"a": 1}, dtype=object))
    with pytest.raises(IchError, match=r"cannot be read \(Object arrays cannot be loaded"):
        Checkpoint(tmp_path / "c.npz").restore(network())


def test_variables_of_another_model_are_refused_and_nothing_is_set(tmp_path):
    model = network()
    before = values(model.variables)
    write_variables(tmp_path / "c.npz", model.variables[:-1])
    with pytest.raises(IchError, match=r"c.npz has the variables of another model than the config's; delete"):
        read_variables(tmp_path / "c.npz", model.variables)
    assert values(model.variables) == before


def test_the_note_comes_back(tmp_path):
    write_variables(tmp_path / "c.npz", [], '{"ä": 1e-17}')
    assert read_variables(tmp_path / "c.npz", []) == '{"ä": 1e-17}'


@pytest.fixture
def of_labels():
    """A model of six labels, compiled with the AUCs of two; no sample has the first."""
    keras.utils.set_random_seed(0)
    aucs = [LabelAUC("epidural"), LabelAUC("any")]
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6)])
    model.compile("sgd", WeightedBinaryCrossentropy(), metrics=aucs)
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    y = (x > 0).astype(np.float32)
    y[:, 0] = 0
    return model, aucs, x, y


def test_aucs_are_computed_in_validation_alone_and_change_nothing_else(of_labels, tmp_path):
    model, aucs, x, y = of_labels
    start = model.get_weights()
    options = {"batch_size": 6, "validation_data": (x, y), "epochs": 2, "shuffle": False, "verbose": 0}
    expected, weights = model.fit(x, y, **options).history, model.get_weights()
    assert np.isfinite(expected["auc_any"]).all()
    model.compile("sgd", WeightedBinaryCrossentropy(), metrics=aucs)
    model.set_weights(start)
    checkpoint, counted = Checkpoint(tmp_path / "c.npz"), []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: counted.append(float(keras.ops.sum(aucs[1].true_positives)))
    )
    model.fit(x, y, callbacks=[ValidationAUC(aucs), checkpoint, look], **options)
    assert checkpoint.history.keys() == expected.keys() - {"auc_any", "auc_epidural"}
    for name, values_of_epochs in checkpoint.history.items():
        np.testing.assert_array_equal(values_of_epochs, expected[name], err_msg=name)
    for weight, reference in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, reference)
    assert len(set(counted[:4])) == 1  # in the first epoch, before any validation
    assert np.isnan(checkpoint.history["val_auc_epidural"]).all()
    assert np.isfinite(model.evaluate(x, y, verbose=0, return_dict=True)["auc_any"])


@pytest.mark.parametrize("steps", [1, 2])
def test_an_epoch_is_one_line_in_a_log(of_labels, capfd, steps):
    model, aucs, x, y = of_labels
    model.steps_per_execution = steps
    line, after = EpochLine("fold 3"), []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: after.append(dict(logs)))
    options = {"epochs": 3, "initial_epoch": 1, "validation_data": (x, y), "verbose": 0, "batch_size": 6}
    history = model.fit(x, y, callbacks=[ValidationAUC(aucs), line, note], **options).history
    printed, bar = capfd.readouterr()
    assert bar == ""
    lines = printed.splitlines()
    assert len(lines) == 2
    for number, text in enumerate(lines):
        assert len(text) <= 120
        loss, validation, auc = (history[name][number] for name in ("loss", "val_loss", "val_auc_any"))
        assert text == (
            f"fold 3, epoch {number + 2}/3: loss {loss:.4f}, validation loss {validation:.4f}, AUC of any {auc:.4f},"
            f" {after[number]['seconds']:.1f} s"
        )


def test_an_auc_that_does_not_exist_is_n_a(capfd):
    line = EpochLine("fold 0")
    line.set_params({"epochs": 1, "steps": 1})
    line.on_epoch_begin(0)
    line.on_epoch_end(0, {"loss": math.nan, "val_loss": 123456.7, "val_auc_any": math.nan})
    assert "loss nan, validation loss 123456.7000, AUC of any n/a, 0.0 s" in capfd.readouterr().out


def test_a_bar_in_a_terminal_is_replaced_by_the_line(of_labels, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    model, aucs, x, y = of_labels
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    with closing(EpochLine("fold 0")) as line:
        model.fit(x, y, validation_data=(x, y), verbose=0, batch_size=2, callbacks=[ValidationAUC(aucs), line])
    *bars, last = screen.getvalue().split("\r")
    assert any("fold 0, epoch 1/1:   0%" in bar for bar in bars)
    assert last.startswith("fold 0, epoch 1/1: loss ")
    assert bars[-1].strip() == ""  # what wipes the bar
