"""Training on a run of 24 images of 32 x 32 pixels, two folds and one epoch."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import io
import shutil
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from itertools import pairwise

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from conftest import TRAIN, eagerly, tiny_config
from scipy.special import expit

from ich.competition import folds, metrics
from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.images import slice_table
from ich.models import backbones
from ich.models.losses import WeightedBinaryCrossentropy, WeightedFocalLoss, WeightedLogLoss
from ich.results.predictions import read_predictions, read_provenance
from ich.results.result_directory import read_mapping
from ich.training import fold, fold_setup, inference
from ich.training.run_data import RunData, read_slices
from ich.training.run_directory import Run
from ich.training.run_score import score_run


def trained(data, root, /, *numbers, graphs=False, **sections):
    """Of few steps, a training takes half as long without graphs, unless `graphs`."""
    run = Run.begin(tiny_config(data, **sections), root)
    with nullcontext() if graphs else eagerly():
        for k in numbers:
            fold.train_fold(run, k)
    return run


ONE_STEP = {"batch_size": 12}
"""Of `train` and `predict`: an epoch is one step."""


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return trained(data, tmp_path_factory.mktemp("runs"), 0, 1, graphs=True)


@pytest.fixture(scope="module")
def seldom_validated(data, tmp_path_factory):
    """A fold of three epochs, the first without validation and no slice epidural; its folder, and what was printed."""
    path = tmp_path_factory.mktemp("seldom")
    table = folds.read_folds(data / "folds.csv").assign(epidural=0)
    table["any"] = table[list(LABELS[:-1])].max(axis=1)
    folds.write_folds(path / "folds.csv", table.astype(dict.fromkeys(LABELS, "int8")))
    train = {"epochs": 3, "validate_every": 2} | ONE_STEP
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
        run = trained(data, path, 0, data={"folds": path / "folds.csv"}, train=train, predict=ONE_STEP)
    return run.fold(0), out.getvalue()


def files(path):
    return {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


# ------------------------------------------------------------------------------------------- training


def test_a_fold_leaves_model_history_and_the_predictions_of_its_own_slices(finished):
    for k in range(2):
        names = sorted(path.name for path in finished.fold(k).iterdir())
        assert names == ["curves.png", "history.csv", "model.keras", "oof.parquet", "passes", "training.json"]
        oof = read_predictions(finished.fold(k) / "oof.parquet")
        assert oof.index.tolist() == [id_ for number, id_ in enumerate(TRAIN) if number // 4 % 2 == k]
        assert (oof.dtypes == np.float32).all()
        assert ((oof > 0) & (oof < 1)).all(axis=None)
        history = pd.read_csv(finished.fold(k) / "history.csv", index_col="epoch")
        in_both = [prefix + name for prefix in ("", "val_") for name in ("loss", "weighted_log_loss")]
        assert set(history.columns) == {*in_both, *(f"val_auc_{label}" for label in LABELS)}
        assert len(history) == 1
        facts = read_mapping(finished.fold(k) / "training.json")
        assert facts["epochs"] == 1
        assert facts["seconds"] > 0
    assert finished.finished_folds() == [0, 1]


def test_the_score_is_that_of_the_last_validation(finished):
    score = score_run(finished)
    table = folds.read_folds(finished.config.data.folds_path)
    expected = 0.0
    for k in range(2):
        history = pd.read_csv(finished.fold(k) / "history.csv")
        expected += history["val_weighted_log_loss"].iloc[-1] * (table["fold"] == k).sum() / len(table)
    assert score["weighted_log_loss"] == pytest.approx(expected, rel=1e-4)
    assert 0 < score["weighted_log_loss"] < 3


def test_the_saved_model_gives_the_out_of_fold_predictions(finished):
    oof = read_predictions(finished.fold(1) / "oof.parquet")
    model = inference.load_model(finished, 1)
    images = [cv2.imread(str(finished.config.data.images / f"train/{id_}.png"), 0)[..., None] for id_ in oof.index]
    again = expit(keras.ops.convert_to_numpy(model(np.stack(images))))
    np.testing.assert_allclose(again, oof, rtol=1e-5, atol=1e-6)


def test_an_unknown_pass_is_reported_before_the_training(data, tmp_path):
    with pytest.raises(IchError, match="no TTA pass is called 'flap'"):
        trained(data, tmp_path, 0, predict={"tta": ["flap"]})
    assert list(tmp_path.iterdir()) == []


def test_the_auc_of_a_label_that_nobody_has_is_n_a(seldom_validated):
    folder, printed = seldom_validated
    assert "fold 0: the AUC of epidural is n/a: all slices held out have the label, or none has it" in printed
    assert "nan" not in printed.lower()
    history = pd.read_csv(folder / "history.csv")
    assert history["val_auc_epidural"].isna().all()
    assert history["val_auc_subdural"].iloc[1:].between(0, 1).all()


def test_a_fold_reads_slice_table_and_folds_once_and_predicts_by_the_passes(data, tmp_path, monkeypatch):
    """Also where sampling and neighboring slices need more of the table, and each pass reads the images again."""
    sections = {"model": {"neighbours": [-1, 0, 1]}, "train": {"slices_per_series": 2}}
    run = Run.begin(tiny_config(data, predict={"tta": ["none", "flip"]} | ONE_STEP, **sections), tmp_path)
    read = []
    for module, name in ((slice_table, "read_table"), (folds, "read_folds")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, f=function, n=name: (read.append(n), f(*args))[1])
    with eagerly():
        fold.train_fold(run, 0)
    assert sorted(read) == ["read_folds", "read_table"]
    assert len(read_predictions(run.fold(0) / "oof.parquet")) == 12
    assert read_provenance(run.fold(0) / "oof.parquet")["tta"] == ["none", "flip"]


def test_a_finished_fold_is_left_alone(finished, monkeypatch):
    before = files(finished.path)
    monkeypatch.setattr(backbones, "build_model", None)
    fold.train_fold(finished, 0)
    assert files(finished.path) == before


def test_a_fold_depends_on_neither_other_folds_nor_the_machine_nor_the_global_random_state(
    data, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr("random.shuffle", None)  # `fit` shuffles batches by it, unless told not to
    alone = trained(data, tmp_path, 1, graphs=True, machine={"workers": 3, "steps_per_execution": 2})
    first, second = (read_predictions(run.fold(1) / "oof.parquet") for run in (alone, finished))
    pd.testing.assert_frame_equal(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def test_mixed_precision_trains_and_predicts_in_float32(data, tmp_path, precision):
    before = keras.config.dtype_policy()
    try:
        run = trained(data, tmp_path, 0, train={"precision": precision}, predict=ONE_STEP)
    finally:
        keras.config.set_dtype_policy(before)
    oof = read_predictions(run.fold(0) / "oof.parquet")
    assert np.isfinite(oof).all(axis=None)
    model = inference.load_model(run, 0)
    assert model.output.dtype == "float32"
    assert model.get_layer("logits").input.dtype == precision.removeprefix("mixed_")


def test_averaged_weights_are_what_is_evaluated_saved_and_predicts(data, tmp_path, monkeypatch):
    """Beside the average of all steps, taken by hand."""
    steps = []

    class Recorder(fold.TerminateOnNaNLoss):
        def on_train_batch_end(self, batch, logs=None):
            steps.append([keras.ops.convert_to_numpy(weight) for weight in self.model.trainable_weights])

    monkeypatch.setattr(fold, "TerminateOnNaNLoss", Recorder)
    train = {"ema_momentum": 0.7, "epochs": 2, "batch_size": 6, "learning_rate": 0.01}
    run = trained(data, tmp_path, 0, train=train, predict=ONE_STEP)
    assert len(steps) == 4
    averages = steps[0]
    for weights in steps[1:]:
        averages = [0.7 * average + 0.3 * weight for average, weight in zip(averages, weights, strict=True)]
    model = inference.load_model(run, 0)
    for average, last, saved in zip(averages, steps[-1], model.trainable_weights, strict=True):
        np.testing.assert_allclose(saved, average, rtol=1e-4, atol=1e-6)
        assert not np.allclose(saved, last, rtol=1e-3, atol=1e-6)
    oof = read_predictions(run.fold(0) / "oof.parquet")
    table = folds.read_folds(run.config.data.folds_path)
    score = metrics.weighted_log_loss(table.loc[oof.index, list(LABELS)].to_numpy(), oof.to_numpy())
    history = pd.read_csv(run.fold(0) / "history.csv")
    assert history["val_weighted_log_loss"].iloc[-1] == pytest.approx(score, rel=1e-4)


def test_the_head_learns_alone_first(data, tmp_path, monkeypatch):
    steps = []

    class Recorder(fold.TerminateOnNaNLoss):
        def on_train_batch_end(self, batch, logs=None):
            weights = [keras.ops.convert_to_numpy(weight) for weight in self.model.weights]
            steps.append((weights, float(self.model.optimizer.learning_rate)))

    monkeypatch.setattr(fold, "TerminateOnNaNLoss", Recorder)
    train = {"head_epochs": 1, "epochs": 2, "batch_size": 4, "learning_rate": 0.01}
    trained(data, tmp_path, 0, train=train, predict=ONE_STEP)
    assert len(steps) == 6
    for number, weights in enumerate(zip(*(weights for weights, _ in steps), strict=True)):
        changes = [not np.array_equal(*both) for both in pairwise(weights)]
        of_head = number >= len(steps[0][0]) - 2  # the last two are of the layer behind the backbone
        assert changes[:2] == [of_head] * 2  # moving statistics stay too
    assert any(not np.array_equal(*both) for both in zip(steps[3][0][:-2], steps[5][0][:-2], strict=True))
    assert [rate for _, rate in steps] == pytest.approx([0.0075, 0.0025, 0, 0.005, 0.01, 0], abs=1e-6)
    monkeypatch.setattr(fold.trackers, "check_installed", lambda names: None)
    with pytest.raises(IchError, match=r"mlflow records the settings of one optimizer, and train.head_epochs trains"):
        trained(data, tmp_path / "logged", 0, train=train, machine={"log_to": "mlflow"})


def test_the_best_epochs_weights_on_request(data, tmp_path):
    # The rate rises all along, until the network gets worse with each step.
    options = {"epochs": 4, "learning_rate": 0.5, "warmup_epochs": 4, "keep": "best"} | ONE_STEP
    run = trained(data, tmp_path, 0, train=options, predict=ONE_STEP)
    losses = pd.read_csv(run.fold(0) / "history.csv")["val_weighted_log_loss"]
    assert losses.idxmin() < 3
    _, held_out = generators(run.config, folds.read_folds(data / "folds.csv"))
    model = inference.load_model(run, 0)
    model.compile(loss=WeightedBinaryCrossentropy(), metrics=[WeightedLogLoss()])
    with eagerly():
        evaluated = model.evaluate(held_out, return_dict=True, verbose=0)
    assert evaluated["weighted_log_loss"] == pytest.approx(losses.min(), rel=1e-4)


def generators(config, table, multiple=1):
    return fold_setup.generators(config, table, RunData(config).slices, 0, multiple)


def ids_of_an_epoch(generator):
    return [id_ for index in range(len(generator)) for id_ in generator.ids_of(index)]


def test_some_slices_of_each_series_an_epoch(data):
    config = tiny_config(data, train={"slices_per_series": 2, "centre_weighted": True})
    train, held_out = generators(config, folds.read_folds(data / "folds.csv"))
    table = slice_table.readable(read_slices(config), "train")
    assert len(held_out.ids) == 12
    for epoch in range(3):
        train.set_epoch(epoch)
        seen = table.loc[ids_of_an_epoch(train)]
        assert seen.index.is_unique
        assert seen["SeriesInstanceUID"].value_counts().tolist() == [2, 2, 2]
    # Samples stand in scan order, by which the sampling knows the middle.
    places = table.loc[train.ids].groupby("SeriesInstanceUID")["order"].agg(list)
    assert places.tolist() == [[0, 1, 2, 3]] * 3


def test_as_many_bleeds_as_asked_for(data):
    config = tiny_config(data, train={"positive_share": 0.75})
    table = folds.read_folds(data / "folds.csv")
    table["any"] = np.arange(len(table)) % 2
    train, _ = generators(config, table)
    seen = table.loc[ids_of_an_epoch(train), "any"]
    assert seen.value_counts().to_dict() == {1: 6, 0: 2}
    assert set(seen[seen == 1].index) == set(table.index[(table["fold"] != 0) & (table["any"] == 1)])


@pytest.fixture
def half_bled(data, tmp_path):
    """The folds with a bleed in every other slice, as their file; the images' own labels are all but all."""
    table = folds.read_folds(data / "folds.csv")
    table.loc[np.arange(len(table)) % 2 == 0, list(LABELS)] = 0
    table.loc[np.arange(len(table)) % 2 == 1, "any"] = 1
    folds.write_folds(tmp_path / "half.csv", table)
    return tmp_path / "half.csv"


def test_a_share_of_positives_is_taken_out_of_what_is_predicted(data, tmp_path, half_bled, capsys):
    train = {"positive_share": 0.75}
    run = trained(data, tmp_path, 0, data={"folds": half_bled}, train=train, predict=ONE_STEP)
    model = inference.load_model(run, 0)
    assert model.layers[-1].oversampling == 3  # 6 slices with and 6 without a bleed, of which an epoch shows 2
    oof = read_predictions(run.fold(0) / "oof.parquet")
    images = [cv2.imread(str(run.config.data.images / f"train/{id_}.png"), 0)[..., None] for id_ in oof.index]
    bare = keras.Model(model.inputs, model.get_layer("logits").output)(np.stack(images))
    odds = oof["any"] / (1 - oof["any"])
    np.testing.assert_allclose(odds, np.exp(keras.ops.convert_to_numpy(bare)[:, 5]) / 3, rtol=1e-4)
    # What is validated is what predicts.
    table = folds.read_folds(half_bled)
    score = metrics.weighted_log_loss(table.loc[oof.index, list(LABELS)].to_numpy(), oof.to_numpy())
    history = pd.read_csv(run.fold(0) / "history.csv")
    assert history["val_weighted_log_loss"].iloc[-1] == pytest.approx(score, rel=1e-4)
    assert backbones.with_features(model).output_shape[1] == (None, 256)
    assert "warning" not in capsys.readouterr().err


def test_batches_of_one_size_show_every_slice(data):
    train, _ = generators(tiny_config(data, train={"fixed_batches": True}), folds.read_folds(data / "folds.csv"))
    filled = set()
    for epoch in range(3):
        train.set_epoch(epoch)
        shown = ids_of_an_epoch(train)
        assert {len(train.ids_of(index)) for index in range(len(train))} == {5}
        assert set(shown) == set(train.ids)
        filled.add(tuple(sorted(id_ for id_ in set(shown) if shown.count(id_) > 1)))
    assert {len(twice) for twice in filled} == {3}
    assert len(filled) > 1  # others each time


def test_epochs_without_validation_are_n_a_and_the_last_is_validated(seldom_validated):
    folder, printed = seldom_validated
    history = pd.read_csv(folder / "history.csv")
    validated = [name for name in history.columns if name.startswith("val_")]
    assert len(validated) == 8
    for name in set(validated) - {"val_auc_epidural"}:
        assert history[name].notna().tolist() == [False, True, True]
    assert history["loss"].notna().all()
    lines = [line for line in printed.splitlines() if ", epoch " in line]
    assert ["validation loss n/a, AUC of any n/a" in line for line in lines] == [True, False, False]


def test_devices_that_share_batches_have_as_many_samples_each(data):
    table = folds.read_folds(data / "folds.csv").drop(index=TRAIN[4])
    train, held_out = generators(tiny_config(data), table, multiple=2)
    epochs = []
    for epoch in range(4):
        train.set_epoch(epoch)
        epochs.append(set(ids_of_an_epoch(train)))
    assert {len(epoch) for epoch in epochs} == {10}
    assert len(set.union(*epochs)) == 11  # another one is left out each time
    assert len(held_out.ids) == 12


def test_the_loss_is_the_configs(data):
    focal = fold_setup._loss(
        tiny_config(data, train={"loss": "focal", "focal_gamma": 1.5, "label_smoothing": 0.1}).train, None
    )
    assert (type(focal), focal.gamma, focal.label_smoothing) == (WeightedFocalLoss, 1.5, 0.1)
    plain = fold_setup._loss(tiny_config(data, train={"label_weights": [1, 2, 3, 4, 5, 6]}).train, None)
    assert (type(plain), plain.weights) == (WeightedBinaryCrossentropy, [1, 2, 3, 4, 5, 6])


def test_a_fold_that_does_not_exist(data, tmp_path):
    for k in (-1, 2):
        with pytest.raises(IchError, match=rf"there is no fold {k}; the config has folds 0 to 1"):
            trained(data, tmp_path, k)
    assert not (tmp_path / "tiny").exists()


def test_another_number_of_folds_than_the_files(data, tmp_path):
    with pytest.raises(IchError, match=r"folds.csv has 2 folds, the config 3; set folds.n to the file's, or make"):
        trained(data, tmp_path, 0, folds={"n": 3})


def test_folds_of_slices_without_an_image(data, tmp_path):
    table = folds.read_folds(data / "folds.csv").rename(index={TRAIN[3]: "ID_f00"})
    folds.write_folds(tmp_path / "folds.csv", table)
    with pytest.raises(IchError, match=r"folds.csv lists 1 slice\(s\) that .*images has no image of, such as ID_f00"):
        trained(data, tmp_path, 0, data={"folds": tmp_path / "folds.csv"})


@pytest.mark.parametrize("machine", [{"workers": 3}, {"workers": 2, "processes": True}], ids=["threads", "processes"])
@pytest.mark.timeout(120)
def test_an_image_damaged_since_is_a_sentence(data, tmp_path, machine):
    shutil.copytree(data / "images", tmp_path / "images")
    broken = tmp_path / "images/train" / f"{TRAIN[10]}.png"
    broken.write_bytes(b"junk")
    sections = {"data": {"images": tmp_path / "images"}, "train": {"batch_size": 1}}
    with pytest.raises(IchError) as caught:
        trained(data, tmp_path, 0, graphs=True, machine=machine, **sections)
    assert str(caught.value) == f"{broken} holds no image that can be decoded (4 bytes); delete it, and write it again"
    assert not (tmp_path / "tiny/fold0").exists()


@pytest.mark.parametrize("scan", [(), (2,)])
def test_the_model_is_built_for_the_channels_of_all_files(scan):
    joined, apart = np.zeros((4, *scan, 5, 7, 9), np.uint8), np.zeros((4, *scan, 3, 5, 7, 3), np.uint8)
    for x in (joined, {"image": joined, "z": np.zeros(4)}, {"unaugmented": apart, "augment": np.zeros((4, 8))}):
        assert fold_setup.image_shape(x) == (5, 7, 9)
