"""A training that is killed, refused or left without room goes on as if nothing had happened."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import multiprocessing
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import keras
import pytest
from conftest import TRAIN, tiny_config

from ich.errors import IchError
from ich.results.predictions import read_predictions
from ich.training import callbacks, fold
from ich.training.run_directory import Run

SCRIPT = Path(__file__).parents[2] / "scripts/train.py"
ALL_OF_IT = {
    "augment": "light",
    "ema_momentum": 0.9,
    "keep": "best",
    "slices_per_series": 3,
    "accumulate": 2,  # three batches an epoch of these, so that an epoch ends between two updates
    "backbone_rate": 0.5,
    "validate_every": 3,
    "head_epochs": 1,
    "fixed_batches": True,
    "mixup": 0.4,
    "cutmix": 1.0,
}


OF_SCANS = {"augment": "heavy", "ema_momentum": 0.9, "mixup": 0.4}
SCANS = {"scan": {"slices": 3, "kind": "gru", "units": 8}}
ON_DEVICE = {"augment": "heavy", "augment_on": "device", "mixup": 0.4, "cutmix": 1.0, "head_epochs": 1}


class Stop(Exception):
    """In place of a kill, where another process would take too long."""


def train(config, root):
    run = Run.begin(config, root)
    fold.train_fold(run, 0)
    return run


def contents(folder):
    """All that a fold leaves, in bits: the archive of the model holds the time, its variables do not."""
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    files = {path.name: path for path in folder.iterdir() if path.name != "model.keras"}
    assert set(files) == {"history.csv", "training.json", "curves.png", "oof.parquet", "passes"}
    # What predictions say of their model is a digest of that archive.
    files["oof.parquet"] = read_predictions(files["oof.parquet"]).to_numpy()
    del files["passes"], files["training.json"]  # which says how long it took
    files = {name: file.tobytes() if name == "oof.parquet" else file.read_bytes() for name, file in files.items()}
    return [keras.ops.convert_to_numpy(variable).tobytes() for variable in model.weights], files


@pytest.fixture(scope="module")
def config(data):
    return tiny_config(data, train={"epochs": 4, "batch_size": 5, **ALL_OF_IT})


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """A run that has trained in one go."""
    return train(config, tmp_path_factory.mktemp("through"))


@pytest.fixture(scope="module")
def through(undisturbed):
    """What is made of it by a run that nothing disturbs."""
    return contents(undisturbed.fold(0))


def stop_after_an_epoch(patch):
    end = callbacks.Checkpoint.on_epoch_end

    def stop(self, epoch, logs=None):
        end(self, epoch, logs)
        raise Stop

    patch.setattr(callbacks.Checkpoint, "on_epoch_end", stop)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize(
    ("options", "model"),
    [
        pytest.param(ALL_OF_IT, {}, id="all"),
        pytest.param({}, {}, id="plain"),
        pytest.param(ON_DEVICE, {}, id="augmented by the model"),
        pytest.param(OF_SCANS, SCANS, id="scans by a GRU"),
        pytest.param(OF_SCANS, {"scan": {"slices": 3, "kind": "attention", "units": 8}}, id="scans by attention"),
    ],
)
def test_stopped_after_any_epoch_a_fold_ends_as_one_that_ran_through(data, tmp_path, precision, options, model):
    config = tiny_config(data, model=model, train={"epochs": 3, "batch_size": 5, "precision": precision, **options})
    before = keras.config.dtype_policy()
    try:
        through = contents(train(config, tmp_path / "through").fold(0))
        with pytest.MonkeyPatch.context() as patch:
            stop_after_an_epoch(patch)
            for _ in range(3):
                with pytest.raises(Stop):
                    train(config, tmp_path / "stopped")
        assert contents(train(config, tmp_path / "stopped").fold(0)) == through
    finally:
        keras.config.set_dtype_policy(before)


def started(config, root):
    """The real script in a process of its own, and its folder."""
    root.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    (root / "tiny.yaml").write_text(config.resolved())
    command = [sys.executable, str(SCRIPT), "tiny.yaml", "--fold", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=root, env=environment, text=True, **pipes), root / "runs/tiny/fold0"


def wait_for(process, pattern):
    """Read what it says up to a line that has the pattern; False if it ends before."""
    return any(re.search(pattern, line) for line in process.stdout)


def test_killed_in_the_middle_of_an_epoch_the_same_command_continues(config, through, tmp_path, capsys):
    process, folder = started(config, tmp_path)
    with process:
        assert wait_for(process, "epoch 2/4: ")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    (folder / f".ich-{'0' * 32}.tmp.npz").write_bytes(b"half of one")  # as a kill in the middle of a write leaves
    assert contents(train(config, tmp_path / "runs").fold(0)) == through
    assert "fold 0: goes on after epoch" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("options", "model"),
    [
        pytest.param(ALL_OF_IT, {}, id="all"),
        pytest.param({}, {}, id="plain"),
        pytest.param(ON_DEVICE, {}, id="augmented by the model"),
        pytest.param(OF_SCANS, SCANS, id="scans"),
    ],
)
def test_killed_at_ten_random_moments_the_files_are_those_of_one_that_ran_through(data, tmp_path, options, model):
    train_section = {"epochs": 40, "batch_size": 5, **options}
    config = tiny_config(data, model=model, train=train_section, machine={"workers": 2})
    process, folder = started(config, tmp_path / "through")
    with process:
        began = wait_for(process, "slices to train on") and time.monotonic()
        assert process.wait(600) == 0
    lasts = time.monotonic() - began
    through = contents(folder)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    kills = rounds = 0
    while kills < 10:
        rounds += 1
        root = tmp_path / f"killed{rounds}"
        while True:
            process, folder = started(config, root)
            with process:
                wait_for(process, "slices to train on")
                timer = threading.Timer(moments.uniform(0, lasts / 2), process.kill)
                timer.start()
                said = process.stdout.read()
                code = process.wait(600)
                timer.cancel()
            if code == 0:
                break
            assert code == -signal.SIGKILL, said
            kills += 1
        assert contents(folder) == through


def children(process):
    """The ids of all processes that it has started, from whichever thread."""
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(pid) for each in lists for pid in each.read_text().split()]


@pytest.mark.slow  # the next test kills in this process, test_cli has a script's errors, the kill above the resume
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked up as Linux lists them")
def test_a_data_worker_that_is_killed_ends_the_training_with_a_sentence(config, through, tmp_path):
    """Without a watch, Keras waits for its batch for ever."""
    machine = config.machine.model_copy(update={"workers": 2, "processes": True})
    process, folder = started(config.model_copy(update={"machine": machine}), tmp_path)
    with process:
        assert wait_for(process, "epoch 1/4: ")
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            for pid in children(process):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)  # an epoch's workers live for some hundredths of a second
        process.kill()
        said = process.stdout.read()
    assert process.returncode == 1, said
    assert "error: a process that reads images was killed, which is what a system does that runs out of memor" in said
    assert (folder / fold.CHECKPOINT).exists()
    assert contents(train(config, tmp_path / "runs").fold(0)) == through


def test_a_data_worker_that_is_killed_is_an_error_and_the_process_lives_on(data, tmp_path, eager):
    """As in a notebook, whose kernel is not ours to end."""
    config = tiny_config(data)
    machine = config.machine.model_copy(update={"workers": 2, "processes": True})
    stop = threading.Event()
    earlier = multiprocessing.active_children()

    def kill():
        while not stop.wait(0.01):
            for child in multiprocessing.active_children():
                if "PoolWorker" in child.name and child not in earlier:
                    child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(IchError, match=r"^a process that reads images was killed, .*: the same command continues$"):
            train(config.model_copy(update={"machine": machine}), tmp_path)
    finally:
        stop.set()
        killer.join()
    assert set(multiprocessing.active_children()) <= set(earlier)
    assert train(config, tmp_path).finished_folds() == [0]


def test_a_finished_fold_is_not_trained_again_and_leaves_no_checkpoint(undisturbed, through, monkeypatch):
    (undisturbed.fold(0) / fold.CHECKPOINT).write_bytes(b"as of a kill between the last two steps")
    monkeypatch.setattr(fold, "_fit", None)
    train(undisturbed.config, undisturbed.path.parent)
    assert contents(undisturbed.fold(0)) == through


def test_a_loss_that_is_no_number_names_its_slices_and_keeps_the_last_checkpoint(data, tmp_path):
    config = tiny_config(data, train={"learning_rate": 1e30, "epochs": 4, "warmup_epochs": 2, "clip_norm": 1e30})
    with pytest.raises(IchError) as caught:
        train(config, tmp_path)
    match = re.fullmatch(
        r"the loss is (?:nan|inf) in epoch (\d), batch (\d), with the slices (.*); lower train.learning_rate, and"
        rf" give the run another name or delete {tmp_path / 'tiny'}",
        str(caught.value),
    )
    named = match[3].split(", ")
    assert len(named) in (2, 5)
    assert set(named) <= set(TRAIN)
    assert sorted(path.name for path in (tmp_path / "tiny").glob("fold0/*")) == (
        [fold.CHECKPOINT] if int(match[1]) > 1 else []
    )


@pytest.mark.slow  # test_callbacks has it of a checkpoint alone, and above are trainings that go on from one
def test_without_room_for_a_checkpoint_the_last_one_stays(config, through, tmp_path, monkeypatch):
    """A limit of the system on the size of files stands for the full disk: writes fail in the middle all the same."""
    end = callbacks.Checkpoint.on_epoch_end
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def no_room(self, epoch, logs=None):
        if epoch == 3:  # the last, so that nothing is left after it but the end
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        end(self, epoch, logs)

    monkeypatch.setattr(callbacks.Checkpoint, "on_epoch_end", no_room)
    try:
        with pytest.raises(IchError) as caught:
            train(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert re.match(r"cannot write .*checkpoint.npz: .*; make room or rights for it, then run again", str(caught.value))
    left = sorted(path.name for path in (tmp_path / "tiny/fold0").iterdir())
    assert left == [fold.BEST, fold.CHECKPOINT]
    monkeypatch.undo()
    assert contents(train(config, tmp_path).fold(0)) == through
