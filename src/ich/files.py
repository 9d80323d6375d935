"""Writing files so that a reader sees the old one or the new one, never half of one; removing only what is ours."""

import ctypes
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from itertools import takewhile
from pathlib import Path
from typing import Any
from uuid import uuid4

from ich.errors import IchError, one_line

_TEMPORARY = re.compile(r"\.ich-[0-9a-f]{32}\.tmp(\.[^.]+)?")
_OWN = re.compile(rf"{_TEMPORARY.pattern}|\.ich-lock(-.+)?(\.json)?")  # the locks are those of ich.folders

_syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if sys.platform == "linux" else None
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # what file systems say that have no such thing


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, remove it when it does not.

    The temporary name is one that nobody else has, `.ich-<uuid>.tmp`, with the suffix of `path` at its end, as encoders
    choose the format by it. Missing parent folders are made, and removed if nothing is written.

    Args:
        durable: the file's content is on the disk before its name is, and both are when the block has ended, so that
            a power cut leaves the old file or the new one. Many small files are cheaper made durable together, by
            `sync_filesystem`.

    Raises:
        IchError: the system refuses the write (no space, no permission); whatever stood at `path` stands there still.
    """
    temporary = path.with_name(f".ich-{uuid4().hex}.tmp{path.suffix}")
    try:
        with making(path.parent):
            try:
                yield temporary
                if durable:
                    _sync(temporary)
                temporary.replace(path)
                if durable:
                    _sync(path.parent)
            finally:
                with suppress(OSError):  # where the folder cannot be entered, nothing was left in it
                    temporary.unlink(missing_ok=True)
    except OSError as error:
        raise IchError(f"cannot write {path}: {one_line(error)}; make room or rights for it, then run again") from error


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Make a folder and those above it that are missing; at the end of the block, remove those of them that are empty.

    Raises:
        OSError: the system refuses.
    """
    missing = list(takewhile(lambda one: not os.path.lexists(one), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for one in missing:
            with suppress(OSError):  # it is not empty, or could not be made
                one.rmdir()


def write_json(path: Path, content: Any) -> None:
    """Write plain values as indented JSON, by a temporary name and a rename.

    Raises:
        IchError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content, by a temporary name and a rename.

    Raises:
        IchError: as `replacing`.
    """
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def check_own(path: Path, marker: str) -> None:
    """Refuse to replace a file that this program did not write.

    Args:
        marker: text that stands in the first 4,096 bytes of every file of this kind that this program writes.

    Raises:
        IchError: the file exists and lacks the marker, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            own = marker.encode() in file.read(4096)
    except FileNotFoundError:
        return
    except OSError as error:
        raise IchError(f"cannot replace {path}: {one_line(error)}; name another file") from error
    if not own:
        raise IchError(f"{path} exists and was not written by this command, which would replace it; name another file")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        IchError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IchError(f"cannot read {path}: {one_line(error)}; restore it, or make rights to read it") from error


def _sync(path: Path) -> None:
    """Have the system write a file's content, or a folder's names, to the disk (fsync(2))."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(opened)


def sync_filesystem(folder: Path) -> None:
    """Have the system write to the disk all that was written to the file system of a folder, by any process.

    By any process of this machine: what other machines wrote to a network file system, they have to sync themselves.
    On Linux by syncfs(2), which does not wait for other disks and tells of writes that failed; elsewhere by sync(2).

    Raises:
        IchError: something could not be written.
    """
    if _syncfs is None:
        os.sync()
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        if _syncfs(opened) and (code := ctypes.get_errno()) not in _CANNOT_SYNC:
            raise IchError(f"cannot write all of {folder} to its disk: {os.strerror(code)}; make room, then run again")
    finally:
        os.close(opened)


def names_in(folder: Path) -> list[str]:
    """The names in a folder but those of our temporary and lock files, sorted; none where there is no folder.

    Raises:
        IchError: the system refuses.
    """
    return sorted(name for name in _names(folder, "write into") if not _OWN.fullmatch(name))


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder of ours which nobody else is writing to.

    Raises:
        IchError: the system refuses.
    """
    _unlink(folder, _TEMPORARY)


def discard(folder: Path, pattern: str) -> None:
    """Remove files of ours from a folder, and the folder if it is empty then.

    Args:
        pattern: a regular expression of the whole names that this program gives to files there. What has another name
            is not removed, nor is a folder that holds it.

    Raises:
        IchError: the system refuses.
    """
    _unlink(folder, re.compile(f"{pattern}|{_TEMPORARY.pattern}"))
    with suppress(OSError):  # it is not there, or not empty
        folder.rmdir()


def remove(*paths: Path) -> None:
    """Remove files of ours, those that are there.

    Raises:
        IchError: the system refuses, or a folder stands in a file's place.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise IchError(
                f"cannot remove {path}: {one_line(error)}; remove it, or make rights for that, then run again"
            ) from error


def _unlink(folder: Path, pattern: re.Pattern) -> None:
    try:
        for name in _names(folder, "tidy"):
            if pattern.fullmatch(name):
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise IchError(f"cannot tidy {folder}: {one_line(error)}; make it a folder with rights to write") from error


def _names(folder: Path, what: str) -> Iterator[str]:
    """All names in a folder; of the competition's images a million, of which no list is made."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
    except FileNotFoundError:
        return
    except OSError as error:
        raise IchError(
            f"cannot {what} {folder}: {one_line(error)}; make it a folder with rights to read and write"
        ) from error
