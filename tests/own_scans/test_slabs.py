"""Slabs of thin slices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.own_scans.slabs import averaged, slab_numbers, slab_thickness


def sizes(z, thickness=None, target=5.0):
    return np.bincount(slab_numbers(np.asarray(z, float), thickness, target)).tolist()


@pytest.mark.parametrize(
    ("step", "joined"), [(0.625, 8), (1, 5), (1.25, 4), (2, 2), (2.5, 2), (3, 2), (4, 1), (5, 1), (8, 1)]
)
def test_slabs_cover_the_thickness_of_the_training(step, joined):
    z = np.arange(0, 121, step)
    counts = sizes(z)
    assert set(counts[:-1]) == {joined}
    assert counts[-1] * step >= 2.5  # never a thin slice alone
    if joined > 1:
        assert slab_thickness(z, slab_numbers(z, None, 5.0), 5.0) == joined * step


def test_of_mixed_spacing_the_thin_slices_alone_are_joined():
    z = [0, 2.5, 5, 7.5, 10, 15, 20, 25]
    assert sizes(z, thickness=2.5)[:2] == [2, 2]
    assert sizes(z, thickness=2.5)[-3:] == [1, 1, 1]


def test_nothing_is_joined_across_a_gap():
    assert sizes([0, 1, 2, 12, 13, 14], thickness=1) == [3, 3]


def test_what_is_left_before_a_gap_joins_the_slab_before_it():
    assert sizes([*range(6), *range(20, 31)], thickness=1) == [6, 5, 6]
    assert sizes([0, 10, 11, 12], thickness=1) == [1, 3]  # alone beyond a gap it stays alone


def test_overlapping_thick_slices_stay():
    assert sizes(np.arange(0, 60, 2.5), thickness=5.0) == [1] * 24


@pytest.mark.parametrize("z", [[], [3.0], [np.nan] * 6, [0, 1, np.nan, 3]])
def test_without_positions_slices_stay(z):
    assert sizes(z, thickness=1.0) == [1] * len(z)


@given(st.lists(st.floats(0, 8), min_size=2, max_size=60), st.floats(0.5, 6), st.floats(1, 8))
def test_slabs_are_runs_of_slices_and_cover_no_more_than_they_may(steps, thickness, target):
    z = np.cumsum(steps)
    numbers = slab_numbers(z, thickness, target)
    assert numbers[0] == 0
    assert set(np.diff(numbers)) <= {0, 1}
    for number in range(numbers[-1] + 1):
        of_slab = z[numbers == number]
        assert (np.diff(of_slab) <= target).all()
        assert of_slab[-1] - of_slab[0] <= 2 * target


def test_the_mean_is_of_hounsfield_units():
    hu = [np.full((2, 2), value, np.int16) for value in (-1000, 0, 40, 43, 70)]
    slabs = averaged(hu, np.array([0, 0, 1, 1, 2]))
    assert [int(slab[0, 0]) for slab in slabs] == [-500, 42, 70]  # 41.5 is rounded to even
    assert all(slab.dtype == np.int16 for slab in slabs)
    assert slabs[2] is hu[4]
    assert averaged([], np.array([], int)) == []
