import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from conftest import dask_scheduler, make_dicom
from parallel_tasks import die, refuse, sleep, square, stumble, wait_in_a_pool

from ich import parallel
from ich.dicom.slice_error import DicomError
from ich.dicom.windows import PRESETS
from ich.errors import IchError
from ich.images.convert import convert, verify
from ich.images.render import Settings
from ich.parallel import BACKENDS, unordered

distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")

TESTS = str(Path(__file__).parent)  # other processes import `parallel_tasks` from there


@pytest.fixture(scope="module")
def cluster():
    """The address of a real scheduler with two worker processes."""
    with dask_scheduler(workers=2) as (_, address):
        yield address


@pytest.fixture(params=["here", "processes", "threads", "dask"])
def how(request):
    if request.param == "here":
        return {"jobs": 1}
    if request.param == "dask":
        return {"backend": "dask", "scheduler": request.getfixturevalue("cluster")}
    return {"backend": request.param, "jobs": 2}


def calls(numbers):
    return ((number,) for number in numbers)


def test_every_task_is_done_once(how):
    assert sorted(unordered(square, calls(range(200)), **how)) == [(n, n * n) for n in range(200)]
    assert list(unordered(square, calls([]), **how)) == []


def test_workers_end_with_a_parent_that_is_killed_with_a_task_or_without(tmp_path):
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from parallel_tasks import pid_then_sleep
from ich.parallel import unordered
list(unordered(pid_then_sleep, ((Path(sys.argv[2]), n) for n in range(2)), jobs=4))
"""
    with subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]) as parent:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < deadline
            assert parent.poll() is None
            time.sleep(0.05)
        workers = psutil.Process(parent.pid).children()  # joblib's trackers of resources too
        assert {int(path.name) for path in tmp_path.iterdir()} < {worker.pid for worker in workers}
        parent.kill()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert len(gone) >= 4
    assert alive == []


@pytest.mark.filterwarnings("ignore:.*tasks have been successfully executed")
def test_tasks_are_drawn_as_they_are_needed(how):
    drawn = []

    def tasks():
        for number in range(500):
            drawn.append(number)
            yield (number,)

    results = unordered(square, tasks(), **how)
    next(results)
    # joblib gives quick tasks to a worker by the batch, but never all of them.
    assert len(drawn) < 500
    results.close()


def test_a_tasks_own_error_arrives_as_it_is(how):
    with pytest.raises(DicomError) as caught:
        list(unordered(refuse, calls(range(20)), **how))
    assert (caught.value.kind, caught.value.reason) == ("truncated", "cut short")
    with pytest.raises(FileNotFoundError, match="the task's own"):
        list(unordered(stumble, calls(range(3)), **how))


@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_reported_and_waited_for_no_longer(how):
    if how.get("backend") not in ("processes", "dask"):
        pytest.skip("there is no other process to be killed")
    begun = time.monotonic()
    with pytest.raises(IchError, match=r"a worker process was killed, .* run again, with fewer jobs: what is done is"):
        list(unordered(die, calls([1]), **how))
    assert time.monotonic() - begun < 60
    assert sorted(unordered(square, calls(range(4)), **how)) == [(n, n * n) for n in range(4)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_jobs_bound_what_a_cluster_has_at_a_time(cluster, jobs):
    drawn = []

    def tasks():
        for number in range(20):
            drawn.append(number)
            yield (number,)

    results = unordered(square, tasks(), backend="dask", scheduler=cluster, jobs=jobs)
    next(results)
    assert len(drawn) == jobs + 1
    assert len(list(results)) == 19


def test_what_cannot_work_is_refused(monkeypatch):
    with pytest.raises(IchError, match=f"no backend is called 'spark'; there are {', '.join(BACKENDS)}"):
        list(unordered(square, calls([1]), backend="spark"))
    with pytest.raises(IchError, match="0 jobs do no work"):
        list(unordered(square, calls([1]), jobs=0))
    with pytest.raises(IchError, match="needs a scheduler's address, such as tcp"):
        list(unordered(square, calls([1]), backend="dask"))
    monkeypatch.setattr(parallel, "_CLUSTER_SECONDS", 1)
    for address in ("tcp://127.0.0.1:1", "127.0.0.1", "nonsense://x", ""):
        with pytest.raises(IchError, match=f"no Dask scheduler answers at {address} .*correct the address"):
            list(unordered(square, calls([1]), backend="dask", scheduler=address))
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(IchError, match=r"needs the package distributed: pip install 'ich\[dask\]'"):
        list(unordered(square, calls([1]), backend="dask", scheduler="tcp://127.0.0.1:1"))


def test_an_address_that_is_none_leaves_no_client_behind():
    with pytest.raises(IchError, match=r"no Dask scheduler answers at 127\.0\.0\.1 "):
        list(unordered(square, calls([1]), backend="dask", scheduler="127.0.0.1"))
    # One in the state "connecting" would hang the next one's start if it were finalized then, in a thread of it.
    assert not [what for what in gc.get_objects() if isinstance(what, distributed.Client) and what.status != "closed"]


def test_a_cluster_without_workers_does_no_work_and_says_so(monkeypatch):
    monkeypatch.setattr(parallel, "_CLUSTER_SECONDS", 2)
    with dask_scheduler(workers=0) as (_, address), pytest.raises(IchError, match="has no workers; start some"):
        list(unordered(square, calls([1]), backend="dask", scheduler=address))


def test_a_scheduler_that_goes_away_is_reported():
    with dask_scheduler(workers=1) as (process, address):
        results = unordered(sleep, calls([0.01] * 3 + [300] * 3), backend="dask", scheduler=address)
        next(results)
        process.kill()
        with (
            distributed.client.dask.config.set({"distributed.client.scheduler-reconnect": False}),
            pytest.raises(IchError, match=r"the Dask scheduler at .* is gone; run again"),
        ):
            list(results)


# ------------------------------------------------------------------------------------------- multiprocessing's pools


@pytest.mark.parametrize("tasks", [1, 2, 50])
def test_a_pools_worker_that_is_killed_is_an_error_and_the_process_lives_on(tasks):
    """Whether it works on a task or waits for one, with the lock that the others wait for."""
    begun, others = time.monotonic(), set(multiprocessing.active_children())
    with pytest.raises(IchError, match=r"^a process that reads images was killed, .* with fewer machine\.workers: the"):
        wait_in_a_pool(True, [(sleep, (20,))] * tasks)
    assert time.monotonic() - begun < 15
    assert not [child for child in set(multiprocessing.active_children()) - others if "PoolWorker" in child.name]
    assert wait_in_a_pool(False, [(square, (3,))])[1] == [(3, 9)]


def test_results_that_came_before_a_kill_are_kept_and_the_pool_takes_no_more():
    pool, results = wait_in_a_pool(True, [(square, (3,))])
    assert results == [(3, 9)]
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply_async(square, (4,))


@pytest.mark.filterwarnings("ignore")
def test_a_process_whose_pool_was_given_up_ends():
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from parallel_tasks import sleep, wait_in_a_pool
wait_in_a_pool(True, [(sleep, (20,))] * 2)
"""
    done = subprocess.run([sys.executable, "-c", code, TESTS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ich.errors.IchError: a process that reads images was killed")


def kill_a_pool_and_the_next():
    """Of the first, when all its results have come, as between two epochs; of the second, while it works."""
    pools = []
    with parallel.guarded_pools(lambda: list(pools)):
        for seconds in (0, 20):
            with closing(multiprocessing.get_context("fork").Pool(2)) as pool:
                pools.append(pool)
                result = pool.apply_async(sleep, (seconds,))
                if not seconds:
                    result.get(timeout=30)
                time.sleep(0.3)  # of the watch
                for worker in pool._pool:
                    os.kill(worker.pid, signal.SIGKILL)
                time.sleep(0.3)
                result.get(timeout=30)


def test_a_pool_that_follows_one_whose_worker_was_killed_is_watched_too():
    begun = time.monotonic()
    with pytest.raises(IchError, match=r"^a process that reads images was killed"):
        kill_a_pool_and_the_next()
    assert time.monotonic() - begun < 15


def test_an_error_after_a_kill_that_was_reported_is_not_reported_as_another():
    def work(fails):
        with parallel.guarded_pools(lambda: [pool]):
            time.sleep(0.3)
            fails()

    def kill():
        os.kill(pool._pool[0].pid, signal.SIGKILL)
        result.get(timeout=30)

    with closing(multiprocessing.get_context("fork").Pool(1)) as pool:
        result = pool.apply_async(sleep, (20,))
        with pytest.raises(IchError, match="was killed"):
            work(kill)
        with pytest.raises(ZeroDivisionError):
            work(lambda: 1 / 0)


def test_an_error_of_ones_own_stays_it(tmp_path):
    with pytest.raises(ZeroDivisionError), parallel.guarded_pools(list):
        1 / 0  # noqa: B018


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_ends_the_pools_that_began_within_the_block_and_no_others(error):
    """Keras ends an epoch's workers with the epoch alone, and in a notebook the process lives on."""

    def work():
        with parallel.guarded_pools(lambda: pools):
            pools.append(fork.Pool(2))
            workers.extend(pools[1]._pool)
            results.append(pools[1].apply_async(sleep, (20,)))
            raise error

    fork = multiprocessing.get_context("fork")
    with closing(fork.Pool(1)) as earlier:
        pools, workers, results = [earlier], [], []
        with pytest.raises(error):
            work()
        for worker in workers:
            # An idle worker may end by itself: the pool's own thread sends all an end of the tasks.
            assert worker.exitcode in (0, -signal.SIGKILL)
        assert -signal.SIGKILL in {worker.exitcode for worker in workers}
        with pytest.raises(IchError, match="was killed"):
            results[0].get(timeout=10)
        assert earlier.apply(square, (3,)) == (3, 9)


# ------------------------------------------------------------------------------------------------------ conversion


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "train"
    folder.mkdir()
    for number in range(150):  # three chunks
        uid = f"ID_{number:09x}"
        data = make_dicom(uid=uid, ImagePositionPatient=[0, 0, number])
        (folder / f"{uid}.dcm").write_bytes(data[:-40] if number % 50 == 7 else data)
    return folder


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    convert([source], out, Settings((PRESETS["brain"],), crop=True), jobs=1)
    return contents(out)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_backend_converts_to_the_same_bytes(source, alone, tmp_path, how):
    settings = Settings((PRESETS["brain"],), crop=True)
    table = convert([source], tmp_path / "images", settings, **how)
    assert contents(tmp_path / "images") == alone
    assert (table["status"] == "truncated").sum() == 3
    assert verify([source], tmp_path / "images", settings, **how) == {}
    (tmp_path / "images" / "train" / f"ID_{5:09x}.png").unlink()
    assert list(verify([source], tmp_path / "images", settings, **how)) == [f"ID_{5:09x}"]
