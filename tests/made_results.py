"""Results of every kind, of models that have learned nothing, on phantoms of the competition's archive."""

import fcntl
import os
import runpy
import shutil
import zipfile
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from conftest import eagerly

from ich.config import load
from ich.models import scan
from ich.models.backbones import build_model
from ich.synthetic.archive import write_archive
from ich.synthetic.plan import draw_plan
from ich.training import inference
from ich.training.run_data import RunData
from ich.training.run_directory import Run

ROOT = Path(__file__).parents[1]
CONFIG = {
    "name": "tiny",
    "data": {"sources": "archive.zip", "images": "images"},
    "preprocess": {"windows": ["brain"], "size": 64, "crop": True},
    "folds": {"n": 3},
    "model": {"name": "small_cnn", "weights": None, "neighbours": [-1, 0, 1]},
    "predict": {"tta": ["none", "flip"], "batch_size": 8},
    "machine": {"workers": 1, "jobs": 1},
}
# Without a GRU, which takes most of the seconds of a training; test_rnn.py has one.
SEQUENCE = ("width=4", "units=0", "dilations=[1]", "epochs=1", "rounds=3", "reach=2")


def script(name, *arguments):
    """Run a script in this process."""
    runpy.run_path(str(ROOT / f"scripts/{name}"))["main"](list(map(str, arguments)))


_homes = []  # one for all tests of a process, which change it


def home_of(tmp_path_factory):
    """Make results on phantoms, and the test slices of their archive in test/, once for all processes of the suite."""
    if _homes:
        return _homes[0]
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_results"
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():  # a folder by another name is what a process that failed has left
            folder = make_results(tmp_path_factory.mktemp("results"))
            with zipfile.ZipFile(folder / "archive.zip") as archive:
                for name in archive.namelist():
                    if "stage_2_test/" in name and name.endswith(".dcm"):
                        archive.extract(name, folder / "test")
            folder.rename(shared)
    _homes.append(Path(shutil.copytree(shared, tmp_path_factory.mktemp("home") / "home")))
    return _homes[0]


def make_run(build, *overrides):
    """Make a run of the config in this folder, of models that have learned nothing."""
    run = Run.begin(load(Path("config.yaml"), overrides))
    data = RunData(run.config, ["SeriesInstanceUID", "z"])
    run.claim("tensorflow", ["cpu:0"], data.facts)
    for k in range(3):
        keras.utils.set_random_seed(k)
        model = build()
        logits = scan.slice_model(model).get_layer("logits")
        logits.kernel.assign(100 * logits.kernel)  # so that slices differ, and some are all but certain
        if scan.is_scan_model(model):  # its own are 0 before the training
            model.get_layer("logits").kernel.assign(
                np.random.default_rng(k).normal(size=model.get_layer("logits").kernel.shape)
            )
        run.fold(k).mkdir()
        model.save(run.fold(k) / "model.keras")
        inference.predict_held_out(run, k, data, lambda model=model: model)
    inference.predict_test(run)


def make_scan_run(home):
    """Add runs/scans to `home_of`, of scan models."""
    with pytest.MonkeyPatch.context() as patch, eagerly():
        patch.chdir(home)
        slices = partial(build_model, "small_cnn")
        build = partial(scan.build_scan_model, slices, 4, (64, 64, 3), "attention", units=8)
        make_run(build, "name=scans", "model.scan={slices: 4, kind: attention, units: 8}")


def make_results(folder):
    """Fill a folder: archive.zip, images and the results runs/tiny, runs/tiny-sequence and runs/mixed, a blend."""
    plan = draw_plan(seed=5, patients=6, test_patients=3, size=64, min_slices=8, max_slices=10, bleed_factor=8.0)
    write_archive(folder / "archive.zip", plan)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch, eagerly():
        patch.chdir(folder)
        script("preprocess.py", "config.yaml", "--max-failures", 1)
        script("make_folds.py", "config.yaml")
        make_run(partial(build_model, "small_cnn", (64, 64, 3)))
        options = [part for setting in SEQUENCE for part in ("--set", f"sequence.{setting}")]
        script("train_sequence.py", "runs/tiny", *options)
        blended = ("runs/tiny", "runs/tiny-sequence", "--out", "runs/mixed")
        script("blend.py", *blended, "--calibrate", "platt", "--any-at-least-max")
    return folder
