"""Tasks of test_parallel.py: worker processes import this module, which imports little, and not the tests."""

import multiprocessing
import os
import signal
import time
from contextlib import closing

from ich import parallel
from ich.dicom.slice_error import DicomError


def square(number):
    return number, number * number


def refuse(number):
    if number == 7:
        raise DicomError("truncated", "cut short")
    return number


def stumble(number):
    raise FileNotFoundError(2, "the task's own")


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(number):
    time.sleep(number)
    return number


def pid_then_sleep(folder, number):
    (folder / f"{os.getpid()}").touch()
    time.sleep(60)


def wait_in_a_pool(kill, tasks):
    """Wait for the results of a pool of multiprocessing, one of whose workers is killed once they work."""
    with (
        closing(multiprocessing.get_context("fork").Pool(2)) as pool,
        parallel.guarded_pools(lambda: [pool]),
    ):
        results = [pool.apply_async(*task) for task in tasks]
        time.sleep(0.3)
        if kill:
            os.kill(pool._pool[0].pid, signal.SIGKILL)
        outcomes = [result.get(timeout=30) for result in results]
        time.sleep(0.3)  # of the watch
        return pool, outcomes
