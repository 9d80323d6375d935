"""Folders of predict_scans as a submission takes them: nothing is filled in that was not found, nothing silently."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_results import home_of, script
from made_scans import head, write_scan

from ich.competition.labels import LABELS
from ich.competition.submission import fill_missing, make_submission
from ich.errors import IchError
from ich.own_scans.model_spec import read_model
from ich.own_scans.options import Options
from ich.own_scans.predict import predict_scans
from ich.own_scans.submitted import read_folder

DAMAGED, HEADLESS = "ID_2", "ID_4"
ASKED = pd.Index([f"ID_{k}" for k in range(7)])


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """Predictions of seven slices: one without its last pixels, one without a header."""
    folder = tmp_path_factory.mktemp("predicted")
    paths = write_scan(folder / "in", slices=7, pixels=head(8, 64))
    for k, path in enumerate(paths):
        content = path.read_bytes()
        if f"ID_{k}" == DAMAGED:
            content = content[:-2000]
        if f"ID_{k}" == HEADLESS:
            content = content[:140]
        path.write_bytes(content)
        path.rename(path.with_name(f"ID_{k}.dcm"))
    spec = read_model(home_of(tmp_path_factory) / "runs/tiny")
    predict_scans(spec, [folder / "in"], folder / "out", Options(pages=False, slabs=False, all_series=True))
    table = pd.read_csv(folder / "out/slices.csv", dtype={"SOPInstanceUID": str})
    table["SOPInstanceUID"] = table["file"].map(lambda name: Path(name).stem)  # as the competition has it
    table.to_csv(folder / "out/slices.csv", index=False)
    return folder / "out"


@pytest.fixture
def copied(predicted, tmp_path):
    return Path(shutil.copytree(predicted, tmp_path / "out"))


def test_what_was_found_and_not_predicted_is_known_with_its_series(predicted):
    result = read_folder(predicted, ASKED)
    table = result.table.set_index("SOPInstanceUID")
    assert set(result.predictions.index) == set(ASKED) - {DAMAGED, HEADLESS}
    assert table["status"].to_dict() == {id_: "not_read" if id_ in (DAMAGED, HEADLESS) else "ok" for id_ in ASKED}
    assert table.loc[DAMAGED, "SeriesInstanceUID"] == "1.2.7"
    assert pd.isna(table.loc[HEADLESS, "SeriesInstanceUID"])
    whole, filled = fill_missing(
        result.predictions, ASKED, ["series_mean", "prevalence"], result.table, result.score["prevalence"]
    )
    assert filled == {"series_mean": [DAMAGED], "prevalence": [HEADLESS]}
    np.testing.assert_allclose(whole.loc[DAMAGED, list(LABELS)], result.predictions.mean())
    with pytest.raises(IchError, match=f"{DAMAGED}, {HEADLESS} could not be read"):
        fill_missing(result.predictions, ASKED, ["refuse"], result.table)


def test_what_was_not_found_is_never_filled_in(predicted):
    asked = ASKED.append(pd.Index(["ID_77", "ID_78"]))
    result = read_folder(predicted, asked)
    whole, _ = fill_missing(
        result.predictions, asked, ["series_mean", "prevalence"], result.table, result.score["prevalence"]
    )
    rows = pd.Series([f"{id_}_{label}" for id_ in asked for label in LABELS])
    with pytest.raises(IchError, match="which have no predictions; nothing is filled in"):
        make_submission(whole, rows, asked)


def rewrite(folder, change):
    content = json.loads((folder / "predictions.json").read_text())
    change(content)
    (folder / "predictions.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: rewrite(f, lambda c: c.update(complete=False)), "are not complete"),
        (lambda f: rewrite(f, lambda c: c["model"].update(out_of_fold=None)), "does not tell the model's out-of-fold"),
        (lambda f: (f / "unread.csv").unlink(), "unread.csv cannot be read"),
        (lambda f: (f / "series.csv").write_text("a,b"), "series.csv cannot be read"),
        (
            lambda f: (f / "slices.csv").write_text((f / "slices.csv").read_text() * 2),
            "has no probabilities|two predictions",
        ),
    ],
)
def test_what_is_not_whole_is_refused(copied, spoil, message):
    spoil(copied)
    with pytest.raises(IchError, match=message):
        read_folder(copied, ASKED)


def test_two_predictions_of_a_slice_are_refused(copied):
    lines = (copied / "slices.csv").read_text().splitlines(keepends=True)
    (copied / "slices.csv").write_text("".join([*lines, lines[-1]]))
    with pytest.raises(IchError, match="has two predictions of"):
        read_folder(copied, ASKED)


def test_the_script_submits_a_folder_alone_with_a_sample(predicted, tmp_path):
    sample = tmp_path / "sample.csv"
    sample.write_text("ID,Label\n" + "".join(f"{id_}_{label},0.5\n" for id_ in ASKED for label in LABELS))
    given = ("make_submission.py", predicted, "--out", tmp_path, "--name", "mine")
    with pytest.raises(IchError, match="name --sample-submission"):
        script(*given)
    with pytest.raises(IchError, match="give it alone"):
        script("make_submission.py", predicted, predicted, "--sample-submission", sample)
    policy = ("--missing", "prevalence")
    with pytest.raises(IchError, match=r"--set data.images has no effect on .*predictions of scans"):
        script(*given, "--sample-submission", sample, *policy, "--set", "data.images=x")
    with pytest.raises(IchError, match="asks for"):
        script(*given, "--sample-submission", sample)
    script(*given, "--sample-submission", sample, "--missing", "series_mean", "--missing", "prevalence")
    manifest = json.loads((tmp_path / "mine.json").read_text())
    assert manifest["missing"]["filled"] == {"series_mean": 1, "prevalence": 1}
    assert len(pd.read_csv(tmp_path / "mine.csv")) == 6 * len(ASKED)
