"""Exported models: on their own they predict as the result does, and hold nothing of the training's data."""

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import in_use
from made_results import home_of, script
from made_scans import head

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.files import sha256_of
from ich.own_scans import export, model_card, onnx_files, predictor, scores
from ich.own_scans.model_spec import CARD, MANIFEST, read_model
from ich.own_scans.predictor import Slices

pytestmark = pytest.mark.usefixtures("eager")

RESULTS = ("tiny", "tiny-sequence", "mixed")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return home_of(tmp_path_factory)


@pytest.fixture(scope="module")
def exported(home, tmp_path_factory):
    """An export of each result, and what the result predicts of a scan; the script makes the blend's."""
    folder = tmp_path_factory.mktemp("models")
    expected = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name in RESULTS:
            expected[name] = predicted(read_model(Path("runs") / name))
            if name != "mixed":
                export.export_model(Path("runs") / name, folder / name)
        script("export_model.py", home / "runs/mixed", "--out", folder / "mixed", "--zip")
    return folder, expected


@pytest.fixture
def model(exported, tmp_path):
    """A copy of the exported blend, to spoil."""
    return Path(shutil.copytree(exported[0] / "mixed", tmp_path / "mixed"))


def predicted(spec):
    hu = list(head(8, 64))
    return predictor.Predictor(spec)(Slices([str(k) for k in range(8)], 5.0 * np.arange(8), np.arange(8), hu))


def rewrite(model, change):
    content = json.loads((model / MANIFEST).read_text())
    change(content)
    (model / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize("name", RESULTS)
def test_on_its_own_it_predicts_the_same(home, exported, tmp_path, monkeypatch, name):
    folder, expected = exported
    shutil.move(shutil.copytree(folder / name, tmp_path / "copy"), tmp_path / "elsewhere")
    home.rename(hidden := home.with_name("hidden"))
    try:
        monkeypatch.chdir(tmp_path)
        spec = read_model(Path("elsewhere"))
        assert all(path.resolve().is_relative_to(tmp_path) for path in spec.files().values())
        actual = predicted(spec)
    finally:
        hidden.rename(home)
    np.testing.assert_allclose(actual.probabilities, expected[name].probabilities, atol=1e-6)
    assert actual.probabilities.std() > 1e-3
    assert spec.digest() == read_model(home / "runs" / name).digest()  # predictions continue with either


def unpacked(path):
    """The bytes of a file, and of what it holds if it is a zip, at any depth."""
    yield path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def test_nothing_of_the_training_data_goes_along(home, exported):
    """Neither identifiers of slices, series or patients, nor paths, nor whole columns of predictions."""
    folds = pd.read_csv(home / "images/folds.csv")
    slices = pd.read_parquet(home / "images/slices.parquet")
    names = {str(value) for table in (folds, slices) for column in table for value in table[column] if "UID" in column}
    names |= set(folds["PatientID"]) | set(slices["SeriesInstanceUID"])
    private = [str(home), str(home.resolve()), str(Path(__file__).parents[2]), "/home/", "ID_", "folds.csv", "oof"]
    pattern = re.compile(b"|".join(re.escape(text.encode()) for text in [*names, *private]))
    assert len(names) > 100
    for name in RESULTS:
        for path in (exported[0] / name).rglob("*"):
            assert path.is_dir() or path.name in (MANIFEST, CARD) or path.parent.name.startswith("fold")
            for content in unpacked(path) if path.is_file() else ():
                assert not (match := pattern.search(content)), (path, match)


def test_the_card_tells_scores_thresholds_and_the_license(home, exported):
    card = (exported[0] / "mixed" / CARD).read_text()
    folds = pd.read_csv(home / "images/folds.csv")
    spec = read_model(exported[0] / "mixed")
    assert f"{len(folds):,} slices of {folds['PatientID'].nunique():,} patients, in 3 folds" in card
    assert f"Weighted log loss {spec.out_of_fold['weighted_log_loss']:.4f}" in card
    for said in ("not a medical device", "non-commercial", "ryai.2020190211", "position in the scan", "blend of tiny,"):
        assert said in card
    any_at = spec.thresholds["any"]["specificity"]
    assert any_at["specificity"] >= 0.9
    assert f"{any_at['threshold']:.6g}" in card
    assert list(spec.thresholds) == list(LABELS)
    assert spec.out_of_fold["runs"].keys() == {"tiny", "tiny-sequence"}


def test_the_card_tells_what_joined_the_training(home, monkeypatch):
    monkeypatch.chdir(home)
    spec, table = read_model(Path("runs/mixed")), pd.read_csv(home / "images/folds.csv")
    assert "beside it" not in model_card._trained(spec, table)
    joined = {"external": {"slices": 1234}, "pseudo": {"test_slices": 5678}}
    monkeypatch.setattr(model_card, "read_mapping", lambda path: joined)
    card = model_card._trained(spec, table)
    assert card.count("beside it") == 1
    assert (
        "| beside it, tiny | 1,234 slices of other scans, with labels and terms of their own; test slices, at most"
        in card
    )


def test_operating_points_are_the_outermost_thresholds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(2, 40))
        y, p = rng.integers(0, 2, n), rng.integers(0, 12, n) / 12
        points = scores.operating_points(y, p)
        rates = {t: ((p >= t)[y == 1].mean(), (p < t)[y == 0].mean()) for t in set(p)} if 0 < y.sum() < n else {}
        for name, best, place in (("sensitivity", max, 0), ("specificity", min, 1)):
            allowed = [t for t, rate in rates.items() if rate[place] >= 0.9 - 1e-9]
            expected = None
            if allowed:
                threshold = best(allowed)
                expected = pytest.approx(
                    dict(zip(("threshold", "sensitivity", "specificity"), (threshold, *rates[threshold]), strict=True))
                )
            assert points[name] == expected


def test_a_zip_is_the_same_bytes_again_and_unpacks_to_the_model(exported, tmp_path):
    folder = exported[0]
    before = (folder / "mixed.zip").read_bytes()
    assert export.write_zip(folder / "mixed").read_bytes() == before
    with zipfile.ZipFile(folder / "mixed.zip") as archive:
        archive.extractall(tmp_path)
    assert read_model(tmp_path / "mixed").digest() == read_model(folder / "mixed").digest()
    with pytest.raises(IchError, match=r"mixed.zip is a zip; unpack it"):
        read_model(folder / "mixed.zip")
    shutil.copytree(folder / "mixed", tmp_path / "mine")
    (tmp_path / "mine.zip").write_bytes(b"somebody's")
    with pytest.raises(IchError, match="was not written by this command"):
        export.write_zip(tmp_path / "mine")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: (m / "tiny/fold1/model.keras").write_bytes(b"cut"), "is not what was exported"),
        (lambda m: (m / "tiny-sequence/fold0/linear.json").write_text("{}"), "is not what was exported"),
        (lambda m: (m / "tiny/fold1/model.keras").unlink(), "cannot read .*model.keras"),
        (lambda m: (m / MANIFEST).write_text("{"), "cannot be read"),
        (lambda m: rewrite(m, lambda c: c.pop("files")), "files are listed that cannot be"),
        (lambda m: rewrite(m, lambda c: c["files"].pop("tiny/fold0/model.keras")), "does not list tiny/fold0/model.k"),
        (lambda m: rewrite(m, lambda c: c["files"].update({"../x": "0"})), "files are listed that cannot be"),
        (lambda m: rewrite(m, lambda c: c["files"].update({"tiny/../x": "0"})), "files are listed that cannot be"),
        (lambda m: rewrite(m, lambda c: c["files"].update({"/etc/passwd": "0"})), "files are listed that cannot be"),
        (lambda m: rewrite(m, lambda c: c["files"].update({"tiny/fold0/more": "0"})), "cannot read .*more"),
        (lambda m: rewrite(m, lambda c: c["parts"].update({"..": c["parts"]["tiny"]})), "other characters"),
        (lambda m: rewrite(m, lambda c: c["parts"]["tiny"].update(folder="../tiny")), "parts lie in other folders"),
        (lambda m: rewrite(m, lambda c: c["parts"]["mixed"].update(of=["tiny", "big"])), "made of big, which is not"),
        (lambda m: rewrite(m, lambda c: c.update(result="big")), "there is no part big"),
        (lambda m: rewrite(m, lambda c: c.update(format=2)), "describes no model of this version"),
        (
            lambda m: rewrite(m, lambda c: c["parts"]["tiny-sequence"]["weights"].update({"../boosting": 0.5})),
            "describes no model of this version",
        ),
    ],
)
def test_what_is_not_as_exported_is_refused(model, spoil, message):
    read_model(model)
    spoil(model)
    with pytest.raises(IchError, match=message):
        read_model(model)


def test_an_export_replaces_nothing_but_an_export_of_the_same_result(home, model, monkeypatch):
    monkeypatch.chdir(home)
    result, out = Path("runs/mixed"), model
    (out / "tiny/fold0/model.keras").write_bytes(b"cut")
    (out.parent / ".ich-export-mixed.new").mkdir()  # by a killed export
    assert export.export_model(result, out).digest() == read_model(out).digest() == read_model(result).digest()
    assert sorted(path.name for path in out.parent.iterdir()) == ["mixed"]
    before = sha256_of(out / MANIFEST)
    with pytest.raises(IchError, match="is an export of mixed, not of tiny"):
        export.export_model(Path("runs/tiny"), out)
    (out / "notes.txt").write_text("somebody's")
    with pytest.raises(IchError, match=r"holds notes.txt beside the exported model"):
        export.export_model(result, out)
    (out.parent / "thesis").mkdir()
    (out.parent / "thesis/thesis.tex").write_text("years")
    with pytest.raises(IchError, match="not this program's"):
        export.export_model(result, out.parent / "thesis")
    with pytest.raises(IchError, match="holds a run, a second stage or a blend"):
        export.export_model(result, Path("runs/tiny"))
    with pytest.raises(IchError, match="is an exported model already"):
        export.export_model(out, out.parent / "again")
    with pytest.raises(IchError, match="has no name of its own"):
        export.export_model(result, Path(".."))
    assert sha256_of(out / MANIFEST) == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["mixed", "thesis"]


def test_a_failure_leaves_what_was_there(home, model, monkeypatch):
    monkeypatch.chdir(home)
    before = sha256_of(model / MANIFEST)
    with in_use(model.parent, name="export-mixed"), pytest.raises(IchError, match="is in use by process"):
        export.export_model(Path("runs/mixed"), model)

    def fail(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_json", fail)
    with pytest.raises(IchError, match=r"cannot write .*mixed: No space left"):
        export.export_model(Path("runs/mixed"), model)
    assert sha256_of(model / MANIFEST) == before
    assert [path.name for path in model.parent.iterdir()] == ["mixed"]


def test_an_export_that_a_kill_left_aside_is_there_again(home, model, monkeypatch):
    """Killed between its two renames, the next one fails: the earlier export must not be lost."""
    monkeypatch.chdir(home)
    before = sha256_of(model / MANIFEST)
    model.rename(model.parent / f".ich-export-{model.name}.old")

    def fail(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_json", fail)
    with pytest.raises(IchError, match="No space left"):
        export.export_model(Path("runs/mixed"), model)
    assert sha256_of(model / MANIFEST) == before
    assert [path.name for path in model.parent.iterdir()] == ["mixed"]


def test_a_result_without_its_folds_is_not_exported(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    (home / "images/folds.csv").rename(tmp_path / "folds.csv")
    try:
        with pytest.raises(IchError, match=r"folds.csv"):
            export.export_model(Path("runs/tiny"), tmp_path / "out")
    finally:
        (tmp_path / "folds.csv").rename(home / "images/folds.csv")
    assert list(tmp_path.iterdir()) == []


def test_onnx_files_predict_as_keras(home, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    monkeypatch.chdir(home)
    spec = read_model(Path("runs/tiny"))
    single_fold = spec.model_copy(update={"parts": {"tiny": spec.parts["tiny"].model_copy(update={"folds": 1})}})
    (tmp_path / "tiny/fold0").mkdir(parents=True)
    assert list(onnx_files.write(single_fold, tmp_path)) == ["tiny/fold0/model.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "tiny/fold0/model.onnx"))
    assert session.get_inputs()[0].shape[1:] == [64, 64, 3]

    class Wrong(onnxruntime.InferenceSession):
        def run(self, *arguments):
            return [super().run(*arguments)[0] + 1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    with pytest.raises(IchError, match="predicts other logits than Keras"):
        list(onnx_files.write(single_fold, tmp_path))


def test_without_the_package_onnx_is_refused(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(IchError, match=r"--onnx needs .* pip install 'ich\[onnx\]'"):
        export.export_model(home / "runs/tiny", tmp_path / "out", onnx=True)
    assert list(tmp_path.iterdir()) == []
