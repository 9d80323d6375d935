"""The rule of the architecture: what lies below the Keras level starts without it."""

import ast
import os
import pkgutil
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import ich

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
KERAS_LEVEL = {
    "callbacks",
    "devices",
    "features",
    "galleries",
    "life",
    "generator",
    "gradcam",
    "losses",
    "models",
    "optimizers",
    "prior",
    "recurrent",
    "training",
    "inference",
    "sequence",
    "stacking",
    "streaming",
    "report",
}
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(ich.__path__, "ich.")
    if module.name.split(".")[1] not in KERAS_LEVEL and not module.name.endswith("__main__")
)
LEAVES = {"archive", "dicom", "windows", "labels"}
BELOW_LEAVES = {"errors", "files", "member", "zip_directory", "bits"}
HEAVY = ("tensorflow", "keras", "jax", "torch")


def run(code, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imports(path):
    """The modules of ich that a file names, wherever it imports them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ich.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "ich":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ich."):
            found.add(node.module.split(".")[1])
    return found


def sources():
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
    assert "ich.convert" in MODULES
    run(code, *MODULES)


def test_what_is_below_names_nothing_above():
    for module, path in sources():
        if module in BELOW_LEAVES:
            assert imports(path) <= BELOW_LEAVES, path
        elif module in LEAVES:
            assert imports(path) <= LEAVES | BELOW_LEAVES, path
        elif module not in KERAS_LEVEL:
            assert not imports(path) & KERAS_LEVEL, path


def test_few_see_the_config():
    """All else takes plain values, so that it can be used and tested without one."""
    seeing = {module for module, path in sources() if "config" in imports(path)}
    assert seeing <= {"runs", "training", "inference", "sequence", "stacking", "report"}


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
