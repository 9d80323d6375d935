"""Trainings that begin with the weights of another run, whose models are random."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from functools import partial

import keras
import numpy as np
import pytest
from conftest import tiny_config

from ich.competition import folds
from ich.errors import IchError
from ich.models import backbones, scan
from ich.results.result_directory import read_mapping
from ich.training import fold, initial
from ich.training.run_data import RunData
from ich.training.run_directory import Run

BUILD = partial(backbones.build_model, "small_cnn")


class Captured(Exception):
    """Ends what would train."""


def finished(data, root, build=None, /, **sections):
    """A run whose two folds have random models."""
    run = Run.begin(tiny_config(data, **sections), root)
    run.claim("tensorflow", ["cpu:0"], RunData(run.config, ["SeriesInstanceUID", "z"]).facts)
    for k in range(2):
        run.fold(k).mkdir()
        keras.utils.set_random_seed(7 + k)
        whole = build() if build else BUILD((32, 32, 1))
        for weight in whole.weights:  # statistics too
            weight.assign(keras.random.uniform(weight.shape, 0.1, 0.9))
        whole.save(run.fold(k) / "model.keras")
        (run.fold(k) / "oof.parquet").touch()
    return run


def of_scans(slices=3):
    return scan.build_scan_model(BUILD, slices, (32, 32, 1), units=4)


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    return finished(data, tmp_path_factory.mktemp("runs"))


def beginning(config, root, monkeypatch, k=1):
    """The model that `fit` is given."""
    seen = []

    def fit(model, *arguments, **options):
        seen.append(model)
        raise Captured

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "fit", fit)
        with pytest.raises(Captured):
            fold.train_fold(Run.begin(config, root), k)
    return seen[0]


def values(model):
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def same(first, second):
    return all(np.array_equal(*both) for both in zip(values(first), values(second), strict=True))


def test_a_fold_begins_with_the_weights_of_its_fold_and_the_run_says_so(data, source, tmp_path, monkeypatch):
    config = tiny_config(data, train={"init_from": source.path}, model={"weights": "imagenet"})
    model = beginning(config, tmp_path, monkeypatch)
    assert same(model, fold.load_model(source, 1))
    assert not same(model, fold.load_model(source, 0))
    recorded = read_mapping(tmp_path / "tiny/environment.json")["init_from"]
    assert recorded["run"] == str(source.path)
    assert len(set(recorded["models"])) == 2
    other = config.model_copy(update={"train": config.train.model_copy(update={"init_from": None})})
    with pytest.raises(IchError, match=r"belongs to another config .*train.init_from: .* / None"):
        Run.begin(other, tmp_path)
    (source.fold(0) / "model.keras").rename(tmp_path / "kept")
    BUILD((32, 32, 1)).save(source.fold(0) / "model.keras")
    try:
        with pytest.raises(IchError, match=r"tiny began with the models of .* as they were then, and they have"):
            fold.train_fold(Run.begin(config, tmp_path), 1)
    finally:
        (tmp_path / "kept").rename(source.fold(0) / "model.keras")


def test_a_slice_classifier_is_the_one_within_a_scan_model_and_the_other_way_round(data, source, tmp_path):
    model = scan.with_slice_head(of_scans())
    before = values(model)
    initial.set_weights(model, source, 1)
    assert same(scan.slice_model(model), fold.load_model(source, 1))
    changed = sum(not np.array_equal(*both) for both in zip(values(model), before, strict=True))
    assert changed == len(scan.slice_model(model).weights)
    run = finished(data, tmp_path, of_scans, model={"scan": {"slices": 3, "units": 4}})
    initial.set_weights(model, run, 0)
    assert same(model, fold.load_model(run, 0))  # the layers over the scan too
    alone = BUILD((32, 32, 1))
    initial.set_weights(alone, run, 1)
    assert same(alone, scan.slice_model(fold.load_model(run, 1)))


def test_images_of_another_size_but_not_of_other_channels(source):
    model = BUILD((48, 48, 1))
    initial.set_weights(model, source, 0)
    assert same(model, fold.load_model(source, 0))
    other = BUILD((32, 32, 3))
    before = values(other)
    with pytest.raises(IchError, match=r"its weight .*kernel has the shape \(5, 5, 1, 16\), this config's \(5, 5, 3"):
        initial.set_weights(other, source, 0)
    assert all(np.array_equal(*both) for both in zip(values(other), before, strict=True))
    small = keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Flatten(), keras.layers.Dense(6)])
    with pytest.raises(IchError, match=r"its network has \d+ weights, this config's 2; the section model must be"):
        initial.set_weights(small, source, 0)


def test_what_does_not_fit_is_refused_before_the_training(data, source, tmp_path):
    def begun(**sections):
        sections["train"] = {"init_from": source.path, **sections.get("train", {})}
        config = tiny_config(data, **sections)
        return initial.source(config, RunData(config))

    assert begun().path == source.path
    with pytest.raises(IchError, match=r"is of small_cnn, this config of MobileNetV2: weights fit one network alone"):
        begun(model={"name": "MobileNetV2"})
    with pytest.raises(IchError, match=r"and model.weights=a.h5 both name the initial weights; set"):
        begun(model={"weights": "a.h5"})
    table = folds.read_folds(data / "folds.csv")
    folds.write_folds(tmp_path / "folds.csv", table.assign(fold=1 - table["fold"]))
    with pytest.raises(IchError, match=r"was trained on other folds than .*, and its weights would know patients"):
        begun(data={"folds": tmp_path / "folds.csv"})
    (source.fold(1) / "oof.parquet").unlink()
    try:
        with pytest.raises(IchError, match=r"lacks fold\(s\) 1; train them first"):
            begun()
    finally:
        (source.fold(1) / "oof.parquet").touch()
    with pytest.raises(IchError, match="none"):
        begun(train={"init_from": tmp_path / "none"})


def test_weights_chosen_on_the_held_out_patients_are_refused_unless_this_run_chooses_so_too(data, tmp_path):
    best = finished(data, tmp_path, train={"keep": "best"})
    config = tiny_config(data, train={"init_from": best.path})
    with pytest.raises(IchError, match=r"was trained with train.keep=best: its model k was chosen on the patients"):
        initial.source(config, RunData(config))
    same = tiny_config(data, train={"init_from": best.path, "keep": "best"})
    assert initial.source(same, RunData(same)).path == best.path
