"""In a Kaggle notebook: open the data set of `ich.kaggle.packing`, find the competition's files, run the scripts.

Kaggle mounts what is attached below /kaggle/input, read-only, under names and at depths that have changed over the
years: nothing here relies on them.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from packaging.utils import canonicalize_name

from ich.errors import IchError, name_some, one_line
from ich.files import sha256_of
from ich.kaggle.wheels import read_requirements
from ich.results.result_directory import read_mapping

MANIFEST = "ich-manifest.json"
"""The file that lists a data set's content; a notebook finds the data set by its name."""

_SLICES = re.compile(r"stage_\d_(train|test)(_images)?")
_OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")


class Pack(NamedTuple):
    """A data set made by `ich.kaggle.packing`.

    Args:
        root: where it is mounted.
        models: their names, in the order in which they were asked for.
        files: path within the data set -> SHA-256.
    """

    root: Path
    models: list[str]
    files: dict[str, str]


class Competition(NamedTuple):
    """The competition's folder of test slices and its sample submission."""

    test: Path
    sample: Path


class Step(NamedTuple):
    """A script to run in the working folder, and the exit statuses that are no failure."""

    script: str
    arguments: list[str]
    accepted: tuple[int, ...] = (0,)


def open_pack(root: Path) -> Pack:
    """Read a data set's manifest and check every file against it.

    Raises:
        IchError: there is no manifest, or files are missing or differ from what was packed.
    """
    manifest = read_mapping(root / MANIFEST, "lists the content of the data set")
    try:
        pack = Pack(root, list(manifest["models"]), dict(manifest["files"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IchError(
            f"{root / MANIFEST} is of another version ({one_line(error)}); pack the data set again"
        ) from error
    missing = [name for name in pack.files if not (root / name).is_file()]
    changed = [name for name in pack.files if name not in missing and sha256_of(root / name) != pack.files[name]]
    if missing or changed:
        wrong = [f"{name_some(files)} {how}" for files, how in ((missing, "missing"), (changed, "changed")) if files]
        raise IchError(
            f"the data set {root} is not what was packed ({'; '.join(wrong)}); upload it again, with --dir-mode zip"
            " and --keep-tabular"
        )
    return pack


def check_packages(path: Path) -> list[str]:
    """Compare the installed packages with a requirements.txt.

    Returns:
        A line for each whose version is outside the tested range, which may work all the same.

    Raises:
        IchError: one is not installed at all.
    """
    versions: dict[str, str] = {canonicalize_name(package.name): package.version for package in distributions()}
    missing, untested = [], []
    for requirement in read_requirements(path):
        # OpenCV's distributions are one package, built with and without a GUI.
        names = _OPENCV if requirement.name in _OPENCV else (canonicalize_name(requirement.name),)
        installed = next((versions[name] for name in names if name in versions), None)
        if installed is None:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(installed, prereleases=True):
            untested.append(f"{requirement.name} {installed} is installed, {requirement.specifier} is tested")
    if missing:
        raise IchError(
            f"this machine lacks {', '.join(missing)}; pack the data set again with --lack {','.join(missing)}, so that"
            " it brings their wheels"
        )
    return untested


def find_competition(root: Path) -> Competition:
    """Find the competition's test slices and sample submission below a folder, at any depth.

    The folders of slices are not listed: they hold 870,000 files, on a remote disk.

    Raises:
        IchError: they are missing, or there more than once.
    """
    tests, samples = [], []
    for folder, folders, files in os.walk(root, followlinks=True):
        tests += [Path(folder, name) for name in folders if name in ("stage_2_test", "stage_2_test_images")]
        folders[:] = [name for name in folders if not _SLICES.fullmatch(name)]
        samples += [Path(folder, name) for name in files if name.endswith("stage_2_sample_submission.csv")]
    for paths, what in ((tests, "a folder stage_2_test"), (samples, "a file stage_2_sample_submission.csv")):
        if len(paths) != 1:
            raise IchError(
                f"expected {what} below {root}, found {name_some(paths) or 'none'}; attach the competition's data"
                " (Add Input, Competition Datasets), once"
            )
    return Competition(tests[0], samples[0])


def steps(
    pack: Pack, model: str, competition: Competition, work: Path, out: Path, missing: Sequence[str] = ()
) -> list[Step]:
    """List the scripts that end in a submission of a model.

    Slices are read as the competition's way reads them: as they are, whatever their thickness, and all series.

    Args:
        model: one of the pack.
        work: the folder of predictions.
        out: the folder for submission.csv and submission.json.
        missing: policies for unreadable slices, as `ich.competition.submission.fill_missing` takes them.

    Raises:
        IchError: the pack has no such model.
    """
    if model not in pack.models:
        raise IchError(f"the data set has no model {model!r}; there are {', '.join(pack.models)}")
    predictions = work / "predictions" / model
    predict = [str(pack.root / "models" / model), str(competition.test), "--out", str(predictions)]
    predict += ["--all-series", "--no-slabs", "--no-pages"]
    submit = [str(predictions), "--name", "submission", "--sample-submission", str(competition.sample)]
    submit += ["--out", str(out), *(part for policy in missing for part in ("--missing", policy))]
    # What could not be read is make_submission's to refuse, which knows what the competition asks for.
    return [Step("predict_scans.py", predict, accepted=(0, 3)), Step("make_submission.py", submit)]


def run(step: Step, pack: Pack, work: Path) -> None:
    """Run a step and print its output; a step that was stopped resumes when it is run again.

    Raises:
        IchError: the script failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    code = pack.root / "code"
    print(f"$ {step.script} {shlex.join(step.arguments)}", flush=True)
    # A progress bar that moves three times a second makes a log of megabytes.
    environment = os.environ | {"PYTHONPATH": str(code / "src"), "TQDM_MININTERVAL": "20", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(code / "scripts" / step.script), *step.arguments]
    with subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            for line in running.stdout or ():
                print(line.rstrip(), flush=True)
        except KeyboardInterrupt:
            running.send_signal(signal.SIGINT)
            raise
    if running.returncode not in step.accepted:
        raise IchError(f"{step.script} ended with status {running.returncode}; its error stands above")
