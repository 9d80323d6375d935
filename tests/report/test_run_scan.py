"""A run's own scans as pages: their HU from DICOM files or PNGs, labels, predictions, Grad-CAM laid over the slices."""

import base64
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import make_dicom
from test_pictures import HU, SEPARATE, THREE, script, write_images
from test_scan_page import decoded, read

from ich.competition import folds
from ich.competition.labels import INDEX_NAME, LABELS
from ich.dicom import reader
from ich.dicom.windows import apply_window
from ich.errors import IchError
from ich.images import convert, png
from ich.images.render import Box, Settings, field_of_view, over_slices
from ich.report import pictures, run_scan


def write_scan(tmp_path, settings, shape=(48, 40), n=3):
    """DICOM files of a series and what `convert` makes of them; the HU in scan order."""
    rng = np.random.default_rng(0)
    (tmp_path / "dicom").mkdir()
    for k in range(n):
        stored = rng.integers(0, 2200, shape).astype(np.uint16)
        stored[8:-8, 8:-8] = rng.integers(1024, 1124, (shape[0] - 16, shape[1] - 16))
        tags = {"ImagePositionPatient": [0, 0, 5.0 * k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        tags |= {"SeriesInstanceUID": "ID_series", "StudyInstanceUID": "ID_study", "PixelSpacing": [0.5, 0.25]}
        (tmp_path / "dicom" / f"ID_{k}.dcm").write_bytes(make_dicom(stored, uid=f"ID_{k}", **tags))
    table = convert.convert([tmp_path / "dicom"], tmp_path / "images", settings, split="train")
    hu = np.stack([reader.read(tmp_path / "dicom" / f"ID_{k}.dcm")[0] for k in range(n)])
    return pictures.find_scans(table, "ID_series"), hu


def view(tmp_path, scan, settings, sources=True, **more):
    return run_scan.view(
        tmp_path / "images", scan, settings, run_scan.Sources([tmp_path / "dicom"] if sources else []), **more
    )


def test_hu_are_those_of_the_dicom_files(tmp_path):
    settings = Settings(THREE.windows, size=32, crop=True)
    scan, hu = write_scan(tmp_path, settings)
    result = view(tmp_path, scan, settings)
    np.testing.assert_array_equal(result.hu, hu)
    assert result.spacing == (0.5, 0.25)
    assert list(result.ids) == ["ID_0", "ID_1", "ID_2"]
    assert result.z.tolist() == [0, 5, 10]
    assert ("HU", "of the DICOM files") in result.facts
    assert result.labels is None
    assert np.isnan(result.probabilities).all()


@pytest.mark.parametrize(
    ("orientation", "edges"),
    [
        ([1, 0, 0, 0, 1, 0], "RLAP"),
        ([-1, 0, 0, 0, -1, 0], "LRPA"),
        ([0, 1, 0, 1, 0, 0], "APRL"),
        ([1, 0, 0, 0, 0.94, -0.34], "RLAP"),  # a tilted gantry
        ([1, 0, 0, 0, 0, -1], "RLHF"),
        ([0, 0, 0, 0, 0, 0], None),
        ([1, 0, 0, np.nan, 1, 0], None),
        (None, None),
    ],
)
def test_the_edges_are_those_that_the_orientation_tells(orientation, edges):
    cosines = None if orientation is None else np.array(orientation, float)
    assert run_scan._edges(pd.Series([cosines, cosines], dtype=object)) == (edges and tuple(edges))


def test_slices_of_several_orientations_have_no_edges(tmp_path):
    scan, _ = write_scan(tmp_path, HU)
    assert view(tmp_path, scan, HU).edges == ("R", "L", "A", "P")
    other = [[1.0, 0, 0, 0, 1, 0]] * 2 + [[-1.0, 0, 0, 0, 1, 0]]
    assert view(tmp_path, scan.assign(ImageOrientationPatient=other), HU).edges is None
    other[2] = None
    assert view(tmp_path, scan.assign(ImageOrientationPatient=other), HU).edges is None


@pytest.mark.parametrize("why", ["none", "missing", "changed", "one_lacks"])
def test_without_the_files_the_pngs_are_shown_and_the_page_says_why(tmp_path, why):
    scan, hu = write_scan(tmp_path, HU)
    if why == "changed":
        data = make_dicom(np.zeros((48, 40), np.uint16), uid="ID_1")
        (tmp_path / "dicom/ID_1.dcm").write_bytes(data)
    if why == "one_lacks":
        (tmp_path / "dicom/ID_1.dcm").unlink()
    if why == "missing":
        (tmp_path / "dicom").rename(tmp_path / "elsewhere")
    result = view(tmp_path, scan, HU, sources=why != "none")
    np.testing.assert_array_equal(result.hu, hu)  # these PNGs hold them
    fact = dict(result.facts)["HU"]
    assert fact.startswith("of the PNGs, which hold HU; the DICOM files are not shown: ")
    reasons = {"none": "names no sources", "missing": "dicom", "changed": "has changed", "one_lacks": "lack ID_1"}
    assert reasons[why] in fact


@pytest.mark.parametrize("settings", [THREE, SEPARATE], ids=lambda settings: settings.files)
def test_windowed_pngs_tell_hu_within_their_windows(tmp_path, settings):
    scan, hu = write_scan(tmp_path, settings)
    result = view(tmp_path, scan, settings, sources=False)
    assert "windows (brain, subdural, bone) tell them, cut off below -800 and above 2000" in dict(result.facts)["HU"]
    cut = np.clip(hu, -800, 2000)
    error = abs(result.hu.astype(int) - cut)
    assert error.max() <= 6  # half a gray level of bone
    assert error[(hu > 0) & (hu < 80)].max() <= 1
    for window in settings.windows:
        shown, own = (apply_window(image.astype(np.int16), window).astype(int) for image in (result.hu, cut))
        assert abs(shown - own).max() <= (1 if window.width == 2800 else 4)


def test_the_pixels_of_pngs_have_their_own_spacing(tmp_path):
    settings = Settings(THREE.windows, size=24, fit="stretch")
    scan, _ = write_scan(tmp_path, settings)
    assert view(tmp_path, scan, settings, sources=False).spacing == (0.5 * 48 / 24, 0.25 * 40 / 24)
    cropped = scan.assign(crop_top=0, crop_left=0, crop_side=[20, 24, 20])  # each for itself
    assert view(tmp_path, cropped, settings, sources=False).spacing is None
    unknown = scan.assign(PixelSpacing=None)
    assert view(tmp_path, unknown, settings).spacing is None


def test_labels_and_predictions_of_all_or_some_slices(tmp_path):
    scan, _ = write_scan(tmp_path, HU)
    ids = pd.Index(["ID_2", "ID_0", "ID_1", "ID_9"], name=INDEX_NAME)
    labels = pd.DataFrame(np.eye(4, 6, dtype=np.int8), ids, list(LABELS))
    predictions = labels * 0.5
    result = view(tmp_path, scan, HU, labels=labels, predictions=predictions.drop(index="ID_1"))
    np.testing.assert_array_equal(result.labels, labels.loc[["ID_0", "ID_1", "ID_2"]])
    np.testing.assert_array_equal(result.probabilities[[0, 2]], predictions.loc[["ID_0", "ID_2"]])
    assert np.isnan(result.probabilities[1]).all()
    some = view(tmp_path, scan, HU, labels=labels.drop(index="ID_1"))
    assert some.labels is None
    assert ("labels", "known of 2 slices, and not shown") in some.facts
    assert "labels" not in dict(view(tmp_path, scan, HU, labels=labels.iloc[3:]).facts)


def test_slices_without_an_image_are_counted(tmp_path):
    table = write_images(tmp_path / "images")
    result = run_scan.view(tmp_path / "images", pictures.find_scans(table, "ID_series0"), THREE, run_scan.Sources([]))
    assert list(result.ids) == ["ID_01", "ID_00"]
    assert ("without an image, not on this page", "1") in result.facts
    with pytest.raises(IchError, match="no slice of the series ID_series0 has an image"):
        run_scan.view(tmp_path / "images", table[table["status"] != "ok"], THREE, run_scan.Sources([]))
    with pytest.raises(IchError, match="belong to ID_series0, ID_series1; name one"):
        run_scan.view(tmp_path / "images", table, THREE, run_scan.Sources([]))


def test_slices_of_several_sizes_are_reported(tmp_path):
    scan, _ = write_scan(tmp_path, HU)
    (tmp_path / "images/train/ID_1.png").write_bytes(png.encode(np.zeros((9, 8, 1), np.uint8)))
    with pytest.raises(IchError, match=r"several sizes \(9 × 8, 48 × 40\)"):
        view(tmp_path, scan, HU, sources=False)


@pytest.mark.parametrize("box", [None, Box(-6, 4, 60), Box(10, 8, 24)], ids=["padded", "beyond", "within"])
def test_grad_cam_of_an_image_lies_where_the_image_does(tmp_path, box):
    """A bright disk, rendered as the image is, and laid back: its middle is where it was in the slice."""
    shape, settings = (64, 48), Settings(THREE.windows, size=64)
    y, x = np.indices(shape)
    disk = np.where(np.hypot(y - 24, x - 18) < 5, 100, 0).astype(np.int16)
    field = field_of_view(shape, box, settings)
    inside = np.zeros((field.rows, field.columns), np.float32)
    for row in range(field.rows):
        for column in range(field.columns):
            if 0 <= row + field.top < 64 and 0 <= column + field.left < 48:
                inside[row, column] = disk[row + field.top, column + field.left]
    heat = cv2.resize(inside, (64, 64), interpolation=cv2.INTER_AREA)[None, None] / 100
    laid = over_slices(np.repeat(heat, 6, axis=1), [field], [shape])[0]
    assert laid.shape == (6, 32, 32)
    share = laid[5].astype(float) / laid[5].sum()
    middle = (np.indices((32, 32)) + 0.5) / 32 * np.array(shape)[:, None, None]
    np.testing.assert_allclose((middle * share).sum(axis=(1, 2)), (24.5, 18.5), atol=0.6)
    if box == Box(10, 8, 24):
        assert laid[0, :4].max() == 0  # rows of the slice that the image lacks


def test_heat_is_scaled_by_the_probability(tmp_path):
    settings = Settings(THREE.windows, size=32)
    scan, _ = write_scan(tmp_path, settings, shape=(40, 40))
    predictions = pd.DataFrame(0.5, pd.Index(["ID_0", "ID_1"], name=INDEX_NAME), list(LABELS))
    result = view(tmp_path, scan, settings, predictions=predictions, heat=lambda rows: np.ones((len(rows), 6, 8, 8)))
    assert result.heat[:2, :, 8:24, 8:24].min() == result.heat.max() == 128
    assert result.heat[2].max() == 0  # of a slice without a probability
    assert "scaled by the slice's probability" in result.heat_note


def test_view_study_writes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scan, hu = write_scan(tmp_path, THREE)
    labels = pd.DataFrame(0, pd.Index(scan["SOPInstanceUID"], name=INDEX_NAME), list(LABELS), dtype=np.int8)
    folds.write_folds("images/folds.csv", labels.assign(PatientID=["p", "q", "q"], fold=[0, 1, 1]))
    Path("a.yaml").write_text(yaml.safe_dump({"name": "a", "data": {"sources": "dicom", "images": "images"}}))
    script("view_study", "a.yaml", "ID_1", "--out", "scan.html")
    out = capsys.readouterr().out
    assert "wrote: scan.html: 3 slices" in out
    assert (tmp_path / "scan.html").as_uri() in out
    page = read(tmp_path / "scan.html")
    assert page.data()["truth"] == [[0] * 6] * 3
    assert abs(decoded(base64.b64decode(page.of("hu")[1])) - hu[1]).max() <= 8
    assert page.of("heat") == []
    script("view_study", "a.yaml", "ID_1", "--out", "scan.html")  # its own page is replaced
    Path("notes.html").write_text("<html>mine</html>")
    with pytest.raises(IchError, match=r"notes\.html exists and was not written by this command"):
        script("view_study", "a.yaml", "ID_1", "--out", "notes.html")
    assert Path("notes.html").read_text() == "<html>mine</html>"


def test_options_that_would_have_no_effect_are_refused(tmp_path):
    with pytest.raises(IchError, match="--window is of a picture"):
        script("view_study", tmp_path, "ID_1", "--out", tmp_path / "a.html", "--window", "brain")
    with pytest.raises(IchError, match=r"--grad-cam is of a page; name it by --out with an ending \.html"):
        script("view_study", tmp_path, "ID_1", "--grad-cam")


def test_grad_cam_takes_a_run_and_folds(tmp_path):
    write_scan(tmp_path, THREE)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"name": "a", "data": {"images": str(tmp_path / "images")}}))
    with pytest.raises(IchError, match=r"Grad-CAM takes a run and its folds"):
        script("view_study", tmp_path / "a.yaml", "ID_1", "--out", tmp_path / "a.html", "--grad-cam")


def test_a_slice_of_no_fold_has_no_model(tmp_path):
    rows = pd.DataFrame({"SOPInstanceUID": ["ID_0"], "split": ["train"]})
    with pytest.raises(IchError, match="ID_0 is in no fold"):
        run_scan.grad_cam(tmp_path, pd.DataFrame({"fold": [0]}, index=["ID_9"]), rows)
