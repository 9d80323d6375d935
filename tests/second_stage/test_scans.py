from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError
from ich.second_stage import scans


def slice_table(series, z):
    ids = pd.Index([f"ID_{k:03x}" for k in range(len(z))], name=INDEX_NAME)
    return pd.DataFrame({"SeriesInstanceUID": series, "z": z}, index=ids)


def some_logits(ids, seed=0):
    return pd.DataFrame(np.random.default_rng(seed).normal(0, 3, (len(ids), 6)), index=ids, columns=list(LABELS))


def members(arranged):
    return [list(arranged.ids[a:b]) for a, b in zip(arranged.starts[:-1], arranged.starts[1:], strict=True)]


def test_slices_lie_in_scan_order_whatever_the_order_of_the_rows():
    table = slice_table(["b", "a", "b", "a", "a"], [5.0, 2.0, -5.0, 1.0, 3.0])
    arranged = scans.arrange(table, some_logits(table.index[[4, 2, 0, 1, 3]]))
    assert members(arranged) == [["ID_003", "ID_001", "ID_004"], ["ID_002", "ID_000"]]
    assert arranged.z.tolist() == [1, 2, 3, -5, 5]
    assert len(arranged) == 2
    assert arranged.lengths.tolist() == [3, 2]


def test_scores_and_embeddings_stay_with_their_slices():
    table = slice_table(["a"] * 4, [3.0, 1.0, 2.0, 0.0])
    logits = some_logits(table.index)
    embeddings = np.arange(8, dtype=np.float16).reshape(4, 2)
    arranged = scans.arrange(table, logits, embeddings)
    for place, id in enumerate(arranged.ids):
        row = table.index.get_loc(id)
        np.testing.assert_array_equal(arranged.logits[place], logits.loc[id].to_numpy(np.float32))
        np.testing.assert_array_equal(arranged.embeddings[place], embeddings[row])


def test_two_slices_at_one_z_are_ordered_by_id():
    table = slice_table(["a"] * 3, [1.0, 0.0, 0.0])
    assert members(scans.arrange(table.iloc[::-1], some_logits(table.index))) == [["ID_001", "ID_002", "ID_000"]]


def test_a_slice_without_a_place_or_a_series_is_a_scan_of_its_own():
    table = slice_table(["a", "a", None, "a", None], [0.0, np.nan, 1.0, 2.0, 3.0])
    arranged = scans.arrange(table, some_logits(table.index))
    assert sorted(members(arranged)) == [["ID_000", "ID_003"], ["ID_001"], ["ID_002"], ["ID_004"]]


def test_a_quarantined_slice_is_left_out_and_the_rest_keep_their_z():
    table = slice_table(["a"] * 4, [0.0, 5.0, 10.0, 15.0])
    arranged = scans.arrange(table, some_logits(table.index.drop("ID_002")))
    assert members(arranged) == [["ID_000", "ID_001", "ID_003"]]
    assert arranged.z.tolist() == [0, 5, 15]


def test_logits_are_clipped():
    table = slice_table(["a"], [0.0])
    logits = pd.DataFrame([[-np.inf, np.inf, 40, -40, 0, 1]], index=table.index, columns=list(LABELS))
    assert scans.arrange(table, logits).logits.tolist() == [[-15, 15, 15, -15, 0, 1]]


def test_what_does_not_fit_is_named():
    table = slice_table(["a"] * 3, [0.0, 1.0, 2.0])
    logits = some_logits(table.index)
    with pytest.raises(IchError, match=r"the slice table has no ID_002, of which there are scores"):
        scans.arrange(table.iloc[:2], logits)
    with pytest.raises(IchError, match=r"the scores list ID_000 twice"):
        scans.arrange(table, logits.iloc[[0, 0, 1]])
    with pytest.raises(IchError, match=r"the slice table list ID_001 twice"):
        scans.arrange(table.iloc[[0, 1, 1, 2]], logits)
    logits.iloc[1, 3] = np.nan
    with pytest.raises(IchError, match=r"the scores of ID_001 are NaN"):
        scans.arrange(table, logits)
    with pytest.raises(IchError, match=r"there are 2 embeddings of 3 slices"):
        scans.arrange(table, some_logits(table.index), np.zeros((2, 4), np.float16))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.data())
def test_a_choice_of_scans_is_what_taking_them_one_by_one_gives(series, data):
    table = slice_table([f"s{k}" for k in series], np.arange(len(series), dtype=float))
    arranged = scans.arrange(table, some_logits(table.index))
    chosen = data.draw(st.lists(st.integers(0, len(arranged) - 1), max_size=6))
    taken = arranged.take(np.array(chosen, int))
    assert members(taken) == [members(arranged)[k] for k in chosen]
    rows = [row for k in chosen for row in arranged.rows(k)]
    np.testing.assert_array_equal(taken.logits, arranged.logits[rows])


def test_batches_hold_each_scan_once_and_like_lengths():
    series = [f"s{k}" for k in range(20) for _ in range(1 + k * 7 % 11)]
    table = slice_table(series, np.arange(len(series), dtype=float))
    arranged = scans.arrange(table, some_logits(table.index))
    batches = list(scans.batches(arranged, 6))
    assert sorted(np.concatenate(batches)) == list(range(20))
    assert [len(batch) for batch in batches] == [6, 6, 6, 2]
    lengths = [arranged.lengths[batch] for batch in batches]
    assert all(a.max() <= b.min() for a, b in pairwise(lengths))


def test_padding_lies_behind():
    out = scans.padded([np.ones((2, 3)), np.ones((1, 3))], 4, value=-1)
    assert out.shape == (2, 4, 3)
    assert out[:, :, 0].tolist() == [[1, 1, -1, -1], [1, -1, -1, -1]]


def test_logits_of_probabilities():
    frame = pd.DataFrame([[0, 1, 0.5, 0.9, 1e-12, 0.1]], columns=list(LABELS), dtype="float32")
    logits = scans.logits_of(frame).to_numpy()[0]
    assert logits[:3].tolist() == [-15, 15, 0]
    assert logits[3] == pytest.approx(np.log(9), abs=1e-6)
    assert logits[4] == -15


# -------------------------------------------------------------------------------------------- a table of scores


def score_table(n=4):
    frame = slice_table(["a"] * n, np.arange(n, dtype=float)).reset_index()
    labels = pd.DataFrame(0, index=range(n), columns=list(LABELS))
    return frame.assign(
        PatientID="p", **labels, **{f"score_{label}": np.arange(n) / 2 for label in LABELS}, StudyInstanceUID="more"
    )


@pytest.mark.parametrize("name", ["scores.csv", "scores.csv.gz", "scores.parquet"])
def test_a_table_of_scores_is_read_from_csv_and_parquet(tmp_path, name):
    table = score_table()
    (table.to_parquet if name.endswith("parquet") else table.to_csv)(tmp_path / name)
    scores = scans.read_scores(tmp_path / name)
    assert list(scores.index) == list(table["SOPInstanceUID"])
    assert (scores.dtypes[list(LABELS)] == "int8").all()
    assert scores["score_any"].tolist() == [0, 0.5, 1, 1.5]
    assert "StudyInstanceUID" not in scores


def test_tables_that_are_none(tmp_path):
    with pytest.raises(IchError, match="cannot be read as a table"):
        scans.read_scores(tmp_path / "none.csv")
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(IchError, match="cannot be read as a table"):
        scans.read_scores(tmp_path / "bad.parquet")
    score_table().drop(columns=["z", "score_any"]).to_csv(tmp_path / "few.csv")
    with pytest.raises(IchError, match=r"few.csv lacks the columns z, score_any"):
        scans.read_scores(tmp_path / "few.csv")
    score_table().assign(subdural=2).to_csv(tmp_path / "wrong.csv")
    with pytest.raises(IchError, match="holds labels other than 0 and 1"):
        scans.read_scores(tmp_path / "wrong.csv")
    score_table().to_csv(tmp_path / "whole.csv.gz")
    whole = (tmp_path / "whole.csv.gz").read_bytes()
    for damaged in (whole[:-40], whole[:30] + b"junk" * 9 + whole[66:]):
        (tmp_path / "cut.csv.gz").write_bytes(damaged)
        with pytest.raises(IchError, match="cannot be read as a table"):
            scans.read_scores(tmp_path / "cut.csv.gz")
    score_table().assign(z="high", score_any=["0", "1", "?", "2"]).to_csv(tmp_path / "text.csv")
    with pytest.raises(IchError, match="holds other things than numbers in the columns z, score_any; correct them"):
        scans.read_scores(tmp_path / "text.csv")
    table = score_table()
    table.assign(PatientID=["p", None, "p", "p"]).to_csv(tmp_path / "nobody.csv")
    with pytest.raises(IchError, match=f"names no patient of {table['SOPInstanceUID'].iloc[1]}; fill PatientID in"):
        scans.read_scores(tmp_path / "nobody.csv")


def test_ids_that_look_like_numbers_stay_as_they_are(tmp_path):
    score_table().assign(SOPInstanceUID=["01", "02", "3", "4"], PatientID="007").to_csv(tmp_path / "numbers.csv")
    scores = scans.read_scores(tmp_path / "numbers.csv")
    assert list(scores.index) == ["01", "02", "3", "4"]
    assert set(scores["PatientID"]) == {"007"}
