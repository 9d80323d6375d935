import io
import json
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.competition.labels import INDEX_NAME, LABELS, read_ids
from ich.competition.submission import NEEDED, fill_missing, make_submission, write_filled, write_submission
from ich.errors import IchError
from ich.images.slice_table import to_frame


def predictions(images: list[str], seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).random((len(images), len(LABELS))).astype(np.float32)
    return pd.DataFrame(values, index=pd.Index(images, name=INDEX_NAME), columns=list(LABELS))


def sample(rows: list[str]) -> tuple[pd.Series, pd.Index]:
    return read_ids(io.BytesIO(("ID,Label\n" + "".join(f"{row},0.5\n" for row in rows)).encode()))


def rows_of(images: list[str]) -> list[str]:
    return [f"{image}_{label}" for image in images for label in LABELS]


@given(st.permutations(["ID_0a", "ID_1b", "ID_2c"]), st.permutations(rows_of(["ID_0a", "ID_1b", "ID_2c"])))
def test_every_row_of_the_sample_gets_its_own_prediction_in_the_samples_order(images, rows):
    frame = predictions(images)
    submission = make_submission(frame, *sample(rows))
    assert submission["ID"].tolist() == rows
    for row, value in zip(submission["ID"], submission["Label"], strict=True):  # the slow way to look a prediction up
        image, _, label = row.rpartition("_")
        assert value == frame.loc[image, label]


def test_an_image_without_prediction_is_refused():
    with pytest.raises(IchError, match=r"asks for ID_1, .*no predictions; nothing is filled in"):
        make_submission(predictions(["ID_0"]), *sample(rows_of(["ID_0", "ID_1"])))


def test_a_prediction_nobody_asked_for_is_refused():
    with pytest.raises(IchError, match="predictions of ID_1, which the sample submission lacks"):
        make_submission(predictions(["ID_0", "ID_1"]), *sample(rows_of(["ID_0"])))


# ------------------------------------------------------------------------------------------- slices not read

SERIES = {"ID_0": "ID_s", "ID_1": "ID_s", "ID_2": "ID_t", "ID_3": "ID_s", "ID_4": "ID_u", "ID_5": None}
UNREAD = ["ID_3", "ID_4", "ID_5"]  # of a series with predictions, of one without, of none that is known
PREVALENCE = dict(zip(LABELS, np.linspace(0.01, 0.2, 6).tolist(), strict=True))


def table_of(series):
    rows = [
        {"SOPInstanceUID": id_, "SeriesInstanceUID": of, "split": "test"}
        | {"status": "truncated" if id_ in UNREAD else "ok"}
        for id_, of in series.items()
    ]
    return to_frame(rows)[list(NEEDED)]


def fill(asked, *policies, prevalence=PREVALENCE):
    return fill_missing(predictions(["ID_2", "ID_1", "ID_0"]), pd.Index(asked), policies, table_of(SERIES), prevalence)


def test_the_mean_of_the_series_stands_for_its_slice_alone():
    given = predictions(["ID_2", "ID_1", "ID_0"])
    filled, counts = fill(["ID_0", "ID_1", "ID_2", "ID_3"], "series_mean")
    assert counts == {"series_mean": ["ID_3"]}
    pd.testing.assert_frame_equal(filled.iloc[:3], given)
    assert (filled.dtypes == np.float32).all()
    for label in LABELS:
        assert filled.loc["ID_3", label] == pytest.approx((given.loc["ID_0", label] + given.loc["ID_1", label]) / 2)
    rows, images = sample(rows_of(["ID_0", "ID_1", "ID_2", "ID_3"]))
    assert len(make_submission(filled, rows, images)) == 24


def test_policies_are_tried_in_their_order():
    asked = ["ID_0", "ID_1", "ID_2", *UNREAD]
    filled, counts = fill(asked, "series_mean", "prevalence")
    assert counts == {"series_mean": ["ID_3"], "prevalence": ["ID_4", "ID_5"]}
    assert filled.loc["ID_5"].to_dict() == pytest.approx(PREVALENCE)
    assert not np.allclose(filled.loc["ID_3"], list(PREVALENCE.values()))
    filled, counts = fill(asked, "prevalence", "series_mean")
    assert counts == {"prevalence": UNREAD, "series_mean": []}
    assert filled.index.name == INDEX_NAME


def test_nothing_is_missing_and_nothing_changes():
    filled, counts = fill(["ID_0", "ID_1", "ID_2"], "series_mean", "prevalence")
    pd.testing.assert_frame_equal(filled, predictions(["ID_2", "ID_1", "ID_0"]))
    assert counts == {"series_mean": [], "prevalence": []}


def test_a_slice_that_no_policy_fills_is_refused():
    with pytest.raises(
        IchError, match=r"ID_4, ID_5 could not be read \(truncated\), of a series that is unknown or has no"
    ):
        fill(["ID_0", *UNREAD], "series_mean")
    with pytest.raises(IchError, match=r"ID_3, ID_4, ID_5 could not be read \(truncated\), so that they have no pre"):
        fill(["ID_0", *UNREAD], "refuse")


def test_a_slice_that_was_not_predicted_or_not_converted_is_not_filled_in():
    series = SERIES | {"ID_6": "ID_s"}  # it can be read
    filled, filled_ids = fill_missing(
        predictions(["ID_0"]), pd.Index(["ID_0", "ID_6", "ID_7"]), ["prevalence"], table_of(series), PREVALENCE
    )
    assert filled_ids == {"prevalence": []}
    assert filled.index.tolist() == ["ID_0"]
    with pytest.raises(IchError, match="asks for ID_6, ID_7, which have no predictions; nothing is filled in"):
        make_submission(filled, *sample(rows_of(["ID_0", "ID_6", "ID_7"])))


def test_refuse_stands_alone():
    for policies in (["refuse", "series_mean"], ["prevalence", "refuse"]):
        with pytest.raises(IchError, match=r"the policies \w+, \w+ contradict each other; name refuse alone"):
            fill(["ID_0", "ID_1", "ID_2", "ID_3"], *policies)


def test_an_unknown_policy_and_a_prevalence_that_nobody_knows():
    with pytest.raises(IchError, match="unknown policy 'mean'; expected refuse, series_mean, prevalence"):
        fill(["ID_0"], "mean")
    with pytest.raises(IchError, match=r"score.json lacks the labels' prevalence; name another policy"):
        fill(["ID_0"], "prevalence", prevalence=None)


# ------------------------------------------------------------------------------------------- values and files


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_a_value_that_is_no_probability_is_refused(value):
    frame = predictions(["ID_0", "ID_1"])
    frame.loc["ID_1", "subdural"] = value
    with pytest.raises(IchError, match=r"predictions of ID_1 are not in \[0, 1\]"):
        make_submission(frame, *sample(rows_of(["ID_0", "ID_1"])))


def test_the_file_reads_back_to_the_same_values_and_its_manifest_tells_what_it_is(tmp_path):
    frame = predictions(["ID_0", "ID_1"])
    frame.loc["ID_0", "any"] = np.nextafter(np.float32(1), np.float32(0))  # would round to 1, and cost 34.5 if wrong
    submission = make_submission(frame, *sample(rows_of(["ID_0", "ID_1"])))
    path = tmp_path / "run.csv"
    write_submission(submission, path, {"run": "runs/run"})
    assert path.read_text().startswith("ID,Label\nID_0_epidural,0.")
    back = pd.read_csv(path)
    assert back["ID"].tolist() == submission["ID"].tolist()
    assert (back["Label"].astype(np.float32) == submission["Label"]).all()
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert manifest == {
        "file": "run.csv",
        "rows": 12,
        "sha256": sha256(path.read_bytes()).hexdigest(),
        "run": "runs/run",
    }
    assert {p.name for p in tmp_path.iterdir()} == {"run.csv", "run.json"}


@pytest.mark.parametrize("name", ["package.json", "package.csv"])
def test_a_file_that_is_no_submission_is_left_alone(tmp_path, name):
    submission = make_submission(predictions(["ID_0"]), *sample(rows_of(["ID_0"])))
    (tmp_path / name).write_text('{"name": "somebody\'s", "file": "package.js"}')
    with pytest.raises(IchError, match=r"package\.csv and package\.json exist and are not a submission .*\(--name\)"):
        write_submission(submission, tmp_path / "package.csv", {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"name": "somebody\'s", "file": "package.js"}']


def test_what_was_changed_since_and_other_files_of_its_names_are_left_alone(tmp_path):
    submission = make_submission(predictions(["ID_0"]), *sample(rows_of(["ID_0"])))
    path = tmp_path / "run.csv"
    write_submission(submission, path, {})
    path.write_text("edited")
    with pytest.raises(IchError, match=r"or the CSV was changed since; name another folder"):
        write_submission(submission.assign(Label=np.float32(0.5)), path, {})
    assert path.read_text() == "edited"
    (tmp_path / "other.filled.csv").write_text("somebody's")
    with pytest.raises(IchError, match=r"other\.filled\.csv exists and was not written by this command"):
        write_submission(submission, tmp_path / "other.csv", {})
    write_filled({"prevalence": ["ID_0"]}, path)
    path.unlink()
    write_submission(submission, path, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("other.filled.csv", "run.csv", "run.filled.csv", "run.json")
    ]
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(IchError, match=r"folder\.csv: Is a directory"):
        write_submission(submission, tmp_path / "folder.csv", {})


def test_a_submission_is_replaced_by_a_later_one_and_after_a_kill(tmp_path):
    submission = make_submission(predictions(["ID_0"]), *sample(rows_of(["ID_0"])))
    path = tmp_path / "run.csv"
    write_submission(submission, path, {"run": "one"})
    path.with_suffix(".json").unlink()  # written last
    write_submission(submission, path, {"run": "one"})
    write_submission(submission.assign(Label=np.float32(0.5)), path, {"run": "two"})
    assert json.loads(path.with_suffix(".json").read_text())["run"] == "two"


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IchError, match="cannot write"):
        write_submission(
            make_submission(predictions(["ID_0"]), *sample(rows_of(["ID_0"]))), tmp_path / "file" / "a.csv", {}
        )
