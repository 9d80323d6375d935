import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError
from ich.results.predictions import read_predictions, read_provenance, write_predictions


def some_predictions():
    values = np.random.default_rng(0).random((12, 6), dtype=np.float32)
    return pd.DataFrame(
        values, columns=list(LABELS), index=pd.Index([f"ID_{k:03x}" for k in range(12)], name=INDEX_NAME)
    )


def test_predictions_come_back_as_float32_under_their_ids(tmp_path):
    frame = some_predictions().astype(np.float64)
    write_predictions(frame, tmp_path / "p.parquet")
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "p.parquet"), frame.astype(np.float32))


def test_predictions_that_are_not_there_or_no_parquet(tmp_path):
    with pytest.raises(IchError, match=r"predictions .*no.parquet does not exist; run the command that makes"):
        read_predictions(tmp_path / "no.parquet")
    (tmp_path / "p.parquet").write_bytes(b"junk")
    with pytest.raises(IchError, match=r"predictions .*p.parquet cannot be read .*; delete the file, and run"):
        read_predictions(tmp_path / "p.parquet")


def test_predictions_with_other_columns(tmp_path):
    frame = some_predictions()
    frame.drop(columns="any").to_parquet(tmp_path / "p.parquet")
    with pytest.raises(IchError, match=r"have the columns epidural, .* under the index SOPInstanceUID, expected"):
        read_predictions(tmp_path / "p.parquet")
    frame.rename_axis("id").to_parquet(tmp_path / "p.parquet")
    with pytest.raises(IchError, match=r"under the index id, expected the numbers epidural"):
        read_predictions(tmp_path / "p.parquet")


def test_how_they_were_made_comes_back_and_changes_nothing_else(tmp_path):
    path, provenance = tmp_path / "p.parquet", {"tta": ["none", "flip"], "models": ["a"]}
    write_predictions(some_predictions(), path, provenance)
    assert read_provenance(path) == provenance
    pd.testing.assert_frame_equal(read_predictions(path), some_predictions())
    pd.testing.assert_frame_equal(pd.read_parquet(path), some_predictions())
    again = tmp_path / "again.parquet"
    write_predictions(some_predictions(), again, provenance)
    assert again.read_bytes() == path.read_bytes()


def test_values_that_are_not_finite_are_refused(tmp_path):
    frame = some_predictions()
    frame.iloc[1, 2] = np.nan
    write_predictions(frame, tmp_path / "p.parquet")
    with pytest.raises(
        IchError, match=rf"hold NaN or infinite values of 1 slice.*, such as {frame.index[1]}; delete the file"
    ):
        read_predictions(tmp_path / "p.parquet")


def test_the_passes_of_earlier_versions_are_known_by_their_name_of_today(tmp_path):
    write_predictions(some_predictions(), tmp_path / "p.parquet", {"test_time": ["none"], "mean": "logit"})
    assert read_provenance(tmp_path / "p.parquet") == {"tta": ["none"], "mean": "logit"}


def test_a_file_that_does_not_tell_how_and_one_that_is_none(tmp_path):
    some_predictions().to_parquet(tmp_path / "p.parquet")
    assert read_provenance(tmp_path / "p.parquet") == {}
    pq.write_table(pq.read_table(tmp_path / "p.parquet").replace_schema_metadata(), tmp_path / "bare.parquet")
    assert read_provenance(tmp_path / "bare.parquet") == {}
    assert read_provenance(tmp_path / "no.parquet") is None
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:500])
    assert read_provenance(tmp_path / "cut.parquet") is None
