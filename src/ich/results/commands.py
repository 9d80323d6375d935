"""Record of the commands that made a result: `commands.jsonl` in its folder, one line for each command.

Each line has the command, the time of its end, and the commands that had made its inputs by then. All of them run
again, in their order and on the same sources, give the same results.
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

# Run again, such a command makes anew what was lost of its results: its place is where it was first run.
_FIRST = ("preprocess", "train", "train_kfold")


class Work:
    """The recording of one command, from before its work.

    Args:
        folder: the result's folder.
        patterns: of the files in it whose content tells whether the command did anything.
        made_of: commands that made the inputs, from `read`.
    """

    def __init__(self, folder: Path, *patterns: str, made_of: Iterable[dict] = ()):
        self.folder, self.patterns, self.made_of = folder, patterns, list(made_of)
        self.before = self._digests()

    def done(self, stage: str, argv: Sequence[str] | None, wrote: Path | None = None) -> None:
        """Record the command, if it did anything; a folder that cannot be written is a warning, as the work is done.

        Args:
            stage: the name of its script.
            argv: its arguments; None takes the process's own.
            wrote: the file that it wrote, where commands of a stage write different ones.
        """
        if wrote is None and self._digests() == self.before:
            return
        entry = {
            "command": told(stage, argv),
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "stage": stage,
            **({} if wrote is None else {"folder": str(self.folder), "wrote": os.path.relpath(wrote, self.folder)}),
            "made_of": self.made_of,
        }
        path = self.folder / FILE
        try:
            with path.open("a", encoding="utf-8") as file:  # a line of another process comes before or behind this one
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            print(f"warning: the command is not recorded: cannot write {path}: {one_line(error)}", file=sys.stderr)

    def _digests(self) -> dict[Path, str]:
        found = {}
        for path in (path for pattern in self.patterns for path in self.folder.glob(pattern)):
            with path.open("rb") as file:
                found[path] = file_digest(file, "sha256").hexdigest()
        return found


def told(stage: str, argv: Sequence[str] | None) -> str:
    """A command as a line for the shell."""
    return shlex.join(["python", f"scripts/{stage}.py", *map(str, sys.argv[1:] if argv is None else argv)])


def read(*folders: Path) -> list[dict]:
    """Return the commands that made the results in these folders, in the order in which they were run.

    A command that was run several times stands as often, as what ran in between may have read its earlier result.

    Returns:
        Dicts of `command`, `time`, `stage` and, for some, `wrote` (a path from `folder`, that of the record); none for
        a folder without a record.

    Raises:
        IchError: a file is damaged.
    """
    commands: dict[tuple[str, str], dict] = {}
    for folder in folders:
        for entry in _entries(folder / FILE):
            for command in (*entry["made_of"], {key: value for key, value in entry.items() if key != "made_of"}):
                commands.setdefault((command["command"], command.get("time", "")), command)
    return _standing(sorted(commands.values(), key=lambda command: command.get("time", "")))


def of_images(images: Path, folds: Path) -> list[dict]:
    """Return the commands that made a folder of images and one file of folds of its slices."""

    def is_of_other_folds(command: dict) -> bool:
        return "wrote" in command and (images / command["wrote"]).resolve() != folds.resolve()

    return [command for command in read(images) if not is_of_other_folds(command)]


def _entries(path: Path) -> list[dict]:
    if not path.exists():
        return []
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{"command": str(one["command"]), "made_of": list(one["made_of"]), **one} for one in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IchError(f"{path}, which lists the commands given, is damaged; restore it, or delete it") from error


def _standing(commands: Sequence[dict]) -> list[dict]:
    """Leave out commands whose result was replaced before another command could read it."""
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
