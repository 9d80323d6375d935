import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError
from ich.results import result_directory
from ich.results.predictions import write_predictions

MADE = {"tta": ["none"], "mean": "logit"}


def some_predictions():
    return pd.DataFrame(
        np.full((3, 6), 0.5), columns=list(LABELS), index=pd.Index(["ID_0", "ID_1", "ID_2"], name=INDEX_NAME)
    )


@pytest.fixture
def folder(tmp_path):
    """A result as a blend might leave it."""
    for name in ("oof.parquet", "predictions_test.parquet"):
        write_predictions(some_predictions(), tmp_path / name, MADE)
    (tmp_path / "score.json").write_text(json.dumps({"weighted_log_loss": 0.1, "of_prevalence": 0.2}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"blend": {"runs": ["a", "b"]}}))
    (tmp_path / "environment.json").write_text(json.dumps({"commit": "abc"}))
    return tmp_path


def test_a_result_tells_where_it_comes_from(folder):
    assert result_directory.describe(folder) == {
        "run": str(folder),
        "commit": "abc",
        "out_of_fold_weighted_log_loss": 0.1,
        "prevalence_weighted_log_loss": 0.2,
        "warnings": [],
        "predictions": MADE,
        "config_sha256": sha256((folder / "config.yaml").read_bytes()).hexdigest(),
        "config": {"blend": {"runs": ["a", "b"]}},
    }


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("score.json", None, r"score.json is missing; "),
        ("score.json", "[1, 2]", r"score.json, which holds the out-of-fold score, cannot be read"),
        (
            "score.json",
            '{"weighted_log_loss": "x", "of_prevalence": 1}',
            r"score.json holds scores that are not numbers",
        ),
        ("score.json", "{}", r"score.json lacks of_prevalence, weighted_log_loss; score the result again"),
        ("config.yaml", None, r"has no config.yaml, as every result of .* has: restore it"),
        ("config.yaml", "a: [", r"config.yaml, which holds the config of the result, cannot be read"),
        ("environment.json", "{", r"environment.json, which says what the result was made with, cannot be read"),
        ("predictions_test.parquet", None, r"predictions_test.parquet is missing; restore a, which has no config"),
        ("oof.parquet", "junk", r"oof.parquet is damaged; restore a, which has no config.yaml, then restore b"),
    ],
)
def test_what_is_missing_or_damaged_is_reported(folder, name, content, said):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(IchError, match=said):
        result_directory.describe(folder)


def write_result(folder, config=None, environment=None, test=False):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {"name": folder.name}))
    (folder / "environment.json").write_text(json.dumps(environment or {}))
    if test:
        write_predictions(some_predictions(), folder / "predictions_test.parquet")


def test_how_to_predict_begins_with_what_a_result_is_made_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_result(Path("runs/a"))
    write_result(Path("runs/b"), test=True)
    write_result(Path("runs/second"), environment={"first_stage": ["runs/a"]})
    write_result(Path("runs/blend"), {"blend": {"runs": ["runs/b", "runs/second"]}})
    assert result_directory.how_to_predict(Path("runs/blend")) == (
        "run scripts/predict.py runs/a, then run scripts/predict.py runs/second, then run the command of"
        " scripts/blend.py again that made runs/blend"
    )
    Path("scores.csv").touch()
    write_result(Path("runs/stacked"), environment={"first_stage": ["scores.csv"]})
    assert "runs/stacked was trained on the table scores.csv, which has no test set" in result_directory.how_to_predict(
        Path("runs/stacked")
    )
    with pytest.raises(IchError, match=r"runs/blend/oof.parquet is missing; run scripts/predict.py runs/a, then run"):
        result_directory.check_alike(Path("runs/blend"))


def test_for_a_misspelt_result_those_that_are_there_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "demo-sequence", "other"):
        write_result(Path("runs") / name)
    for wrong in ("runs/dem", "run/dem"):
        with pytest.raises(IchError) as raised:
            result_directory.check_result(Path(wrong))
        assert str(raised.value) == (
            f"{tmp_path}/{wrong} does not exist ({wrong} from the working directory {tmp_path}: is that the right"
            " one?); name a directory of a run, a second stage or a blend, such as runs/demo or runs/demo-sequence or"
            " runs/other"
        )
    Path("demo.yaml").touch()
    with pytest.raises(IchError, match=r"demo.yaml is a file, expected a directory of runs/; .* such as runs/demo or"):
        result_directory.check_result(Path("demo.yaml"))
    Path("runs/demo/config.yaml").unlink()
    with pytest.raises(
        IchError, match=r"runs/demo has no config.yaml, as every .*: restore it; .* such as runs/demo-s"
    ):
        result_directory.describe(Path("runs/demo"))


def test_a_mixture_is_refused_with_the_difference(tmp_path):
    oof, test = tmp_path / "oof.parquet", tmp_path / "predictions_test.parquet"
    write_predictions(some_predictions(), oof, {"tta": ["none"], "mean": "logit"})
    write_result(tmp_path)
    with pytest.raises(IchError, match=r"predictions_test.parquet is missing; run scripts/predict.py"):
        result_directory.check_alike(tmp_path)
    write_predictions(some_predictions(), test, {"tta": ["none"], "mean": "logit"})
    result_directory.check_alike(tmp_path)
    write_predictions(some_predictions(), test, {"tta": ["flip"], "mean": "logit"})
    with pytest.raises(IchError, match=r"two ways \(tta: \['none'\] out of fold, \['flip'\] on the test set\)"):
        result_directory.check_alike(tmp_path)
    write_predictions(some_predictions(), test)
    with pytest.raises(IchError, match=r"tta: \['none'\] out of fold, None on the test set; mean: logit out"):
        result_directory.check_alike(tmp_path)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ({}, []),
        ({"weighted_log_loss": 0.2}, ["out of fold, no better than the prevalence baseline, 0.2000:"]),
        ({"weighted_log_loss": 0.3}, ["x scores 0.3000 out of fold, no better than the prevalence baseline, 0.2000:"]),
        ({"of_first_stage": 0.1, "of_kinds": {"linear": 0.1}, "plain_weighted_log_loss": 0.1}, []),
        ({"of_first_stage": 0.09}, ["worse than its first stage, 0.0900"]),
        ({"of_first_stage": 0.09, "of_kinds": {"linear": 0.08}}, ["worse than its kind linear alone, 0.0800"]),
        ({"of_kinds": {"linear": 0.099}, "of_kinds_intervals": {"linear": [-0.002, 0.004]}}, []),  # noise
        ({"of_kinds": {"linear": 0.08}, "of_kinds_intervals": {"linear": [0.01, 0.03]}}, ["kind linear alone, 0.08"]),
        (
            {"runs": {"runs/a": 0.05, "runs/b": 0.09}},
            ["worse than its member runs/a, 0.0500"],
        ),
        ({"runs": {"runs/a": 0.09999}}, []),  # as shown, it is the same
        ({"plain_weighted_log_loss": 0.09}, ["worse than one pass over the slices as they are, 0.0900"]),
        (
            {"plain_weighted_log_loss": 0.09, "plain_interval": [0.002, 0.02]},
            ["(by +0.0100, 95 % interval over patients"],
        ),
        (
            {"of_first_stage": 0.09, "of_first_stage_interval": [-0.01, 0.03]},
            ["-0.0100 to +0.0300): the interval holds 0"],
        ),
        (
            {"runs": {"a": 0.09}, "best_run": "a", "gain_interval": [-0.03, -0.01]},
            ["+0.0100 to +0.0300): that is to be preferred"],
        ),
        ({"of_first_stage": 0.09, "of_first_stage_interval": None}, ["(by +0.0100, no interval in its score.json)"]),
        (
            {"shift": {"causes": ["train.loss=focal"], "labels": {"any": {"predicted": 0.25, "found": 0.125}}}},
            [
                "x was trained with train.loss=focal: probabilities are shifted, which costs log loss; their means out"
                " of fold are any 0.2500 (found 0.1250). scripts/blend.py x --calibrate platt --out x-calibrated"
            ],
        ),
        ({"weighted_log_loss": 0.901, "of_first_stage": 0.294}, ["prevalence baseline", "its first stage, 0.2940"]),
    ],
)
def test_a_score_worse_than_its_parts_or_than_none_is_reported(score, said):
    sentences = result_directory.shortcomings("x", {"weighted_log_loss": 0.1, "of_prevalence": 0.2} | score)
    assert len(sentences) == len(said)
    assert all(part in sentence for sentence, part in zip(sentences, said, strict=True))


def test_a_share_of_nothing_is_n_a():
    assert result_directory.share(0.3, 0.2) == "1.50"
    assert result_directory.share(0.3, 1e-15) == "n/a"


def test_the_manifest_has_the_warnings(folder):
    (folder / "score.json").write_text(json.dumps({"weighted_log_loss": 0.9, "of_prevalence": 0.2}))
    (warning,) = result_directory.describe(folder)["warnings"]
    assert warning.startswith(f"{folder} scores 0.9000 out of fold, no better than the prevalence baseline, 0.2000")


@pytest.mark.parametrize("blend", [4, {}, {"runs": 4}])
def test_a_blend_that_does_not_say_what_it_is_of_is_reported(tmp_path, blend):
    write_result(tmp_path / "x", {"blend": blend})
    with pytest.raises(IchError, match=r"x/config.yaml lacks the members of the blend; restore it, or make the blend"):
        result_directory.members(tmp_path / "x")


def test_a_file_without_keys_is_reported(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(IchError, match=r"cannot be read \(it holds list, expected keys with values\); restore it"):
        result_directory.read_mapping(tmp_path / "x.json")
