import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.errors import IchError
from ich.results import bootstrap


@st.composite
def cases(draw):
    """Values in one or more columns, of two patients or more, in any order."""
    n = draw(st.integers(2, 30))
    patients = [f"ID_{draw(st.integers(0, 5))}" for _ in range(n - 2)] + ["ID_0", "ID_1"]
    shape = (n,) if draw(st.booleans()) else (n, draw(st.integers(1, 3)))
    values = np.random.default_rng(draw(st.integers(0, 2**31))).normal(size=shape)
    return values, np.array(draw(st.permutations(patients)))


def slow_resampled_means(values, patients, resamples, seed):
    """The draw as one would do it by hand: put the slices of every patient drawn into one heap, take its mean."""
    names = sorted(set(patients))
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        heap = []
        for drawn in rng.integers(len(names), size=len(names)):
            heap += [value for value, patient in zip(values, patients, strict=True) if patient == names[drawn]]
        means.append(np.mean(heap, axis=0))
    return np.array(means)


@given(cases(), st.integers(0, 2**31))
def test_equals_heaps_of_slices(case, seed):
    fast = bootstrap.resampled_means(*case, resamples=5, seed=seed)
    np.testing.assert_allclose(fast, slow_resampled_means(*case, 5, seed), rtol=1e-9, atol=1e-12)


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_slices_has_no_say(case, random):
    values, patients = case
    order = list(range(len(values)))
    random.shuffle(order)
    first, second = (bootstrap.resampled_means(v, p, 5) for v, p in (case, (values[order], patients[order])))
    np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-12)


@given(cases())
def test_columns_are_drawn_together_and_calls_too(case):
    values, patients = case
    together = bootstrap.resampled_means(np.stack([values, 3 * values + 1], -1).reshape(len(values), -1), patients, 5)
    alone = bootstrap.resampled_means(values, patients, 5).reshape(5, -1)
    np.testing.assert_allclose(together[:, 0::2], alone, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(together[:, 1::2], 3 * alone + 1, rtol=1e-9, atol=1e-12)


def test_a_constant_is_certain():
    estimate = bootstrap.estimate(np.full(6, 0.25), np.array(list("aabbbc")))
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)
    assert estimate.standard_error == pytest.approx(0, abs=1e-12)


def test_the_standard_error_is_that_of_patients_not_of_slices():
    """Ten equal slices a patient say no more than one: the textbook's deviation over the root of the patients."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    estimate = bootstrap.estimate(np.repeat(values, 10), np.repeat(np.arange(400).astype(str), 10))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(values.std() / 20, rel=0.05)
    assert estimate.low == pytest.approx(
        estimate.value - 1.96 * estimate.standard_error, abs=0.2 * estimate.standard_error
    )
    assert estimate.high == pytest.approx(
        estimate.value + 1.96 * estimate.standard_error, abs=0.2 * estimate.standard_error
    )


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(5, 30, 80)
        values = np.repeat(rng.exponential(size=80), sizes) + rng.normal(size=sizes.sum())
        estimate = bootstrap.estimate(values, np.repeat(np.arange(80), sizes), resamples=300, seed=seed)
        covered.append(estimate.low <= 1.0 <= estimate.high)
    assert 0.87 <= np.mean(covered) <= 0.98


def test_estimates_of_columns_are_arrays():
    estimate = bootstrap.estimate(np.arange(12.0).reshape(4, 3), np.array(list("aabb")))
    assert [part.shape for part in estimate] == [(3,)] * 4
    np.testing.assert_allclose(estimate.value, [4.5, 5.5, 6.5])


@pytest.mark.parametrize(
    ("values", "patients", "message"),
    [
        (np.zeros(3), ["a", "b"], r"3 values and 2 patients; expected a patient for each value"),
        (np.zeros(2), ["a", None], "a slice has no PatientID"),
        (np.zeros(2), ["a", "a"], r"1 patient\(s\) cannot be resampled; expected two or more"),
        (np.zeros(0), [], r"0 patient\(s\) cannot be resampled"),
    ],
)
def test_bad_input_is_refused(values, patients, message):
    with pytest.raises(IchError, match=message):
        bootstrap.resampled_means(values, patients)
