"""Whose a folder is, and who works in it: a stage writes where nothing lies but its own, one process at a time."""

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

_ATTEMPTS = 1000  # to make a folder that others remove
SHORT = 60
"""Seconds to wait for a lock that others hold for moments only."""


class Kind(NamedTuple):
    """What a stage keeps in its folders, told by a JSON file that it writes into them first.

    Args:
        what: the folder holds, for messages.
        marker: the file's name.
        keys: that the file has, whichever version wrote it; others have files of that name too.
        stages: the scripts that write such folders, for messages.
        says: text that stands in the file.
    """

    what: str
    marker: str
    keys: frozenset[str]
    stages: str
    says: str = ""

    def is_in(self, folder: Path) -> bool:
        """Return whether a folder is of this kind."""
        try:
            text = (folder / self.marker).read_text(encoding="utf-8")
            content = json.loads(text)
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and self.keys <= content.keys() and self.says in text


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
    """Return whether a folder holds what a stage wrote; nothing is written or removed to find out.

    Returns:
        True if it is of the kind; False if the folder is empty, or not there.

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
                f"{folder} holds {other.what} (by scripts/{other.stages}), expected {kind.what}; name another"
                " folder, a new or an empty one"
            )
    raise IchError(
        f"{folder} holds {name_some(names)} and lacks a readable {kind.marker} of {kind.what}: it is not this"
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
    """Work alone in a folder: no other process has its lock within the block. Whoever only reads needs none.

    The lock is the system's (flock(2), by filelock) on the file `.ich-lock` in the folder, which is removed with it;
    the end of the process, a kill too, releases it, and forked children do not keep it. Who holds it stands in
    `.ich-lock….json`, for messages alone: what a kill leaves there locks nobody out. A process that has the lock can
    take it again.

    On NFS (version 4, or 3 with its lock service) Linux locks across machines, and the server releases the lock of a
    machine that is gone when its lease ends, after some 90 seconds. There a file that is open when it is removed keeps
    another name: two processes that take and release a lock within the same milliseconds may both get it. Where a file
    system has no locks (Lustre without -o flock), a warning says so, and nobody is kept out.

    A folder that is not there is made, and removed if it is left empty.

    Args:
        check: raises if the folder is not to be written into; called before anything is made in it, and again with the
            lock.
        name: of a part of the folder that has a lock of its own.
        wait: seconds to wait for another process.
        advice: what to do where the system refuses to write into the folder.

    Raises:
        IchError: another process has the lock, and the message tells which; the system refuses; or `check` raised it.
    """
    # Not at the top: those who convert import this module, and start in less than it takes.
    from filelock import FileLock, Timeout

    check()
    path = folder.resolve() / (f".ich-lock-{name}" if name else ".ich-lock")
    lock = FileLock(path, is_singleton=True, fallback_to_soft=False)
    if lock.is_locked:  # by this thread
        yield
        return
    holder = path.with_name(f"{path.name}.json")
    until = time.monotonic() + wait
    with ExitStack() as made:
        for attempt in count():
            try:
                made.enter_context(making(path.parent))
                lock.acquire(timeout=max(0, until - time.monotonic()))
                break
            except Timeout as error:
                raise IchError(f"{folder} is in use by {_told(holder)}; wait until it has ended, or stop it") from error
            except OSError as error:
                # Another process may just have removed the folder, which it had left empty.
                if isinstance(error, (FileNotFoundError, FileExistsError)) and attempt < _ATTEMPTS:
                    continue
                if error.errno == errno.ENOSYS:
                    warning = f"warning: the file system of {folder} has no locks; run one command at a time"
                    print(warning, file=sys.stderr)
                    break
                if found := {errno.EISDIR: "a folder", errno.ELOOP: "a link"}.get(error.errno or 0):
                    raise IchError(f"{path} is {found}, expected a file for the lock; remove it") from error
                raise IchError(f"cannot write into {folder}: {one_line(error)}; {advice}") from error
        try:
            check()
            # Where that cannot be written, it is a lock all the same.
            with suppress(IchError), replacing(holder, durable=False) as temporary:
                temporary.write_text(json.dumps(_me()))
            yield
        finally:
            with suppress(OSError):
                holder.unlink(missing_ok=True)
                path.unlink(missing_ok=True)  # before the release: whoever waits for this file sees that it is gone
            lock.release()


def _me() -> dict:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(map(os.path.basename, sys.argv[:1])),
    }


def _told(holder: Path) -> str:
    """Who has a lock, as far as the file beside it tells."""
    for _ in range(10):  # it is written a moment after the lock is taken
        with suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(holder.read_text(encoding="utf-8"))
            command = f" ({told['command']})" if told["command"] else ""
            return f"process {told['pid']}{command} on {told['host']}, since {told['since']}"
        time.sleep(0.1)
    return "another process"
