"""Download wheels of the requirements that another machine lacks, for its Pythons."""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ich.errors import IchError, one_line
from ich.files import copy_file

PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(35, 16, -1)), "manylinux2014_x86_64")
"""The platform tags that Linux with a glibc of 2.35 or later loads, the newest first."""


def read_requirements(path: Path) -> list[Requirement]:
    """Read a file like requirements.txt, a distribution a line.

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


def lacking(required: Iterable[Requirement], have: Iterable[str], lack: Iterable[str] = ()) -> list[Requirement]:
    """Select the requirements that a machine lacks.

    Args:
        required: as `read_requirements` gives them.
        have: names of the distributions that it has.
        lack: names, or names with versions as pip takes them, of what it lacks in spite of `have`; also of
            distributions that are not required.

    Raises:
        IchError: an item of `lack` cannot be a distribution.
    """
    by_name = {canonicalize_name(requirement.name): requirement for requirement in required}
    present = set(map(canonicalize_name, have))
    for text in lack:
        requirement = _requirement(text, "what is lacking")
        name = canonicalize_name(requirement.name)
        present.discard(name)
        if requirement.specifier or name not in by_name:
            by_name[name] = requirement
    return [requirement for name, requirement in by_name.items() if name not in present]


def fetch(
    requirements: Sequence[Requirement],
    pythons: Iterable[str],
    folder: Path,
    constraints: Path | None = None,
    source: Path | None = None,
) -> list[Path]:
    """Put wheels into a folder, one for each Python and distribution, without dependencies; keep those that fit.

    Args:
        pythons: versions such as 3.12.
        constraints: pip's file of exact versions, for requirements without one.
        source: a folder of wheels to take them from; None asks pip's index.

    Returns:
        Their paths, once each: a wheel may fit several Pythons.

    Raises:
        IchError: there is no such wheel, or pip cannot reach its index.
    """
    paths: dict[Path, None] = {}
    for python in pythons:
        for requirement in requirements:
            options = ["--python-version", python]
            if constraints is not None and not any(specifier.operator == "==" for specifier in requirement.specifier):
                options += ["--constraint", str(constraints)]
            kept = ["--no-index", "--find-links", str(folder)]
            fresh = [] if source is None else ["--no-index", "--find-links", str(source)]
            with tempfile.TemporaryDirectory() as temporary:
                wheel, _ = _download(requirement, [*options, *kept], Path(temporary))
                if wheel is None:
                    wheel, error = _download(requirement, [*options, *fresh], Path(temporary))
                if wheel is None:
                    raise IchError(
                        f"there is no wheel of {requirement} for Python {python} ({error}); put one into a folder and"
                        " name it with --wheels, or name the distribution among those that Kaggle has"
                    )
                path = folder / wheel.name
                if not path.exists():
                    copy_file(wheel, path)
            paths[path] = None
    return list(paths)


def _download(requirement: Requirement, options: Iterable[str], folder: Path) -> tuple[Path | None, str]:
    """Have pip download a wheel; return its path, or None and pip's error."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", *(f"--platform={platform}" for platform in PLATFORMS)]
    done = subprocess.run([*command, *options, "--dest", str(folder), str(requirement)], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip wrote no wheel"]
    return next(folder.glob("*.whl"), None), one_line(lines[-1].removeprefix("ERROR: "))
