"""Writing files so that a reader sees the old one or the new one, never half of one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ich.errors import IchError, one_line

_LEFTOVER = re.compile(r"\..+\.\d+(\.[^.]+)?")


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
        raise IchError(f"cannot write {path}: {one_line(error)}; make room or rights for it, then run again") from error
    finally:
        with suppress(OSError):  # where the folder could not be made or entered, nothing was left in it
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> list[str]:
    """Remove the temporary files that killed processes left in a folder which nobody else is writing to.

    Returns:
        The names of the other files; none where there is no folder.

    Raises:
        IchError: the system refuses.
    """
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _LEFTOVER.fullmatch(entry.name):
                    Path(entry).unlink(missing_ok=True)
                else:
                    names.append(entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise IchError(f"cannot tidy {folder}: {one_line(error)}; make it a folder with rights to write") from error
    return names
