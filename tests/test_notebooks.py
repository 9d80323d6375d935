"""The notebooks: pairs without outputs that say the same and define nothing; and, run by themselves, each of them."""

import ast
import base64
import importlib.util
import json
import pkgutil
import runpy
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
SCRIPTS = ROOT / "scripts"
OTHERS = {"IPython", "ipywidgets", "keras", "matplotlib", "numpy", "pandas", "pydicom"}
PICTURES = {"01": 6, "02": 5, "03": 5}  # at least so many does each show


def cells(path):
    """The cells of a notebook, be it JSON or its percent pair: (kind, text)."""
    if path.suffix == ".ipynb":
        content = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [(cell["cell_type"], "".join(cell["source"])) for cell in content]
    first, *rest = ("\n" + path.read_text(encoding="utf-8")).split("\n# %%")
    assert first == "", f"{path} has text before its first cell"
    return [_percent_cell(text) for text in rest]


def _percent_cell(text):
    kind, _, body = text.partition("\n")
    body = body.strip("\n")
    if kind.strip() != "[markdown]":
        assert kind == "", f"a cell is marked {kind}"
        return "code", body
    lines = body.split("\n")
    assert all(line == "#" or line.startswith("# ") for line in lines), body
    return "markdown", "\n".join(line[2:] for line in lines)


each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_three_pairs():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03"]
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in sorted(NOTEBOOKS[0].parent.glob("0*.py"))]


@each
def test_outputs_are_not_committed(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content["metadata"]) <= {"jupytext", "kernelspec"}  # else what a widget showed is there
    for cell in content["cells"]:
        assert not cell.get("outputs"), "clear all outputs"
        assert cell.get("execution_count") is None
        assert not cell["metadata"]
        assert not cell.get("attachments")


@each
def test_both_of_a_pair_say_the_same(path):
    assert cells(path) == cells(path.with_suffix(".py")), "jupytext --sync notebooks/*.py"


def test_pairs_that_differ_are_found(tmp_path):
    path = NOTEBOOKS[0]
    text = path.with_suffix(".py").read_text(encoding="utf-8")
    for old, new in (("# %%\n", "# %% [markdown]\n"), ("# # 1 ·", "# # 2 ·"), ("hu, header", "header, hu")):
        assert old in text
        (tmp_path / "changed.py").write_text(text.replace(old, new, 1), encoding="utf-8")
        try:
            changed = cells(tmp_path / "changed.py")
        except AssertionError:  # code that is called markdown
            continue
        assert changed != cells(path)


@each
def test_a_notebook_defines_nothing_and_imports_what_is_there(path):
    tree = ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef), node.name
        if isinstance(node, ast.Import):
            tops = {alias.name.partition(".")[0] for alias in node.names}
            assert tops <= OTHERS | set(sys.stdlib_module_names), tops
        elif isinstance(node, ast.ImportFrom):
            assert node.module.partition(".")[0] in OTHERS | {"ich"} | set(sys.stdlib_module_names), node.module
            if node.module.partition(".")[0] == "ich":
                spec = importlib.util.find_spec(node.module)
                known = _defined(Path(spec.origin).read_text(encoding="utf-8"))
                known |= {module.name for module in pkgutil.iter_modules(spec.submodule_search_locations or [])}
                assert {alias.name for alias in node.names} <= known, node.module


def _defined(source):
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


# ------------------------------------------------------------------------------------- run from top to bottom


def script(name, *arguments):
    runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"](list(map(str, arguments)))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What `make demo` leaves, of few patients, small slices and hardly trained networks."""
    from ich.synthetic.archive import write_archive
    from ich.synthetic.plan import draw_plan

    folder = tmp_path_factory.mktemp("demo")
    archive = Path("data/demo/archive.zip")
    content = {
        "name": "demo",
        "data": {"sources": str(archive), "images": "images/demo"},
        "preprocess": {"windows": ["brain", "subdural", "bone"], "size": 32},
        "folds": {"n": 2},
        "model": {"name": "small_cnn", "weights": None},
        "train": {"epochs": 1, "batch_size": 16},
        "sequence": {"seeds": 1, "epochs": 1, "rounds": 5},
        "machine": {"jobs": 1, "workers": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        archive.parent.mkdir(parents=True)
        # Eight train patients are the fewest that show all oddities of the competition's files.
        write_archive(
            archive, draw_plan(patients=8, test_patients=1, size=64, min_slices=6, max_slices=8, bleed_factor=6.0)
        )
        Path("configs").mkdir()
        Path("configs/demo.yaml").write_text(yaml.safe_dump(content))
        script("preprocess", "configs/demo.yaml", "--max-failures", "1")
        script("make_folds", "configs/demo.yaml")
        script("train_kfold", "configs/demo.yaml")
        script("train_sequence", "runs/demo")
    return folder


def execute(path, folder, patch):
    """The notebook with its outputs, run where Jupyter would run it, on the demo in a folder."""
    import nbformat
    from nbclient import NotebookClient

    patch.setenv("ICH_DEMO", str(folder))
    patch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def files(folder):
    skipped = ("__pycache__", ".ipynb_checkpoints")
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not set(skipped) & set(path.parts)
    }


@pytest.mark.notebooks
@each
def test_it_runs_from_top_to_bottom_and_writes_nothing(path, demo, monkeypatch):
    before = files(demo) | files(path.parent)
    notebook = execute(path, demo, monkeypatch)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert files(demo) | files(path.parent) == before
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= PICTURES[path.stem[:2]]
    said = "".join(output["text"] for output in outputs if output.get("name") == "stderr")
    assert "Warning:" not in said, said
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    for line in {
        "01": ["repaired slice(s): {'wrapped': "],
        "02": ["second generator: True", "backwards: True", "Keras workers: True", "epoch 0 again: True"],
        "03": ["prevalence floor", "of the floor"],
    }[path.stem[:2]]:
        assert line in printed
    if path.stem.startswith("03"):
        (widgets,) = notebook.metadata["widgets"].values()
        (shown,) = (widget for widget in widgets["state"].values() if widget["model_name"] == "ImageModel")
        assert base64.b64decode(shown["buffers"][0]["data"]).startswith(b"\x89PNG")  # where the slider stands first


@pytest.mark.notebooks
@each
def test_without_a_demo_it_says_what_to_do(path, tmp_path, monkeypatch):
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match=r"FileNotFoundError.*run `make demo` there, or set ICH_DEMO"):
        execute(path, tmp_path, monkeypatch)
