import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ich.data.sampling import Multiple, PerSeries, PositiveShare, Weighted
from ich.errors import IchError


def rng(seed=0):
    return np.random.default_rng(seed)


def fits(counts, expected):
    """Chi-square of counts; the bound is crossed once in a million seeds, and the seeds here are fixed."""
    expected = np.asarray(expected, dtype=float)
    return stats.chisquare(counts, expected / expected.sum() * np.sum(counts)).pvalue > 1e-6


# ------------------------------------------------------------------------------------------------- per series


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 6), st.booleans(), st.integers(0, 9))
def test_n_of_each_series_none_twice_and_all_of_a_short_one(series, n, centre_weighted, seed):
    series = pd.Series([f"ID_{number}" for number in series])
    chosen = PerSeries(series, n, centre_weighted)(rng(seed))
    assert len(set(chosen.tolist())) == len(chosen)
    for name, places in series.groupby(series).groups.items():
        assert len(set(places) & set(chosen)) == min(n, len(places)), name
    assert len(chosen) == sum(min(n, count) for count in series.value_counts())


def test_each_epoch_chooses_anew_and_the_same_seed_the_same():
    sampling = PerSeries(pd.Series(np.repeat(["a", "b"], 30)), 5)
    np.testing.assert_array_equal(sampling(rng(1)), sampling(rng(1)))
    assert set(sampling(rng(1))) != set(sampling(rng(2)))
    assert len(sampling) == 60


def test_uniform_is_uniform():
    sampling = PerSeries(pd.Series(["a"] * 10), 1)
    draws = rng()
    counts = np.bincount([sampling(draws)[0] for _ in range(5000)], minlength=10)
    assert fits(counts, np.ones(10))


@pytest.mark.parametrize("length", [1, 2, 9, 10])
def test_the_middle_is_chosen_up_to_three_times_as_often_as_the_ends(length):
    # Series interleaved: a slice's place is counted within its own.
    sampling = PerSeries(pd.Series(["a", "b"] * length), 1, centre_weighted=True)
    draws = rng()
    chosen = np.concatenate([sampling(draws) for _ in range(5000)])
    middle = (length - 1) / 2
    weights = [1 - (2 / 3) * (abs(place - middle) / middle if middle else 0) for place in range(length)]
    if length == 9:
        assert weights[4] == pytest.approx(3 * weights[0])
    for series in (0, 1):
        counts = np.bincount(chosen[chosen % 2 == series] // 2, minlength=length)
        assert length == 1 or fits(counts, weights)


def test_several_are_drawn_as_one_after_another_without_replacement():
    weights = np.array([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])
    sampling = PerSeries(pd.Series(["a"] * 5), 2, centre_weighted=True)
    draws = rng()
    counts, slow = np.zeros((5, 5)), np.zeros((5, 5))
    for _ in range(4000):
        counts[tuple(sorted(sampling(draws)))] += 1
    for a in range(5):
        for b in range(5):
            if a != b:
                chance = weights[a] / weights.sum() * weights[b] / (weights.sum() - weights[a])
                slow[tuple(sorted((a, b)))] += chance
    pairs = np.triu_indices(5, 1)
    assert fits(counts[pairs], slow[pairs])


def test_series_that_make_no_sense_are_refused():
    with pytest.raises(IchError, match="n is 0, expected at least 1 slice of each series"):
        PerSeries(pd.Series(["a"]), 0)
    with pytest.raises(IchError, match=r"2 sample\(s\) have no series; leave them out"):
        PerSeries(pd.Series(["a", None, np.nan]), 1)


# ------------------------------------------------------------------------------------------------- share of positives


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 0.95), st.integers(0, 9))
def test_all_positives_and_the_share_asked_for(positives, negatives, share, seed):
    positive = rng(seed).permutation(np.repeat([True, False], [positives, negatives]))
    sampling = PositiveShare(positive, share)
    chosen = sampling(rng(seed))
    hits = chosen[positive[chosen]]
    assert sorted(hits) == np.flatnonzero(positive).tolist()
    others = chosen[~positive[chosen]]
    assert len(others) == max(1, round(positives * (1 - share) / share))
    if len(others) <= negatives:
        assert len(set(others.tolist())) == len(others)
    assert len(sampling) == positives + negatives
    # By how often each is shown.
    assert sampling.oversampling == pytest.approx((len(hits) / positives) / (len(others) / negatives))


def test_negatives_are_drawn_evenly():
    positive = np.array([True] * 4 + [False] * 12)
    sampling = PositiveShare(positive, 0.5)
    draws = rng()
    counts = np.bincount(np.concatenate([sampling(draws)[4:] for _ in range(3000)]), minlength=16)[4:]
    assert fits(counts, np.ones(12))


def test_a_share_that_makes_no_sense_is_refused():
    for share in (0, 1, 1.5, -0.1):
        with pytest.raises(IchError, match=f"the share of positives is {share}, expected a number between 0 and 1"):
            PositiveShare(np.array([True, False]), share)
    for positive in ([True, True], [False, False]):
        with pytest.raises(IchError, match=r"of 2 samples are positive, expected some of each kind"):
            PositiveShare(np.array(positive), 0.5)


# ------------------------------------------------------------------------------------------------- weights


def test_samples_are_drawn_by_their_weights():
    weights = np.array([0, 1, 2, 3, 0.5, 10])
    chosen = Weighted(weights, 20_000)(rng())
    counts = np.bincount(chosen, minlength=6)
    assert counts[0] == 0
    assert fits(counts[1:], weights[1:])
    assert len(Weighted(weights)(rng())) == len(Weighted(weights)) == 6


def test_weights_that_make_no_sense_are_refused():
    for weights in ([1, -1], [1, np.nan], [np.inf, 1]):
        with pytest.raises(IchError, match=r"weights are finite, at least 0 and not all 0; found others at [01]"):
            Weighted(np.array(weights, dtype=float))
    with pytest.raises(IchError, match="found others at all"):
        Weighted(np.zeros(3))
    with pytest.raises(IchError, match="n is 0, expected at least 1 sample an epoch"):
        Weighted(np.ones(3), 0)


# ------------------------------------------------------------------------------------------------- a multiple


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_a_multiple_leaves_out_the_rest_and_nothing_if_there_is_none(samples, n, seed):
    sampling = Multiple(n, samples)
    chosen = sampling(rng(seed))
    assert len(sampling) == samples
    assert len(chosen) == samples // n * n
    assert (np.diff(chosen) > 0).all()
    assert set(chosen) <= set(range(samples))
    other = Weighted(np.ones(samples), 2 * n + 1)
    drawn, kept = other(rng(seed)), Multiple(n, samples, other)(rng(seed))
    assert len(kept) == (2 * n + 1) // n * n
    assert not set(kept) - set(drawn)


def test_what_a_multiple_leaves_out_is_drawn_evenly():
    sampling = Multiple(4, 7)
    generator = rng()
    counts = np.bincount(np.concatenate([sampling(generator) for _ in range(3000)]), minlength=7)
    assert fits(counts, np.ones(7))
