"""In a Kaggle notebook: open the data set of `ich.kaggle.packing`, find the competition's files, run the scripts.

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
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from packaging.utils import canonicalize_name

from ich.errors import IchError, name_some, one_line
from ich.files import copy_file, sha256_of
from ich.images import slice_table
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
        results: name -> what `steps` needs to know of it, after those that it is made of.
        files: path within the data set -> SHA-256.
        requested: the results that were asked for, in their order.
    """

    root: Path
    results: dict[str, dict]
    files: dict[str, str]
    requested: list[str]


class Competition(NamedTuple):
    """The competition's folder of test slices and its sample submission."""

    test: Path
    sample: Path


class Step(NamedTuple):
    """A script to run in the working folder, and a function to call before it."""

    script: str
    arguments: list[str]
    prepare: Callable[[], None] | None = None


def open_pack(root: Path) -> Pack:
    """Read a data set's manifest and check every file against it.

    Raises:
        IchError: there is no manifest, or files are missing or differ from what was packed.
    """
    manifest = read_mapping(root / MANIFEST, "lists the content of the data set")
    try:
        pack = Pack(root, dict(manifest["results"]), dict(manifest["files"]), list(manifest["wanted"]))
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
    pack: Pack,
    result: str,
    competition: Competition,
    work: Path,
    out: Path,
    missing: Sequence[str] = (),
    max_failures: int = 0,
) -> list[Step]:
    """List the scripts that end in a submission of a result: conversion and prediction for each run that it is made
    of, then second stages, blends and the submission.

    A second stage's networks predict as they were saved; its other kinds, which are in no file, are fitted again on the
    packed out-of-fold predictions, and so are a blend's weights, in seconds.

    Args:
        result: one of the pack.
        work: the folder of images and results.
        out: the folder for submission.csv and submission.json.
        missing: policies for unreadable slices, as `ich.competition.submission.fill_missing` takes them.
        max_failures: how many unreadable slices are no failure.

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
    if set(missing) - {"refuse"}:  # they read the slice table of the images
        arguments += _set({"data.images": images})
    return [*todo.values(), Step("make_submission.py", arguments)]


def _add_steps(
    todo: dict[str, Step], pack: Pack, name: str, competition: Competition, work: Path, max_failures: int
) -> Path:
    """Add the steps that end in `runs/<name>`, each once.

    Returns:
        The folder of the test slices' images and table.
    """
    facts, source, folds = pack.results[name], pack.root / "runs" / name, pack.root / "scans/folds.csv"
    packed_folds = {"data.folds": folds} if "scans/folds.csv" in pack.files else {}
    if facts["kind"] == "run":
        images = work / "images" / facts["images"]
        convert = {"data.sources": [str(competition.test)], "data.split": "test", "data.images": images}
        convert |= {"machine.backend": "processes", "machine.scheduler": None}
        arguments = [str(source / "config.yaml"), *_set(convert), "--max-failures", str(max_failures)]
        todo.setdefault(f"images {facts['images']}", Step("preprocess.py", arguments))
        predict = {"data.images": images, **packed_folds}
        predict |= {f"predict.{key}": value for key, value in facts["predict"].items()}
        predict["machine.workers"] = os.cpu_count() or 1
        todo.setdefault(name, Step("predict.py", [str(source), "--out", f"runs/{name}", *_set(predict)]))
        return images
    images, *_ = [_add_steps(todo, pack, part, competition, work, max_failures) for part in facts["of"]]
    parts = [f"runs/{part}" for part in facts["of"]]
    if facts["kind"] == "sequence":
        train = {"data.images": work / "scans" / name, **packed_folds}
        train |= {f"sequence.{key}": value for key, value in facts["sequence"].items()}
        prepare = partial(_copy_second_stage, pack, name, images, work)
        todo.setdefault(name, Step("train_sequence.py", [*parts, "--name", name, *_set(train)], prepare))
    else:
        recipe = facts["recipe"]
        arguments = [*parts, "--out", f"runs/{name}", "--folds", str(folds), "--method", recipe["method"]]
        arguments += ["--calibrate", recipe["calibration"]] if recipe["calibration"] else []
        arguments += [f"--{key.replace('_', '-')}" for key in ("by_label", "any_at_least_max") if recipe[key]]
        todo.setdefault(name, Step("blend.py", arguments))
    return images


def _set(values: dict) -> list[str]:
    """Return config values as options --set; JSON is YAML, whatever characters a path has."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value, default=str)}")]


def _copy_second_stage(pack: Pack, name: str, images: Path, work: Path) -> None:
    """Copy a second stage's files into the working folder, and write one slice table of its training's slices, which
    are packed, and the test slices, which were converted here.

    Args:
        images: the folder of the test slices' table.

    Raises:
        IchError: the test slices are not converted, or a file cannot be written.
    """
    source, scans = pack.root / "scans" / name, work / "scans" / name
    tables = [slice_table.read_table(folder / "slices.parquet") for folder in (source, images)]
    slice_table.write_table(pd.concat(tables, ignore_index=True), scans / "slices.parquet")
    copy_file(source / "settings.json", scans / "settings.json")
    for file in sorted((pack.root / "runs" / name).rglob("*")):
        target = work / file.relative_to(pack.root)
        if file.is_file() and not target.exists():  # a file that is there may be of a later step
            copy_file(file, target)


def run(step: Step, pack: Pack, work: Path) -> None:
    """Run a step and print its output; a step that was stopped resumes when it is run again.

    Raises:
        IchError: the script failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    if step.prepare is not None:
        step.prepare()
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
    if running.returncode:
        raise IchError(f"{step.script} ended with status {running.returncode}; its error stands above")
