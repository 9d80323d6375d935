"""Prediction by a run of two small untrained models, of 32 × 32 pixels."""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import in_use
from scipy.special import expit, logit

from ich.competition import folds, metrics
from ich.competition.labels import INDEX_NAME, LABELS
from ich.config import Config
from ich.data import augment
from ich.data.generator import DataGenerator
from ich.errors import IchError
from ich.images import convert, slice_table
from ich.images.render import Settings
from ich.results.predictions import read_predictions, read_provenance
from ich.results.result_directory import check_alike
from ich.training import chunked_inference, inference
from ich.training.results_folder import with_results_in
from ich.training.run_data import RunData
from ich.training.run_directory import Run
from ich.training.run_score import read_score

ROOT = Path(__file__).parents[2]
TRAIN = [f"ID_{number:09x}" for number in range(12)]
TEST = [f"ID_{number:09x}" for number in range(100, 123)]
BATCH = 5
pytestmark = pytest.mark.usefixtures("eager")


def write_data(path, test):
    """Images, slice table and folds; a slice of each split that could not be read."""
    rng = np.random.default_rng(0)
    rows = []
    for split, ids in (("train", TRAIN), ("test", test)):
        (path / "images" / split).mkdir(parents=True)
        for number, id_ in enumerate(ids):
            file = path / "images" / split / f"{id_}.png"
            if number < 200:
                cv2.imwrite(str(file), rng.integers(0, 255, (32, 32), dtype=np.uint8))
            else:
                os.link(file.parent / f"{ids[number % 200]}.png", file)
            rows.append({"SOPInstanceUID": id_, "split": split, "status": "ok", "path": f"{split}/{id_}.png"})
        rows.append({"SOPInstanceUID": f"ID_f{split}", "split": split, "status": "truncated"})
    slice_table.write_table(slice_table.to_frame(rows), path / "images/slices.parquet")
    labels = rng.integers(0, 2, (len(TRAIN), 6), dtype=np.int8)
    labels[:, 5] = labels[:, :5].max(axis=1)
    table = pd.DataFrame(labels, columns=list(LABELS), index=pd.Index(TRAIN, name=INDEX_NAME))
    table["PatientID"] = [f"ID_p{number // 3}" for number in range(len(TRAIN))]
    table["fold"] = [number // 3 % 2 for number in range(len(TRAIN))]
    folds.write_folds(path / "folds.csv", table)
    config = Config.model_validate(
        {
            "name": "tiny",
            "data": {"sources": path / "a.zip", "images": path / "images", "folds": path / "folds.csv"},
            "folds": {"n": 2},
            "model": {"name": "small_cnn", "weights": None},
            "predict": {"batch_size": BATCH},
            "machine": {"workers": 1},
        }
    )
    settings = Settings.of(config.preprocess)
    (path / "images/settings.json").write_text(json.dumps(convert._as_json(settings)))
    return config


def new_model(seed):
    """A small model whose logits are far apart."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(4, 3, strides=4, activation="relu")(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, 5 * keras.layers.Dense(6)(keras.layers.Flatten()(x)))


def begin(config, root):
    """A run as the training leaves it, of models that have learned nothing."""
    run = Run.begin(config, root)
    run.claim("tensorflow", ["cpu:0"], RunData(run.config).digests)
    for k in range(2):
        run.fold(k).mkdir(parents=True)
        model = new_model(k)
        model.save(run.fold(k) / "model.keras")
        inference.predict_held_out(run, k, RunData(run.config), lambda model=model: model)
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    return begin(write_data(path, TEST), path / "runs")


@pytest.fixture
def copied(trained, tmp_path):
    """A run of one's own to spoil, its images too."""
    shutil.copytree(trained.path.parents[1] / "images", tmp_path / "images")
    shutil.copytree(trained.path, tmp_path / "runs/tiny")
    return Run.open(tmp_path / "runs/tiny", [f"data.images={tmp_path / 'images'}"])


def asking(run, **predict):
    """The run, predicting in another way."""
    return Run.open(
        run.path,
        [f"data.images={run.config.data.images}", *(f"predict.{key}={value}" for key, value in predict.items())],
    )


def files(path):
    return {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def seen(run, split, ids, name):
    """The images of a pass, made one by one."""
    images = [cv2.imread(str(run.config.data.images / split / f"{id_}.png"), 0)[..., None] for id_ in ids]
    (transform,) = augment.passes([name], 32, 32)
    return np.stack([image if transform is None else transform(image=image)["image"] for image in images])


def slow_logits(run, k, split, ids, name):
    return keras.ops.convert_to_numpy(inference.load_model(run, k)(seen(run, split, ids, name))).astype(np.float64)


# ------------------------------------------------------------------------------------------- what is predicted


@pytest.mark.parametrize(
    ("names", "mean"), [(["none"], "probability"), (["none", "flip", "crop"], "probability"), (["flip"], "logit")]
)
def test_predictions_are_the_mean_of_folds_and_passes_for_every_readable_slice(copied, names, mean):
    run = asking(copied, tta=names, mean=mean)
    inference.predict_test(run)
    predictions = read_predictions(run.predictions_path)
    assert predictions.index.tolist() == TEST
    assert (predictions.dtypes == np.float32).all()
    logits = [slow_logits(run, k, "test", TEST, name) for k in range(2) for name in names]
    expected = np.mean(expit(logits), axis=0) if mean == "probability" else expit(np.mean(logits, axis=0))
    np.testing.assert_allclose(predictions, expected, rtol=1e-4)

    oof, table = read_predictions(run.oof_path), folds.read_folds(run.config.data.folds_path)
    assert oof.index.tolist() == TRAIN
    for k in range(2):
        ids = table.index[table["fold"] == k]
        logits = [slow_logits(run, k, "train", ids, name) for name in names]
        expected = np.mean(expit(logits), axis=0) if mean == "probability" else expit(np.mean(logits, axis=0))
        np.testing.assert_allclose(oof.loc[ids], expected, rtol=1e-4)

    score, labels = read_score(run), table[list(LABELS)]
    assert score["weighted_log_loss"] == pytest.approx(metrics.weighted_log_loss(labels, oof))
    plain = pd.concat([read_predictions(copied.passes(k) / "oof-none.parquet") for k in range(2)]).loc[table.index]
    assert score["plain_weighted_log_loss"] == pytest.approx(metrics.weighted_log_loss(labels, expit(plain)))
    assert (score["tta"], score["mean"]) == (names, mean)
    assert not list(run.path.rglob("*.npy"))


class Echo(keras.layers.Layer):
    """Six logits that show which image it was."""

    def call(self, images):
        return keras.ops.tile(keras.ops.cast(images[:, 0, :1, 0], "float32"), (1, 6))


@pytest.mark.parametrize(
    "machine",
    [{}, {"workers": 0}, {"workers": 2}, *({"workers": n, "use_multiprocessing": True} for n in (1, 2))],
    ids=str,
)
@pytest.mark.timeout(120)
def test_each_slice_gets_its_own_prediction_whatever_the_workers(tmp_path, monkeypatch, machine):
    monkeypatch.setattr(chunked_inference, "_AT_ONCE", 5)  # batches of 13
    ids = [f"ID_{number:03}" for number in np.random.default_rng(0).permutation(103)]
    for id_ in ids:
        image = np.full((8, 8, 1), int(id_[3:]), np.uint8)
        np.save(tmp_path / f"{id_}.npy", image)
    samples = DataGenerator(ids, image_dir=tmp_path, suffix=".npy", batch_size=8, **machine)
    images = keras.Input((8, 8, 1))
    model = keras.Model(images, Echo()(images))
    logits = inference.predict_logits(model, samples, tmp_path / "parts")
    assert logits.shape == (103, 6)
    assert logits.dtype == np.float32
    assert logits[:, 0].tolist() == [int(id_[3:]) for id_ in ids]
    # Continued from the middle of what it saved, by as many workers.
    part = tmp_path / "parts/000000000.npy"
    np.save(part, np.load(part)[:40] + 1000)
    again = inference.predict_logits(model, samples, tmp_path / "parts")
    np.testing.assert_array_equal(again[:40], logits[:40] + 1000)
    np.testing.assert_array_equal(again[40:], logits[40:])


def test_probabilities_of_certain_logits_are_no_overflow():
    logits = np.array([[0, 100, -100, 700, -700, 1]], dtype=np.float32)
    with np.errstate(all="raise", under="ignore"):
        for mean in ("probability", "logit"):
            mean_of_pass = inference.MeanOfPasses(1, mean)
            mean_of_pass.add(logits)
            np.testing.assert_allclose(mean_of_pass.probabilities()[0], [0.5, 1, 0, 1, 0, 0.7310586], atol=1e-7)


def test_the_mean_of_logits_is_exact_where_probabilities_are_certain():
    passes = [np.array([[0, 50, -50, 2]], np.float32), np.array([[1, 60, -800, 2]], np.float32)]
    with np.errstate(all="raise", under="ignore"):
        result = inference.mean_logits(passes, "probability")[0]
    assert result.dtype == np.float32
    half = np.log(2)
    expected = [logit((0.5 + expit(1)) / 2), 50 + half, -50 - half, 2]  # 1 - p is half of e^-50, p likewise
    np.testing.assert_allclose(result, expected, rtol=1e-4)
    np.testing.assert_allclose(inference.mean_logits(passes, "logit")[0], [0.5, 55, -425, 2])
    np.testing.assert_array_equal(inference.mean_logits(passes[:1], "probability"), passes[0])


def test_neighbours_reach_the_model(copied, monkeypatch):
    config = copied.config.model_copy(update={"model": copied.config.model.model_copy(update={"neighbours": [-1, 0]})})
    options = inference.generator_options(config, "test")
    assert DataGenerator(TEST, **options)[0].shape == (len(TEST), 32, 32, 2)
    assert inference.generator_options(copied.config, "test")["slices"] is None


# ------------------------------------------------------------------------------------------- made once, never mixed


def predicted(monkeypatch):
    """The titles of the passes that are computed from now on."""
    titles, bare = [], inference.predict_logits
    monkeypatch.setattr(inference, "predict_logits", lambda *args: [titles.append(args[-1]), bare(*args)][1])
    return titles


def test_predicted_again_no_model_is_read_and_all_is_equal(copied, monkeypatch):
    expected = inference.predict_test(copied)
    monkeypatch.setattr(inference, "load_model", lambda *_: pytest.fail("a model was read"))
    before = copied.predictions_path.read_bytes()
    pd.testing.assert_frame_equal(inference.predict_test(copied), expected)
    assert copied.predictions_path.read_bytes() == before
    pd.testing.assert_frame_equal(read_predictions(copied.predictions_path), expected)


def test_another_pass_alone_is_made_and_both_sides_tell_of_it(copied, monkeypatch):
    first = inference.predict_test(copied)
    plain = read_score(copied)
    titles = predicted(monkeypatch)
    run = asking(copied, tta="[none, flip]")
    inference.predict_test(run)
    assert titles == [f"fold {k}, {split}, flip" for k in range(2) for split in ("oof", "test")]
    check_alike(run.path)
    assert read_provenance(run.oof_path)["tta"] == ["none", "flip"]
    assert read_score(run)["plain_weighted_log_loss"] == pytest.approx(plain["weighted_log_loss"])
    assert read_score(run)["weighted_log_loss"] != plain["weighted_log_loss"]
    # Back again: nothing is computed, nothing of the passes stays.
    pd.testing.assert_frame_equal(inference.predict_test(copied), first)
    check_alike(copied.path)
    assert read_score(copied) == plain
    assert len(titles) == 4


def test_the_last_passes_stay_until_others_are_named(copied, monkeypatch):
    inference.predict_test(asking(copied, tta="[none, flip]"))
    titles = predicted(monkeypatch)
    kept = asking(copied)
    assert kept.config.predict.tta == ["none", "flip"]
    before = copied.predictions_path.read_bytes()
    inference.predict_test(kept)
    assert (titles, copied.predictions_path.read_bytes()) == ([], before)
    # What could not be made does not stay.
    with pytest.raises(IchError, match="hflip"):
        inference.predict_test(asking(copied, tta="[none, hflip]"))
    assert asking(copied).config.predict.tta == ["none", "flip"]
    inference.predict_test(asking(copied, tta="none"))
    assert asking(copied).config.predict.tta == ["none"]


def test_another_model_or_another_test_set_is_predicted_anew(copied, monkeypatch):
    inference.predict_test(copied)
    titles = predicted(monkeypatch)
    new_model(7).save(copied.fold(1) / "model.keras")
    inference.predict_test(copied)
    assert titles == ["fold 1, oof, none", "fold 1, test, none"]
    check_alike(copied.path)
    titles.clear()
    path = copied.config.data.images / "slices.parquet"
    table = slice_table.read_table(path)
    slice_table.write_table(table[table["SOPInstanceUID"] != TEST[3]], path)
    assert inference.predict_test(copied).index.tolist() == TEST[:3] + TEST[4:]
    assert titles == ["fold 0, test, none", "fold 1, test, none"]
    table.loc[table["SOPInstanceUID"] == TEST[5], "crc"] = 1  # the same name, another file
    slice_table.write_table(table[table["SOPInstanceUID"] != TEST[3]], path)
    inference.predict_test(copied)
    assert len(titles) == 4


def test_parts_of_another_model_test_set_or_batch_size_are_not_taken(copied, monkeypatch):
    """A run stopped in the middle, and then continued with something changed."""
    monkeypatch.setattr(chunked_inference, "_PART_SECONDS", 0)
    broken = copied.config.data.images / "test" / f"{TEST[17]}.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"junk")
    for what in ("model", "slices", "batch"):
        run = copied
        with pytest.raises(IchError, match=f"{TEST[17]}.png holds no image that can be decoded"):
            inference.predict_test(run)
        parts = list(copied.passes(0).glob("test-none.parts/*/*.npy"))
        assert parts, what
        for part in parts:
            np.save(part, np.full_like(np.load(part), 99))  # distinct from the true ones
        broken.write_bytes(whole)
        if what == "model":
            new_model(8).save(copied.fold(0) / "model.keras")
        elif what == "slices":
            path = copied.config.data.images / "slices.parquet"
            table = slice_table.read_table(path)
            slice_table.write_table(table[table["SOPInstanceUID"] != TEST[0]], path)
        else:
            run = asking(copied, batch_size=4)
        predictions = inference.predict_test(run)
        expected = [slow_logits(run, k, "test", predictions.index, "none") for k in range(2)]
        np.testing.assert_allclose(predictions, np.mean(expit(expected), axis=0), rtol=1e-4)
        assert not list(run.path.rglob("*.npy"))
        shutil.rmtree(copied.passes(0))
        broken.write_bytes(b"junk")


def test_results_go_to_another_folder_and_the_run_stays_as_it_is(copied, tmp_path, monkeypatch):
    inference.predict_test(copied)
    before = files(copied.path)
    titles = predicted(monkeypatch)
    results = with_results_in(copied, tmp_path / "out")
    copied.config.data.folds_path.rename(tmp_path / "away.csv")  # where only the test set is at hand
    inference.predict_test(copied, results)
    assert titles == []
    (tmp_path / "away.csv").rename(copied.config.data.folds_path)
    run = asking(copied, tta="[flip]")
    inference.predict_test(run, with_results_in(run, tmp_path / "out"))
    assert files(copied.path) == before
    assert len(titles) == 4
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == {path.name for path in copied.path.iterdir()}
    check_alike(tmp_path / "out")
    assert Run.open(tmp_path / "out").config.predict.tta == ["flip"]
    assert with_results_in(run, run.path) is run


# ------------------------------------------------------------------------------------------- kills

# The script itself, with parts saved as often as can be.
SCRIPT = """
import runpy, sys
from ich.training import chunked_inference
chunked_inference._PART_SECONDS = 0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(run, out):
    command = [sys.executable, "-c", SCRIPT, ROOT / "scripts/predict.py", run.path, "--out", out]
    command += ["--set", f"data.images={run.config.data.images}", "--set", "predict.tta=[none, flip]"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    return subprocess.Popen(command, start_new_session=True, **quiet)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def progress(out):
    """Grows with each part and each pass."""
    # Not rglob: a folder may be removed while it is looked at, which os.walk passes over.
    names = [name for _, _, files in os.walk(out) for name in files if not name.startswith(".")]
    return sum(1 if name.endswith(".npy") else 1000 for name in names if name.endswith((".npy", ".parquet")))


@pytest.fixture
def graphs(eager):
    """As the script in the other process, whose predictions are compared bit by bit."""
    tf.config.run_functions_eagerly(False)
    yield
    tf.config.run_functions_eagerly(True)


def kill_and_compare(tmp_path, kills):
    test = [f"ID_{number:09x}" for number in range(100, 403 + 300 * kills)]
    run = begin(write_data(tmp_path, test), tmp_path / "runs")
    run = asking(run, tta="[none, flip]")
    inference.predict_test(run, with_results_in(run, tmp_path / "whole"))
    out, rng = tmp_path / "out", random.Random(0)
    within = 0
    for _ in range(kills):
        before = progress(out)
        with start(run, out) as running:
            try:
                while running.poll() is None and progress(out) <= before:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.4))
                within += running.poll() is None
            finally:
                with suppress(ProcessLookupError):  # it has just ended, which `within` counts
                    os.killpg(running.pid, signal.SIGKILL)
    assert within == kills
    assert not (out / "predictions_test.parquet").exists()
    inference.predict_test(run, with_results_in(run, out))
    assert contents(out) == contents(tmp_path / "whole")


def test_killed_and_continued_it_ends_as_if_undisturbed(tmp_path, graphs):
    kill_and_compare(tmp_path, 1)


@pytest.mark.slow
def test_killed_ten_times_and_continued_it_ends_as_if_undisturbed(tmp_path, graphs):
    kill_and_compare(tmp_path, 10)


def test_a_damaged_part_is_reported(tmp_path):
    path = tmp_path / "000000000.npy"
    for junk in (b"", b"junk", b"\x93NUMPY\x01\x00"):
        path.write_bytes(junk)
        with pytest.raises(IchError, match=r"000000000.npy cannot be read \(.*\); delete it, and its slices are pred"):
            inference.predict_logits(None, DataGenerator(["ID_0"], reader=np.load), tmp_path)


# ------------------------------------------------------------------------------------------- what cannot be


def test_folds_drawn_anew_after_the_training_are_refused(copied, tmp_path):
    """Else most of the patients that a model predicts as held out would be those that it was trained on."""
    table = folds.read_folds(copied.config.data.folds_path)
    folds.write_folds(tmp_path / "other.csv", table.assign(fold=1 - table["fold"]))
    before = files(copied.path)
    overrides = [f"data.folds={tmp_path / 'other.csv'}", "predict.tta=[none, flip]"]
    with pytest.raises(IchError, match="was trained on other folds than"):
        inference.predict_test(Run.open(copied.path, overrides))
    assert files(copied.path) == before


def test_stopped_in_the_last_fold_in_another_folder_the_score_is_that_of_the_new_passes(copied, tmp_path):
    inference.predict_test(copied)
    run = asking(copied, tta="[none, flip]")
    out = with_results_in(run, tmp_path / "out")
    inference.predict_test(run, out)
    whole = contents(out.path)
    # As a kill leaves it that comes when all that is held out was predicted, and the test set was not.
    for path in (out.oof_path, out.score_path, out.predictions_path, out.passes(1) / "test-flip.parquet"):
        path.unlink()
    inference.predict_test(run, with_results_in(run, tmp_path / "out"))
    assert contents(out.path) == whole
    assert read_score(out)["tta"] == ["none", "flip"]


def test_what_is_not_of_the_run_is_not_written_over(copied, tmp_path):
    other = tmp_path / "other"
    with_results_in(copied, other)
    facts = copied.environment()
    config = (other / "config.yaml").read_text()
    for damage in ("another machine", "another config", "no run"):
        (other / "environment.json").write_text(
            json.dumps(facts | ({"cpu": "another"} if damage == "another machine" else {}))
        )
        (other / "config.yaml").write_text(config)
        if damage == "another config":  # of the same code, machine, images and folds
            (other / "config.yaml").write_text(config.replace("name: ", "name: other-"))
        if damage == "no run":
            (other / "environment.json").unlink()
        before = files(other)
        with pytest.raises(IchError, match=r"other holds .*(another run than .*; give a new|; name another) folder"):
            with_results_in(copied, other)
        assert files(other) == before


def test_a_run_with_models_is_no_place_for_the_results_of_another(copied, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(copied.path, other)
    before = files(other)
    with pytest.raises(IchError, match=r"other is a run with models of its own; give a new folder for the results of"):
        with_results_in(copied, other)
    assert files(other) == before


def test_a_folder_of_other_things_is_left_alone(copied, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for name in (".zcompdump-host-5.9", "environment.json"):
        (home / name).write_text("{}")
    before = files(home)
    with pytest.raises(IchError, match=r"home holds \.zcompdump-host-5\.9, environment\.json and lacks a readable"):
        with_results_in(copied, home)
    assert files(home) == before


@pytest.mark.parametrize("lock", [None, 1])
def test_a_second_process_is_refused_before_it_writes(copied, lock):
    before = files(copied.path)
    with in_use(copied.path, lock), pytest.raises(IchError, match=r"tiny is in use by process \d+"):
        inference.predict_test(asking(copied, tta="[flip]"))
    for name in before:
        assert before[name] == files(copied.path)[name], name


def test_a_missing_fold_is_reported(copied):
    shutil.rmtree(copied.fold(1))
    with pytest.raises(IchError, match=r"lacks fold\(s\) 1; train them first"):
        inference.predict_test(copied)


def test_no_test_slices_are_reported(copied):
    path = copied.config.data.images / "slices.parquet"
    table = slice_table.read_table(path)
    slice_table.write_table(table[table["split"] == "train"], path)
    with pytest.raises(IchError, match=r"images holds no test slices; convert sources that have some"):
        inference.predict_test(copied)


def test_an_unknown_pass_leaves_what_is_there(copied):
    inference.predict_test(copied)
    before = files(copied.path)
    with pytest.raises(IchError, match="no TTA pass is called 'flap'; there are none, flip, crop"):
        inference.predict_test(asking(copied, tta="[none, flap]"))
    assert files(copied.path) == before


@pytest.mark.parametrize("damage", ["missing", "junk", "cut", "no config", "no weights", "another layer"])
def test_a_damaged_model_is_a_sentence(copied, damage):
    path = copied.fold(0) / "model.keras"
    whole = path.read_bytes()
    path.unlink()
    if damage == "junk":
        path.write_bytes(b"junk")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "another layer":  # which Keras reports in many lines
        path.write_bytes(whole)
        rewrite(path, "config.json", lambda text: text.replace(b'"strides"', b'"steps"'))
    elif damage.startswith("no "):
        with zipfile.ZipFile(copied.path.parent / "whole", "w") as archive:
            archive.writestr("model.weights.h5" if damage == "no config" else "config.json", b"{}")
        (copied.path.parent / "whole").rename(path)
    message = r"the model .*model.keras cannot be read \(.*; delete .*fold0 and train the"
    if damage == "missing":
        message = r"model.keras is missing; give the run that was trained, not a folder that it predicted into, or del"
    for work in (lambda: inference.load_model(copied, 0), lambda: inference.predict_test(copied)):
        with pytest.raises(IchError, match=message) as caught:
            work()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700


def rewrite(path, name, change):
    """Change a part of a zip, whose checksums are then right."""
    with zipfile.ZipFile(path) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, change(content) if part == name else content)


def test_a_model_of_which_any_byte_changed_is_refused_in_a_line_or_as_it_was(copied):
    path = copied.fold(0) / "model.keras"
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        starts = [part.header_offset for part in archive.infolist()]
        ends = [*starts[1:], archive.start_dir, len(whole)]
    rng = random.Random(7)
    # Of each part its header, which a reader may pass over, and its content; and the directory.
    places = [at for start in [*starts, ends[-2]] for at in range(start, start + 40, 2)]
    places += [rng.randrange(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True) for _ in range(6)]
    weights = inference.load_model(copied, 0).get_weights()
    refused = 0
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            same = inference.load_model(copied, 0).get_weights()
        except IchError as error:
            refused += 1
            text = str(error)
            assert "\n" not in text, at
            assert re.search(r"the model .*model.keras cannot be read \(.{4,300}\); delete .* and train the", text), at
        else:
            assert all(map(np.array_equal, same, weights)), at
    assert refused > len(places) / 3


def test_a_model_of_another_keras_that_cannot_be_read_names_it(copied):
    path = copied.fold(0) / "model.keras"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["metadata.json"] = b'{"keras_version": "99.1.0"}'
    parts["config.json"] = parts["config.json"].replace(b'"strides"', b'"steps"')
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(IchError, match=r"Keras 99.1.0 wrote it, this is [\d.]+: pip install keras==99.1.0$"):
        inference.load_model(copied, 0)
    parts["metadata.json"] = b"[]"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(IchError, match=r"; delete .*fold0 and train the fold again$"):
        inference.load_model(copied, 0)


@pytest.mark.parametrize("error", [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")])
def test_a_machine_that_fails_does_not_cost_the_model(copied, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(keras.saving, "load_model", fail)
    with pytest.raises(
        IchError, match=r"the file is not at fault: free the memory of the machine and its GPU, and run"
    ):
        inference.load_model(copied, 0)


def test_a_model_with_code_inside_is_refused(copied):
    image = keras.Input((32, 32, 1))
    keras.Model(image, keras.layers.Lambda(lambda x: x)(image)).save(copied.fold(0) / "model.keras")
    with pytest.raises(IchError, match=r"the model .*model.keras cannot be read \("):
        inference.load_model(copied, 0)


def test_other_errors_than_a_generators_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), chunked_inference.reraising_ich_errors():
        _ = 1 / 0
    with pytest.raises(IchError, match=r"^as it was$"), chunked_inference.reraising_ich_errors():
        raise IchError("as it was")
