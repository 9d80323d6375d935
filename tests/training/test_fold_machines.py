"""The same training on several devices of a machine, and on the workers of a cluster."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import TRAIN, dask_scheduler, tiny_config

from ich.competition import folds, metrics
from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.models import devices
from ich.results.predictions import read_predictions
from ich.training import fold
from ich.training.run_directory import Run
from ich.training.run_score import score_run

# One process has the devices that it was started with, so this is one of its own; it trains on both and on the first.
DEVICES = """
import json, sys
from pathlib import Path
import keras, numpy as np, pandas as pd, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from ich import config
from ich.competition import folds
from ich.models import backbones, devices
from ich.training import callbacks, chunked_inference, fold, inference, run_directory
from ich.training.parts import read_part
from ich.errors import IchError
from ich.data.generator import DataGenerator

def normalized(images, weights):
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(4, 5, strides=4, use_bias=False)(x)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)
    return keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))

backbones.BUILDERS["normalized"] = normalized
root, results = Path(sys.argv[1]), {}
for distribute in ("null", "mirrored"):
    overrides = [f"machine.distribute={distribute}"]
    run = run_directory.Run.begin(config.load(root / "tiny.yaml", overrides), root / distribute)
    if distribute == "mirrored":  # it is stopped, and goes on from its checkpoint
        end = callbacks.Checkpoint.on_epoch_end
        def stop(self, epoch, logs=None):
            end(self, epoch, logs)
            if epoch == 1:
                raise ZeroDivisionError
        callbacks.Checkpoint.on_epoch_end = stop
        try:
            fold.train_fold(run, 0)
        except ZeroDivisionError:
            results["stopped"] = True
        callbacks.Checkpoint.on_epoch_end = end
    fold.train_fold(run, 0)
    results[distribute] = {
        "history": pd.read_csv(run.fold(0) / "history.csv").to_dict("list"),
        "oof": pd.read_parquet(run.fold(0) / "oof.parquet").to_numpy().tolist(),
        "devices": run.environment()["devices"],
    }
# The same model on one device and on both, in batches that two do not divide; logits and features.
table = folds.read_folds(run.config.data.folds_path)
for distribute in (None, "mirrored"):
    model = backbones.with_features(inference.load_model(run, 0, distribute))
    samples = DataGenerator(table.index, batch_size=3, **inference.generator_options(run.config, "train"))
    folder = root / f"parts-{distribute}"
    rows = lambda passes: np.concatenate(passes[1], axis=1)
    parts = chunked_inference.predict_parts(model, [samples] * 2, folder, rows)
    results[f"predicted-{distribute}"] = np.concatenate([read_part(part) for part in parts]).tolist()
    results[f"replicas-{distribute}"] = devices.replicas(model)
try:
    run = run_directory.Run.begin(config.load(root / "tiny.yaml", [*overrides, "train.batch_size=5"]), root / "odd")
    fold.train_fold(run, 0)
except IchError as error:
    results["odd"] = str(error)
(root / "results.json").write_text(json.dumps(results))
"""


@pytest.mark.slow
def test_two_devices_learn_as_one_does_from_the_same_batches(data, tmp_path):
    """12 slices in batches of 8, the last of which is short; and held out are 9, of whose batches of 8 the last is one
    slice, which two devices cannot share.
    """
    table = folds.read_folds(data / "folds.csv").drop(index=TRAIN[:3])
    folds.write_folds(tmp_path / "folds.csv", table)
    config = tiny_config(
        data,
        data={"folds": tmp_path / "folds.csv"},
        model={"name": "normalized", "dropout": 0.0},
        train={"batch_size": 8, "epochs": 5, "ema_momentum": 0.8, "keep": "best", "learning_rate": 0.05},
        predict={"batch_size": 8},
    )
    (tmp_path / "tiny.yaml").write_text(config.resolved())
    done = subprocess.run([sys.executable, "-c", DEVICES, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    single, both = (pd.DataFrame(content[distribute]["history"]) for distribute in ("null", "mirrored"))
    assert single["loss"].nunique() == 5
    # The AUC of so few jumps when rounding takes one of them across a threshold.
    losses = [name for name in single.columns if "loss" in name]
    assert len(losses) == 4
    pd.testing.assert_frame_equal(single[losses], both[losses], rtol=1e-5)
    pd.testing.assert_frame_equal(
        *(pd.DataFrame(content[distribute]["oof"]) for distribute in ("null", "mirrored")), rtol=1e-5
    )
    assert content["stopped"]
    # What was validated is what was saved and predicts.
    y, oof = table.loc[table["fold"] == 0, list(LABELS)].to_numpy(), np.array(content["mirrored"]["oof"])
    assert metrics.weighted_log_loss(y, oof) == pytest.approx(both["val_weighted_log_loss"].min(), rel=1e-5)
    single, both = (np.array(content[f"predicted-{distribute}"]) for distribute in (None, "mirrored"))
    assert single.shape == both.shape == (21, 10)
    assert len(np.unique(single[:, 0])) == 21
    np.testing.assert_allclose(single, both, rtol=1e-5, atol=1e-6)
    assert (content["replicas-None"], content["replicas-mirrored"]) == (1, 2)
    assert content["mirrored"]["devices"] == ["cpu:0", "cpu:1"]
    assert content["odd"] == (
        "train.batch_size is 5, which 2 devices cannot share evenly; make it a multiple of 2, or set machine.distribute"
        " to null"
    )


def shard_sizes(batch, devices):
    """Return the sizes of the parts into which TensorFlow divides a batch: equal, rounded up, the last ones smaller."""
    size = -(-batch // devices)
    return [max(0, min(size, batch - size * place)) for place in range(devices)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_the_last_batch_of_a_validation_has_a_slice_for_each_device(count):
    for samples in range(1, 100, 3):
        for most in range(count, 65, 4 * count):
            fine = [
                size
                for size in range(count, most + 1, count)
                if min(shard_sizes(samples % size or size, count)) > 0
                and len(set(shard_sizes(min(size, samples), count))) == 1
            ]
            if fine:
                assert devices.validation_batch_size(samples, most, count) == max(fine)
            else:
                with pytest.raises(IchError, match=rf"{samples} held-out slices in batches of {most} or less cannot"):
                    devices.validation_batch_size(samples, most, count)


def test_several_devices_take_tensorflow(data, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    run = Run.begin(tiny_config(data, machine={"distribute": "mirrored"}), tmp_path)
    with pytest.raises(
        IchError, match=r"machine.distribute=mirrored works with TensorFlow, Keras runs on jax; set KER"
    ):
        fold.train_fold(run, 0)
    assert not run.path.exists()


def test_several_devices_do_not_accumulate(data, tmp_path):
    run = Run.begin(tiny_config(data, train={"accumulate": 2}, machine={"distribute": "mirrored"}), tmp_path)
    with pytest.raises(IchError, match=r"train.accumulate works on one device, machine.distribute shares batches"):
        fold.train_fold(run, 0)
    assert not run.path.exists()


def test_pytorch_takes_one_step_at_a_time(data, tmp_path, monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "torch")
    run = Run.begin(tiny_config(data, machine={"steps_per_execution": 8}), tmp_path)
    with pytest.raises(IchError, match=r"machine.steps_per_execution is 8, and PyTorch takes one step at a time; set"):
        fold.train_fold(run, 0)
    assert not run.path.exists()


def test_what_ends_a_fold_on_a_worker_arrives_as_what_it_is(data, tmp_path, monkeypatch):
    run = Run.begin(tiny_config(data, folds={"n": 3}), tmp_path)
    with pytest.raises(
        IchError, match=r"^fold 0: .*folds.csv has 2 folds, the config 3; set folds.n to the file's, or"
    ):
        fold._train_in_a_process(run, 0)
    monkeypatch.setattr(fold, "_TRAIN", "1 / 0")
    with pytest.raises(RuntimeError, match=r"(?s)fold 1 ended with status 1: .*ZeroDivisionError"):
        fold._train_in_a_process(run, 1)
    monkeypatch.setattr(
        fold, "_TRAIN", "import sys; print('log\\nerror: of two\\nlines', file=sys.stderr); sys.exit(1)"
    )
    with pytest.raises(IchError, match=r"^fold 1: of two\nlines$"):
        fold._train_in_a_process(run, 1)
    monkeypatch.setattr(fold, "_TRAIN", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(IchError, match=r"^fold 1: its process was killed, which .* the same command continues$"):
        fold._train_in_a_process(run, 1)


@pytest.mark.slow
def test_a_cluster_trains_the_folds_as_one_process_does(data, tmp_path):
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    alone = Run.begin(tiny_config(data), tmp_path / "alone")
    fold.train_folds(alone)
    with dask_scheduler(workers=2) as (_, address):
        there = {"backend": "dask", "scheduler": address}
        shared = Run.begin(tiny_config(data, machine=there), tmp_path / "shared")
        fold.train_folds(shared)
        fold.train_folds(shared)  # which asks nothing of the cluster
    assert shared.finished_folds() == [0, 1]
    for k in range(2):
        first, second = (read_predictions(run.fold(k) / "oof.parquet") for run in (alone, shared))
        # Dask gives its workers a thread each, and sums are rounded by another number of parts.
        pd.testing.assert_frame_equal(first, second, rtol=1e-4)
    assert score_run(shared)["weighted_log_loss"] == pytest.approx(score_run(alone)["weighted_log_loss"], rel=1e-4)
