"""The rules of the architecture: who may import whom, and what starts without Keras."""

import ast
import os
import pkgutil
import resource
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ich

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
FLOORS = [
    {"kaggle"},
    {"own_scans"},
    {"report"},
    {"second_stage"},
    {"training"},
    {"data", "models"},
    {"results"},
    {"images", "competition", "synthetic"},
    {"dicom"},
    {"errors", "files", "folders", "parallel", "config", "cli", "startup"},
]
"""What lies in src/ich, from the top: a floor imports from those below it alone; docs/architecture.md draws it."""

BESIDE = {("synthetic", "competition")}
KERAS = {"kaggle", "own_scans", "report", "second_stage", "training", "data", "models"}
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(ich.__path__, "ich.")
    if module.name.split(".")[1] not in KERAS and not module.name.endswith("__main__")
)
HEAVY = ("tensorflow", "keras", "jax", "torch")


def run(code, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imports(path):
    """The modules of ich that a file names, wherever it imports them, as `package.module` or `module`."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.removeprefix("ich.") for alias in node.names if alias.name.startswith("ich.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ich":
            base = Path(ROOT / "src", *node.module.split("."))
            for alias in node.names:
                name = f"{node.module}.{alias.name}" if base.is_dir() else node.module
                modules.add(name.removeprefix("ich."))
    return modules


def sources():
    """Each module: its package, or its own name outside of any, and its file."""
    for path in sorted((ROOT / "src/ich").rglob("*.py")):
        yield path.relative_to(ROOT / "src/ich").parts[0].removesuffix(".py"), path


def test_nothing_below_the_keras_level_imports_it():
    """One process a module would say which it was, and take a minute; so each import is looked at as it ends."""
    code = f"""
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
    if loaded:
        sys.exit(f"{{name}} imports {{', '.join(loaded)}}")
"""
    assert "ich.images.convert" in MODULES
    run(code, *MODULES, "ich.own_scans.find", "ich.own_scans.validation_page")


def test_every_package_stands_on_a_floor():
    assert {package for package, _ in sources()} - {"__init__"} == set().union(*FLOORS)


def test_a_package_imports_from_those_below_it():
    floor = {package: number for number, packages in enumerate(FLOORS) for package in packages}
    for package, path in sources():
        for name in imports(path):
            other = name.split(".")[0]
            down = package == other or floor[other] > floor[package]
            assert down or (package, other) in BESIDE or floor[package] == floor[other] == len(FLOORS) - 1, (
                f"{path}: {name}"
            )


def test_modules_import_each_other_in_no_circle():
    def module_of(path):
        return ".".join(path.relative_to(ROOT / "src/ich").with_suffix("").parts).removesuffix(".__init__")

    graph = {module_of(path): imports(path) for _, path in sources()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_few_see_the_config():
    """All else takes plain values, or one section, so that it can be used and tested without a config."""

    def is_section(path):
        nodes = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if "ich.config" in vars(node).values()
        ]
        return [alias.name for node in nodes for alias in node.names] == ["Preprocess"]

    def sees(path):
        return any(name.split(".")[0] == "config" for name in imports(path))

    seeing = {package for package, path in sources() if sees(path) and not is_section(path)}
    assert seeing <= {"training", "second_stage", "report", "own_scans", "config"}


def test_no_script_imports_a_script():
    names = {path.stem for path in SCRIPTS}
    for path in SCRIPTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in named} & (names | {"scripts"}), path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_shows_the_command_and_loads_nothing_heavy(script):
    code = """
import runpy, sys
path, sys.argv = sys.argv[1], sys.argv[1:] + ["--help"]
try:
    runpy.run_path(path, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
    heavy = ("tensorflow", "keras", "pandas", "cv2", "albumentations")
    print("loaded:", [name for name in heavy if name in sys.modules])
"""
    out = run(code, str(script))
    assert out.startswith("usage: ")
    assert f"python scripts/{script.name}" in out
    assert out.endswith("loaded: []\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_is_there_at_once(script):
    """In seconds of the processor's time: of the clock's, other work on the machine takes its share."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, script, "--help"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6
