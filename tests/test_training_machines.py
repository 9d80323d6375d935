"""The same training on several devices of a machine, and on the workers of a cluster."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import subprocess
import sys

import pandas as pd
import pytest
from conftest import TRAIN, tiny_config

from ich import folds, runs, training
from ich.errors import IchError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


# One process has the devices that it was started with, so this is one of its own; it trains on both and on the first.
DEVICES = """
import json, sys
from pathlib import Path
import keras, pandas as pd, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from ich import callbacks, config, models, runs, training
from ich.errors import IchError

def plain(images, weights):  # each device has batch statistics of its own; without them, both ways are the same
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(4, 5, strides=4, activation="relu")(x)
    return keras.layers.GlobalAveragePooling2D()(x)

models.BUILDERS["plain"] = plain
root, told = Path(sys.argv[1]), {}
for distribute in ("null", "mirrored"):
    overrides = [f"machine.distribute={distribute}"]
    run = runs.Run.begin(config.load(root / "tiny.yaml", overrides), root / distribute)
    if distribute == "mirrored":  # it is stopped, and goes on from its checkpoint
        end = callbacks.Checkpoint.on_epoch_end
        def stop(self, epoch, logs=None):
            end(self, epoch, logs)
            if epoch == 1:
                raise ZeroDivisionError
        callbacks.Checkpoint.on_epoch_end = stop
        try:
            training.train_fold(run, 0)
        except ZeroDivisionError:
            told["stopped"] = True
        callbacks.Checkpoint.on_epoch_end = end
    training.train_fold(run, 0)
    told[distribute] = {
        "history": pd.read_csv(run.fold(0) / "history.csv").to_dict("list"),
        "oof": pd.read_parquet(run.fold(0) / "oof.parquet").to_numpy().tolist(),
        "devices": run.environment()["devices"],
    }
try:
    run = runs.Run.begin(config.load(root / "tiny.yaml", [*overrides, "train.batch_size=5"]), root / "odd")
    training.train_fold(run, 0)
except IchError as error:
    told["odd"] = str(error)
(root / "told.json").write_text(json.dumps(told))
"""


@pytest.mark.slow
def test_two_devices_learn_as_one_does_from_the_same_batches(data, tmp_path):
    """12 slices in batches of 8, the last of which is short; and held out are 11 in batches of 4, the last is odd."""
    table = folds.read_folds(data / "folds.csv").drop(index=TRAIN[0])
    folds.write_folds(tmp_path / "folds.csv", table)
    config = tiny_config(
        data,
        data={"folds": tmp_path / "folds.csv"},
        model={"name": "plain", "dropout": 0.0},
        train={"batch_size": 8, "epochs": 5, "ema_momentum": 0.8},
        predict={"batch_size": 4},
    )
    (tmp_path / "tiny.yaml").write_text(config.resolved())
    done = subprocess.run([sys.executable, "-c", DEVICES, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    one, two = (pd.DataFrame(told[distribute]["history"]) for distribute in ("null", "mirrored"))
    assert one["loss"].nunique() == 5
    # The AUC of so few jumps when rounding takes one of them across a threshold.
    losses = [name for name in one.columns if "loss" in name]
    assert len(losses) == 4
    pd.testing.assert_frame_equal(one[losses], two[losses], rtol=1e-5)
    pd.testing.assert_frame_equal(
        *(pd.DataFrame(told[distribute]["oof"]) for distribute in ("null", "mirrored")), rtol=1e-5
    )
    assert told["stopped"]
    assert told["mirrored"]["devices"] == ["cpu:0", "cpu:1"]
    assert told["odd"] == (
        "train.batch_size is 5, which 2 devices cannot share evenly; make it a multiple of 2, or set machine.distribute"
        " to null"
    )


def test_several_devices_take_tensorflow(data, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    run = runs.Run.begin(tiny_config(data, machine={"distribute": "mirrored"}), tmp_path)
    with pytest.raises(
        IchError, match=r"machine.distribute=mirrored works with TensorFlow, Keras runs on jax; set KER"
    ):
        training.train_fold(run, 0)
    assert not run.path.exists()


def test_pytorch_takes_one_step_at_a_time(data, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "torch")
    run = runs.Run.begin(tiny_config(data, machine={"steps_per_execution": 8}), tmp_path)
    with pytest.raises(IchError, match=r"machine.steps_per_execution is 8, and PyTorch takes one step at a time; set"):
        training.train_fold(run, 0)
    assert not run.path.exists()


def test_what_ends_a_fold_on_a_worker_arrives_as_what_it_is(data, tmp_path, monkeypatch):
    run = runs.Run.begin(tiny_config(data, folds={"n": 3}), tmp_path)
    with pytest.raises(
        IchError, match=r"^fold 0: .*folds.csv has 2 folds, the config 3; set folds.n to the file's, or"
    ):
        training._train_there(run, 0)
    monkeypatch.setattr(training, "_TRAIN", "1 / 0")
    with pytest.raises(RuntimeError, match=r"(?s)fold 1 ended with status 1: .*ZeroDivisionError"):
        training._train_there(run, 1)
    monkeypatch.setattr(
        training, "_TRAIN", "import sys; print('log\\nerror: of two\\nlines', file=sys.stderr); sys.exit(1)"
    )
    with pytest.raises(IchError, match=r"^fold 1: of two\nlines$"):
        training._train_there(run, 1)
    monkeypatch.setattr(training, "_TRAIN", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(IchError, match=r"^fold 1: its process was killed, which .* the same command continues$"):
        training._train_there(run, 1)


@pytest.mark.slow
def test_a_cluster_trains_the_folds_as_one_process_does(data, tmp_path):
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    from test_parallel import scheduler

    alone = runs.Run.begin(tiny_config(data), tmp_path / "alone")
    training.train_folds(alone)
    with scheduler(workers=2) as (_, address):
        there = {"backend": "dask", "scheduler": address}
        shared = runs.Run.begin(tiny_config(data, machine=there), tmp_path / "shared")
        training.train_folds(shared)
        training.train_folds(shared)  # which asks nothing of the cluster
    assert shared.finished_folds() == [0, 1]
    for k in range(2):
        one, other = (runs.read_predictions(run.fold(k) / "oof.parquet") for run in (alone, shared))
        # Dask gives its workers a thread each, and sums are rounded by another number of parts.
        pd.testing.assert_frame_equal(one, other, rtol=1e-4)
    assert shared.score()["weighted_log_loss"] == pytest.approx(alone.score()["weighted_log_loss"], rel=1e-4)
