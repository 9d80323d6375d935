import errno
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import in_use, make_dicom
from pydicom.pixels import apply_modality_lut

from ich.dicom import reader
from ich.dicom.member import Member
from ich.dicom.windows import PRESETS, Window, apply_window
from ich.errors import IchError
from ich.images import convert as module
from ich.images import render as render_module
from ich.images.convert import check_settings, convert, summary
from ich.images.render import STATUSES, Settings, convert_slice, render

BRAIN = Settings((PRESETS["brain"],))
THREE = Settings((PRESETS["brain"], PRESETS["subdural"], PRESETS["bone"]))


def name_of(number):
    return f"ID_{number:09x}"


def stored(seed, shape=(32, 32)):
    return np.random.default_rng(seed).integers(900, 1200, shape).astype(np.uint16)


def slice_bytes(number, **tags):
    tags = {"uid": name_of(number), "ImagePositionPatient": [0, 0, 5.0 * number]} | tags
    shape = tags.pop("shape", (32, 32))
    return make_dicom(stored(number, shape), **tags)


def odd_ones():
    """Slices of every kind that can go wrong or be mended, by name."""
    wrapped = np.full((32, 32), 3500, np.uint16)
    return {
        name_of(100): slice_bytes(100)[:-200],
        name_of(101): slice_bytes(101, Modality="MR"),
        name_of(102): slice_bytes(102, drop=["PixelData"]),
        name_of(103): slice_bytes(103, drop=["RescaleSlope"]),
        name_of(104): slice_bytes(104, RescaleSlope=0),
        name_of(105): slice_bytes(105, NumberOfFrames=2),
        name_of(106): slice_bytes(106, BitsStored=8),
        name_of(107): b"not dicom",
        name_of(108): slice_bytes(999),  # another's id inside
        name_of(109): make_dicom(wrapped, uid=name_of(109), RescaleIntercept=0),
        "bad id": slice_bytes(110),
    }


ODD_STATUS = {
    name_of(100): "truncated",
    name_of(101): "not_ct",
    name_of(102): "no_pixels",
    name_of(103): "missing_tag",
    name_of(104): "bad_tag",
    name_of(105): "unsupported",
    name_of(106): "bad_pixels",
    name_of(107): "not_dicom",
    name_of(108): "wrong_id",
    name_of(109): "ok",
    "bad id": "bad_id",
}


def write(place, files):
    for name, data in files.items():
        path = place / f"{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return place


@pytest.fixture
def data(tmp_path):
    """Twelve whole slices, three of them test, and all the odd ones."""
    source = tmp_path / "data"
    write(source / "stage_2_train", {name_of(n): slice_bytes(n) for n in range(9)} | odd_ones())
    test = {name_of(n): slice_bytes(n, SeriesInstanceUID="ID_ccccccccc2") for n in range(20, 23)}
    write(source / "stage_2_test", test)
    return source


def contents(folder):
    """Every file under the folder, hidden ones too, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def status_of(table):
    return dict(zip(table["SOPInstanceUID"], table["status"], strict=True))


class Forbidden(Exception):
    pass


@pytest.fixture
def no_reading(monkeypatch):
    def forbid(self):
        raise Forbidden(self.name)

    monkeypatch.setattr(Member, "read", forbid)


# ---------------------------------------------------------------------------------------------------- the pixels


def test_pngs_are_what_render_gives_and_every_slice_has_its_row(data, tmp_path):
    out = tmp_path / "images"
    table = convert([data], out, BRAIN, jobs=1)
    assert status_of(table) == dict.fromkeys([*map(name_of, range(9)), *map(name_of, range(20, 23))], "ok") | ODD_STATUS
    for row in table.itertuples():
        if row.status != "ok":
            assert row.path is None or pd.isna(row.path)
            assert row.reason
            continue
        assert row.reason == ""
        assert row.path == f"{row.split}/{row.SOPInstanceUID}.png"
        source = data / f"stage_2_{row.split}" / f"{row.SOPInstanceUID}.dcm"
        assert row.size == source.stat().st_size
        hu, header = reader.read(source)
        assert row.repaired == ",".join(header.repaired)
        assert (row.Rows, row.Columns, row.BitsStored, row.RescaleIntercept) == (32, 32, 12, header.RescaleIntercept)
        image = cv2.imread(str(out / row.path), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(image, render(hu, BRAIN)[0][..., 0])
    written = {name for name in contents(out) if name.endswith(".png")}
    assert written == set(table["path"].dropna())
    assert set(contents(out)) == written | {"settings.json", "slices.parquet"}
    assert table.loc[table["repaired"] == "wrapped", "SOPInstanceUID"].tolist() == [name_of(109)]
    assert set(table["status"]) <= {"ok", *STATUSES}


def test_the_table_is_in_scan_order(data, tmp_path):
    table = convert([data], tmp_path / "images", BRAIN, jobs=1)
    train = table[table["SOPInstanceUID"].isin([name_of(n) for n in range(9)])]
    assert train["z"].tolist() == [5.0 * n for n in range(9)]
    assert train["order"].is_monotonic_increasing
    assert table[table["split"] == "test"]["order"].tolist() == [0, 1, 2]


def test_the_first_window_is_the_red_of_the_file(tmp_path):
    source = write(tmp_path / "train", {name_of(1): slice_bytes(1)})
    convert([source], tmp_path / "images", THREE, jobs=1)
    hu, _ = reader.read(source / f"{name_of(1)}.dcm")
    blue, green, red = cv2.split(cv2.imread(str(tmp_path / "images" / "train" / f"{name_of(1)}.png")))
    for channel, window in zip((red, green, blue), THREE.windows, strict=True):
        np.testing.assert_array_equal(channel, apply_window(hu, window))


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (33, 20), (40, 40)])
@pytest.mark.parametrize("windows", [BRAIN.windows, THREE.windows], ids=["one", "three"])
def test_size_and_fit(shape, windows):
    hu = (np.random.default_rng(0).integers(0, 80, shape)).astype(np.int16)
    assert render(hu, Settings(windows))[0].shape == (*shape, len(windows))
    for fit, size in itertools.product(("pad", "stretch"), (16, 40, 64)):
        image = render(hu, Settings(windows, size, fit))[0]
        assert image.shape == (size, size, len(windows))
        assert image.dtype == np.uint8
    side = max(shape)
    padded = render(hu, Settings(windows, side, "pad"))[0]
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    inside = np.zeros((side, side), bool)
    inside[top : top + shape[0], left : left + shape[1]] = True
    np.testing.assert_array_equal(padded[inside].reshape(*shape, -1), render(hu, Settings(windows))[0])
    assert not padded[~inside].any()  # air is black in all of these windows


def test_reducing_takes_the_mean_of_the_area_after_the_window():
    hu = np.full((64, 64), 40, np.int16)
    hu[::2] = 3000  # bone: white, and no whiter than white
    image = render(hu, Settings(BRAIN.windows, 32))[0]
    assert np.abs(image.astype(float) - (255 + 127.5) / 2).max() <= 1
    blocks = np.random.default_rng(0).integers(0, 81, (32, 32)).astype(np.int16)
    whole = render(blocks, BRAIN)[0][..., 0].astype(float).reshape(16, 2, 16, 2).mean(axis=(1, 3))
    assert np.abs(render(blocks, Settings(BRAIN.windows, 16))[0][..., 0] - whole).max() <= 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"windows": ()}, "one window or three, got 0"),
        ({"windows": BRAIN.windows * 2}, "one window or three, got 2"),
        ({"windows": BRAIN.windows * 4}, "one window or three, got 4"),
        ({"windows": BRAIN.windows, "size": 15}, "at least 16 pixels, got 15"),
        ({"windows": BRAIN.windows, "fit": "crop"}, "'crop', expected pad or stretch"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, said):
    with pytest.raises(IchError, match=said):
        Settings(**options)


# ------------------------------------------------------------------------------------- resume, and run after run


def test_zip_folder_and_any_number_of_processes_give_the_same_bytes(data, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in data.rglob("*.dcm"):
            file.write(path, path.relative_to(tmp_path))
    convert([data], tmp_path / "one", BRAIN, jobs=1)
    monkeypatch.setattr(module, "_CHUNK", 3)
    convert([data], tmp_path / "two", BRAIN, jobs=2)
    # The reason of none of these slices names the source, so that even those agree.
    convert([tmp_path / "data.zip"], tmp_path / "zip", BRAIN, jobs=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "zip")


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("failing", [1, 5, 13, 22])
def test_stopped_anywhere_and_run_again_it_ends_the_same(data, tmp_path, monkeypatch, chunk, failing):
    convert([data], tmp_path / "whole", BRAIN, jobs=1)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    real, calls = convert_slice, itertools.count(1)

    def stop(member, out, settings):
        if next(calls) == failing:
            raise Forbidden
        return real(member, out, settings)

    with monkeypatch.context() as stopping:
        stopping.setattr(render_module, "convert_slice", stop)
        with pytest.raises(Forbidden):
            convert([data], tmp_path / "resumed", BRAIN, jobs=1)
    assert not (tmp_path / "resumed" / "slices.parquet").exists()

    again = []
    monkeypatch.setattr(
        render_module, "convert_slice", lambda member, *rest: again.append(member.id) or real(member, *rest)
    )
    convert([data], tmp_path / "resumed", BRAIN, jobs=1)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")
    assert len(again) == 23 - (failing - 1) // chunk * chunk  # only what is left, and the chunk that was lost


def test_killed_while_writing_and_run_again_it_ends_the_same(data, tmp_path):
    convert([data], tmp_path / "whole", BRAIN, jobs=1)
    out = tmp_path / "killed"
    script = """
import itertools, os, signal, sys
from pathlib import Path
from ich import files
from ich.images import convert
from ich.dicom.windows import PRESETS
number, calls, real = int(sys.argv[3]), itertools.count(1), Path.replace
def replace(self, target):  # the last step of every file: settings, PNGs, parts, the table
    if next(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.replace = replace
convert._CHUNK = 8
convert.convert([Path(sys.argv[1])], Path(sys.argv[2]), convert.Settings((PRESETS["brain"],)), jobs=1)
"""
    # Of the settings, the 13 PNGs, the 3 parts and the table, each run is killed at the last step of its n-th file.
    for number in (1, 4, 9, 3, 2, 1, 1):
        killed = subprocess.run(
            [sys.executable, "-c", script, data, out, str(number)], capture_output=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    convert([data], out, BRAIN, jobs=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_half_a_part_that_a_kill_left_is_no_obstacle(data, tmp_path):
    out = tmp_path / "images"
    convert([data], out, BRAIN, jobs=1)
    whole = contents(out)
    (out / "slices.parquet").unlink()
    temporary = f".ich-{'0' * 32}.tmp"
    for leftover in (f"parts/{temporary}.parquet", f"train/{temporary}.png", f"{temporary}.parquet"):
        (out / leftover).parent.mkdir(exist_ok=True)
        (out / leftover).write_bytes(b"half")
    convert([data], out, BRAIN, jobs=1)
    assert contents(out) == whole


def test_killed_between_the_last_part_and_the_table_nothing_is_lost(data, tmp_path, monkeypatch, no_reading):
    out, train, test = tmp_path / "images", data / "stage_2_train", data / "stage_2_test"
    monkeypatch.undo()
    convert([train], out, BRAIN, jobs=1)

    def stop(table):
        raise Forbidden

    with monkeypatch.context() as stopping:
        stopping.setattr(module.slice_table, "scan_order", stop)
        with pytest.raises(Forbidden):
            convert([train, test], out, BRAIN, jobs=1)
    table = convert([train, test], out, BRAIN, jobs=1)
    assert (table["split"] == "test").sum() == 3
    assert not (out / "parts").exists()


def test_a_finished_run_reads_no_slice_and_writes_no_byte(data, tmp_path, monkeypatch):
    out = tmp_path / "images"
    first = convert([data], out, BRAIN, jobs=1)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    def forbid(*_):
        raise Forbidden

    monkeypatch.setattr(Member, "read", forbid)
    again = convert([data], out, Settings((Window(40.0, 80.0),)), jobs=1)  # the same window, spelt otherwise
    pd.testing.assert_frame_equal(again, first)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_more_slices_are_added_and_only_they_are_read(data, tmp_path, monkeypatch):
    out, train, test = tmp_path / "images", data / "stage_2_train", data / "stage_2_test"
    convert([train], out, BRAIN, jobs=1)
    real = Member.read

    def read(self):
        if self.split == "train":
            raise Forbidden
        return real(self)

    monkeypatch.setattr(Member, "read", read)
    convert([train, test], out, BRAIN, jobs=1)
    monkeypatch.undo()
    convert([data], tmp_path / "at_once", BRAIN, jobs=1)
    assert contents(out) == contents(tmp_path / "at_once")


def test_slices_that_the_sources_lack_are_refused(data, tmp_path):
    out = tmp_path / "images"
    convert([data], out, BRAIN, jobs=1)
    before = contents(out)
    with pytest.raises(IchError, match=r"holds slices that the sources lack: .*20 in all\); name all sources"):
        convert([data / "stage_2_test"], out, BRAIN, jobs=1)
    assert contents(out) == before


def test_a_slice_of_another_size_is_converted_again(data, tmp_path):
    out, path = tmp_path / "images", data / "stage_2_train" / f"{name_of(3)}.dcm"
    convert([data], out, BRAIN, jobs=1)
    path.write_bytes(slice_bytes(3, shape=(40, 40)))
    table = convert([data], out, BRAIN, jobs=1).set_index("SOPInstanceUID")
    assert table.loc[name_of(3), ["Rows", "size"]].tolist() == [40, path.stat().st_size]
    convert([data], tmp_path / "fresh", BRAIN, jobs=1)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_slice_that_cannot_be_read_keeps_its_series_if_it_is_its_own(data, tmp_path):
    table = convert([data], tmp_path / "images", BRAIN, jobs=1).set_index("SOPInstanceUID")
    for number in range(100, 107):
        assert table.loc[name_of(number), "SeriesInstanceUID"] == "ID_ccccccccc1"
        assert table.loc[name_of(number), "PatientID"] == "ID_aaaaaaaa1"
        assert pd.isna(table.loc[name_of(number), "order"])  # it takes no slice's place
    assert pd.isna(table.loc[name_of(107), "SeriesInstanceUID"])
    foreign = slice_bytes(999)[:-200]
    (data / "stage_2_train" / f"{name_of(100)}.dcm").write_bytes(foreign)
    table = convert([data], tmp_path / "again", BRAIN, jobs=1).set_index("SOPInstanceUID")
    assert table.loc[name_of(100), "status"] == "truncated"
    assert pd.isna(table.loc[name_of(100), "SeriesInstanceUID"])


def test_a_truncated_slice_is_converted_once_it_is_whole_and_the_other_way_round(data, tmp_path):
    out, train = tmp_path / "images", data / "stage_2_train"
    convert([data], out, BRAIN, jobs=1)
    (train / f"{name_of(100)}.dcm").write_bytes(slice_bytes(100))
    (train / f"{name_of(3)}.dcm").write_bytes(slice_bytes(3)[:-200])
    (train / f"{name_of(4)}.dcm").write_bytes(slice_bytes(1000, PatientID="ID_longer_than_it_was"))
    table = convert([data], out, BRAIN, jobs=1)
    status = status_of(table)
    assert [status[name_of(n)] for n in (100, 3, 4)] == ["ok", "truncated", "wrong_id"]
    # No image of their former selves remains.
    assert {name for name in contents(out) if name.endswith(".png")} == set(table["path"].dropna())
    for number in range(10):  # what is left of the odd ones, mended one by one
        (train / f"{name_of(100 + number)}.dcm").write_bytes(slice_bytes(100 + number))
    (train / "bad id.dcm").unlink()
    shutil.rmtree(out)
    assert set(convert([train], out, BRAIN, jobs=1)["status"]) == {"ok", "truncated", "wrong_id"}


def test_an_image_that_was_deleted_is_made_again(data, tmp_path):
    out = tmp_path / "images"
    convert([data], out, BRAIN, jobs=1)
    whole = contents(out)
    (out / "train" / f"{name_of(3)}.png").unlink()
    convert([data], out, BRAIN, jobs=1)
    assert contents(out) == whole


def test_what_the_system_did_not_let_us_read_is_tried_again(data, tmp_path, monkeypatch):
    out, real = tmp_path / "images", Path.read_bytes

    def read_bytes(self):
        if self.stem == name_of(3):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", read_bytes)
        table = convert([data], out, BRAIN, jobs=1)
    row = table.set_index("SOPInstanceUID").loc[name_of(3)]
    assert row["status"] == "unreadable"
    assert "Input/output error" in row["reason"]
    assert status_of(convert([data], out, BRAIN, jobs=1))[name_of(3)] == "ok"


def test_a_split_that_was_given_anew_moves_the_image(tmp_path):
    source, out = write(tmp_path / "data" / "train", {name_of(1): slice_bytes(1)}), tmp_path / "images"
    convert([source], out, BRAIN, jobs=1)
    table = convert([source], out, BRAIN, split="test", jobs=1)
    assert table["path"].tolist() == [f"test/{name_of(1)}.png"]
    assert {name for name in contents(out) if name.endswith(".png")} == set(table["path"])


def test_all_slices_broken_is_a_table_and_no_crash(tmp_path):
    source = write(tmp_path / "train", {name_of(n): b"nothing" for n in range(3)})
    table = convert([source], tmp_path / "images", BRAIN, jobs=1)
    assert set(table["status"]) == {"not_dicom"}
    assert list((tmp_path / "images").rglob("*.png")) == []


# ------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Settings((PRESETS["subdural"],)), "windows: .*'center': 40, 'width': 80.* there, .*80.*200.* here"),
        (THREE, "windows"),
        (Settings(BRAIN.windows, size=16), "size: None there, 16 here"),
        (Settings(BRAIN.windows, fit="stretch"), "fit: pad there, stretch here"),
    ],
)
def test_images_of_two_settings_never_mix(data, tmp_path, other, said):
    out = tmp_path / "images"
    convert([data], out, BRAIN, jobs=1)
    before = contents(out)
    with pytest.raises(IchError, match=f"images holds images of other settings .*{said}"):
        convert([data], out, other, jobs=1)
    assert contents(out) == before


@pytest.mark.parametrize("settings", [BRAIN, THREE, Settings(THREE.windows, files="separate")], ids=["1", "3", "files"])
@pytest.mark.parametrize("harm", ["emptied", "cut", "longer", "deleted"])
def test_a_png_that_was_harmed_is_mended_by_the_same_command(data, tmp_path, settings, harm, monkeypatch):
    out = tmp_path / "images"
    table = convert([data], out, settings, jobs=1).set_index("SOPInstanceUID")
    whole = contents(out)
    paths = [out / "train" / f"{name_of(1)}{suffix}" for suffix in settings.suffixes]
    assert table.loc[name_of(1), "png_size"] == sum(path.stat().st_size for path in paths)
    assert table.loc[table["status"] != "ok", "png_size"].isna().all()
    packed = paths[-1].read_bytes()
    if harm == "deleted":
        paths[-1].unlink()
    else:
        paths[-1].write_bytes({"emptied": b"", "cut": packed[:-20], "longer": packed + b"\0"}[harm])
    read = []
    convert_chunk = module.convert_chunk
    monkeypatch.setattr(module, "convert_chunk", lambda chunk, *more: read.extend(chunk) or convert_chunk(chunk, *more))
    convert([data], out, settings, jobs=1)
    assert contents(out) == whole
    assert [member.id for member in read] == [name_of(1)]  # and nothing else is made again


def test_a_png_packed_by_another_program_is_reported_by_verify(data, tmp_path):
    out = tmp_path / "images"
    convert([data], out, BRAIN, jobs=1)
    path = out / "train" / f"{name_of(1)}.png"
    path.write_bytes(path.read_bytes() + b"\0" * 7)
    size = path.stat().st_size
    problems = module.verify([data], out, BRAIN, jobs=1)
    assert problems == {name_of(1): f"the PNG has {size} bytes, the table says {size - 7}"}


@pytest.mark.parametrize("backend", ["threads", "dask"])
def test_images_are_on_the_disk_before_rows_that_name_them(data, tmp_path, monkeypatch, backend):
    """A power cut cannot be had here; what is synced, and when, can."""
    done = []
    monkeypatch.setattr(module, "_PART_SECONDS", -1.0)
    monkeypatch.setattr(module, "_CHUNK", 2)
    monkeypatch.setattr(module, "sync_filesystem", lambda folder: done.append("sync"))
    monkeypatch.setattr(render_module, "sync_filesystem", lambda folder: done.append("worker"))
    write = module.slice_table.write_table
    monkeypatch.setattr(
        module.slice_table, "write_table", lambda table, path: done.append(path.parent.name) or write(table, path)
    )
    monkeypatch.setattr(
        module.parallel, "unordered", lambda function, tasks, **_: (done.append("done") or function(*t) for t in tasks)
    )
    convert([data], tmp_path / "images", BRAIN, backend=backend)
    assert done[-1] == "images"
    a_part = ["done", *(["worker"] if backend == "dask" else []), "sync", "parts"]
    assert done[:-1] == a_part * (len(done[:-1]) // len(a_part))
    assert done.count("parts") > 3


@pytest.mark.parametrize("name", [".zcompdump-host-5.9", ".viminfo.1", "train", "settings.json"])
def test_a_folder_of_other_things_is_left_alone(data, tmp_path, name):
    home = tmp_path / "home"
    (home / name).parent.mkdir()
    (home / name).write_text('{"editor.fontSize": 12}')
    with pytest.raises(IchError, match=rf"home holds {name} and lacks a readable settings\.json of images"):
        convert([data], home, BRAIN, jobs=1)
    assert contents(home) == {name: b'{"editor.fontSize": 12}'}


def test_what_others_laid_into_a_folder_of_ours_stays(data, tmp_path):
    out = tmp_path / "images"
    convert([data], out, BRAIN, jobs=1)
    others = ["parts/notes.parquet", "train/.thumb.1", ".DS_Store", "train/notes.png"]
    for name in others:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("somebody's")
    (out / "train" / f"{name_of(1)}.png").unlink()
    convert([data], out, BRAIN, jobs=1)
    assert [(out / name).read_text() for name in others] == ["somebody's"] * len(others)


def test_a_second_conversion_is_refused_and_reads_nothing(data, tmp_path):
    out = tmp_path / "images"
    convert([data], out, BRAIN, jobs=1)
    whole = contents(out)
    with in_use(out) as first:
        with pytest.raises(IchError, match=rf"images is in use by process {first.pid} .* since .*; wait until"):
            convert([data], out, BRAIN, jobs=1)
        assert module.verify([data], out, BRAIN, jobs=1) == {}  # who reads needs no lock
    assert contents(out) == whole


@pytest.mark.parametrize("text", [None, "", "{", "[1, 2]", "3", "null", b"\xff\xfe"])
def test_images_of_unknown_settings_are_refused(data, tmp_path, text):
    out = tmp_path / "images"
    convert([data], out, BRAIN, jobs=1)
    path = out / "settings.json"
    path.unlink() if text is None else path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = contents(out)
    for attempt in (lambda: convert([data], out, BRAIN, jobs=1), lambda: check_settings(out, BRAIN)):
        with pytest.raises(IchError, match=r"lacks a readable settings\.json .*another folder"):
            attempt()
    assert contents(out) == before


def test_settings_of_a_later_version_are_refused(tmp_path):
    source, out = write(tmp_path / "train", {name_of(1): slice_bytes(1)}), tmp_path / "images"
    convert([source], out, BRAIN, jobs=1)
    check_settings(out, BRAIN)
    theirs = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps(theirs | {"crop": True}))
    with pytest.raises(IchError, match="crop: True there, False here"):
        convert([source], out, BRAIN, jobs=1)


# ----------------------------------------------------------------------------------------------- nothing half, or lost


@pytest.mark.parametrize(
    "bad",
    ["../../escaped", "/absolute", "..", ".hidden", "a/b", "a\\b", "ID_\n", "x" * 65, "", "ID_\udcff", "-x", "ID ä"],
)
def test_an_id_that_is_no_file_name_is_never_one(tmp_path, bad):
    out = tmp_path / "deep" / "images"
    member = Member(str(tmp_path), "x.dcm", bad, "train", 1)
    (tmp_path / "x.dcm").write_bytes(make_dicom(uid=bad if bad.isascii() else "x"))
    row = convert_slice(member, out, BRAIN)
    assert row["status"] == "bad_id"
    assert "is not an id: expected letters, digits" in row["reason"]
    assert set(contents(tmp_path)) == {"x.dcm"}


def test_strange_names_in_the_sources_become_rows(tmp_path):
    files = {name: slice_bytes(1) for name in ("..", "a\nb", "x" * 200, "ID ä", "%2e", "a;b", "-x")}
    source, out = write(tmp_path / "train", files), tmp_path / "images"
    os.rename(source / "-x.dcm", os.fsencode(source) + b"/\xff\xfe.dcm")  # noqa: PTH104
    table = convert([source], out, BRAIN, jobs=1)
    assert len(table) == len(files)
    assert set(table["status"]) == {"bad_id"}
    assert set(contents(out)) == {"settings.json", "slices.parquet"}
    summary(table).encode()


def test_the_name_of_a_folder_in_another_encoding_is_no_obstacle(tmp_path):
    folder = os.fsencode(tmp_path / "train") + b"/\xff"
    os.makedirs(folder)  # noqa: PTH103
    for name, data in ((name_of(1), slice_bytes(1)), (name_of(2), b"bad")):
        Path(os.fsdecode(folder), f"{name}.dcm").write_bytes(data)
    Path(os.fsdecode(folder), f"{name_of(3)}.dcm").symlink_to("nothing")
    table = convert([tmp_path / "train"], tmp_path / "images", BRAIN, jobs=1)
    assert status_of(table) == {name_of(1): "ok", name_of(2): "not_dicom", name_of(3): "unreadable"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_is_reported_and_what_was_written_counts(data, tmp_path, monkeypatch, jobs):
    out = tmp_path / "images"
    if jobs == 2:  # in workers nothing is patched: a file stands where the folder should be
        out.mkdir()
        check = convert([data], tmp_path / "whole", BRAIN, jobs=1)
        shutil.copy(tmp_path / "whole" / "settings.json", out)
        (out / "train").mkdir()
        (out / "test").mkdir()
        (out / "train" / f"{name_of(5)}.png").mkdir()
        monkeypatch.setattr(module, "_CHUNK", 4)
        with pytest.raises(IchError, match=rf"cannot write .*{name_of(5)}\.png: Is a directory"):
            convert([data], out, BRAIN, jobs=2)
        (out / "train" / f"{name_of(5)}.png").rmdir()
        pd.testing.assert_frame_equal(convert([data], out, BRAIN, jobs=1), check)
        return
    real, calls = Path.write_bytes, itertools.count()

    def write_bytes(self, content):
        if next(calls) == 5:
            real(self, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, content)

    monkeypatch.setattr(module, "_CHUNK", 2)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(IchError, match=r"cannot write .*\.png: No space left on device"):
        convert([data], out, BRAIN, jobs=1)
    for name, content in contents(out).items():
        assert not name.rpartition("/")[2].startswith(".")
        if name.endswith(".png"):
            assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED).shape == (32, 32)
    monkeypatch.undo()
    convert([data], out, BRAIN, jobs=1)
    convert([data], tmp_path / "whole", BRAIN, jobs=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_folder_that_cannot_be_made_or_written_is_reported(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(IchError, match=r"cannot write .*file"):
        convert([data], tmp_path / "file", BRAIN, jobs=1)

    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as shut:
        shut.setattr(Path, "write_text", refuse)
        with pytest.raises(IchError, match=r"cannot write .*settings\.json: Permission denied"):
            convert([data], tmp_path / "images", BRAIN, jobs=1)
    assert contents(tmp_path / "images") == {}
    convert([data], tmp_path / "images", BRAIN, jobs=1)
    (data / "stage_2_train" / f"{name_of(1)}.dcm").write_bytes(b"now broken")
    with monkeypatch.context() as shut:
        shut.setattr(Path, "unlink", refuse)
        with pytest.raises(IchError, match=rf"cannot remove .*{name_of(1)}\.png: Permission denied"):
            convert([data], tmp_path / "images", BRAIN, jobs=1)


def test_sources_that_cannot_be_are_refused_before_anything_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(IchError):
            convert([source], tmp_path / "images", BRAIN, jobs=1)
    assert not (tmp_path / "images").exists()


def test_a_damaged_member_of_a_zip_is_a_row(tmp_path):
    path = tmp_path / "stage_2_train.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(3):
            file.writestr(f"{name_of(number)}.dcm", slice_bytes(number))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    table = convert([path], tmp_path / "images", BRAIN, jobs=1)
    assert sorted(table["status"]) == ["ok", "ok", "unreadable"]
    assert "checksum" in table.set_index("status").loc["unreadable", "reason"]


def test_summary_tells_what_became_of_the_slices(data, tmp_path):
    out = tmp_path / "images"
    lines = summary(convert([data], out, BRAIN, jobs=1)).splitlines()
    assert lines[:3] == ["train: 20 slices", "test: 3 slices", "repaired (wrapped): 1"]
    for kind in set(ODD_STATUS.values()) - {"ok"}:
        assert sum(line.startswith(f"without an image, {kind}: 1 (") for line in lines) == 1
    for name, kind in ODD_STATUS.items():
        assert any(line.startswith(f"  {name}: ") for line in lines) == (kind != "ok")
    nowhere = write(tmp_path / "train", {name_of(1): slice_bytes(1, drop=["ImagePositionPatient"])})
    assert "series with slices without a position: ID_ccccccccc1" in summary(
        convert([nowhere], tmp_path / "other", BRAIN, jobs=1)
    )


def test_summary_tells_of_slices_in_another_plane(tmp_path):
    coronal = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    files = {name_of(n): slice_bytes(n, **(coronal if n in (2, 5) else {})) for n in range(9)}
    said = summary(convert([write(tmp_path / "train", files)], tmp_path / "images", BRAIN, jobs=1)).splitlines()
    assert "slices out of the plane of their series, without a place in it: 2, of ID_ccccccccc1" in said
    assert not any("without a position" in line for line in said)


# --------------------------------------------------------------------------------------------------- the real slices


@pytest.mark.real
def test_every_real_slice_agrees_with_the_formula_in_float64(tmp_path, record_property):
    source, out = Path(os.environ["RSNA_SAMPLE"]) / "rsna-intracranial-hemorrhage-detection.zip", tmp_path / "images"
    table = convert([source], out, THREE, jobs=2).set_index("SOPInstanceUID")
    assert (table["status"] == "ok").all()
    pixels = differing = 0
    with zipfile.ZipFile(source) as file:
        names = [name for name in file.namelist() if name.endswith(".dcm")]
        assert sorted(Path(name).stem for name in names) == sorted(table.index)
        for name in names:
            ds = pydicom.dcmread(io.BytesIO(file.read(name)))
            hu = np.asarray(apply_modality_lut(ds.pixel_array, ds), np.float64)
            image = cv2.imread(str(out / table.loc[Path(name).stem, "path"]), cv2.IMREAD_UNCHANGED)
            for channel, window in zip((2, 1, 0), THREE.windows, strict=True):
                share = np.clip((hu - (window.center - window.width / 2)) / window.width, 0, 1)
                off = np.abs(image[..., channel] - np.rint(share * 255))
                assert off.max() <= 1, name
                pixels += off.size
                differing += np.count_nonzero(off)
    record_property("pixels", pixels)
    record_property("differing", differing)
    print(f"{len(names):,} slices, {pixels:,} gray levels, {differing:,} of them off by one")


def test_a_zip_of_windows_and_other_endings_convert_and_what_is_left_out_is_reported(tmp_path, capsys):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, ending in enumerate([".dcm", ".DICOM", ".IMA"]):
            archive.writestr(f"rsna\\Stage-2-Train\\{name_of(number)}{ending}", slice_bytes(number))
        archive.writestr("rsna\\Stage-2-Train\\IM0001", slice_bytes(3))
        archive.writestr("rsna\\stage_2_train.csv", b"")
    table = convert([path], tmp_path / "out", BRAIN, jobs=1)
    assert table["SOPInstanceUID"].tolist() == [name_of(number) for number in range(3)]
    assert set(table["status"]) == {"ok"}
    assert set(table["split"]) == {"train"}
    message = "not read as slices, and left out: 1 without an extension (such as rsna\\Stage-2-Train\\IM0001)\n"
    assert capsys.readouterr().out == message
    assert module.verify([path], tmp_path / "out", BRAIN, jobs=1) == {}
    assert capsys.readouterr().out == message
