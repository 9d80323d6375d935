import json
import runpy
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from ich.competition import folds
from ich.competition.labels import INDEX_NAME, LABELS
from ich.dicom.slice_error import KINDS
from ich.dicom.windows import PRESETS, apply_window
from ich.errors import IchError
from ich.images import convert, png, slice_table
from ich.images.render import Settings, encode
from ich.report import pictures
from ich.results.predictions import write_predictions

SCRIPTS = Path(__file__).parents[2] / "scripts"
THREE = Settings((PRESETS["brain"], PRESETS["subdural"], PRESETS["bone"]))
SEPARATE = Settings(THREE.windows, files="separate")
HU = Settings((), files="hu")


def script(name, *arguments):
    runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"](list(map(str, arguments)))


def write_images(folder, settings=THREE, n=6, shape=(20, 20)):
    """Slices of two series of a study, of which one cannot be read and one was repaired, and their table."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(n):
        id, status = f"ID_{k:02d}", "truncated" if k == 2 else "ok"
        rows.append(
            {"SOPInstanceUID": id, "PatientID": f"p{k // 3}", "StudyInstanceUID": "ID_study", "split": "train"}
            | {"SeriesInstanceUID": f"ID_series{k // 3}", "ImagePositionPatient": [0, 0, -5.0 * k], "status": status}
            | {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "BitsStored": 12, "repaired": "wrapped" if k == 4 else ""}
            | {"path": f"train/{id}{settings.suffixes[0]}" if status == "ok" else None, "reason": ""}
            | dict(zip(("Rows", "Columns"), shape, strict=True))
        )
        if status == "ok":
            channels = max(1, len(settings.windows))
            image = rng.integers(0, 256, (*shape, channels)).astype(np.uint16 if settings.files == "hu" else np.uint8)
            (folder / "train").mkdir(parents=True, exist_ok=True)
            for suffix, data in zip(settings.suffixes, encode(image, settings), strict=True):
                (folder / "train" / f"{id}{suffix}").write_bytes(data)
    table = slice_table.scan_order(slice_table.to_frame(rows))
    slice_table.write_table(table, folder / "slices.parquet")
    (folder / "settings.json").write_text(json.dumps(asdict(settings)))
    return table


def pixels(figure, tmp_path):
    pictures.save(figure, tmp_path / "picture.png")
    return cv2.imread(str(tmp_path / "picture.png"), cv2.IMREAD_GRAYSCALE)


def texts(figure):
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("settings", [THREE, SEPARATE], ids=["channels", "separate"])
def test_windows_of_a_slice_are_its_channels(tmp_path, settings):
    write_images(tmp_path, settings)
    images = pictures.windows_of(tmp_path, f"train/ID_00{settings.suffixes[0]}", convert.read_settings(tmp_path))
    assert list(images) == ["brain", "subdural", "bone"]
    for k, (name, image) in enumerate(images.items()):
        path = tmp_path / "train" / (f"ID_00.{name}.png" if settings is SEPARATE else "ID_00.png")
        decoded = png.decode(path.read_bytes())
        np.testing.assert_array_equal(image, decoded[..., 0 if settings is SEPARATE else k])


def test_images_of_hu_are_windowed(tmp_path):
    write_images(tmp_path, HU)
    images = pictures.windows_of(tmp_path, "train/ID_00.png", HU)
    stored = cv2.imread(str(tmp_path / "train/ID_00.png"), cv2.IMREAD_UNCHANGED)
    for name, image in images.items():
        np.testing.assert_array_equal(image, apply_window(stored.astype(np.int16) - 1024, PRESETS[name]))


def test_images_of_other_channels_than_the_settings_are_refused(tmp_path):
    write_images(tmp_path)
    with pytest.raises(IchError, match="has 3 channels, its folder's settings 1 windows"):
        pictures.windows_of(tmp_path, "train/ID_00.png", Settings((PRESETS["brain"],)))


def test_a_sheet_is_pixel_by_pixel(tmp_path):
    tiles = [np.random.default_rng(k).integers(0, 256, (40, 30), dtype=np.uint8) for k in range(5)]
    figure = pictures.sheet([pictures.Section("five", tiles, list("abcde"), [False] * 5)], columns=2)
    seen = pixels(figure, tmp_path)
    for tile in tiles:
        _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(seen, tile, cv2.TM_SQDIFF))
        np.testing.assert_array_equal(seen[y : y + 40, x : x + 30], tile)
    assert texts(figure) == ["five", *"abcde"]


def test_a_sheet_in_a_notebook_is_the_one_on_disk(tmp_path):
    figure = pictures.sheet([pictures.Section("h", [np.full((50, 40), 77, np.uint8)], ["a"], [False])], columns=1)
    in_notebook = cv2.imdecode(np.frombuffer(pictures.png(figure), np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(in_notebook, pixels(figure, tmp_path))
    assert (in_notebook == 77).sum() >= 50 * 40


@pytest.mark.parametrize("settings", [THREE, SEPARATE, HU], ids=lambda settings: settings.files)
def test_a_contact_sheet_shows_the_repaired_and_lists_the_unread(tmp_path, settings):
    table = write_images(tmp_path, settings, shape=(30, 20))
    lines = texts(pictures.contact_sheet(tmp_path, table, settings, n=2))
    assert lines[0] == "2 of 5 slices, at random; windows: brain, subdural, bone"
    assert lines[3:5] == ["repaired on reading: 1", "ID_04 wrapped"]
    assert lines[5:] == ["without an image: 1", f"ID_02  truncated ({KINDS['truncated']})"]
    short = texts(pictures.contact_sheet(tmp_path, table, settings, n=2, limit=0))
    assert short[3:] == ["repaired on reading: 0 of 1", "without an image: 0 of 1"]


def test_a_contact_sheet_of_nothing_readable(tmp_path):
    table = write_images(tmp_path).iloc[[3]].assign(status="truncated", path=None)
    assert texts(pictures.contact_sheet(tmp_path, table, THREE))[0].startswith("0 of 0 slices")


@pytest.mark.parametrize(("id", "count"), [("ID_study", 6), ("ID_series1", 3), ("ID_04", 3)])
def test_a_scan_is_found_by_any_of_its_ids(tmp_path, id, count):
    table = pictures.find_scans(write_images(tmp_path), id)
    assert len(table) == count
    for _, rows in table.groupby("SeriesInstanceUID"):
        assert rows["z"].is_monotonic_increasing
    if count == 3:
        assert table["SOPInstanceUID"].tolist() == ["ID_05", "ID_04", "ID_03"]


def test_a_scan_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(IchError, match=r"no study, series or slice ID_9; .* such as ID_study"):
        pictures.find_scans(write_images(tmp_path), "ID_9")


def labels_and_predictions():
    ids = pd.Index(["ID_03", "ID_04"], name=INDEX_NAME)
    labels = pd.DataFrame([[0] * 6, [0, 0, 1, 0, 0, 1]], index=ids, columns=list(LABELS), dtype=np.int8)
    predictions = pd.DataFrame([[0.01] * 6, [0.3, 0.02, 0.95, 0.0, 0.1, 0.04]], index=ids, columns=list(LABELS))
    return labels, predictions


def test_a_montage_tells_labels_and_predictions(tmp_path):
    table = write_images(tmp_path)
    labels, predictions = labels_and_predictions()
    scans = pictures.find_scans(table, "ID_study")
    figure = pictures.montage(tmp_path, scans, THREE, "bone", labels, predictions)
    lines = [text.replace("\u00a0", " ") for text in texts(figure)]
    assert lines[0] == "study ID_study, series ID_series0, 3 slices, train"
    assert sum("no image: truncated" in text for text in lines) == 1
    assert "1  z -20.0 mm\nhas IVH any\nEDH 0.30 IVH 0.95 SDH 0.10\nany 0.04" in lines
    assert "2  z -15.0 mm\nhas none\nany 0.01" in lines
    assert "0  z -25.0 mm" in lines  # without label and prediction
    orange = [text.get_text() for text in figure.texts if text.get_color() == "#FFB000"]
    assert [text.split()[0] for text in orange] == ["1"]


def test_a_window_that_is_not_there_is_reported(tmp_path):
    table = write_images(tmp_path)
    with pytest.raises(IchError, match="have the windows brain, subdural, bone, not 'stroke'"):
        pictures.montage(tmp_path, table, THREE, "stroke")


def test_view_study_draws_a_config_and_a_result_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = write_images(Path("images"))
    ok = table[table["status"] == "ok"].set_index("SOPInstanceUID")
    labels = pd.DataFrame(0, index=ok.index, columns=list(LABELS), dtype=np.int8)
    fold = (ok["PatientID"] == "p1").astype("int64")
    folds.write_folds("images/folds.csv", labels.assign(PatientID=ok["PatientID"], fold=fold))
    Path("a.yaml").write_text(yaml.safe_dump({"name": "a", "data": {"sources": ["x"], "images": "images"}}))
    script("view_study", "a.yaml", "ID_study", "--out", "config.png")
    run = Path("runs/a")
    run.mkdir(parents=True)
    Path("a.yaml").rename(run / "config.yaml")
    write_predictions(labels + np.float32(0.5), run / "oof.parquet")
    script("view_study", run, "ID_series1", "--window", "subdural", "--out", "run.png")
    assert capsys.readouterr().out.splitlines() == ["wrote: config.png: 6 slices", "wrote: run.png: 3 slices"]
    assert all(cv2.imread(name).std() > 10 for name in ("config.png", "run.png"))
    with pytest.raises(IchError, match=r"config\.png exists, and no existing picture is replaced; name another file"):
        script("view_study", run, "ID_series1", "--out", "config.png")
    for name in ("study.csv", "runs"):
        with pytest.raises(IchError, match=f"{name} is no name of a picture; name a file ending in .png"):
            script("view_study", run, "ID_series1", "--out", name)


def test_a_config_without_images_is_reported(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a")
    with pytest.raises(IchError, match="does not say where the images are"):
        script("view_study", tmp_path / "a.yaml", "ID_study")


def test_what_cannot_be_drawn_is_a_warning(tmp_path, capsys):
    def fails():
        raise ZeroDivisionError("what nobody foresaw")

    assert not pictures.save_if_possible(fails, tmp_path / "a.png")
    assert "a.png was not drawn (ZeroDivisionError: what nobody foresaw)" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert not pictures.save_if_possible(Figure, tmp_path / "file" / "a.png")
    assert "cannot write" in capsys.readouterr().err
    assert pictures.save_if_possible(Figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("content", ["{}", '{"windows": [{"middle": 1}]}', '{"windows": [], "later": 1}'])
def test_settings_of_another_version_are_reported(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(IchError, match=r"settings.json is of another version"):
        convert.read_settings(tmp_path)


@pytest.mark.parametrize("settings", [THREE, SEPARATE, HU, Settings((PRESETS["brain"],), size=16, crop=True)])
def test_settings_come_back(tmp_path, settings):
    (tmp_path / "settings.json").write_text(json.dumps(asdict(settings)))
    assert convert.read_settings(tmp_path) == settings
