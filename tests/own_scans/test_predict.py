"""Scans predicted: as the competition's way does, whatever lies beside them, killed or run again."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import eagerly, in_use
from made_results import home_of, make_scan_run, script
from made_scans import head, write_scan

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.images.render import MAP_SIDE
from ich.own_scans import predict, predictor, tables
from ich.own_scans.export import export_model
from ich.own_scans.model_spec import read_model
from ich.own_scans.options import Options
from ich.own_scans.predict import predict_scans
from ich.results.predictions import read_predictions

RESULTS = ("tiny", "tiny-sequence", "mixed")
PLAIN = Options(pages=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Results on phantoms, and the test slices of their archive in test/."""
    return home_of(tmp_path_factory)


@pytest.fixture(scope="module")
def spec(home):
    return read_model(home / "runs/tiny")


def run(spec, sources, out, options=PLAIN):
    return predict_scans(spec, [Path(source) for source in sources], Path(out), options)


def slices_in(out):
    return pd.read_csv(Path(out) / "slices.csv").set_index("SOPInstanceUID")


@pytest.mark.parametrize("result", RESULTS)
def test_scans_are_predicted_as_the_competition_predicts_them(home, tmp_path, result):
    expected = read_predictions(home / f"runs/{result}/predictions_test.parquet")
    summary = run(
        read_model(home / "runs" / result), [home / "test"], tmp_path / "out", Options(pages=False, slabs=False)
    )
    actual = slices_in(tmp_path / "out")
    assert summary.slices == len(actual) == len(expected) > 15
    np.testing.assert_allclose(actual.loc[expected.index, list(LABELS)], expected, atol=1e-6)


def test_a_scan_model_predicts_as_its_run_does_here_and_exported(home, tmp_path, monkeypatch):
    make_scan_run(home)
    monkeypatch.chdir(home)
    expected = read_predictions(home / "runs/scans/predictions_test.parquet")
    export_model(Path("runs/scans"), tmp_path / "exported")
    for name, path in (("out", home / "runs/scans"), ("again", tmp_path / "exported")):
        run(read_model(path), [home / "test"], tmp_path / name, Options(pages=name == "out", slabs=False))
        actual = slices_in(tmp_path / name).loc[expected.index, list(LABELS)]
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert list((tmp_path / "out/scans").glob("*.html"))
    heat = predictor.Predictor(read_model(home / "runs/scans"), heat=True)
    hu = [image.astype(np.int16) for image in head(6, 64)]
    slices = predictor.Slices(list("abcdef"), 5.0 * np.arange(6), np.arange(6), hu)
    prediction = heat(slices)
    assert prediction.heat.shape == (6, 6, MAP_SIDE, MAP_SIDE)
    assert prediction.heat.any()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["tiny", "scans"])
def test_embeddings_reach_the_second_stage(home, tmp_path, monkeypatch, first):
    """A second stage that reads embeddings gets those of each fold's own model, and its logits."""
    monkeypatch.chdir(home)
    if not Path("runs", first).exists():
        make_scan_run(home)
    options = ["sequence.kind=recurrent", "sequence.features=embeddings", "sequence.shuffle_kinds=0"]
    options += [f"sequence.{setting}" for setting in ("width=4", "units=2", "dilations=[1]", "epochs=1")]
    sets = [part for option in options for part in ("--set", option)]
    name = f"embedded-{first}"
    script("extract_features.py", f"runs/{first}", "--embeddings")
    script("train_sequence.py", f"runs/{first}", "--name", name, *sets)
    expected = read_predictions(Path("runs", name, "predictions_test.parquet"))
    run(read_model(Path("runs", name)), [home / "test"], tmp_path / "out", Options(pages=False, slabs=False))
    np.testing.assert_allclose(slices_in(tmp_path / "out").loc[expected.index, list(LABELS)], expected, atol=1e-5)


def test_thin_slices_are_read_as_slabs_and_each_gets_its_slabs_probability(spec, tmp_path):
    spec = spec.model_copy(update={"thickness": 5.0})
    rng = np.random.default_rng(0)
    thick = [image.astype(np.int16) for image in head(8, 64)]
    thin = [image + rng.integers(-3, 4, image.shape).astype(np.int16) for image in thick for _ in range(2)]
    write_scan(tmp_path / "thin", slices=16, step=2.5, pixels=thin)
    means = [
        np.rint((first.astype(float) + second) / 2).astype(np.int16)
        for first, second in zip(thin[::2], thin[1::2], strict=True)
    ]
    write_scan(tmp_path / "thick", slices=8, step=5.0, first=1.25, pixels=means)
    run(spec, [tmp_path / "thin"], tmp_path / "a")
    run(spec, [tmp_path / "thick"], tmp_path / "b")
    run(spec, [tmp_path / "thin"], tmp_path / "c", Options(pages=False, slabs=False))
    slabs, slices, apart = (slices_in(tmp_path / name)[list(LABELS)].to_numpy() for name in "abc")
    np.testing.assert_allclose(slabs[::2], slices, atol=1e-6)
    np.testing.assert_array_equal(slabs[::2], slabs[1::2])
    assert np.abs(apart - slabs).max() > 1e-4
    scans = pd.read_csv(tmp_path / "a/scans.csv")
    assert scans["thickness_mm"].tolist() == [spec.thickness]
    assert scans["slice_any"][0] == slices_in(tmp_path / "a")["any"].idxmax()  # of two, the first


@pytest.mark.parametrize(
    ("values", "place"),
    [([1], 0), ([1, 2, 2, 2, 1, 2], 2), ([2, 2, 2, 2, 1], 1), ([1, 2, 2], 1), ([3, 3, 3, 3, 3], 2), ([1, 0, 1], 0)],
)
def test_a_scan_names_the_middle_slice_of_its_strongest_slab(values, place):
    assert tables._middle_of_highest(np.array(values)) == place


def test_the_page_and_the_table_name_one_slice(spec, tmp_path):
    spec = spec.model_copy(update={"thickness": 5.0})
    write_scan(tmp_path / "thin", slices=24, step=1.25, pixels=[image for image in head(6, 64) for _ in range(4)])
    run(spec, [tmp_path / "thin"], tmp_path / "out", Options(pages=True))
    (page,) = (tmp_path / "out/scans").glob("*.html")
    data = json.loads(re.search(r'id="scan">(.*?)</script>', page.read_text("utf-8"))[1])
    row = pd.read_csv(tmp_path / "out/scans.csv", dtype=str).iloc[0]
    first, last = data["slabs"][data["start"]]
    assert last > first
    assert data["start"] == (first + last) // 2
    assert [data["ids"][best[0]] for best in data["strongest"]] == [row[f"slice_{label}"] for label in LABELS]


def test_every_slice_and_file_is_accounted_for(spec, tmp_path):
    paths = write_scan(tmp_path / "in/scan", slices=7, pixels=head(8, 64))
    paths[2].write_bytes(paths[2].read_bytes()[:-2000])
    (tmp_path / "in/notes.txt").write_text("nothing")
    summary = run(spec, [tmp_path / "in"], tmp_path / "out", Options(pages=True))
    series = pd.read_csv(tmp_path / "out/series.csv")
    scans = pd.read_csv(tmp_path / "out/scans.csv")
    slices = slices_in(tmp_path / "out")
    assert series["files"].sum() == 8
    assert (summary.scans, summary.slices, summary.unread) == (1, 6, 1)
    assert series.loc[0, ["slices", "unread", "status"]].tolist() == [6, 1, "read"]
    assert paths[2].name in series.loc[0, "detail"]
    assert list(slices["order"]) == [0, 1, 3, 4, 5, 6]
    for label in LABELS:
        assert scans[label][0] == pytest.approx(slices[label].max(), rel=1e-6)
        assert scans[f"slice_{label}"][0] == slices[label].idxmax()
    pages = list((tmp_path / "out/scans").glob("*.html"))
    assert len(pages) == 1
    assert pages[0].name in (tmp_path / "out/index.html").read_text()
    record = json.loads((tmp_path / "out/predictions.json").read_text())
    assert record["complete"] is True
    assert record["counts"]["unread_files"] == 1
    assert "not a medical device" in record["notice"]


def test_a_scan_of_which_nothing_can_be_read_stops_no_other(spec, tmp_path):
    for path in write_scan(tmp_path / "in/bad", series="1.2.8", uid="1.2.8", pixels=head(8, 64)):
        path.write_bytes(path.read_bytes()[:-2000])
    write_scan(tmp_path / "in/good", pixels=head(8, 64))
    summary = run(spec, [tmp_path / "in"], tmp_path / "out", Options(pages=True))
    assert (summary.scans, summary.unread) == (1, 6)
    series = pd.read_csv(tmp_path / "out/series.csv").set_index("SeriesInstanceUID")
    assert series.loc["1.2.8", "status"] == "failed"
    assert "of pixel data" in series.loc["1.2.8", "detail"]
    assert series.loc["1.2.7", "status"] == "read"


@pytest.mark.parametrize(
    "options", [PLAIN, Options(patient_id=True, pages=True), Options(hash_ids=True, patient_id=True)]
)
def test_no_name_or_birth_date_is_written_and_ids_only_as_asked(spec, tmp_path, options):
    write_scan(tmp_path / "Doe", pixels=head(8, 64), PatientID="pid77", SeriesDescription="of Roe")
    run(spec, [tmp_path / "Doe"], tmp_path / "out", options)
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for private in (b"Doe^Jane", b"19500101"):
        assert private not in written
    assert (b"pid77" in written) == (options.patient_id and not options.hash_ids)
    for identifying in (b"1.2.7", b"1.2.3", b"IMG0", b"of Roe", b"/Doe"):
        if options.hash_ids:
            assert identifying not in written, identifying
    table = slices_in(tmp_path / "out")
    assert ("PatientID" in table) == options.patient_id
    assert table.index.is_unique


def test_run_again_nothing_is_predicted_and_only_what_changed_is(spec, tmp_path, monkeypatch):
    write_scan(tmp_path / "in/a", pixels=head(8, 64))
    write_scan(tmp_path / "in/b", series="1.2.8", uid="1.2.8", pixels=head(8, 64))
    run(spec, [tmp_path / "in"], tmp_path / "out", Options())
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr(predict, "Predictor", None)
    run(spec, [tmp_path / "in"], tmp_path / "out", Options())
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    for path in (tmp_path / "in/b").iterdir():
        path.unlink()
    run(spec, [tmp_path / "in"], tmp_path / "out", Options())
    assert len(list((tmp_path / "out/scans").iterdir())) == 2  # the page of a scan that is gone went, too
    monkeypatch.undo()
    write_scan(tmp_path / "in/c", series="1.2.9", uid="1.2.9", pixels=head(8, 64))
    seen = []
    real = predictor.Predictor.__call__
    monkeypatch.setattr(
        predictor.Predictor, "__call__", lambda self, slices: seen.append(slices.ids[0]) or real(self, slices)
    )
    run(spec, [tmp_path / "in"], tmp_path / "out", Options())
    assert seen == ["1.2.9.1"]


def test_a_file_that_was_written_anew_is_predicted_anew(spec, tmp_path):
    """Also if it has the size that it had."""
    write_scan(tmp_path / "in", pixels=head(8, 64))
    run(spec, [tmp_path / "in"], tmp_path / "out")
    before = slices_in(tmp_path / "out")
    write_scan(tmp_path / "in", pixels=[image + np.int16(20) for image in head(8, 64)])
    run(spec, [tmp_path / "in"], tmp_path / "out")
    run(spec, [tmp_path / "in"], tmp_path / "fresh")
    after = slices_in(tmp_path / "out")
    pd.testing.assert_frame_equal(after, slices_in(tmp_path / "fresh"))
    assert not after["any"].equals(before["any"])


def test_predictions_do_not_lie_among_what_is_read(spec, tmp_path):
    write_scan(tmp_path / "in", pixels=head(8, 64))
    with pytest.raises(IchError, match="lies within"):
        run(spec, [tmp_path / "in"], tmp_path / "in/out")
    assert not (tmp_path / "in/out").exists()


def test_hashed_no_reason_holds_a_name(spec, tmp_path):
    """Of broken files, conflicts and series that are compared, reasons name files and identifiers otherwise."""
    folder = tmp_path / "in/Roe^Jim"
    broken = write_scan(folder / "a", series="1.2.777.1", uid="1.2.777.1", pixels=head(8, 64))
    broken[2].write_bytes(broken[2].read_bytes()[:-2000])
    for name, pixels in (("b", head(8, 64)), ("c", head(8, 64)[::-1])):
        write_scan(folder / name, series="1.2.777.2", uid="1.2.777.2", pixels=pixels)
    agent = {"ContrastBolusAgent": "for Mr Roe^Jim", "ConvolutionKernel": "BONE"}
    write_scan(
        folder / "d", series="1.2.777.3", uid="1.2.777.3", pixels=head(8, 64), StudyInstanceUID="1.2.778", **agent
    )
    (folder / "Roe^Jim.txt").write_text("nothing")
    run(spec, [tmp_path / "in"], tmp_path / "out", Options(hash_ids=True))
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            for private in (b"Roe", b"1.2.777", b"1.2.778", b"IMG0"):
                assert private not in path.read_bytes(), (path, private)


def test_stopped_midway_the_same_command_goes_on(spec, tmp_path, monkeypatch):
    for number in range(3):
        write_scan(tmp_path / f"in/{number}", series=f"1.2.{number}", uid=f"1.2.{number}", pixels=head(8, 64))
    run(spec, [tmp_path / "in"], tmp_path / "whole")
    real, calls = predictor.Predictor.__call__, []

    def stopped(self, slices):
        calls.append(slices.ids[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, slices)

    monkeypatch.setattr(predictor.Predictor, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(spec, [tmp_path / "in"], tmp_path / "out")
    assert json.loads((tmp_path / "out/predictions.json").read_text())["complete"] is False
    run(spec, [tmp_path / "in"], tmp_path / "out")
    assert len(calls) == 4
    for name in ("slices.csv", "scans.csv", "series.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_folders_of_others_and_of_other_predictions_are_left_alone(home, spec, tmp_path):
    write_scan(tmp_path / "in", pixels=head(8, 64))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/thesis.tex").write_text("years")
    with pytest.raises(IchError, match="not this program's"):
        run(spec, [tmp_path / "in"], tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["thesis.tex"]
    run(spec, [tmp_path / "in"], tmp_path / "out")
    before = (tmp_path / "out/slices.csv").read_bytes()
    with pytest.raises(IchError, match="with other options"):
        run(spec, [tmp_path / "in"], tmp_path / "out", Options(pages=False, slabs=False))
    with pytest.raises(IchError, match="with other models"):
        run(read_model(home / "runs/mixed"), [tmp_path / "in"], tmp_path / "out")
    write_scan(tmp_path / "more", series="1.2.8", uid="1.2.8", pixels=head(8, 64))
    with pytest.raises(IchError, match="with other sources"):
        run(spec, [tmp_path / "more"], tmp_path / "out")
    assert (tmp_path / "out/slices.csv").read_bytes() == before
    assert run(spec, [tmp_path / "in", tmp_path / "more"], tmp_path / "out").scans == 2
    with in_use(tmp_path / "out"), pytest.raises(IchError, match="in use"):
        run(spec, [tmp_path / "in", tmp_path / "more"], tmp_path / "out")


def test_the_script_tells_what_was_not_read_and_ends_with_3(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = write_scan(tmp_path / "in", pixels=head(8, 64))
    write_scan(
        tmp_path / "in/scout", series="1.2.8", uid="1.2.8", slices=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    arguments = (home / "runs/tiny", "in", "--out", "out", "--no-pages")
    script("predict_scans.py", *arguments)
    printed = capsys.readouterr()
    assert "1 scans of 6 slices predicted" in printed.out
    assert "localizer" in printed.out
    assert "of no series" not in printed.out
    paths[0].write_bytes(paths[0].read_bytes()[:-2000])
    with pytest.raises(SystemExit) as ended:
        script("predict_scans.py", *arguments)
    assert ended.value.code == 3
    assert "1 files could not be read" in capsys.readouterr().err


def test_the_script_does_not_pass_over_a_folder_without_scans(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("nothing")
    with pytest.raises(SystemExit) as ended:
        script("predict_scans.py", home / "runs/tiny", "in", "--out", "out", "--no-pages")
    assert ended.value.code == 3
    printed = capsys.readouterr()
    assert "1 file of no series: neither DICOM nor NIfTI" in printed.out
    assert "no scan was predicted of in" in printed.err


def test_grad_cam_is_as_strong_as_the_label_is_probable(spec):
    slices = predictor.Slices([str(k) for k in range(8)], 5.0 * np.arange(8), np.arange(8), head(8, 64))
    plain = predictor.Predictor(spec)(slices)
    heated = predictor.Predictor(spec, heat=True)(slices)
    np.testing.assert_allclose(heated.probabilities, plain.probabilities, atol=1e-6)
    assert plain.heat is None
    assert heated.heat.shape == (8, 6, MAP_SIDE, MAP_SIDE)
    assert heated.heat.dtype == np.uint8
    strongest = heated.heat.max(axis=(2, 3)) / 255
    seen = strongest > 0
    assert seen.any()
    # Between the places of the coarse map it is a little less.
    assert (strongest[seen] <= heated.probabilities[seen] + 0.01).all()
    assert (strongest[seen] >= 0.7 * heated.probabilities[seen] - 0.01).all()


def test_a_slice_alone_and_slices_without_places_are_predicted(home):
    for result in RESULTS:
        model = predictor.Predictor(read_model(home / "runs" / result))
        hu = [*head(8, 64)]
        with eagerly():  # a graph of each length is traced for one prediction
            alone = model(predictor.Slices(["a"], np.array([0.0]), np.array([0]), hu[:1])).probabilities
            unknown = model(predictor.Slices(list("abc"), np.full(3, np.nan), np.arange(3), [hu[0]] * 3)).probabilities
        assert alone.shape == (1, 6)
        np.testing.assert_allclose(unknown, np.repeat(alone, 3, axis=0), atol=1e-6)


def test_images_that_a_model_does_not_take_fail_that_scan(spec, tmp_path):
    part = spec.parts["tiny"]
    other = part.model_copy(update={"preprocess": part.preprocess.model_copy(update={"size": 32})})
    write_scan(tmp_path / "in", pixels=head(8, 64))
    summary = run(spec.model_copy(update={"parts": {"tiny": other}}), [tmp_path / "in"], tmp_path / "out")
    assert (summary.scans, summary.unread) == (0, 6)
    series = pd.read_csv(tmp_path / "out/series.csv")
    assert series[["status", "reason"]].to_numpy().tolist() == [["failed", "not_predicted"]]
    assert "32 × 32" in series["detail"][0]


def test_slices_of_two_sizes_that_are_not_resized_fail_that_scan_alone(spec, tmp_path):
    """Where images keep the slices' own size, they do not fit into one batch."""
    part = spec.parts["tiny"]
    own_size = part.preprocess.model_copy(update={"size": None, "crop": False})
    other = spec.model_copy(update={"parts": {"tiny": part.model_copy(update={"preprocess": own_size})}})
    mixed = [*head(8, 64)[:5], head(8, 32)[5]]
    write_scan(tmp_path / "in/mixed", series="1.2.8", uid="1.2.8", pixels=mixed)
    write_scan(tmp_path / "in/whole", pixels=head(8, 64))
    summary = run(other, [tmp_path / "in"], tmp_path / "out")
    assert summary.scans == 1
    series = pd.read_csv(tmp_path / "out/series.csv").set_index("SeriesInstanceUID")
    assert series["status"].to_dict() == {"1.2.8": "failed", "1.2.7": "read"}
