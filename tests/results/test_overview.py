"""An overview of small results, some of them broken."""

import html
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ich.competition import folds
from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError
from ich.files import sha256_of, write_json
from ich.results import compare, overview
from ich.results.predictions import write_predictions

SCRIPT = Path(__file__).parents[2] / "scripts/compare_runs.py"
IDS = [f"ID_{k:02}" for k in range(40)]


def script(*arguments):
    runpy.run_path(str(SCRIPT))["main"](list(map(str, arguments)))


def write_folds(path):
    """Two slices of each patient; another path has other labels."""
    labels = np.random.default_rng(sum(path.encode())).integers(0, 2, (40, 6))
    labels[:, 5] = labels[:, :5].max(axis=1)
    table = pd.DataFrame(labels.astype(np.int8), pd.Index(IDS, name=INDEX_NAME), list(LABELS))
    patient = np.arange(40) // 2
    folds.write_folds(Path(path), table.assign(PatientID=[f"P{k}" for k in patient], fold=patient % 2))
    return table


def write_result(name, seed=0, score=0.5, folds_path="folds.csv", environment=None, **config):
    """What a finished result leaves: predictions that miss each label by as much as `seed` says."""
    path = Path("runs") / name
    path.mkdir(parents=True)
    content = {"name": name, "data": {"sources": ["a.zip"], "images": "images", "folds": folds_path}}
    (path / "config.yaml").write_text(yaml.safe_dump(content | config))
    write_json(path / "environment.json", {"folds_sha256": sha256_of(Path(folds_path))} | (environment or {}))
    truth = folds.read_folds(Path(folds_path))[list(LABELS)]
    miss = 0.05 * (1 + seed)
    write_predictions((truth * (1 - 2 * miss) + miss).astype("float32"), path / "oof.parquet")
    if score is not None:
        write_json(path / "score.json", {"weighted_log_loss": score, "of_prevalence": 0.7})
    return path


OF_IMAGES = {
    "model": {"name": "small_cnn"},
    "preprocess": {"size": 64},
    "train": {"epochs": 3},
    "folds": {"n": 2},
}


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folds("folds.csv")
    write_folds("other.csv")


@pytest.fixture
def runs():
    """Three to compare, the worst first; four others."""
    worst = write_result("a", seed=5, **OF_IMAGES)
    for fold, seconds in enumerate((3000.4, 1500)):
        write_json(worst / f"fold{fold}/training.json", {"epochs": 3, "seconds": seconds})
    write_result("b", seed=1, sequence={"kind": "blend", "epochs": 30}, environment={"first_stage": ["runs/a"]})
    write_result("c", seed=3, blend={"runs": ["runs/a", "runs/b"]})
    write_result("elsewhere", score=0.25, folds_path="other.csv", **OF_IMAGES)
    half = write_result("half", score=None, **OF_IMAGES)
    (half / "oof.parquet").rename(half / "moved")
    (half / "fold1").mkdir()
    (half / "moved").rename(half / "fold1/oof.parquet")
    (write_result("damaged") / "oof.parquet").write_bytes(b"junk")
    (write_result("unreadable") / "config.yaml").write_text("model: [")
    return sorted(Path("runs").iterdir())


def test_results_that_share_their_folds_are_compared_the_best_first(runs):
    summary = overview.overview([*runs, Path("runs/missing")])
    assert summary.compared.index.tolist() == ["runs/b", "runs/c", "runs/a"]
    assert summary.compared["weighted_log_loss"].is_monotonic_increasing
    results = compare.read_results([Path("runs/a"), Path("runs/b"), Path("runs/c")])
    expected = compare.compare(results.table, results.oof, "runs/a")
    pd.testing.assert_frame_equal(summary.compared[expected.columns].loc[expected.index], expected)
    facts = summary.compared[["model", "size", "epochs", "seconds"]].astype(object)
    assert facts.where(facts.notna(), None).values.tolist() == [
        ["second stage (blend)", None, 30, None],
        ["blend of 2", None, None, None],
        ["small_cnn", 64, 3, 4500.4],
    ]


def test_the_others_are_listed_with_the_reason(runs):
    others = overview.overview([*runs, Path("runs/missing")]).others
    assert others.index[0] == "runs/elsewhere"
    row = others.loc["runs/elsewhere"]
    assert (row["weighted_log_loss"], row["of_prevalence"], row["model"]) == (0.25, 0.7, "small_cnn")
    reasons = {
        "elsewhere": "runs/elsewhere was made with other folds than runs/a, and results of different folds cannot be",
        "half": "unfinished: of its 2 folds, 0 are not trained",
        "damaged": "predictions runs/damaged/oof.parquet cannot be read",
        "unreadable": "runs/unreadable/config.yaml, which every result",
        "missing": "runs/missing does not exist",
    }
    assert set(others.index) == {f"runs/{name}" for name in reasons}
    for name, reason in reasons.items():
        assert reason in others.loc[f"runs/{name}", "reason"]


def test_the_folds_can_be_named(runs):
    summary = overview.overview(runs, Path("other.csv"))
    assert summary.compared.index.tolist() == ["runs/elsewhere"]
    assert summary.others.loc["runs/a", "reason"].startswith("runs/a was made with other folds than other.csv, and")


def test_nothing_to_compare_and_a_result_named_twice_are_refused(runs):
    with pytest.raises(IchError, match=r"^none of the results can be compared: unfinished: of its 2 folds, 0 are not"):
        overview.overview([Path("runs/half")])
    with pytest.raises(IchError, match="runs/a is named twice"):
        overview.overview([Path("runs/a"), Path("runs/b"), Path("runs/a")])


def test_the_script_prints_writes_and_shows_all_of_them(runs, capsys):
    script(*runs, "--out", "out/table.csv", "--html", "out/runs.html")
    out, warnings = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "Out-of-fold weighted log loss"
    assert [line.split()[0] for line in lines[2:5]] == ["runs/b", "runs/c", "runs/a"]
    assert lines[4].split()[-7:] == ["small_cnn", "64", "3", "1", "h", "15", "min"]
    assert "differences are from runs/a" in lines[-2]
    assert lines[-1] == "wrote: out/table.csv, out/runs.html"
    assert any(line.startswith("  runs/elsewhere: runs/elsewhere was made with other folds than") for line in lines)
    written = pd.read_csv("out/table.csv", index_col="run")
    assert written.index[:4].tolist() == ["runs/b", "runs/c", "runs/a", "runs/elsewhere"]
    assert len(written) == len(runs)
    page = html.unescape(Path("out/runs.html").read_text(encoding="utf-8"))
    for name in map(str, runs):
        assert f'<th scope="row">{name}</th>' in page
    for text in ("<td>1 h 15 min</td>", "<td>runs/elsewhere was made with other folds than runs/a, ", lines[-2]):
        assert text in page
    for warning in warnings.splitlines():
        assert f'<p class="alarm">W{warning[1:]}</p>' in page


def test_the_page_shows_names_as_they_are():
    """Whatever stands in a config is text, not markup."""
    write_result("a", **OF_IMAGES | {"model": {"name": "<script>"}})
    script("runs/a", "--html", "runs.html")
    page = Path("runs.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


@pytest.mark.parametrize("content", ["[]", '{"seconds": "long"}', "{}"])
def test_a_damaged_record_of_the_time_is_none(content):
    path = write_result("a", **OF_IMAGES)
    (path / "fold0").mkdir()
    (path / "fold0/training.json").write_text(content)
    assert overview.overview([path]).compared["seconds"].isna().all()


def test_the_best_has_the_lowest_score():
    first, second, third = (
        write_result(name, score=score) for name, score in (("one", 0.3), ("two", 0.1), ("three", 0.2))
    )
    assert overview.best([first, second, third]) == second
    assert overview.best([third, first]) == third
    assert overview.best([first]) == first


def test_scores_of_other_folds_or_none_have_no_best():
    scored, none = write_result("one"), write_result("none", score=None)
    with pytest.raises(IchError, match=r"runs/other was made with other folds than runs/one, .*compared"):
        overview.best([scored, write_result("other", folds_path="other.csv")])
    with pytest.raises(IchError, match=r"runs/none/score.json is missing; run scripts/predict.py runs/none"):
        overview.best([scored, none])
    with pytest.raises(IchError, match="does not exist"):
        overview.best([Path("runs/missing"), scored])
