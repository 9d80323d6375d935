import re

import numpy as np
import pandas as pd
import pytest

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.own_scans import truth

SHORT = ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH")


def read(tmp_path, text, format):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return truth.read_truth(path, format)


def reads(rows, separator=":"):
    """CQ500's table: a name, and of each label the three readers' votes."""
    head = ["name", "Category", *(f"R{reader}{separator}{short}" for reader in (1, 2, 3) for short in SHORT)]
    lines = [",".join(head)]
    for name, votes in rows.items():
        lines.append(",".join([name, "B1", *(votes[k][reader] for reader in range(3) for k in range(6))]))
    return "\n".join(lines)


def test_the_majority_of_three_readers_counts(tmp_path):
    votes = {
        "CQ500-CT-0": ["000", "001", "011", "111", "1 1", "1 0"],
        "CQ500-CT-17": ["0 0", "000", "000", "000", "000", "000"],
    }
    reference = read(tmp_path, reads(votes), "cq500")
    assert list(reference.labels) == list(LABELS)
    np.testing.assert_array_equal(reference.labels.loc["CQ500-CT-0"], [0, 0, 1, 1, 1, np.nan])
    np.testing.assert_array_equal(reference.labels.loc["CQ500-CT-17"], np.zeros(6))
    assert not reference.of_slices


@pytest.mark.parametrize("separator", [".", "_"])
def test_columns_are_found_whatever_their_signs(tmp_path, separator):
    votes = {"CQ500CT3": ["111"] * 6}
    assert read(tmp_path, reads(votes, separator).replace("name,", "Name,"), "cq500").labels.index[0] == "CQ500-CT-3"


def test_scans_of_cq500_are_known_by_patient_or_by_folder(tmp_path):
    reference = read(tmp_path, reads({"CQ500-CT-0": ["000"] * 6}), "cq500")
    slices = pd.DataFrame(
        [
            ("CQ500CT0 CQ500CT0/Unknown Study/CT Plain/CT000000.dcm", ""),
            ("CQ500-CT-12/CQ500CT12 CQ500CT12/Unknown Study/CT 5mm/CT000000.dcm", "CQ500-CT-12"),
            ("CQ500-CT-120.zip/CT000000.dcm", ""),
            ("IMG0001", "CQ500-CT-7"),
            ("somewhere/CT000000.dcm", ""),
            ("xCQ500CT1/CT000000.dcm", "other"),
        ],
        columns=["file", "PatientID"],
    )
    names = ["CQ500-CT-0", "CQ500-CT-12", "CQ500-CT-120", "CQ500-CT-7", None, None]
    assert [name if isinstance(name, str) else None for name in reference.keys_of(slices)] == names
    assert reference.keys_of(slices[["file"]]).iloc[1] == "CQ500-CT-12"
    with pytest.raises(IchError, match="PatientID CQ500-CT-1, which names another scan"):
        reference.keys_of(pd.DataFrame({"file": ["CQ500CT0/a"], "PatientID": ["CQ500-CT-1"]}))
    with pytest.raises(IchError, match="several scans"):
        reference.keys_of(pd.DataFrame({"file": ["CQ500CT0/CQ500CT1/a"]}))


HEAD = "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,No_Hemorrhage,F"


def test_slices_of_ct_ich_are_those_of_the_volumes(tmp_path):
    reference = read(tmp_path, f"{HEAD}\n49,1,0,0,0,0,0,1,0\n49,14,1,0,0,1,0,0,1\n050,2.0,0,0,0,0,1,1,0", "ct-ich")
    assert reference.of_slices
    np.testing.assert_array_equal(reference.labels.loc["49.1"], np.zeros(6))
    np.testing.assert_array_equal(reference.labels.loc["49.14"], [1, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(reference.labels.loc["50.2"], [0, 0, 0, 0, 1, 1])
    assert any("No_Hemorrhage contradicts the five kinds in 50.2" in note for note in reference.notes)
    uids = ["049.1", "ct_scans/049.14", "050.2", "1.2.3", "049"]
    keys = reference.keys_of(pd.DataFrame({"SOPInstanceUID": uids}))
    assert [key if isinstance(key, str) else None for key in keys] == ["49.1", "49.14", "50.2", None, None]


def test_a_plain_table_is_keyed_by_its_finest_column(tmp_path):
    text = "StudyInstanceUID,SOPInstanceUID,Epidural,any\n1,1.1,0,1\n1,1.2,,0\n1,1.2,,0\n"
    reference = read(tmp_path, text, "plain")
    assert reference.kind == "SOPInstanceUID"
    assert reference.of_slices
    np.testing.assert_array_equal(reference.labels.loc["1.1"], [0, *[np.nan] * 4, 1])
    np.testing.assert_array_equal(reference.labels.loc["1.2"], [*[np.nan] * 5, 0])
    assert "not given: intraparenchymal, intraventricular, subarachnoid, subdural" in reference.notes


def test_any_is_derived_only_of_all_five(tmp_path):
    five = ",".join(LABELS[:5])
    reference = read(tmp_path, f"SeriesInstanceUID,{five}\na,0,0,0,0,0\nb,0,,1,0,0\nc,0,,0,0,0", "plain")
    np.testing.assert_array_equal(reference.labels["any"], [0, 1, np.nan])
    assert any("`any` is not given" in note for note in reference.notes)
    given = read(tmp_path, f"SeriesInstanceUID,{five},any\na,0,0,0,0,0,1\nb,0,0,1,0,0,1", "plain")
    np.testing.assert_array_equal(given.labels["any"], [1, 1])
    assert any("not the OR of the five kinds in a:" in note for note in given.notes)
    four = read(tmp_path, "SeriesInstanceUID,epidural,subdural,subarachnoid,intraventricular\na,0,1,0,0", "plain")
    assert four.labels["any"].isna().all()


@pytest.mark.parametrize(
    ("text", "format", "message"),
    [
        ("", "plain", "no rows; expected"),
        ("SeriesInstanceUID,any\n", "plain", "no rows; expected the columns one of SOPInstanceUID"),
        ("id,any\na,1", "plain", "has the columns id, any; expected the columns one of SOPInstanceUID"),
        ("SeriesInstanceUID,bleed\na,1", "plain", "one or more of epidural"),
        ("SeriesInstanceUID,any\n,1", "plain", r"1 row\(s\) without SeriesInstanceUID"),
        ("SeriesInstanceUID,any\na,2", "plain", "has 2 in any; expected 0, 1, or nothing"),
        ("SeriesInstanceUID,any\na,1\na,0", "plain", "lists a more than once with different labels"),
        ("SeriesInstanceUID,any,any\na,1,0", "plain", "any, any, which read alike"),
        ("SeriesInstanceUID,any\na,1,0", "plain", "2 columns, and other numbers of values in a,1,0;"),
        ("SeriesInstanceUID,any\nb,1\na", "plain", "other numbers of values in a;"),
        (reads({"CQ500-CT-0": ["000"] * 6}), "plain", "these are columns of --format cq500"),
        (f"{HEAD}\n1,1,0,0,0,0,0,1,0", "plain", "these are columns of --format ct-ich"),
        ("SeriesInstanceUID,Any,any\na,1,0", "plain", "Any, any, which read alike"),
        ("name,R1:ICH\nCQ500-CT-0,1", "cq500", "no R1:EDH, R2:EDH, R3:EDH, … .17 in all."),
        (reads({"scan 1": ["000"] * 6}), "cq500", "names scan 1; expected CQ500-CT-<number>"),
        (reads({"CQ500-CT-0": ["00x"] * 6}), "cq500", "has x in R3:EDH"),
        ("PatientNumber,SliceNumber\n1,1", "ct-ich", "no Epidural, Intraparenchymal"),
        (f"{HEAD}\n1,one,0,0,0,0,0,1,0", "ct-ich", "has the SliceNumber one; expected whole numbers"),
    ],
)
def test_what_is_no_table_of_labels_is_refused(tmp_path, text, format, message):
    with pytest.raises(IchError, match=message):
        read(tmp_path, text, format)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    (tmp_path / "latin").write_bytes(b"SeriesInstanceUID,any\n\xe9,1")
    with pytest.raises(IchError, match="cannot be read as CSV: 'utf-8' codec"):
        truth.read_truth(tmp_path / "latin", "plain")
    with pytest.raises(IchError, match=re.escape(f"{tmp_path / 'none.csv'} does not exist")):
        truth.read_truth(tmp_path / "none.csv", "plain")
