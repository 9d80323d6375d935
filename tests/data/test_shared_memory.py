"""Arrays handed from a worker process to its parent."""

import multiprocessing
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pickle
import sys

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import pytest

from ich.data import shared_memory
from ich.data.generator import DataGenerator
from ich.errors import IchError

SHAPE = (2, 300, 301)  # 180,600 bytes of uint8: more than goes through a pipe
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memory without a name is Linux's"),
    pytest.mark.timeout(60),
]


@pytest.fixture
def forked():
    """A pool of one process."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def spawned():
    """Another, for all tests: a process that is not forked imports TensorFlow first."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.fixture(params=["fork", "spawn"])
def worker(request):
    """A pool of one process that has no memory of its own yet."""
    pool = request.getfixturevalue({"fork": "forked", "spawn": "spawned"}[request.param])
    pool.apply(forget)
    return pool


def forget():
    shared_memory._memories.clear()


def filled(number, shape=SHAPE, dtype="uint8"):
    array = shared_memory.empty(shape, np.dtype(dtype))
    array[...] = number
    return array


def memories():
    """How many the worker has. The pool's own thread may hold the last result a moment longer: one more, then."""
    return len(shared_memory._memories)


def is_shared(array):
    """Whether a received array lies in the memory of another process, and not in a copy."""
    return not array.flags.owndata and not isinstance(array.base, bytes)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "bool"])
def test_an_array_arrives_as_it_was_without_a_copy(worker, dtype):
    array = worker.apply(filled, (1, SHAPE, dtype))
    assert (type(array), array.shape, array.dtype) == (np.ndarray, SHAPE, np.dtype(dtype))
    assert (array == 1).all()
    assert is_shared(array)
    assert array.ctypes.data % 64 == 0
    array += array.dtype.type(1)  # who gets it may write to it


def test_memory_is_used_again_when_the_parent_drops_the_array(worker):
    for number in range(20):
        assert (worker.apply(filled, (number,)) == number).all()
    assert worker.apply(memories) <= 2


def test_what_the_parent_holds_stays_as_it_is(worker):
    held = [worker.apply(filled, (number,)) for number in range(5)]
    part = worker.apply(filled, (5,))[1, ::2]
    for number in range(6, 40):
        worker.apply(filled, (number,))
    assert all((array == number).all() for number, array in enumerate(held))
    assert (part == 5).all()
    assert worker.apply(memories) <= 8


def test_beyond_the_most_that_are_held_arrays_go_through_the_pipe(forked):
    held = [forked.apply(filled, (number,)) for number in range(shared_memory._MOST + 3)]
    assert [is_shared(array) for array in held] == [True] * shared_memory._MOST + [False] * 3
    assert all((array == number).all() for number, array in enumerate(held))
    assert forked.apply(memories) == shared_memory._MOST
    del held
    assert is_shared(forked.apply(filled, (0,)))


def test_memory_serves_smaller_arrays_and_not_larger_ones(forked):
    smaller, larger = (1, 440, 301), (3, *SHAPE[1:])
    for shape in (SHAPE, smaller, larger, SHAPE, larger, smaller):
        array = forked.apply(filled, (7, shape))
        assert array.shape == shape
        assert (array == 7).all()
        assert is_shared(array)
        del array
    assert forked.apply(memories) <= 3


def two_at_once():
    first, second = filled(1), filled(2)
    return first, second


def test_arrays_of_one_task_are_apart(worker):
    first, second = worker.apply(two_at_once)
    assert (first == 1).all()
    assert (second == 2).all()


kept = []


def sent_and_kept(number):
    kept.append(filled(number))
    return kept[-1]


def what_was_kept():
    return kept


def test_what_the_worker_keeps_is_not_written_over(forked):
    for number in range(3):
        forked.apply(sent_and_kept, (number,))  # dropped here at once
    assert [array.flat[0] for array in forked.apply(what_was_kept)] == [0, 1, 2]  # sent again, as copies
    assert forked.apply(memories) == 3  # none of them for another


def dropped_then_filled(number):
    filled(99)
    return filled(number)


def test_an_array_that_is_not_sent_leaves_its_memory(forked):
    for number in range(4):
        assert (forked.apply(dropped_then_filled, (number,)) == number).all()
    assert forked.apply(memories) <= 2


def derived_arrays():
    array = filled(3)
    return array[:, ::2], array + np.uint8(1), array.sum()


def test_what_is_made_of_it_is_pickled_as_arrays_are(worker):
    part, more, total = worker.apply(derived_arrays)
    assert type(part) is type(more) is np.ndarray
    assert (part == 3).all()
    assert (more == 4).all()
    assert total == 3 * np.prod(SHAPE)


def drop(array):
    del array[:]


def test_a_process_forked_from_the_parent_does_not_give_it_back(forked):
    held = [forked.apply(filled, (1,))]
    other = multiprocessing.get_context("fork").Process(target=drop, args=(held,))
    other.start()
    other.join()
    assert other.exitcode == 0
    for number in range(2, 5):
        forked.apply(filled, (number,))
    assert (held[0] == 1).all()
    assert forked.apply(memories) <= 3


def in_a_child():
    held = filled(1)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        theirs = pool.apply(filled, (2,))
        return int(held.max()), int(theirs.max()), pool.apply(memories)


def test_a_workers_own_children_do_not_use_its_memory(worker):
    # Daemons must not have children, but for the test.
    assert worker.apply(undaemonised, (in_a_child,)) == (1, 2, 1)


def undaemonised(function):
    config = multiprocessing.current_process()._config
    config["daemon"] = False
    try:
        return function()
    finally:
        config["daemon"] = True


def test_outlives_the_worker():
    with multiprocessing.get_context("fork").Pool(1) as pool:
        array = pool.apply(filled, (5,))
    pool.join()
    assert (array == 5).all()


def pickled(connection):
    connection.send_bytes(pickle.dumps(filled(1)))


def test_a_worker_that_is_gone_gives_an_error_in_place_of_the_array():
    here, there = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=pickled, args=(there,))
    worker.start()
    message = here.recv_bytes()
    worker.join()
    result = pickle.loads(message)
    assert isinstance(result, IchError)
    assert f"a batch cannot be had from the process {worker.pid} that made it" in str(result)


def test_a_generators_batches_from_a_spawned_process_are_the_same(spawned, tmp_path):
    ids = [f"ID_{number:03}" for number in range(24)]
    for number, id_ in enumerate(ids):
        cv2.imwrite(str(tmp_path / f"{id_}.png"), np.arange(256, dtype=np.uint8).reshape(16, 16) // (number + 1))
    labels = pd.Series(np.arange(24.0), ids)
    generator = DataGenerator(
        ids, labels, image_dir=tmp_path, batch_size=5, shuffle=True, augment=A.HorizontalFlip(p=0.5)
    )
    generator.set_epoch(2)
    batches = spawned.map(generator.__getitem__, range(len(generator)))
    assert len(batches) == 5
    for index, (x, y) in enumerate(batches):
        np.testing.assert_array_equal(x, generator[index][0])
        np.testing.assert_array_equal(y, generator[index][1])


# ------------------------------------------------------------------------------------------- where it cannot be had


def is_ordinary(shape=SHAPE):
    array = shared_memory.empty(shape, np.dtype("uint8"))
    return type(array) is np.ndarray and array.shape == shape and array.flags.owndata


def test_in_the_first_process_arrays_are_ordinary():
    assert is_ordinary()


def test_small_arrays_are_ordinary(forked):
    assert forked.apply(is_ordinary, ((10, 100),))
    assert not forked.apply(is_ordinary)


def refuse(*args):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(("function", "gone"), [("readlink", False), ("memfd_create", False), ("memfd_create", True)])
def test_a_system_that_refuses_gets_ordinary_arrays(monkeypatch, function, gone):
    if gone:
        monkeypatch.delattr(os, function)
    else:
        monkeypatch.setattr(os, function, refuse)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(is_ordinary)
        assert (pool.apply(filled, (4,)) == 4).all()
