"""The same training and prediction on each backend of Keras: `make test-backends`.

A process has one backend, so each is one of its own, with the real scripts.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_images, tiny_config

from ich.results.predictions import read_predictions
from ich.training.run_directory import Run

BACKENDS = ("tensorflow", "jax", "torch")
SCRIPTS = Path(__file__).parents[1] / "scripts"
pytestmark = [
    pytest.mark.backends,
    pytest.mark.timeout(900),
    *(pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed") for name in BACKENDS),
]


def script(name, backend, *arguments):
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, arguments)]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


SCANS = {"slices": 3, "units": 8}
MODELS = {
    "slices": {},
    "scans by a GRU": {"scan": SCANS},
    "scans by attention": {"scan": SCANS | {"kind": "attention"}},
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def trained(request, tmp_path_factory):
    """The folder of each backend, in which it has trained both folds."""
    path = tmp_path_factory.mktemp("data")
    make_images(path)
    config = tiny_config(
        path,
        model={"dropout": 0.0} | request.param,
        train={"epochs": 6, "ema_momentum": 0.8, "keep": "best", "loss": "focal", "label_smoothing": 0.02},
        machine={"workers": 2},
    )
    (path / "tiny.yaml").write_text(config.resolved())
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        for backend in BACKENDS:
            folders[backend] = tmp_path_factory.mktemp(backend)
            patch.chdir(folders[backend])
            script("train_kfold", backend, path / "tiny.yaml")
    return folders


def run_of(folder):
    return Run.open(folder / "runs/tiny")


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_backend_trains_and_says_which_it_was(trained, backend):
    run = run_of(trained[backend])
    assert run.environment()["backend"] == backend
    assert run.environment()["devices"]
    history = pd.read_csv(run.fold(0) / "history.csv")
    assert len(history) == 6
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert np.isfinite(history).all(axis=None)


@pytest.mark.parametrize("of", BACKENDS)
def test_a_model_saved_by_one_predicts_the_same_in_all(trained, tmp_path, of):
    predictions = {}
    for backend in BACKENDS:
        script("predict", backend, trained[of] / "runs/tiny", "--out", tmp_path / backend)
        predictions[backend] = read_predictions(tmp_path / backend / "predictions_test.parquet")
    for backend in BACKENDS:
        pd.testing.assert_frame_equal(predictions[backend], predictions[of], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_that_was_stopped_goes_on(trained, tmp_path, monkeypatch, backend):
    """As in test_training_survival, of each backend: after two epochs, by an exception."""
    stop = """
import sys
from pathlib import Path
from ich import config
from ich.training import callbacks, fold, run_directory
end = callbacks.Checkpoint.on_epoch_end
def stop(self, epoch, logs=None):
    end(self, epoch, logs)
    if epoch == 1:
        sys.exit(7)
callbacks.Checkpoint.on_epoch_end = stop
fold.train_fold(run_directory.Run.begin(config.load(Path(sys.argv[1]))), 0)
"""
    monkeypatch.chdir(tmp_path)
    config = trained[backend] / "runs/tiny/config.yaml"
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, "-c", stop, config], env=environment, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    steps = [] if backend == "torch" else ["--set", "machine.steps_per_execution=2"]  # which changes no result
    assert "goes on after epoch 2" in script("train", backend, config, "--fold", 0, *steps)
    resumed, whole = (run_of(folder).fold(0) for folder in (tmp_path, trained[backend]))
    pd.testing.assert_frame_equal(*(pd.read_csv(fold / "history.csv") for fold in (resumed, whole)), rtol=1e-4)
    pd.testing.assert_frame_equal(*(read_predictions(fold / "oof.parquet") for fold in (resumed, whole)), rtol=1e-3)
