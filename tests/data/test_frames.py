import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.data.frames import class_labels, samples_of
from ich.errors import IchError

NAMES = st.sampled_from(["bleed", "none", "artifact", "tumor"])
SEVERAL = st.lists(NAMES, max_size=4).flatmap(
    lambda names: st.sampled_from([names, tuple(names), set(names), frozenset(names), np.array(names, dtype=object)])
)
CLASSES = st.none() | st.lists(NAMES, min_size=1, unique=True)


def oracle(values, classes):
    """Row by row: the classes; and of each row with a wanted one or an empty list, its place and set of classes."""
    rows = [{value} if isinstance(value, str) else set(value) for value in values]
    known = sorted(set().union(*rows)) if classes is None else classes
    kept = [place for place, row in enumerate(rows) if not row or row & set(known)]
    return known, kept, [rows[place] & set(known) for place in kept]


@pytest.mark.filterwarnings("ignore:there is no sample of the class")
@settings(max_examples=200)
@given(st.lists(NAMES | SEVERAL, min_size=1, max_size=8), CLASSES)
def test_several_classes_a_row_are_those_of_the_slow_search(values, classes):
    known, kept, sets = oracle(values, classes)
    column = pd.Series([None] * len(values), [f"f{place}" for place in range(len(values))], dtype=object, name="c")
    for place, value in enumerate(values):
        column.iat[place] = value
    labels, indices, mask = class_labels(column, "categorical", classes)
    assert indices == {name: place for place, name in enumerate(known)}
    assert np.flatnonzero(mask).tolist() == kept
    assert labels.index.tolist() == [f"f{place}" for place in kept]
    assert [{name for name in known if row[name] == 1} for _, row in labels.iterrows()] == sets
    assert set(np.unique(labels.to_numpy())) <= {0, 1}


@pytest.mark.filterwarnings("ignore:there is no sample of the class")
@settings(max_examples=200)
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
        labels, indices, mask = class_labels(column, mode, classes)
        assert indices == {name: place for place, name in enumerate(known)}
        assert np.flatnonzero(mask).tolist() == kept
        assert labels.tolist() == [known.index(values[place]) for place in kept]
        assert labels.index.tolist() == [f"f{place}" for place in kept]


@pytest.mark.parametrize("backend", [None, "pyarrow"])
def test_lists_that_went_through_parquet_mean_what_they_meant(tmp_path, backend):
    written = [["sdh", "any"], [], ["any"], []]
    pq.write_table(pa.table({"file": list("abcd"), "class": written}), tmp_path / "t.parquet")
    options = {} if backend is None else {"dtype_backend": backend}
    frame = pd.read_parquet(tmp_path / "t.parquet", **options).set_index("file")
    labels, indices, mask = class_labels(frame["class"], "categorical", None)
    assert indices == {"any": 0, "sdh": 1}
    assert mask.all()
    assert labels.to_numpy().tolist() == [[1, 1], [0, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize("empty", [[], (), set(), np.array([]), np.array([], dtype=object)], ids=repr)
def test_an_empty_list_of_any_kind_is_no_class(empty):
    column = pd.Series([["x"], empty], ["a", "b"], name="c", dtype=object)
    labels, _, mask = class_labels(column, "categorical", None)
    assert labels.to_numpy().tolist() == [[1], [0]]
    assert mask.all()


@pytest.mark.parametrize(
    ("values", "classes", "message"),
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
def test_classes_that_are_no_names_are_a_sentence(values, classes, message):
    column = pd.Series(values, ["a", "b"], name="c", dtype=object)
    with pytest.raises(IchError, match=message):
        class_labels(column, "categorical", classes)


def test_a_class_without_a_sample_is_reported():
    column = pd.Series(["cat", "dog"], ["a", "b"], name="c")
    with pytest.warns(UserWarning, match="there is no sample of the class Cat, which still has an index"):
        _, indices, mask = class_labels(column, "categorical", ["Cat", "dog"])
    assert indices == {"Cat": 0, "dog": 1}
    assert mask.tolist() == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        class_labels(column, "categorical", None)


def test_a_frame_gives_the_arguments_of_a_generator():
    frame = pd.DataFrame({"file": ["b", "a", "c"], "class": ["x", "y", "z"], "w": [1, 2, 3], "age": [30, 40, 50]})
    samples, indices = samples_of(frame, "file", "class", "sparse", ["y", "x"], "w", "age")
    assert indices == {"y": 0, "x": 1}
    assert samples["ids"].tolist() == ["b", "a"]
    assert samples["labels"].to_dict() == {"b": 1, "a": 0}
    assert samples["weights"].to_dict() == {"b": 1, "a": 2}
    assert samples["extra"].to_dict() == {"age": {"b": 30, "a": 40}}
    samples, indices = samples_of(frame, "file", ["w", "age"], "raw", None, None, None)
    assert indices is samples["weights"] is samples["extra"] is None
    assert samples["labels"].loc["c"].tolist() == [3, 50]
    samples, indices = samples_of(frame, "file", "class", None, None, None, None)
    assert (samples["labels"], indices, len(samples["ids"])) == (None, None, 3)
