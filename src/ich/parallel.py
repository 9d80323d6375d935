"""The same work on the cores of one machine or on a Dask cluster, by joblib."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ich.errors import IchError

BACKENDS = {"processes": "loky", "threads": "threading", "dask": "dask"}
"""Names in a config, and joblib's for them."""


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
        jobs: joblib's n_jobs: 1 works in this process, -1 takes all cores, or all of the cluster.
        backend: a key of `BACKENDS`.
        scheduler: the address of a Dask scheduler, such as tcp://10.0.0.5:8786, for the backend dask.

    Raises:
        IchError: an unknown backend, no cluster at that address, or a worker that was killed; what a task raises
            comes as it is.
    """
    if backend not in BACKENDS:
        raise IchError(f"no backend is called {backend!r}; there are {', '.join(BACKENDS)}")
    calls = (delayed(function)(*task) for task in tasks)
    with ExitStack() as stack:
        if backend == "dask":
            stack.enter_context(_client(scheduler))
        stack.enter_context(parallel_config(backend=BACKENDS[backend]))
        try:
            if backend != "dask":
                yield from Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)
                return
            # joblib cannot give Dask's results one by one: rounds of some tasks a worker come close.
            while batch := list(islice(calls, 8 * effective_n_jobs(jobs))):
                yield from Parallel(n_jobs=jobs)(batch)
        except TerminatedWorkerError as error:
            raise IchError(
                "a worker process was killed, which is what a system does that runs out of memory; run again, with"
                " fewer jobs: what is done is kept"
            ) from error


def _client(scheduler: str | None) -> Any:
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise IchError("the dask backend needs the package distributed: pip install 'ich[dask]'") from error
    if scheduler is None:
        raise IchError("the dask backend needs a scheduler's address, such as tcp://10.0.0.5:8786")
    try:
        return Client(scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise IchError(
            f"no Dask scheduler answers at {scheduler} ({error}); start one, or correct the address"
        ) from error
