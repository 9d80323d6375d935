"""Writing files so that a reader sees the old one or the new one, never half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ich.errors import IchError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, remove it when it does not.

    The temporary name keeps the suffix, as encoders choose the format by it, and holds the process id, so that two
    processes never write into one file. Missing parent folders are made.

    Raises:
        IchError: the system refuses the write (no space, no permission); whatever stood at `path` stands there still.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise IchError(
            f"cannot write {path}: {error.strerror or error}; make room or rights for it, then run again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
