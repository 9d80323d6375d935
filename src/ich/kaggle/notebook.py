"""In a Kaggle notebook: the data set that `ich.kaggle.packing` made, the competition's files, and what to run on them.

Kaggle mounts what is attached below /kaggle/input, read-only, under names and at depths that have changed over the
years: nothing here relies on them.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from hashlib import file_digest
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import copyfile
from typing import NamedTuple

import pandas as pd

from ich.errors import IchError, name_some, one_line
from ich.files import replacing
from ich.images import slice_table
from ich.kaggle.wheels import read_requirements
from ich.results.result_directory import read_mapping

MANIFEST = "ich-manifest.json"
"""The file of a data set that tells what is in it, and by whose name a notebook finds it."""

_SLICES = re.compile(r"stage_\d_(train|test)(_images)?")
_OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")


class Pack(NamedTuple):
    """A data set made by `ich.kaggle.packing`.

    Args:
        root: where it is mounted.
        results: name -> what is told of it; what it is made of stands before it.
        files: path within the data set -> SHA-256.
        wanted: the results that were asked for, in their order.
    """

    root: Path
    results: dict[str, dict]
    files: dict[str, str]
    wanted: list[str]


class Competition(NamedTuple):
    """Where the competition's files are: the folder of the test slices, and the sample submission."""

    test: Path
    sample: Path


class Step(NamedTuple):
    """A script to run, in the working folder; and what must be laid ready before it."""

    script: str
    arguments: list[str]
    prepare: Callable[[], None] | None = None


def open_pack(root: Path) -> Pack:
    """Read what a data set holds, and compare every file with it.

    Raises:
        IchError: there is no manifest, or files are missing or are not what was packed.
    """
    told = read_mapping(root / MANIFEST, "tells what the data set holds")
    try:
        pack = Pack(root, dict(told["results"]), dict(told["files"]), list(told["wanted"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IchError(
            f"{root / MANIFEST} is of another version ({one_line(error)}); pack the data set again"
        ) from error
    missing = [name for name in pack.files if not (root / name).is_file()]
    changed = [name for name in pack.files if name not in missing and digest(root / name) != pack.files[name]]
    if missing or changed:
        what = [f"{name_some(files)} {how}" for files, how in ((missing, "missing"), (changed, "changed")) if files]
        raise IchError(
            f"the data set {root} is not what was packed ({'; '.join(what)}); upload it again, with --dir-mode zip"
            " and --keep-tabular"
        )
    return pack


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        IchError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IchError(f"{path} cannot be read ({one_line(error)}); restore it, then run again") from error


def check_packages(path: Path) -> list[str]:
    """Compare what is installed with what a requirements.txt lists.

    Returns:
        A line for each that is of a version outside the tested range, which may work all the same.

    Raises:
        IchError: one is not installed at all.
    """
    missing, other = [], []
    for one in read_requirements(path):
        names = _OPENCV if one.name in _OPENCV else (one.name,)  # they are one package, built with and without a screen
        found = next(filter(None, map(_installed, names)), None)
        if found is None:
            missing.append(one.name)
        elif not one.specifier.contains(found, prereleases=True):
            other.append(f"{one.name} {found} is installed, {one.specifier} is tested")
    if missing:
        raise IchError(
            f"this machine lacks {', '.join(missing)}; pack the data set again with --lack {','.join(missing)}, so that"
            " it brings their wheels"
        )
    return other


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def find_competition(root: Path) -> Competition:
    """Look for the competition's test slices and sample submission below a folder, at any depth.

    The folders of slices are not listed: they hold 870,000 files, on a disk that is far away.

    Raises:
        IchError: they are not there, or more than once.
    """
    tests, samples = [], []
    for folder, folders, files in os.walk(root, followlinks=True):
        tests += [Path(folder, name) for name in folders if name in ("stage_2_test", "stage_2_test_images")]
        folders[:] = [name for name in folders if not _SLICES.fullmatch(name)]
        samples += [Path(folder, name) for name in files if name.endswith("stage_2_sample_submission.csv")]
    for found, what in ((tests, "a folder stage_2_test"), (samples, "a file stage_2_sample_submission.csv")):
        if len(found) != 1:
            raise IchError(
                f"expected {what} below {root}, found {name_some(found) or 'none'}; attach the competition's data"
                " (Add Input, Competition Datasets), once"
            )
    return Competition(tests[0], samples[0])


def steps(
    pack: Pack,
    result: str,
    competition: Competition,
    work: Path,
    out: Path,
    missing: Sequence[str] = (),
    max_failures: int = 0,
) -> list[Step]:
    """What to run, in this order, for a submission of a result: conversion and prediction by each of its runs, then
    what was made of them.

    A second stage's networks predict as they were stored; its trees, which no file holds, grow anew from the
    out-of-fold predictions of the data set. A blend's weights are fitted anew in the same way, in seconds.

    Args:
        result: one of the pack.
        work: the folder of images and results.
        out: the folder for submission.csv and submission.json.
        missing: policies for slices that could not be read, as `ich.competition.submission.fill_missing` takes them.
        max_failures: how many such slices are no failure.

    Raises:
        IchError: the pack has no such result.
    """
    if result not in pack.results:
        raise IchError(f"the data set has no result {result!r}; there are {', '.join(pack.results)}")
    todo: dict[str, Step] = {}
    images = _add_steps(todo, pack, result, competition, work, max_failures)
    arguments = [f"runs/{result}", "--name", "submission", "--sample-submission", str(competition.sample)]
    arguments += ["--out", str(out)]
    for policy in missing:
        arguments += ["--missing", policy]
    if set(missing) - {"refuse"}:  # whose slices the table of the images knows
        arguments += _set([f"data.images={_value(images)}"])
    return [*todo.values(), Step("make_submission.py", arguments)]


def _add_steps(
    todo: dict[str, Step], pack: Pack, name: str, competition: Competition, work: Path, max_failures: int
) -> Path:
    """Add the steps that end in `runs/<name>`, each once.

    Returns:
        The folder of the test slices' images and table.
    """
    told, source = pack.results[name], pack.root / "runs" / name
    folds = pack.root / "scans/folds.csv"
    folds_told = [f"data.folds={_value(folds)}"] if "scans/folds.csv" in pack.files else []
    below = [_add_steps(todo, pack, one, competition, work, max_failures) for one in told["of"]]
    if told["kind"] == "run":
        images = work / "images" / told["images"]
        convert = [f"data.sources=[{_value(competition.test)}]", "data.split=test", f"data.images={_value(images)}"]
        convert += ["machine.backend=processes", "machine.scheduler=null"]
        more = ["--max-failures", str(max_failures)]
        todo.setdefault(
            f"images {told['images']}", Step("preprocess.py", [str(source / "config.yaml"), *_set(convert), *more])
        )
        predict = [f"data.images={_value(images)}", *folds_told]
        predict += [f"predict.{key}={_value(value)}" for key, value in told["predict"].items()]
        predict += [f"machine.workers={os.cpu_count() or 1}"]
        todo.setdefault(name, Step("predict.py", [str(source), "--out", f"runs/{name}", *_set(predict)]))
        return images
    members = [f"runs/{one}" for one in told["of"]]
    if told["kind"] == "sequence":
        scans = work / "scans" / name
        train = [f"data.images={_value(scans)}", *folds_told]
        train += [f"sequence.{key}={_value(value)}" for key, value in told["sequence"].items()]

        def prepare() -> None:
            lay_second_stage(pack, name, below[0], work)

        todo.setdefault(name, Step("train_sequence.py", [*members, "--name", name, *_set(train)], prepare))
    else:
        recipe = told["recipe"]
        arguments = [*members, "--out", f"runs/{name}", "--folds", str(folds), "--method", recipe["method"]]
        arguments += ["--calibrate", recipe["calibration"]] if recipe["calibration"] else []
        arguments += [f"--{key.replace('_', '-')}" for key in ("by_label", "any_at_least_max") if recipe[key]]
        todo.setdefault(name, Step("blend.py", arguments))
    return below[0]


def _value(value: object) -> str:
    """As `--set` reads it: JSON is YAML, whatever stands in a path."""
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _set(values: Iterable[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def lay_second_stage(pack: Pack, name: str, images: Path, work: Path) -> None:
    """Lay a second stage into the working folder: its own files, and a slice table of both its training's slices, which
    the data set brings, and the test slices, which were converted here.

    Args:
        images: the folder of the test slices' table.

    Raises:
        IchError: the test slices are not converted, or a file cannot be written.
    """
    source, scans = pack.root / "scans" / name, work / "scans" / name
    tables = [slice_table.read_table(folder / "slices.parquet") for folder in (source, images)]
    slice_table.write_table(pd.concat(tables, ignore_index=True), scans / "slices.parquet")
    with replacing(scans / "settings.json") as temporary:
        copyfile(source / "settings.json", temporary)
    for file in sorted((pack.root / "runs" / name).rglob("*")):
        target = work / file.relative_to(pack.root)
        if file.is_file() and not target.exists():  # what is there may be of a later step
            with replacing(target) as temporary:
                copyfile(file, temporary)


def run(step: Step, pack: Pack, work: Path) -> None:
    """Run a step; what it prints is printed. Stopped and run again, a step goes on where it was.

    Raises:
        IchError: the script says that it failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    if step.prepare is not None:
        step.prepare()
    code = pack.root / "code"
    print(f"$ {step.script} {shlex.join(step.arguments)}", flush=True)
    # A bar that moves thrice a second makes a log of megabytes.
    environment = os.environ | {"PYTHONPATH": str(code / "src"), "TQDM_MININTERVAL": "20", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(code / "scripts" / step.script), *step.arguments]
    with subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            for line in running.stdout:
                print(line.rstrip(), flush=True)
        except KeyboardInterrupt:
            running.send_signal(signal.SIGINT)
            raise
    if running.returncode:
        raise IchError(f"{step.script} ended with status {running.returncode}; what it said stands above")
