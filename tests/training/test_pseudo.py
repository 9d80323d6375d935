"""Pseudo-labels of a made-up run on the images of conftest, some of whose test slices are of patients of fold 0."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import TEST, TRAIN, make_images, tiny_config
from pydantic import ValidationError
from scipy.special import expit

from ich.competition import folds
from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError
from ich.files import sha256_of
from ich.images import slice_table
from ich.results.predictions import write_predictions
from ich.training import fold, fold_setup, pseudo
from ich.training.run_data import RunData, split_digest
from ich.training.run_directory import Run

# Of fold 0; of the test set alone; of nobody knows whom.
PATIENTS = ["ID_p0", "ID_p2", "ID_p0", "ID_new", "ID_new", "ID_new", None]
KNOWN = {0: TEST[3:6], 1: TEST[:6]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    path = tmp_path_factory.mktemp("home")
    make_images(path)
    table = slice_table.read_table(path / "images/slices.parquet").set_index("SOPInstanceUID")
    table["PatientID"] = table["PatientID"].astype(object)
    table.loc[TEST, "PatientID"] = PATIENTS
    table.loc[TEST, "SeriesInstanceUID"] = "ID_test"
    table["z"] = 5.0 * table["order"].astype(float)
    slice_table.write_table(table.reset_index(), path / "images/slices.parquet")
    make_run(path)
    return path


@pytest.fixture
def place(home, tmp_path):
    """A copy, to damage."""
    shutil.copytree(home, tmp_path / "copy")
    config = tmp_path / "copy/other/tiny/config.yaml"
    config.write_text(config.read_text().replace(str(home), str(tmp_path / "copy")))
    return tmp_path / "copy"


def make_run(path, **sections):
    """other/tiny, whose models gave each test slice logits of their own number."""
    config = tiny_config(path, predict={"tta": ["none", "flip"]}, **sections)
    run = Run.begin(config, path / "other")
    data = RunData(config)
    run.claim("tensorflow", ["cpu:0"], data.trained_on)
    for k in range(2):
        run.passes(k).mkdir(parents=True)
        (run.fold(k) / "model.keras").write_bytes(b"model %d" % k)
        digest = sha256_of(run.fold(k) / "model.keras")
        held_out = data.folds.index[data.folds["fold"] == k]
        write_predictions(frame_of(held_out, 0.5), run.fold(k) / "oof.parquet", {"model": digest})
        for tta in ("none", "flip"):
            provenance = {"model": digest, "slices": split_digest(data.slices, "test"), "pass": tta}
            write_predictions(logits_of(k, tta), run.passes(k) / f"test-{tta}.parquet", provenance)
    return run


def frame_of(ids, value):
    return pd.DataFrame(np.float32(value), pd.Index(ids, name=INDEX_NAME), list(LABELS))


def logits_of(k, tta):
    rng = np.random.default_rng([k, tta == "flip"])
    return frame_of(TEST, 0) + rng.normal(0, 2, (len(TEST), 6)).astype(np.float32)


def with_pseudo(path, **sections):
    train = {"pseudo": path / "other/tiny", "pseudo_weight": 0.25, "augment": "none"} | sections.pop("train", {})
    return tiny_config(path, train=train, **sections)


def read(config, k=0):
    return pseudo.read(config, RunData(config), k)


@pytest.mark.parametrize("k", [0, 1])
def test_a_fold_learns_from_the_model_that_has_not_seen_its_patients(home, k):
    result = read(with_pseudo(home), k)
    expected = (expit(logits_of(k, "none")) + expit(logits_of(k, "flip"))) / 2
    pd.testing.assert_frame_equal(result.joined.labels, expected.loc[KNOWN[k]], rtol=1e-6)
    other = (expit(logits_of(1 - k, "none")) + expit(logits_of(1 - k, "flip"))) / 2
    assert (np.abs(result.joined.labels - other.loc[KNOWN[k]]) > 1e-3).any(axis=None)


def test_patients_whom_the_fold_holds_out_are_left_out_counted_and_named(home):
    of_fold = [read(with_pseudo(home), k).joined for k in range(2)]
    table = folds.read_folds(home / "folds.csv")
    for k, joined in enumerate(of_fold):
        held_out = set(table.loc[table["fold"] == k, "PatientID"])
        patients = dict(zip(TEST, PATIENTS, strict=True))
        assert {patients[id] for id in joined.labels.index} == {"ID_p0", "ID_p2", "ID_new"} - held_out
    unknown = "left out: 1 test slice(s) without a PatientID: the fold may hold them out"
    assert of_fold[0].notes == (
        "left out: 3 test slice(s) of 2 patient(s) (ID_p0, ID_p2), whom the fold holds out",
        unknown,
    )
    assert of_fold[1].notes == ("left out: 0 test slice(s) of 0 patient(s), whom the fold holds out", unknown)


def test_the_audit_is_the_same_for_every_fold_and_names_what_it_proves(home):
    config = with_pseudo(home)
    first, second = (read(config, k).audit for k in range(2))
    assert first == second == json.loads(json.dumps(first))
    run, data = home / "other/tiny", RunData(config)
    assert first["folds_sha256"] == sha256_of(home / "folds.csv")
    assert first["models"] == [sha256_of(run / f"fold{k}/model.keras") for k in range(2)]
    assert first["test_slices"] == 7
    assert first["test_sha256"] == split_digest(data.slices, "test")
    assert (first["tta"], first["mean"]) == (["none", "flip"], "probability")
    assert first["left_out"] == [{"held_out": 3, "without_patient": 1}, {"held_out": 0, "without_patient": 1}]


@pytest.mark.parametrize("scan", [None, {"slices": 4, "units": 4}])
def test_batches_hold_soft_labels_of_test_images_with_their_weight(home, scan):
    config = with_pseudo(home, model={"neighbours": [0, 1], "scan": scan}, train={"batch_size": 64})
    data, result = RunData(config), read(with_pseudo(home))
    train, held_out = fold_setup.generators(config, data.folds, data.slices, 0, 1, [result.joined])
    own = [id_ for number, id_ in enumerate(TRAIN) if number // 4 % 2]
    assert sorted(train.ids) == sorted(own + KNOWN[0])
    assert set(held_out.ids) == set(TRAIN) - set(own)
    x, labels, weights = train[0]
    images = x if scan is None else x["image"][weights > 0]
    assert images.max(axis=(1, 2)).min() > 0  # there is no padding among them
    labels, weights = labels[weights > 0], weights[weights > 0]
    ids = train.ids_of(0)
    assert len(ids) == len(labels) == len(images) == len(own) + 3
    for id, label, weight in zip(ids, labels, weights, strict=True):
        if id in own:
            assert (weight, label.tolist()) == (1, data.folds.loc[id, list(LABELS)].tolist())
        else:
            assert weight == 0.25
            np.testing.assert_allclose(label, result.joined.labels.loc[id])


def test_a_training_reports_and_records_them_and_goes_on_with_the_same_alone(place, tmp_path, monkeypatch, capsys):
    run = Run.begin(with_pseudo(place), tmp_path / "runs")
    monkeypatch.setattr(fold, "_fit", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fold.train_fold(run, 0)
    printed = capsys.readouterr().out
    assert "fold 0: 15 slices to train on, 12 held out" in printed
    line = f"fold 0: of these to train on, 3 test slices labeled by model 0 of {place}/other/tiny with the weight 0.25"
    assert line in printed
    assert "fold 0: left out: 3 test slice(s) of 2 patient(s) (ID_p0, ID_p2), whom the fold holds out\n" in printed
    assert run.environment()["pseudo"] == read(run.config).audit
    path = place / "other/tiny/fold1/passes/test-none.parquet"
    provenance = {"model": sha256_of(place / "other/tiny/fold1/model.keras"), "pass": "none"}
    provenance["slices"] = split_digest(RunData(run.config).slices, "test")
    write_predictions(logits_of(1, "none") + 1, path, provenance)
    with pytest.raises(IchError, match=r"was trained on other pseudo-labels than .*other/tiny now gives; restore them"):
        fold.train_fold(run, 0)


def test_a_run_of_other_folds_is_refused(place):
    table = folds.read_folds(place / "folds.csv")
    folds.write_folds(place / "folds.csv", table.assign(fold=1 - table["fold"]))
    with pytest.raises(IchError, match="was made with other folds than"):
        read(with_pseudo(place))


def test_unfinished_runs_blends_and_second_stages_are_refused(place):
    run = place / "other/tiny"
    facts = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(facts | {"first_stage": ["runs/a"]}))
    with pytest.raises(IchError, match=r"is a second stage: .*model k alone labels for fold k"):
        read(with_pseudo(place))
    (run / "environment.json").write_text(json.dumps(facts))
    (run / "fold1/oof.parquet").unlink()
    with pytest.raises(IchError, match=r"lacks fold\(s\) 1"):
        read(with_pseudo(place))
    (run / "config.yaml").write_text("blend: {runs: [runs/a, runs/b]}")
    with pytest.raises(IchError, match=r"is a blend: .*mean over all folds"):
        read(with_pseudo(place))
    with pytest.raises(IchError, match="nowhere does not exist"):
        read(with_pseudo(place, train={"pseudo": place / "nowhere"}))


def test_weights_chosen_on_held_out_patients_are_refused(place):
    config = place / "other/tiny/config.yaml"
    config.write_text(config.read_text().replace("keep: last", "keep: best"))
    with pytest.raises(IchError, match=r"train\.keep=best: its model k was chosen on the patients that fold k holds"):
        read(with_pseudo(place))


def test_shifted_probabilities_are_reported(place):
    config = place / "other/tiny/config.yaml"
    config.write_text(config.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.1"))
    environment = place / "other/tiny/environment.json"
    facts = {key: value for key, value in json.loads(environment.read_text()).items() if key != "corrects_loss"}
    environment.write_text(json.dumps(facts))
    assert read(with_pseudo(place)).joined.notes[-1].startswith("train.label_smoothing of ")
    environment.write_text(json.dumps(facts | {"corrects_loss": True}))
    assert "smoothing" not in " ".join(read(with_pseudo(place)).joined.notes)


def test_predictions_of_other_models_or_slices_are_refused(place):
    run, config = place / "other/tiny", with_pseudo(place)
    file = run / "fold1/passes/test-flip.parquet"  # of a fold that is not being trained
    digest = sha256_of(run / "fold1/model.keras")
    good = {"model": digest, "slices": split_digest(RunData(config).slices, "test"), "pass": "flip"}
    write_predictions(logits_of(1, "flip"), file, good | {"model": "another"})
    with pytest.raises(IchError, match=r"test-flip\.parquet is not by the model in .*fold1; run scripts/predict\.py"):
        read(config)
    write_predictions(logits_of(1, "flip"), file, good | {"slices": "others"})
    with pytest.raises(IchError, match=r"is of other test slices than .*images holds"):
        read(config)
    file.unlink()
    with pytest.raises(IchError, match=r"test-flip\.parquet is missing or damaged; run scripts/predict\.py"):
        read(config)
    write_predictions(logits_of(1, "flip"), file, good)
    read(config)
    (run / "fold1/model.keras").write_bytes(b"of fold 0")
    with pytest.raises(IchError, match=r"fold1/oof\.parquet is not what the model beside it gives"):
        read(config)


def test_a_model_that_held_out_other_slices_is_refused(place):
    file = place / "other/tiny/fold0/oof.parquet"
    digest = sha256_of(file.with_name("model.keras"))
    write_predictions(frame_of(TRAIN, 0.5), file, {"model": digest})
    with pytest.raises(IchError, match=r"oof\.parquet is not what the model beside it gives of the slices that fold 0"):
        read(with_pseudo(place))


def test_a_test_set_that_is_none_is_refused(place):
    table = slice_table.read_table(place / "images/slices.parquet")
    lone = table.assign(PatientID=np.where(table["split"] == "test", "ID_p0", table["PatientID"]))
    slice_table.write_table(lone, place / "images/slices.parquet")
    with pytest.raises(IchError, match=r"fold 0: no test slice is left to be labeled"):
        read(with_pseudo(place))
    mixed = table.assign(split=np.where(table["SOPInstanceUID"] == TRAIN[5], "test", table["split"]))
    slice_table.write_table(mixed, place / "images/slices.parquet")
    with pytest.raises(IchError, match=rf"folds\.csv lists test slices: {TRAIN[5]}"):
        read(with_pseudo(place))
    slice_table.write_table(table[table["split"] == "train"], place / "images/slices.parquet")
    with pytest.raises(IchError, match="holds no test slices, which"):
        read(with_pseudo(place))


def test_what_does_not_go_together_in_a_config_is_refused(home):
    with pytest.raises(ValidationError, match=r"train\.positive_share is set too"):
        with_pseudo(home, train={"positive_share": 0.5})
    with pytest.raises(ValidationError, match=r"needs train\.pseudo"):
        tiny_config(home, train={"pseudo_weight": 0.5})
