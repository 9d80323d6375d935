import io
import json
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.errors import IchError
from ich.labels import INDEX_NAME, LABELS
from ich.submission import make_submission, write_submission


def predictions(images: list[str], seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).random((len(images), len(LABELS))).astype(np.float32)
    return pd.DataFrame(values, index=pd.Index(images, name=INDEX_NAME), columns=list(LABELS))


def sample(rows: list[str]) -> io.BytesIO:
    return io.BytesIO(("ID,Label\n" + "".join(f"{row},0.5\n" for row in rows)).encode())


def rows_of(images: list[str]) -> list[str]:
    return [f"{image}_{label}" for image in images for label in LABELS]


@given(st.permutations(["ID_0a", "ID_1b", "ID_2c"]), st.permutations(rows_of(["ID_0a", "ID_1b", "ID_2c"])))
def test_every_row_of_the_sample_gets_its_own_prediction_in_the_samples_order(images, rows):
    frame = predictions(images)
    made = make_submission(frame, sample(rows))
    assert made["ID"].tolist() == rows
    for row, value in zip(made["ID"], made["Label"], strict=True):  # the slow way to look a prediction up
        image, _, label = row.rpartition("_")
        assert value == frame.loc[image, label]


def test_an_image_without_prediction_is_refused():
    with pytest.raises(IchError, match=r"asks for ID_1, .*no predictions; nothing is filled in"):
        make_submission(predictions(["ID_0"]), sample(rows_of(["ID_0", "ID_1"])))


def test_a_prediction_nobody_asked_for_is_refused():
    with pytest.raises(IchError, match="predictions of ID_1, for which the sample submission does not ask"):
        make_submission(predictions(["ID_0", "ID_1"]), sample(rows_of(["ID_0"])))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_a_value_that_is_no_probability_is_refused(value):
    frame = predictions(["ID_0", "ID_1"])
    frame.loc["ID_1", "subdural"] = value
    with pytest.raises(IchError, match=r"predictions of ID_1 are not in \[0, 1\]"):
        make_submission(frame, sample(rows_of(["ID_0", "ID_1"])))


def test_the_file_reads_back_to_the_same_values_and_its_manifest_tells_what_it_is(tmp_path):
    frame = predictions(["ID_0", "ID_1"])
    frame.loc["ID_0", "any"] = np.nextafter(np.float32(1), np.float32(0))  # would round to 1, and cost 34.5 if wrong
    made = make_submission(frame, sample(rows_of(["ID_0", "ID_1"])))
    path = tmp_path / "run.csv"
    write_submission(made, path, {"run": "runs/run"})
    assert path.read_text().startswith("ID,Label\nID_0_epidural,0.")
    back = pd.read_csv(path)
    assert back["ID"].tolist() == made["ID"].tolist()
    assert (back["Label"].astype(np.float32) == made["Label"]).all()
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert manifest == {
        "file": "run.csv",
        "rows": 12,
        "sha256": sha256(path.read_bytes()).hexdigest(),
        "run": "runs/run",
    }
    assert {p.name for p in tmp_path.iterdir()} == {"run.csv", "run.json"}


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IchError, match="cannot write"):
        write_submission(
            make_submission(predictions(["ID_0"]), sample(rows_of(["ID_0"]))), tmp_path / "file" / "a.csv", {}
        )
