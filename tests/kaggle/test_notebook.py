"""A data set for Kaggle: packed, and read where only it and the test slices are."""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import pandas as pd
import pytest
import yaml
from conftest import TEST, make_images, tiny_config
from test_wheels import write_wheel

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.files import sha256_of
from ich.images import slice_table
from ich.kaggle import notebook, packing
from ich.results.predictions import read_predictions, read_provenance, write_predictions
from ich.second_stage import inputs, train
from ich.synthetic.archive import FOLDER, write_archive
from ich.synthetic.plan import draw_plan
from ich.training import inference
from ich.training.run_data import RunData
from ich.training.run_directory import Run

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/kaggle_inference"
FAST = [
    *("sequence.seeds=1", "sequence.width=4", "sequence.units=2", "sequence.dilations=[1]", "sequence.epochs=1"),
    *("sequence.rounds=3", "sequence.reach=2"),
]
FACTS = packing.metadata("jane/ich-tiny")


def script(name, *arguments):
    runpy.run_path(str(ROOT / f"scripts/{name}"))["main"](list(map(str, arguments)))


def write_sample(path, ids=TEST):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{one}_{label},0.5" for one in ids for label in LABELS]
    path.write_text("\n".join(["ID,Label", *rows]) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a run of models that have learned nothing, its second stage and a blend of both."""
    folder = tmp_path_factory.mktemp("finished")
    make_images(folder)
    table = slice_table.read_table(folder / "images/slices.parquet")
    slice_table.write_table(table.assign(z=5.0 * table["order"]), folder / "images/slices.parquet")
    run = Run.begin(tiny_config(folder, predict={"tta": ["none", "flip"]}), folder / "runs")
    run.claim("tensorflow", ["cpu:0"], RunData(run.config).digests)
    for k in range(2):
        keras.utils.set_random_seed(k)
        image = keras.Input((32, 32, 1))
        x = keras.layers.Conv2D(4, 3, strides=4)(keras.layers.Rescaling(1 / 255)(image))
        run.fold(k).mkdir()
        keras.Model(image, keras.layers.Dense(6)(keras.layers.Flatten()(x))).save(run.fold(k) / "model.keras")
        (run.fold(k) / "checkpoint.npz").touch()
        inference.predict_held_out(run, k, RunData(run.config), lambda k=k: inference.load_model(run, k))
    inference.predict_test(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.train(inputs.inputs_from_runs([Path("runs/tiny")], overrides=FAST))
        script("blend.py", "runs/tiny", "runs/tiny-sequence", "--out", "runs/mixed", "--by-label")
    return folder


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """The same, to spoil; the scripts run there."""
    shutil.copytree(finished, tmp_path / "home")
    for config in (tmp_path / "home").glob("runs/*/config.yaml"):
        config.write_text(config.read_text().replace(str(finished), str(tmp_path / "home")))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def pack(out, *results):
    contents = packing.Contents()
    contents.add_code(ROOT)
    wanted = [contents.add(Path("runs") / name) for name in results]
    with packing.working_in(out, FACTS):
        packing.write(contents, [], out, wanted)
    return notebook.open_pack(out)


# ------------------------------------------------------------------------------------------- packing


def test_a_run_goes_without_what_predicting_does_not_take(copied):
    packed = pack(Path("out"), "tiny")
    there = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    assert there == packed.files.keys() | {notebook.MANIFEST, packing.METADATA}
    ours = {f"runs/tiny/{name}" for name in ("config.yaml", "environment.json", "oof.parquet", "score.json")}
    ours |= {f"runs/tiny/fold{k}/{name}" for k in (0, 1) for name in ("model.keras", "oof.parquet")}
    assert {name for name in there if name.startswith(("runs/", "scans/"))} == ours
    assert "code/src/ich/report/templates/" in "".join(sorted(there))
    assert not any("__pycache__" in name for name in there)
    assert json.loads(Path("out", packing.METADATA).read_text())["id"] == "jane/ich-tiny"
    assert packed.results["tiny"]["predict"] == {"tta": ["none", "flip"], "mean": "probability"}


def test_packed_again_only_what_changed_is_written(copied):
    pack(Path("out"), "mixed")
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.is_file()}
    Path("out/runs/mixed/config.yaml").write_text("half of i")
    Path("out/runs/tiny/score.json").unlink()
    again = pack(Path("out"), "tiny-sequence")
    assert list(again.results) == ["tiny", "tiny-sequence"]
    assert not Path("out/runs/mixed/config.yaml").exists()
    changed = {path.name for path, when in before.items() if path.exists() and path.stat().st_mtime_ns != when}
    assert changed == {"score.json", "slices.parquet", notebook.MANIFEST, packing.METADATA}


def test_a_blend_brings_what_it_is_made_of(copied):
    packed = pack(Path("out"), "mixed", "tiny")
    assert {name: told["of"] for name, told in packed.results.items()} == {
        "tiny": [],
        "tiny-sequence": ["tiny"],
        "mixed": ["tiny", "tiny-sequence"],
    }
    assert packed.requested == ["mixed", "tiny"]
    table = slice_table.read_table(Path("out/scans/tiny-sequence/slices.parquet"))
    assert set(table["split"]) == {"train"}


def test_wheels_are_taken_from_a_folder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for source, said in (("nope", r"nope does not exist"), ("file", "file is a file")):
        with pytest.raises(IchError, match=rf"--wheels: .*{said}.*; expected a folder of wheels"):
            script("pack_for_kaggle.py", "runs/a", "--out", "out", "--wheels", source)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_script_packs_with_wheels_of_a_folder(copied, capsys):
    for name in ("keras", "isal"):
        write_wheel(Path("given"), name, keras.__version__ if name == "keras" else "1.9.1")
    options = ["--id", "jane/ich-tiny", "--out", "out", "--wheels", "given"]
    have = runpy.run_path(str(ROOT / "scripts/pack_for_kaggle.py"))["HAVE"]
    script("pack_for_kaggle.py", "runs/tiny", *options, "--have", f"{have},python-gdcm,filelock")
    packed = notebook.open_pack(Path("out"))
    found = [name for name in packed.files if name.startswith("wheels/")]
    assert found == ["wheels/isal-1.9.1-py3-none-any.whl", f"wheels/keras-{keras.__version__}-py3-none-any.whl"]
    assert "kaggle datasets create -p out --dir-mode zip --keep-tabular" in capsys.readouterr().out
    script("pack_for_kaggle.py", "runs/tiny", *options, "--have", f"{have},python-gdcm,filelock,keras,isal")
    assert not [name for name in notebook.open_pack(Path("out")).files if name.startswith("wheels/")]


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
def test_what_kaggle_would_refuse_is_told_before(arguments, message):
    with pytest.raises(IchError, match=message):
        packing.metadata(*arguments)


def enter(out, facts):
    with packing.working_in(Path(out), facts):
        pass


@pytest.mark.parametrize("name", ["mine.txt", packing.METADATA])
def test_a_folder_of_something_else_is_left_alone(copied, name):
    Path("out").mkdir()
    Path("out", name).write_text(json.dumps({"id": FACTS["id"], "title": "My own", "description": "Not yours"}))
    before = Path("out", name).read_bytes()
    with pytest.raises(IchError, match=rf"out holds {name} and lacks a readable {packing.METADATA} of a data set"):
        enter("out", FACTS)
    assert [path.read_bytes() for path in Path("out").iterdir()] == [before]
    enter("other", packing.metadata("jane/ich-other"))
    with pytest.raises(IchError, match=r"other holds the data set jane/ich-other, not jane/ich-tiny; name another"):
        enter("other", FACTS)


def test_what_others_laid_beside_it_stays_and_what_a_stopped_run_wrote_goes(copied, monkeypatch):
    pack(Path("out"), "tiny")
    Path("out/code/notes.txt").write_text("somebody's")

    def stop(source, target):
        if Path(source).name == "score.json":
            raise KeyboardInterrupt
        return copyfile(source, target)

    copyfile = shutil.copyfile
    with monkeypatch.context() as stopping:
        stopping.setattr(shutil, "copyfile", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(Path("out"), "mixed")
    assert Path("out/runs/tiny-sequence/oof.parquet").exists()
    with pytest.raises(IchError, match="is of another version"):  # it is no whole data set
        notebook.open_pack(Path("out"))
    packed = pack(Path("out"), "tiny")
    there = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    assert there == packed.files.keys() | {notebook.MANIFEST, packing.METADATA, "code/notes.txt"}


def test_a_manifest_removes_nothing_outside_its_folder(copied):
    with packing.working_in(Path("out"), FACTS):
        Path("mine.txt").write_text("mine")
        names = ["../mine.txt", "runs/../../mine.txt", str(Path("mine.txt").resolve()), "elsewhere/mine.txt"]
        Path("out", notebook.MANIFEST).write_text(json.dumps({"files": dict.fromkeys(names, "")}))
    pack(Path("out"), "tiny")
    assert Path("mine.txt").read_text() == "mine"


def spoil_oof(path):
    write_predictions(read_predictions(path), path, read_provenance(path) | {"tta": ["none"]})


@pytest.mark.parametrize(
    ("result", "spoil", "message"),
    [
        ("tiny", lambda: shutil.rmtree("runs/tiny/fold1"), r"lacks fold\(s\) 1; train them first"),
        ("tiny", lambda: Path("runs/tiny/score.json").unlink(), r"runs/tiny lacks score.json; make the result again"),
        (
            "tiny",
            lambda: Path("runs/tiny/fold0/model.keras").unlink(),
            r"fold0 lacks model.keras; delete it and train the fold again",
        ),
        (
            "tiny",
            lambda: Path("runs/tiny/fold1/model.keras").write_bytes(b""),
            r"fold1 are not of its model, .* run scr",
        ),
        ("tiny", lambda: spoil_oof(Path("runs/tiny/fold1/oof.parquet")), r"fold1 are not of its model, or not made as"),
        ("tiny", lambda: rewrite("tiny", packages={}), r"environment.json lacks the version of Keras"),
        ("tiny-sequence", lambda: spoil_oof(Path("runs/tiny/oof.parquet")), r"not those that runs/tiny-sequence was t"),
        ("tiny-sequence", lambda: Path("runs/tiny/oof.parquet").unlink(), r"cannot read runs/tiny/oof.parquet"),
        ("tiny-sequence", lambda: shutil.rmtree("runs/tiny"), r"is made of runs/tiny, which is not there"),
        (
            "tiny-sequence",
            lambda: rewrite("tiny-sequence", first_stage=["folds.csv"]),
            r"trained on a table of scores \(folds.csv\), whose models are not known",
        ),
        (
            "tiny-sequence",
            lambda: (path := Path("runs/tiny-sequence/config.yaml")).write_text(
                re.sub("shuffle_kinds: .*", "shuffle_kinds: 0", path.read_text()).replace(
                    "features: logits", "features: embeddings"
                )
            ),
            r"runs/tiny-sequence reads embeddings, which cannot be extracted on Kaggle; pack a second stage with",
        ),
        (
            "mixed",
            lambda: Path("folds.csv").unlink(),
            r"folds.csv is not what runs/tiny-sequence was made with, or not",
        ),
    ],
)
def test_what_could_not_predict_on_kaggle_is_not_packed(copied, result, spoil, message):
    spoil()
    with pytest.raises(IchError, match=message):
        packing.Contents().add(Path("runs") / result)


def rewrite(result, **changed):
    path = Path("runs") / result / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_results_that_cannot_share_a_data_set_are_told(copied):
    contents = packing.Contents()
    contents.add(Path("runs/mixed"))
    shutil.copytree("runs/tiny", "others/tiny")
    with pytest.raises(IchError, match=r"others/tiny and .*runs/tiny have one name; rename one of them"):
        contents.add(Path("others/tiny"))
    table = Path("folds.csv").read_text()
    Path("other.csv").write_text(table + "\n")
    shutil.copytree("runs/mixed", "runs/other")
    rewrite("other", folds_sha256=sha256_of(Path("other.csv")))
    config = yaml.safe_load(Path("runs/other/config.yaml").read_text())
    config["data"]["folds"] = "other.csv"
    Path("runs/other/config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(IchError, match=r"runs/other has other folds \(other.csv\) than those before it"):
        contents.add(Path("runs/other"))


def test_images_of_two_settings_get_two_folders(copied):
    shutil.copytree("runs/tiny", "runs/second")
    shutil.copytree("images", "elsewhere/images")
    text = Path("runs/second/config.yaml").read_text()
    Path("runs/second/config.yaml").write_text(text.replace(f"{copied}/images", f"{copied}/elsewhere/images"))
    packed = pack(Path("out"), "tiny", "second")
    assert [told["images"] for told in packed.results.values()] == ["images", "images_"]
    scripts = [step.script for step in steps(packed, "tiny")]
    assert scripts == ["preprocess.py", "predict.py", "make_submission.py"]


# ------------------------------------------------------------------------------------------- in the notebook


def steps(packed, result, **options):
    competition = notebook.Competition(Path("/in/a 'b\"/stage_2_test"), Path("sample.csv").absolute())
    return notebook.steps(packed, result, competition, Path("work").absolute(), Path("made").absolute(), **options)


def test_what_was_packed_predicts_where_only_the_test_slices_are(copied, monkeypatch):
    """All steps but the conversion, which needs DICOM files: test_the_notebook_runs_without_network makes it."""
    pack(Path("out"), "mixed")
    write_sample(Path("sample.csv"))
    whole = {name: read_predictions(Path(f"runs/{name}/predictions_test.parquet")) for name in ("tiny", "mixed")}
    images = Path("work/images/images")
    shutil.copytree("images/test", images / "test")
    shutil.copy("images/settings.json", images)
    table = slice_table.read_table(Path("images/slices.parquet"))
    slice_table.write_table(table[table["split"] == "test"], images / "slices.parquet")
    for folder in ("images", "runs"):
        shutil.rmtree(folder)
    Path("folds.csv").unlink()
    packed = notebook.open_pack(Path("out").absolute())
    todo = steps(packed, "mixed", missing=["series_mean"], max_failures=2)
    assert [step.script for step in todo] == [
        *("preprocess.py", "predict.py", "train_sequence.py", "blend.py", "make_submission.py")
    ]
    assert yaml.safe_load(todo[0].arguments[2].partition("=")[2]) == ["/in/a 'b\"/stage_2_test"]
    assert todo[0].arguments[-2:] == ["--max-failures", "2"]
    monkeypatch.setattr(train.rnn, "train", None)  # its networks are there
    monkeypatch.chdir("work")
    for _ in range(2):  # a cell that is run again
        for step in todo[1:]:
            if step.prepare:
                step.prepare()
            script(step.script, *step.arguments)
    for name, before in whole.items():
        after = read_predictions(Path(f"runs/{name}/predictions_test.parquet"))
        pd.testing.assert_frame_equal(after, before, check_exact=name == "tiny", atol=1e-6)
    made = pd.read_csv("../made/submission.csv")
    assert len(made) == 6 * len(TEST)
    assert made["Label"].to_numpy() == pytest.approx(whole["mixed"].loc[TEST].to_numpy().ravel(), abs=1e-6)
    assert json.loads(Path("../made/submission.json").read_text())["file"] == "submission.csv"


def test_an_unknown_result_is_told(copied):
    with pytest.raises(IchError, match=r"the data set has no result 'big'; there are tiny"):
        steps(pack(Path("out"), "tiny"), "big")


def test_a_damaged_data_set_is_told(copied):
    pack(Path("out"), "tiny")
    Path("out/runs/tiny/fold0/model.keras").write_bytes(b"cut")
    Path("out/code/LICENSE").unlink()
    with pytest.raises(
        IchError, match=r"\(code/LICENSE missing; runs/tiny/fold0/model.keras changed\); upload it agai"
    ):
        notebook.open_pack(Path("out"))
    Path("out", notebook.MANIFEST).write_text("{}")
    with pytest.raises(IchError, match=r"is of another version \(KeyError: 'results'\); pack the data set again"):
        notebook.open_pack(Path("out"))
    Path("out", notebook.MANIFEST).unlink()
    with pytest.raises(IchError, match=r"which lists the content of the data set, cannot be read"):
        notebook.open_pack(Path("out"))


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
    found = notebook.find_competition(tmp_path)
    assert found == (archive / "stage_2_test", archive / "stage_2_sample_submission.csv")
    assert listed
    assert not any("stage_2" in path for path in listed)
    (tmp_path / "again/stage_2_test").mkdir(parents=True)
    with pytest.raises(IchError, match=r"found .*stage_2_test, .*stage_2_test; attach the competition's data .*, once"):
        notebook.find_competition(tmp_path)


def write_script(root, code):
    (root / "code/scripts").mkdir(parents=True, exist_ok=True)
    (root / "code/scripts/a.py").write_text(code)
    return notebook.Pack(root, {}, {}, [])


def test_a_step_runs_with_the_packed_code_in_the_working_folder(tmp_path, capsys):
    code = "import os, sys\nprint(os.getcwd(), os.environ['PYTHONPATH'], *sys.argv[1:])\nprint('told', file=sys.stderr)"
    ready = []
    step = notebook.Step("a.py", ["b c", "d"], lambda: ready.append(True))
    notebook.run(step, write_script(tmp_path, code), tmp_path / "work")
    assert ready == [True]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "$ a.py 'b c' d"
    assert set(lines[1:]) == {f"{tmp_path}/work {tmp_path}/code/src b c d", "told"}


def test_a_step_that_fails_ends_the_notebook(tmp_path):
    packed = write_script(tmp_path, "import sys; sys.exit(3)")
    with pytest.raises(IchError, match=r"a.py ended with status 3; its error stands above"):
        notebook.run(notebook.Step("a.py", []), packed, tmp_path)


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
def test_the_notebook_runs_without_network(tmp_path, monkeypatch):
    """Its script, with a simulated archive as Kaggle mounts it, whose train slices nobody can read.

    Of packages all is there, so that nothing is installed into the environment of the tests.
    """
    monkeypatch.chdir(tmp_path)
    write_archive(
        Path("a.zip"), draw_plan(patients=8, test_patients=2, size=64, min_slices=6, max_slices=8, bleed_factor=6.0)
    )
    content = {
        "name": "tiny",
        "data": {"sources": "a.zip", "images": "images"},
        "preprocess": {"windows": ["brain", "subdural", "bone"], "size": 32},
        "folds": {"n": 2},
        "model": {"name": "small_cnn", "weights": None, "neighbours": [-1, 0, 1]},
        "train": {"epochs": 1, "batch_size": 16},
        "machine": {"jobs": 1, "workers": 1},
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(content))
    script("preprocess.py", "tiny.yaml", "--max-failures", "1")
    script("make_folds.py", "tiny.yaml")
    script("train_kfold.py", "tiny.yaml")
    script("predict.py", "runs/tiny", "--set", "predict.tta=[none, flip]")
    have = ",".join(line.partition("=")[0].partition(">")[0] for line in (ROOT / "requirements.txt").open())
    script("pack_for_kaggle.py", "runs/tiny", "--id", "jane/ich-tiny", "--out", "in/ich/v1", "--have", have)
    with zipfile.ZipFile("a.zip") as archive:
        archive.extractall("in/rsna")
    train = list(Path("in/rsna", FOLDER, "stage_2_train").iterdir())
    for path in train:
        path.write_bytes(b"")
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    places = {"ICH_INPUT": "in", "ICH_WORK": "work", "ICH_OUT": "made"}
    environment = os.environ | closed | {key: str(tmp_path / value) for key, value in places.items()}
    subprocess.run([sys.executable, NOTEBOOK.with_suffix(".py")], check=True, env=environment, cwd=tmp_path / "in")
    before, after = (read_predictions(Path(p, "runs/tiny/predictions_test.parquet")) for p in (".", "work"))
    pd.testing.assert_frame_equal(after, before, check_exact=True)
    assert len(pd.read_csv("made/submission.csv")) == 6 * len(after)
    assert train
    assert not Path("work/images/images/train").exists()
