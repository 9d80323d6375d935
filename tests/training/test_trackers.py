"""Trackers, of which stand-in modules take the place where they are not installed."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import sys
import types
from contextlib import contextmanager

import keras
import pytest
from conftest import tiny_config

from ich.errors import IchError
from ich.training import callbacks as training_callbacks
from ich.training import fold, trackers
from ich.training.run_directory import Run


class Logger(keras.callbacks.Callback):
    """Writes down each epoch that it is given."""

    def __init__(self, events, **options):
        super().__init__()
        self.events, self.options = events, options

    def on_epoch_end(self, epoch, logs=None):
        self.events.append(("epoch", epoch, sorted(logs), self.options))


@pytest.fixture
def events(monkeypatch):
    """What stand-ins for wandb and mlflow were asked to do."""
    events = []
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)

    @contextmanager
    def log(tracker, run, **options):
        events.append((tracker, options))
        try:
            yield run
        except BaseException:
            events.append((tracker, "failed"))
            raise
        events.append((tracker, "finished"))

    def init(id=None, **options):
        return log("wandb", types.SimpleNamespace(id=id or "w1"), id=id, **options)

    def start_run(run_id=None, **options):
        if run_id == "lost":
            raise LookupError("Run lost not found")
        info = types.SimpleNamespace(run_id=run_id or "m1")
        return log("mlflow", types.SimpleNamespace(info=info), run_id=run_id, **options)

    modules = {
        "wandb": {"init": init},
        "wandb.integration": {},
        "wandb.integration.keras": {"WandbMetricsLogger": lambda **options: Logger(events, **options)},
        "mlflow": {
            "set_experiment": lambda name: events.append(("experiment", name)),
            "start_run": start_run,
            "log_dict": lambda config, name: events.append((name, config["name"])),
            "flush_async_logging": lambda: events.append(("mlflow", "flushed")),
        },
        "mlflow.keras": {"MlflowCallback": lambda: Logger(events)},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return events


def training(folder, steps=0):
    return trackers.Training(folder, "tiny", 2, {"name": "tiny"}, steps)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_a_sentence_before_the_training(data, tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    run = Run.begin(tiny_config(data, machine={"log_to": name}), tmp_path)
    with pytest.raises(
        IchError, match=rf"^machine.log_to={name} needs the package {name}: pip install 'ich\[{name}\]'$"
    ):
        fold.train_fold(run, 0)
    assert not (tmp_path / "tiny").exists()


def test_without_trackers_there_is_nothing(tmp_path):
    with trackers.callbacks([], training(tmp_path / "none")) as callbacks:
        assert callbacks == []
    assert not (tmp_path / "none").exists()


def test_logs_for_tensorboard(data, tmp_path, eager):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    run = Run.begin(tiny_config(data, machine={"log_to": "tensorboard"}), tmp_path)
    fold.train_fold(run, 0)
    files = [path for path in (run.fold(0) / "tensorboard").rglob("*tfevents*") if path.is_file()]
    assert {path.parent.name for path in files} == {"train", "validation"}
    assert b"epoch_weighted_log_loss" in b"".join(path.read_bytes() for path in files)


def test_an_interrupted_fold_continues_its_logs(data, tmp_path, events, monkeypatch, eager):
    config = tiny_config(data, train={"epochs": 2, "batch_size": 6}, machine={"log_to": ["wandb", "mlflow"]})
    end = training_callbacks.Checkpoint.on_epoch_end

    def stop(self, epoch, logs=None):
        end(self, epoch, logs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_callbacks.Checkpoint, "on_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            fold.train_fold(Run.begin(config, tmp_path), 0)
    folder = tmp_path / "tiny/fold0"
    assert json.loads((folder / trackers.IDS).read_text()) == {"wandb": "w1", "mlflow": "m1"}
    metrics = ["loss", "seconds", "val_auc_any", "val_loss", "val_weighted_log_loss", "weighted_log_loss"]
    starts = [
        ("wandb", {**WANDB, "dir": folder, "config": config.model_dump(mode="json")}),
        ("experiment", "ich"),
        ("mlflow", {"run_id": None, "run_name": "tiny-fold0", "tags": {"run": "tiny", "fold": "0"}}),
        ("config.yaml", "tiny"),
    ]
    assert events[:4] == starts
    assert [event[:2] for event in events[4:]] == [
        *[("epoch", 0)] * 2,
        *[("mlflow", "flushed"), ("mlflow", "failed"), ("wandb", "failed")],
    ]
    assert set(metrics) <= set(events[4][2])
    assert not any(name.startswith("auc_") for name in events[4][2])
    events.clear()
    fold.train_fold(Run.begin(config, tmp_path), 0)
    assert events[0][1]["id"] == "w1"
    assert events[2][1]["run_id"] == "m1"
    epochs = [event for event in events if event[0] == "epoch"]
    assert [event[1] for event in epochs] == [1, 1]
    assert epochs[0][3] == {"initial_global_step": 2}  # 12 slices in batches of 6, one epoch
    assert events[-2:] == [("mlflow", "finished"), ("wandb", "finished")]
    assert json.loads((folder / trackers.IDS).read_text()) == {"wandb": "w1", "mlflow": "m1"}


WANDB = {"id": None, "project": "ich", "group": "tiny", "name": "tiny-fold0", "resume": "allow"}


def test_a_training_that_begins_anew_has_a_new_log(tmp_path, events, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "another")
    (tmp_path / trackers.IDS).write_text('{"wandb": "old"}')
    with trackers.callbacks(["wandb"], training(tmp_path)):
        pass
    assert (events[0][1]["id"], events[0][1]["project"]) == (None, "another")
    assert json.loads((tmp_path / trackers.IDS).read_text()) == {"wandb": "w1"}


def test_what_a_tracker_refuses_is_a_sentence_and_the_others_end(tmp_path, events):
    (tmp_path / trackers.IDS).write_text('{"mlflow": "lost"}')
    with (
        pytest.raises(
            IchError, match=r"^machine.log_to=mlflow: LookupError: Run lost not found; correct MLFLOW_TRACKING"
        ),
        trackers.callbacks(["wandb", "mlflow"], training(tmp_path, steps=3)),
    ):
        pass
    assert events[-2:] == [("experiment", "ich"), ("wandb", "failed")]
    (tmp_path / trackers.IDS).write_text("[]")
    with (
        pytest.raises(IchError, match="names the logs of this training, cannot be read"),
        trackers.callbacks(["wandb"], training(tmp_path, steps=3)),
    ):
        pass
