"""Record the commands that made a result: `commands.jsonl` in its folder, one line for each command.

Each line has the command, the time of its end, and the commands that made its inputs. Run again in their order and on
the same sources, they give the same results.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path

from ich.errors import IchError, one_line

FILE = "commands.jsonl"

# These commands, run again, only restore lost results: their place in the order is that of their first run.
_FIRST = ("preprocess", "train", "train_kfold")


class Work:
    """Recorder of one command, created before its work.

    Args:
        folder: the result's folder.
        patterns: of the files whose content shows whether the command changed anything.
        made_of: commands that made the inputs, from `read`.
    """

    def __init__(self, folder: Path, *patterns: str, made_of: Iterable[dict] = ()):
        self.folder, self.patterns, self.made_of = folder, patterns, list(made_of)
        self.before = self._digests()

    def done(self, stage: str, argv: Sequence[str] | None, wrote: Path | None = None) -> None:
        """Record the command if it changed anything; a failure to write is only a warning, as the work is done.

        Args:
            stage: the name of its script.
            argv: its arguments; None takes those of the process.
            wrote: the file that it wrote, for stages whose commands write different files.
        """
        if wrote is None and self._digests() == self.before:
            return
        entry = {
            "command": as_shell_line(stage, argv),
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "stage": stage,
            **({} if wrote is None else {"folder": str(self.folder), "wrote": os.path.relpath(wrote, self.folder)}),
            "made_of": self.made_of,
        }
        path = self.folder / FILE
        try:
            with path.open("a", encoding="utf-8") as file:  # lines of several processes do not mix
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            print(f"warning: the command is not recorded: cannot write {path}: {one_line(error)}", file=sys.stderr)

    def _digests(self) -> dict[Path, str]:
        digests = {}
        for path in (path for pattern in self.patterns for path in self.folder.glob(pattern)):
            with path.open("rb") as file:
                digests[path] = file_digest(file, "sha256").hexdigest()
        return digests


def as_shell_line(stage: str, argv: Sequence[str] | None) -> str:
    """Return a script's command as a shell line."""
    return shlex.join(["python", f"scripts/{stage}.py", *map(str, sys.argv[1:] if argv is None else argv)])


def read(*folders: Path) -> list[dict]:
    """Return the commands that made the results in these folders, in the order of their runs.

    A repeated command is listed each time, as commands in between may have read its earlier result.

    Returns:
        Dicts of `command`, `time`, `stage` and, for some, `wrote` (a path relative to `folder`, the record's); empty
        for a folder without a record.

    Raises:
        IchError: a file is damaged.
    """
    commands: dict[tuple[str, str], dict] = {}
    for folder in folders:
        for entry in _entries(folder / FILE):
            for command in (*entry["made_of"], {key: value for key, value in entry.items() if key != "made_of"}):
                commands.setdefault((command["command"], command.get("time", "")), command)
    return _effective(sorted(commands.values(), key=lambda command: command.get("time", "")))


def of_images(images: Path, folds: Path) -> list[dict]:
    """Return the commands that made a folder of images and one file of folds for its slices."""

    def is_of_other_folds(command: dict) -> bool:
        return "wrote" in command and (images / command["wrote"]).resolve() != folds.resolve()

    return [command for command in read(images) if not is_of_other_folds(command)]


def _entries(path: Path) -> list[dict]:
    if not path.exists():
        return []
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{"command": str(entry["command"]), "made_of": list(entry["made_of"]), **entry} for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IchError(
            f"{path}, which lists the commands that made a result, is damaged; restore it, or delete it"
        ) from error


def _effective(commands: Sequence[dict]) -> list[dict]:
    """Return the commands without those whose result was replaced before another command could read it."""
    keys = [
        (command.get("folder"), command["wrote"]) if "wrote" in command else command["command"] for command in commands
    ]
    kept = []
    for place, (key, command) in enumerate(zip(keys, commands, strict=True)):
        if command.get("stage") in _FIRST:
            replaced = key in keys[:place]
        elif "wrote" in command:
            replaced = key in keys[place + 1 :]
        else:
            replaced = keys[place + 1 : place + 2] == [key]
        if not replaced:
            kept.append(command)
    return kept
