"""README.md, CONTRIBUTING.md and docs/ are true: commands parse, diffs apply and work, names and messages exist."""

import argparse
import ast
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel

from ich import config
from ich.competition.labels import LABELS
from ich.images import slice_table

ROOT = Path(__file__).parents[1]
DOCS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md")}
DOCS |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
README, ARCHITECTURE = DOCS["README.md"], DOCS["docs/architecture.md"]
PAGES = "\n".join(DOCS.values())


def blocks(kind, page=PAGES):
    """The fenced blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page, flags=re.M | re.S)


# ------------------------------------------------------------------------------------------------------ commands


def commands():
    """Each call of a script: its words, from the script on."""
    text = PAGES.replace("\\\n", " ")
    text = re.sub(r"`[^`]*`", lambda code: "\n" + code[0].strip("`").replace("\n", " ") + "\n", text)
    for line in text.splitlines():
        words = re.search(r"\bpython (scripts/\w+\.py.*)", line)
        if words:
            yield tuple(shlex.split(words[1], comments=True))


class Parsed(Exception):
    """Where a script would begin its work."""


@pytest.mark.parametrize("words", sorted(set(commands())), ids=" ".join)
def test_every_command_parses(words, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, *arguments):
        raise Parsed(parse(parser, *arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(Parsed) as parsed:
        runpy.run_path(str(ROOT / words[0]))["main"](list(words[1:]))
    arguments = parsed.value.args[0]
    if "overrides" in arguments:
        path = getattr(arguments, "config", None) or Path("configs/baseline.yaml")
        config.load(ROOT / path, arguments.overrides)


def written(text):
    """What commands of a text write, and what they read that holds patients' ids, as paths."""
    for line in text.replace("\\\n", " ").splitlines():
        for option, value in re.findall(r"(--out|-p|--table|data\.folds)[ =]([\w./-]+)", line):
            yield value if Path(value).suffix or option == "--table" else f"{value}/wheels/a.whl"
    yield from re.findall(
        r"\b(?:images|runs|submissions|data)/[\w./-]+\.(?:csv|parquet|npy|html|keras|zip|png)\b", text
    )


def test_git_ignores_what_commands_write():
    """In the pages, the Makefile, the scripts' and benchmarks' docstrings and their defaults."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("whether git ignores it can be asked only in a clone, by git")
    scripts = (*ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py"))
    codes = [ast.parse(path.read_text(encoding="utf-8")) for path in scripts]
    texts = [PAGES, (ROOT / "Makefile").read_text(), *(ast.get_docstring(code) for code in codes)]
    paths = {path for text in texts for path in written(text)}
    defaults = {
        node.args[0].value
        for code in codes
        for keyword in ast.walk(code)
        if isinstance(keyword, ast.keyword) and keyword.arg == "default"
        for node in ast.walk(keyword.value)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Path" and node.args
    }
    assert "study.png" in defaults
    paths |= {path if Path(path).suffix else f"{path}/baseline.csv" for path in defaults}
    beside = ["folds.png", "folds-10.png", "images/brain-256/train/ID_a.png", "images/brain-256/contact_sheet.png"]
    paths |= {*beside, "kaggle/baseline/ich-manifest.json", "runs/baseline/fold0/history.csv", "train/ID_a.dcm"}
    paths = sorted(path for path in paths if not path.startswith(("docs/", "/")))  # the picture of README.md
    assert {"folds-10.csv", "kaggle/baseline/wheels/a.whl", "runs/blend/wheels/a.whl"} <= set(paths)
    ask = ["git", "check-ignore", "--no-index", "--stdin"]
    result = subprocess.run(ask, input="\n".join(paths), capture_output=True, text=True, cwd=ROOT)
    assert sorted(result.stdout.split()) == paths
    tracked = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT)
    assert tracked.stdout == ""  # nothing that is in the repository is ignored


def test_commands_are_found():
    scripts = {words[0] for words in commands()}
    assert {f"scripts/{name}.py" for name in ("preprocess", "train_kfold", "predict", "blend", "report")} <= scripts
    assert ("scripts/train.py", *shlex.split("configs/baseline.yaml --fold 0")) in set(commands())


def test_every_value_that_is_set_is_a_key():
    keys = set(re.findall(r"--set[ \n]+\"?([a-z_.]+)=", PAGES)) - {"section.key"}
    assert len(keys) > 10
    for key in keys:
        section, _, name = key.rpartition(".")
        schema = config.Config.model_fields[section].annotation if section else config.Config
        assert name in schema.model_fields, key


def test_every_make_target_exists():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    named = re.findall(r"(?:^ {4,}|`)make ([a-z-]+)", PAGES, flags=re.M)
    assert {"demo", "test", "picture"} <= set(named) <= set(targets)


# --------------------------------------------------------------------------------------------------------- names


def top_level(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
            if isinstance(node, ast.ClassDef):
                yield from (part.name for part in node.body if isinstance(part, ast.FunctionDef))
        for target in [getattr(node, "target", None), *getattr(node, "targets", [])]:
            if isinstance(target, ast.Name):
                yield target.id


FILES = ["csv", "parquet", "py", "json", "jsonl", "toml", "yaml", "txt", "md", "keras", "npz", "html", "png"]


def test_every_name_in_code_exists():
    """`section.key` of a config, or `module.name` of ich."""
    names = set(re.findall(r"`([a-z_]+)\.([A-Za-z_]+)(?:[(=:][^`]*)?`", PAGES))
    assert len(names) > 20
    for first, second in sorted(names):
        if second in FILES:
            continue
        field = config.Config.model_fields.get(first)
        known = set(getattr(field.annotation, "model_fields", ())) if field else set()
        for module in (ROOT / "src/ich").rglob(f"{first}.py"):
            known |= set(top_level(module))
        assert second in known, f"{first}.{second}"


def mapped():
    """The paths that the map names: a name behind four spaces, six in that folder, eight in a folder of it."""
    text = ARCHITECTURE[ARCHITECTURE.index("## The map") : ARCHITECTURE.index("## Who may import whom")]
    folders = {}
    for indent, name in re.findall(r"^( {4}| {6}| {8})([\w./-]+)(?: +|$)", text, flags=re.M):
        path = folders.get(len(indent) - 2, "") + name
        folders[len(indent)] = path if name.endswith("/") else ""
        yield path


def test_what_the_map_names_exists():
    paths = list(mapped())
    assert "src/ich/synthetic/" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_map_names_every_file():
    packages = [path for path in (ROOT / "src/ich").iterdir() if path.is_dir() and path.name != "synthetic"]
    folders = [ROOT / "src/ich", ROOT / "scripts", ROOT / "configs", ROOT / "docs", *packages]
    files = [file for folder in folders for file in folder.iterdir()]
    there = {
        f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}"
        for path in files
        if path.name not in ("__init__.py", "__pycache__", "templates", "py.typed")
    }
    assert there - set(mapped()) == set()


def headings(page):
    """By the names that GitHub gives them."""
    for line in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), flags=re.M):
        yield re.sub(r"[^\w -]", "", line).lower().replace(" ", "-")


@pytest.mark.parametrize("name", sorted(DOCS))
def test_every_link_leads_somewhere(name):
    for link in re.findall(r"\]\(([^)]+)\)", DOCS[name]):
        if not link.startswith("https://"):
            path, _, heading = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), link
            assert not heading or heading in set(headings(target.read_text(encoding="utf-8"))), link


# ------------------------------------------------------------------------------------------------------ messages


def said():
    """What the source says, as patterns: a text that has values in it takes any."""
    for path in sorted((ROOT / "src/ich").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in node.values]
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.escape(node.value)


def test_every_message_is_one_that_the_code_gives():
    quoted = re.findall(r"^ {4}error: (.*(?:\n {4}(?!error)\S.*)*)", PAGES, flags=re.M)
    quoted = [" ".join(message.split()) for message in quoted]
    assert len(quoted) == 5
    patterns = [re.compile(pattern.removeprefix("error:\\ ")) for pattern in said() if len(pattern) > 40]
    for message in quoted:
        assert any(pattern.fullmatch(message) for pattern in patterns), message


# ------------------------------------------------------------------------------------------------- how-to and code

USED = """
import sys
import keras, numpy as np
from ich.config import Config
from ich.data import augment
from ich.dicom import windows
from ich.images.render import Settings
from ich.models import backbones, losses

window, model, pipeline, loss = sys.argv[1:]
config = Config.model_validate({
    "name": "one",
    "data": {"sources": "a.zip", "images": "images"},
    "preprocess": {"windows": [window]},
    "model": {"name": model, "weights": None},
    "train": {"augment": pipeline, "loss": loss},
})
settings = Settings.of(config.preprocess)
assert windows.name_of(settings.windows[0]) == window
image = windows.apply_windows(np.arange(4096, dtype=np.int16).reshape(64, 64) - 1024, settings.windows)
assert len(np.unique(image)) > 10
compose = augment.pipeline(config.train.augment, 64, 64)
batch = np.stack([compose(image=image)["image"] for _ in range(20)])
assert (batch.shape, batch.dtype) == ((20, 64, 64, 1), np.uint8)
assert len({one.tobytes() for one in batch}) > 1
y = np.tile(np.float32([0, 1]), (20, 3))
network = backbones.build_model(config.model.name, (64, 64, 1))
network.compile("adam", losses.build_loss(config.train.loss))
first = network.train_on_batch(batch, y)
for _ in range(10):
    last = network.train_on_batch(batch, y)
assert np.isfinite([first, last]).all() and last < first, (first, last)
# It is saved, as part of a compiled model, and read again.
again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(losses.build_loss(loss)))
assert type(again) is type(losses.build_loss(loss))
print(*(module.__file__ for module in (augment, losses, backbones, windows)))
"""


def test_what_the_diffs_add_works(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    names = {}
    for number, diff in enumerate(blocks("diff")):
        path = re.search(r"^\+\+\+ b/src/ich/([\w/]+)\.py$", diff, flags=re.M)[1]
        names[path] = re.search(r'^\+    "(\w+)": ', diff, flags=re.M)[1]
        assert f'"{names[path]}"' not in (ROOT / f"src/ich/{path}.py").read_text(encoding="utf-8")
        (tmp_path / f"{number}.diff").write_text(diff, encoding="utf-8")
        command = ["git", "apply", "--whitespace=nowarn", f"{number}.diff"]
        ceiling = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
        done = subprocess.run(command, cwd=tmp_path, env=ceiling, capture_output=True, text=True)
        assert done.returncode == 0, f"{path}: {done.stderr}"
    changed = ["dicom/windows", "models/backbones", "data/augment", "models/losses"]
    assert sorted(names) == sorted(changed)
    arguments = [names[path] for path in changed]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", USED, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(tmp_path)) == 4
    lint = [sys.executable, "-m", "ruff", "--config", str(ROOT / "pyproject.toml")]
    for what in (["check"], ["format", "--check"]):
        done = subprocess.run([*lint[:3], *what, *lint[3:], "src"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_code_about_the_generator_runs(tmp_path, monkeypatch):
    import albumentations as A

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    ids = [f"ID_{number}" for number in range(8)]
    classes = [f"{split}/{name}" for split in ("photos", "animals/train", "animals/val") for name in ("cat", "dog")]
    for folder in ("images/brain-256/train", *classes):
        Path(folder).mkdir(parents=True)
        for id in ids:
            cv2.imwrite(f"{folder}/{id}.png", rng.integers(0, 256, (16, 16), dtype=np.uint8))
    labels = pd.DataFrame(rng.integers(0, 2, (8, 6), dtype=np.int8), ids, list(LABELS))
    series = pd.Series([f"s{number // 4}" for number in range(8)], ids)
    rows = [
        {"SOPInstanceUID": id, "SeriesInstanceUID": series[id], "order": number % 4, "status": "ok", "split": "train"}
        for number, id in enumerate(ids)
    ]
    given = {
        "ids": ids,
        "labels": labels,
        "compose": A.HorizontalFlip(p=0.5),
        "flip": A.HorizontalFlip(p=1),
        "frame": pd.DataFrame({"file": [f"photos/cat/{id}.png" for id in ids], "class": ["cat", "dog"] * 4}),
        "folder": "images/brain-256/train",
        "slice_table": slice_table.to_frame(rows),
        "series": series,
    }
    first, *tutorials = blocks("python", DOCS["docs/data_generator.md"])
    shapes = []
    for node in ast.parse(first).body:
        code = ast.unparse(node)
        if not isinstance(node, ast.Expr):
            exec(code, given)
            continue
        batch = eval(code, given)[0]
        image, *rest = batch if isinstance(batch, tuple) else (batch,)
        image = image["image"] if isinstance(image, dict) else image  # of scans
        assert image.dtype == np.uint8
        shapes.append((image.shape, *(label.shape for label in rest)))
    assert shapes == [
        ((8, 16, 16, 1), (8, 6)),
        ((8, 16, 16, 1), (8, 2)),
        ((16, 16, 16, 1), (16,)),
        ((8, 16, 16, 3), (8, 6)),
        ((2, 16, 16, 16, 1), (2, 16, 6), (2, 16)),
        ((8, 16, 16, 1), (8, 6)),
        ((8, 16, 16, 1), (8, 6)),
        ((8, 16, 16, 1),),
    ]
    import keras

    paths = [f"photos/cat/{id}.png" for id in ids]
    flat = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    flat.compile(loss="mse")
    color = given["frame"].assign(file=[f"cat/{id}.png" for id in ids])
    given |= {"A": A, "keras": keras, "pd": pd, "frame": color, "layers": [keras.layers.Flatten()]}
    given |= {"list_IDs": ids, "paths": paths, "transform": A.HorizontalFlip(p=0.5)}
    given |= {"y": np.arange(8) % 2}
    shapes = []
    for block in tutorials:
        given |= {"model": flat, "labels": dict(zip(ids, [0, 1] * 4, strict=True))}
        exec(block, given)
        images, labels = given["train"][0]
        assert images.dtype == np.uint8
        shapes.append((images.shape, labels.shape))
    assert shapes == [
        ((8, 64, 64, 3), (8, 2)),
        ((16, 64, 64, 3), (16, 2)),
        ((8, 16, 16, 1), (8, 2)),
        ((8, 16, 16, 1), (8,)),
        ((8, 16, 16, 1), (8,)),
    ]


# ------------------------------------------------------------------------------------------------------ pages


def test_the_configuration_page_is_generated_from_the_schema():
    generator = runpy.run_path(str(ROOT / "docs/configuration.py"))
    assert generator["page"]() == DOCS["docs/configuration.md"], "make docs"
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", DOCS["docs/configuration.md"], flags=re.M)
    sections = [field.annotation for field in config.Config.model_fields.values() if field.annotation is not str]

    def keys(section):
        yield from section.model_fields
        for field in section.model_fields.values():  # of a section that is the value of a key, behind the other keys
            for inner in get_args(field.annotation):
                if inspect.isclass(inner) and issubclass(inner, BaseModel):
                    yield from keys(inner)

    assert [row[0] for row in rows] == [key for section in sections for key in keys(section)]
    for key, *cells in rows:
        assert all(cells), f"{key} has no comment above it in src/ich/config/"


def test_the_readme_is_one_page_and_leads_to_every_other():
    assert len(README.split()) <= 1500
    for name in DOCS.keys() - {"README.md"}:
        assert f"]({name})" in README, name


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_the_help_of_a_script_names_its_page(script):
    doc = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    (page,) = re.findall(r"^More: (docs/[\w-]+\.md)$", doc, flags=re.M)
    assert page in DOCS
    assert f"scripts/{script.name}" in DOCS[page] or script.name in DOCS[page], f"{page} does not name {script.name}"


def test_the_picture_is_small_enough_to_look_at_first():
    assert (ROOT / "docs/slice_life.png").stat().st_size < 300_000
    assert re.search(r"!\[[^\]]{100,}\]\(docs/slice_life\.png\)", README)
