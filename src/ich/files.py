"""Write files so that a reader sees the old content or the new, never a part; remove only files of this program."""

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
_OWN = re.compile(rf"{_TEMPORARY.pattern}|\.ich-lock(-.+)?(\.json)?")  # the lock files of ich.folders

_syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if sys.platform == "linux" else None
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # errors of file systems that cannot sync


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block succeeds, else remove it.

    The temporary name is unique, `.ich-<uuid>.tmp`, and ends in the suffix of `path`, by which encoders choose the
    format. Missing parent folders are created, and removed again if nothing is written.

    Args:
        durable: sync the content to the disk before the rename, and the name after it, so that a power cut leaves the
            old file or the new one. For many small files one `sync_filesystem` is cheaper.

    Raises:
        IchError: the system refuses the write (no space, no permission); an existing file at `path` is unchanged.
    """
    temporary = path.with_name(f".ich-{uuid4().hex}.tmp{path.suffix}")
    try:
        with making(path.parent):
            try:
                yield temporary
                if durable:
                    _sync(temporary)
                temporary.replace(path)
            except BaseException:
                with suppress(OSError):  # where the folder cannot be entered, nothing was left in it
                    temporary.unlink(missing_ok=True)
                raise
            if durable:
                _sync(path.parent)
    except OSError as error:
        raise IchError(f"cannot write {path}: {one_line(error)}; make room or rights for it, then run again") from error


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Create a folder and its missing parents; at the end of the block, remove those of them that are empty.

    Raises:
        OSError: the system refuses.
    """
    if folder.is_dir():  # as for all but the first of many files
        yield
        return
    missing = list(takewhile(lambda path: not os.path.lexists(path), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for created in missing:
            with suppress(OSError):  # it is not empty, or could not be created
                created.rmdir()


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
    """Return the SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        IchError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IchError(f"cannot read {path}: {one_line(error)}; restore it, or make rights to read it") from error


def _sync(path: Path) -> None:
    """Sync a file's content, or a folder's names, to the disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_filesystem(folder: Path) -> None:
    """Sync the file system of a folder to its disk: all that any process of this machine has written to it.

    Other machines sync what they wrote to a network file system themselves. On Linux by syncfs(2), which waits for no
    other disk and reports writes that failed; on other systems by sync(2).

    Raises:
        IchError: a write failed.
    """
    if _syncfs is None:
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _syncfs(descriptor) and (code := ctypes.get_errno()) not in _CANNOT_SYNC:
            raise IchError(f"cannot write all of {folder} to its disk: {os.strerror(code)}; make room, then run again")
    finally:
        os.close(descriptor)


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder, without our temporary and lock files; none if the folder does not exist.

    Raises:
        IchError: the system refuses.
    """
    return sorted(name for name in _names(folder, "write into") if not _OWN.fullmatch(name))


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder of ours that no other process writes into.

    Raises:
        IchError: the system refuses.
    """
    _unlink(folder, _TEMPORARY)


def discard(folder: Path, pattern: str) -> None:
    """Remove files of ours from a folder, then the folder if it is empty.

    Args:
        pattern: a regular expression that matches the whole names of the files to remove. Files of other names stay,
            and so does the folder that holds them.

    Raises:
        IchError: the system refuses.
    """
    _unlink(folder, re.compile(f"{pattern}|{_TEMPORARY.pattern}"))
    with suppress(OSError):  # it does not exist, or is not empty
        folder.rmdir()


def remove(*paths: Path) -> None:
    """Remove files of ours; those that do not exist are skipped.

    Raises:
        IchError: the system refuses, or a path is a folder.
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


def _names(folder: Path, action: str) -> Iterator[str]:
    """Yield the names in a folder one by one: a list of the competition's images would have a million."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
    except FileNotFoundError:
        return
    except OSError as error:
        raise IchError(
            f"cannot {action} {folder}: {one_line(error)}; make it a folder with rights to read and write"
        ) from error
