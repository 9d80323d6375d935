"""The real scripts, one after the other, on a tiny simulated archive; and what they say to input that is wrong."""

import html
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import cv2
import pandas as pd
import pytest
import yaml
from scipy.special import expit

from ich import cli
from ich.competition.folds import read_folds
from ich.competition.labels import LABELS, read_ids, read_labels
from ich.images import slice_table
from ich.results.predictions import read_predictions, read_provenance, write_predictions
from ich.synthetic.archive import FOLDER, write_archive
from ich.synthetic.plan import draw_plan

pytestmark = pytest.mark.usefixtures("eager")

SCRIPTS = Path(__file__).parents[1] / "scripts"
ARCHIVE = "archive.zip"


def script(name: str) -> Callable[[list[str]], None]:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write_config(path: Path = Path("tiny.yaml"), **sections) -> str:
    content = {
        "name": "tiny",
        "data": {"sources": ARCHIVE, "images": "images"},
        "preprocess": {"windows": ["brain", "subdural", "bone"], "size": 32},
        "folds": {"n": 2},
        "model": {"name": "small_cnn", "weights": None},
        "train": {"epochs": 1, "batch_size": 16},
        "machine": {"jobs": 1, "workers": 1},
    }
    path.write_text(yaml.safe_dump(content | sections))
    return str(path)


def files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archive") / ARCHIVE
    # Eight train patients are the fewest that show all oddities of the competition's files.
    write_archive(path, draw_plan(patients=8, test_patients=2, size=64, min_slices=6, max_slices=8, bleed_factor=6.0))
    return path


@pytest.fixture(scope="module")
def finished(archive, tmp_path_factory) -> Path:
    """A folder in which every stage has run."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(archive, folder / ARCHIVE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_all()
    return folder


@pytest.fixture
def workdir(archive, tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, with the archive."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(archive, tmp_path / ARCHIVE)
    return tmp_path


def preprocess(config: str) -> None:
    script("preprocess")([config, "--max-failures", "1"])  # the archive has one slice that is cut


def run_all(config: str | None = None) -> None:
    config = config or write_config()
    preprocess(config)
    for stage in ("make_folds", "train_kfold"):
        script(stage)([config])
    for stage in ("predict", "make_submission"):
        script(stage)(["runs/tiny"])


def test_every_slice_arrives_once_with_its_own_label_in_one_fold(finished):
    with zipfile.ZipFile(finished / ARCHIVE) as source:
        names = [Path(n) for n in source.namelist() if n.endswith(".dcm")]
        truth, _ = read_labels(source.open(f"{FOLDER}/stage_2_train.csv"))
    table = pd.read_parquet(finished / "images" / "slices.parquet").set_index("SOPInstanceUID")
    assert sorted(table.index) == sorted(n.stem for n in names)
    assert (
        table["split"] == pd.Series({n.stem: n.parent.name.removeprefix("stage_2_") for n in names})[table.index]
    ).all()
    readable = table[table["status"] == "ok"]
    assert {str(p.relative_to(finished / "images")) for p in finished.glob("images/*/*.png")} == set(readable["path"])
    assert table.loc[table["status"] != "ok", "status"].tolist() == ["truncated"]

    folds = pd.read_csv(finished / "images" / "folds.csv", index_col=0)
    assert sorted(folds.index) == sorted(readable.index[readable["split"] == "train"])
    pd.testing.assert_frame_equal(folds[list(LABELS)], truth.loc[folds.index].astype("int64"), check_names=False)
    assert folds.groupby("PatientID")["fold"].nunique().max() == 1

    oof = pd.read_parquet(finished / "runs" / "tiny" / "oof.parquet")
    assert oof.index.equals(folds.index)
    for k in (0, 1):
        part = pd.read_parquet(finished / "runs" / "tiny" / f"fold{k}" / "oof.parquet")
        assert set(part.index) == set(folds.index[folds["fold"] == k])
        assert (oof.loc[part.index] == part).all(axis=None)


def test_the_submission_has_the_rows_of_the_sample_and_the_mean_of_the_folds(finished):
    with zipfile.ZipFile(finished / ARCHIVE) as source:
        rows, images = read_ids(io.BytesIO(source.read(f"{FOLDER}/stage_2_sample_submission.csv")))
    submission = pd.read_csv(finished / "submissions" / "tiny.csv")
    assert submission["ID"].tolist() == rows.tolist()
    assert submission["Label"].between(0, 1).all()
    run = finished / "runs" / "tiny"
    folds = [pd.read_parquet(run / f"fold{k}" / "passes" / "test-none.parquet") for k in (0, 1)]
    mean = (expit(folds[0]) + expit(folds[1])) / 2
    assert submission["Label"].to_numpy() == pytest.approx(mean.loc[images].to_numpy().ravel(), abs=1e-6)
    manifest = json.loads((finished / "submissions" / "tiny.json").read_text())
    assert manifest["rows"] == len(rows)
    assert (
        manifest["out_of_fold_weighted_log_loss"] == json.loads((run / "score.json").read_text())["weighted_log_loss"]
    )


def test_a_second_run_converts_trains_and_predicts_nothing(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    before = files(finished)
    run_all("tiny.yaml")
    rewritten = {name for name, changed in files(finished).items() if before.get(name) != changed}
    summaries = {
        "images/folds.csv",
        "runs/tiny/oof.parquet",
        "runs/tiny/score.json",
        "runs/tiny/predictions_test.parquet",
    }
    assert rewritten <= summaries | {"submissions/tiny.csv", "submissions/tiny.json"}


def test_a_score_no_better_than_the_prevalence_is_said(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    for k in (0, 1):  # as sure as can be of the contrary
        path = Path(f"runs/tiny/fold{k}/oof.parquet")
        oof, provenance = read_predictions(path), read_provenance(path)
        truth = read_folds("images/folds.csv").loc[oof.index, list(LABELS)]
        write_predictions(0.99 - 0.98 * truth, path, provenance)
    for name, argument in (("train_kfold", "tiny.yaml"), ("predict", "runs/tiny"), ("make_submission", "runs/tiny")):
        script(name)([argument])
        said = capsys.readouterr().err
        assert "warning: runs/tiny scores 4.6052 out of fold, no better than the prevalence baseline, 0." in said, name
    (warning,) = json.loads(Path("submissions/tiny.json").read_text())["warnings"]
    assert f"warning: {warning}" in said


def test_conversion_and_folds_leave_pictures_and_stand_without(workdir, capsys):
    config = write_config()
    sheet, chart = Path("images/contact_sheet.png"), Path("images/folds.png")

    def fails(figure, path):
        raise ZeroDivisionError("what nobody foresaw")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ich.report.pictures.save", fails)
        preprocess(config)
        script("make_folds")([config])
    said = capsys.readouterr().err
    assert f"warning: {sheet} was not drawn (ZeroDivisionError" in said
    assert f"warning: {chart} was not drawn (ZeroDivisionError" in said
    assert not sheet.exists()
    assert not chart.exists()
    times = []
    for _ in range(2):
        preprocess(config)
        script("make_folds")([config])
        times.append([path.stat().st_mtime_ns for path in (sheet, chart)])
    assert times[0] == times[1]  # drawn once
    assert cv2.imread(str(sheet)).shape[1] > 700
    assert cv2.imread(str(chart)).std() > 10


def test_a_fold_trained_anew_leaves_nothing_of_its_earlier_model(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    run = Path("runs/tiny")
    for name in ("model.keras", "oof.parquet"):
        (run / "fold0" / name).unlink()
    assert "lacks fold(s) 0" in complaint("predict", str(run))
    script("train")(["tiny.yaml", "--fold", "0"])
    assert not (run / "fold0" / "passes" / "test-none.parquet").exists()
    assert (run / "fold1" / "passes" / "test-none.parquet").exists()
    assert not (run / "score.json").exists()
    assert "is missing; run scripts/predict.py runs/tiny" in complaint("make_submission", str(run))
    script("predict")([str(run)])
    script("make_submission")([str(run)])
    assert (run / "score.json").exists()


def test_a_run_predicts_to_another_folder_and_writes_beside_itself_nothing(finished, tmp_path, monkeypatch):
    run = finished / "runs" / "tiny"
    before = files(run)
    monkeypatch.chdir(tmp_path)
    assert "images/slices.parquet does not exist" in complaint("predict", str(run), "--out", "out/tiny")
    images = f"data.images={finished / 'images'}"
    script("predict")([str(run), "--out", "out/tiny", "--set", images, "--set", "machine.workers=2"])
    sources = f"data.sources={finished / ARCHIVE}"
    script("make_submission")(["out/tiny", "--set", sources])
    assert (tmp_path / "submissions" / "tiny.csv").read_bytes() == (finished / "submissions" / "tiny.csv").read_bytes()
    assert files(run) == before


def test_passes_at_test_time_reach_the_submission_and_its_manifest(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished)
    run = Path("runs/tiny")
    before = files(run)
    passes = ["--set", "predict.tta=[none, flip]", "--set", "predict.mean=logit"]
    script("predict")([str(run), "--out", str(tmp_path / "tiny"), *passes])
    script("make_submission")([str(tmp_path / "tiny"), "--out", str(tmp_path)])
    manifest = json.loads((tmp_path / "tiny.json").read_text())
    assert (manifest["predictions"]["tta"], manifest["predictions"]["mean"]) == (["none", "flip"], "logit")
    score = json.loads((tmp_path / "tiny" / "score.json").read_text())
    assert manifest["out_of_fold_weighted_log_loss"] == score["weighted_log_loss"] != score["plain_weighted_log_loss"]
    assert manifest["missing"] == {"policies": ["refuse"], "filled": {}}
    config = (tmp_path / "tiny" / "config.yaml").read_bytes()
    assert manifest["config_sha256"] == sha256(config).hexdigest()
    assert manifest["config"]["predict"]["tta"] == ["none", "flip"]
    assert (tmp_path / "tiny.csv").read_bytes() != (finished / "submissions" / "tiny.csv").read_bytes()
    assert files(run) == before
    # Out of fold in one way and on the test set in another is no result.
    shutil.copy(run / "predictions_test.parquet", tmp_path / "tiny")
    assert "were made in two ways (tta:" in complaint("make_submission", str(tmp_path / "tiny"))


@pytest.fixture(scope="module")
def further(finished, tmp_path_factory) -> Path:
    """A folder with another pass of the run, a second stage on it, a blend of both, and their submissions."""
    folder = tmp_path_factory.mktemp("further") / "home"
    shutil.copytree(finished, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        script("predict")(["runs/tiny", "--set", "predict.tta=[none, flip]"])
        script("train_sequence")(["runs/tiny", "--set", "sequence.kind=linear"])
        script("blend")(["runs/tiny", "runs/tiny-sequence", "--out", "runs/blend", "--method", "mean"])
        for result in ("runs/tiny-sequence", "runs/blend"):
            script("make_submission")([result])
    return folder


@pytest.fixture
def home(further, tmp_path, monkeypatch) -> Path:
    """The same, to spoil."""
    shutil.copytree(further, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


FLIPPED = {"tta": ["none", "flip"], "mean": "probability"}


def test_the_passes_stay_until_others_are_named_and_who_was_made_of_them_is_named_then(home, capsys):
    run = Path("runs/tiny")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    script("predict")(["runs/tiny"])
    said = capsys.readouterr()
    assert "passes: none, flip; mean of the folds' probability (as the run has it; --set predict." in said.out
    assert "was made of" not in said.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    script("predict")(["runs/tiny-sequence"])  # which would refuse another first stage
    for stage, more in {"train": ["--fold", "1"], "train_kfold": []}.items():  # which would not predict again
        message = complaint(stage, "tiny.yaml", *more, "--set", "predict.tta=none")
        assert f"of runs/tiny is trained and predicted by {FLIPPED}, not" in message
        script(stage)(["tiny.yaml", *more])
    capsys.readouterr()
    script("predict")(["runs/tiny", "--set", "predict.tta=none"])
    said = capsys.readouterr()
    for name in ("runs/tiny-sequence", "runs/blend"):
        assert f"warning: {name} was made of the predictions that these replace ({FLIPPED})" in said.err
    assert "passes: none; mean of the folds' probability\n" in said.out
    plain = {"tta": ["none"], "mean": "probability"}
    assert f"other scores (runs/tiny: {FLIPPED} then, {plain} now); give" in complaint("predict", "runs/tiny-sequence")
    script("predict")(["runs/tiny"])
    assert "passes: none; mean of the folds' probability (as" in capsys.readouterr().out


def test_the_passes_stay_in_another_folder_too(home, capsys):
    there = ["runs/tiny", "--out", "out"]
    script("predict")([*there, "--set", "predict.tta=none", "--set", "predict.mean=logit"])
    script("predict")(there)
    assert capsys.readouterr().out.count("passes: none; mean of the folds' logit") == 2
    script("predict")([*there, "--set", "predict.tta=flip"])
    assert "passes: flip; mean of the folds' logit" in capsys.readouterr().out
    script("extract_features")([*there, "--set", "predict.tta=none"])
    script("extract_features")(there)
    assert capsys.readouterr().out.count("passes: none; mean of their logit") == 2
    assert yaml.safe_load(Path("runs/tiny/config.yaml").read_text())["predict"]["mean"] == "probability"


def test_the_manifests_name_the_passes_of_what_a_result_was_made_of(further):
    text = {name: json.loads((further / f"submissions/{name}.json").read_text()) for name in ("tiny-sequence", "blend")}
    assert text["tiny-sequence"]["predictions"]["passes"] == {"runs/tiny": FLIPPED}
    of_blend = {"runs/tiny": FLIPPED, "runs/tiny-sequence": {"runs/tiny": FLIPPED}}
    assert text["blend"]["predictions"]["passes"] == of_blend
    assert text["blend"]["commands"][-2:] == [
        "python scripts/blend.py runs/tiny runs/tiny-sequence --out runs/blend --method mean",
        "python scripts/make_submission.py runs/blend",
    ]


def test_images_of_other_slices_never_replace_a_runs_own_predictions(home):
    other = Path("elsewhere")
    shutil.copytree("images", other)
    table = slice_table.read_table(other / "slices.parquet")
    slice_table.write_table(table[table["split"] == "train"].assign(split="test"), other / "slices.parquet")
    before = files(home / "runs")
    for stage, more in {"predict": [], "extract_features": [], "train_sequence": ["--name", "new"]}.items():
        message = complaint(stage, "runs/tiny", *more, "--set", "data.images=elsewhere")
        assert "elsewhere holds other train slices than runs/tiny is of, whose results they would replace" in message
    slice_table.write_table(
        table[table["SOPInstanceUID"] != table.loc[table["split"] == "test", "SOPInstanceUID"].iloc[0]],
        other / "slices.parquet",
    )
    for run in ("runs/tiny", "runs/tiny-sequence"):
        message = complaint("predict", run, "--set", "data.images=elsewhere", "--set", "data.folds=images/folds.csv")
        assert f"elsewhere holds other test slices than {run} is of" in message
    assert files(home / "runs") == before
    script("predict")(["runs/tiny", "--set", "data.images=elsewhere", "--out", "out"])
    assert len(pd.read_parquet("out/predictions_test.parquet")) + 1 == (table["split"] == "test").sum()
    shutil.rmtree(other)
    Path("images").rename("moved")  # which are the same slices
    script("predict")(["runs/tiny", "--set", "data.images=moved"])


def test_of_several_results_the_best_is_submitted(further, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(further)
    results = ["runs/tiny", "runs/tiny-sequence", "runs/blend"]
    best = min(results, key=lambda path: json.loads(Path(path, "score.json").read_text())["weighted_log_loss"])
    script("make_submission")([*results, "--name", "best", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert f"submitted: {best}, " in printed
    assert (
        f"next:  kaggle competitions submit -c rsna-intracranial-hemorrhage-detection -f {tmp_path}/best.csv" in printed
    )
    manifest = json.loads((tmp_path / "best.json").read_text())
    assert manifest["run"] == best
    assert manifest["commands"][-1].startswith(f"python scripts/make_submission.py {' '.join(results)} --name best")
    assert any("blend.py" in command for command in manifest["commands"])  # on which the choice depends
    probabilities = read_predictions(Path(best, "predictions_test.parquet"))
    labels = pd.read_csv(tmp_path / "best.csv", index_col="ID")["Label"]
    for id, row in probabilities.iterrows():
        assert labels[f"{id}_any"] == pytest.approx(row["any"], abs=1e-6)


def commands_of(report: Path) -> list[list[str]]:
    """Those that a report lists: the script's name, and what it is given."""
    text = re.search(r"<h3>Commands</h3>\s*<pre>(.*?)</pre>", report.read_text(), re.DOTALL)[1]
    given = [shlex.split(line) for line in html.unescape(text).splitlines()]
    assert {words[0] for words in given} == {"python"}
    return [[Path(words[1]).stem, *words[2:]] for words in given]


def test_the_commands_of_a_report_given_again_make_the_same_files(further, tmp_path, monkeypatch):
    monkeypatch.chdir(further)
    script("report")(["runs/blend"])
    given = commands_of(Path("runs/blend/report.html"))
    stages = ["preprocess", "make_folds", "train_kfold", "predict", "predict", "train_sequence", "blend", "report"]
    assert [stage for stage, *_ in given] == stages
    for name in (ARCHIVE, "tiny.yaml"):
        shutil.copy(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    for stage, *arguments in given:
        script(stage)(arguments)
    actual, expected = ({name for name in files(folder) if "cache" not in name} for folder in (tmp_path, further))
    assert expected - actual == {
        f"submissions/{n}.{s}" for n in ("tiny", "tiny-sequence", "blend") for s in ("csv", "json")
    }
    assert actual <= expected
    for name in actual:
        if name.endswith(".parquet"):
            pd.testing.assert_frame_equal(*(pd.read_parquet(folder / name) for folder in (tmp_path, further)))
        elif name.endswith((".csv", ".png")) and not name.endswith(("curves.png", "history.csv")):
            assert (tmp_path / name).read_bytes() == (further / name).read_bytes(), name


def test_a_test_slice_that_cannot_be_read_is_filled_in_by_a_policy_alone(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    path = Path("images/slices.parquet")
    table = slice_table.read_table(path)
    lost = table.loc[table["split"] == "test", "SOPInstanceUID"].iloc[2]
    table.loc[table["SOPInstanceUID"] == lost, "status"] = "truncated"
    slice_table.write_table(table, path)
    script("predict")(["runs/tiny"])
    assert f"asks for {lost}, which have no predictions" in complaint("make_submission", "runs/tiny")
    for name in ("../tiny", "", "a/b"):
        assert f"--name {name!r} is no name of a file" in complaint("make_submission", "runs/tiny", "--name", name)
    script("make_submission")(["runs/tiny", "--missing", "series_mean", "--missing", "prevalence"])
    manifest = json.loads(Path("submissions/tiny.json").read_text())
    assert manifest["missing"] == {
        "policies": ["series_mean", "prevalence"],
        "filled": {"series_mean": 1, "prevalence": 0},
    }
    assert lost not in Path("submissions/tiny.json").read_text()  # git takes the manifest
    assert Path("submissions/tiny.filled.csv").read_text() == f"SOPInstanceUID,policy\n{lost},series_mean\n"
    assert manifest["rows"] == 6 * (table["split"] == "test").sum()


def complaint(stage: str, *arguments: str) -> str:
    """What the script says on its way out with status 1."""
    with pytest.raises(SystemExit) as exit:
        cli.run(lambda: script(stage)(list(arguments)))
    assert isinstance(exit.value.code, str)
    assert exit.value.code.startswith("error: ")
    return exit.value.code


def new_zip(path: str, keep: Callable[[str], bool] = lambda name: True, **changed: str) -> str:
    """The archive once more, with some members left out or changed."""
    with zipfile.ZipFile(ARCHIVE) as source, zipfile.ZipFile(path, "w") as target:
        for name in filter(keep, source.namelist()):
            target.writestr(name, changed.get(Path(name).stem, source.read(name)))
    return path


def test_a_missing_source_is_reported_and_nothing_written(workdir):
    config = write_config(data={"sources": "nowhere", "images": "images"})
    assert "nowhere does not exist" in complaint("preprocess", config)
    assert not (workdir / "images").exists()


def test_an_archive_without_slices_is_reported_and_nothing_written(workdir):
    empty = new_zip("empty.zip", keep=lambda name: name.endswith(".csv"))
    config = write_config(data={"sources": empty, "images": "images"})
    assert "empty.zip holds no .dcm, .dicom, .dic or .ima files" in complaint("preprocess", config)
    assert not (workdir / "images").exists()


def test_a_misspelt_key_is_reported_by_its_path(workdir):
    config = write_config(preprocess={"windos": ["brain"]})
    message = complaint("preprocess", config)
    assert "preprocess.windos is no known key; there are windows, size, fit" in message
    assert not (workdir / "images").exists()


def test_labels_and_slices_that_do_not_belong_together_are_reported(workdir):
    config = write_config()
    preprocess(config)
    with zipfile.ZipFile(ARCHIVE) as source:
        lines = source.read(f"{FOLDER}/stage_2_train.csv").decode().splitlines()
    first = lines[1].rpartition("_")[0]
    Path("less.csv").write_text("\n".join([lines[0], *(line for line in lines[1:] if not line.startswith(first))]))
    Path("more.csv").write_text("\n".join([*lines, *(f"ID_feed_{label},0" for label in LABELS)]))
    images = {"sources": ARCHIVE, "images": "images"}
    assert f"1 slice(s) without a label: {first}" in complaint("make_folds", config, "--set", "data.labels=less.csv")
    assert "1 label(s) without a slice: ID_feed" in complaint("make_folds", config, "--set", "data.labels=more.csv")
    message = complaint("make_folds", config, "--set", "data.labels=less.csv", "--set", "data.sources=other.zip")
    assert "--set data.sources has no effect beside data.labels=less.csv" in message
    assert not (workdir / "images" / "folds.csv").exists()
    script("make_folds")([write_config(data=images | {"labels": "less.csv"}, folds={"n": 2, "allow_unmatched": True})])
    assert first not in (workdir / "images" / "folds.csv").read_text()


def test_one_patient_cannot_be_folded(workdir):
    preprocess(write_config())
    table = pd.read_parquet("images/slices.parquet")
    rows = (
        table[(table["split"] == "train") & (table["status"] == "ok")]
        .groupby("PatientID")
        .get_group(table.loc[table["status"] == "ok", "PatientID"].iloc[-1])
    )
    alone = new_zip("alone.zip", keep=lambda name: Path(name).stem in set(rows["SOPInstanceUID"]) | {"stage_2_train"})
    config = write_config(data={"sources": alone, "images": "alone"}, folds={"n": 5, "allow_unmatched": True})
    preprocess(config)
    assert "1 patient is too few for 5 folds" in complaint("make_folds", config)
    assert not (workdir / "alone" / "folds.csv").exists()


def test_a_run_of_another_config_is_refused_with_the_difference(finished, monkeypatch):
    monkeypatch.chdir(finished)
    before = files(finished)
    message = complaint("train_kfold", "tiny.yaml", "--set", "train.epochs=2")
    assert "runs/tiny belongs to another config" in message
    assert "train.epochs: 1 / 2" in message
    assert files(finished) == before


def test_images_of_other_settings_are_refused(finished, monkeypatch):
    monkeypatch.chdir(finished)
    before = files(finished)
    for stage in ("preprocess", "make_folds"):
        message = complaint(stage, "tiny.yaml", "--set", "preprocess.size=48")
        assert "size: 32 there, 48 here" in message
    assert files(finished) == before


def test_a_sample_submission_of_other_slices_is_refused(finished, monkeypatch, tmp_path):
    monkeypatch.chdir(finished)
    other = tmp_path / "other.csv"
    other.write_text("ID,Label\n" + "".join(f"ID_feed_{label},0.5\n" for label in LABELS))
    config = yaml.safe_load(Path("runs/tiny/config.yaml").read_text())
    config["data"]["sample_submission"] = str(other)
    run = tmp_path / "run"
    shutil.copytree("runs/tiny", run)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    message = complaint("make_submission", str(run), "--out", str(tmp_path / "out"))
    assert "asks for ID_feed, which have no predictions" in message
    assert not (tmp_path / "out").exists()
    message = complaint("make_submission", str(run), "--set", "data.sources=other.zip")
    assert f"--set data.sources has no effect beside data.sample_submission={other}" in message


def test_a_mistake_leaves_no_run_that_would_refuse_the_corrected_config(finished, monkeypatch):
    monkeypatch.chdir(finished)
    wrong = {"model.name=resnet": "no model is called 'resnet'", "folds.n=3": "has 2 folds, the config 3"}
    wrong |= {"train.loss=dice": "no loss is called 'dice'"}
    wrong |= {"train.augment=hevy": "no augmentation is called 'hevy'", "model.weights=a.h5": "a.h5 are no file"}
    for override, expected in wrong.items():
        assert expected in complaint("train", "tiny.yaml", "--fold", "0", "--set", "name=new", "--set", override)
        assert not (finished / "runs" / "new").exists()


def test_what_is_not_there_yet_is_reported_with_the_script_that_makes_it(workdir):
    config = write_config()
    assert "run scripts/preprocess.py" in complaint("make_folds", config)
    assert "scripts/make_folds.py" in complaint("train", config, "--fold", "0")
    assert "runs/tiny does not exist" in complaint("predict", "runs/tiny")
    assert not (workdir / "runs").exists()


@pytest.mark.real
def test_the_real_sample_goes_the_whole_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = next(Path(os.environ["RSNA_SAMPLE"]).glob("*.zip"))
    run_all(write_config(data={"sources": str(sample), "images": "images"}))
    with zipfile.ZipFile(sample) as source:
        members = {Path(name).name: name for name in source.namelist()}
        truth, _ = read_labels(io.BytesIO(source.read(members["stage_2_train.csv"])))
        rows, _ = read_ids(io.BytesIO(source.read(members["stage_2_sample_submission.csv"])))
    table = pd.read_parquet("images/slices.parquet")
    assert set(table["status"]) == {"ok"}
    assert sorted(table["SOPInstanceUID"]) == sorted(Path(name).stem for name in members if name.endswith(".dcm"))
    folds = pd.read_csv("images/folds.csv", index_col=0)
    assert sorted(folds.index) == sorted(truth.index)
    assert (folds[list(LABELS)] == truth.loc[folds.index]).all(axis=None)
    assert folds.groupby("PatientID")["fold"].nunique().max() == 1
    assert pd.read_csv("submissions/tiny.csv")["ID"].tolist() == rows.tolist()
