import datetime
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data.frames import class_labels
from ich.data.targets import array_of, as_table
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
    found = array_of(IDS[::-1], column, "labels")
    assert found.dtype == np.float32
    assert found.tolist() == [np.float32(float(value)) for value in column[::-1]]


@pytest.mark.parametrize(
    ("column", "told"),
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
def test_what_only_looks_like_numbers_is_refused(column, told, what):
    with pytest.raises(IchError, match=f"{what} are numbers, but of a there is {told}"):
        array_of(IDS, column, what)
    with pytest.raises(IchError, match=f"{what} are numbers, but of a in the column w there is {told}"):
        array_of(IDS, pd.DataFrame({"v": 1, "w": column}), what)


@pytest.mark.parametrize(
    ("column", "told"),
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
def test_whole_numbers_that_float32_would_round_are_refused_with_their_value(column, told):
    for labels in (column, pd.DataFrame({"v": 1, "w": column})):
        with pytest.raises(IchError, match=f"the labels of b hold {told}"):
            array_of(IDS, labels, "labels")
    assert array_of(pd.Index(["c", "a"]), column, "labels")[0] == 3  # of others nothing is asked


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**25), 2**25), min_size=3, max_size=3))
def test_integers_are_held_exactly_or_refused(values):
    exact = all(int(np.float32(value)) == value for value in values)
    try:
        found = array_of(IDS, of(values), "labels")
    except IchError:
        assert not exact
    else:
        assert exact
        assert [int(value) for value in found] == values


# ------------------------------------------------------------------------------------------------- tables


def test_dicts_make_tables():
    assert as_table({"a": 1, "b": 2}, "labels").to_dict() == {"a": 1, "b": 2}
    assert as_table({"a": [1, 2], "b": np.array([3, 4])}, "labels").to_numpy().tolist() == [[1, 2], [3, 4]]
    named = as_table({"a": {"x": 1, "y": 2}, "b": {"y": 4, "x": 3}}, "labels")
    assert named.loc["b"].to_dict() == {"x": 3, "y": 4}
    with pytest.raises(IchError, match=r"labels are numbers, but of a in the column 0 there is \[1, 2\] \(list\)"):
        array_of(IDS[:1], as_table({"a": [[1, 2]]}, "labels"), "labels")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([1, 2, 3], r"the labels are a list, which does not say which .* give pd.Series\(values, index=ids\)"),
        ((1, 2, 3), "the labels are a tuple, which does not say"),
        (np.zeros((3, 6)), "the labels are a ndarray, which does not say"),
        ("labels.csv", "the labels are a str, expected a DataFrame, Series or dict whose index is the ids"),
        ({"a", "b"}, "the labels are a set, expected"),
        ({"a": [1, 2], "b": [3]}, "the labels are a dict of values of several shapes; give each id as many numbers"),
        ({"a": [1, 2], "b": 3}, "the labels are a dict of values of several shapes"),
        ({"a": {"x": 1}, "b": 3}, "the labels are a dict of values of several shapes"),
        ({"a": {"x": 1}, "b": [1]}, "the labels are a dict of values of several shapes"),
        (pd.DataFrame([[1, 2, 3]], ["a"], ["x", "y", "x"]), "the labels have several columns x; give each a name"),
        (pd.DataFrame([[1, 2]], ["a"], [1, "1"]), "the labels have several columns 1; give each a name"),
    ],
)
def test_what_does_not_say_which_label_is_whose_is_refused(labels, told):
    with pytest.raises(IchError, match=told):
        as_table(labels, "labels")


# ------------------------------------------------------------------------------------------------- classes

NAMES = st.sampled_from(["bleed", "none", "artefact", "tumor"])
SEVERAL = st.lists(NAMES, max_size=4).flatmap(
    lambda names: st.sampled_from([names, tuple(names), set(names), frozenset(names), np.array(names, dtype=object)])
)
WANTED = st.none() | st.lists(NAMES, min_size=1, unique=True)


def oracle(values, classes):
    """Row by row: the classes; and of each row with a wanted one or an empty list, its place and set of classes."""
    rows = [{value} if isinstance(value, str) else set(value) for value in values]
    known = sorted(set().union(*rows)) if classes is None else classes
    kept = [place for place, row in enumerate(rows) if not row or row & set(known)]
    return known, kept, [rows[place] & set(known) for place in kept]


@pytest.mark.filterwarnings("ignore:there is no sample of the class")
@settings(deadline=None, max_examples=200)
@given(st.lists(NAMES | SEVERAL, min_size=1, max_size=8), WANTED)
def test_several_classes_a_row_are_those_of_the_slow_search(values, classes):
    known, kept, sets = oracle(values, classes)
    column = pd.Series([None] * len(values), [f"f{place}" for place in range(len(values))], dtype=object, name="c")
    for place, value in enumerate(values):
        column.iat[place] = value
    labels, indices, wanted = class_labels(column, "categorical", classes)
    assert indices == {name: place for place, name in enumerate(known)}
    assert np.flatnonzero(wanted).tolist() == kept
    assert labels.index.tolist() == [f"f{place}" for place in kept]
    assert [{name for name in known if row[name] == 1} for _, row in labels.iterrows()] == sets
    assert set(np.unique(labels.to_numpy())) <= {0, 1}


@pytest.mark.filterwarnings("ignore:there is no sample of the class")
@settings(deadline=None, max_examples=200)
@given(st.lists(NAMES, min_size=1, max_size=8) | st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.data())
def test_one_class_a_row_is_that_of_the_slow_search(values, data):
    classes = data.draw(st.none() | st.lists(st.sampled_from(values), min_size=1, unique=True))
    known = sorted(set(values)) if classes is None else classes
    kept = [place for place, value in enumerate(values) if value in known]
    column = pd.Series(values, [f"f{place}" for place in range(len(values))], name="c")
    for mode in ("sparse", "binary"):
        if mode == "binary" and len(known) != 2:
            with pytest.raises(IchError, match=f"class_mode binary takes two classes, found {len(known)}"):
                class_labels(column, mode, classes)
            continue
        labels, indices, wanted = class_labels(column, mode, classes)
        assert indices == {name: place for place, name in enumerate(known)}
        assert np.flatnonzero(wanted).tolist() == kept
        assert labels.tolist() == [known.index(values[place]) for place in kept]
        assert labels.index.tolist() == [f"f{place}" for place in kept]


@pytest.mark.parametrize("backend", [None, "pyarrow"])
def test_lists_that_went_through_parquet_mean_what_they_meant(tmp_path, backend):
    written = [["sdh", "any"], [], ["any"], []]
    pq.write_table(pa.table({"file": list("abcd"), "class": written}), tmp_path / "t.parquet")
    options = {} if backend is None else {"dtype_backend": backend}
    frame = pd.read_parquet(tmp_path / "t.parquet", **options).set_index("file")
    labels, indices, wanted = class_labels(frame["class"], "categorical", None)
    assert indices == {"any": 0, "sdh": 1}
    assert wanted.all()
    assert labels.to_numpy().tolist() == [[1, 1], [0, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize("empty", [[], (), set(), np.array([]), np.array([], dtype=object)], ids=repr)
def test_an_empty_list_of_any_kind_is_no_class(empty):
    column = pd.Series([["x"], empty], ["a", "b"], name="c", dtype=object)
    labels, _, wanted = class_labels(column, "categorical", None)
    assert labels.to_numpy().tolist() == [[1], [0]]
    assert wanted.all()


@pytest.mark.parametrize(
    ("values", "classes", "told"),
    [
        (["cat", 3], None, r"c holds classes that cannot be sorted: 'cat' \(str\), 3 \(int\); make all of them str"),
        ([{"x": 1}, "cat"], None, r"c holds classes that cannot be sorted: \{'x': 1\} \(dict\), 'cat' \(str\)"),
        ([[["x"]], ["cat"]], None, r"c holds classes that cannot be sorted: \['x'\] \(list\), 'cat' \(str\)"),
        (["cat", "dog"], [["cat"], "dog"], "c holds classes that cannot be sorted: .*; make all of them str"),
        ([{"x": 1}, "cat"], ["cat"], "c holds classes that cannot be sorted: "),
        (["cat", "dog"], "cat", "classes is 'cat', expected a list of classes"),
        (["cat", None], None, r"c names no class for b; leave these rows out, or give an empty list to"),
        ([["cat"], np.array([None])], None, r"c names no class for b; leave"),
    ],
)
def test_classes_that_are_no_names_are_a_sentence(values, classes, told):
    column = pd.Series(values, ["a", "b"], name="c", dtype=object)
    with pytest.raises(IchError, match=told):
        class_labels(column, "categorical", classes)


def test_a_class_without_a_sample_is_told():
    column = pd.Series(["cat", "dog"], ["a", "b"], name="c")
    with pytest.warns(UserWarning, match="there is no sample of the class Cat, which still has an index"):
        _, indices, wanted = class_labels(column, "categorical", ["Cat", "dog"])
    assert indices == {"Cat": 0, "dog": 1}
    assert wanted.tolist() == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        class_labels(column, "categorical", None)
