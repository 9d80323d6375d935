import json
import subprocess
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import in_use
from scipy.special import logit

from ich.competition import folds, metrics
from ich.competition.labels import INDEX_NAME, LABELS
from ich.config import Config, load
from ich.dicom.windows import Window, preset
from ich.errors import IchError
from ich.images import convert, slice_table
from ich.images.render import Settings
from ich.results import environment
from ich.results.predictions import read_predictions, write_predictions
from ich.training.results_folder import with_results_in
from ich.training.run_data import DIGESTED, RunData, read_slices, slices_digest
from ich.training.run_directory import Run
from ich.training.run_score import read_score, score_run

COUNT = 12


def fold_table(seed=0):
    """Twelve slices of six patients in two folds."""
    labels = np.random.default_rng(seed).integers(0, 2, (COUNT, 6), dtype=np.int8)
    labels[:, 5] = labels[:, :5].max(axis=1)
    table = pd.DataFrame(
        labels, columns=list(LABELS), index=pd.Index([f"ID_{k:03x}" for k in range(COUNT)], name=INDEX_NAME)
    )
    return table.assign(PatientID=[f"ID_p{k // 2}" for k in range(COUNT)], fold=[k // 2 % 2 for k in range(COUNT)])


def write_images(folder, crc=0, test=0):
    """A slice table of the twelve slices and some of a test set, and the settings that go with it; no PNGs."""
    rows = [
        {"SOPInstanceUID": id, "split": "train", "status": "ok", "size": 9, "crc": crc} for id in fold_table().index
    ]
    rows += [{"SOPInstanceUID": f"ID_t{k}", "split": "test", "status": "ok", "size": 9} for k in range(test)]
    slice_table.write_table(slice_table.to_frame(rows), folder / "slices.parquet")
    settings = {"windows": [{"center": 40, "width": 80}], "size": None, "fit": "pad", "crop": False}
    (folder / "settings.json").write_text(json.dumps(settings | {"files": "channels"}))


@pytest.fixture
def config(tmp_path):
    folds.write_folds(tmp_path / "folds.csv", fold_table())
    write_images(tmp_path / "images")
    return Config.model_validate(
        {
            "name": "one",
            "data": {"sources": tmp_path / "a.zip", "images": tmp_path / "images", "folds": tmp_path / "folds.csv"},
            "folds": {"n": 2},
        }
    )


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def begun(config, root):
    run = Run.begin(config, root)
    run.claim("tensorflow", ["cpu:0"], RunData(run.config).digests)
    return run


def changed(config, **sections):
    content = config.model_dump(mode="json")
    for section, values in sections.items():
        content[section] |= values
    return Config.model_validate(content)


def some_predictions(table, seed=0):
    values = np.random.default_rng(seed).random((len(table), 6), dtype=np.float32)
    return pd.DataFrame(values, index=table.index, columns=list(LABELS))


# ------------------------------------------------------------------------------------------- whose directory it is


@pytest.mark.parametrize("name", [".viminfo.1", "fold0", "environment.json", "oof.parquet"])
def test_a_directory_of_other_things_is_left_alone(config, root, name):
    (root / "one").mkdir(parents=True)
    (root / "one" / name).write_text("{}")
    for attempt in (
        lambda: Run.begin(config, root),
        lambda: Run(root / "one", config).claim("jax", [], {}),
    ):
        with pytest.raises(IchError, match=rf"one holds {name} and lacks a readable environment\.json of a run"):
            attempt()
    assert [(path.name, path.read_text()) for path in (root / "one").iterdir()] == [(name, "{}")]


def test_a_run_without_its_config_is_refused_but_one_that_a_kill_has_stopped_is_not(config, root):
    run = begun(config, root)
    run.config_path.unlink()  # written last
    begun(config, root)
    run.config_path.unlink()
    run.oof_path.touch()
    with pytest.raises(IchError, match=r"one holds oof\.parquet without the config\.yaml that made them; restore it"):
        Run.begin(config, root)


def test_folds_of_the_user_alone_make_no_run_of_a_folder(config, root):
    (root / "one").mkdir(parents=True)
    folds.write_folds(root / "one" / "folds.csv", fold_table())
    before = (root / "one" / "folds.csv").read_bytes()
    with pytest.raises(IchError, match=r"one holds folds\.csv and lacks a readable environment\.json of a run"):
        Run.begin(config, root)
    assert [(path.name, path.read_bytes()) for path in (root / "one").iterdir()] == [("folds.csv", before)]


def test_a_second_stage_and_a_blend_are_no_runs_to_train(config, root):
    run = begun(config, root)
    run.environment_path.write_text(json.dumps(run.environment() | {"first_stage": ["runs/a"]}))
    with pytest.raises(IchError, match=r"one is a second stage, expected a run of this config; .*another name"):
        Run.begin(config, root)
    run.config_path.write_text("blend: {runs: [a, b]}")
    with pytest.raises(IchError, match=r"one is a blend, expected a run of this config; .*another name"):
        Run.begin(config, root)


def test_folds_are_trained_side_by_side_but_each_by_one(config, root):
    run = begun(config, root)
    with in_use(run.path, fold=0):
        with pytest.raises(IchError, match=r"one is in use by process"), run.locked(0):
            pytest.fail("two processes have the fold")
        with run.locked(1):
            run.claim("tensorflow", ["cpu:0"], RunData(run.config).digests)
            run.restart(1)
    with in_use(run.path), pytest.raises(IchError, match="in use"), run.locked():
        pytest.fail("two processes have the directory")


def test_what_is_written_for_all_folds_waits_for_another_process(config, root):
    run = begun(config, root)
    run.oof_path.touch()
    with in_use(run.path) as other:
        threading.Timer(0.5, other.kill).start()
        run.forget_results()
    assert not run.oof_path.exists()


def test_a_new_training_of_a_fold_removes_what_is_ours_alone(config, root):
    run = begun(config, root)
    ours = ["passes/oof-none.parquet", "passes/test-flip.parts/0123456789abcdef/000000000.npy", "features/seen.npy"]
    others = ["passes/notes.txt", "features/mine.npy", "passes/test-none.parts/0123456789abcdef/mine.npy"]
    for name in (*ours, *others):
        path = run.fold(0) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run.restart(0)
    assert sorted(str(p.relative_to(run.fold(0))) for p in run.fold(0).rglob("*") if p.is_file()) == sorted(others)
    assert not (run.fold(0) / "passes/test-flip.parts").exists()


def test_begin_writes_nothing_and_claim_writes_config_and_environment(config, root):
    run = Run.begin(config, root)
    assert run.path == root / "one"
    assert not root.exists()
    run.claim("tensorflow", ["cpu:0"], RunData(run.config).digests)
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "environment.json"]
    assert load(run.config_path) == config
    facts = json.loads(run.environment_path.read_text())
    assert facts["packages"]["keras"]
    assert (facts["backend"], facts["devices"]) == ("tensorflow", ["cpu:0"])
    assert len(facts["folds_sha256"]) == len(facts["images_sha256"]) == 64


def test_begun_again_it_goes_on_and_rewrites_nothing(config, root):
    run = begun(config, root)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.path.iterdir()}
    begun(config, root)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.path.iterdir()} == before


def test_another_machine_may_go_on_and_uses_its_own_section(config, root):
    begun(config, root)
    other = changed(config, machine={"workers": 1, "processes": True, "jobs": 2})
    assert begun(other, root).config.machine.processes is True


def test_another_config_is_refused_with_the_difference(config, root):
    begun(config, root)
    other = changed(config, train={"epochs": 99}, model={"name": "small_cnn"})
    with pytest.raises(IchError) as caught:
        Run.begin(other, root)
    message = str(caught.value)
    assert "belongs to another config (its own / this one: " in message
    assert "model.name: EfficientNetV2B0 / small_cnn; train.epochs: 6 / 99)" in message
    assert "give this one another name, or delete the directory" in message


def test_other_folds_are_refused(config, root):
    run = begun(config, root)
    folds.write_folds(config.data.folds_path, fold_table(seed=1))
    with pytest.raises(
        IchError, match=r"was trained on other folds than .*images and .*folds.csv now hold; restore them"
    ):
        Run.begin(config, root)
    folds.write_folds(config.data.folds_path, fold_table())
    assert Run.begin(config, root).path == run.path


def test_other_images_are_refused_and_the_same_in_another_place_are_not(config, root, tmp_path):
    begun(config, root)
    write_images(tmp_path / "elsewhere")
    begun(changed(config, data={"images": str(tmp_path / "elsewhere")}), root)
    write_images(tmp_path / "images", crc=1)
    with pytest.raises(IchError, match="was trained on other images than"):
        Run.begin(config, root)


def test_two_that_begin_at_once_do_not_both_own_the_directory(config, root):
    first, second = (
        Run.begin(config, root),
        Run.begin(changed(config, train={"epochs": 9}), root),
    )
    first.claim("tensorflow", ["cpu:0"], RunData(first.config).digests)
    with pytest.raises(IchError, match="belongs to another config"):
        second.claim("tensorflow", ["cpu:0"], RunData(second.config).digests)


def test_a_restart_removes_what_an_earlier_model_predicted(config, root):
    run = begun(config, root)
    stale = [run.passes(1) / "test-none.parquet", run.oof_path, run.score_path, run.predictions_path]
    kept = run.passes(0) / "test-none.parquet"
    for path in (*stale, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    run.restart(1)
    assert kept.exists()
    assert not any(path.exists() for path in stale)


def test_only_places_and_machines_can_be_set_on_a_finished_run(config, root):
    run = begun(config, root)
    opened = Run.open(run.path, ["data.images=elsewhere", "predict.batch_size=3", "machine.workers=1"])
    assert (opened.config.data.images, opened.config.predict.batch_size) == (Path("elsewhere"), 3)
    with pytest.raises(IchError, match=r"train.epochs: 6 / 2\); only the sections data, predict, sequence and"):
        Run.open(run.path, ["train.epochs=2"])


def test_other_folds_cannot_be_set_on_a_finished_run(config, root, tmp_path):
    """Nothing asks for them once all folds are predicted."""
    run = begun(config, root)
    folds.write_folds(tmp_path / "same.csv", fold_table())
    assert Run.open(run.path, [f"data.folds={tmp_path / 'same.csv'}"]).config.data.folds.name == "same.csv"
    folds.write_folds(tmp_path / "other.csv", fold_table(seed=1))
    with pytest.raises(IchError, match=r"was trained on other folds than .*other.csv now hold"):
        Run.open(run.path, [f"data.folds={tmp_path / 'other.csv'}"])


def test_the_slices_of_another_folder_are_the_runs_own_or_refused(config, root, tmp_path):
    config = changed(config, data={"images": str(tmp_path / "both")})
    write_images(tmp_path / "both", test=3)
    run = begun(config, root)
    run.check_same_slices()

    def at(name, **how):
        write_images(tmp_path / name, **how)
        return Run.open(run.path, [f"data.images={tmp_path / name}"])

    at("moved", test=3).check_same_slices()
    with pytest.raises(IchError, match=r"less holds other test slices than .*one is of, whose results they would repl"):
        at("less", test=2).check_same_slices()
    with pytest.raises(IchError, match=r"others holds other train slices than"):
        at("others", test=3, crc=1).check_same_slices()
    # The run's own images are gone: what it has predicted counts, and nothing more is known before.
    (tmp_path / "both/slices.parquet").unlink()
    at("less", test=2).check_same_slices()
    test = slice_table.readable(read_slices(at("moved", test=3).config, DIGESTED), "test")
    provenance = {"slices": slices_digest(test)}
    write_predictions(some_predictions(test), run.passes(0) / "test-none.parquet", provenance)
    at("moved", test=3).check_same_slices()
    with pytest.raises(IchError, match="less holds other test slices"):
        at("less", test=2).check_same_slices()


def test_a_run_knows_how_it_predicted_last(config, root, tmp_path):
    run = begun(config, root)
    given = Run.open(run.path, ["predict.mean=logit"])
    other = with_results_in(given, tmp_path / "out")
    assert load(other.config_path).predict.mean == "probability"  # until the predictions are made
    other.keep_predict(given.config.predict)
    assert load(other.config_path).predict.mean == "logit"
    assert load(run.config_path).predict.mean == "probability"
    assert Run.open(run.path, results=other.path).config.predict.mean == "logit"
    assert Run.open(run.path, ["predict.mean=probability"], other.path).config.predict.mean == "probability"
    assert Run.open(run.path, ["predict.batch_size=3"], other.path).config.predict.mean == "logit"
    with_results_in(run, other.path)
    assert load(other.config_path).predict.mean == "logit"
    assert Run.open(run.path, results=tmp_path / "nowhere").config.predict.mean == "probability"
    before = other.config_path.stat().st_mtime_ns
    other.keep_predict(given.config.predict)
    assert other.config_path.stat().st_mtime_ns == before


def test_the_score_is_read_back_and_a_damaged_one_is_reported(config, root):
    run = begun(config, root)
    with pytest.raises(IchError, match="lacks fold"):
        read_score(run)
    score = {"weighted_log_loss": 0.1, "of_prevalence": 0.2, "plain_weighted_log_loss": 0.3}
    run.score_path.write_text(json.dumps(score))
    assert read_score(run)["weighted_log_loss"] == 0.1
    run.score_path.write_text("{}")
    with pytest.raises(IchError, match="lacks fold"):
        read_score(run)
    run.score_path.write_text("{")
    with pytest.raises(IchError, match=r"score.json, which holds the out-of-fold score, cannot be read"):
        read_score(run)


def test_without_folds_nothing_begins(config, root):
    config.data.folds_path.unlink()
    with pytest.raises(IchError, match=r"cannot read .*folds.csv: No such file .*; make it with scripts/make_folds.py"):
        Run.begin(config, root)
    assert not root.exists()


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_run_that_does_not_tell_its_folds_is_refused(config, root, content):
    run = begun(config, root)
    if content is None:
        run.environment_path.unlink()
    else:
        run.environment_path.write_text(content)
    with pytest.raises(IchError, match=r"one holds config\.yaml.* and lacks a readable environment\.json of a run"):
        Run.begin(config, root)


def test_open_reads_the_runs_own_config(config, root):
    begun(config, root)
    assert Run.open(root / "one").config == config


def test_open_what_is_no_run(tmp_path):
    with pytest.raises(IchError, match=r"has no config.yaml, as every result of train_kfold, .*: restore it"):
        Run.open(tmp_path)


# ------------------------------------------------------------------------------------------- score


def finish(run, table, predictions):
    for k in range(2):
        write_predictions(predictions[(table["fold"] == k).to_numpy()], run.fold(k) / "oof.parquet")


def test_score_is_the_metric_of_all_slices_in_the_order_of_the_folds_file(config, root):
    run, table = begun(config, root), fold_table()
    predictions = some_predictions(table)
    finish(run, table, predictions.sample(frac=1, random_state=0).reindex(table.index))
    score = score_run(run)
    assert score["weighted_log_loss"] == pytest.approx(metrics.weighted_log_loss(table[list(LABELS)], predictions))
    assert score["of_prevalence"] == pytest.approx(metrics.prevalence_log_loss(table[list(LABELS)]))
    assert list(score["by_label"]) == list(LABELS)
    assert score["slices"] == COUNT
    assert score["prevalence"] == pytest.approx(table[list(LABELS)].mean().to_dict())
    assert score["plain_weighted_log_loss"] == score["weighted_log_loss"]
    assert json.loads(run.score_path.read_text()) == score
    pd.testing.assert_frame_equal(read_predictions(run.oof_path), predictions)


def test_a_score_has_the_shift_of_a_loss_and_the_interval_of_the_passes(config, root):
    run, table = begun(changed(config, train={"loss": "focal", "label_smoothing": 0.1}), root), fold_table()
    facts = run.environment()
    assert facts.pop("corrects_loss")
    predictions, plain = some_predictions(table), some_predictions(table) / 2
    for k in (0, 1):
        held_out = table["fold"] == k
        write_predictions(predictions[held_out], run.fold(k) / "oof.parquet", {"tta": ["flip"], "mean": "logit"})
        write_predictions(logit(plain[held_out]), run.passes(k) / "oof-none.parquet")
    assert "shift" not in score_run(run)  # the models correct it
    run.environment_path.write_text(json.dumps(facts))  # of an earlier version, whose models do not
    score = score_run(run)
    assert score["shift"]["causes"] == ["train.loss=focal", "train.label_smoothing"]
    for label in LABELS:
        expected = {"predicted": predictions[label].mean(), "found": table[label].mean()}
        assert score["shift"]["labels"][label] == pytest.approx(expected)
    gain = score["weighted_log_loss"] - score["plain_weighted_log_loss"]
    low, high = score["plain_interval"]
    assert low < gain < high
    assert json.loads(run.score_path.read_text()) == score
    run.environment_path.write_text(json.dumps(facts | {"first_stage": ["runs/a"]}))
    assert "shift" not in score_run(run)  # a second stage has a loss of its own


def test_a_missing_fold_is_reported_before_anything_is_written(config, root):
    run, table = begun(config, root), fold_table()
    write_predictions(some_predictions(table)[:6], run.fold(1) / "oof.parquet")
    assert run.finished_folds() == [1]
    with pytest.raises(IchError, match=r"lacks fold\(s\) 0; train them first"):
        score_run(run)
    assert not run.score_path.exists()


def test_folds_predicted_in_two_ways_are_not_scored(config, root):
    run, table = begun(config, root), fold_table()
    for k, names in enumerate((["none"], ["none", "flip"])):
        part = some_predictions(table)[(table["fold"] == k).to_numpy()]
        write_predictions(part, run.fold(k) / "oof.parquet", {"tta": names, "mean": "logit"})
    with pytest.raises(IchError, match=r"were made in two ways \(fold 0: .*'none'\].*, fold 1: .*'flip'\].*predict.py"):
        score_run(run)
    assert not run.score_path.exists()


def test_passes_that_a_training_would_not_make_any_more_are_refused(config, root):
    run, table = begun(config, root), fold_table()
    part = some_predictions(table)[(table["fold"] == 0).to_numpy()]
    write_predictions(part, run.fold(0) / "oof.parquet", {"tta": ["none"], "mean": "probability"})
    run.check_passes()
    other = Run.begin(changed(config, predict={"tta": ["none", "flip"]}), root)
    with pytest.raises(IchError, match=r"fold 0 of .* is trained and predicted by .*'none'\], .*, not .*'flip'\]"):
        other.check_passes()
    run.restart(0)
    write_predictions(part, run.fold(0) / "oof.parquet")  # which does not say
    other.check_passes()


@pytest.mark.parametrize("spoil", ["missing", "foreign", "twice"])
def test_predictions_of_other_slices_are_not_scored(config, root, spoil):
    run, table = begun(config, root), fold_table()
    predictions = some_predictions(table)
    finish(run, table, predictions)
    part = predictions[(table["fold"] == 0).to_numpy()]
    spoilt = {
        "missing": part[1:],
        "foreign": part.rename(index={part.index[0]: "ID_fff"}),
        "twice": part.rename(index={part.index[0]: part.index[1]}),
    }[spoil]
    write_predictions(spoilt, run.fold(0) / "oof.parquet")
    with pytest.raises(IchError, match=r"out-of-fold predictions, .*folds.csv lists 12 slices, and they are not the s"):
        score_run(run)
    assert not run.score_path.exists()
    assert not run.oof_path.exists()


# ------------------------------------------------------------------------------------------- settings of the images


def test_settings_are_the_configs(config):
    section = {"windows": ["brain", {"center": 1, "width": 2}, "bone"], "size": 64, "fit": "stretch"}
    settings = Settings.of(changed(config, preprocess=section).preprocess)
    assert settings == convert.Settings((preset("brain"), Window(1, 2), preset("bone")), 64, "stretch")


def test_an_unknown_window_is_refused_with_the_list(config):
    with pytest.raises(IchError, match="no window is called 'brian'; there are brain, subdural"):
        Settings.of(changed(config, preprocess={"windows": ["brian"]}).preprocess)


def test_images_of_other_settings_are_refused(config):
    assert len(read_slices(config)) == COUNT
    with pytest.raises(IchError, match=r"holds images of other settings \(size: None there, 64 here\)"):
        read_slices(changed(config, preprocess={"size": 64}))
    with pytest.raises(IchError, match=r"nowhere/slices.parquet does not exist .*; run scripts/preprocess.py"):
        read_slices(changed(config, data={"images": "nowhere"}))


# ------------------------------------------------------------------------------------------- environment


def test_environment_is_plain_and_names_the_commit():
    facts = json.loads(json.dumps(environment.environment()))
    assert {"python", "packages", "commit", "platform", "cpu", "cpus", "memory_gib", "gpus"} == set(facts)
    assert facts["cpu"]
    assert facts["memory_gib"] > 0.1
    inside = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    if inside.returncode == 0:
        assert facts["commit"].removesuffix("-dirty") == inside.stdout.strip()
    assert yaml.safe_load(yaml.safe_dump(facts)) == facts


def test_environment_outside_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert environment.environment()["commit"] is None


def test_environment_without_git_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.environment()["commit"] is None


def test_environment_with_another_package_in_ones_place(monkeypatch):
    monkeypatch.setattr(environment, "_PACKAGES", ("numpy", "no-such-package-at-all"))
    assert environment.environment()["packages"] == {"numpy": np.__version__, "no-such-package-at-all": None}


def test_environment_names_the_gpus_that_the_driver_knows(tmp_path, monkeypatch):
    device = "NVIDIA H200, 143771 MiB, 570.86"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{device}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.environment()["gpus"] == [device]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")  # a driver that does not answer
    assert environment.environment()["gpus"] == []
    monkeypatch.setenv("PATH", "")
    assert environment.environment()["gpus"] == []


def test_a_blend_is_no_run_to_predict_with(tmp_path):
    (tmp_path / "config.yaml").write_text("{blend: {runs: [runs/a, runs/b]}}")
    with pytest.raises(
        IchError, match=r"is a blend, without models of its own; give its members \(runs/a, runs/b\) one"
    ):
        Run.open(tmp_path)
