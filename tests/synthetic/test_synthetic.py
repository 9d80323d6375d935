"""Phantom scans: labels say what is seen, files hold what was rendered, and every oddity is where it is declared."""

import importlib.util
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import plan_series

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.folders import locked
from ich.synthetic.archive import FOLDER, _labels_of, render_series, write_archive
from ich.synthetic.bleeds import VISIBLE_AREA, VISIBLE_CONTRAST
from ich.synthetic.dicom_file import to_dicom
from ich.synthetic.head import Head
from ich.synthetic.pixel_format import COMMON_FORMATS, RARE_FORMATS, PixelFormat
from ich.synthetic.plan import ODDITIES, draw_plan

KINDS = LABELS[:-1]
TINY = {"patients": 8, "test_patients": 1, "size": 64, "min_slices": 6, "max_slices": 6, "bleed_factor": 4.0, "seed": 5}

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # `ID_…`, as in the real files


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "tiny.zip"
    return write_archive(path, draw_plan(**TINY))


@pytest.fixture(scope="module")
def plans():
    return {s.uid: (series, s) for series in draw_plan(**TINY) for s in series.slices}


@pytest.fixture(scope="module")
def headers(archive):
    with zipfile.ZipFile(archive.path) as z:
        return {
            name: pydicom.dcmread(io.BytesIO(z.read(name)), stop_before_pixels=True)
            for name in z.namelist()
            if name.endswith(".dcm")
        }


def series_labels(series):
    """The labels that `render_series` gives, without its images and some ten times as fast."""
    head = Head.draw(np.random.default_rng(series.anatomy), noise=bool(series.bleeds))
    return np.stack([_labels_of(head, series, s, series.shift) for s in series.slices])


def read(archive, member):
    with zipfile.ZipFile(archive.path) as z:
        return z.read(member)


def plain_hu(content):
    """HU as a reader gets them that knows nothing of the archive's accidents."""
    d = pydicom.dcmread(io.BytesIO(content))
    return d.pixel_array.astype(np.int32) * int(d.RescaleSlope) + int(d.RescaleIntercept)


def long_csv(archive, name):
    table = pd.read_csv(io.BytesIO(read(archive, f"{FOLDER}/{name}")))
    parts = table["ID"].str.rsplit("_", n=1)
    return table.assign(uid=parts.str[0], label=parts.str[1])


# --- the archive --------------------------------------------------------------------------------------------------


def test_layout_is_the_competitions(archive):
    with zipfile.ZipFile(archive.path) as z:
        assert z.testzip() is None
        names = z.namelist()
    assert names == sorted(names)
    assert len(names) == len(set(names)) == sum(archive.slices.values()) + 2
    train = long_csv(archive, "stage_2_train.csv")
    test = long_csv(archive, "stage_2_sample_submission.csv")
    for table, folder in ((train, "stage_2_train"), (test, "stage_2_test")):
        assert table["label"].tolist() == list(LABELS) * (len(table) // 6)
        images = {Path(n).stem for n in names if n.startswith(f"{FOLDER}/{folder}/")}
        assert set(table["uid"]) == images
        assert table["uid"].str.fullmatch("ID_[0-9a-f]{9}").all()
    assert (test["Label"] == 0.5).all()
    assert archive.slices == {"train": train["uid"].nunique(), "test": test["uid"].nunique()}


def test_labels_are_those_of_the_slices_and_any_is_their_or(archive, plans):
    train = long_csv(archive, "stage_2_train.csv")
    frame = train.drop_duplicates(["uid", "label"]).pivot(index="uid", columns="label", values="Label")[list(LABELS)]
    assert (frame["any"] == frame[list(KINDS)].max(axis=1)).all()
    expected = {}
    for series in {series.series_uid: series for series, _ in plans.values()}.values():
        expected.update(zip((s.uid for s in series.slices), series_labels(series).tolist(), strict=True))
    assert {uid: row.tolist() for uid, row in zip(frame.index, frame.to_numpy(), strict=True)} == {
        uid: expected[uid] for uid in frame.index
    }
    assert archive.prevalence == pytest.approx(frame.mean().to_dict())
    assert 0 < archive.prevalence["any"] < 1


def test_bytes_depend_on_neither_the_run_nor_the_number_of_jobs(archive, tmp_path):
    again = write_archive(tmp_path / "again.zip", draw_plan(**TINY), jobs=2)
    assert again.path.read_bytes() == archive.path.read_bytes()
    assert again.oddities == archive.oddities


def test_another_seed_gives_other_patients():
    uids = [{s.uid for series in draw_plan(patients=2, seed=seed) for s in series.slices} for seed in (0, 1)]
    assert not uids[0] & uids[1]


def test_patients_stay_in_one_split_and_some_have_two_studies():
    plan = draw_plan(patients=60, test_patients=20)
    patients = {split: {s.patient_id for s in plan if s.split == split} for split in ("train", "test")}
    assert not patients["train"] & patients["test"]
    assert len(plan) > len(patients["train"]) + len(patients["test"])
    assert len({s.study_uid for s in plan}) == len({s.series_uid for s in plan}) == len(plan)


def test_prevalences_are_those_of_the_competition():
    # Few slices of many patients: an estimate, within what their number allows.
    plan = draw_plan(patients=250, test_patients=0, min_slices=4, max_slices=4)
    prevalences = np.concatenate([series_labels(series) for series in plan]).mean(axis=0)
    for label, share, target in zip(LABELS, prevalences, (0.0042, 0.048, 0.035, 0.047, 0.063, 0.143), strict=True):
        assert share == pytest.approx(target, rel=0.5 if label == "epidural" else 0.25), label


def test_the_bleed_factor_raises_every_kind():
    def patients_with(kind, factor):
        plan = draw_plan(patients=200, test_patients=0, bleed_factor=factor)
        return len({s.patient_id for s in plan if any(b.kind == kind for b in s.bleeds)})

    assert all(patients_with(kind, 0.0) == 0 for kind in KINDS)
    assert all(patients_with(kind, 4.0) > 1.6 * patients_with(kind, 1.0) > 0 for kind in KINDS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patients": 0}, "1 train patient"),
        ({"test_patients": -1}, "0 test patients"),
        ({"size": 16}, "32 x 32"),
        ({"seed": -1}, "seed"),
        ({"min_slices": 1}, "2 slices or more"),
        ({"min_slices": 9, "max_slices": 8}, "min <= max"),
        ({"bleed_factor": -1.0}, "0 or more"),
        ({"bleed_factor": float("nan")}, "0 or more"),
    ],
)
def test_settings_that_make_no_scan_are_refused(wrong, message):
    with pytest.raises(IchError, match=message):
        draw_plan(**wrong)


def test_no_process_is_refused(tmp_path):
    with pytest.raises(IchError, match="1 process or more"):
        write_archive(tmp_path / "never.zip", [], jobs=0)
    assert not list(tmp_path.iterdir())


# --- oddities -----------------------------------------------------------------------------------------------------


def test_every_oddity_occurs_and_those_of_the_train_set_stay_there(archive):
    assert set(archive.oddities) == set(ODDITIES)
    for place, (name, members) in enumerate(archive.oddities.items()):
        assert members, name
        if place >= 5:
            assert all("/stage_2_train/" in member for member in members), name


@pytest.mark.parametrize("seed", range(6))
def test_eight_patients_suffice_for_every_oddity(seed):
    plan = draw_plan(patients=8, test_patients=2, seed=seed)
    assert {oddity for series in plan for s in series.slices for oddity in s.oddities} == set(ODDITIES)
    assert not any(
        oddity in list(ODDITIES)[5:]
        for series in plan
        if series.split == "test"
        for s in series.slices
        for oddity in s.oddities
    )


def test_declared_oddities_are_what_the_headers_say(archive, headers):
    def having(condition):
        return sorted(name for name, d in headers.items() if condition(d))

    def stored(d):
        return (d.BitsStored, d.PixelRepresentation, int(d.RescaleIntercept))

    odd = archive.oddities
    assert odd["tilted"] == having(lambda d: d.ImageOrientationPatient[4] != 1)
    assert odd["multi-valued window"] == having(lambda d: isinstance(d.WindowCenter, pydicom.multival.MultiValue))
    assert odd["wrapped"] == having(lambda d: stored(d) in {(12, 0, 0), (12, 0, 1)})
    assert {int(headers[name].RescaleIntercept) for name in odd["wrapped"]} == {0, 1}
    for name, stored_as in {
        "unsigned 12-bit, -1024": (12, 0, -1024),
        "signed 16-bit, -1024": (16, 1, -1024),
        "unsigned 12-bit, -1000": (12, 0, -1000),
        "signed 12-bit, 0": (12, 1, 0),
        "signed 16-bit, 0": (16, 1, 0),
    }.items():
        assert odd[name] == having(lambda d, stored_as=stored_as: stored(d) == stored_as)
    assert sorted(odd["not square"] + odd["another size"]) == having(lambda d: (d.Rows, d.Columns) != (64, 64))
    assert {(headers[n].Rows, headers[n].Columns) for n in odd["not square"]} == {(64, 50), (75, 64)}
    assert len({d.PixelSpacing[0] for d in headers.values()}) > 2
    assert {d.file_meta.TransferSyntaxUID.is_implicit_VR for d in headers.values()} == {True, False}


def test_tags_are_consistent(headers, plans):
    for name, d in headers.items():
        series, _ = plans[d.SOPInstanceUID]
        assert name == f"{FOLDER}/stage_2_{series.split}/{d.SOPInstanceUID}.dcm"
        assert (d.Modality, d.PhotometricInterpretation, d.SamplesPerPixel) == ("CT", "MONOCHROME2", 1)
        assert (d.PatientID, d.StudyInstanceUID) == (series.patient_id, series.study_uid)
        assert d.SeriesInstanceUID == series.series_uid
        assert (d.BitsAllocated, d.HighBit) == (16, d.BitsStored - 1)
        right, down = np.array(d.ImageOrientationPatient).reshape(2, 3)
        assert [right @ right, down @ down, right @ down] == pytest.approx([1, 1, 0], abs=1e-5)


def test_the_repeated_slices_share_their_place_and_no_others_do(archive, headers):
    twins = archive.oddities["same z"]
    assert len(twins) == 2
    places = {}
    for name, d in headers.items():
        places.setdefault((d.SeriesInstanceUID, tuple(d.ImagePositionPatient)), []).append(name)
    assert [sorted(names) for names in places.values() if len(names) > 1] == [twins]
    assert plain_hu(read(archive, twins[0])).tolist() != plain_hu(read(archive, twins[1])).tolist()


def test_one_image_is_listed_twice_with_equal_labels(archive):
    train = long_csv(archive, "stage_2_train.csv")
    repeated = train[train.duplicated("ID", keep=False)]
    assert set(repeated["uid"]) == {Path(member).stem for member in archive.oddities["listed twice"]}
    assert len(repeated) == 12
    assert (repeated.groupby("ID")["Label"].nunique() == 1).all()


def test_the_truncated_file_alone_has_too_few_pixels(archive, headers):
    (truncated,) = archive.oddities["truncated"]
    with pytest.raises((ValueError, EOFError)):
        plain_hu(read(archive, truncated))
    for name in headers.keys() - {truncated}:
        assert plain_hu(read(archive, name)).shape == (headers[name].Rows, headers[name].Columns)


def test_a_file_decodes_to_the_rendered_hu(archive, plans):
    seen = set()
    for oddity, members in archive.oddities.items():
        uid = Path(members[0]).stem
        if oddity == "truncated":
            continue
        series, plan = plans[uid]
        rendered = next(r for s, r in zip(series.slices, render_series(series), strict=True) if s.uid == uid)
        decoded = plain_hu(read(archive, members[0]))
        if plan.stored_as.wrapped:
            raw = decoded - plan.stored_as.intercept
            assert raw.max() > 3000  # air, far above bone: what gives such a file away
            decoded = (raw + 1000) % 4096 - 1000
        assert np.array_equal(decoded, rendered.hu), oddity
        seen.add(plan.stored_as.name)
    assert len(seen) == 6


def test_padding_lies_outside_the_circle_and_nowhere_else(archive, headers):
    for name in archive.oddities["padded"]:
        if name in archive.oddities["truncated"]:
            continue
        hu = plain_hu(read(archive, name))
        padding = -2000 + int(headers[name].RescaleIntercept)
        assert hu[0, 0] == hu[-1, -1] == padding
        inside = np.abs(np.arange(hu.shape[0]) - hu.shape[0] / 2) < hu.shape[0] / 4
        assert hu[inside][:, hu.shape[1] // 4 : -hu.shape[1] // 4].min() >= -1024


# --- pixel formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("stored_as", [*COMMON_FORMATS, *RARE_FORMATS])
def test_a_format_holds_its_range_and_clips_what_lies_beyond(stored_as, explicit):
    hu = np.linspace(-32768, 32767, 63).astype(np.int16).reshape(7, 9)
    series = replace(plan_series(), explicit=explicit)
    decoded = plain_hu(to_dicom(hu, series, replace(series.slices[0], stored_as=stored_as)))
    assert np.array_equal(decoded, np.clip(hu.astype(np.int32), *stored_as.hu_range))


@pytest.mark.parametrize("intercept", [0, 1])
def test_the_wrapped_format_is_mended_by_adding_1000_modulo_4096(intercept):
    hu = np.arange(-1000, 3096, dtype=np.int16).reshape(64, 64)
    raw = PixelFormat(intercept=intercept, wrapped=True).store(hu)
    assert raw.dtype == np.uint16
    assert raw.max() <= 4095
    shifted = raw.astype(np.int32) + 1000
    shifted[shifted >= 4096] -= 4096
    assert np.array_equal(shifted - 1000, hu)


# --- what is seen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_bleed_is_brighter_than_the_same_slice_without(kind):
    plan = plan_series(seed=3, kinds=(kind,), slices=14, size=96)
    healthy = list(render_series(replace(plan, bleeds=())))
    column = LABELS.index(kind)
    labeled = 0
    for with_blood, without in zip(render_series(plan), healthy, strict=True):
        assert not without.labels.any()
        difference = with_blood.hu.astype(int) - without.hu
        if with_blood.labels[column]:
            labeled += 1
            brighter = difference >= VISIBLE_CONTRAST - 2
            assert brighter.sum() * plan.slices[0].spacing ** 2 > 0.5 * VISIBLE_AREA
            blood = np.median(with_blood.hu[difference > 20]) if (difference > 20).any() else 50
            assert 35 < blood < 90
        assert with_blood.labels[-1] == with_blood.labels[:-1].max()
    assert 2 <= labeled < len(healthy)


def test_a_label_does_not_depend_on_the_image_size():
    labels = [
        np.stack([s.labels for s in render_series(plan_series(seed=1, kinds=("subdural",), slices=8, size=size))])
        for size in (64, 160)
    ]
    assert np.array_equal(*labels)


def test_calcifications_are_bright_and_not_labeled():
    brightest = 0
    for seed in range(6):
        for s in render_series(plan_series(seed=seed, kinds=(), slices=16, size=160)):
            assert not s.labels.any()
            middle = s.hu[60:100, 60:100]
            if (middle < 60).mean() > 0.9:  # brain and ventricles, no skull base
                brightest = max(brightest, int(middle.max()))
    assert brightest > 100


def test_a_head_has_the_hu_of_a_head():
    middle = list(render_series(plan_series(seed=2, kinds=(), slices=20, size=128)))[12].hu
    shares = {
        "air": (middle < -900).mean(),
        "brain": ((middle > 15) & (middle < 55)).mean(),
        "bone": (middle > 500).mean(),
    }
    assert 0.3 < shares["air"] < 0.8
    assert 0.12 < shares["brain"] < 0.5
    assert 0.01 < shares["bone"] < 0.15
    assert abs(np.median(middle[(middle > 10) & (middle < 60)]) - 32) < 6


def test_the_slices_cover_the_head_from_the_base_to_above_the_vertex():
    plan = plan_series(seed=4, kinds=(), slices=16, size=64)
    slices = list(render_series(plan))
    bone = [(s.hu > 400).sum() for s in slices]
    assert bone[-1] < max(bone) / 3
    assert (slices[0].hu > -200).sum() > 64 * 64 / 6
    assert np.diff([plan.position(s)[2] for s in plan.slices]).min() > 0


# --- the script ---------------------------------------------------------------------------------------------------


def test_the_script_writes_hard_scans_with_as_many_bleeds_as_in_the_competition(script, tmp_path, capsys):
    path = tmp_path / "hard.zip"
    usual = [str(path), "--patients=1", "--test-patients=0", "--size=32", "--min-slices=2", "--max-slices=2"]
    script.main([*usual, "--jobs=1", "--hard"])
    settings = json.loads(path.with_suffix(".json").read_text())["settings"]
    assert (settings["hard"], settings["bleed_factor"]) == (True, 1.0)
    easy = tmp_path / "easy.zip"
    easy_usual = [str(easy), *usual[1:], "--jobs=1"]
    script.main(easy_usual)
    assert easy.read_bytes() != path.read_bytes()
    record = json.loads(easy.with_suffix(".json").read_text())
    assert (record["settings"].pop("hard"), record["settings"]["bleed_factor"]) == (False, 4.0)
    easy.with_suffix(".json").write_text(json.dumps(record))  # as versions without --hard wrote it
    capsys.readouterr()
    script.main(easy_usual)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(IchError, match=r"bleed_factor 4\.0, not 1\.0, hard False, not True"):
        script.main([*easy_usual, "--hard"])


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "scripts" / "make_demo_data.py"
    spec = importlib.util.spec_from_file_location("make_demo_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_leaves_a_file_alone_that_is_not_its_own(script, tmp_path):
    record = tmp_path / "package.json"
    record.write_text('{"name": "somebody\'s"}')
    for more in ([], ["--force"]):
        with pytest.raises(IchError, match=r"package\.json is there, and not this script's, which would write it"):
            script.main([str(tmp_path / "package.zip"), "--patients", "8", "--size", "64", *more])
    assert [path.name for path in tmp_path.iterdir()] == ["package.json"]
    assert record.read_text() == '{"name": "somebody\'s"}'


def test_the_script_leaves_other_files_with_settings_and_refuses_what_is_no_zip(script, tmp_path):
    (tmp_path / "study.json").write_text('{"settings": {"editor.fontSize": 14}, "my": "years of notes"}')
    with pytest.raises(IchError, match=r"study\.json is there, and not this script's"):
        script.main([str(tmp_path / "study.zip"), "--size", "64"])
    for name, said in (("record.json", "is no name of a zip"), ("folder.zip", "is a directory")):
        (tmp_path / "folder.zip").mkdir(exist_ok=True)
        with pytest.raises(IchError, match=rf"{name} {said}; name a file ending in .zip"):
            script.main([str(tmp_path / name), "--force"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.zip", "study.json"]


def test_the_script_refuses_a_folder_that_is_a_file(script, tmp_path):
    (tmp_path / "file").write_text("notes")
    for name in ("file/x.zip", "file/deep/x.zip"):
        with pytest.raises(IchError, match=r"file is a file, expected a directory; name an archive in another"):
            script.main([str(tmp_path / name), "--patients=1", "--size=32"])
    assert (tmp_path / "file").read_text() == "notes"


def test_the_script_writes_once_and_refuses_other_settings(script, tmp_path, capsys):
    path = tmp_path / "demo.zip"
    usual = [
        str(path),
        "--patients=1",
        "--test-patients=1",
        "--size=32",
        "--min-slices=2",
        "--max-slices=3",
        "--jobs=1",
    ]
    script.main(usual)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["settings"]["patients"] == 1
    assert set(record["oddities"]) == set(ODDITIES)
    before = path.read_bytes()
    script.main(usual)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(IchError, match="seed 0, not 1; name another file, or add --force"):
        script.main([*usual, "--seed=1"])
    assert path.read_bytes() == before
    script.main([*usual, "--seed=1", "--force"])
    assert path.read_bytes() != before
    record = path.with_suffix(".json")
    before = path.read_bytes()
    in_use = pytest.raises(IchError, match="is in use by process")
    with locked(tmp_path, name="demo"), ThreadPoolExecutor(1) as other, in_use:
        other.submit(script.main, [*usual, "--force"]).result()
    assert path.read_bytes() == before
    settings = json.loads(record.read_text())["settings"]
    record.write_text(json.dumps({"unfinished": settings}))  # as a kill leaves it
    with pytest.raises(IchError, match="made with unknown settings; name another file, or add --force"):
        script.main(usual)
    assert path.read_bytes() == before
    script.main([*usual, "--seed=1"])
    assert json.loads(record.read_text())["settings"] == settings
    record.unlink()
    for more in ([], ["--force"]):
        with pytest.raises(IchError, match=r"demo\.zip is there without .*demo\.json, which this script writes beside"):
            script.main([*usual, *more])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["demo.zip"]
