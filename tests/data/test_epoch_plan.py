import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.data.epoch_plan import plan_epoch, seed_of
from ich.errors import IchError


def plan(epoch=0, samples=10, batch_size=4, seed=0, shuffle=True, sampling=None):
    return plan_epoch(epoch, samples, batch_size, seed, shuffle, sampling)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5), st.booleans())
def test_batches_are_the_epoch_cut_in_order(samples, batch_size, epoch, shuffle):
    planned = plan(epoch, samples, batch_size, shuffle=shuffle)
    batches = [planned.batch(index)[0].tolist() for index in range(len(planned))]
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    shown = [row for batch in batches for row in batch]
    assert shown == planned.rows.tolist()
    assert sorted(shown) == list(range(samples))
    assert planned.is_in_order is not shuffle
    assert shuffle or shown == sorted(shown)
    for index in (-1, len(planned)):
        with pytest.raises(IndexError, match=f"batch {index} of {len(planned)}"):
            planned.batch(index)


def test_the_order_depends_on_seed_and_epoch_alone():
    orders = {(seed, epoch): tuple(plan(epoch, seed=seed).rows) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    assert all(tuple(plan(epoch, 10, 7, seed).rows) == order for (seed, epoch), order in orders.items())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.booleans())
def test_repeats_count_how_often_a_row_was_shown_before(rows, shuffle):
    planned = plan(samples=5, shuffle=shuffle, sampling=lambda rng: rows)
    assert sorted(planned.rows) == sorted(rows)
    shown = planned.rows.tolist()
    assert planned.repeats.tolist() == [shown[:place].count(row) for place, row in enumerate(shown)]
    assert not planned.is_in_order


@pytest.mark.parametrize("epoch", [-1, 1.5, "0", None])
def test_what_is_no_epoch_is_refused(epoch):
    with pytest.raises(IchError, match="expected a whole number from 0"):
        plan(epoch)


@pytest.mark.parametrize("rows", [[], [[0]], [0.5], [10], [-1]])
def test_what_are_no_rows_is_refused(rows):
    with pytest.raises(IchError, match=r"the sampling (gave|chose places)"):
        plan(sampling=lambda rng: np.array(rows))


def test_what_a_sampling_raises_names_the_epoch():
    with pytest.raises(IchError, match=r"^epoch 3: sampling raised ZeroDivisionError: float division by zero$"):
        plan(3, sampling=lambda rng: 1 / 0.0)
    with pytest.raises(IchError, match=r"the sampling gave object of .*, expected some places of samples"):
        plan(sampling=lambda rng: [[1], [1, 2]])


def test_seeds_are_of_128_bits_and_of_every_part():
    assert seed_of(0, 3, 1, "ID_1") == seed_of(np.int64(0), 3, np.int64(1), "ID_1")
    seeds = {seed_of(*parts) for parts in itertools.product((0, 1), (0, 1), (0, 1), "ab")}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**128 for seed in seeds)
