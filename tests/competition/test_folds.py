import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ich.competition.folds import audit, check_no_shared_patients, make_folds, read_folds, write_folds
from ich.competition.labels import LABELS
from ich.errors import IchError

HEADER = "SOPInstanceUID,PatientID,fold,epidural,intraparenchymal,intraventricular,subarachnoid,subdural,any\n"


def slices(patients, five):
    """One row for each element of `patients`, with its five labels."""
    five = np.asarray(five, dtype=np.int8).reshape(-1, 5)
    frame = pd.DataFrame(
        np.column_stack([five, five.max(axis=1, initial=0)]),
        columns=list(LABELS),
        index=pd.Index([f"ID_{row:03x}" for row in range(len(patients))], name="SOPInstanceUID", dtype=object),
    )
    return frame.assign(PatientID=pd.Series(list(patients), index=frame.index, dtype=object))


def some_slices(patients=30, each=10, seed=0):
    rng = np.random.default_rng(seed)
    names = np.repeat([f"ID_p{number:02d}" for number in range(patients)], each)
    return slices(names, rng.random((len(names), 5)) < (0.03, 0.3, 0.2, 0.3, 0.4))


@st.composite
def data_sets(draw):
    patients = draw(st.lists(st.integers(0, 9).map("ID_p{}".format), min_size=2, max_size=40))
    assume(len(set(patients)) >= 2)
    bits = draw(st.lists(st.integers(0, 31), min_size=len(patients), max_size=len(patients)))
    frame = slices(patients, [[b >> place & 1 for place in range(5)] for b in bits])
    return frame, draw(st.integers(2, len(set(patients))))


# ------------------------------------------------------------------------------------------------ making folds


@given(data_sets(), st.integers(0, 3))
def test_every_slice_is_in_one_fold_and_no_patient_in_two(data, seed):
    frame, n_folds = data
    before = frame.copy()
    folds = make_folds(frame, n_folds, seed)
    pd.testing.assert_frame_equal(folds.drop(columns="fold"), frame[["PatientID", *LABELS]])
    assert folds["fold"].dtype == np.int64
    assert set(folds["fold"]) == set(range(n_folds))
    assert (folds.groupby("PatientID")["fold"].nunique() == 1).all()
    check_no_shared_patients(folds)
    pd.testing.assert_frame_equal(frame, before)


@given(data_sets(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_folds_depend_on_the_seed_but_not_on_the_order_of_rows(data, seed, random):
    frame, n_folds = data
    folds = make_folds(frame, n_folds, seed)
    pd.testing.assert_frame_equal(make_folds(frame, n_folds, seed), folds)
    order = random.sample(range(len(frame)), len(frame))
    pd.testing.assert_frame_equal(make_folds(frame.iloc[order], n_folds, seed), folds.iloc[order])


def test_another_seed_gives_other_folds():
    frame = some_slices()
    assert not make_folds(frame, seed=0)["fold"].equals(make_folds(frame, seed=1)["fold"])


@given(st.integers(2, 6), st.integers(6, 50), st.integers(1, 4), st.integers(0, 31))
def test_equal_patients_spread_as_evenly_as_they_can(n_folds, patients, each, bits):
    names = [f"ID_{number}" for number in range(patients) for _ in range(each)]
    folds = make_folds(slices(names, [[bits >> place & 1 for place in range(5)]] * len(names)), n_folds)
    sizes = audit(folds).table["slices"]
    assert sizes.max() - sizes.min() <= each


@given(st.integers(2, 5), st.integers(1, 5), st.integers(0, 99))
def test_a_label_of_few_patients_goes_to_all_folds(n_folds, rest, seed):
    rare = [f"ID_rare{number}" for number in range(n_folds)]
    names = rare + [f"ID_{number}" for number in range(n_folds * rest)]
    folds = make_folds(slices(names, [[name in rare, 0, 0, 0, 0] for name in names]), n_folds, seed)
    assert (folds.groupby("fold")["epidural"].sum() == 1).all()


def test_more_patients_than_a_swap_looks_at():
    rng = np.random.default_rng(0)
    frame = slices([f"ID_{number}" for number in range(700)], rng.random((700, 5)) < 0.2)
    table = audit(make_folds(frame)).table
    assert (table["slices"] == 140).all()
    sums = table[list(LABELS)] * 140
    # Three can be needed: six labels at once rarely divide.
    assert (sums.max() - sums.min()).max() <= 3


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("n_folds", [1, 0, -2])
def test_fewer_than_two_folds_are_refused(n_folds):
    with pytest.raises(IchError, match=f"n_folds is {n_folds}, but cross-validation needs 2 or more"):
        make_folds(some_slices(), n_folds)


@pytest.mark.parametrize(
    ("patients", "message"), [(1, "1 patient is too few for 5"), (4, "4 patients are too few for 5")]
)
def test_fewer_patients_than_folds_are_refused(patients, message):
    advice = f"set folds.n to {patients} at most, or add" if patients > 1 else "add patients with labeled slices"
    with pytest.raises(IchError, match=f"{message} folds, as a patient is never split; {advice}"):
        make_folds(some_slices(patients))


def test_no_slices_are_refused():
    with pytest.raises(IchError, match="0 patients are too few"):
        make_folds(some_slices().iloc[:0])


@pytest.mark.parametrize("missing", [None, np.nan, ""])
def test_slices_without_a_patient_are_refused(missing):
    frame = some_slices()
    frame.iloc[[3, 5, 6, 7], frame.columns.get_loc("PatientID")] = missing
    with pytest.raises(IchError, match=r"no PatientID for ID_003, ID_005, ID_006, … \(4 in all\); without it"):
        make_folds(frame)


def test_patients_that_are_not_strings_are_refused():
    frame = some_slices()
    with pytest.raises(IchError, match="PatientIDs of the kind integer, expected strings"):
        make_folds(frame.assign(PatientID=1))


def test_a_slice_that_stands_there_twice_is_refused():
    frame = some_slices()
    with pytest.raises(IchError, match="ID_004 are in more than one row"):
        make_folds(pd.concat([frame, frame.iloc[4:5]]))


def test_absent_columns_are_named():
    with pytest.raises(IchError, match="lacks the columns PatientID, any; join"):
        make_folds(some_slices().drop(columns=["any", "PatientID"]))


def test_labels_that_a_join_left_open_are_refused():
    frame = some_slices()
    frame["any"] = frame["any"].where(frame.index != "ID_003")
    with pytest.raises(IchError, match="labels are int8, got float64"):
        make_folds(frame)


# ------------------------------------------------------------------------------------------------------- audit


def test_the_audit_counts_what_is_in_each_fold():
    frame = slices(["ID_a", "ID_a", "ID_b", "ID_c"], [[1, 0, 0, 0, 0], [0] * 5, [0, 1, 0, 0, 0], [0] * 5])
    result = audit(frame.assign(fold=[0, 0, 1, 1]))
    assert result.table["patients"].to_dict() == {0: 1, 1: 2}
    assert result.table["slices"].to_dict() == {0: 2, 1: 2}
    assert result.table["epidural"].to_dict() == {0: 0.5, 1: 0.0}
    assert result.table["any"].to_dict() == {0: 0.5, 1: 0.5}
    assert result.deviation[["epidural", "any"]].to_dict() == {"epidural": 1.0, "any": 0.0}
    assert np.isnan(result.deviation["subdural"])
    assert result.leaking == ()
    assert (result.shared.to_numpy() == 0).all()
    text = str(result)
    assert "50.000%" in text
    assert text.splitlines()[4].split() == ["deviation", "100.00%", "100.00%", "n/a", "n/a", "n/a", "0.00%"]
    assert "no patient is in two folds" in text


def test_a_patient_in_two_folds_is_found_and_named():
    folds = make_folds(some_slices(), 3)
    check_no_shared_patients(folds)
    slice_id = folds.index[folds["PatientID"] == "ID_p07"][0]
    home = folds.loc[slice_id, "fold"]
    away = (home + 1) % 3
    folds.loc[slice_id, "fold"] = away
    result = audit(folds)
    assert result.leaking == ("ID_p07",)
    assert result.shared.loc[home, away] == result.shared.loc[away, home] == 1
    assert result.shared.to_numpy().sum() == 2
    assert "LEAK: patients in more than one fold: ID_p07" in str(result)
    with pytest.raises(IchError, match="patients in more than one fold: ID_p07; the score would"):
        check_no_shared_patients(folds)


@given(data_sets(), st.data())
def test_the_audit_agrees_with_counting_folds_a_patient(data, draw):
    frame, _ = data
    folds = frame.assign(fold=draw.draw(st.lists(st.integers(0, 2), min_size=len(frame), max_size=len(frame))))
    many = folds.groupby("PatientID")["fold"].nunique() > 1
    assert audit(folds).leaking == tuple(sorted(many.index[many]))


# ------------------------------------------------------------------------------------------------------- files


@given(data_sets())
def test_what_is_written_is_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("folds") / "deep" / "folds.csv"
    folds = make_folds(*data)
    write_folds(path, folds)
    assert path.read_text().startswith(HEADER + "ID_000,ID_p")
    read = read_folds(path)
    pd.testing.assert_frame_equal(read, folds, check_dtype=False, check_index_type=False)
    assert read["fold"].dtype == np.int64
    assert {read[label].dtype for label in LABELS} == {np.dtype(np.int8)}
    assert [file.name for file in path.parent.iterdir()] == ["folds.csv"]


def test_patients_with_commas_and_quotes_come_back(tmp_path):
    frame = some_slices(2, 1).assign(PatientID=['a,"b"', "c"])
    write_folds(str(tmp_path / "folds.csv"), make_folds(frame, 2))
    assert list(read_folds(str(tmp_path / "folds.csv"))["PatientID"]) == ['a,"b"', "c"]


@pytest.mark.parametrize("between", ["\n", "\r", "\r\n", "\0", "\t", "\x1b[31m", '"\n"', "\u2028", "\n,0,0,0\n"])
def test_patients_with_control_characters_stay_apart_and_come_back(tmp_path, between):
    names = [f"A{between}1", f"A{between}2", "A", "1", "A1", f"A{between}"]
    folds = make_folds(slices(names, [[0] * 5] * len(names)), 3)
    write_folds(tmp_path / "folds.csv", folds)
    back = read_folds(tmp_path / "folds.csv")
    assert back["PatientID"].tolist() == names
    assert back["fold"].tolist() == folds["fold"].tolist()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=2, unique=True))
@settings(max_examples=40)
def test_whatever_the_names_they_come_back(tmp_path_factory, names):
    folds = make_folds(slices(names, [[0] * 5] * len(names)), 2)
    folds.index = pd.Index([f"{name}{row}" for row, name in enumerate(names)], name="SOPInstanceUID", dtype=object)
    path = tmp_path_factory.mktemp("names") / "folds.csv"
    write_folds(path, folds)
    back = read_folds(path)
    assert back["PatientID"].tolist() == names
    assert back.index.tolist() == folds.index.tolist()


def test_line_breaks_come_back_from_a_file_of_several_blocks(tmp_path):
    names = np.array([f"A\n{row % 500}" for row in range(60_000)], dtype=object)
    folds = slices(names, np.zeros((60_000, 5))).assign(fold=np.arange(60_000) % 500 % 2)
    write_folds(tmp_path / "folds.csv", folds)
    assert (tmp_path / "folds.csv").stat().st_size > 2**20  # what pyarrow takes at a time
    assert read_folds(tmp_path / "folds.csv")["PatientID"].tolist() == names.tolist()


def test_names_without_control_characters_are_written_as_ever(tmp_path):
    folds = slices(["a", "b"], [[0] * 5, [1] * 5]).assign(fold=[0, 1])
    write_folds(tmp_path / "folds.csv", folds)
    rows = "ID_000,a,0,0,0,0,0,0,0\nID_001,b,1,1,1,1,1,1,1\n"
    assert (tmp_path / "folds.csv").read_bytes() == (HEADER + rows).encode()


def test_a_name_of_two_lines_is_reported_in_one():
    rows = slices(["A\n1", "A\n1", "B"], [[0] * 5] * 3)
    with pytest.raises(IchError) as raised:
        check_no_shared_patients(rows.assign(fold=[0, 1, 0]))
    assert "\n" not in str(raised.value)
    assert r"A\n1" in str(raised.value)


def test_unsound_folds_are_not_written(tmp_path):
    with pytest.raises(IchError, match="lacks the column fold; make it"):
        write_folds(tmp_path / "folds.csv", some_slices())
    with pytest.raises(IchError, match="folds as float64, expected whole numbers"):
        write_folds(tmp_path / "folds.csv", make_folds(some_slices()).astype({"fold": float}))
    assert list(tmp_path.iterdir()) == []


SOUND = "ID_1,ID_a,0,0,0,0,0,1,1\nID_2,ID_a,0,0,0,0,0,0,0\nID_3,ID_b,1,0,0,0,0,0,0\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ID_2", "ID_1", "ID_1 are in more than one row"),
        ("ID_1,ID_a", "ID_1,", "no PatientID for ID_1; without it"),
        ("ID_1,ID_a,0", "ID_1,ID_a,1", "patients in more than one fold: ID_a"),
        ("ID_b,1", "ID_b,2", "has the folds 0, 2; expected 0, 1 and so on without a gap"),
        ("ID_b,1", "ID_b,-1", "has the folds -1, 0; expected"),
        ("ID_b,1", "ID_b,0", "has the folds 0; expected .* 2 folds at least"),
        ("ID_b,1", "ID_b,", "is not a file of folds: .*conversion error to int64"),
        ("ID_b,1", "ID_b,1.5", "is not a file of folds: .*conversion error to int64"),
        ("0,1,1", "0,1,", "is not a file of folds: .*conversion error to int8"),
        ("0,1,1", "0,1,2", "labels are 0 or 1, but ID_1 have others"),
        ("0,1,1", "0,1,0", "`any` disagrees with the five other labels of ID_1"),
        ("ID_3,ID_b,1,", "", "is not a file of folds: .*Expected 9 columns, got 6"),
        (
            "PatientID,fold",
            "patient,fold",
            "has the columns SOPInstanceUID,patient,fold,.*, expected SOPInstanceUID,PatientID",
        ),
        ("ID_3,ID_b,1,0,0,0,0,0,0\n", "", "has the folds 0; expected"),
        (SOUND, "", "has the folds none; expected"),
        (HEADER + SOUND, "", "is not a file of folds: Empty"),
    ],
)
def test_edited_files_are_refused(tmp_path, old, new, message):
    path = tmp_path / "folds.csv"
    path.write_text(HEADER + SOUND)
    assert len(read_folds(path)) == 3
    path.write_text((HEADER + SOUND).replace(old, new, 1))
    with pytest.raises(IchError, match=message):
        read_folds(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(IchError, match=r"cannot read .*none\.csv: No such file"):
        read_folds(tmp_path / "none.csv")


# ---------------------------------------------------------------------------------------------- the real files


@pytest.mark.real
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "index"), [("train_studies_19530.csv.gz", "StudyInstanceUID"), ("slice_table.csv.gz", "SOPInstanceUID")]
)
def test_real_patients_spread_to_the_last_few_slices(name, index, seed):
    from sklearn.model_selection import GroupKFold

    frame = pd.read_csv(Path(os.environ["RSNA_SAMPLE"]) / name).astype(dict.fromkeys(LABELS, np.int8))
    frame = frame.set_index(index).rename_axis("SOPInstanceUID")
    result = audit(make_folds(frame, seed=seed))

    assert result.leaking == ()
    assert result.table["patients"].max() - result.table["patients"].min() <= 2
    assert result.table["slices"].max() - result.table["slices"].min() <= 2
    counts = frame[list(LABELS)].sum()
    # Counts are whole: the share that one slice of the rarest label makes in a fold is what nobody can go below.
    assert (result.deviation <= np.maximum(0.015, 1 / (counts / 5))).all()

    plain = frame.assign(fold=-1)
    for fold, (_, held_out) in enumerate(GroupKFold(5).split(frame, groups=frame["PatientID"])):
        plain.iloc[held_out, plain.columns.get_loc("fold")] = fold
    assert (result.deviation < audit(plain).deviation / 4).all()
