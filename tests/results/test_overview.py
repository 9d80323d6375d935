import json
from pathlib import Path

import pytest

from ich.errors import IchError
from ich.results import overview


def write_result(name, score=None, folds="a"):
    path = Path("runs") / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"name: {name}\n")
    (path / "environment.json").write_text(json.dumps({"folds_sha256": folds}))
    if score is not None:
        (path / "score.json").write_text(json.dumps({"weighted_log_loss": score, "of_prevalence": 0.4}))
    return path


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_best_has_the_lowest_score():
    one, two, three = (write_result(name, score) for name, score in (("one", 0.3), ("two", 0.1), ("three", 0.2)))
    assert overview.best([one, two, three]) == two
    assert overview.best([three, one]) == three
    assert overview.best([one]) == one


def test_scores_of_other_folds_or_none_have_no_best():
    one, other, none = write_result("one", 0.3), write_result("other", 0.2, folds="b"), write_result("none")
    with pytest.raises(IchError, match=r"runs/one, runs/other do not share their folds.*; name one$"):
        overview.best([one, other])
    with pytest.raises(IchError, match=r"runs/none/score.json.* cannot be read"):
        overview.best([one, none])
    with pytest.raises(IchError, match="does not exist"):
        overview.best([Path("runs/missing"), one])
