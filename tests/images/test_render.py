"""The conversion's options: crop, files of other kinds; and what --verify and the exit status report."""

import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import make_dicom

from ich.dicom import reader
from ich.dicom.windows import PRESETS, Window, apply_window
from ich.errors import IchError
from ich.images import reading, slice_table
from ich.images import render as render_module
from ich.images.convert import convert, verify
from ich.images.render import Box, Settings, cut, field_of_view, head_box, render

SCRIPT = Path(__file__).parents[2] / "scripts" / "preprocess.py"
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
BRAIN, BONE = PRESETS["brain"], PRESETS["bone"]
KINDS = {
    "channels": Settings((BRAIN, PRESETS["subdural"], BONE)),
    "separate": Settings((BRAIN, Window(35, 75.5)), files="separate"),
    "hu": Settings((), files="hu"),
    "crop": Settings((BRAIN,), size=24, crop=True),
}


def name_of(number):
    return f"ID_{number:09x}"


def slice_bytes(number, **tags):
    stored = np.random.default_rng(number).integers(900, 1200, (32, 32)).astype(np.uint16)
    return make_dicom(stored, **{"uid": name_of(number), "ImagePositionPatient": [0, 0, number]} | tags)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for number in range(6):
        data = slice_bytes(number)
        (folder / f"{name_of(number)}.dcm").write_bytes(data[:-50] if number == 5 else data)
    return folder


# ------------------------------------------------------------------------------------------------------------- crop


def scene(shape=(512, 512), center=(230, 260), radii=(150, 120), holder=True):
    """A head of 40 HU in air, and the arc of a head holder below it that does not touch it."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    hu = np.full(shape, -1000, np.int16)
    hu[((rows - center[0]) / radii[0]) ** 2 + ((columns - center[1]) / radii[1]) ** 2 <= 1] = 40
    if holder:
        hu[shape[0] - 14 : shape[0] - 4, :] = 150
    return hu


@pytest.mark.parametrize("center", [(230, 260), (60, 250), (230, 20), (228, 490)])
@pytest.mark.parametrize("radii", [(150, 120), (80, 130), (9, 5), (41, 40)])
def test_the_box_holds_the_head_a_margin_and_no_holder(center, radii):
    hu = scene(center=center, radii=radii, holder=radii[0] > 40)
    box = head_box(hu)
    rows, columns = np.nonzero(hu == 40)
    assert box.top < rows.min() + 1
    assert box.left < columns.min() + 1
    assert box.top + box.side > rows.max()
    assert box.left + box.side > columns.max()
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(height, width) * 1.05 <= box.side + 8
    assert box.side <= max(height, width) * 1.1 + 18
    if center == (230, 260) and radii[0] > 40:
        assert not (cut(hu, box) == 150).any()
        assert abs(box.top + box.side / 2 - center[0]) <= 4  # the head stands in the middle
        assert abs(box.left + box.side / 2 - center[1]) <= 4


def test_padding_above_all_tissue_does_not_lead_the_box_astray():
    hu = scene(center=(250, 256), radii=(40, 50), holder=False)
    words = (hu + 1024).astype(np.uint16)
    expected = head_box(hu)
    assert expected.side < 130
    words[:8], words[-8:], words[:, :8], words[:, -8:] = [63536] * 4
    for padding in ({"PixelPaddingValue": 63536}, {"PixelPaddingValue": 60000, "PixelPaddingRangeLimit": 65535}):
        padded, _ = reader.read(make_dicom(words, BitsStored=16, **padding))
        assert head_box(padded) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 4), (4, 1), (3, 1), (2, 2)])
def test_an_image_of_a_few_pixels_is_rendered(kind, shape):
    hu, _ = reader.read(make_dicom(np.full(shape, 1064, np.uint16)))
    image, _ = render(hu, KINDS[kind])
    if kind == "crop":
        assert image.shape == (24, 24, 1)
        assert image.max() == 128  # 40 HU in the middle of the brain window
    elif kind == "hu":
        np.testing.assert_array_equal(image, np.full((*shape, 1), 1064, np.uint16))
    else:
        windows = [apply_window(np.full(shape, 40, np.int16), window) for window in KINDS[kind].windows]
        np.testing.assert_array_equal(image, np.stack(windows, axis=-1))
    for data in render_module.encode(image, KINDS[kind]):
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).shape[:2] == image.shape[:2]


@pytest.mark.parametrize("box", [Box(3, 5, 10), Box(-4, 6, 20), Box(20, -7, 25), Box(-10, -10, 60), Box(25, 30, 30)])
def test_a_cut_over_the_edge_is_air_there(box):
    hu = np.random.default_rng(0).integers(-500, 500, (30, 40)).astype(np.int16)
    piece = cut(hu, box)
    assert piece.shape == (box.side, box.side)
    assert piece.dtype == np.int16
    for r in range(box.side):
        for c in range(box.side):
            inside = 0 <= box.top + r < 30 and 0 <= box.left + c < 40
            assert piece[r, c] == (hu[box.top + r, box.left + c] if inside else reader.AIR)


@pytest.mark.parametrize("shape", [(64, 64), (40, 64), (61, 33)])
@pytest.mark.parametrize("level", [-1024, -1000, -200])
def test_a_slice_of_air_is_kept_whole(shape, level):
    box = head_box(np.full(shape, level, np.int16))
    side = max(shape)
    assert box == Box((shape[0] - side) // 2, (shape[1] - side) // 2, side)
    assert render(np.full(shape, level, np.int16), KINDS["crop"])[0].shape == (24, 24, 1)


@pytest.mark.parametrize("size", [None, 256, 512, 100])
@pytest.mark.parametrize("marker", [(150, 200), (300, 330), (100, 260)])
@pytest.mark.parametrize("center", [(230, 260), (160, 250)])
def test_a_pixel_of_the_crop_is_traced_back_by_the_tables_box(size, marker, center):
    hu = scene(center=center)
    hu[marker] = 3000
    hu[hu == 40] = 0  # black in this window: only the marker shines
    window = Window(2000, 100)
    image, box = render(hu, Settings((window,), size=size, crop=True))
    image = image[..., 0].astype(np.float64)
    assert image.sum() > 0
    n = image.shape[0]
    r = (image.sum(axis=1) * np.arange(n)).sum() / image.sum()  # the middle of what shines
    c = (image.sum(axis=0) * np.arange(n)).sum() / image.sum()
    pixel = box.side / n
    assert abs(box.top + (r + 0.5) * pixel - 0.5 - marker[0]) < 0.3 + pixel / 2
    assert abs(box.left + (c + 0.5) * pixel - 0.5 - marker[1]) < 0.3 + pixel / 2


def test_the_box_is_in_the_table_and_null_without_a_crop(source, tmp_path):
    table = convert([source], tmp_path / "crop", KINDS["crop"], jobs=1).set_index("SOPInstanceUID")
    for id, row in table.iterrows():
        box = row[["crop_top", "crop_left", "crop_side"]]
        if row["status"] != "ok":
            assert box.isna().all()
            continue
        hu, _ = reader.read(source / f"{id}.dcm")
        expected = head_box(hu)
        assert box.tolist() == [expected.top, expected.left, expected.side]
        png = reading.read(tmp_path / "crop" / row["path"])
        np.testing.assert_array_equal(png, render(hu, KINDS["crop"])[0])
    table = convert([source], tmp_path / "whole", KINDS["channels"], jobs=1)
    assert table[["crop_top", "crop_left", "crop_side"]].isna().all(axis=None)


# ------------------------------------------------------------------------------------------------------------ files


def test_separate_files_are_named_by_their_windows_and_made_again_when_one_is_lost(source, tmp_path, monkeypatch):
    out, settings = tmp_path / "images", KINDS["separate"]
    table = convert([source], out, settings, jobs=1)
    ids = [name_of(n) for n in range(5)]
    assert {p.name for p in out.rglob("*.png")} == {f"{i}.{w}.png" for i in ids for w in ("brain", "35-75.5")}
    assert sorted(table["path"].dropna()) == [f"train/{i}.brain.png" for i in ids]
    for number in range(5):
        hu, _ = reader.read(source / f"{name_of(number)}.dcm")
        for window, suffix in zip(settings.windows, settings.suffixes, strict=True):
            image = reading.read(out / "train" / f"{name_of(number)}{suffix}")
            np.testing.assert_array_equal(image[..., 0], apply_window(hu, window))
    whole = contents(out)
    real, again = render_module.convert_slice, []
    for suffix in settings.suffixes:
        (out / "train" / f"{name_of(2)}{suffix}").unlink()
        again.clear()
        with monkeypatch.context() as watched:
            watched.setattr(
                render_module, "convert_slice", lambda member, *rest: again.append(member.id) or real(member, *rest)
            )
            convert([source], out, settings, jobs=1)
        assert again == [name_of(2)]
        assert contents(out) == whole
    (source / f"{name_of(2)}.dcm").write_bytes(b"broken now")
    convert([source], out, settings, jobs=1)
    assert not list(out.rglob(f"{name_of(2)}*"))
    convert([source], out, settings, split="test", jobs=1)
    assert {p.parent.name for p in out.rglob("*.png")} == {"test"}
    assert len(list(out.rglob("*.png"))) == 8


@pytest.mark.parametrize("size", [None, 16, 48])
def test_hu_files_are_hounsfield_units_in_sixteen_bits(source, tmp_path, size):
    out = tmp_path / "images"
    table = convert([source], out, Settings((), size=size, files="hu"), jobs=1)
    for row in table[table["status"] == "ok"].itertuples():
        png = cv2.imread(str(out / row.path), cv2.IMREAD_UNCHANGED)
        assert png.dtype == np.uint16
        hu, _ = reader.read(source / f"{row.SOPInstanceUID}.dcm")
        read = png.astype(np.int32) - 1024
        if size is None:
            np.testing.assert_array_equal(read, hu)
        elif size == 16:  # the mean of each 2 × 2
            assert np.abs(read - hu.reshape(16, 2, 16, 2).mean(axis=(1, 3))).max() <= 1
        else:
            assert read.shape == (size, size)
            assert hu.min() <= read.min() <= read.max() <= hu.max()


def test_the_whole_range_of_hu_fits_their_files():
    hu = np.array([[-1024, 32767], [-1000, 0]], np.int16)
    image, _ = render(hu, KINDS["hu"])
    assert (image[..., 0].astype(int) - 1024 == hu).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"windows": (BRAIN,), "files": "npy"}, "files are 'npy', expected one of channels, separate, hu"),
        ({"windows": (), "files": "separate"}, "separate hold windows, each once, got 0"),
        ({"windows": (BRAIN, Window(40, 80)), "files": "separate"}, "windows, each once, got 2"),
        # These two would be files of one name.
        ({"windows": (Window(1234567, 9), Window(1234568, 9)), "files": "separate"}, "windows, each once, got 2"),
        ({"windows": (BRAIN,), "files": "hu"}, "hu hold no windows, got 1"),
    ],
)
def test_files_that_cannot_be_are_refused(options, said):
    with pytest.raises(IchError, match=said):
        Settings(**options)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files_never_mix(source, tmp_path, kind):
    convert([source], tmp_path / "images", KINDS[kind], jobs=1)
    before = contents(tmp_path / "images")
    for other in KINDS.keys() - {kind}:
        for attempt in (convert, verify):
            with pytest.raises(IchError, match="images of other settings"):
                attempt([source], tmp_path / "images", KINDS[other], jobs=1)
    assert contents(tmp_path / "images") == before


def test_all_broken_run_again_is_all_broken(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "ID_1.dcm").write_bytes(b"no")
    for settings in KINDS.values():
        out = tmp_path / "images"
        first = convert([tmp_path / "train"], out, settings, jobs=1)
        pd.testing.assert_frame_equal(convert([tmp_path / "train"], out, settings, jobs=1), first)
        shutil.rmtree(out)


def test_a_zips_slice_of_the_same_size_is_converted_anew_when_its_checksum_changed(tmp_path):
    def pack(first):
        with zipfile.ZipFile(tmp_path / "train.zip", "w") as file:
            file.writestr(f"{name_of(1)}.dcm", first)
            file.writestr(f"{name_of(2)}.dcm", slice_bytes(2))

    pack(slice_bytes(1))
    convert([tmp_path / "train.zip"], tmp_path / "images", KINDS["hu"], jobs=1)
    changed = slice_bytes(9, uid=name_of(1))
    assert len(changed) == len(slice_bytes(1))
    pack(changed)
    assert list(verify([tmp_path / "train.zip"], tmp_path / "images", KINDS["hu"], jobs=1)) == [name_of(1)]
    convert([tmp_path / "train.zip"], tmp_path / "images", KINDS["hu"], jobs=1)
    convert([tmp_path / "train.zip"], tmp_path / "fresh", KINDS["hu"], jobs=1)
    assert contents(tmp_path / "images") == contents(tmp_path / "fresh")


# ----------------------------------------------------------------------------------------------------------- verify


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_folder_of_any_kind_passes_and_each_difference_is_found(source, tmp_path, kind):
    out, settings = tmp_path / "images", KINDS[kind]
    convert([source], out, settings, jobs=1)
    assert verify([source], out, settings, jobs=1) == {}
    last = settings.suffixes[-1]

    path = out / "train" / f"{name_of(0)}{last}"
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image[3, 3] ^= 1
    cv2.imwrite(str(path), image)
    (out / "train" / f"{name_of(1)}{last}").unlink()
    (out / "train" / f"{name_of(2)}{last}").write_bytes(b"\x89PNG half")
    (source / f"{name_of(3)}.dcm").write_bytes(slice_bytes(77, uid=name_of(3)))
    (source / f"{name_of(7)}.dcm").write_bytes(slice_bytes(7))
    (source / f"{name_of(4)}.dcm").unlink()
    problems = verify([source], out, settings, jobs=1)
    assert list(problems) == [name_of(n) for n in (0, 1, 2, 3, 4, 7)]
    assert problems[name_of(0)] == "the PNG has other pixels than the source gives"
    assert "cannot be read: No such file" in problems[name_of(1)]
    assert "holds no image" in problems[name_of(2)]
    assert "another crc" in problems[name_of(3)]
    assert problems[name_of(4)] == "is in the table, not in the sources"
    assert problems[name_of(7)] == "is in the sources, not in the table"


def test_rows_of_the_table_that_say_something_else_are_found(source, tmp_path):
    out, settings = tmp_path / "images", KINDS["crop"]
    convert([source], out, settings, jobs=1)
    table = slice_table.read_table(out / "slices.parquet")
    at = {id: place for place, id in enumerate(table["SOPInstanceUID"])}
    table.loc[at[name_of(0)], ["status", "path"]] = ["truncated", None]
    table.loc[at[name_of(1)], "crop_top"] += 1
    table.loc[at[name_of(2)], "repaired"] = "wrapped"
    table.loc[at[name_of(3)], "path"] = "train/other.png"
    table.loc[at[name_of(5)], "status"] = "not_ct"
    slice_table.write_table(table, out / "slices.parquet")
    assert verify([source], out, settings, jobs=1) == {
        name_of(0): "reads as ok, the table says truncated",
        name_of(1): "has another crop_top in the table than in its source",
        name_of(2): "has another repaired in the table than in its source",
        name_of(3): "has another path in the table than in its source",
        name_of(5): "reads as truncated, the table says not_ct",
    }


def test_a_folder_that_was_not_converted_cannot_be_verified(source, tmp_path):
    with pytest.raises(IchError, match=r"lacks a readable settings\.json"):
        verify([source], tmp_path / "images", KINDS["hu"], jobs=1)
    convert([source], tmp_path / "images", KINDS["hu"], jobs=1)
    (tmp_path / "images" / "slices.parquet").unlink()
    with pytest.raises(IchError, match=r"slices\.parquet does not exist"):
        verify([source], tmp_path / "images", KINDS["hu"], jobs=1)


def script(source, out, *more):
    """The script's main, in this process."""
    main = runpy.run_path(str(SCRIPT))["main"]
    main(
        [str(DEMO), "--set", f"data.sources={source}", "--set", f"data.images={out}", "--set", "machine.jobs=1", *more]
    )


@pytest.mark.parametrize(("more", "status"), [([], 3), (["--max-failures", "0"], 3), (["--max-failures", "1"], None)])
def test_failures_decide_the_exit_status(source, tmp_path, capsys, more, status):
    for _ in range(2):  # a finished run reports them too
        if status is None:
            script(source, tmp_path / "images", *more)
            assert capsys.readouterr().err.count("have no image") == 0
        else:
            with pytest.raises(SystemExit) as ended:
                script(source, tmp_path / "images", *more)
            assert ended.value.code == status
            assert "1 slice(s) have no image, --max-failures 0" in capsys.readouterr().err
    (source / f"{name_of(5)}.dcm").write_bytes(slice_bytes(5))
    script(source, tmp_path / "images", *more)


def test_the_script_verifies(source, tmp_path, capsys):
    (source / f"{name_of(5)}.dcm").unlink()
    script(source, tmp_path / "images")
    script(source, tmp_path / "images", "--verify")
    assert "every image of" in capsys.readouterr().out
    (tmp_path / "images" / "train" / f"{name_of(2)}.png").unlink()
    command = [sys.executable, SCRIPT, DEMO, "--verify", "--set", "machine.jobs=1"]
    command += ["--set", f"data.sources={source}", "--set", f"data.images={tmp_path / 'images'}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "1 slice(s) of" in ended.stderr
    assert "delete their PNGs, and run the same command without --verify" in ended.stderr
    assert ended.stdout.startswith(f"{name_of(2)}: ")


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (64, 64)])
@pytest.mark.parametrize("options", [{}, {"size": 32}, {"size": 32, "fit": "stretch"}, {"size": 32, "crop": True}])
def test_the_field_of_view_is_where_the_image_shows_a_mark(shape, options):
    """The oracle looks for the one bright square in the image, and goes back by the field."""
    hu = np.full(shape, -1000, np.int16)
    hu[8:32, 8:32] = 0
    hu[16:24, 18:26] = 100
    settings = Settings((Window(center=40, width=80),), **options)
    image, box = render(hu, settings)
    field = field_of_view(hu.shape, box, settings)
    rows, columns = np.nonzero(image[..., 0] > 200)
    height, width = image.shape[:2]
    assert field.top + (rows.mean() + 0.5) * field.rows / height == pytest.approx(20, abs=1.1)
    assert field.left + (columns.mean() + 0.5) * field.columns / width == pytest.approx(22, abs=1.1)
