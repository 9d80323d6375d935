"""The second stage as a run, on a small table of scores and on a first stage made up of files."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import in_use, table_of_scores
from scipy.special import expit

from ich.competition import folds
from ich.competition.labels import INDEX_NAME, LABELS
from ich.config import Config
from ich.errors import IchError
from ich.images import convert, slice_table
from ich.images.render import Settings
from ich.results.predictions import read_predictions, write_predictions
from ich.results.result_directory import check_alike
from ich.second_stage import inputs, scan_features, scans, train
from ich.second_stage.fitted import SecondStage
from ich.second_stage.trees import Trees
from ich.training.run_data import RunData
from ich.training.run_directory import Run
from ich.training.run_score import read_score, score_run

pytestmark = pytest.mark.usefixtures("eager")

FAST = [
    "sequence.seeds=1",
    "sequence.width=8",
    "sequence.units=0",
    "sequence.dilations=[1]",
    "sequence.epochs=2",
    "sequence.window=12",
    "sequence.rounds=40",
    "sequence.tree_rate=0.15",
]


def first_stage(folder, test=True):
    """A finished run of two folds with the files that a first stage leaves, and its images' slice table."""
    table, unseen = table_of_scores(), table_of_scores(6, seed=1)
    unseen[["PatientID", "SeriesInstanceUID"]] += "t"
    images = folder / "images"
    rows = [
        {**row, "split": split, "status": "ok", "size": 1, "crc": 1}
        for split, frame in (("train", table), ("test", unseen))
        for row in frame[[INDEX_NAME, "PatientID", "SeriesInstanceUID", "z"]].to_dict("records")
    ]
    slice_table.write_table(slice_table.to_frame(rows), images / "slices.parquet")
    data = {"sources": folder / "a.zip", "images": images}
    config = Config.model_validate({"name": "first", "data": data, "folds": {"n": 2}})
    (images / "settings.json").write_text(json.dumps(convert._as_json(Settings.of(config.preprocess))))
    folded = folds.make_folds(table.set_index(INDEX_NAME), 2)
    folds.write_folds(config.data.folds_path, folded)
    run = Run.begin(config, folder / "runs")
    run.claim("tensorflow", ["cpu:0"], RunData(run.config).digests)
    predictions = probabilities(table)
    for k in (0, 1):
        write_predictions(predictions[folded["fold"] == k], run.fold(k) / "oof.parquet")
    score_run(run)
    if test:
        write_predictions(probabilities(unseen), run.predictions_path)
    return run


def probabilities(table):
    values = expit(table[[f"score_{label}" for label in LABELS]].to_numpy())
    return pd.DataFrame(values, index=pd.Index(table[INDEX_NAME], name=INDEX_NAME), columns=list(LABELS))


@pytest.fixture(scope="module")
def blended(tmp_path_factory):
    """A second stage of kind blend on a first stage with test predictions; its root, run and facts."""
    folder = tmp_path_factory.mktemp("blend")
    run = first_stage(folder)
    second, facts = train.train(inputs.inputs_from_runs([run.path], overrides=FAST), folder / "runs")
    return run, second, facts


# ------------------------------------------------------------------------------------------------------- the run


def test_it_leaves_a_run_like_every_other(blended):
    first, second, facts = blended
    assert second.path.name == "first-sequence"
    names = {path.name for path in second.path.iterdir()}
    expected = {"config.yaml", "environment.json", "fold0", "fold1", "oof.parquet", "predictions_test.parquet"}
    assert names == expected | {"score.json"}
    opened = Run.open(second.path)
    opened.check_finished()
    assert read_score(opened)["weighted_log_loss"] == facts["weighted_log_loss"]
    assert read_score(opened).keys() >= read_score(first).keys()
    check_alike(second.path)  # so that a submission can be made of it
    for path in (second.oof_path, second.predictions_path):
        predictions = read_predictions(path)
        assert predictions.index.sort_values().equals(read_predictions(first.path / path.name).index.sort_values())
        assert ((predictions > 0) & (predictions < 1)).all(axis=None)
    assert {path.name for path in second.fold(0).iterdir()} >= {"model.keras", "history.csv", "oof.parquet"}
    history = pd.read_csv(second.fold(0) / "history.csv")
    assert history["epoch"].tolist() == [0, 1]


def test_it_improves_on_the_first_stage(blended):
    _, _, facts = blended
    assert facts["of_kinds"]["boosting"] < 0.9 * facts["of_first_stage"]
    assert facts["weighted_log_loss"] < 0.9 * facts["of_first_stage"]


def test_the_weights_are_fitted_on_other_patients_than_they_are_judged_on(blended):
    """The predictions of a fold may be replaced by anything: its own weights stay, the other's do not."""
    _, second, facts = blended
    table = folds.read_folds(second.config.data.folds_path)
    kinds = ("recurrent", "boosting", "linear")
    parts = [
        pd.concat([scans.logits_of(read_predictions(second.fold(k) / f"{kind}.parquet")) for k in (0, 1)]).loc[
            table.index
        ]
        for kind in kinds
    ]
    for k in (0, 1):
        others = (table["fold"] != k).to_numpy()
        y = table.loc[others, list(LABELS)].to_numpy()
        weights = train._fit_weights(y, [part[others] for part in parts])
        assert dict(zip(kinds, weights, strict=True)) == pytest.approx(facts["weights"]["folds"][k], abs=1e-6)
        mixed = expit(sum(weight * part[~others] for weight, part in zip(weights, parts, strict=True)))
        predictions = read_predictions(second.fold(k) / "oof.parquet")
        np.testing.assert_allclose(predictions, mixed.loc[predictions.index], atol=1e-6)


def test_the_weights_are_the_best_there_are():
    """Against all on a grid."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (200, 6))
    truth = pd.DataFrame((2 * y - 1) * 2.0)
    parts = [truth + rng.normal(0, scale, truth.shape) for scale in (1.5, 2.0, 9.0)]
    weights = train._fit_weights(y, parts)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    tenths = [np.array([i, j, 10 - i - j]) / 10 for i in range(11) for j in range(11 - i)]
    losses = [train._loss(y, train._mix(parts, candidate)) for candidate in tenths]
    assert train._loss(y, train._mix(parts, weights)) <= min(losses)
    assert weights[2] < 0.1
    np.testing.assert_array_equal(train._fit_weights(y, parts[:1]), [1])


def test_called_again_it_trains_nothing_and_gives_the_same(blended, monkeypatch):
    first, second, facts = blended
    monkeypatch.setattr(train.rnn, "train", None)
    monkeypatch.setattr(train.boosting.Model, "fit", None)
    monkeypatch.setattr(train.logistic.Model, "fit", None)
    monkeypatch.setattr(train.fitted, "logits", None)
    before = second.oof_path.read_bytes()
    _, again = train.train(inputs.inputs_from_runs([first.path], overrides=FAST), first.path.parent)
    assert again == facts
    assert second.oof_path.read_bytes() == before


def copied(blended, folder):
    """The fixture's first stage and what was trained on it, in another folder; the second run."""
    first, second, _ = blended
    for run in (first, second):
        shutil.copytree(run.path, folder / "runs" / run.path.name)
    facts = json.loads((folder / "runs/first-sequence/environment.json").read_text())
    (folder / "runs/first-sequence/environment.json").write_text(json.dumps(facts | {"passes": {}}))
    return Run.open(folder / "runs/first"), Run.open(folder / "runs/first-sequence")


def train_again(first):
    return train.train(inputs.inputs_from_runs([first.path], overrides=FAST), first.path.parent)[1]


def forbid_training(monkeypatch):
    monkeypatch.setattr(train.rnn, "train", None)
    monkeypatch.setattr(train.boosting.Model, "fit", None)
    monkeypatch.setattr(train.logistic.Model, "fit", None)


def test_new_test_predictions_are_read_by_the_models_that_are_there(blended, tmp_path, monkeypatch):
    first, second = copied(blended, tmp_path)
    forbid_training(monkeypatch)
    predictions = [read_predictions(second.predictions_path)]
    (second.fold(1) / "boosting_test.parquet").touch()  # as earlier versions left it
    unseen = table_of_scores(6, seed=1)
    unseen["score_any"] += 1
    write_predictions(probabilities(unseen), first.predictions_path)
    assert train_again(first) == blended[2]
    predictions.append(read_predictions(second.predictions_path))
    assert not predictions[0].equals(predictions[1])
    assert not (second.fold(1) / "boosting_test.parquet").exists()
    first.predictions_path.unlink()
    train_again(first)
    assert not second.predictions_path.exists()


def test_the_test_set_is_predicted_as_its_scans_are_one_by_one(blended):
    first, second, facts = blended
    test = inputs.inputs_from_runs([first.path], overrides=FAST).test
    read = SecondStage.read(second.path, second.config.sequence, 2)
    parts = [read.predict(test.take(np.array([number]))) for number in range(len(test))]
    predictions = read_predictions(second.predictions_path)
    assert predictions.index.equals(test.ids)
    np.testing.assert_allclose(np.concatenate(parts), predictions, rtol=0, atol=1e-6)

    logits = 0  # the slow way: fold by fold and kind by kind
    for kind, weight in facts["weights"]["test"].items():
        of_folds = [read.models[kind][k] for k in (0, 1)]
        if kind == "recurrent":
            values = [expit(train.rnn.predict(model, test, 4)) for model in of_folds]
        elif kind == "boosting":
            values = [expit(model.predict(scan_features.neighbor_features(test, 7))) for model in of_folds]
        else:
            values = [expit(model.predict(train.logistic.features(test))) for model in of_folds]
        mean = (values[0] + values[1]) / 2
        logits = logits + weight * np.log(mean / (1 - mean)).clip(-15, 15)
    np.testing.assert_allclose(predictions, expit(logits), rtol=0, atol=1e-6)


def test_a_stopped_run_goes_on_where_it_was(blended, tmp_path, monkeypatch):
    """What was fitted is not fitted again, be it that its file or also its predictions were written."""
    first, second = copied(blended, tmp_path)
    before = {path: path.read_bytes() for path in second.path.glob("fold*/*.*")}
    predictions = read_predictions(second.predictions_path)
    for kind in ("recurrent", "boosting", "linear"):
        (second.fold(1) / f"{kind}.parquet").unlink()
    second.predictions_path.unlink()
    forbid_training(monkeypatch)
    assert train_again(first)["weights"] == blended[2]["weights"]
    assert {path: path.read_bytes() for path in second.path.glob("fold*/*.*")} == before
    np.testing.assert_allclose(read_predictions(second.predictions_path), predictions, rtol=0, atol=1e-6)


def test_models_that_were_not_kept_are_fitted_again_if_they_predict_the_same(blended, tmp_path, monkeypatch):
    first, second = copied(blended, tmp_path)
    files = [second.fold(0) / "boosting.npz", second.fold(1) / "linear.json"]
    before = {path: path.read_bytes() for path in second.path.glob("fold*/*.*")}
    for path in files:
        path.unlink()
    with pytest.raises(
        IchError, match=r"fold0/boosting.npz is missing, which holds the fold's kind boosting; versions"
    ):
        SecondStage.read(second.path, second.config.sequence, 2)
    monkeypatch.setattr(train.rnn, "train", None)
    train_again(first)
    assert {path: path.read_bytes() for path in second.path.glob("fold*/*.*")} == before

    for path in files:
        path.unlink()
    oof = second.fold(0) / "boosting.parquet"
    write_predictions(read_predictions(oof) * 0.99, oof)
    with pytest.raises(IchError, match=r"fold0/boosting.parquet was predicted by a model that was not kept, and boo"):
        train_again(first)
    assert not files[0].exists()
    write_predictions(read_predictions(oof).iloc[1:], oof)
    with pytest.raises(IchError, match=r"predicts otherwise \(by up to inf\)"):
        train_again(first)


def test_another_section_or_other_scores_are_refused(blended):
    first, _, _ = blended
    root = first.path.parent
    with pytest.raises(IchError, match=r"was trained with another section sequence, other folds or other scores"):
        train.train(inputs.inputs_from_runs([first.path], overrides=[*FAST, "sequence.noise=1"]), root)
    stage = inputs.inputs_from_runs([first.path], overrides=FAST)
    stage.digests["train"][0] = "another"
    with pytest.raises(IchError, match=r"give this one another name: add --name NAME to the command"):
        train.train(stage, root)


def test_the_first_stage_is_not_overwritten_by_its_second(blended):
    first, _, _ = blended
    stage = inputs.inputs_from_runs([first.path], name=first.path.name, overrides=FAST)
    with pytest.raises(IchError, match=r"first is the first stage itself; give the second stage another name"):
        train.train(stage, first.path.parent)


def test_the_intervals_are_of_the_blend_minus_each_kind(blended):
    _, second, _ = blended
    score = read_score(second)
    assert score["of_kinds_intervals"].keys() == score["of_kinds"].keys()
    for kind, (low, high) in score["of_kinds_intervals"].items():
        assert low <= score["weighted_log_loss"] - score["of_kinds"][kind] <= high


# ------------------------------------------------------------------------------------------------ honest stacking


def test_a_run_of_other_folds_is_refused(tmp_path):
    first = first_stage(tmp_path)
    table = folds.read_folds(first.config.data.folds_path)
    inputs.check_out_of_fold(first.path, table)
    with pytest.raises(IchError, match=r"as held out, which are not in fold 0 of these folds: its model has seen"):
        inputs.check_out_of_fold(first.path, table.assign(fold=1 - table["fold"]))
    with pytest.raises(IchError, match="list other slices"):
        inputs.check_out_of_fold(first.path, table.iloc[1:])
    torn = table.assign(fold=[k % 2 for k in range(len(table))])
    with pytest.raises(IchError, match="patients in more than one fold"):
        inputs.check_out_of_fold(first.path, torn)


def test_a_fold_is_predicted_by_a_model_that_saw_none_of_its_patients(tmp_path, monkeypatch):
    table = table_of_scores()
    seen = []

    def fit(features, labels, rounds, learning_rate, seed):
        seen.append([features])
        return train.boosting.Model(features.shape[2], (Trees.none(0.0),) * 6, Trees.none(0.0))

    def predict(model, features):
        seen[-1].append(features)
        return np.zeros((len(features), 6))

    monkeypatch.setattr(train.boosting.Model, "fit", fit)
    monkeypatch.setattr(train.boosting.Model, "predict", predict)
    # The first feature names the patient.
    table["score_epidural"] = table["PatientID"].str.removeprefix("ID_p").astype(float) / 2
    table.to_csv(tmp_path / "scores.csv", index=False)
    overrides = ["folds.n=3", "sequence.kind=boosting", "sequence.reach=0"]
    train.train(inputs.inputs_from_table(tmp_path / "scores.csv", overrides=overrides, root=tmp_path), tmp_path)
    assert len(seen) == 3
    everybody = set(table["score_epidural"])
    for features, held_out in seen:
        trained, judged = (set(part[:, 0, 0].tolist()) for part in (features, held_out))
        assert not trained & judged
        assert trained | judged == everybody


def test_a_scan_of_patients_in_two_folds_is_refused(tmp_path):
    table = table_of_scores()
    table["SeriesInstanceUID"] = "one"
    table.to_csv(tmp_path / "scores.csv", index=False)
    with pytest.raises(IchError, match="scans have slices of patients in two folds"):
        train.train(inputs.inputs_from_table(tmp_path / "scores.csv", overrides=FAST, root=tmp_path), tmp_path)


# ------------------------------------------------------------------------------------------------- what it works on


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    table_of_scores().to_parquet(tmp_path / "scores.parquet")
    first = first_stage(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".viminfo.1").write_text("somebody's")
    for make in (
        lambda: inputs.inputs_from_table(tmp_path / "scores.parquet", "home", FAST, root=tmp_path),
        lambda: train.train(inputs.inputs_from_runs([first.path], "home", FAST), tmp_path),
    ):
        with pytest.raises(IchError, match=r"home holds \.viminfo\.1 and lacks a readable environment\.json of a run"):
            make()
        assert [path.name for path in home.iterdir()] == [".viminfo.1"]
    (home / ".viminfo.1").rename(home / "folds.csv")  # of others, though of a name of ours
    with pytest.raises(IchError, match=r"folds\.csv"):
        inputs.inputs_from_table(tmp_path / "scores.parquet", "home", FAST, root=tmp_path)
    assert (home / "folds.csv").read_text() == "somebody's"
    (home / "folds.csv").unlink()
    table = tmp_path / "scores.parquet"
    folds.write_folds(home / "folds.csv", inputs.inputs_from_table(table, "b", FAST, root=tmp_path).folds)
    with pytest.raises(IchError, match=r"home holds folds\.csv and lacks"):  # though they are the very same
        inputs.inputs_from_table(table, "home", FAST, root=tmp_path)
    assert [path.name for path in home.iterdir()] == ["folds.csv"]


def test_a_run_is_no_second_stage_to_go_on_with(tmp_path):
    first = first_stage(tmp_path)
    stage = inputs.inputs_from_runs([first_stage(tmp_path / "other").path], "first", FAST)
    with pytest.raises(IchError, match=r"runs/first is no second stage; give this one another name \(--name\)"):
        train.train(stage, first.path.parent)


def test_a_second_process_is_refused(tmp_path):
    first = first_stage(tmp_path)
    stage = inputs.inputs_from_runs([first.path], "second", FAST)
    with in_use(tmp_path / "second"), pytest.raises(IchError, match=r"second is in use by process \d+"):
        train.train(stage, tmp_path)
    assert not (tmp_path / "second").exists()


def test_several_runs_are_averaged_as_logits(tmp_path):
    first = first_stage(tmp_path)
    other = tmp_path / "runs" / "other"
    for path in first.path.rglob("*.parquet"):
        write_predictions(read_predictions(path) / 2, other / path.relative_to(first.path))
    for name in ("config.yaml", "environment.json"):
        shutil.copy(first.path / name, other)
    of_first, of_other, both = (
        inputs.inputs_from_runs(paths) for paths in ([first.path], [other], [first.path, other])
    )
    assert both.train.ids.equals(of_first.train.ids)
    np.testing.assert_allclose(both.train.logits, (of_first.train.logits + of_other.train.logits) / 2, atol=1e-5)
    np.testing.assert_allclose(both.test.logits, (of_first.test.logits + of_other.test.logits) / 2, atol=1e-5)
    short = read_predictions(other / "predictions_test.parquet").iloc[1:]
    write_predictions(short, other / "predictions_test.parquet")
    with pytest.raises(IchError, match=r"are of other slices: ID_1"):
        inputs.inputs_from_runs([first.path, other])
    (other / "environment.json").write_text(json.dumps(first.environment() | {"folds_sha256": "another"}))
    with pytest.raises(IchError, match=r"other was made with other folds than .*folds.csv, and results"):
        inputs.inputs_from_runs([first.path, other])


def test_prediction_by_a_second_stage_takes_no_settings_of_the_first(blended):
    _, second, _ = blended
    main = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "predict.py"))["main"]
    for override in (f"machine.workers={second.config.machine.workers}", "predict.mean=probability"):
        with pytest.raises(IchError, match=rf"--set {override.split('=')[0]} has no effect on a second stage"):
            main([str(second.path), "--set", override])


def test_a_blend_is_a_first_stage_as_a_run_is(blended, tmp_path):
    _, second, _ = blended
    shutil.copytree(second.path, tmp_path / "other")
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "blend.py"))
    script["main"]([*map(str, [second.path, tmp_path / "other"]), "--out", str(tmp_path / "both"), "--method", "mean"])
    of_blend, of_run = (inputs.inputs_from_runs([path], overrides=FAST) for path in (tmp_path / "both", second.path))
    assert of_blend.config.name == "both-sequence"
    assert of_blend.config.sequence == of_run.config.sequence
    for part in ("train", "test"):
        np.testing.assert_allclose(getattr(of_blend, part).logits, getattr(of_run, part).logits, atol=1e-3)


def test_a_table_makes_its_folds_and_keeps_them(tmp_path):
    table_of_scores().to_parquet(tmp_path / "scores.parquet")
    stage = inputs.inputs_from_table(tmp_path / "scores.parquet", "mine", ["folds.n=3"], root=tmp_path / "runs")
    assert stage.config.name == "mine"
    assert folds.read_folds(tmp_path / "runs" / "mine" / "folds.csv").equals(stage.folds)
    assert stage.folds["fold"].max() == 2
    assert stage.test is None
    with pytest.raises(IchError, match=r"sequence.kind is 'none'"):
        inputs.inputs_from_table(tmp_path / "scores.parquet", "mine", ["sequence.kind=none"], root=tmp_path / "runs")
    before = stage.config.data.folds_path.read_bytes()
    again = inputs.inputs_from_table(tmp_path / "scores.parquet", "mine", ["folds.n=3"], root=tmp_path / "runs")
    assert again.folds.equals(stage.folds)
    for overrides in (["folds.n=2"], ["folds.n=3", "folds.seed=9"]):
        with pytest.raises(IchError, match=r"mine has other folds than .*; give this one another name \(--name\), or"):
            inputs.inputs_from_table(tmp_path / "scores.parquet", "mine", overrides, root=tmp_path / "runs")
    assert stage.config.data.folds_path.read_bytes() == before


def test_a_name_that_could_not_be_opened_again_is_refused_before_the_training(blended):
    first, _, _ = blended
    for name in ("my stage", "../out", "x" * 65):
        with pytest.raises(IchError, match="the second stage: name is "):
            inputs.inputs_from_runs([first.path], name)


def test_a_copy_of_a_fold_beside_the_folds_is_no_fold(blended, tmp_path):
    first, _, _ = blended
    shutil.copytree(first.path, tmp_path / "first")
    for name in ("fold0_backup", "fold0_1"):
        shutil.copytree(first.fold(0), tmp_path / "first" / name)
    inputs.inputs_from_runs([tmp_path / "first"])
