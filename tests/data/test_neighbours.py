import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.errors import IchError
from ich.images.slice_table import neighbours, to_frame


def table_of(rows, seed=0):
    """A slice table of (series, order, ok), in any order."""
    entries = [
        {
            "SOPInstanceUID": f"ID_{number:03}",
            "SeriesInstanceUID": series,
            "split": "train",
            "order": order,
            "status": "ok" if ok else "truncated",
        }
        for number, (series, order, ok) in enumerate(rows)
    ]
    return to_frame(entries).sample(frac=1, random_state=seed)


def slow(table, id, offset):
    """One slice's neighbour, by looking at each slice of its series."""
    rows = table.set_index("SOPInstanceUID")
    own = rows.loc[id]
    if pd.isna(own["order"]) or pd.isna(own["SeriesInstanceUID"]):
        return id
    series = rows[(rows["SeriesInstanceUID"] == own["SeriesInstanceUID"]) & rows["order"].notna()]
    target = min(max(own["order"] + offset, 0), series["order"].max())
    best = None
    for name, row in series.iterrows():
        if row["status"] == "ok":
            # Of two as near, the one farther from the slice itself.
            key = (abs(row["order"] - target), -abs(row["order"] - own["order"]))
            if best is None or key < best[0]:
                best = (key, name)
    return best[1]


@settings(max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=4), st.integers(0, 5))
def test_neighbours_are_those_of_the_slow_search(scans, seed):
    rows = [(f"ID_s{scan}", order, ok) for scan, oks in enumerate(scans) for order, ok in enumerate(oks)]
    rows += [("ID_s0", None, True), (None, None, True)]  # without a place in a scan
    table = table_of(rows, seed)
    ids = pd.Index(table["SOPInstanceUID"][table["status"] == "ok"])[::-1]
    offsets = (-3, -1, 0, 1, 2)
    known, places = neighbours(table, ids, offsets)
    assert places.dtype == np.int32
    assert places.shape == (len(ids), len(offsets))
    for id, row in zip(ids, places, strict=True):
        assert known[row].tolist() == [slow(table, id, offset) for offset in offsets]


def test_edges_repeat_and_a_hole_is_bridged():
    table = table_of([("ID_s", order, order != 2) for order in range(6)])
    known, places = neighbours(table, pd.Index(["ID_000", "ID_001", "ID_003", "ID_005"]), (-1, 0, 1))
    assert [[name[-1] for name in known[row]] for row in places] == [
        ["0", "0", "1"],  # edges repeat the last slice
        ["0", "1", "3"],  # of 1 and 3, both one beside the hole, 3 shows more
        ["1", "3", "4"],
        ["4", "5", "5"],
    ]


def test_no_place_anywhere_gives_the_slice_itself_and_no_warning():
    table = table_of([("ID_s", None, True), (None, None, True)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known, places = neighbours(table, pd.Index(["ID_000", "ID_001"]), (-1, 1))
    assert known.to_numpy()[places].tolist() == [["ID_000"] * 2, ["ID_001"] * 2]


def test_order_counts_within_a_split():
    table = table_of([("ID_s", order, True) for order in (0, 1, 2, 0, 1, 2)])
    table["split"] = np.where(table["SOPInstanceUID"] < "ID_003", "train", "test")
    known, places = neighbours(table, pd.Index(["ID_001", "ID_004"]), (-1, 1))
    assert known.to_numpy()[places].tolist() == [["ID_000", "ID_002"], ["ID_003", "ID_005"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.drop(columns=["order", "split"]),
            "lacks the columns split, order, which read_table",
        ),
        (lambda table: table.set_index("SOPInstanceUID"), "columns SOPInstanceUID, .*; call its reset_index"),
        (lambda table: "slices.parquet", "the slice table is a str, expected a DataFrame, as read_table gives it"),
    ],
)
def test_what_is_no_slice_table_is_refused(change, message):
    table = table_of([("ID_s", order, True) for order in range(3)])
    with pytest.raises(IchError, match=message):
        neighbours(change(table), pd.Index(["ID_000"]), (0, 1))


def test_slices_that_are_not_readable_are_refused():
    table = table_of([("ID_s", 0, True), ("ID_s", 1, False)])
    with pytest.raises(IchError, match="the slice table has no readable slices ID_001, ID_x; is it of other images"):
        neighbours(table, pd.Index(["ID_000", "ID_001", "ID_x"]), (0, 1))
