import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.own_scans import truth, validate, validation_page

SCRIPT = Path(__file__).parents[2] / "scripts/validate_scans.py"


def predict(folder, scans=24, seed=0, nifti=False, **content):
    """A folder of predictions of scans of four slices each, and the labels of its slices."""
    rng = np.random.default_rng(seed)
    y = (rng.random((scans, 4, 5)) < 0.06).astype(int)
    y = np.concatenate([y, y.max(axis=2, keepdims=True)], axis=2)
    p = np.clip(rng.normal(0.3, 0.15, y.shape) + 0.3 * y, 0.01, 0.99).round(6)
    rows = []
    for scan in range(scans):
        series = f"{scan + 49:03}" if nifti else f"1.2.{scan}"
        study = "" if nifti else f"1.{scan // 2}"
        for place in range(4):
            file = f"CQ500CT{scan} CQ500CT{scan}/CT{place:06}.dcm"
            rows.append([file, f"{series}.{place + 1}", series, study, 5.0 * place, place, *p[scan, place]])
    columns = ["file", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "z", "order", *LABELS]
    slices = pd.DataFrame(rows, columns=columns)
    folder.mkdir(parents=True)
    slices.to_csv(folder / "slices.csv", index=False)
    content = {"notice": "", "model": {"name": "gold", "out_of_fold": None}, "options": {}} | content
    (folder / "predictions.json").write_text(json.dumps(content))
    return slices, pd.DataFrame(y.reshape(-1, 6), slices.index, list(LABELS)), p


def write(path, keys, labels):
    labels.assign(**{keys.name: keys}).to_csv(path, index=False)
    return path


def test_scans_are_scored_by_their_highest_probability(tmp_path):
    slices, y, p = predict(tmp_path / "p")
    of_scans = y.groupby(slices["SeriesInstanceUID"]).max()
    given = of_scans.drop(index=["1.2.3"]).reset_index()
    given = pd.concat([given, given.iloc[:1].assign(SeriesInstanceUID="elsewhere")])
    path = write(tmp_path / "y.csv", given.pop("SeriesInstanceUID"), given)
    validation = validate.validate(tmp_path / "p", path, "plain")
    (level,) = validation.levels
    assert (level.unit, len(level.truth), level.patients) == ("scans", 23, 12)
    kept = [scan for scan in range(24) if scan != 3]
    for k, label in enumerate(LABELS):
        auc = roc_auc_score(of_scans.loc[[f"1.2.{scan}" for scan in kept], label], p[kept].max(axis=1)[:, k])
        assert level.scores[label]["auc"].value == pytest.approx(auc)
    assert validation.unlabeled == (1, ["1.2.3"])
    assert validation.unpredicted == (1, ["elsewhere"])
    assert any("told apart by StudyInstanceUID (12); two scans" in note for note in validation.notes)


def test_studies_of_several_series_count_once(tmp_path):
    slices, y, p = predict(tmp_path / "p")
    of_studies = y.groupby(slices["StudyInstanceUID"]).max().reset_index()
    path = write(tmp_path / "y.csv", of_studies.pop("StudyInstanceUID"), of_studies)
    validation = validate.validate(tmp_path / "p", path, "plain")
    (level,) = validation.levels
    assert (level.unit, len(level.truth)) == ("studies", 12)
    highest = pd.Series(p[..., 5].max(axis=1)).groupby(slices["StudyInstanceUID"][::4].to_numpy()).max()
    np.testing.assert_allclose(level.probabilities[:, 5], highest)
    assert any(note.startswith("12 studies are in several series") for note in validation.notes)


def test_labels_of_slices_are_scored_by_slice_and_by_scan(tmp_path):
    slices, y, p = predict(tmp_path / "p")
    y = y.astype(float)
    y.loc[[0, 1, 2, 3], "any"] = [0, 0, 0, np.nan]  # of which nobody knows whether the scan has a bleed
    y.loc[[4, 5, 6, 7], "any"] = [0, 1, np.nan, 0]  # of which everybody does
    y.loc[[8, 9, 10, 11], "any"] = 0  # one of which is not in the file
    path = write(tmp_path / "y.csv", slices["SOPInstanceUID"].drop(9), y.drop(9))
    validation = validate.validate(tmp_path / "p", path, "plain")
    of_slices, of_scans = validation.levels
    assert (of_slices.unit, of_scans.unit) == ("slices", "scans")
    known = y["any"].notna() & (y.index != 9)
    auc = roc_auc_score(y["any"][known], p[..., 5].ravel()[known])
    assert of_slices.scores["any"]["auc"].value == pytest.approx(auc)
    truth = dict(zip(sorted(slices["SeriesInstanceUID"].unique()), of_scans.truth[:, 5], strict=True))
    assert np.isnan([truth["1.2.0"], truth["1.2.2"]]).all()
    assert truth["1.2.1"] == 1
    assert truth["1.2.3"] == y["any"][12:16].max()
    assert validation.unlabeled == (1, ["1.2.2.2"])
    assert validation.unpredicted == (0, [])


def test_patients_are_those_of_patient_id_where_it_is(tmp_path):
    slices, y, _ = predict(tmp_path / "p")
    slices.assign(PatientID="P" + slices["StudyInstanceUID"].str[-1]).to_csv(tmp_path / "p/slices.csv", index=False)
    path = write(tmp_path / "y.csv", slices["SOPInstanceUID"], y)
    validation = validate.validate(tmp_path / "p", path, "plain")
    assert validation.levels[0].patients == 10
    assert "patients are told apart by PatientID (10)" in validation.notes


def test_slices_that_are_numbered_from_the_other_end_are_reported(tmp_path):
    slices, y, _ = predict(tmp_path / "p", scans=12, nifti=True)
    number = slices["SOPInstanceUID"].str.partition(".")[2].astype(int)
    table = y.drop(columns="any").rename(columns=str.capitalize)
    table["PatientNumber"] = slices["SeriesInstanceUID"].astype(int)
    for name, numbers in (("right", number), ("wrong", 5 - number)):
        table.assign(SliceNumber=numbers)[int(name == "wrong") :].to_csv(tmp_path / f"{name}.csv", index=False)
    right, wrong = (
        validate.validate(tmp_path / "p", tmp_path / f"{name}.csv", "ct-ich") for name in ("right", "wrong")
    )
    assert not any("from the other end" in note for note in right.notes)
    assert any("from the other end" in note for note in wrong.notes)
    assert not any("another number of labels" in note for note in right.notes)
    assert right.levels[0].scores["any"]["auc"].value > wrong.levels[0].scores["any"]["auc"].value
    assert right.levels[0].patients == 12  # of whom a volume is all that is known
    assert any("another number of labels than of slices read: 49" in note for note in wrong.notes)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["validate_scans.py"])
    runpy.run_path(str(SCRIPT))["main"](list(map(str, arguments)))


def test_the_script_writes_a_page_and_numbers(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "<b>p"
    score = {"weighted_log_loss": 0.061234, "by_label": {"any": 0.1}, "prevalence": {"any": 0.2}}
    slices, y, _ = predict(folder, model={"name": "gold", "digest": "d" * 64, "out_of_fold": score}, complete=False)
    reads = pd.DataFrame({"name": [f"CQ500-CT-{scan}" for scan in range(1, 25)]})
    of_scans = y.groupby(slices.index // 4).max()
    for reader in (1, 2, 3):
        for label, short in zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH"), strict=True):
            reads[f"R{reader}:{short}"] = [*of_scans[label][1:], 0]
            if label == "epidural":
                reads[f"R{reader}:{short}"] = 0
    reads.to_csv(tmp_path / "reads.csv", index=False)
    (folder / "validation.html").write_text("<title>Validation of another</title>")  # its own, which it replaces
    (folder / "validation.json").write_text('{"validation_of": {}}')
    run(monkeypatch, folder, tmp_path / "reads.csv", "--format", "cq500")
    said = capsys.readouterr()
    assert "23 scans of 12 patients" in said.out
    assert "the predictions are not complete" in said.out
    assert "1 scan(s) without a label were left out: 1.2.0\n" in said.err
    assert "1 label(s) without a prediction were left out: CQ500-CT-24\n" in said.err
    page = (folder / "validation.html").read_text()
    for text in (
        "&lt;b&gt;p",
        "none of the 23 have the label",
        "PMC10831525",
        "0.0612",
        "CQ500-CT-24",
        "data:image/svg",
    ):
        assert text in page, text
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")
    numbers = json.loads((folder / "validation.json").read_text(), parse_constant=pytest.fail)
    scans = numbers["levels"]["scans"]["labels"]
    assert scans["epidural"]["auc"]["value"] is None
    assert scans["epidural"]["auc"]["reason"] == "none of the 23 have the label"
    assert scans["any"]["auc"]["low"] <= scans["any"]["auc"]["value"] <= scans["any"]["auc"]["high"]
    assert numbers["out_of_fold"] == score
    assert numbers["without_prediction"] == {"count": 1, "first": ["CQ500-CT-24"]}
    for name in ("validation.html", "validation.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("mine")
        with pytest.raises(IchError, match="was not written by this command"):
            run(monkeypatch, folder, tmp_path / "reads.csv", "--format", "cq500", "--out", tmp_path / name)
        assert (tmp_path / name / name).read_text() == "mine"


def test_the_script_offers_every_format():
    assert runpy.run_path(str(SCRIPT))["_FORMATS"] == tuple(truth.FORMATS)


def test_a_level_of_one_class_has_a_page(tmp_path):
    predict(tmp_path / "p", scans=2)
    none = pd.DataFrame({"any": [0, 0]})
    path = write(tmp_path / "y.csv", pd.Series(["1.2.0", "1.2.1"], name="SeriesInstanceUID"), none)
    validation = validate.validate(tmp_path / "p", path, "plain")
    validation_page.write(validation, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "no label is given" in page
    assert "predictions.json has no out-of-fold score" in page
    assert "n/a" in validation_page.as_text(validation)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("slices.csv", None, "expected a folder that scripts/predict_scans.py wrote"),
        ("slices.csv", "file,any\n", "lacks the columns SOPInstanceUID"),
        ("slices.csv", "", "cannot be read"),
        ("predictions.json", None, "expected a folder that scripts/predict_scans.py wrote"),
        ("predictions.json", "[]", "says nothing of a model"),
    ],
)
def test_other_folders_are_refused(tmp_path, file, content, message):
    slices, y, _ = predict(tmp_path / "p")
    path = write(tmp_path / "y.csv", slices["SOPInstanceUID"], y)
    (tmp_path / "p" / file).unlink()
    if content is not None:
        (tmp_path / "p" / file).write_text(content)
    with pytest.raises(IchError, match=message):
        validate.validate(tmp_path / "p", path, "plain")


@pytest.mark.parametrize("value", ["", "1.5", "high"])
def test_what_is_no_probability_is_refused(tmp_path, value):
    slices, y, _ = predict(tmp_path / "p")
    slices["any"] = slices["any"].astype(object)
    slices.loc[5, "any"] = value
    slices.to_csv(tmp_path / "p/slices.csv", index=False)
    path = write(tmp_path / "y.csv", slices["SOPInstanceUID"], y)
    with pytest.raises(IchError, match=r"has no probabilities for 1\.2\.1\.2;"):
        validate.validate(tmp_path / "p", path, "plain")


@pytest.mark.parametrize(
    ("options", "format", "message"),
    [
        ({}, "plain", r"which has 1\.2\.0, 1\.2\.1, 1\.2\.2, … \(24 in all\); name the labels"),
        ({"hash_ids": True}, "plain", "predict again without --hash-ids"),
        ({}, "cq500", "or predict with --patient-id"),
    ],
)
def test_labels_of_other_scans_are_refused(tmp_path, options, format, message):
    slices, _, _ = predict(tmp_path / "p", options=options)
    if format == "cq500":
        slices.assign(file="IMG1").to_csv(tmp_path / "p/slices.csv", index=False)
        head = [f"R{reader}:{short}" for reader in (1, 2, 3) for short in ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH")]
        (tmp_path / "y.csv").write_text(",".join(["name", *head]) + "\nCQ500-CT-1" + ",0" * 18)
    else:
        (tmp_path / "y.csv").write_text("SeriesInstanceUID,any\nother,1\n")
    with pytest.raises(IchError, match=message):
        validate.validate(tmp_path / "p", tmp_path / "y.csv", format)
