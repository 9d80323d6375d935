"""Where the package runs, and that all who tell it tell the same."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WINDOWS = "error: ich runs on Linux and macOS; on Windows, run it in WSL 2, which is a Linux\n"


def on_windows(code):
    code = f"import sys\nsys.platform = 'win32'\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("module", ["ich", "ich.training.fold", "ich.dicom.reader", "ich.cli"])
def test_on_windows_an_import_ends_in_a_sentence(module):
    done = on_windows(f"import {module}")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", WINDOWS)


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_on_windows_a_script_ends_in_a_sentence(script):
    done = on_windows(f"import runpy\nrunpy.run_path({str(script)!r}, run_name='__main__')")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", WINDOWS)


def test_on_windows_the_import_is_an_import_error_and_other_errors_keep_their_traceback():
    done = on_windows("try:\n    import ich\nexcept ImportError as error:\n    print(error)\n1 / 0")
    assert f"error: {done.stdout}" == WINDOWS
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_the_platforms_and_pythons_are_stated_alike():
    """By the package's metadata, the Makefile, README.md and CONTRIBUTING.md."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classifiers = set(project["classifiers"])
    assert {"Operating System :: POSIX :: Linux", "Operating System :: MacOS"} <= classifiers
    assert not [classifier for classifier in classifiers if "Windows" in classifier]
    pythons = sorted(
        int(classifier.rpartition(".")[2]) for classifier in classifiers if re.search(r"Python :: 3\.\d", classifier)
    )
    low, high = pythons[0], pythons[-1]
    assert pythons == list(range(low, high + 1))
    assert project["requires-python"] == f">=3.{low},<3.{high + 1}"
    makefile = (ROOT / "Makefile").read_text()
    assert f"(3, {low}) <= v < (3, {high + 1})" in makefile
    for name in ("Makefile", "README.md", "CONTRIBUTING.md", "constraints.txt"):
        assert f"Python 3.{low} to 3.{high}" in (ROOT / name).read_text(encoding="utf-8"), name
    for name in ("README.md", "CONTRIBUTING.md"):
        assert "Linux or macOS" in (ROOT / name).read_text(encoding="utf-8"), name
    asked = subprocess.run([sys.executable, "scripts/pack_for_kaggle.py", "--help"], capture_output=True, cwd=ROOT)
    assert ",".join(f"3.{minor}" for minor in pythons).encode() in asked.stdout
