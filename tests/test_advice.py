"""What messages name exists: scripts, their options, keys of the config, extras. Else their advice would rot."""

import argparse
import ast
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ich.config import Config

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "src/ich").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
SECTIONS = {name: field.annotation for name, field in Config.model_fields.items() if name not in ("name",)}
KEY = re.compile(rf"(?<![\w./])({'|'.join(SECTIONS)})\.([a-z_]+)\b(?!\()")
FILES = {"csv", "json", "keras", "npz", "parquet", "png", "py", "yaml"}
FOREIGN = {"--dir-mode", "--keep-tabular"}  # of Kaggle's own command


def texts(source: str) -> Iterator[tuple[int, str]]:
    """What a module says: its strings with a space in them, docstrings aside, with … for what is put in."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    aside = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and is_text(node.body[0])
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            aside |= {id(part) for part in node.values}
            yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in aside:
            yield node.lineno, node.value


def is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each script."""
    by_script = {}

    class Stop(Exception):
        pass

    def parse_args(parser, _=None):
        by_script[name] = {option for action in parser._actions for option in action.option_strings}
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        for path in (ROOT / "scripts").glob("*.py"):
            name = path.name
            with pytest.raises(Stop):
                runpy.run_path(str(path))["main"]([])
    return by_script


def faults(text: str, options: dict[str, set[str]], extras: set[str]) -> list[str]:
    """What a message names and nobody has."""
    unknown = [script for script in re.findall(r"scripts/(\w+\.py)", text) if script not in options]
    every = set().union(*options.values(), FOREIGN)
    unknown += [option for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text) if option not in every]
    keys = [(section, key) for section, key in KEY.findall(text) if key not in FILES]
    unknown += [f"{section}.{key}" for section, key in keys if key not in SECTIONS[section].model_fields]
    return unknown + [extra for extra in re.findall(r"'ich\[(\w+)\]'", text) if extra not in extras]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_what_a_message_names_exists(path, options):
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    messages = [(line, text) for line, text in texts(path.read_text(encoding="utf-8")) if " " in text]
    assert not [(line, text, fault) for line, text in messages if (fault := faults(text, options, extras))]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("run scripts/predict.py runs/x --out y", []),
        ("run scripts/forecast.py first", ["forecast.py"]),
        ("set folds.n, or lower train.learning_rate", []),
        ("lower folds.n_folds", ["folds.n_folds"]),
        ("say --set predict.tta=none or --sett", ["--sett"]),
        ("in folds.csv, beside images/folds.png", []),
        ("pip install 'ich[dask]' or 'ich[desk]'", ["desk"]),
    ],
)
def test_what_does_not_exist_is_found(text, fault, options):
    assert faults(text, options, {"dask"}) == fault


def test_every_message_is_looked_at():
    source = '"""scripts/a.py"""\nraise E(f"run scripts/{b}.py" " --set x=1")\ndef f():\n    "c d"\n    g("e f")\n'
    assert [text for _, text in texts(source)] == ["run scripts/….py --set x=1", "e f"]


def test_the_parsers_are_the_scripts(options):
    assert {"preprocess.py", "predict.py", "blend.py"} <= options.keys()
    assert "--calibrate" in options["blend.py"]
