import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.data.targets import array_of, as_table, extra_of, label_of, labels_of, one_hot, weights_of
from ich.errors import IchError

IDS = pd.Index(["a", "b", "c"])


def of(values, **kwargs):
    return pd.Series(values, IDS, **kwargs)


# ------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "column",
    [
        of([1, 0, 2]),
        of([True, False, True]),
        of([1.5, 0, -2]),
        of([1, 0, 2], dtype="Int64"),
        of([True, False, True], dtype="boolean"),
        of([1, 0, 2], dtype=pd.ArrowDtype(pa.int8())),
        of([True, 0, 2.5], dtype=object),
        of([Decimal("1.5"), np.float32(2), np.int8(3)], dtype=object),
        of([1, 0, 2], dtype="category"),
        of([2**24, -(2**24), 2**24 + 2]),
        of([2.0**24 + 0.5, 1e30 / 3, 0.1]),
        of(np.array([123456789, 1, 2], np.float32)),
    ],
    ids=lambda column: str(column.dtype),
)
def test_numbers_of_any_type_are_taken(column):
    array = array_of(IDS[::-1], column, "labels")
    assert array.dtype == np.float32
    assert array.tolist() == [np.float32(float(value)) for value in column[::-1]]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (of(pd.to_datetime(["2020-01-01"] * 3)), r"Timestamp\('2020-01-01 00:00:00'\) \(Timestamp\)"),
        (of(pd.to_timedelta([1, 2, 3])), r"Timedelta\(.*\) \(Timedelta\)"),
        (of([datetime.date(2020, 1, 1)] * 3), r"datetime.date\(2020, 1, 1\) \(date\)"),
        (of(["1", "2", "3"]), r"'1' \(str\)"),
        (of(["1", 2, 3]), r"'1' \(str\)"),
        (of(["1", "2", "3"], dtype="category"), r"'1' \(str\)"),
        (of([1j, 2, 3]), r"1j|\(1\+0j\)|\(0\+1j\)"),
        (of([[1], [2], [3]]), r"\[1\] \(list\)"),
    ],
    ids=["dates", "durations", "days", "digits", "one digit", "categories", "complex", "lists"],
)
@pytest.mark.parametrize("what", ["labels", "weights", "extra inputs"])
def test_what_only_looks_like_numbers_is_refused(column, message, what):
    with pytest.raises(IchError, match=f"{what} are numbers, but of a there is {message}"):
        array_of(IDS, column, what)
    with pytest.raises(IchError, match=f"{what} are numbers, but of a in the column w there is {message}"):
        array_of(IDS, pd.DataFrame({"v": 1, "w": column}), what)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (of([1, 2**24 + 1, 3]), "16777217, which float32 rounds to 16777216"),
        (of([1, -(2**24) - 1, 3]), "-16777217, which float32 rounds to -16777216"),
        (of([1, 2**53 + 1, 3]), "9007199254740993, which float32 rounds to 9007199254740992"),
        (of([1, 2**64 - 1, 3], dtype=np.uint64), "18446744073709551615, which float32 rounds to 18446744073709551616"),
        (of([1, 20240101, 3], dtype="Int64"), "20240101, which float32 rounds to 20240100"),
        (of([1, 20240101, 3], dtype=object), "20240101, which float32 rounds to 20240100"),
        (of([1.5, 20240101, 3]), "20240101.0, which float32 rounds to 20240100"),
    ],
)
def test_whole_numbers_that_float32_would_round_are_refused_with_their_value(column, message):
    for labels in (column, pd.DataFrame({"v": 1, "w": column})):
        with pytest.raises(IchError, match=f"the labels of b hold {message}"):
            array_of(IDS, labels, "labels")
    assert array_of(pd.Index(["c", "a"]), column, "labels")[0] == 3  # of others nothing is asked


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**25), 2**25), min_size=3, max_size=3))
def test_integers_are_held_exactly_or_refused(values):
    exact = all(int(np.float32(value)) == value for value in values)
    try:
        array = array_of(IDS, of(values), "labels")
    except IchError:
        assert not exact
    else:
        assert exact
        assert [int(value) for value in array] == values


# ------------------------------------------------------------------------------------------------- tables


def test_dicts_make_tables():
    assert as_table({"a": 1, "b": 2}, "labels").to_dict() == {"a": 1, "b": 2}
    assert as_table({"a": [1, 2], "b": np.array([3, 4])}, "labels").to_numpy().tolist() == [[1, 2], [3, 4]]
    named = as_table({"a": {"x": 1, "y": 2}, "b": {"y": 4, "x": 3}}, "labels")
    assert named.loc["b"].to_dict() == {"x": 3, "y": 4}
    with pytest.raises(IchError, match=r"labels are numbers, but of a there is \[\[1, 2\]\] \(list\)"):
        array_of(IDS[:1], as_table({"a": [[1, 2]]}, "labels"), "labels")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3], r"the labels are a list, which does not say which .* give pd.Series\(values, index=ids\)"),
        ((1, 2, 3), "the labels are a tuple, which does not say"),
        (np.zeros((3, 6)), "the labels are a ndarray, which does not say"),
        ("labels.csv", "the labels are a str, expected a DataFrame, Series or dict whose index is the ids"),
        ({"a", "b"}, "the labels are a set, expected"),
        ({"a": [1, 2], "b": [3]}, "the labels are a dict of values of several shapes; give each id as many numbers"),
        ({"a": [1, 2], "b": 3}, "the labels are a dict of values of several shapes"),
        ({"a": np.zeros((2, 2)), "b": [1, 2]}, "the labels are a dict of values of several shapes"),
        ({"a": {"x": 1}, "b": 3}, "the labels are a dict of values of several shapes"),
        ({"a": {"x": 1}, "b": [1]}, "the labels are a dict of values of several shapes"),
        (pd.DataFrame([[1, 2, 3]], ["a"], ["x", "y", "x"]), "the labels have several columns x; give each a name"),
        (pd.DataFrame([[1, 2]], ["a"], [1, "1"]), "the labels have several columns 1; give each a name"),
    ],
)
def test_what_does_not_say_which_label_is_whose_is_refused(labels, message):
    with pytest.raises(IchError, match=message):
        as_table(labels, "labels")


MASKS = {id: np.zeros((4, 5)) for id in IDS}


@pytest.mark.parametrize(
    ("values", "what", "message"),
    [
        (
            MASKS,
            "labels",
            r"float64 of \(4, 5\) \(ndarray\); masks are given by a function: labels=masks.get, of a dict",
        ),
        (
            pd.Series(MASKS),
            "labels",
            r"float64 of \(4, 5\) \(ndarray\); masks are given by a function: labels=masks.get",
        ),
        (pd.DataFrame({"x": 1, "mask": MASKS}), "labels", r"in the column mask .*labels=masks.get"),
        (
            {id: mask.tolist() for id, mask in MASKS.items()},
            "labels",
            "masks are given by a function: labels=masks.get",
        ),
        ({id: [[0, 1], [1, 0]] for id in IDS}, "labels", r"\[\[0, 1\], \[1, 0\]\] \(list\); masks are given"),
        (MASKS, "weights", r"float64 of \(4, 5\) \(ndarray\); give one number an id"),
        (MASKS, "extra inputs", "give each number a column of its own, as pd.DataFrame"),
        (of([[1], [2], [3]]), "labels", r"\[1\] \(list\); give each number a column of its own, as pd.DataFrame"),
        ({id: np.array(1.0) for id in IDS}, "labels", r"float64 of \(\) \(ndarray\); convert the column"),
        (
            of(list("abc")),
            "labels",
            "convert the column to numbers; class_mode of from_dataframe takes classes by name",
        ),
    ],
    ids=["dict", "Series", "frame", "lists", "small", "weights", "extra", "numbers", "no axis", "text"],
)
def test_what_to_give_in_place_of_masks_and_lists(values, what, message):
    with pytest.raises(IchError, match=f"{what} are numbers, but of a .*{message}"):
        array_of(IDS, as_table(values, what), what)


def test_the_advice_for_masks_and_lists_helps():
    for masks in (MASKS, pd.Series(MASKS)):
        function, names = labels_of(IDS, masks.get)
        assert (label_of(function("a"), "a").shape, names) == ((4, 5), None)
    values = of([[1, 2], [3, 4], [5, 6]])
    assert array_of(IDS, pd.DataFrame(values.tolist(), index=values.index), "labels").tolist() == values.tolist()


# ------------------------------------------------------------------------------------------------- by their use


def test_labels_weights_and_extra_inputs_come_in_the_order_of_the_ids():
    frame = pd.DataFrame({"x": [1, 2, 3], "y": [4, 5, 6]}, IDS[::-1])
    labels, names = labels_of(IDS, frame)
    assert (labels.tolist(), names) == ([[3, 6], [2, 5], [1, 4]], ["x", "y"])
    assert labels_of(IDS, None) == (None, None)
    assert labels_of(IDS, len) == (len, None)
    labels, names = labels_of(IDS, {"a": 2, "b": 0, "c": 1}, num_classes=3)
    assert (labels.tolist(), names) == ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], None)
    assert weights_of(IDS, frame["x"]).tolist() == [3, 2, 1]
    extra = extra_of(IDS, frame)
    assert {name: column.tolist() for name, column in extra.items()} == {"x": [[3], [2], [1]], "y": [[6], [5], [4]]}


@pytest.mark.parametrize("columns", [[None, "None"], ["x", np.nan]])
def test_an_input_needs_a_name(columns):
    with pytest.raises(IchError, match="extra has a column without a name, which is that of the input"):
        extra_of(IDS, pd.DataFrame([[1, 2]] * 3, IDS, columns))


@pytest.mark.parametrize("value", [True, 3, [0.5, 1], np.ones((2, 3), np.int8), np.float64(1.5), [Decimal("0.5")]])
def test_a_label_of_a_function_keeps_its_shape(value):
    label = label_of(value, "a")
    assert label.dtype == np.float32
    np.testing.assert_array_equal(label, np.asarray(value, dtype=np.float64))


@pytest.mark.parametrize("labels", [None, [0, 1], np.zeros((2, 2)), np.array([0.5]), np.array([-1.0]), np.array([2.0])])
def test_only_a_column_of_class_numbers_is_made_one_hot(labels):
    with pytest.raises(IchError, match="num_classes=2 takes one column of whole numbers from 0 to 1"):
        one_hot(labels, 2)
