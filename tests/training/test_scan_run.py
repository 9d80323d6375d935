"""A run of scan models, from training to its predictions; the images are those of the tests' tiny run."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pandas as pd
import pytest
from conftest import TEST, TRAIN, tiny_config
from scipy.special import expit

from ich.competition import metrics
from ich.competition.folds import read_folds
from ich.competition.labels import LABELS
from ich.data.generator import DataGenerator
from ich.models import scan
from ich.results.predictions import read_predictions
from ich.second_stage import embeddings
from ich.training import fold, inference
from ich.training.run_directory import Run
from ich.training.run_score import read_score

SCAN = {"slices": 3, "units": 8}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory, eager):
    config = tiny_config(data, model={"scan": SCAN}, train={"batch_size": 2}, predict={"tta": ["none", "flip"]})
    run = Run.begin(config, tmp_path_factory.mktemp("runs"))
    fold.train_folds(run)
    inference.predict_test(run)
    return run


def slow(run, k, ids, split):
    """Logits of slices, series by series and window by window; series of the tests have four slices, windows three."""
    model = inference.load_model(run, k)
    table = inference.read_slices(run.config).set_index("SOPInstanceUID").loc[ids]
    logits_by_id = {id: [] for id in ids}
    for _, series in table.sort_values("order").groupby("SeriesInstanceUID"):
        starts = range(len(series) - 2) if len(series) > 3 else [0]
        for start in starts:
            window = series.index[start : start + 3]
            images = DataGenerator(window, image_dir=run.config.data.images / split)[0]
            lacking = 3 - len(window)
            x = {
                "image": np.concatenate([images, np.zeros((lacking, *images.shape[1:]), np.uint8)])[None],
                "mask": np.array([[1.0] * len(window) + [0.0] * lacking], np.float32),
                "z": np.zeros((1, 3), np.float32),
            }
            for id, logits in zip(window, model.predict(x, verbose=0)[0], strict=False):
                logits_by_id[id].append(logits)
    return np.array([np.mean(logits_by_id[id], axis=0) for id in ids])


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_slice_is_predicted_by_the_mean_over_its_windows(run, split):
    path = run.passes(0) / ("oof-none.parquet" if split == "train" else "test-none.parquet")
    frame = read_predictions(path)
    ids = [id for number, id in enumerate(TRAIN) if number // 4 % 2 == 0] if split == "train" else TEST
    assert sorted(frame.index) == sorted(ids)
    logits = slow(run, 0, list(frame.index), split)
    np.testing.assert_allclose(frame.to_numpy(), logits, atol=1e-5)


def test_the_run_is_scored_and_its_probabilities_are_the_passes_mean(run):
    assert read_score(run)
    oof = read_predictions(run.fold(1) / "oof.parquet")
    passes = [read_predictions(run.passes(1) / f"oof-{tta}.parquet") for tta in ("none", "flip")]
    np.testing.assert_allclose(oof, np.mean([expit(table) for table in passes], axis=0), atol=1e-6)


def test_padding_is_not_scored_in_validation(run, data):
    model = inference.load_model(run, 0)
    slices = inference.read_slices(run.config)
    ids = read_predictions(run.fold(0) / "oof.parquet").index
    labels = read_folds(run.config.data.folds).loc[ids, list(LABELS)].astype(np.float32)
    image_dir = run.config.data.images / "train"
    windows = DataGenerator(ids, labels, image_dir=image_dir, scan=3, slices=slices, shuffle=False)
    truth, logits = [], []
    for x, y, weights in (windows[index] for index in range(len(windows))):
        shown = weights > 0
        assert not shown.all()
        truth.append(y[shown])
        logits.append(model.predict(x, verbose=0)[shown])
    truth, probabilities = np.concatenate(truth), expit(np.concatenate(logits))
    last = pd.read_csv(run.fold(0) / "history.csv").iloc[-1]
    assert last["val_weighted_log_loss"] == pytest.approx(metrics.weighted_log_loss(truth, probabilities), rel=1e-4)


def test_the_saved_model_gives_the_scans_logits_alone(run):
    model = inference.load_model(run, 0)
    assert model.output_shape == (None, 3, 6)
    assert (scan.slices_of(model), scan.image_shape(model)) == (3, (32, 32, 1))


def test_embeddings_are_those_of_the_layers_over_the_slices(run):
    embeddings.extract(run, True)
    for k in range(2):
        logits, values = embeddings.read(run.features(k), "oof")
        assert values.shape == (len(logits), 16)
        assert np.isfinite(values).all()
        passes = [read_predictions(run.passes(k) / f"oof-{tta}.parquet") for tta in ("none", "flip")]
        expected = inference.mean_logits([table.loc[logits.index].to_numpy() for table in passes], "probability")
        np.testing.assert_allclose(logits, expected, atol=0.02)  # the mean over windows of the passes' mean


@pytest.mark.slow  # test_fold_survival's trainings of scans, stopped and killed, end bit for bit alike
def test_training_twice_gives_the_same_and_another_seed_another(run, data, tmp_path):
    def weights(config, root):
        again = Run.begin(config, root)
        fold.train_fold(again, 0)
        return inference.load_model(again, 0).get_weights()

    expected = inference.load_model(run, 0).get_weights()
    config = run.config
    same = weights(config, tmp_path / "same")
    assert all((first == second).all() for first, second in zip(expected, same, strict=True))
    train = config.train.model_copy(update={"seed": 1})
    other = weights(config.model_copy(update={"train": train}), tmp_path / "other")
    assert any((first != second).any() for first, second in zip(expected, other, strict=True))
