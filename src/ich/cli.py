"""What every script shares: how it ends, and how it is told its config."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ich.errors import IchError


def run(main: Callable[[], None]) -> None:
    """Run a script's main; say an IchError as a sentence on stderr and exit with status 1, Ctrl-C with 130."""
    # TensorFlow tells of its own build at each start (its warnings, as of a GPU that it cannot use, stay), and takes a
    # smaller last batch, compiled anew, for a mistake.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        main()
    except IchError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)


def warn(sentences: Iterable[str]) -> None:
    """Say each on stderr, as a warning."""
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring as it stands."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config(arguments: argparse.ArgumentParser) -> None:
    """Add CONFIG and --set, as every stage up to the training takes them."""
    arguments.add_argument("config", type=Path, help="a YAML file of configs/")
    add_overrides(arguments, "override one value of the config; may be given several times")


def add_run(arguments: argparse.ArgumentParser) -> None:
    """Add RUN and --set, as the stages after the training take them."""
    arguments.add_argument("run", type=Path, help="a directory of runs/")
    add_overrides(arguments, "override one value of the run's sections data, predict or machine")


def add_overrides(arguments: argparse.ArgumentParser, help: str) -> None:
    arguments.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help=help,
    )
