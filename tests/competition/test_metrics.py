import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import log_loss, roc_auc_score

from ich.competition import metrics
from ich.competition.labels import LABELS, METRIC_WEIGHTS
from ich.errors import IchError

probabilities = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-300, 1e-15, 1 - 1e-15]))


@st.composite
def cases(draw):
    n = draw(st.integers(1, 12))
    y = draw(hnp.arrays(np.int8, (n, 6), elements=st.integers(0, 1)))
    p = draw(hnp.arrays(np.float64, (n, 6), elements=probabilities))
    return y, p


def slow_log_loss(y, p):
    """The competition's description, a value at a time."""
    losses = []
    for column in range(6):
        total = 0.0
        for row in range(len(y)):
            chance = min(max(float(p[row][column]), 1e-15), 1 - 1e-15)
            total += -math.log(chance) if y[row][column] else -math.log(1 - chance)
        losses.append(total / len(y))
    return losses


@given(cases())
def test_equals_a_loop_over_the_values(case):
    y, p = case
    slow = slow_log_loss(y, p)
    np.testing.assert_allclose(metrics.log_loss_by_label(y, p), slow, rtol=1e-12, atol=1e-14)
    assert metrics.weighted_log_loss(y, p) == pytest.approx((sum(slow[:5]) + 2 * slow[5]) / 7, rel=1e-12, abs=1e-14)


def test_equals_sklearn_on_every_label():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, (500, 6)), rng.random((500, 6))
    expected = [log_loss(y[:, k], p[:, k]) for k in range(6)]
    np.testing.assert_allclose(metrics.log_loss_by_label(y, p), expected, rtol=1e-12)
    weights = list(METRIC_WEIGHTS.values())
    assert metrics.weighted_log_loss(y, p) == pytest.approx(np.dot(expected, weights) / 7)
    # The scorer's own form: a weight for each row of the long file.
    repeated = log_loss(y.ravel(), p.ravel(), sample_weight=np.tile(weights, 500))
    assert metrics.weighted_log_loss(y, p) == pytest.approx(repeated)


def test_any_counts_twice_and_weights_can_be_given():
    y = np.zeros((1, 6))
    p = np.zeros((1, 6))
    p[0, LABELS.index("any")] = 0.5
    assert metrics.weighted_log_loss(y, p) == pytest.approx(2 / 7 * math.log(2))
    assert metrics.weighted_log_loss(y, p, weights=[1, 0, 0, 0, 0, 0]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_certain_and_wrong_costs_as_much_in_every_dtype(dtype):
    y = np.array([[1, 0, 1, 0, 1, 0]])
    loss = metrics.log_loss_by_label(y, (1 - y).astype(dtype))
    np.testing.assert_allclose(loss, -math.log(1e-15), rtol=1e-2)
    assert loss.dtype == np.float64


def test_certain_and_right_costs_nothing():
    y = np.array([[1, 0, 1, 0, 1, 1]])
    assert metrics.weighted_log_loss(y, y.astype(np.float32)) == pytest.approx(0, abs=1e-12)


@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 20), st.just(6)), elements=st.integers(0, 1)), st.floats(0, 1))
def test_no_other_constant_beats_the_prevalence(y, other):
    floor = metrics.prevalence_log_loss(y)
    assert floor <= metrics.weighted_log_loss(y, np.full(y.shape, other)) + 1e-12
    entropy = [-sum(q * math.log(q) for q in (share, 1 - share) if q > 0) for share in y.mean(axis=0)]
    assert floor == pytest.approx(np.average(entropy, weights=[1, 1, 1, 1, 1, 2]), abs=1e-12)


def test_prevalence_of_the_whole_competition():
    images = 752_803
    positive = {
        "epidural": 3_145,
        "intraparenchymal": 36_118,
        "intraventricular": 26_205,
        "subarachnoid": 35_675,
        "subdural": 47_166,
        "any": 107_933,
    }
    y = np.zeros((images, 6), dtype=np.int8)
    for column, label in enumerate(LABELS):
        y[: positive[label], column] = 1
    assert metrics.prevalence_log_loss(y) == pytest.approx(0.2311, abs=1e-4)


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        (np.zeros((2, 6)), np.zeros((3, 6)), r"shape \(2, 6\), predictions of \(3, 6\); expected both as \(n, 6\)"),
        (np.zeros((2, 5)), np.zeros((2, 5)), r"expected both as \(n, 6\), n > 0"),
        (np.zeros(6), np.zeros(6), r"expected both as \(n, 6\), n > 0"),
        (np.zeros((0, 6)), np.zeros((0, 6)), r"expected both as \(n, 6\), n > 0"),
        (np.full((1, 6), 2), np.zeros((1, 6)), "labels hold values other than 0 and 1"),
        (np.full((1, 6), np.nan), np.zeros((1, 6)), "labels hold values other than 0 and 1"),
        (np.zeros((1, 6)), np.full((1, 6), np.nan), r"NaN or values outside \[0, 1\]; the metric takes probabilities"),
        (np.zeros((1, 6)), np.full((1, 6), 1.001), r"outside \[0, 1\]"),
        (np.zeros((1, 6)), np.full((1, 6), -1e-9), r"outside \[0, 1\]"),
    ],
)
def test_bad_input_is_refused(y, p, message):
    with pytest.raises(IchError, match=message):
        metrics.weighted_log_loss(y, p)


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_prevalence_of_nothing_is_refused_as_a_sentence():
    with pytest.raises(IchError, match=r"expected both as \(n, 6\), n > 0"):
        metrics.prevalence_log_loss(np.zeros((0, 6)))


def test_auc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (50, 6), dtype=np.int8)
    for p in (rng.random((50, 6), dtype=np.float32), rng.integers(0, 5, (50, 6)) / 4):  # the second with ties
        slow = [roc_auc_score(y[:, k], p[:, k]) for k in range(6)]
        np.testing.assert_allclose(metrics.auc_by_label(y, p), slow, rtol=1e-12)
    assert np.isnan(metrics.auc_by_label(np.zeros((3, 6)), p[:3])).all()


def test_the_summary_is_all_of_it_and_plain():
    y = np.random.default_rng(0).integers(0, 2, (20, 6), dtype=np.int8)
    p = np.random.default_rng(1).random((20, 6), dtype=np.float32)
    summary = metrics.summary(y, p)
    assert summary["weighted_log_loss"] == metrics.weighted_log_loss(y, p)
    assert summary["of_prevalence"] == metrics.prevalence_log_loss(y)
    assert list(summary["by_label"]) == list(summary["prevalence"]) == list(LABELS)
    assert list(summary["by_label"].values()) == metrics.log_loss_by_label(y, p).tolist()
    assert list(summary["prevalence"].values()) == pytest.approx(y.mean(axis=0))
    assert summary["slices"] == 20
    assert list(summary["auc"].values()) == metrics.auc_by_label(y, p).tolist()
    y[:, 2] = 1
    assert metrics.summary(y, p)["auc"]["intraventricular"] is None
    assert json.loads(json.dumps(summary)) == summary
