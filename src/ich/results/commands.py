"""The commands that made a result, as they were given: `commands.jsonl` in its folder, a line a command.

Each line has the command, when it ended, and those that had made what it worked on by then: whoever gives them all
again, in their order and on the same sources, gets the same files.
"""

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path

from ich.errors import IchError, one_line

FILE = "commands.jsonl"

# Given again after a part of its work was lost, such a command makes that part anew: its place is where it came first.
# Of any other the last counts, as its result replaces what it made before.
_FIRST = ("preprocess", "train", "train_kfold")


class Work:
    """What a command is about to work on.

    Args:
        folder: of the result.
        patterns: of the files in it that tell, by what they hold, whether the command did anything.
        made_of: commands as `read` gives them, of what the result is made of.
    """

    def __init__(self, folder: Path, *patterns: str, made_of: Iterable[dict] = ()):
        self.folder, self.patterns, self.made_of = folder, patterns, list(made_of)
        self.before = self._digests()

    def done(self, stage: str, argv: Sequence[str] | None, wrote: Path | None = None) -> None:
        """Write down the command, if it did anything.

        Args:
            stage: the name of its script.
            argv: what was given to it; None takes the process's own.
            wrote: the one file that it has made, where commands of a stage make several.

        Raises:
            IchError: the file cannot be written.
        """
        if wrote is None and self._digests() == self.before:
            return
        entry = {
            "command": told(stage, argv),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "stage": stage,
            **({} if wrote is None else {"wrote": str(wrote)}),
            "made_of": self.made_of,
        }
        path = self.folder / FILE
        try:
            with path.open("a", encoding="utf-8") as file:  # a line of another process comes before or behind this one
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise IchError(f"cannot write {path}: {one_line(error)}; make room or rights for it") from error

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
    """The commands that made the results in these folders, in the order to give them in, each once.

    Returns:
        `command`, `time`, `stage` and, of some, `wrote` of each; nothing of a folder that does not tell.

    Raises:
        IchError: a file is damaged.
    """
    found: dict[str, dict] = {}
    for folder in folders:
        for entry in _standing(_entries(folder / FILE)):
            for one in (*entry["made_of"], {key: value for key, value in entry.items() if key != "made_of"}):
                found.setdefault(one["command"], one)
    return list(found.values())


def of_images(images: Path, folds: Path) -> list[dict]:
    """The commands that made a folder of images and one of the files of folds of its slices."""
    every = read(images)
    others = {one["wrote"] for one in every if "wrote" in one and Path(one["wrote"]).resolve() != folds.resolve()}
    return [one for one in every if one.get("wrote") not in others]


def _entries(path: Path) -> list[dict]:
    if not path.exists():
        return []
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{"command": str(one["command"]), "made_of": list(one["made_of"]), **one} for one in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IchError(f"{path}, which lists the commands given, is damaged; restore it, or delete it") from error


def _standing(entries: Sequence[dict]) -> list[dict]:
    """Each command once, where it counts."""
    keys = [one.get("wrote", one["command"]) for one in entries]
    return [
        one
        for place, (key, one) in enumerate(zip(keys, entries, strict=True))
        if key not in (keys[:place] if one.get("stage") in _FIRST else keys[place + 1 :])
    ]
