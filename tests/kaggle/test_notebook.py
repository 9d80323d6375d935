"""A data set for Kaggle: packed, and read where only it and the test slices are."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from made_results import home_of, script
from test_wheels import write_wheel

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.kaggle import notebook, packing
from ich.own_scans.model_spec import CARD, MANIFEST
from ich.results.predictions import read_predictions
from ich.synthetic.archive import FOLDER

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/kaggle_inference"
FACTS = packing.metadata("jane/ich-tiny")


def write_sample(path, ids=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{id_}_{label},0.5" for id_ in ids for label in LABELS]
    path.write_text("\n".join(["ID,Label", *rows]) + "\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return home_of(tmp_path_factory)


@pytest.fixture
def inside(home, monkeypatch):
    """The folder of results as working folder."""
    monkeypatch.chdir(home)


def pack(out, *names):
    results = [Path("runs") / name for name in names]
    with packing.working_in(out, FACTS):
        packing.export(results, out)
        packing.write(ROOT, results, [], out)
    return notebook.open_pack(out)


@pytest.fixture(scope="module")
def packed(home, tmp_path_factory):
    """A data set of the blend and the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return pack(tmp_path_factory.mktemp("packed"), "mixed", "tiny")


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def without(folder):
    """Hide a folder: what is left predicts without it."""
    folder.rename(hidden := folder.with_name("hidden"))
    try:
        yield hidden
    finally:
        hidden.rename(folder)


# ------------------------------------------------------------------------------------------- packing


def test_models_and_code_go_and_nothing_of_the_competition(packed):
    there = files_in(packed.root)
    assert there == packed.files.keys() | {notebook.MANIFEST, packing.METADATA}
    assert packed.models == ["mixed", "tiny"]
    models = {name for name in there if not name.startswith("code/")} - {notebook.MANIFEST, packing.METADATA}
    allowed = rf"models/(mixed|tiny)/({re.escape(MANIFEST)}|{re.escape(CARD)}|[\w-]+/fold\d/\w+\.(keras|npz|json))"
    assert not [name for name in models if not re.fullmatch(allowed, name)]
    assert {f"models/mixed/tiny/fold{k}/model.keras" for k in range(3)} <= models
    assert "code/src/ich/report/templates/" in "".join(sorted(there))
    assert not any("__pycache__" in name for name in there)
    assert json.loads((packed.root / packing.METADATA).read_text())["id"] == "jane/ich-tiny"


def test_packed_again_with_others_it_holds_those(inside, packed, tmp_path):
    out = Path(shutil.copytree(packed.root, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in (out / "code").rglob("*") if path.is_file()}
    (out / "code/LICENSE").unlink()
    (out / "code/notes.txt").write_text("somebody's")
    again = pack(out, "tiny")
    assert again.models == ["tiny"]
    assert files_in(out) == again.files.keys() | {notebook.MANIFEST, packing.METADATA, "code/notes.txt"}
    assert not (out / "models/mixed").exists()
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {"LICENSE"}


def test_wheels_are_taken_from_a_folder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for source, said in (("nope", r"nope does not exist"), ("file", "file is a file")):
        with pytest.raises(IchError, match=rf"--wheels: .*{said}.*; expected a folder of wheels"):
            script("pack_for_kaggle.py", "runs/a", "--out", "out", "--wheels", source)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_script_packs_with_wheels_of_a_folder(inside, tmp_path, capsys):
    given, out = tmp_path / "given", tmp_path / "out"
    for name in ("keras", "isal"):
        write_wheel(given, name, keras.__version__ if name == "keras" else "1.9.1")
    options = ["--id", "jane/ich-tiny", "--out", out, "--wheels", given]
    have = runpy.run_path(str(ROOT / "scripts/pack_for_kaggle.py"))["HAVE"]
    script("pack_for_kaggle.py", "runs/tiny", *options, "--have", f"{have},python-gdcm,filelock")
    names = [name for name in notebook.open_pack(out).files if name.startswith("wheels/")]
    assert names == ["wheels/isal-1.9.1-py3-none-any.whl", f"wheels/keras-{keras.__version__}-py3-none-any.whl"]
    assert f"kaggle datasets create -p {out} --dir-mode zip --keep-tabular" in capsys.readouterr().out
    script("pack_for_kaggle.py", "runs/tiny", *options, "--have", f"{have},python-gdcm,filelock,keras,isal")
    assert not [name for name in notebook.open_pack(out).files if name.startswith("wheels/")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], r"--id '' is no id of a data set; expected your name on Kaggle and a name of 3 to 50"),
        (["ich-tiny"], r"--id 'ich-tiny' is no id"),
        (["jane/Ich Tiny"], r"--id 'jane/Ich Tiny' is no id"),
        (["jane/ich"], r"the title 'ich' has 3 characters; Kaggle wants 6 to 50 \(--title\)"),
        (["jane/ich", "A title", "mine"], r"Kaggle knows no license 'mine'; there are CC0-1.0, "),
    ],
)
def test_what_kaggle_would_refuse_is_reported_before(arguments, message):
    with pytest.raises(IchError, match=message):
        packing.metadata(*arguments)


def enter(out, facts):
    with packing.working_in(Path(out), facts):
        pass


@pytest.mark.parametrize("name", ["mine.txt", packing.METADATA])
def test_a_folder_of_something_else_is_left_alone(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out", name).write_text(json.dumps({"id": FACTS["id"], "title": "My own", "description": "Not yours"}))
    before = Path("out", name).read_bytes()
    with pytest.raises(IchError, match=rf"out holds {name} and lacks a readable {packing.METADATA} of a data set"):
        enter("out", FACTS)
    assert [path.read_bytes() for path in Path("out").iterdir()] == [before]
    enter("other", packing.metadata("jane/ich-other"))
    with pytest.raises(IchError, match=r"other holds the data set jane/ich-other, not jane/ich-tiny; name another"):
        enter("other", FACTS)


def test_what_a_stopped_run_wrote_goes(inside, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []
    real = packing.export_model

    def stop(result, folder):
        calls.append(result)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(result, folder)

    with monkeypatch.context() as stopping:
        stopping.setattr(packing, "export_model", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(out, "tiny-sequence", "mixed")
    assert (out / "models/tiny-sequence" / MANIFEST).exists()
    with pytest.raises(IchError, match="is of another version"):  # it is no whole data set
        notebook.open_pack(out)
    again = pack(out, "tiny")
    assert files_in(out) == again.files.keys() | {notebook.MANIFEST, packing.METADATA}


def test_a_manifest_removes_nothing_outside_its_folder(inside, tmp_path):
    mine, out = tmp_path / "mine.txt", tmp_path / "out"
    with packing.working_in(out, FACTS):
        mine.write_text("mine")
        names = ["../mine.txt", "models/../../mine.txt", str(mine), "elsewhere/mine.txt"]
        (out / notebook.MANIFEST).write_text(json.dumps({"files": dict.fromkeys(names, "")}))
    pack(out, "tiny")
    assert mine.read_text() == "mine"


def test_results_of_one_name_and_models_of_an_unknown_keras_are_refused(inside, tmp_path, monkeypatch):
    with pytest.raises(IchError, match=r"runs/tiny has the name of another result"):
        packing.export([Path("runs/tiny"), Path("runs/tiny")], tmp_path)
    monkeypatch.setattr(packing.inference, "metadata_of", lambda path: {})
    with pytest.raises(IchError, match="does not say which Keras wrote it"):
        packing.export([Path("runs/tiny")], tmp_path / "out")


# ------------------------------------------------------------------------------------------- in the notebook


@pytest.mark.parametrize("name", ["mixed", "tiny"])
def test_what_was_packed_predicts_where_only_the_test_slices_are(home, packed, tmp_path, monkeypatch, name):
    expected = read_predictions(home / f"runs/{name}/predictions_test.parquet")
    write_sample(tmp_path / "sample.csv", expected.index)
    with without(home) as hidden:
        competition = notebook.Competition(hidden / "test", tmp_path / "sample.csv")
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        for step in notebook.steps(packed, name, competition, tmp_path / "work", tmp_path / "made"):
            script(step.script, *step.arguments)
    submission = pd.read_csv(tmp_path / "made/submission.csv")
    assert submission["ID"].tolist() == [f"{id_}_{label}" for id_ in expected.index for label in LABELS]
    np.testing.assert_allclose(submission["Label"], expected.to_numpy().ravel(), atol=1e-6)
    manifest = json.loads((tmp_path / "made/submission.json").read_text())
    assert (manifest["file"], manifest["run"]) == ("submission.csv", name)
    assert manifest["predictions"]["options"]["slabs"] is False


def test_policies_reach_the_submission(packed):
    competition = notebook.Competition(Path("/in/a b/stage_2_test"), Path("sample.csv"))
    _, submit = notebook.steps(packed, "tiny", competition, Path("work"), Path("made"), ["series_mean", "prevalence"])
    assert submit.arguments[-4:] == ["--missing", "series_mean", "--missing", "prevalence"]


def test_an_unknown_model_is_reported(packed):
    with pytest.raises(IchError, match=r"the data set has no model 'big'; there are mixed, tiny"):
        notebook.steps(packed, "big", notebook.Competition(Path(), Path()), Path(), Path())


def test_a_damaged_data_set_is_reported(packed, tmp_path):
    out = Path(shutil.copytree(packed.root, tmp_path / "out"))
    (out / "models/tiny/tiny/fold0/model.keras").write_bytes(b"cut")
    (out / "code/LICENSE").unlink()
    with pytest.raises(IchError, match=r"\(code/LICENSE missing; models/tiny/.*model.keras changed\); upload it agai"):
        notebook.open_pack(out)
    (out / notebook.MANIFEST).write_text("{}")
    with pytest.raises(IchError, match=r"is of another version \(KeyError: 'models'\); pack the data set again"):
        notebook.open_pack(out)
    (out / notebook.MANIFEST).unlink()
    with pytest.raises(IchError, match=r"which lists the content of the data set, cannot be read"):
        notebook.open_pack(out)


def test_packages_are_compared_with_the_requirements(tmp_path):
    assert notebook.check_packages(ROOT / "requirements.txt") == []
    path = tmp_path / "requirements.txt"
    path.write_text("numpy<1\nopencv-contrib-python>=4\npytest>=1\n")
    (line,) = notebook.check_packages(path)
    assert re.fullmatch(r"numpy [\d.]+ is installed, <1 is tested", line)
    path.write_text("numpy<1\nno-such-thing\nnor-this\n")
    with pytest.raises(IchError, match=r"lacks no-such-thing, nor-this; .* --lack no-such-thing,nor-this, so"):
        notebook.check_packages(path)


def test_the_competition_is_found_at_any_depth_without_listing_its_slices(tmp_path, monkeypatch):
    with pytest.raises(IchError, match=r"expected a folder stage_2_test below .*, found none; attach the competition"):
        notebook.find_competition(tmp_path)
    archive = tmp_path / "competitions/rsna/rsna"
    for split in ("train", "test"):
        (archive / f"stage_2_{split}/deeper").mkdir(parents=True)
    with pytest.raises(IchError, match=r"expected a file stage_2_sample_submission.csv below .*, found none"):
        notebook.find_competition(tmp_path)
    write_sample(archive / "stage_2_sample_submission.csv")
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    competition = notebook.find_competition(tmp_path)
    assert competition == (archive / "stage_2_test", archive / "stage_2_sample_submission.csv")
    assert listed
    assert not any("stage_2" in path for path in listed)
    (tmp_path / "again/stage_2_test").mkdir(parents=True)
    with pytest.raises(IchError, match=r"found .*stage_2_test, .*stage_2_test; attach the competition's data .*, once"):
        notebook.find_competition(tmp_path)


def write_script(root, code):
    (root / "code/scripts").mkdir(parents=True, exist_ok=True)
    (root / "code/scripts/a.py").write_text(code)
    return notebook.Pack(root, [], {})


def test_a_step_runs_with_the_packed_code_in_the_working_folder(tmp_path, capsys):
    code = "import os, sys\nprint(os.getcwd(), os.environ['PYTHONPATH'], *sys.argv[1:])\nprint('told', file=sys.stderr)"
    notebook.run(notebook.Step("a.py", ["b c", "d"]), write_script(tmp_path, code), tmp_path / "work")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "$ a.py 'b c' d"
    assert set(lines[1:]) == {f"{tmp_path}/work {tmp_path}/code/src b c d", "told"}


def test_a_step_that_fails_ends_the_notebook(tmp_path):
    packed = write_script(tmp_path, "import sys; sys.exit(3)")
    with pytest.raises(IchError, match=r"a.py ended with status 3; its error stands above"):
        notebook.run(notebook.Step("a.py", []), packed, tmp_path)
    notebook.run(notebook.Step("a.py", [], accepted=(0, 3)), packed, tmp_path)


def test_a_stopped_cell_stops_its_script(tmp_path, monkeypatch):
    waiting = ["try:", " print('begun')", " time.sleep(60)", "except KeyboardInterrupt:", " open('stopped', 'w')"]
    lines = ["import time", *waiting]

    def stop(line, **_):
        if line == "begun":
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", stop)
    with pytest.raises(KeyboardInterrupt):
        notebook.run(notebook.Step("a.py", []), write_script(tmp_path, "\n".join(lines)), tmp_path)
    assert (tmp_path / "stopped").exists()


# ------------------------------------------------------------------------------------------- the notebook


def cells_of_script():
    """The cells of the .py, in jupytext's percent format."""
    for cell in re.split(r"^# %%", NOTEBOOK.with_suffix(".py").read_text(), flags=re.MULTILINE)[1:]:
        kind, _, text = cell.partition("\n")
        if kind == " [markdown]":
            yield "markdown", re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)
        else:
            yield "code", text.strip()


def test_the_notebook_is_the_script_and_has_no_outputs():
    cells = json.loads(NOTEBOOK.with_suffix(".ipynb").read_text())["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == list(cells_of_script())
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_the_notebook_runs_without_network(home, tmp_path, monkeypatch):
    """Its script, with a simulated archive as Kaggle mounts it, whose train slices nobody can read.

    Of packages all is there, so that nothing is installed into the environment of the tests.
    """
    monkeypatch.chdir(home)
    have = ",".join(line.partition("=")[0].partition(">")[0] for line in (ROOT / "requirements.txt").open())
    out = tmp_path / "in/ich/v1"
    script("pack_for_kaggle.py", "runs/mixed", "--id", "jane/ich-tiny", "--out", out, "--have", have)
    with zipfile.ZipFile("archive.zip") as archive:
        archive.extractall(tmp_path / "in/rsna")
    train = list((tmp_path / "in/rsna" / FOLDER / "stage_2_train").iterdir())
    for path in train:
        path.write_bytes(b"")
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    places = {"ICH_INPUT": "in", "ICH_WORK": "work", "ICH_OUT": "made"}
    environment = os.environ | closed | {key: str(tmp_path / value) for key, value in places.items()}
    with without(home):
        subprocess.run([sys.executable, NOTEBOOK.with_suffix(".py")], check=True, env=environment, cwd=tmp_path / "in")
    expected = read_predictions(home / "runs/mixed/predictions_test.parquet")
    submission = pd.read_csv(tmp_path / "made/submission.csv").set_index("ID")["Label"]
    ids = [f"{id_}_{label}" for id_ in expected.index for label in LABELS]
    assert len(submission) == len(ids)
    np.testing.assert_allclose(submission[ids], expected.to_numpy().ravel(), atol=1e-6)
    assert train
