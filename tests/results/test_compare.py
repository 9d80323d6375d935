import html
import json
import re
import runpy
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import expit

from ich.competition import folds, metrics
from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError
from ich.results import bootstrap, compare, fitted_blend
from ich.results.predictions import read_predictions, write_predictions

SCRIPTS = Path(__file__).parents[2] / "scripts"
COUNT = 240


def script(name, *arguments):
    runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"](list(map(str, arguments)))


def fold_table(seed=0):
    """Four slices a patient, three folds."""
    labels = np.random.default_rng(seed).random((COUNT, 6)) < 0.3
    labels[:, 5] = labels[:, :5].any(axis=1)
    ids = pd.Index([f"ID_{k:04x}" for k in range(COUNT)], name=INDEX_NAME)
    patient = np.arange(COUNT) // 4
    table = pd.DataFrame(labels.astype(np.int8), columns=list(LABELS), index=ids)
    return table.assign(PatientID=[f"ID_p{k:02d}" for k in patient], fold=patient % 3)


def some_predictions(seed, ids=None):
    """Of the folds' slices, as good as noise lets them be; or of other slices, any."""
    rng = np.random.default_rng(seed)
    if ids is None:
        table = fold_table()
        ids, truth = table.index, 2.0 * table[list(LABELS)].to_numpy() - 1
    else:
        truth = np.zeros((len(ids), 6))
    values = expit(2 * truth + rng.normal(0, 1.5, truth.shape))
    return pd.DataFrame(values.astype(np.float32), index=ids, columns=list(LABELS))


def write_run(path, seed, config=None, test=None):
    """What a run leaves that others read."""
    path.mkdir(parents=True)
    write_predictions(some_predictions(seed).sample(frac=1, random_state=seed), path / "oof.parquet")
    if test is not None:
        ids = pd.Index(test, name=INDEX_NAME)
        write_predictions(some_predictions(seed, ids), path / "predictions_test.parquet")
    digest = sha256(Path("images/folds.csv").read_bytes()).hexdigest()
    (path / "environment.json").write_text(json.dumps({"folds_sha256": digest}))
    content = {"name": path.name, "data": {"sources": ["a.zip"], "images": "images", "folds": None}}
    (path / "config.yaml").write_text(yaml.safe_dump(content if config is None else config))


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Three runs, with test predictions in orders of their own."""
    monkeypatch.chdir(tmp_path)
    folds.write_folds(Path("images/folds.csv"), fold_table())
    for seed, name in enumerate(("a", "b", "c")):
        write_run(Path("runs") / name, seed, test=np.roll(["ID_1", "ID_2", "ID_3"], seed))
    return tmp_path


RUNS = [Path("runs/a"), Path("runs/b"), Path("runs/c")]


# ------------------------------------------------------------------------------------------- reading


def test_predictions_come_in_the_order_of_the_folds(workdir):
    results = compare.read_results(RUNS)
    pd.testing.assert_frame_equal(results.table, fold_table(), check_like=True)
    assert list(results.oof) == ["runs/a", "runs/b", "runs/c"]
    for seed, values in enumerate(results.oof.values()):
        np.testing.assert_array_equal(values, some_predictions(seed).to_numpy())
    assert results.data == {"sources": ["a.zip"], "images": "images", "folds": "images/folds.csv"}


def test_test_predictions_come_in_the_order_of_the_first(workdir):
    ids, probabilities = compare.read_test(RUNS)
    assert ids.tolist() == ["ID_1", "ID_2", "ID_3"]
    for path, values in zip(RUNS, probabilities, strict=True):
        frame = read_predictions(path / "predictions_test.parquet")
        np.testing.assert_array_equal(values, frame.loc[ids].to_numpy())


def test_folds_in_another_place_can_be_named(workdir):
    Path("images/folds.csv").rename("moved.csv")
    with pytest.raises(
        IchError,
        match=r"cannot read images/folds.csv: No such file or directory, from the working directory .*; work in the",
    ):
        compare.read_results(RUNS)
    assert compare.read_results(RUNS, Path("moved.csv")).data["folds"] == "moved.csv"


def test_a_config_that_does_not_tell_the_folds_is_refused(workdir):
    Path("runs/a/config.yaml").write_text("name: a")
    with pytest.raises(IchError, match=r"runs/a/config.yaml lacks the path of the folds .*; name .* --folds"):
        compare.read_results(RUNS)
    assert len(compare.read_results(RUNS, Path("images/folds.csv")).oof) == 3


def test_runs_of_other_folds_are_refused(workdir):
    folds.write_folds(Path("other.csv"), fold_table(seed=1))
    with pytest.raises(IchError, match=r"runs/a was made with other folds than other.csv, .* cannot be compared"):
        compare.read_results(RUNS, Path("other.csv"))
    Path("runs/c/environment.json").write_text("{}")
    with pytest.raises(IchError, match=r"runs/c was made with other folds than images/folds.csv"):
        compare.read_results(RUNS)


def test_a_run_named_twice_is_refused(workdir):
    with pytest.raises(IchError, match=r"runs/a is named twice"):
        compare.read_results([*RUNS, Path("runs/a")])


@pytest.mark.parametrize("content", [None, "{", "[1]", "no mapping", "\0"])
@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_what_is_no_result_directory_is_reported(workdir, name, content):
    path = Path("runs/a") / name
    path.unlink() if content is None else path.write_text(content)
    message = rf"(?s)runs/a/{name}, which every result of train_kfold, .* and blend has, cannot be read .*; restore it"
    if content is None and name == "config.yaml":
        message = r"runs/a has no config.yaml, as every result .* has: restore it; .*, such as runs/[bc] or runs/[bc]$"
    with pytest.raises(IchError, match=message):
        compare.read_results(RUNS)


@pytest.mark.parametrize("spoil", ["missing", "foreign"])
@pytest.mark.parametrize("name", ["oof", "predictions_test"])
def test_predictions_of_other_slices_are_refused(workdir, name, spoil):
    path = Path(f"runs/b/{name}.parquet")
    frame = read_predictions(path)
    write_predictions(frame[1:] if spoil == "missing" else frame.rename({frame.index[0]: "ID_f"}), path)
    with pytest.raises(IchError, match=rf"runs/b/{name}.parquet has predictions of .* they differ in .*ID_"):
        compare.read_results(RUNS) if name == "oof" else compare.read_test(RUNS)


def test_predictions_twice_are_refused(workdir):
    frame = read_predictions(Path("runs/b/oof.parquet"))
    write_predictions(pd.concat([frame, frame[:1]]), Path("runs/b/oof.parquet"))
    with pytest.raises(IchError, match=rf"runs/b/oof.parquet has {frame.index[0]} twice"):
        compare.read_results(RUNS)


# ------------------------------------------------------------------------------------------- side by side


def test_compare_tells_the_metric_and_paired_differences():
    table = fold_table()
    y, patients = table[list(LABELS)].to_numpy(), table["PatientID"].to_numpy()
    predictions = {name: some_predictions(seed).to_numpy() for seed, name in enumerate("abc")}
    comparison = compare.compare(table, predictions, baseline="b")
    assert comparison.index.tolist() == ["a", "b", "c"]
    losses = {
        name: metrics.log_losses(y, p) @ [1 / 7, 1 / 7, 1 / 7, 1 / 7, 1 / 7, 2 / 7] for name, p in predictions.items()
    }
    for name, p in predictions.items():
        assert comparison.loc[name, "weighted_log_loss"] == pytest.approx(metrics.weighted_log_loss(y, p))
        np.testing.assert_allclose(comparison.loc[name, list(LABELS)].astype(float), metrics.log_loss_by_label(y, p))
        alone = bootstrap.estimate(losses[name], patients)
        np.testing.assert_allclose(comparison.loc[name, ["standard_error", "low", "high"]].astype(float), alone[1:])
        paired = bootstrap.estimate(losses[name] - losses["b"], patients)
        columns = ["difference", *(f"difference_{part}" for part in ("standard_error", "low", "high"))]
        np.testing.assert_allclose(comparison.loc[name, columns].astype(float), paired, atol=1e-12)
    assert comparison.loc["b", "difference":"difference_high"].eq(0).all()
    assert (comparison.loc[["a", "c"], "difference_standard_error"] > 0).all()


def test_judge_takes_the_best_of_the_members(workdir):
    results = compare.read_results(RUNS)
    mean = np.mean(list(results.oof.values()), axis=0)
    score = compare.judge(results, mean)
    assert json.loads(json.dumps(score)) == score
    y = fold_table()[list(LABELS)].to_numpy()
    assert score["runs"] == {name: metrics.weighted_log_loss(y, p) for name, p in results.oof.items()}
    assert score["best_run"] == min(score["runs"], key=score["runs"].get)
    assert score["gain"] == pytest.approx(min(score["runs"].values()) - score["weighted_log_loss"])
    assert score["gain_interval"][0] < score["gain"] < score["gain_interval"][1]
    none = compare.judge(results, results.oof[score["best_run"]])
    assert (none["gain"], none["gain_standard_error"]) == (0, 0)


def test_compare_runs_prints_and_writes_a_row_a_run(workdir, capsys):
    script("compare_runs", *RUNS, "--out", "out/table.csv")
    lines = capsys.readouterr().out.splitlines()
    written = pd.read_csv("out/table.csv", index_col="run")
    results = compare.read_results(RUNS)
    expected = compare.compare(results.table, results.oof, "runs/a")
    pd.testing.assert_frame_equal(written[expected.columns].loc[expected.index], expected)
    order = expected["weighted_log_loss"].sort_values()
    assert [line.split()[:2] for line in lines[2:5]] == [[name, f"{loss:.4f}"] for name, loss in order.items()]
    floor = metrics.prevalence_log_loss(fold_table()[list(LABELS)].to_numpy())
    summary = f"{COUNT} slices of 60 patients; the prevalence baseline scores {floor:.4f}; differences are from runs/a"
    assert summary in lines
    script("compare_runs", *RUNS, "--out", "out/table.csv", "--html", "out/runs.html")
    script("compare_runs", *RUNS, "--html", "out/runs.html")  # they replace their own
    for option in ("--out", "--html"):
        with pytest.raises(IchError, match=r"oof\.parquet exists and was not written by this command"):
            script("compare_runs", *RUNS, option, "runs/a/oof.parquet")


# ------------------------------------------------------------------------------------------- the blend's directory


def test_a_blend_is_a_result_directory(workdir, capsys):
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    script("blend", *RUNS, "--out", "runs/blend")
    assert {path: path.read_bytes() for path in before} == before
    out = Path("runs/blend")
    assert {path.name for path in out.iterdir()} == {
        "commands.jsonl",
        "config.yaml",
        "environment.json",
        "oof.parquet",
        "predictions_test.parquet",
        "score.json",
    }
    score = json.loads((out / "score.json").read_text())
    y, oof = fold_table()[list(LABELS)].to_numpy(), read_predictions(out / "oof.parquet")
    assert oof.index.equals(fold_table().index)
    assert score["weighted_log_loss"] == metrics.weighted_log_loss(y, oof.to_numpy())
    assert score["slices"] == COUNT
    assert score["gain"] > 0
    weights = np.array([score["weights"][label][str(run)] for run in RUNS for label in LABELS]).reshape(3, 6)
    ids, theirs = compare.read_test(RUNS)
    test = read_predictions(out / "predictions_test.parquet")
    assert test.index.equals(ids)
    np.testing.assert_allclose(test.to_numpy(), np.einsum("ml,mnl->nl", weights, theirs), rtol=1e-5)
    members, fitted = fitted_blend.read(out)
    assert members == list(RUNS)
    np.testing.assert_array_equal(test, fitted(theirs).astype(np.float32))
    facts = json.loads((out / "environment.json").read_text())
    assert facts["folds_sha256"] == json.loads(Path("runs/a/environment.json").read_text())["folds_sha256"]
    assert facts["made_of"] == {str(run): sha256((run / "oof.parquet").read_bytes()).hexdigest() for run in RUNS}
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["data"] == {"sources": ["a.zip"], "images": "images", "folds": "images/folds.csv"}
    assert config["blend"]["runs"] == list(map(str, RUNS))
    assert f"gain over {score['best_run']}: {score['gain']:+.4f}" in capsys.readouterr().out


def test_a_blend_can_be_blended_compared_and_made_again(workdir, capsys):
    for _ in range(2):
        script("blend", *RUNS[:2], "--out", "runs/two", "--method", "mean")
    script("blend", "runs/two", "runs/c", "--out", "runs/all", "--by-label")
    script("compare_runs", "runs/two", "runs/all")
    assert "runs/all" in capsys.readouterr().out


def test_one_run_is_calibrated(workdir, capsys):
    script("blend", "runs/a", "--out", "runs/a-calibrated", "--calibrate", "platt", "--any-at-least-max")
    score = json.loads(Path("runs/a-calibrated/score.json").read_text())
    assert list(score["calibration"]) == list(LABELS)
    said = capsys.readouterr().out
    for label, entry in score["calibration"].items():
        assert entry["kept"] == (entry["gain"] > entry["standard_error"])
        assert f"calibration of {label}: gains {entry['gain']:+.5f}" in said
    assert "any_at_least_max of any: gains" in said
    _, fitted = fitted_blend.read(Path("runs/a-calibrated"))
    test = read_predictions(Path("runs/a-calibrated/predictions_test.parquet"))
    np.testing.assert_array_equal(test, fitted(compare.read_test([Path("runs/a")])[1]).astype(np.float32))


@pytest.mark.parametrize("method", ["weights", "mean", "logit_mean"])
def test_a_single_run_with_nothing_to_try_is_refused(workdir, method):
    with pytest.raises(IchError, match=r"runs/a is the only run named, .*; name two runs or more, or add --calibrate"):
        script("blend", "runs/a", "--out", "runs/copy", "--method", method)
    assert not Path("runs/copy").exists()
    script("blend", "runs/a", "--out", "runs/raised", "--method", method, "--any-at-least-max")
    assert "any_at_least_max" in json.loads(Path("runs/raised/score.json").read_text())


def test_what_is_worse_than_its_members_or_than_the_prevalence_is_said(workdir, capsys):
    worse = 1 - read_predictions(Path("runs/b/oof.parquet"))
    write_predictions(worse, Path("runs/b/oof.parquet"))
    script("blend", "runs/a", "runs/b", "--out", "runs/mean", "--method", "mean")
    floor = metrics.prevalence_log_loss(fold_table()[list(LABELS)])
    score = json.loads(Path("runs/mean/score.json").read_text())
    warnings = [
        f"warning: runs/mean scores {score['weighted_log_loss']:.4f} out of fold, no better than the prevalence"
        f" baseline, {floor:.4f}: predicting each label's share of the slices everywhere is better",
        f"warning: runs/mean scores {score['weighted_log_loss']:.4f} out of fold, worse than its member runs/a,"
        f" {score['runs']['runs/a']:.4f} (by {-score['gain']:+.4f}, 95 % interval over patients"
        f" {-score['gain_interval'][1]:+.4f} to {-score['gain_interval'][0]:+.4f}): that is to be preferred",
    ]
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")] == warnings
    script("compare_runs", "runs/a", "runs/b", "runs/mean")
    *of_mean, of_b = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert of_b.startswith(f"warning: runs/b scores {score['runs']['runs/b']:.4f} out of fold, no better than the prev")
    assert of_mean == warnings
    script("report", "runs/mean")
    head = Path("runs/mean/report.html").read_text().split("<nav")[0]
    assert [html.unescape(text) for text in re.findall('<p class="alarm">W(.*)</p>', head)] == [w[1:] for w in warnings]


def test_without_a_members_test_predictions_there_are_none(workdir, capsys):
    script("blend", *RUNS, "--out", "runs/blend")
    Path("runs/b/predictions_test.parquet").unlink()
    script("blend", *RUNS, "--out", "runs/blend")
    assert not Path("runs/blend/predictions_test.parquet").exists()  # those of the blend before are gone
    message = (
        "no test predictions are blended, as runs/b has none:\nrun scripts/predict.py runs/b, then this command again"
    )
    assert message in capsys.readouterr().out
    assert Path("runs/blend/score.json").exists()


@pytest.mark.parametrize("options", [["--method", "mean"], ["--by-label"], ["--calibrate", "platt"]])
def test_another_blends_directory_is_left_alone(workdir, options):
    script("blend", *RUNS, "--out", "runs/blend")
    before = {path: path.read_bytes() for path in Path("runs/blend").iterdir()}
    with pytest.raises(IchError, match="runs/blend holds other files than this blend's results; name another"):
        script("blend", *RUNS, "--out", "runs/blend", *options)
    assert {path: path.read_bytes() for path in Path("runs/blend").iterdir()} == before


def test_a_member_or_a_foreign_folder_is_not_written_into(workdir):
    for out in ("runs/a", "runs", "images"):
        with pytest.raises(IchError, match=f"{out} holds "):
            script("blend", *RUNS, "--out", out)


def test_the_scripts_never_load_tensorflow(workdir):
    """In processes of their own: other tests load it into this one."""
    code = "import runpy, sys; path, sys.argv = sys.argv[1], sys.argv[1:]; runpy.run_path(path, run_name='__main__');"
    code += "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    for name, *options in (("blend", "--out", "runs/blend"), ("compare_runs",)):
        command = [sys.executable, "-c", code, SCRIPTS / f"{name}.py", *RUNS, *options]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]", done.stdout
