"""Training and inference on a run of 24 images of 32 x 32 pixels, two folds and one epoch."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import shutil
import zipfile

import cv2
import keras
import numpy as np
import pandas as pd
import pytest

from ich import convert, folds, inference, metrics, models, runs, slices, training
from ich.config import Config
from ich.errors import IchError
from ich.generator import DataGenerator
from ich.labels import INDEX_NAME, LABELS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

TRAIN = [f"ID_{number:09x}" for number in range(24)]
TEST = [f"ID_{number:09x}" for number in range(100, 107)]


def row(one, split, status="ok"):
    return {"SOPInstanceUID": one, "split": split, "status": status, "path": f"{split}/{one}.png"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images, slice table and folds; a slice of each split that could not be read."""
    path = tmp_path_factory.mktemp("data")
    convert._claim(path / "images", runs.settings(settings(path)))
    rng = np.random.default_rng(0)
    five = rng.integers(0, 2, (len(TRAIN), 5), dtype=np.int8)
    labels = np.column_stack([five, five.max(axis=1)])
    for split, ids in (("train", TRAIN), ("test", TEST)):
        (path / "images" / split).mkdir(parents=True)
        for number, one in enumerate(ids):
            image = rng.integers(0, 100, (32, 32), dtype=np.uint8)
            if split == "train":
                image[4:20, 4:20] += np.uint8(100 * labels[number, 5])
            cv2.imwrite(str(path / "images" / split / f"{one}.png"), image)
    rows = [row(one, "train") for one in TRAIN] + [row(one, "test") for one in TEST]
    rows += [row("ID_f00", "train", "truncated"), row("ID_f01", "test", "truncated")]
    slices.write_table(slices.to_frame(rows), path / "images/slices.parquet")
    table = pd.DataFrame(labels, columns=list(LABELS), index=pd.Index(TRAIN, name=INDEX_NAME))
    table["PatientID"] = [f"ID_p{number // 4}" for number in range(len(TRAIN))]
    table["fold"] = [number // 4 % 2 for number in range(len(TRAIN))]
    folds.write_folds(path / "folds.csv", table)
    return path


def settings(path, /, **sections):
    content = {
        "name": "tiny",
        "data": {"sources": path / "a.zip", "images": path / "images", "folds": path / "folds.csv"},
        "folds": {"n": 2},
        "model": {"name": "small_cnn", "weights": None},
        "train": {"epochs": 1, "batch_size": 5},
        "predict": {"batch_size": 5},
        "machine": {"workers": 1},
    }
    for section, values in sections.items():
        content[section] = {**content[section], **values}
    return Config.model_validate(content)


def trained(data, root, /, *wanted, **sections):
    run = runs.Run.begin(settings(data, **sections), root)
    for k in wanted:
        training.train_fold(run, k)
    return run


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    run = trained(data, tmp_path_factory.mktemp("runs"), 0, 1)
    inference.predict_test(run)
    return run


@pytest.fixture
def copied(finished, tmp_path):
    """A run of one's own to spoil."""
    shutil.copytree(finished.path, tmp_path / "tiny")
    return runs.Run.open(tmp_path / "tiny")


def files(path):
    return {one: one.stat().st_mtime_ns for one in path.rglob("*") if one.is_file()}


# ------------------------------------------------------------------------------------------- training


def test_a_fold_leaves_model_history_and_the_predictions_of_its_own_slices(finished):
    for k in range(2):
        names = sorted(path.name for path in finished.fold(k).iterdir())
        assert names == ["history.csv", "model.keras", "oof.parquet", "predictions_test.parquet"]
        oof = runs.read_predictions(finished.fold(k) / "oof.parquet")
        assert oof.index.tolist() == [one for number, one in enumerate(TRAIN) if number // 4 % 2 == k]
        assert (oof.dtypes == np.float32).all()
        assert ((oof > 0) & (oof < 1)).all(axis=None)
        history = pd.read_csv(finished.fold(k) / "history.csv", index_col="epoch")
        assert {"loss", "val_loss", "weighted_log_loss", "val_weighted_log_loss"} <= set(history.columns)
        assert len(history) == 1
    assert finished.finished_folds() == [0, 1]


def test_the_score_is_that_of_the_last_validation(finished):
    score = finished.score()
    table = folds.read_folds(finished.config.data.folds_path)
    told = 0.0
    for k in range(2):
        history = pd.read_csv(finished.fold(k) / "history.csv")
        told += history["val_weighted_log_loss"].iloc[-1] * (table["fold"] == k).sum() / len(table)
    assert score["weighted_log_loss"] == pytest.approx(told, rel=1e-4)
    assert 0 < score["weighted_log_loss"] < 3


def test_the_saved_model_gives_the_out_of_fold_predictions(finished):
    oof = runs.read_predictions(finished.fold(1) / "oof.parquet")
    model = inference.load_model(finished, 1)
    samples = DataGenerator(oof.index, image_dir=finished.config.data.images / "train")
    again = training.predict(model, samples)
    pd.testing.assert_frame_equal(again, oof, rtol=1e-5, atol=1e-6)


def test_a_finished_fold_is_left_alone(finished, monkeypatch):
    before = files(finished.path)
    monkeypatch.setattr(models, "build_model", None)
    training.train_fold(finished, 0)
    assert files(finished.path) == before


def test_a_fold_depends_on_neither_other_folds_nor_workers_nor_the_global_random_state(
    data, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr("random.shuffle", None)  # `fit` shuffles batches by it, unless told not to
    alone = trained(data, tmp_path, 1, machine={"workers": 3})
    one, other = (runs.read_predictions(run.fold(1) / "oof.parquet") for run in (alone, finished))
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def test_mixed_precision_trains_and_predicts_in_float32(data, tmp_path, precision):
    before = keras.config.dtype_policy()
    try:
        run = trained(data, tmp_path, 0, train={"precision": precision})
    finally:
        keras.config.set_dtype_policy(before)
    oof = runs.read_predictions(run.fold(0) / "oof.parquet")
    assert np.isfinite(oof).all(axis=None)
    model = inference.load_model(run, 0)
    assert model.output.dtype == "float32"
    assert model.get_layer("logits").input.dtype == precision.removeprefix("mixed_")


@pytest.mark.parametrize(
    ("epochs", "warmup", "steps", "rates"),
    [
        (2, 1.0, 4, {0: 0, 2: 0.5, 4: 1, 6: 0.5, 8: 0}),
        (2, 0.0, 4, {0: 1, 4: 0.5, 8: 0}),
        (1, 9.0, 4, {0: 0, 3: 1, 4: 0}),
        (1, 1.0, 1, {0: 1, 1: 0}),
    ],
)
def test_the_learning_rate_rises_to_its_top_and_falls_to_zero(data, epochs, warmup, steps, rates):
    config = settings(data, train={"epochs": epochs, "warmup_epochs": warmup, "learning_rate": 1.0})
    optimizer = training._optimizer(config, steps)
    schedule = optimizer._learning_rate
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6)


def test_weight_decay_spares_biases_and_normalization(data):
    optimizer = training._optimizer(settings(data), 4)
    model = models.build_model("small_cnn", (32, 32, 1))
    optimizer.build(model.trainable_variables)
    decayed = {variable.name for variable in model.trainable_variables if optimizer._use_weight_decay(variable)}
    assert decayed == {"kernel"}


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


def test_a_loss_that_is_no_number_ends_the_training_and_saves_nothing(data, tmp_path):
    with pytest.raises(IchError, match=r"the loss of fold 0 is no number any more in epoch \d; lower train.learn"):
        trained(data, tmp_path, 0, train={"learning_rate": 1e30, "epochs": 4, "warmup_epochs": 0})
    assert not (tmp_path / "tiny/fold0").exists()


@pytest.mark.parametrize("machine", [{"workers": 3}, {"workers": 2, "processes": True}], ids=["threads", "processes"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.timeout(120)
def test_an_image_damaged_since_is_a_sentence(data, tmp_path, machine):
    shutil.copytree(data / "images", tmp_path / "images")
    broken = tmp_path / "images/train" / f"{TRAIN[10]}.png"
    broken.write_bytes(b"junk")
    with pytest.raises(IchError) as caught:
        trained(data, tmp_path, 0, data={"images": tmp_path / "images"}, machine=machine, train={"batch_size": 1})
    assert str(caught.value) == f"{broken} holds no image that can be decoded (4 bytes); make it again"
    assert not (tmp_path / "tiny/fold0").exists()


def test_other_errors_of_the_training_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), training._unwrapped():
        _ = 1 / 0
    with pytest.raises(IchError, match=r"^as it was$"), training._unwrapped():
        raise IchError("as it was")


# ------------------------------------------------------------------------------------------- inference


def test_test_predictions_are_the_mean_of_the_folds_for_every_readable_slice(finished):
    found = runs.read_predictions(finished.predictions_path)
    assert sorted(found.index) == sorted(TEST)
    parts = []
    for k in range(2):
        model = inference.load_model(finished, k)
        images = [cv2.imread(str(finished.config.data.images / f"test/{one}.png"), 0)[..., None] for one in found.index]
        logits = keras.ops.convert_to_numpy(model(np.stack(images))).astype(np.float64)
        parts.append(1 / (1 + np.exp(-logits)))
    np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-4)
    assert (found.dtypes == np.float32).all()


def test_predicted_again_nothing_is_computed_and_all_is_equal(copied, monkeypatch):
    monkeypatch.setattr(inference, "load_model", None)
    expected = runs.read_predictions(copied.predictions_path)
    pd.testing.assert_frame_equal(inference.predict_test(copied), expected)
    pd.testing.assert_frame_equal(runs.read_predictions(copied.predictions_path), expected)


def test_predictions_of_another_test_set_are_made_anew(copied):
    path = copied.fold(0) / "predictions_test.parquet"
    expected = runs.read_predictions(path)
    runs.write_predictions(expected[:3], path)
    inference.predict_test(copied)
    pd.testing.assert_frame_equal(runs.read_predictions(path), expected, rtol=1e-5)


def test_a_missing_fold_is_told(copied):
    shutil.rmtree(copied.fold(1))
    with pytest.raises(IchError, match=r"lacks fold\(s\) 1; train them first"):
        inference.predict_test(copied)


def test_no_test_slices_are_told(copied, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    table = slices.read_table(copied.config.data.images / "slices.parquet")
    slices.write_table(table[table["split"] == "train"], images / "slices.parquet")
    shutil.copy(copied.config.data.images / "settings.json", images)
    data = copied.config.data.model_copy(update={"images": images})
    copied.config = copied.config.model_copy(update={"data": data})
    with pytest.raises(IchError, match=r"images holds no test slices; convert sources that have some"):
        inference.predict_test(copied)


@pytest.mark.parametrize("damage", ["missing", "junk", "cut", "changed", "no config", "no weights"])
def test_a_damaged_model_is_a_sentence(copied, damage):
    path = copied.fold(0) / "model.keras"
    whole = path.read_bytes()
    path.unlink()
    if damage == "junk":
        path.write_bytes(b"junk")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "changed":
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 255
        path.write_bytes(changed)
    elif damage.startswith("no "):
        with zipfile.ZipFile(copied.path.parent / "whole", "w") as archive:
            archive.writestr("model.weights.h5" if damage == "no config" else "config.json", b"{}")
        (copied.path.parent / "whole").rename(path)
    with pytest.raises(IchError, match=r"the model .*model.keras cannot be read \(.*; delete .*fold0 and train the fo"):
        inference.load_model(copied, 0)


def test_a_model_with_code_inside_is_refused(copied):
    image = keras.Input((32, 32, 1))
    keras.Model(image, keras.layers.Lambda(lambda x: x)(image)).save(copied.fold(0) / "model.keras")
    with pytest.raises(IchError, match=r"the model .*model.keras cannot be read \("):
        inference.load_model(copied, 0)


def test_predict_is_the_sigmoid_of_the_logits_without_overflow():
    class Certain:
        def predict(self, samples, verbose):
            return np.array([[0, 100, -100, 700, -700, 1]], dtype=np.float32)

    class Samples:
        ids = pd.Index(["ID_a"])

    found = training.predict(Certain(), Samples())
    np.testing.assert_allclose(found.to_numpy()[0], [0.5, 1, 0, 1, 0, 0.7310586], atol=1e-7)
    assert found.index.name == INDEX_NAME
    assert metrics.weighted_log_loss(np.array([[0, 1, 0, 1, 0, 1]]), found) < 0.5
