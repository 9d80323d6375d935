"""Features by two small untrained models, of 32 × 32 pixels, and the second stage that reads them."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import runpy
import shutil
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from conftest import TEST, TRAIN, make_images, tiny_config
from scipy.special import expit, logit

from ich.competition import folds
from ich.competition.labels import LABELS
from ich.data import augment
from ich.errors import IchError
from ich.images import slice_table
from ich.models import backbones
from ich.results.predictions import read_predictions, read_provenance, write_predictions
from ich.second_stage import embeddings, inputs, train
from ich.training import chunked_inference, inference
from ich.training.parts import read_part
from ich.training.results_folder import with_results_in
from ich.training.run_data import RunData
from ich.training.run_directory import Run
from ich.training.run_score import read_score

pytestmark = pytest.mark.usefixtures("eager")

ROOT = Path(__file__).parents[2]
TIED, UNPLACED, ALONE = TRAIN[1:3], TRAIN[5], TRAIN[8]
FAST = [
    "sequence.features=embeddings",
    "sequence.shuffle_kinds=0",
    "sequence.seeds=1",
    "sequence.width=4",
    "sequence.units=0",
    "sequence.dilations=[1]",
    "sequence.epochs=1",
    "sequence.window=6",
    "sequence.rounds=2",
    "sequence.batch_size=2",
]


def write_scans(path):
    """The images of conftest with places: two slices at one z, one quarantined between others, one without z, one alone
    in its series."""
    make_images(path)
    table = slice_table.read_table(path / "images/slices.parquet").set_index("SOPInstanceUID", drop=False)
    table["z"] = table["order"].astype(float) * 5
    table.loc["ID_f00", ["SeriesInstanceUID", "z"]] = ["ID_s0", 7.0]
    table.loc[TIED, "z"] = 5.0
    table.loc[UNPLACED, "z"] = np.nan
    table.loc[ALONE, "SeriesInstanceUID"] = "ID_alone"
    slice_table.write_table(table, path / "images/slices.parquet")


def predicted(path):
    """A run on the images there, as the training leaves it, of models that have learned nothing."""
    run = Run.begin(tiny_config(path), path / "runs")
    run.claim("tensorflow", ["cpu:0"], RunData(run.config).digests)
    for k in range(2):
        keras.utils.set_random_seed(k)
        model = backbones.build_model("small_cnn", (32, 32, 1))
        run.fold(k).mkdir()
        model.save(run.fold(k) / "model.keras")
        inference.predict_held_out(run, k, RunData(run.config), lambda model=model: model)
    inference.predict_test(run)
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has predicted; its images, too, are of a folder that is not to be changed."""
    path = tmp_path_factory.mktemp("trained")
    write_scans(path)
    return predicted(path)


@pytest.fixture(scope="module")
def extracted(trained, tmp_path_factory):
    """The same with embeddings, in a folder of its own."""
    path = tmp_path_factory.mktemp("extracted") / "runs/tiny"
    shutil.copytree(trained.path, path)
    run = Run(path, trained.config)
    embeddings.extract(run, embeddings=True)
    return run


def copy(run, path):
    """A run to spoil; images and folds are the same files."""
    shutil.copytree(run.path, path / "runs/tiny")
    return Run(path / "runs/tiny", run.config)


def copy_data(run, path):
    """And images to spoil."""
    data = run.config.data
    shutil.copytree(data.images, path / "images")
    shutil.copy(data.folds_path, path / "folds.csv")
    copied = copy(run, path)
    return Run.open(copied.path, [f"data.images={path}/images", f"data.folds={path}/folds.csv"])


def asking(run, **predict):
    return Run.open(run.path, [f"predict.{key}={value}" for key, value in predict.items()])


def table_of(run):
    return folds.read_folds(run.config.data.folds_path)


def members(run, k):
    fold = table_of(run)["fold"]
    return {"oof": set(fold.index[fold == k]), "seen": set(fold.index[fold != k]), "test": set(TEST)}


@lru_cache
def whole(path):
    """A model that tells its last maps too."""
    model = keras.saving.load_model(path, compile=False)
    last = [layer for layer in model.layers if isinstance(layer, keras.layers.MaxPooling2D)][-1]
    return keras.Model(model.input, [last.output, model.output])


def slow(run, k, id, name):
    """Logits and pooled maps of one slice, one at a time, the pooled maps by NumPy."""
    model = whole(run.fold(k) / "model.keras")
    split = "test" if id in TEST else "train"
    image = cv2.imread(str(run.config.data.images / split / f"{id}.png"), 0)[..., None]
    (transform,) = augment.passes([name], 32, 32)
    image = image if transform is None else transform(image=image)["image"]
    maps, logits = model(image[None])
    maps = keras.ops.convert_to_numpy(maps)[0]
    return keras.ops.convert_to_numpy(logits)[0], np.concatenate([maps.mean(axis=(0, 1)), maps.max(axis=(0, 1))])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ what is extracted


@pytest.mark.parametrize(
    ("names", "mean"),
    [
        pytest.param(["none"], "probability", marks=pytest.mark.slow),
        (["none", "flip"], "probability"),
        (["none", "flip"], "logit"),
    ],
)
def test_logits_and_embeddings_are_the_models_own(trained, tmp_path, names, mean):
    run = asking(copy(trained, tmp_path), tta=names, mean=mean)
    embeddings.extract(run, embeddings=True)
    for k in range(2):
        for part, expected in members(run, k).items():
            logits, vectors = embeddings.read(run.features(k), part)
            provenance = read_provenance(run.features(k) / f"{part}.parquet")
            assert set(logits.index) == expected
            assert (vectors.dtype, vectors.shape) == (np.float16, (len(expected), 256))
            assert isinstance(vectors, np.memmap)
            assert (provenance["tta"], provenance["mean"]) == (names, mean)
            for place, id in list(enumerate(logits.index))[::5]:
                outputs = [slow(run, k, id, name) for name in names]
                own = np.array([values for values, _ in outputs], np.float64)
                own = logit(expit(own).mean(axis=0)) if mean == "probability" else own.mean(axis=0)
                np.testing.assert_allclose(logits.loc[id], own, rtol=1e-3, atol=1e-4)
                np.testing.assert_allclose(
                    vectors[place], np.mean([values for _, values in outputs], axis=0), rtol=2e-3, atol=1e-3
                )
    assert not list(run.path.rglob("*.parts"))


def test_slices_lie_in_scan_order(extracted):
    table = slice_table.read_table(extracted.config.data.images / "slices.parquet").set_index("SOPInstanceUID")
    ids = [id for k in range(2) for id in read_predictions(extracted.features(k) / "oof.parquet").index]
    first = [id for id in ids if table.loc[id, "SeriesInstanceUID"] == "ID_s0"]
    assert first == [TRAIN[3], TRAIN[1], TRAIN[2], TRAIN[0]]  # z falls as numbers rise, two are at one z
    for k in range(2):
        for part in ("oof", "seen", "test"):
            logits, vectors = embeddings.read(extracted.features(k), part)
            arranged = inputs.scans.arrange(table, logits, vectors)
            assert list(arranged.ids) == list(logits.index)
            assert arranged.embeddings is vectors  # not a copy: it may be larger than the memory


def test_predictions_of_odd_scans_are_all_there(extracted):
    stage = inputs.inputs_from_runs([extracted.path], overrides=FAST)
    for k in range(2):
        seen, held_out, test = (stage.embedded(part, k) for part in ("seen", "oof", "test"))
        assert len(test.ids) == len(TEST)
        assert sorted([*seen.ids, *held_out.ids]) == sorted(TRAIN)
        for part in (seen, held_out):
            lengths = dict(zip(part.ids[part.starts[:-1]], part.lengths, strict=True))
            if UNPLACED in part.ids:
                assert lengths[UNPLACED] == 1
            if ALONE in part.ids:
                assert lengths[ALONE] == 1


@pytest.mark.slow  # shorter scans go the same way in the other tests
def test_a_scan_of_four_hundred_slices_goes_through_both_stages(tmp_path):
    write_scans(tmp_path)
    table = slice_table.read_table(tmp_path / "images/slices.parquet")
    rng = np.random.default_rng(0)
    places = rng.permutation(400)  # the names say nothing of the order
    common = {"SeriesInstanceUID": "ID_long", "split": "test", "status": "ok"}
    rows = [
        {**common, "SOPInstanceUID": id, "path": f"test/{id}.png", "order": place, "z": place * 0.625}
        for id, place in zip([f"ID_long{n:03}" for n in range(400)], places, strict=True)
    ]
    for row in rows:
        image = rng.integers(0, 100, (32, 32), dtype=np.uint8) + np.uint8(row["order"] // 3)
        cv2.imwrite(str(tmp_path / "images" / row["path"]), image)
    slice_table.write_table(pd.concat([table, slice_table.to_frame(rows)]), tmp_path / "images/slices.parquet")
    run = predicted(tmp_path)
    embeddings.extract(run, embeddings=True)
    for k in range(2):
        logits, vectors = embeddings.read(run.features(k), "test")
        assert [id for id in logits.index if "long" in id] == [f"ID_long{n:03}" for n in np.argsort(places)]
        assert len(vectors) == len(logits) == 400 + len(TEST)
    overrides = [*(override for override in FAST if "rounds" not in override), "sequence.kind=recurrent"]
    second_run, _ = train.train(inputs.inputs_from_runs([run.path], overrides=overrides), tmp_path / "runs")
    predictions = read_predictions(second_run.predictions_path)
    assert sorted(predictions.index) == sorted([*TEST, *(row["SOPInstanceUID"] for row in rows)])
    # A network that has hardly learned gives nearly what the first stage gave of the same slice.
    before = read_predictions(run.predictions_path).loc[predictions.index].filter(like="long", axis=0)
    assert before["any"].corr(predictions["any"]) > 0.9


def test_logits_alone_are_those_of_the_predictions_and_cost_no_model(trained, tmp_path, monkeypatch):
    run = copy(trained, tmp_path)
    monkeypatch.setattr(inference, "load_model", lambda *_: pytest.fail("a model was read"))
    written = embeddings.extract(run, embeddings=False)
    assert [path.name for path in written] == ["oof.parquet", "test.parquet"] * 2
    for k in range(2):
        assert {path.name for path in run.features(k).iterdir()} == {"oof.parquet", "test.parquet"}
        for part in ("oof", "test"):
            logits = read_predictions(run.features(k) / f"{part}.parquet")
            predictions = read_predictions(run.passes(k) / f"{part}-none.parquet")
            pd.testing.assert_frame_equal(logits.sort_index(), predictions.sort_index())
    with pytest.raises(IchError, match=r"oof.parquet is missing or has no embeddings; run scripts/extract_feat"):
        embeddings.read(run.features(0), "oof")


def test_what_is_there_is_not_made_again(extracted, tmp_path, monkeypatch):
    run = copy(extracted, tmp_path)
    before = contents(run.path)
    monkeypatch.setattr(inference, "load_model", lambda *_: pytest.fail("a model was read"))
    embeddings.extract(run, embeddings=True)
    embeddings.extract(run, embeddings=False)  # embeddings that fit stay
    assert contents(run.path) == before


def test_other_passes_models_or_lost_files_are_made_anew(extracted, tmp_path):
    run = copy(extracted, tmp_path)
    before = contents(run.features(0))
    embeddings.extract(asking(run, tta="flip"), embeddings=True)
    flipped = contents(run.features(0))
    assert flipped["oof.npy"] != before["oof.npy"]
    embeddings.extract(run, embeddings=True)
    assert contents(run.features(0)) == before
    (run.features(0) / "seen.npy").unlink()
    embeddings.extract(run, embeddings=True)
    assert contents(run.features(0)) == before
    shutil.copy(run.fold(1) / "model.keras", run.fold(0) / "model.keras")
    embeddings.extract(run, embeddings=False)
    assert not (run.features(0) / "oof.npy").exists()  # of the model before
    assert read_provenance(run.features(0) / "oof.parquet")["model"] == inference.model_digest(run, 1)


def test_a_fold_trained_anew_leaves_no_features(extracted, tmp_path):
    run = copy(extracted, tmp_path)
    run.restart(0)
    assert not run.features(0).exists()
    assert run.features(1).exists()


def test_without_a_test_set(trained, tmp_path):
    run = copy_data(trained, tmp_path)
    path = run.config.data.images / "slices.parquet"
    table = slice_table.read_table(path)
    slice_table.write_table(table[table["split"] == "train"], path)
    embeddings.extract(run, embeddings=True)
    assert {path.name for path in run.features(0).glob("*.npy")} == {"oof.npy", "seen.npy"}


def test_features_go_to_another_folder(trained, tmp_path):
    run = copy(trained, tmp_path)
    before = contents(run.path)
    results = with_results_in(run, tmp_path / "out")
    embeddings.extract(run, embeddings=True, results=results)
    assert contents(run.path) == before
    inputs.inputs_from_runs([tmp_path / "out"], overrides=FAST)


# ------------------------------------------------------------------------------------------------ stopped


def test_stopped_it_goes_on_with_the_parts_that_are_there(trained, extracted, tmp_path, monkeypatch):
    run = copy(trained, tmp_path)
    monkeypatch.setattr(chunked_inference, "_PART_SECONDS", -1)
    calls, bare = [], chunked_inference._Saving.on_predict_batch_end

    def stopping(self, batch, logs):
        calls.append(batch)
        if len(calls) == 4 * len(run.config.predict.tta) + 1:  # the second batch of those seen, behind three held out
            raise IchError("stopped")
        bare(self, batch, logs)

    monkeypatch.setattr(chunked_inference._Saving, "on_predict_batch_end", stopping)
    with pytest.raises(IchError, match=r"^stopped$"):
        embeddings.extract(run, embeddings=True)
    (part,) = run.features(0).glob("seen.parts/*/*.npy")
    assert not (run.features(0) / "seen.npy").exists()
    changed = np.load(part)
    assert len(changed) == 5
    changed["embedding"] = 7
    np.save(part, changed)
    embeddings.extract(run, embeddings=True)
    _, vectors = embeddings.read(run.features(0), "seen")
    assert (vectors[:5] == 7).all()
    _, expected = embeddings.read(extracted.features(0), "seen")
    np.testing.assert_array_equal(vectors[5:], expected[5:])
    assert contents(run.features(1)) == contents(extracted.features(1))


SCRIPT = """
import runpy, sys
from ich.training import chunked_inference
chunked_inference._PART_SECONDS = -1
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.timeout(120)
def test_killed_in_the_middle_and_continued_it_gives_the_same_bytes(extracted, trained, tmp_path):
    run = copy(trained, tmp_path)
    command = [sys.executable, "-c", SCRIPT, ROOT / "scripts/extract_features.py", run.path, "--embeddings"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, env=environment, start_new_session=True, **quiet) as running:
        try:
            while running.poll() is None and not list(run.path.glob("fold0/features/*.parts/*/[!.]*.npy")):
                time.sleep(0.01)
            assert running.poll() is None
        finally:
            os.killpg(running.pid, signal.SIGKILL)
    assert not (run.features(1) / "test.parquet").exists()
    assert list(run.path.rglob("*.npy"))
    embeddings.extract(run, embeddings=True)
    assert contents(run.path) == contents(extracted.path)


def test_each_batch_goes_through_all_passes_and_parts_hold_what_they_made(tmp_path, monkeypatch):
    monkeypatch.setattr(chunked_inference, "_PART_SECONDS", -1)
    monkeypatch.setattr(chunked_inference, "_KEPT", 1)  # a batch at once
    ids = [f"ID_{number:02}" for number in range(7)]
    for number, id_ in enumerate(ids):
        np.save(tmp_path / f"{id_}.npy", np.full((4, 4, 1), number, np.uint8))
    options = {"image_dir": tmp_path, "suffix": ".npy", "batch_size": 3}
    samples = chunked_inference.DataGenerator(ids, tta=[None, lambda image, rng: image + np.uint8(100)], **options)
    image = keras.Input((4, 4, 1))
    mean = keras.layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, [mean, 2 * mean])

    def merge(passes):
        return np.concatenate([values for outputs in passes for values in outputs], axis=1)

    saved = chunked_inference.predict_parts(model, [samples.at_pass(k) for k in range(2)], tmp_path / "parts", merge)
    assert [path.name for path in saved] == ["000000000.npy", "000000003.npy", "000000006.npy"]
    merged = np.concatenate([read_part(path) for path in saved])
    n = np.arange(7)
    np.testing.assert_array_equal(merged, np.stack([n, 2 * n, n + 100, 2 * n + 200], axis=1))


# ------------------------------------------------------------------------------------------------ what cannot be


def test_embeddings_beyond_float16(trained, tmp_path):
    run = copy(trained, tmp_path)
    model = inference.load_model(run, 0)
    norm = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)][-1]
    norm.gamma.assign(norm.gamma * 1e7)
    model.save(run.fold(0) / "model.keras")
    with pytest.raises(IchError, match=r"fold 0's model gives embeddings beyond float16"):
        embeddings.extract(run, embeddings=True)


def test_a_run_that_is_not_finished_or_of_other_folds(trained, tmp_path):
    run = copy_data(trained, tmp_path)
    path = run.config.data.folds_path
    table = folds.read_folds(path)
    folds.write_folds(path, table.assign(fold=1 - table["fold"]))
    with pytest.raises(IchError, match="was trained on other folds than"):
        embeddings.extract(run, embeddings=True)
    (run.fold(1) / "oof.parquet").unlink()
    with pytest.raises(IchError, match=r"lacks fold\(s\) 1"):
        embeddings.extract(run, embeddings=True)


def test_files_that_are_damaged_or_of_each_other(extracted, tmp_path):
    run = copy(extracted, tmp_path)
    file = run.features(0) / "seen.npy"
    shutil.copy(run.features(1) / "seen.npy", file)  # the same shape
    with pytest.raises(IchError, match=r"seen.npy is damaged, or not of the slices that .*seen.parquet lists; delete"):
        embeddings.read(run.features(0), "seen")
    file.unlink()
    with pytest.raises(IchError, match=r"seen.npy is missing; delete .*--embeddings"):
        embeddings.read(run.features(0), "seen")


# ------------------------------------------------------------------------------------------------ honest stacking


def refused(run, match):
    with pytest.raises(IchError, match=match):
        inputs.inputs_from_runs([run.path], overrides=FAST)


def test_features_of_a_model_that_may_have_seen_the_patients_are_refused(extracted, tmp_path):
    """Fold 1's model was trained on what fold 0 held out. It takes the place of fold 0's."""
    run = copy(extracted, tmp_path)
    shutil.copy(run.fold(1) / "model.keras", run.fold(0) / "model.keras")
    embeddings.extract(run, embeddings=True)
    refused(run, r"fold0/features/oof.parquet is by another model than .*fold0/oof.parquet, so that it may have seen")


def test_features_of_the_other_fold_are_refused(extracted, tmp_path):
    run = copy(extracted, tmp_path)
    first, other, aside = run.features(0), run.features(1), tmp_path / "aside"
    first.rename(aside)
    other.rename(first)
    aside.rename(other)
    refused(run, "is by another model than")


def test_folds_drawn_anew_after_the_training_are_refused(extracted, tmp_path):
    run = copy_data(extracted, tmp_path)
    table = table_of(run)
    moved = table["PatientID"].isin(["ID_p0", "ID_p1"])
    folds.write_folds(run.config.data.folds_path, table.assign(fold=table["fold"].where(~moved, 1 - table["fold"])))
    config = run.config
    for k in range(2):  # as if predicted by these folds, which hides it from whoever looks at predictions alone
        predictions = read_predictions(run.oof_path)
        now = table_of(run)["fold"]
        path = run.fold(k) / "oof.parquet"
        write_predictions(predictions.loc[now.index[now == k]], path, read_provenance(path))
    overrides = [*FAST, f"data.images={config.data.images}", f"data.folds={config.data.folds_path}"]
    with pytest.raises(IchError, match=r"was (made with|trained on) other folds than"):
        inputs.inputs_from_runs([run.path], overrides=overrides)


def test_features_of_other_slices_or_made_in_two_ways_are_refused(extracted, tmp_path):
    run = copy(extracted, tmp_path / "fewer")
    path = run.features(1) / "oof.parquet"
    predictions = read_predictions(path)
    write_predictions(predictions.iloc[1:], path, read_provenance(path))
    refused(
        run, rf"oof.parquet is of other slices than it should be: {predictions.index[0]}; run scripts/extract_features"
    )

    run = copy(extracted, tmp_path / "two")
    embeddings.extract(asking(run, tta="flip"), embeddings=True)
    shutil.rmtree(run.features(1))
    shutil.copytree(extracted.features(1), run.features(1))
    refused(run, "were made in 2 ways")

    run = copy(extracted, tmp_path / "none")
    (run.features(1) / "seen.parquet").unlink()
    refused(run, r"fold1/features/seen.parquet is missing or has no embeddings")
    run = copy(extracted, tmp_path / "test")
    (run.features(0) / "test.parquet").unlink()
    refused(run, r"fold0/features/test.parquet is missing")


def test_each_network_learns_and_predicts_by_one_models_features_of_its_own_patients(extracted, tmp_path, monkeypatch):
    run = copy(extracted, tmp_path)
    table = table_of(run)
    calls, bare_train, bare_predict = [], train.rnn.train, train.rnn.predict

    def spy(name, bare):
        return lambda *arguments: [calls.append((name, *arguments)), bare(*arguments)][1]

    monkeypatch.setattr(train.rnn, "train", spy("train", bare_train))
    monkeypatch.setattr(train.rnn, "predict", spy("predict", bare_predict))
    overrides = [*(override for override in FAST if "rounds" not in override), "sequence.kind=recurrent"]
    train.train(inputs.inputs_from_runs([run.path], overrides=overrides), tmp_path / "runs")
    assert [call[0] for call in calls] == ["train", "predict"] * 2 + ["predict"] * 2
    for k in range(2):
        trained, held_out, test = calls[2 * k], calls[2 * k + 1], calls[4 + k]
        patients = [set(table.loc[ids, "PatientID"]) for ids in (trained[1].ids, held_out[2].ids)]
        assert not patients[0] & patients[1]
        assert patients[0] | patients[1] == set(table["PatientID"])
        np.testing.assert_array_equal(trained[2], table.loc[trained[1].ids, list(LABELS)])
        for scans in (trained[1], held_out[2], test[2]):
            for place in range(0, len(scans.ids), 5):
                logits, embedding = slow(run, k, scans.ids[place], "none")
                np.testing.assert_allclose(scans.logits[place], logits, rtol=1e-3, atol=1e-4)
                np.testing.assert_allclose(scans.embeddings[place], embedding, rtol=2e-3, atol=1e-3)


def test_what_does_not_go_with_embeddings(extracted, tmp_path):
    with pytest.raises(IchError, match="embeddings are of one run's models, and 2 runs were given"):
        inputs.inputs_from_runs([extracted.path] * 2, overrides=FAST)
    ids = [f"ID_{number}" for number in range(8)]
    table = pd.DataFrame({"SOPInstanceUID": ids, "PatientID": ids, "SeriesInstanceUID": ids, "z": 0.0})
    table[[*LABELS, *(f"score_{label}" for label in LABELS)]] = 0
    table.to_csv(tmp_path / "scores.csv", index=False)
    with pytest.raises(IchError, match=r"scores.csv is a table of scores, which has no embeddings"):
        inputs.inputs_from_table(tmp_path / "scores.csv", overrides=FAST, root=tmp_path)
    stage = inputs.inputs_from_table(tmp_path / "scores.csv", overrides=["folds.n=2"], root=tmp_path)
    assert stage.embedded is None
    assert stage.train.embeddings.shape == (8, 0)


# ------------------------------------------------------------------------------------------------ the second stage


def script(name, *arguments):
    runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"]([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def second(extracted, tmp_path_factory):
    """A second stage of kind blend, by the script, beside its first stage."""
    folder = tmp_path_factory.mktemp("second")
    run = copy(extracted, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        script("train_sequence", "runs/tiny", *(f"--set={override}" for override in FAST))
    return run, Run.open(folder / "runs/tiny-sequence")


def test_it_leaves_a_run_that_the_other_stages_take(second, tmp_path, monkeypatch, capsys):
    first, run = second
    assert read_score(run)["of_kinds"].keys() == {"recurrent", "boosting", "linear"}
    assert sorted(read_predictions(run.predictions_path).index) == sorted(TEST)
    rows = [f"{id}_{label},0.5" for id in TEST for label in LABELS]
    (tmp_path / "sample.csv").write_text("\n".join(["ID,Label", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    script("compare_runs", first.path, run.path)
    script("blend", first.path, run.path, "--out", "runs/blend")
    for result in (run.path, "runs/blend"):
        script("make_submission", result, "--sample-submission", "sample.csv")
    submitted = pd.read_csv("submissions/tiny-sequence.csv")["Label"].to_numpy().reshape(-1, 6)
    np.testing.assert_allclose(submitted, read_predictions(run.predictions_path).loc[TEST], atol=1e-6)
    assert Path("submissions/blend.csv").exists()


def test_trained_again_or_predicted_nothing_changes(second, monkeypatch):
    _, run = second
    before = contents(run.path)
    monkeypatch.setattr(train.rnn, "train", None)
    monkeypatch.setattr(train.rnn, "predict", None)
    monkeypatch.chdir(run.path.parents[1])
    script("train_sequence", "runs/tiny", *(f"--set={override}" for override in FAST))
    script("predict", "runs/tiny-sequence")
    assert contents(run.path) == before


def test_features_that_changed_are_refused(second, tmp_path):
    first, run = second
    shutil.copytree(run.path.parent, tmp_path / "runs")
    changed = Run(tmp_path / "runs/tiny", first.config)
    embeddings.extract(asking(changed, tta="flip"), embeddings=True)
    with pytest.raises(IchError, match="was trained with another section sequence, other folds or other scores"):
        train.train(inputs.inputs_from_runs([changed.path], overrides=FAST), tmp_path / "runs")


def test_a_test_set_that_comes_later_is_predicted_by_the_networks_that_are_there(second, tmp_path, monkeypatch):
    _, run = second
    shutil.copytree(run.path.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    expected = read_predictions(Path("runs/tiny-sequence/predictions_test.parquet"))
    for path in Path("runs").rglob("*test*.parquet"):
        if "sequence" in str(path):
            path.unlink()
    monkeypatch.setattr(train.rnn, "train", None)
    script("predict", "runs/tiny-sequence")
    actual = read_predictions(Path("runs/tiny-sequence/predictions_test.parquet"))
    pd.testing.assert_frame_equal(actual, expected)


def test_a_second_stage_predicts_only_what_its_first_has(second, tmp_path, monkeypatch):
    _, run = second
    shutil.copytree(run.path.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    path = Path("runs/tiny-sequence")
    with pytest.raises(IchError, match=r"--set predict\.tta has no effect on a second stage, which reads predictions"):
        script("predict", path, "--set", "predict.tta=flip")
    with pytest.raises(IchError, match=r"is a second stage, whose models read no images; give a run .*: runs/tiny$"):
        script("extract_features", path)
    with pytest.raises(SystemExit):
        script("predict", path, "--out", "elsewhere")
    Path("runs/tiny/predictions_test.parquet").unlink()
    with pytest.raises(
        IchError,
        match=r"the first stage of runs/tiny-sequence, has no test predictions; run scripts/predict.py runs/tiny$",
    ):
        script("predict", path)
    text = (path / "environment.json").read_text()
    Path("scores.csv").touch()
    (path / "environment.json").write_text(text.replace('"runs/tiny"', '"scores.csv"'))
    with pytest.raises(IchError, match=r"was trained on the table scores.csv, which has no test set"):
        script("predict", path)
