"""Wheels of what another machine lacks: which of our requirements, for which Python, and where to get them."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from shutil import copyfile

from packaging import tags
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from ich.errors import IchError, one_line
from ich.files import replacing

PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(35, 16, -1)), "manylinux2014_x86_64")
"""What Linux with a glibc of 2.35 or later can load, the newest first."""


def read_requirements(path: Path) -> list[Requirement]:
    """The distributions that a file like requirements.txt lists, a line each.

    Raises:
        IchError: it cannot be read, or a line is no requirement.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise IchError(
            f"the requirements {path} cannot be read ({one_line(error)}); expected a distribution a line"
        ) from error
    return [_requirement(line, f"a line of {path}") for line in lines if line]


def _requirement(text: str, what: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise IchError(f"{what}, {text!r}, names no distribution; write it as pip takes it: keras, keras>=3") from error


def lacking(wanted: Iterable[Requirement], have: Iterable[str], lack: Iterable[str] = ()) -> list[Requirement]:
    """Those that a machine lacks.

    Args:
        wanted: as `read_requirements` gives them.
        have: names of what it has.
        lack: what it has not, whatever `have` says; also such that `wanted` does not list. Names, or names with
            versions as pip takes them.

    Raises:
        IchError: what is in `lack` cannot be a distribution.
    """
    by_name = {canonicalize_name(one.name): one for one in wanted}
    there = set(map(canonicalize_name, have))
    for text in lack:
        one = _requirement(text, "what is lacking")
        name = canonicalize_name(one.name)
        there.discard(name)
        if one.specifier or name not in by_name:
            by_name[name] = one
    return [one for name, one in by_name.items() if name not in there]


def fetch(
    wanted: Sequence[Requirement],
    pythons: Iterable[str],
    folder: Path,
    constraints: Path | None = None,
    source: Path | None = None,
) -> list[Path]:
    """Put wheels into a folder, for each Python one of each distribution, without what these depend on.

    What is there already is not fetched again.

    Args:
        pythons: versions such as 3.12.
        constraints: pip's file of exact versions, of what is not wanted in an exact version itself.
        source: a folder of wheels to take them from; None asks pip's index.

    Returns:
        Their paths, of a wheel that fits several Pythons once.

    Raises:
        IchError: there is no such wheel, or pip cannot reach its index.
    """
    found: dict[Path, None] = {}
    for python in pythons:
        fitting = _tags(python)
        for one in wanted:
            path = _there(folder, one, fitting) or _download(one, python, folder, constraints, source)
            found[path] = None
    return list(found)


def _tags(python: str) -> set[tags.Tag]:
    """What wheels for this Python may be named."""
    if not re.fullmatch(r"3\.\d+", python):
        raise IchError(f"{python!r} is no version of Python such as 3.12")
    version = tuple(map(int, python.split(".")))
    interpreter = f"cp{''.join(map(str, version))}"
    binary = tags.cpython_tags(version, abis=[interpreter], platforms=PLATFORMS)
    return {*binary, *tags.compatible_tags(version, interpreter, PLATFORMS)}


def _there(folder: Path, wanted: Requirement, fitting: set[tags.Tag]) -> Path | None:
    for path in sorted(folder.glob("*.whl"), reverse=True):
        name, version, _, of = parse_wheel_filename(path.name)
        if name == canonicalize_name(wanted.name) and version in wanted.specifier and of & fitting:
            return path
    return None


def _download(wanted: Requirement, python: str, folder: Path, constraints: Path | None, source: Path | None) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    if constraints is not None and not any(one.operator == "==" for one in wanted.specifier):
        command += ["--constraint", str(constraints)]
    if source is not None:
        command += ["--no-index", "--find-links", str(source)]
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run([*command, "--dest", place, str(wanted)], capture_output=True, text=True)
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            told = errors[-1].removeprefix("ERROR: ") if errors else done.stderr.strip() or "no wheel came"
            raise IchError(
                f"there is no wheel of {wanted} for Python {python} ({one_line(told)}); lay one into a folder and name"
                " it with --wheels, or name the distribution among those that Kaggle has"
            )
        with replacing(folder / wheels[0].name) as temporary:
            copyfile(wheels[0], temporary)
    return folder / wheels[0].name
