"""The same work on the cores of one machine, by joblib, or on a Dask cluster."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from multiprocessing.pool import TERMINATE, Pool
from multiprocessing.process import BaseProcess
from signal import SIGTERM
from threading import Event, Thread
from time import sleep
from typing import Any
from weakref import WeakSet

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ich.errors import IchError, one_line

BACKENDS = {"processes": "loky", "threads": "threading", "dask": None}
"""Names in a config, and joblib's for them: its own for Dask waits for ever when a worker was killed."""

_PARENT_SECONDS = 0.1  # between a worker's looks at whether its parent lives
_WATCH_SECONDS = 0.02  # a worker that lives shorter than this and is killed is not noticed
_KILLED_SECONDS = 10  # until a killed worker's memory is free again; longer only where the system waits for a disk
_CLUSTER_SECONDS = 10  # to answer, and to have a first worker
KILLED = "was killed, which is what a system does that runs out of memory; run again, with fewer"
"""The message on a killed process; the setting to lower follows it."""

_WORKER_KILLED = f"a worker process {KILLED} jobs: what is done is kept"
_READER_KILLED = f"a process that reads images {KILLED} machine.workers: the same command continues"


def unordered(
    function: Callable[..., Any],
    tasks: Iterable[tuple],
    *,
    jobs: int = -1,
    backend: str = "processes",
    scheduler: str | None = None,
) -> Iterator[Any]:
    """Call the function with each task's arguments; give the results as they come.

    Tasks are drawn as workers get free, so that neither they nor results pile up.

    Args:
        function, tasks: must pickle, and on a cluster the function's module must be importable by its workers.
        jobs: as joblib's n_jobs: 1 works in this process, -1 takes all cores; of a cluster, how many tasks it has at a
            time, -1 as many as it can work at.
        backend: a key of `BACKENDS`.
        scheduler: the address of a Dask scheduler, such as tcp://10.0.0.5:8786, for the backend dask.

    Raises:
        IchError: an unknown backend, no jobs, no cluster at that address or none with workers, or a worker that was
            killed; what a task raises comes as it is.
    """
    if jobs == 0:
        raise IchError("0 jobs do no work; 1 works in this process, -1 takes all cores")
    if backend not in BACKENDS:
        raise IchError(f"no backend is called {backend!r}; there are {', '.join(BACKENDS)}")
    if backend == "dask":
        yield from _on_cluster(function, tasks, jobs, scheduler)
        return
    # An initializer, as workers that never get a task have to end with this process too.
    parent = {"initializer": _watch_parent, "initargs": (os.getpid(),)} if backend == "processes" and jobs != 1 else {}
    calls = (delayed(function)(*task) for task in tasks)
    try:
        yield from Parallel(n_jobs=jobs, backend=BACKENDS[backend], return_as="generator_unordered", **parent)(calls)
    except TerminatedWorkerError as error:
        raise IchError(_WORKER_KILLED) from error


def _watch_parent(parent: int) -> None:
    """Have this worker process end when its parent was killed.

    It would work on for ever otherwise, and write into a folder that another process may have locked since.
    """
    if os.getpid() != parent:
        Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        sleep(_PARENT_SECONDS)
    os._exit(1)


def _on_cluster(
    function: Callable[..., Any], tasks: Iterable[tuple], jobs: int, scheduler: str | None
) -> Iterator[Any]:
    with _client(scheduler) as client:
        from dask.distributed import CancelledError, KilledWorker, as_completed

        try:
            client.wait_for_workers(1, timeout=_CLUSTER_SECONDS)
        except TimeoutError as error:
            raise IchError(f"the Dask scheduler at {scheduler} has no workers; start some") from error
        threads = sum(client.nthreads().values())
        # Each a call without arguments: Dask would look into them for tasks of its own.
        calls = (partial(function, *task) for task in tasks)
        running = as_completed()
        # Twice what the cluster works at, so that no worker waits for its next task.
        running.update(client.submit(call, pure=False) for call in islice(calls, 2 * threads if jobs < 0 else jobs))
        for future in running:
            try:
                result = future.result()
            except KilledWorker as error:
                raise IchError(_WORKER_KILLED) from error
            except (CancelledError, OSError) as error:
                if future.status == "error":  # it is the task's own
                    raise
                raise IchError(f"the Dask scheduler at {scheduler} is gone; run again") from error
            running.update(client.submit(call, pure=False) for call in islice(calls, 1))
            yield result


def _client(scheduler: str | None) -> Any:
    try:
        from dask.distributed import Client
        from distributed.comm import get_address_host_port
    except ImportError as error:
        raise IchError("the dask backend needs the package distributed: pip install 'ich[dask]'") from error
    if scheduler is None:
        raise IchError("the dask backend needs a scheduler's address, such as tcp://10.0.0.5:8786")
    try:
        # A Client refuses such an address only when half made, and then may hang the next one's start: its finalizer
        # waits for a lock which that start holds, and holds up the thread that the start waits for.
        get_address_host_port(scheduler)
        return Client(scheduler, timeout=_CLUSTER_SECONDS)
    except (OSError, ValueError) as error:
        raise IchError(
            f"no Dask scheduler answers at {scheduler} ({one_line(error)}); start one, or correct the address"
        ) from error


@contextmanager
def guarded_pools(pools: Callable[[], Iterable[Pool]]) -> Iterator[None]:
    """Within the block, raise an error if a worker process of multiprocessing's pools is killed; leave none behind.

    A pool starts another worker, but the task of the dead one is lost, and what waits for it waits for ever: Keras for
    a batch, in C, where no exception of another thread reaches it. So the pools are given up: their processes are
    killed, and each result that somebody waits for, or will, is an error. So are the pools that began within a block
    which an exception ends, Ctrl-C too: Keras ends an epoch's workers with the epoch alone.

    Args:
        pools: gives those that there are; asked again and again, by another thread.

    Raises:
        IchError: a worker was killed, and the block ended by an exception.
    """
    over, killed = Event(), Event()
    watch = Thread(target=_watch, args=(pools, over, killed), daemon=True)
    earlier = WeakSet(pools())
    watch.start()
    try:
        yield
    except BaseException as error:
        over.set()
        watch.join()
        for pool in pools():
            if pool not in earlier and pool not in _given_up:
                _give_up(pool)
                _given_up.add(pool)
        if killed.is_set() and isinstance(error, Exception):
            raise IchError(_READER_KILLED) from error
        raise
    finally:
        over.set()
        watch.join()


_given_up: WeakSet[Pool] = WeakSet()  # their workers were killed: no news to whoever watches later


def _watch(pools: Callable[[], Iterable[Pool]], over: Event, killed: Event) -> None:
    workers: set[BaseProcess] = set()
    while not over.wait(_WATCH_SECONDS):
        used = [pool for pool in pools() if pool not in _given_up]
        workers.update(*(_workers(pool) for pool in used))
        codes = {worker: worker.exitcode for worker in workers}
        workers = {worker for worker, code in codes.items() if code is None}
        # A pool ends those that it needs no more by TERM.
        if any(code not in (None, 0, -SIGTERM) for code in codes.values()):
            killed.set()
            for pool in used:
                _give_up(pool)
            # A pool that had given all its results ends nothing: the next one, of the next epoch, is watched too.
            _given_up.update(used)
            workers.clear()


def _workers(pool: Any) -> list[BaseProcess]:
    """Return the workers of a pool, which Pool holds as a private attribute alone."""
    return pool._pool


def _give_up(pool: Any) -> None:
    """Kill the workers of a pool, and make errors of all its results that are not there yet.

    Not by its terminate(): a worker that is killed while it waits for a task keeps the lock of the tasks, for which
    terminate() waits. What the pool's threads hold stays until the process ends.
    """
    pool.close()
    pool._worker_handler._state = TERMINATE  # it starts workers in place of those that ended
    pool._change_notifier.put(None)
    pool._worker_handler.join()
    for worker in _workers(pool):
        worker.kill()
    pool._terminate.cancel()  # terminate() at the end of the process
    for result in list(pool._cache.values()):
        with suppress(KeyError):  # it has just come
            result._set(0, (False, IchError(_READER_KILLED)))
    for worker in _workers(pool):
        worker.join(_KILLED_SECONDS)
