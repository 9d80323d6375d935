"""Shared parts of the scripts: exit status, last lines of output, options that set a config."""

import argparse
import io
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ich.errors import IchError, names_in_utf8

_TRAINING = (
    *("name", "data.images", "data.folds", "data.external", "preprocess", "folds", "model", "train", "predict"),
    *("machine.workers", "machine.processes", "machine.steps_per_execution", "machine.distribute"),
    *("machine.jit_compile", "machine.log_to"),
)
_PREDICTION = ("data.images", "data.folds", "predict", "machine.workers", "machine.processes", "machine.distribute")

USES: dict[str, tuple[str, ...]] = {
    "preprocess": (
        *("data.sources", "data.split", "data.images", "preprocess"),
        *("machine.jobs", "machine.backend", "machine.scheduler"),
    ),
    "make_folds": ("data.sources", "data.labels", "data.images", "data.folds", "preprocess", "folds"),
    "train": _TRAINING,
    "train_kfold": (*_TRAINING, "machine.backend", "machine.scheduler"),
    "predict": _PREDICTION,
    "extract_features": _PREDICTION,
    "train_sequence": ("data.images", "data.folds", "folds.n", "folds.seed", "sequence"),
    "make_submission": ("data.sources", "data.sample_submission", "data.images"),
}
"""The keys and whole sections of a config that each script with --set uses: those that change what it does, and those
by which it checks that images and folds belong to the config."""


def run(main: Callable[[], None]) -> None:
    """Run a script's main: an IchError ends it with its message and status 1, Ctrl-C with 130."""
    # TensorFlow logs at level INFO while it trains, and warns of a smaller last batch, for which it compiles again.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that its encoding lacks are shown as escapes
            stream.reconfigure(errors="backslashreplace")
    interrupts = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    def stop() -> NoReturn:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)

    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, interrupt)
    try:
        with names_in_utf8():
            for argument in sys.argv[1:]:
                argument.encode()  # before any work
            main()
    except KeyboardInterrupt:
        stop()
    # An interrupt may surface as an ImportError of an extension being imported, or as a killed worker of a pool.
    except IchError as error:
        if interrupts:
            stop()
        sys.exit(f"error: {error}")
    except Exception:
        if interrupts:
            stop()
        raise
    finally:
        signal.signal(signal.SIGINT, previous)


def wrote(output: str, *next_commands: str) -> None:
    """Print what a script wrote, and the next command, or several to choose from."""
    print(f"wrote: {output}")
    for index, line in enumerate(next_commands):
        print(f"{'or:' if index else 'next:':<7}{line}")


def command(stage: str, *arguments: object, overrides: Iterable[str] = ()) -> str:
    """Return a script's command as a shell line, with the overrides that the script uses."""
    used = [override for override in overrides if _within(_key(override), USES.get(stage, ()))]
    options = [part for override in used for part in ("--set", override)]
    return shlex.join(["python", f"scripts/{stage}.py", *map(str, arguments), *options])


def warn(sentences: Iterable[str]) -> None:
    """Print each sentence on stderr as a warning."""
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)


def warn_of_unused(unused: Mapping[str, str], stage: str) -> None:
    """Warn of config values that the stage reads, but that have no effect beside another key's value.

    Args:
        unused: from `ich.config.Config.unused`.
        stage: a key of `USES`.
    """
    warn(sentence for key, sentence in unused.items() if _within(key, USES[stage]))


def parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser whose help shows the script's docstring unchanged."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config(arguments: argparse.ArgumentParser, stage: str) -> None:
    """Add CONFIG and --set, for the stages up to the training.

    Args:
        stage: a key of `USES`.
    """
    arguments.add_argument("config", type=Path, help="a YAML file of configs/")
    add_overrides(arguments, stage, "the config")


def add_run(arguments: argparse.ArgumentParser, stage: str) -> None:
    """Add RUN and --set, for the stages after the training."""
    arguments.add_argument("run", type=Path, help="a directory of runs/")
    add_overrides(arguments, stage, "the run's config")


def add_overrides(arguments: argparse.ArgumentParser, stage: str, what: str) -> None:
    """Add --set, which refuses keys that the stage does not use: parsing raises IchError."""
    arguments.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        action=_Override,
        stage=stage,
        default=[],
        help=f"override one value of {what}; may be given several times. Used are {', '.join(USES[stage])}",
    )


class _Override(argparse.Action):
    def __init__(self, *arguments, stage: str, **options):
        super().__init__(*arguments, **options)
        self.stage = stage

    def __call__(self, parser, namespace, values, option_string=None):
        key = _key(values)
        if not _within(key, USES[self.stage]):
            raise IchError(
                f"--set {key} has no effect on {self.stage}.py, which uses {', '.join(USES[self.stage])}; leave it out"
            )
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


def refuse(overrides: Iterable[str], keys: Sequence[str], why: str) -> None:
    """Refuse overrides that have no effect beside other options.

    Args:
        keys: keys and whole sections of the config without effect.
        why: the end of the sentence "--set KEY has no effect …".

    Raises:
        IchError: an override sets one of the keys.
    """
    for key in map(_key, overrides):
        if _within(key, keys):
            raise IchError(f"--set {key} has no effect {why}; leave it out")


def sets(overrides: Iterable[str], *keys: str) -> bool:
    """Return whether an override sets one of these keys or sections."""
    return any(_within(_key(override), keys) for override in overrides)


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _within(key: str, keys: Iterable[str]) -> bool:
    return any(key == used or key.startswith(f"{used}.") for used in keys)
