import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from ich.competition import metrics
from ich.errors import IchError
from ich.second_stage import boosting
from ich.second_stage.boosting import Model


def some_slices(n=1500, seed=0):
    """Labels that the label's own second feature tells, with a tenth of them wrong."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6, 4)).astype(np.float32)
    labels = (features[:, :, 1] > 0.8).astype(np.int8)
    flipped = rng.random((n, 6)) < 0.1
    return features, np.where(flipped, 1 - labels, labels)


def fit(features, labels, seed=0, rounds=40):
    return Model.fit(features, labels, rounds=rounds, learning_rate=0.1, seed=seed)


def loss(labels, logits):
    return metrics.weighted_log_loss(labels, 1 / (1 + np.exp(-logits)))


@pytest.fixture(scope="module")
def fitted():
    """A model of few slices, of which one feature may be missing, and others to predict."""
    features, labels = some_slices(400)
    features[::3, :, 2] = np.nan
    unseen = some_slices(50, seed=1)[0]
    unseen[::2, :, 1] = np.nan
    return fit(features, labels, rounds=10), unseen


def test_it_learns_every_label_and_knows_the_unseen():
    features, labels = some_slices()
    unseen, truth = some_slices(seed=1)
    model = fit(features, labels)
    predictions = model.predict(unseen)
    assert predictions.shape == (1500, 6)
    by_label = metrics.log_loss_by_label(truth, 1 / (1 + np.exp(-predictions)))
    assert (by_label < 0.42).all(), by_label  # a tenth of wrong labels alone costs 0.33, the prevalence 0.57
    np.testing.assert_allclose(model.predict(unseen[:7]), predictions[:7], atol=1e-12)


def test_the_kinds_learn_from_each_other():
    """A rare label that looks like the others is predicted better than from its own examples alone."""
    features, labels = some_slices()
    rare = np.random.default_rng(2).normal(-1.5, 1, len(features))
    features[:, 0, 1], labels[:, 0] = rare, rare > 0.8
    unseen, truth = some_slices(seed=1)
    predictions = fit(features, labels).predict(unseen)
    alone = np.repeat(labels[:, :1], 6, axis=1)
    by_itself = fit(np.repeat(features[:, :1], 6, axis=1), alone).predict(np.repeat(unseen[:, :1], 6, axis=1))
    expected = [metrics.log_loss_by_label(truth, 1 / (1 + np.exp(-logits)))[0] for logits in (predictions, by_itself)]
    assert expected[0] < 0.9 * expected[1]


def test_the_same_seed_gives_the_same_and_another_another():
    features, labels = some_slices(600)
    first, again, other = (fit(features, labels, seed).predict(features) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_it_predicts_what_scikit_learn_predicts(monkeypatch):
    """Each ensemble's classifier is asked as it was fitted, and the logits are put together label by label."""
    features, labels = some_slices(700)
    features[..., 3] = np.nan  # a column that no slice has
    features[::4, :, 0] = np.nan
    kept = []

    class Kept(HistGradientBoostingClassifier):
        def fit(self, rows, y):
            kept.append(self)
            return super().fit(rows, y)

    monkeypatch.setattr(boosting, "HistGradientBoostingClassifier", Kept)
    model = fit(features, labels, rounds=15)
    unseen = some_slices(90, seed=1)[0]
    unseen[::2, :, 2] = np.nan  # missing nowhere in training
    shared, *own = kept
    for k in range(6):
        rows = unseen[:, k, :3]
        expected = own[k].decision_function(rows)
        if k < 5:
            row_of_all = np.column_stack([rows, np.full(len(rows), k)])
            expected = (expected + shared.decision_function(row_of_all)) / 2
        np.testing.assert_allclose(model.predict(unseen)[:, k], expected, rtol=0, atol=1e-12)


def test_rows_are_predicted_alike_in_any_portions(fitted, monkeypatch):
    model, unseen = fitted
    whole = model.predict(unseen)
    monkeypatch.setattr(boosting, "_ROWS_AT_ONCE", 7)
    np.testing.assert_array_equal(model.predict(unseen), whole)


def test_a_label_that_no_slice_shows_is_predicted_as_rare(tmp_path):
    features, labels = some_slices(600)
    labels[:, 0] = 0
    labels[:, 5] = 1
    model = fit(features, labels)
    predictions = model.predict(features)
    assert np.isfinite(predictions).all()
    np.testing.assert_allclose(predictions[:, 5], np.log(601))
    assert (predictions[:, 0] < -1).all()
    model.save(tmp_path / "boosting.npz")
    np.testing.assert_array_equal(Model.load(tmp_path / "boosting.npz").predict(features), predictions)


def test_neighbors_that_no_scan_to_learn_from_has_are_left_out():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 6, 3)).astype(np.float32)
    labels = (features[..., 0] > 0).astype(np.int8)
    others = features.copy()
    features[..., 2] = np.nan
    model = fit(features, labels, rounds=5)
    predictions = model.predict(features)
    assert np.isfinite(predictions).all()
    np.testing.assert_array_equal(model.predict(others), predictions)


# ----------------------------------------------------------------------------------------------------- the file


def test_what_is_read_again_predicts_the_same_to_the_last_bit(fitted, tmp_path):
    model, unseen = fitted
    for name in ("a.npz", "b.npz"):
        model.save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()  # so that its digest tells something
    np.testing.assert_array_equal(Model.load(tmp_path / "a.npz").predict(unseen), model.predict(unseen))


def test_a_damaged_file_is_refused_or_reads_the_same(fitted, tmp_path):
    model, unseen = fitted
    path = tmp_path / "boosting.npz"
    model.save(path)
    whole, predictions = path.read_bytes(), model.predict(unseen)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        content[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(Model.load(path).predict(unseen), predictions)
        except IchError:
            refused += 1
    assert refused > 40
    for content in (b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(IchError, match=r"boosting.npz cannot be read .*; delete the file, and run again what"):
            Model.load(path)
    path.unlink()
    with pytest.raises(IchError, match=r"boosting.npz cannot be read \(FileNotFoundError"):
        Model.load(path)


def test_a_pickle_is_never_opened(tmp_path):
    np.savez(tmp_path / "boosting.npz", features=np.array([print], dtype=object))
    with pytest.raises(IchError, match="Object arrays cannot be loaded"):
        Model.load(tmp_path / "boosting.npz")


def test_another_number_of_features_is_refused(fitted):
    model, unseen = fitted
    with pytest.raises(IchError, match=r"the trees read 4 features of each label, not 3; sequence.reach"):
        model.predict(unseen[..., :3])
