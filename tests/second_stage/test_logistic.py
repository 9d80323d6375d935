import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ich.competition import metrics
from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.second_stage import logistic
from ich.second_stage.logistic import Model
from ich.second_stage.scans import Scans


def scans_of(*logits):
    """Scans of these logits, 5 mm apart."""
    starts = np.cumsum([0, *map(len, logits)])
    z = np.concatenate([5 * np.arange(len(scan)) for scan in logits]).astype(np.float32)
    ids = pd.Index([f"ID_{number}" for number in range(starts[-1])])
    together = np.concatenate(logits).astype(np.float32)
    return Scans(ids, starts, z, together, np.zeros((len(ids), 0), np.float16))


def some_logits(n, seed=0):
    return np.random.default_rng(seed).normal(-2, 2.5, (n, len(LABELS))).astype(np.float32)


def slow_features(logits, t, k):
    """The features of slice t and label k, number by number."""
    score = [[float(np.arcsinh(value / 0.3)) for value in row] for row in logits.astype(float)]
    p = [[float(expit(value)) for value in row] for row in logits.astype(float)]
    n = len(score)

    def mean(values, width):
        bell = [np.exp(-((i - t) ** 2) / (2 * width**2)) for i in range(n)]
        return sum(w * v for w, v in zip(bell, values, strict=True)) / sum(bell)

    def mean_at(i, values, width):
        bell = [np.exp(-((j - i) ** 2) / (2 * width**2)) for j in range(n)]
        return sum(w * v for w, v in zip(bell, values, strict=True)) / sum(bell)

    def row(j):
        mine, blood = [numbers[j] for numbers in score], [numbers[5] for numbers in p]
        weighted = [b * s for b, s in zip(blood, mine, strict=True)]
        return [
            mine[t],
            mean(mine, 0.8),
            mean(mine, 1.6),
            mean(mine, 4.0),
            max(mine),
            sum(mine) / n,
            np.log(sum(numbers[j] for numbers in p) + 0.1),
            max(mean_at(i, mine, 0.8) for i in range(n)),
            sum(weighted) / (sum(blood) + 0.3),
            mean(weighted, 2.0) / (mean(blood, 2.0) + 0.05),
        ]

    own = row(k)
    rival = [max(column) for column in zip(*(row(j) for j in range(5) if j != k), strict=True)]
    blood = row(5) if k < 5 else rival
    lead = [a - b for a, b in zip(own, rival, strict=True)]
    place = (2 * t + 1) / n - 1
    products = [own[2] * own[4], own[2] * lead[4], own[2] ** 2, own[0] * row(5)[2]]
    return [*own, *blood, *rival, *lead, place, place**2, *products]


@settings(max_examples=30)
@given(n=st.integers(1, 12), seed=st.integers(0, 99), k=st.integers(0, 5), data=st.data())
def test_the_features_are_those_of_a_slow_reading(n, seed, k, data):
    logits = some_logits(n, seed)
    t = data.draw(st.integers(0, n - 1))
    features = logistic.features(scans_of(logits))
    assert (features.shape, features.dtype) == ((n, 6, 46), np.float32)
    np.testing.assert_allclose(features[t, k], slow_features(logits, t, k), rtol=1e-4, atol=1e-4)


def test_a_scan_is_read_alike_alone_and_in_company():
    parts = [some_logits(n, seed) for seed, n in enumerate((1, 30, 2, 400))]
    together = logistic.features(scans_of(*parts))
    np.testing.assert_array_equal(together, np.concatenate([logistic.features(scans_of(part)) for part in parts]))


def test_a_scan_read_backwards_differs_in_place_alone():
    logits = some_logits(9)
    backwards = logistic.features(scans_of(logits[::-1]))[::-1]
    expected = logistic.features(scans_of(logits))
    expected[..., 40] *= -1
    np.testing.assert_allclose(backwards, expected, rtol=1e-5, atol=1e-5)


def test_kinds_that_change_places_take_their_features_along():
    logits, places = some_logits(9), [3, 0, 4, 1, 2, 5]
    np.testing.assert_array_equal(
        logistic.features(scans_of(logits[:, places])), logistic.features(scans_of(logits))[:, places]
    )


def bleeds(scans, seed=0):
    """Labels of scans with a run of slices of one kind each, and the scores of one that mistakes every third slice."""
    rng = np.random.default_rng(seed)
    logits, labels = [], []
    for _ in range(scans):
        n, kind = 24, rng.integers(5)
        truth = np.zeros((n, 6), np.int8)
        start = rng.integers(0, n - 8)
        truth[start : start + 8, [kind, 5]] = 1
        mistaken = rng.random((n, 6)) < 0.25
        logits.append(np.where(truth ^ mistaken, 2.0, -2.0) + rng.normal(0, 0.5, truth.shape))
        labels.append(truth)
    return scans_of(*logits), np.concatenate(labels)


def loss(labels, logits):
    return metrics.weighted_log_loss(labels, expit(logits))


def fit(scans, labels):
    return Model.fit(logistic.features(scans), labels)


def test_it_learns_from_a_few_scans_and_knows_the_unseen():
    scans, labels = bleeds(20)
    unseen, truth = bleeds(20, seed=1)
    model, read = fit(scans, labels), logistic.features(unseen)
    predictions = model.predict(read)
    assert predictions.shape == truth.shape
    assert loss(truth, predictions) < 0.4 * loss(truth, unseen.logits.astype(float))
    np.testing.assert_allclose(model.predict(read[:7]), predictions[:7])


def test_it_predicts_what_scikit_learn_predicts():
    """Standardized features, with a one-hot code of the subtype; `any` by a regression of its own."""
    scans, labels = bleeds(10)
    read = logistic.features(scans).astype(float)
    predictions = fit(scans, labels).predict(logistic.features(scans))
    rows = np.concatenate([np.column_stack([read[:, k], np.tile(np.eye(5)[k], (len(read), 1))]) for k in range(5)])
    slow = make_pipeline(StandardScaler(), LogisticRegression(C=0.15, solver="newton-cholesky"))
    expected = slow.fit(rows, labels[:, :5].T.ravel()).decision_function(rows).reshape(5, -1).T
    np.testing.assert_allclose(predictions[:, :5], expected, rtol=0, atol=1e-9)
    expected = slow.fit(read[:, 5], labels[:, 5]).decision_function(read[:, 5])
    np.testing.assert_allclose(predictions[:, 5], expected, rtol=0, atol=1e-9)


def test_of_many_slices_it_takes_some_from_everywhere(monkeypatch):
    scans, labels = bleeds(20)
    read = logistic.features(scans)
    expected = Model.fit(read[::3], labels[::3]).predict(read)
    monkeypatch.setattr(logistic, "_ENOUGH", len(read) // 3)
    np.testing.assert_allclose(Model.fit(read, labels).predict(read), expected)


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_that_all_slices_share_is_predicted_as_common_or_rare(value):
    scans, labels = bleeds(5)
    labels[:, 5] = value
    predictions = fit(scans, labels).predict(logistic.features(scans))
    np.testing.assert_allclose(predictions[:, 5], (2 * value - 1) * np.log(len(labels) + 1))
    assert np.isfinite(predictions).all()


def test_what_is_read_again_predicts_the_same_to_the_last_bit(tmp_path):
    scans, labels = bleeds(5)
    model, path = fit(scans, labels), tmp_path / "linear.json"
    model.save(path)
    read = logistic.features(bleeds(3, seed=1)[0])
    np.testing.assert_array_equal(Model.load(path).predict(read), model.predict(read))
    with pytest.raises(IchError, match=r"the regression reads 46 features of each label, not 45; another version"):
        model.predict(read[..., 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("any"), "KeyError"),
        (lambda content: content["any"].pop("offset"), "KeyError"),
        (lambda content: content["any"].update(weights=[1.0]), "ValueError"),
        (lambda content: content["any"].update(weights=["x"] * 46), "ValueError"),
        (lambda content: content["any"].update(offset=None), "a weight is not finite"),
        (lambda content: content.update(any=None), "TypeError"),
        (lambda content: content["any"].update(offset=10**400), "OverflowError"),
        (lambda content: content["any"].update(offset=float("nan")), "a weight is not finite"),
        (
            lambda content: [entry.update(weights=0) for entry in content.values()],
            "the weights are no lists of numbers",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, change, message):
    path = tmp_path / "linear.json"
    with pytest.raises(IchError, match=r"linear.json cannot be read \(FileNotFoundError"):
        Model.load(path)
    Model(np.zeros((6, 46)), np.zeros(6)).save(path)
    Model.load(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(IchError, match=rf"linear.json cannot be read .*{message}.*; delete the file, and run again"):
        Model.load(path)
