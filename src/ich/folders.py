"""Whose a folder is, and who works in it: a stage writes where nothing lies but its own, one process at a time."""

import errno
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ich.errors import IchError, name_some, one_line
from ich.files import names_in, replacing

SHORT = 60
"""Seconds to wait for a lock that others hold for moments only."""


def is_ours(folder: Path, marker: str, written: Callable[[dict], bool], what: str, begun: tuple[str, ...] = ()) -> bool:
    """Whether a folder holds what a stage wrote; nothing is written or removed to find out.

    Args:
        marker: the name of a JSON file that the stage writes into its folder first.
        written: whether the content of such a file is what the stage writes: others have files of that name too.
        what: is kept in such folders, for the message.
        begun: names that a stage which was killed may have left without the marker.

    Returns:
        True if the marker is there; False if the folder is empty, or not there.

    Raises:
        IchError: it holds something else.
    """
    names = names_in(folder)
    if set(names) <= set(begun):
        return False
    try:
        content = json.loads((folder / marker).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not written(content):
        raise IchError(
            f"{folder} holds {name_some(names)} and lacks a readable {marker} of {what}: it is not this program's;"
            " name another folder, a new or an empty one"
        )
    return True


@contextmanager
def locked(folder: Path, check: Callable[[], object] = lambda: None, name: str = "", wait: float = 0) -> Iterator[None]:
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
    made = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
    holder = path.with_name(f"{path.name}.json")
    until = time.monotonic() + wait
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=max(0, until - time.monotonic()))
            break
        except FileNotFoundError:
            continue  # another process has just removed the folder, which it had left empty
        except Timeout as error:
            raise IchError(f"{folder} is in use by {_told(holder)}; wait until it has ended, or stop it") from error
        except OSError as error:
            if error.errno == errno.ENOSYS:
                print(f"warning: the file system of {folder} has no locks; run one command at a time", file=sys.stderr)
                break
            raise IchError(
                f"cannot write into {folder}: {one_line(error)}; make room or rights for it, then run again"
            ) from error
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
        for parent in made:
            with suppress(OSError):  # it is not empty
                parent.rmdir()


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
