"""Ownership and locks of folders: a stage writes into an empty folder or its own, one process at a time."""

import errno
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

from ich.errors import IchError, name_some, one_line
from ich.files import making, names_in, replacing

_ATTEMPTS = 1000  # to create a folder that other processes remove
SHORT = 60
"""Seconds to wait for a lock that other processes hold only briefly."""


class Kind(NamedTuple):
    """A kind of output folder, recognized by a JSON file that its stage writes first.

    Args:
        content: what the folder holds, for messages.
        marker: the file's name.
        keys: keys that every version of the file has; other programs have files of that name too.
        stages: the scripts that write such folders, for messages.
        says: text that the file contains.
    """

    content: str
    marker: str
    keys: frozenset[str]
    stages: str
    says: str = ""

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder is of this kind."""
        try:
            text = (folder / self.marker).read_text(encoding="utf-8")
            mapping = json.loads(text)
        except (OSError, ValueError):
            return False
        return isinstance(mapping, dict) and self.keys <= mapping.keys() and self.says in text


IMAGES = Kind("images", "settings.json", frozenset({"windows", "size"}), "preprocess.py")
RESULT = Kind(
    "a run, a second stage or a blend",
    "environment.json",
    frozenset({"python", "packages", "commit", "platform"}),
    "train.py, train_kfold.py, train_sequence.py or blend.py",
)
DATA_SET = Kind(
    "a data set for Kaggle",
    "dataset-metadata.json",
    frozenset({"id", "description"}),
    "pack_for_kaggle.py",
    says="Made by scripts/pack_for_kaggle.py, for notebooks/kaggle_inference.ipynb.",
)
PREDICTIONS = Kind(
    "predictions of scans", "predictions.json", frozenset({"notice", "model", "options"}), "predict_scans.py"
)
MODEL = Kind("an exported model", "ich-model.json", frozenset({"format", "result", "parts"}), "export_model.py")
KINDS = (IMAGES, RESULT, DATA_SET, PREDICTIONS, MODEL)


def is_ours(folder: Path, kind: Kind) -> bool:
    """Return whether a folder is of a kind, without writing into it.

    Returns:
        True if it is of the kind; False if the folder is empty or does not exist.

    Raises:
        IchError: it holds something else.
    """
    names = names_in(folder)
    if not names:
        return False
    if kind.is_in(folder):
        return True
    for other in KINDS:
        if other.is_in(folder):
            raise IchError(
                f"{folder} holds {other.content} (by scripts/{other.stages}), expected {kind.content}; name another"
                " folder, a new or an empty one"
            )
    raise IchError(
        f"{folder} holds {name_some(names)} and lacks a readable {kind.marker} of {kind.content}: it is not this"
        " program's; name another folder, a new or an empty one"
    )


@contextmanager
def locked(
    folder: Path,
    check: Callable[[], object] = lambda: None,
    name: str = "",
    wait: float = 0,
    advice: str = "make room or rights for it, then run again",
) -> Iterator[None]:
    """Hold the lock of a folder within the block: one process at a time writes into it. Readers need no lock.

    The lock is the system's (flock(2), by filelock) on the file `.ich-lock` in the folder, which is removed on
    release; the end of the process, a kill too, releases it, and forked children do not keep it. `.ich-lock….json`
    names the holder, for messages alone: one that a kill leaves behind locks nobody out. A process that has the lock
    can take it again.

    On NFS (version 4, or 3 with its lock service) Linux locks across machines, and the server releases the lock of a
    machine that is gone when its lease ends, after some 90 seconds. There a file that is open when it is removed is
    renamed: two processes that take and release a lock within the same milliseconds may both get it. On a file system
    without locks (Lustre without -o flock) a warning is printed, and no process is kept out.

    A missing folder is created, and removed if it is left empty.

    Args:
        check: raises if the folder must not be written into; called before anything is created in it, and again with
            the lock.
        name: names a part of the folder that has its own lock.
        wait: seconds to wait for another process.
        advice: what to do where the system refuses to write into the folder.

    Raises:
        IchError: another process has the lock (the message names it); the system refuses; or `check` raised it.
    """
    # Not at the top: the conversion's workers import this module, and start in less time than this import takes.
    from filelock import FileLock, Timeout

    check()
    path = folder.resolve() / (f".ich-lock-{name}" if name else ".ich-lock")
    lock = FileLock(path, is_singleton=True, fallback_to_soft=False)
    if lock.is_locked:  # by this thread
        yield
        return
    holder = path.with_name(f"{path.name}.json")
    deadline = time.monotonic() + wait
    with ExitStack() as created:
        for attempt in count():
            try:
                created.enter_context(making(path.parent))
                lock.acquire(timeout=max(0, deadline - time.monotonic()))
                break
            except Timeout as error:
                raise IchError(
                    f"{folder} is in use by {_describe(holder)}; wait until it has ended, or stop it"
                ) from error
            except OSError as error:
                # Another process may just have removed the folder, which it had left empty.
                if isinstance(error, (FileNotFoundError, FileExistsError)) and attempt < _ATTEMPTS:
                    continue
                if error.errno == errno.ENOSYS:
                    warning = f"warning: the file system of {folder} has no locks; run one command at a time"
                    print(warning, file=sys.stderr)
                    break
                if occupant := {errno.EISDIR: "a folder", errno.ELOOP: "a link"}.get(error.errno or 0):
                    raise IchError(f"{path} is {occupant}, expected a file for the lock; remove it") from error
                raise IchError(f"cannot write into {folder}: {one_line(error)}; {advice}") from error
        try:
            check()
            # The lock holds even if this file cannot be written.
            with suppress(IchError), replacing(holder, durable=False) as temporary:
                temporary.write_text(json.dumps(_this_process()))
            yield
        finally:
            with suppress(OSError):
                holder.unlink(missing_ok=True)
                path.unlink(missing_ok=True)  # before the release: whoever waits for this file sees that it is gone
            lock.release()


def _this_process() -> dict:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(map(os.path.basename, sys.argv[:1])),
    }


def _describe(holder: Path) -> str:
    """Return which process holds a lock, as its `holder` file names it."""
    for _ in range(10):  # it is written a moment after the lock is taken
        with suppress(OSError, ValueError, KeyError, TypeError):
            process = json.loads(holder.read_text(encoding="utf-8"))
            command = f" ({process['command']})" if process["command"] else ""
            return f"process {process['pid']}{command} on {process['host']}, since {process['since']}"
        time.sleep(0.1)
    return "another process"
