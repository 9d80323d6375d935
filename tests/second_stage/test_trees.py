from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from ich.errors import IchError
from ich.second_stage import trees
from ich.second_stage.trees import Trees


@pytest.fixture(scope="module")
def case():
    """A classifier, the columns of a table that it reads, and the table: missing values, ties at the thresholds."""
    rng = np.random.default_rng(0)
    table = rng.integers(-8, 9, (600, 6)).astype(np.float32) / np.float32(3)
    table[rng.random(table.shape) < 0.2] = np.nan
    table[rng.random(len(table)) < 0.02, 1] = np.inf
    y = np.nansum(table[:, 1:4], axis=1) + np.isnan(table[:, 4]) > 0.5
    columns = np.array([1, 3, 4, 5])
    model = HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=12, min_samples_leaf=5, early_stopping=False)
    return model.fit(table[:, columns], y), columns, table


def slow_logits(of, rows):
    """Walk each tree for each row, a step at a time."""
    logits = []
    for row in rows:
        total = of.base
        for root in of.roots:
            node = root
            while of.children[node, 0] != node:
                asked = row[of.feature[node]]
                left = of.missing_left[node] if np.isnan(asked) else asked <= of.threshold[node]
                node = of.children[node, 0 if left else 1]
            total += of.value[node]
        logits.append(total)
    return logits


def test_its_logits_are_those_of_a_slow_walk_and_of_scikit_learn(case, monkeypatch):
    model, columns, table = case
    read = Trees.of_classifier(model, columns)
    expected = model.decision_function(table[:, columns])
    np.testing.assert_allclose(slow_logits(read, table[:100]), expected[:100], rtol=0, atol=1e-12)
    for pairs in (1, 700, 10**6):
        monkeypatch.setattr(trees, "_PAIRS", pairs)
        np.testing.assert_allclose(read.logits(table), expected, rtol=0, atol=1e-12)
    assert read.logits(table[:0]).shape == (0,)


def test_a_split_on_what_is_missing_alone_is_kept():
    """Its threshold is infinite; all that is there goes left, infinities too."""
    rows = np.array([np.nan, 1, np.inf, -np.inf] * 50, np.float32)[:, None]
    model = HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=5, early_stopping=False)
    read = Trees.of_classifier(model.fit(rows, np.isnan(rows[:, 0])), np.array([0]))
    np.testing.assert_allclose(read.logits(rows[:4]), model.decision_function(rows[:4]), rtol=0, atol=1e-12)
    assert len(np.unique(read.logits(rows[:4]))) == 2


@pytest.mark.parametrize("missing_left", [True, False])
def test_at_most_the_threshold_goes_left(missing_left):
    arrays = {
        "base": np.array(0.5),
        "roots": np.array([0], np.int32),
        "feature": np.array([1, 0, 0], np.int16),
        "threshold": np.array([2, np.inf, np.inf], np.float32),
        "missing_left": np.array([missing_left, False, False]),
        "children": np.array([[1, 2], [1, 1], [2, 2]], np.int32),
        "value": np.array([0.0, 10.0, 20.0]),
    }
    asked = np.array([2.0, np.nextafter(np.float32(2), np.float32(3)), -np.inf, np.inf, np.nan], np.float32)
    logits = Trees.of_arrays(arrays, 2).logits(np.column_stack([np.zeros(5, np.float32), asked]))
    assert logits.tolist() == [10.5, 20.5, 10.5, 20.5, 10.5 if missing_left else 20.5]


def test_thresholds_are_rounded_down():
    between = np.array([0.1, -0.1, 1 / 3, 1e-60, -1e-60, 7.0, np.inf])
    rounded = trees._rounded_down(between)
    assert rounded.dtype == np.float32
    assert (rounded.astype(float) <= between).all()
    above = np.nextafter(rounded[:-1], np.float32(np.inf))
    assert (above.astype(float) > between[:-1]).all()


def test_trees_that_scikit_learn_stores_otherwise_are_refused(case):
    model, columns, _ = case
    nodes = model._predictors[0][0].nodes
    for other in (
        SimpleNamespace(),
        SimpleNamespace(_predictors=[[SimpleNamespace(nodes=nodes)] * 2], _baseline_prediction=np.zeros((1, 1))),
        SimpleNamespace(_predictors=[[SimpleNamespace(nodes=nodes["left"])]], _baseline_prediction=np.zeros((1, 1))),
    ):
        with pytest.raises(IchError, match=r"the trees of scikit-learn .* cannot be read .*constraints.txt"):
            Trees.of_classifier(other, columns)
    categories = nodes.copy()
    categories["is_categorical"] = 1
    other = SimpleNamespace(
        _predictors=[[SimpleNamespace(nodes=categories)]], _baseline_prediction=model._baseline_prediction
    )
    with pytest.raises(IchError, match="a node of categories"):
        Trees.of_classifier(other, columns)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("base", lambda a: np.array(np.nan), "the base is no number"),
        ("base", lambda a: np.zeros(1), "the base is no number"),
        ("value", lambda a: a.astype(np.float32), "value is of float32"),
        ("value", lambda a: a[1:], "value is of float64 and shape"),
        ("value", lambda a: a + np.inf, "a value is not finite"),
        ("threshold", lambda a: a * np.float32(np.nan), "or a threshold NaN"),
        ("roots", lambda a: a + 1, "the roots are not in order"),
        ("roots", lambda a: a[::-1], "the roots are not in order"),
        ("feature", lambda a: a + np.int16(9), "nodes ask for others than 6 features"),
        ("feature", lambda a: a - np.int16(9), "nodes ask for others than 6 features"),
        ("children", lambda a: a - 1, "children do not come after their parent"),
        ("children", lambda a: np.where(a == a.max(), a + np.int32(1), a), "children do not come after their parent"),
        ("children", lambda a: a[:, ::-1] * 2, "children do not come after their parent"),
        ("children", lambda a: np.where(np.arange(2), a, np.arange(len(a))[:, None]).astype(np.int32), "children do"),
    ],
)
def test_arrays_that_are_no_trees_are_refused(case, name, change, message):
    model, columns, _ = case
    arrays = Trees.of_classifier(model, columns).arrays()
    Trees.of_arrays(arrays, 6)
    with pytest.raises(ValueError, match=message):
        Trees.of_arrays(arrays | {name: change(arrays[name])}, 6)


def test_no_trees_give_their_base_everywhere(case):
    of = Trees.of_arrays(Trees.none(-3.5).arrays(), 6)
    np.testing.assert_array_equal(of.logits(case[2][:4]), [-3.5] * 4)
