"""A folder is written into by nobody but its own stage, and by one process at a time."""

import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import filelock
import pytest
from conftest import HOLDER, in_use

from ich import files, folders
from ich.errors import IchError
from ich.folders import DATA_SET, IMAGES, KINDS, MODEL, PREDICTIONS, RESULT, is_ours, locked
from ich.images import convert
from ich.images.render import Settings
from ich.kaggle import packing
from ich.own_scans.model_spec import ModelSpec
from ich.results import environment


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


# ---------------------------------------------------------------------------------------------------------- whose


def ask(folder):
    return is_ours(folder, IMAGES)


def test_a_folder_is_new_ours_or_refused(tmp_path):
    assert not ask(tmp_path / "missing")
    assert not ask(tmp_path)
    for name in (f".ich-{'0' * 32}.tmp.json", ".ich-lock", ".ich-lock.json", ".ich-lock-fold0"):
        (tmp_path / name).write_text("of a kill")
    assert not ask(tmp_path)
    (tmp_path / "folds.csv").write_text("")
    for content in (None, "", "{", "[1]", '{"editor.fontSize": 12}', "\xff"):
        if content is not None:
            (tmp_path / "settings.json").write_text(content, encoding="latin-1")
        listed = "folds.csv" if content is None else "folds.csv, settings.json"
        message = (
            f"{tmp_path} holds {listed} and lacks a readable settings.json of images: it is not this program's; name"
        )
        before = names(tmp_path)
        with pytest.raises(IchError, match=re.escape(message)):
            ask(tmp_path)
        assert names(tmp_path) == before
    (tmp_path / "settings.json").write_text('{"windows": [], "size": null}')
    assert ask(tmp_path)


MARKERS = {
    IMAGES: {"windows": [], "size": 64},
    RESULT: {"python": "3.11", "packages": {}, "commit": None, "platform": ""},
    DATA_SET: {"id": "jane/x", "description": f"Code. {DATA_SET.says}"},
    PREDICTIONS: {"notice": "", "model": {}, "options": {}},
    MODEL: {"format": 1, "result": "a", "parts": []},
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.content)
def test_a_folder_of_another_stage_is_reported_as_such(tmp_path, kind):
    (tmp_path / kind.marker).write_text(json.dumps(MARKERS[kind]))
    assert is_ours(tmp_path, kind)
    for other in {*KINDS} - {kind}:
        message = (
            f"{tmp_path} holds {kind.content} (by scripts/{kind.stages}), expected {other.content}; name another folder"
        )
        with pytest.raises(IchError, match=re.escape(message)):
            is_ours(tmp_path, other)


def test_the_markers_are_what_the_stages_write():
    assert environment.environment().keys() >= RESULT.keys
    assert convert._as_json(Settings(windows=(), files="hu")).keys() >= IMAGES.keys
    metadata = packing.metadata("jane/x-data-set")
    assert metadata.keys() >= DATA_SET.keys
    assert set(ModelSpec.model_fields) >= MODEL.keys
    assert DATA_SET.says in json.dumps(metadata)


def test_what_is_no_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    for attempt in (lambda: ask(tmp_path / "file"), lambda: locked(tmp_path / "file").__enter__()):
        with pytest.raises(IchError, match=r"cannot write into .*file"):
            attempt()


@pytest.mark.parametrize(
    ("kind", "put"), [("a folder", lambda path: path.mkdir()), ("a link", lambda path: path.symlink_to("elsewhere"))]
)
def test_what_stands_in_the_place_of_the_lock_is_reported_and_stays(tmp_path, kind, put):
    put(tmp_path / ".ich-lock")
    message = f"{tmp_path}/.ich-lock is {kind}, expected a file for the lock; remove it"
    with pytest.raises(IchError, match=re.escape(message)), locked(tmp_path):
        pytest.fail("it has no lock")
    assert [path.name for path in tmp_path.iterdir()] == [".ich-lock"]


@pytest.mark.parametrize("place", ["new/deep", f"new/{'x' * 300}", f"{'x' * 300}/new"])
def test_folders_that_were_made_for_nothing_go_again(tmp_path, place):
    with suppress(IchError, KeyError), locked(tmp_path / place):
        raise KeyError
    assert names(tmp_path) == []
    with suppress(IchError, KeyError), files.replacing(tmp_path / place / "a.csv"):
        raise KeyError
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder where nothing can be made, as Linux has it")
def test_a_folder_that_never_can_be_made_is_reported():
    with (
        pytest.raises(IchError, match=r"cannot write into /proc/none: .*; name one"),
        locked(Path("/proc/none"), advice="name one"),
    ):
        pytest.fail("it was made")


# ------------------------------------------------------------------------------------------------------------- who


def test_the_second_learns_whose_the_folder_is(tmp_path):
    with in_use(tmp_path / "images") as first:
        begun = time.monotonic()
        with pytest.raises(IchError) as caught, locked(tmp_path / "images"):
            pytest.fail("two processes have the lock")
        assert time.monotonic() - begun < 5
        assert re.fullmatch(
            rf"{tmp_path}/images is in use by process {first.pid} \(-c\) on {re.escape(platform.node())}, since"
            r" \d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d; wait until it has ended, or stop it",
            str(caught.value),
        )
        with locked(tmp_path / "other"), locked(tmp_path / "images", name="fold0"):
            pass  # other folders, and parts that have locks of their own, are free
    assert not (tmp_path / "images").exists()  # nothing was written into it
    with locked(tmp_path / "images"):
        pass


def test_a_kill_leaves_nothing_that_needs_a_hand(tmp_path):
    with in_use(tmp_path) as first:
        first.kill()
    assert names(tmp_path) == [".ich-lock", ".ich-lock.json"]
    with locked(tmp_path):
        assert json.loads((tmp_path / ".ich-lock.json").read_text())["pid"] == os.getpid()
        assert not ask(tmp_path)
    assert names(tmp_path) == []


FORKING = HOLDER.replace("sys.stdin.read()", "print(os.fork() or signal.pause(), flush=True); signal.pause()")
FORKING = FORKING.replace("import sys", "import os, signal, sys")


def test_a_forked_child_does_not_keep_the_lock_of_a_process_that_was_killed(tmp_path):
    """As the processes that read images for a training, which wait for tasks when it is killed."""
    with subprocess.Popen([sys.executable, "-c", FORKING, tmp_path, ""], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "locked\n"
        child = int(first.stdout.readline())
        first.kill()
        first.wait()
        try:
            with locked(tmp_path, wait=30):  # the child lets go of it at its start, which may come later
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_lock_is_waited_for(tmp_path):
    with in_use(tmp_path) as first:
        timer = threading.Timer(0.5, first.kill)
        timer.start()
        with locked(tmp_path, wait=30):
            assert first.poll() is not None or first.wait(1)


def test_a_process_takes_its_own_lock_again_but_not_in_another_thread(tmp_path):
    messages = []

    def lock_in_thread():
        try:
            with locked(tmp_path):
                pass
        except IchError as error:
            messages.append(str(error))

    with locked(tmp_path):
        with locked(tmp_path):
            pass
        thread = threading.Thread(target=lock_in_thread)
        thread.start()
        thread.join()
        assert (tmp_path / ".ich-lock").exists()
    assert f"in use by process {os.getpid()}" in messages[0]
    assert names(tmp_path) == []


def test_several_processes_never_work_at_once(tmp_path):
    """Each takes the lock, writes what must not be there, and removes it, as fast as it can."""
    script = """
import sys
from pathlib import Path
from ich.folders import locked
folder = Path(sys.argv[1])
for _ in range(20):
    with locked(folder, wait=60):
        (folder / "alone").touch(exist_ok=False)
        (folder / "alone").unlink()
"""
    command = [sys.executable, "-c", script, tmp_path / "a" / "b"]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        assert process.communicate(timeout=60)[1] == ""
    assert {"a", "b"} >= set(names(tmp_path))  # one that did not make the folder may be the last


def test_what_is_refused_is_not_touched(tmp_path):
    def refuse():
        raise IchError("it is somebody's")

    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(IchError, match="somebody's"), locked(folder, refuse):
            pytest.fail("it was to be refused")
        assert names(tmp_path) == []
    asked = []
    with pytest.raises(IchError), locked(tmp_path, lambda: asked.append(1) or (len(asked) > 1 and refuse())):
        pytest.fail("it has become somebody's before the lock was had")
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EROFS])
def test_a_file_system_without_locks_is_warned_of_and_others_refused(tmp_path, monkeypatch, capsys, code):
    def refuse(self, timeout):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    if code == errno.ENOSYS:
        with locked(tmp_path):
            (tmp_path / "a").touch()
        assert f"warning: the file system of {tmp_path} has no locks; run one command" in capsys.readouterr().err
    else:
        with pytest.raises(IchError, match=r"cannot write into .*: Read-only file system; make room or rights"):
            locked(tmp_path).__enter__()


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path):
    (tmp_path / "a.json").write_text('{"pid": 1}')
    assert folders._describe(tmp_path / "a.json") == "another process"
