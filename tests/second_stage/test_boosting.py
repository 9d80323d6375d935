import numpy as np

from ich.competition import metrics
from ich.second_stage import boosting


def some_slices(n=1500, seed=0):
    """Labels that the label's own second feature tells, with a tenth of them wrong."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6, 4)).astype(np.float32)
    labels = (features[:, :, 1] > 0.8).astype(np.int8)
    flipped = rng.random((n, 6)) < 0.1
    return features, np.where(flipped, 1 - labels, labels)


def fit(features, labels, others, seed=0):
    return boosting.fit_predict(features, labels, others, rounds=40, learning_rate=0.1, seed=seed)


def loss(labels, logits):
    return metrics.weighted_log_loss(labels, 1 / (1 + np.exp(-logits)))


def test_it_learns_every_label_and_knows_the_unseen():
    features, labels = some_slices()
    unseen, truth = some_slices(seed=1)
    told, other = fit(features, labels, [unseen, unseen[:7]])
    assert told.shape == (1500, 6)
    by_label = metrics.log_loss_by_label(truth, 1 / (1 + np.exp(-told)))
    assert (by_label < 0.42).all(), by_label  # a tenth of wrong labels alone costs 0.33, the prevalence 0.57
    np.testing.assert_allclose(other, told[:7])


def test_the_kinds_learn_from_each_other():
    """A rare label that looks like the others is told better than from its own examples alone."""
    features, labels = some_slices()
    rare = np.random.default_rng(2).normal(-1.5, 1, len(features))
    features[:, 0, 1], labels[:, 0] = rare, rare > 0.8
    unseen, truth = some_slices(seed=1)
    (told,) = fit(features, labels, [unseen])
    alone = np.repeat(labels[:, :1], 6, axis=1)
    (by_itself,) = fit(np.repeat(features[:, :1], 6, axis=1), alone, [np.repeat(unseen[:, :1], 6, axis=1)])
    expected = [metrics.log_loss_by_label(truth, 1 / (1 + np.exp(-one)))[0] for one in (told, by_itself)]
    assert expected[0] < 0.9 * expected[1]


def test_the_same_seed_gives_the_same_and_another_another():
    features, labels = some_slices(600)
    first, again, other = (fit(features, labels, [features], seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_a_label_that_no_slice_shows_is_predicted_as_rare():
    features, labels = some_slices(600)
    labels[:, 0] = 0
    labels[:, 5] = 1
    (told,) = fit(features, labels, [features])
    assert np.isfinite(told).all()
    np.testing.assert_allclose(told[:, 5], np.log(601))
    assert (told[:, 0] < -1).all()


def test_neighbours_that_no_scan_to_learn_from_has_are_left_out():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 6, 3)).astype(np.float32)
    labels = (features[..., 0] > 0).astype(np.int8)
    others = features.copy()
    features[..., 2] = np.nan
    told = boosting.fit_predict(features, labels, [features, others], rounds=5, learning_rate=0.1, seed=0)
    assert np.isfinite(told[0]).all()
    np.testing.assert_array_equal(told[1], told[0])
