"""What the conversion goes through and comes out of whole: kills, damaged slices, odd names, full disks."""

import errno
import io
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from conftest import make_dicom, plan_series
from damage import cut, flip, hole, repeat
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from ich.dicom.member import Member
from ich.dicom.reader import read
from ich.dicom.slice_error import DicomError
from ich.dicom.windows import PRESETS
from ich.errors import IchError
from ich.images import convert as module
from ich.images import slice_table
from ich.images.convert import convert, summary, verify
from ich.images.render import STATUSES, Settings, convert_slice
from ich.synthetic.archive import render_series
from ich.synthetic.dicom_file import to_dicom
from ich.synthetic.pixel_format import COMMON_FORMATS, RARE_FORMATS, PixelFormat

ROOT = Path(__file__).parents[2]
BRAIN = Settings((PRESETS["brain"],))
SEPARATE = Settings((PRESETS["brain"], PRESETS["bone"]), files="separate")


def name_of(number):
    return f"ID_{number:09x}"


def contents(folder):
    """All files but the list of commands, which says when each was given."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "commands.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def noisy(number, side=64, **tags):
    stored = np.random.default_rng(number).integers(900, 1200, (side, side)).astype(np.uint16)
    return make_dicom(stored, **{"uid": name_of(number), "ImagePositionPatient": [0, 0, number]} | tags)


def pack(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


# ------------------------------------------------------------------------------------------------------------ kills

# The script itself, with rows saved often enough that a short run has some to come back to.
SCRIPT = """
import runpy, sys
from ich.images import convert
convert._PART_SECONDS, convert._CHUNK = 0.05, 16
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(source, out, jobs):
    command = [sys.executable, "-c", SCRIPT, ROOT / "scripts" / "preprocess.py", ROOT / "configs" / "demo.yaml"]
    for key, value in {"data.sources": source, "data.images": out, "machine.jobs": jobs}.items():
        command += ["--set", f"{key}={value}"]
    for key, value in {"windows": "[brain, bone]", "files": "separate", "crop": "true", "size": 32}.items():
        command += ["--set", f"preprocess.{key}={value}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, start_new_session=True, **quiet)


def count(folder):
    return sum(1 for _ in folder.glob("*.png")) if folder.is_dir() else 0


@pytest.mark.parametrize(("kills", "slices"), [(3, 800), pytest.param(40, 1200, marks=pytest.mark.slow)])
def test_killed_many_times_and_resumed_it_ends_as_if_undisturbed(tmp_path, kills, slices):
    files = {f"train/{name_of(n)}.dcm": noisy(n) if n % 97 else noisy(n)[:-99] for n in range(slices)}
    source = pack(tmp_path / "data.zip", files)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    with start(source, whole, 1) as undisturbed:
        while not count(whole / "train"):
            time.sleep(0.01)
            assert undisturbed.poll() is None, undisturbed.stderr.read()
        begun = time.monotonic()
        undisturbed.communicate()
        seconds = time.monotonic() - begun
    assert undisturbed.returncode == 3  # some slices are truncated

    rng = random.Random(0)
    within = parts = 0
    for kill in range(kills):
        with start(source, out, 1 if kill % 5 else 2) as running:
            try:
                before = count(out / "train")
                # Some from the very start, as the folder is looked through; the rest among the slices.
                while kill % 5 != 4 and running.poll() is None and count(out / "train") == before:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, seconds / (1.5 * max(kills, 6))))
                within += running.poll() is None
            finally:
                with suppress(ProcessLookupError):  # it may have just ended
                    os.killpg(running.pid, signal.SIGKILL)
        parts = max(parts, len(list(out.glob("parts/[!.]*"))))
        for path in out.glob("train/[!.]*.png"):  # at any moment each PNG is whole
            assert path.read_bytes()[-8:-4] == b"IEND", path
    assert within >= 3 * kills // 4
    assert parts > 1
    with start(source, out, 1) as last:
        errors = last.communicate()[1].decode()
    assert last.returncode == 3, errors
    assert contents(out) == contents(whole)
    assert not (out / "parts").exists()


# What a kill leaves at the steps that it seldom hits: of parts and tables, before and after.
@pytest.mark.parametrize("table", ["none", "old", "new"])
@pytest.mark.parametrize("half", [False, True])
def test_what_a_kill_leaves_of_parts_and_table_is_no_obstacle(tmp_path, monkeypatch, table, half):
    source, out = tmp_path / "train", tmp_path / "images"
    source.mkdir()
    for number in range(10):
        (source / f"{name_of(number)}.dcm").write_bytes(noisy(number))
    convert([source], tmp_path / "whole", BRAIN, jobs=1)
    monkeypatch.setattr(module, "_CHUNK", 1)
    monkeypatch.setattr(module, "_PART_SECONDS", -1.0)  # a part a slice
    monkeypatch.setattr(module, "discard", lambda *_: None)
    if table == "old":
        for number in range(6, 10):
            (source / f"{name_of(number)}.dcm").rename(tmp_path / f"{number}")
        convert([source], out, BRAIN, jobs=1)
        for number in range(6, 10):
            (tmp_path / f"{number}").rename(source / f"{name_of(number)}.dcm")
    convert([source], out, BRAIN, jobs=1)
    monkeypatch.undo()
    parts = sorted((out / "parts").glob("*.parquet"))
    assert len(parts) == 10
    if table == "none":
        (out / "slices.parquet").unlink()
        for part in parts[3:6]:
            part.unlink()
    if half:
        temporary = f".ich-{'0' * 32}.tmp"
        (out / "parts" / f"{temporary}.parquet").write_bytes(parts[0].read_bytes()[:100])
        (out / f"{temporary}.parquet").write_bytes(b"PAR1")
        (out / "train" / f"{temporary}.png").write_bytes(b"\x89PNG")
    convert([source], out, BRAIN, jobs=1)
    assert contents(out) == contents(tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------- mutants


@lru_cache
def _phantoms():
    return [s.hu for s in render_series(plan_series(seed=1, kinds=["subdural"], slices=20, size=64))][4:16:3]


def originals():
    """Whole slices of 64 × 64 in every format and syntax, by a name for messages."""
    slices = {}
    for place, fmt in enumerate([*COMMON_FORMATS, *RARE_FORMATS, PixelFormat(intercept=0, wrapped=True)]):
        for explicit in (True, False):
            hu = _phantoms()[place % len(_phantoms())]
            series = replace(plan_series(), explicit=explicit)
            plan = replace(series.slices[0], stored_as=fmt, uid=name_of(1))
            slices[f"{fmt.name} {explicit}"] = to_dicom(hu, series, plan)
    stored = (np.clip(_phantoms()[0], -1024, 3000) + 1024).astype(np.uint16)
    for syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless):
        slices[syntax.name] = make_dicom(stored, uid=name_of(1), syntax=syntax)
    return slices


def elements(data):
    """Where the elements of a dataset in explicit little endian lie: tag, VR, start, start of the value, end."""
    at, listed = 132, []
    while at + 8 <= len(data):
        group, element, vr = struct.unpack_from("<HH2s", data, at)
        long = vr in (b"OB", b"OW", b"UN", b"SQ", b"UT")
        value = at + (12 if long else 8)
        (length,) = struct.unpack_from("<I" if long else "<H", data, at + (8 if long else 6))
        listed.append((group << 16 | element, vr, at, value, value + length))
        at = value + length
    return listed


def flip_header(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        data[rng.randrange(min(len(data), 1100))] = rng.randrange(256)
    return bytes(data)


def lose(rng, data):
    _, _, start, _, end = rng.choice(elements(data)[2:])
    return data[:start] + data[end:]


NONSENSE = [b"", b"\0\0", b"abc ", b"1e999 ", b"-0\\7 ", b"NaN ", b"\xff" * 8, b"9" * 64, b"\x00\x80", b"inf ", b"../x"]


def nonsense(rng, data):
    _, vr, start, value, end = rng.choice(elements(data)[6:-1])
    new = rng.choice(NONSENSE)
    length = struct.pack("<H", len(new)) if value - start == 8 else b"\0\0" + struct.pack("<I", len(new))
    return data[: start + 4] + vr + length + new + data[end:]


def wrong_length(rng, data):
    *_, start, value, _ = rng.choice(elements(data))
    new = rng.choice([0, 1, 2, 0xFFFF, 0x7FFF, rng.randrange(65536)])
    if value - start == 12:
        return data[: start + 8] + struct.pack("<I", rng.choice([new, 0xFFFFFFFF, 0x7FFFFFFF])) + data[value:]
    return data[: start + 6] + struct.pack("<H", new) + data[value:]


def sides(rng, data):
    data = bytearray(data)
    for tag, _, _, value, _ in elements(data):
        if tag in (0x00280010, 0x00280011) and rng.random() < 0.8:
            struct.pack_into("<H", data, value, rng.choice([0, 1, 63, 65, 128, 4096, 65535, rng.randrange(65536)]))
    return bytes(data)


def modality(rng, data):
    kind = rng.choice([b"MR", b"OT", b"SR", b"US", b"ct", b"\xff\xff"])
    return data.replace(b"\x08\0\x60\0CS\x02\0CT", b"\x08\0\x60\0CS\x02\0" + kind)


def numbers(rng, data):
    data = bytearray(data)
    for tag, _, _, value, _ in elements(data):
        if tag in (0x00280002, 0x00280100, 0x00280101, 0x00280102, 0x00280103) and rng.random() < 0.4:
            struct.pack_into("<H", data, value, rng.choice([0, 1, 2, 8, 12, 16, 17, 32, 64, 65535]))
    return bytes(data)


def syntax_of(data, syntax):
    """The file with another transfer syntax in its header, the rest as it stands."""
    _, _, start, _, end = next(e for e in elements(data) if e[0] == 0x00020010)
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    return data[: start + 6] + struct.pack("<H", len(uid)) + uid + data[end:]


def another_syntax(rng, data):
    named = [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
    return syntax_of(data, rng.choice([*named, JPEGBaseline8Bit, JPEGLosslessSV1, "1.2.3", "1.2.840.10008.1.2.4.50.9"]))


def jpeg_inside(rng, data):
    """JPEG data in an uncompressed syntax, as they are or in the fragments of a compressed one."""
    start = elements(data)[-1][2]
    jpeg = cv2.imencode(".jpg", np.full((64, 64), 128, np.uint8))[1].tobytes()
    jpeg += b"\0" * (len(jpeg) % 2)
    if rng.random() < 0.5:
        return data[: start + 8] + struct.pack("<I", len(jpeg)) + jpeg
    item = b"\xfe\xff\0\xe0"
    fragments = item + bytes(4) + item + struct.pack("<I", len(jpeg)) + jpeg + b"\xfe\xff\xdd\xe0" + bytes(4)
    return data[: start + 8] + b"\xff" * 4 + fragments


def bomb(rng, data):
    """Half a gigabyte of zeros, or of elements, in half a megabyte."""
    deflated = syntax_of(data, DeflatedExplicitVRLittleEndian)
    first = next(start for tag, _, start, _, _ in elements(deflated) if tag >> 16 != 2)
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    out = [deflate.compress(deflated[first:] if rng.random() < 0.5 else b"")]
    out += [deflate.compress(bytes(2**20)) for _ in range(rng.choice([200, 512]))]
    return deflated[:first] + b"".join(out) + deflate.flush()


ANY = [flip, flip_header, cut, hole, repeat]
PLAIN = [lose, nonsense, wrong_length, sides, modality, numbers, another_syntax, jpeg_inside]


def mutants(whole, seed, number):
    """Damaged slices with a name for messages; those of the elements only of explicit little endian."""
    rng = random.Random(seed)
    explicit = [name for name, data in whole.items() if ExplicitVRLittleEndian.encode() + b"\0" in data[:400]]
    for place in range(number):
        damage = rng.choice(ANY) if place % 3 == 0 else rng.choice(PLAIN)
        if place % 250 == 249:
            damage = bomb
        name = rng.choice(list(whole) if damage in ANY else explicit)
        yield f"{place}: {damage.__name__} of {name}", damage(rng, whole[name])


def oracle(data):
    """HU by pydicom's own reading, float64; None where it has none."""
    try:
        ds = pydicom.dcmread(io.BytesIO(data))
        if ds.get("SamplesPerPixel") is None:
            ds.SamplesPerPixel = 1  # which pydicom would have to be told
        if ds.get("SamplesPerPixel") is None:
            ds.SamplesPerPixel = 1  # which pydicom would have to be told
        # Unused bits as they are, as `read` takes them: they hold the sign of padding and metal.
        return np.asarray(apply_modality_lut(pixel_array(ds, correct_unused_bits=False), ds), np.float64)
    except Exception:  # noqa: BLE001 - it meets damaged files with anything
        return None


def survive(whole, folder, seed, number):
    """Convert mutants; how many came out with which status."""
    out, path = folder / "images", folder / f"{name_of(1)}.dcm"
    window = PRESETS["brain"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = dict.fromkeys(["ok", *STATUSES], 0)
    for name, data in mutants(whole, seed, number):
        path.write_bytes(data)
        begun = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = convert_slice(Member(str(folder), path.name, path.stem, "train", len(data)), out, BRAIN)
        assert time.monotonic() - begun < 10, name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000, name  # KB
        outcomes[row["status"]] += 1  # KeyError: no kind of failure
        written = contents(out) if out.exists() else {}
        assert slice_table.to_frame([row])["status"][0] == row["status"]
        if row["status"] != "ok":
            assert row["reason"], name
            assert not written, name
            continue
        assert list(written) == [f"train/{name_of(1)}.png"], name
        image = cv2.imdecode(np.frombuffer(*written.values(), np.uint8), cv2.IMREAD_UNCHANGED)
        assert image.shape == (row["Rows"], row["Columns"]), name
        (out / row["path"]).unlink()
        if row["repaired"]:
            hu = read(data)[0].astype(np.float64)  # not pydicom's to judge; but what it shows is checked
        elif (hu := oracle(data)) is None:
            raise AssertionError(f"{name}: converted, and pydicom cannot read it")
        share = (hu - (window.center - window.width / 2)) / window.width
        expected = np.rint(np.clip(share, 0, 1) * 255)
        assert np.abs(image - expected).max() <= 2, name  # HU are rounded to whole ones first
    return outcomes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutants_are_converted_right_or_quarantined(tmp_path, number):
    outcomes = survive(originals(), tmp_path, 2019, number)
    assert sum(outcomes.values()) == number
    # Of the file and its name, which are whole, and of what no damage makes of a slice.
    kinds = set(STATUSES) - {"unreadable", "bad_id", "secondary_capture", "localizer", "not_hu"}
    assert all(outcomes[kind] for kind in ["ok", *kinds]), outcomes
    print(outcomes)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
def test_mutants_of_real_slices_are_converted_right_or_quarantined(tmp_path):
    (path,) = Path(os.environ["RSNA_SAMPLE"]).glob("*.zip")
    whole = {}
    with zipfile.ZipFile(path) as file:
        names = [name for name in file.namelist() if name.endswith(".dcm")]
        for name in names[:: len(names) // 20]:
            whole[name] = file.read(name).replace(Path(name).stem.encode(), name_of(1).encode())
    outcomes = survive(whole, tmp_path, 7, 1000)
    assert outcomes["ok"] > 50, outcomes
    print(outcomes)


# ------------------------------------------------------------------------------------------------------ identifiers


def test_identifiers_never_lead_outside_the_folder_nor_over_another(tmp_path):
    strange = [
        "../../up",
        "..\\..\\escaped",
        "/etc/absolute",
        "..",
        "a\nb",
        "x" * 300,
        "ID_1\t",
        "con\x01",
        " ",
        "",
    ]
    files = {f"train/{n}/{name}.dcm": noisy(n) for n, name in enumerate(strange)} | {
        f"train/{name_of(50)}.dcm": noisy(50)
    }
    place = tmp_path / "deep" / "deeper"
    place.mkdir(parents=True)
    source = pack(place / "data.zip", files)
    table = convert([source], place / "images", BRAIN, jobs=1).set_index("status")
    assert table["SOPInstanceUID"]["ok"] == name_of(50)
    assert table.index.isin(["bad_id", "wrong_id"]).sum() == len(table) - 1
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    images = {f"deep/deeper/images/{name}" for name in ("settings.json", "slices.parquet", f"train/{name_of(50)}.png")}
    assert written == {"deep/deeper/data.zip"} | images
    summary(table.reset_index()).encode()
    assert verify([source], place / "images", BRAIN, jobs=1) == {}


@pytest.mark.parametrize("where", ["one zip", "two folders", "two zips", "zip and folder"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_id_with_two_images_is_refused_and_neither_wins(tmp_path, where):
    first, second = noisy(1, PatientID="first"), make_dicom(uid=name_of(1), PatientID="second")
    names = [f"train/{name_of(1)}.dcm", f"test/{name_of(1)}.dcm"]
    if where == "one zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            file.writestr(names[0], first)
            file.writestr(names[0], second)
        sources = [tmp_path / "a.zip"]
    else:
        sources = []
        for kind, name, data in zip(where.replace("two", "").split(" and ") * 2, names, (first, second), strict=False):
            path = tmp_path / f"{len(sources)}"
            if "zip" in kind:
                sources.append(pack(path.with_suffix(".zip"), {name: data}))
            else:
                (path / name).parent.mkdir(parents=True)
                (path / name).write_bytes(data)
                sources.append(path)
    with pytest.raises(IchError, match=rf"1 slice\(s\) are twice in the sources, {name_of(1)} as .* and .*give each"):
        convert(sources, tmp_path / "images", BRAIN, jobs=1)
    assert not (tmp_path / "images").exists()


# ---------------------------------------------------------------------------------------------------------- the disk


@pytest.mark.parametrize("settings", [BRAIN, SEPARATE], ids=["channels", "separate"])
@pytest.mark.parametrize("seed", range(6))
def test_a_disk_that_is_full_at_any_moment_is_reported_and_resumed(tmp_path, monkeypatch, settings, seed):
    source, out = tmp_path / "train", tmp_path / "images"
    source.mkdir()
    for number in range(12):
        (source / f"{name_of(number)}.dcm").write_bytes(noisy(number, 32))
    convert([source], tmp_path / "whole", settings, jobs=1)
    whole = contents(tmp_path / "whole")
    monkeypatch.setattr(module, "_CHUNK", 2)
    monkeypatch.setattr(module, "_PART_SECONDS", -1.0)
    rng = random.Random(seed)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    failures = 0
    for _ in range(8):
        left = rng.randrange(12)

        def spend(real):
            def write(self, data, *rest, **more):
                nonlocal left
                left -= 1
                if left < 0:
                    real(self, data[: len(data) // 2], *rest, **more)
                    raise full
                return real(self, data, *rest, **more)

            return write

        def write_parquet(table, path, real=slice_table.pq.write_table):
            nonlocal left
            left -= 1
            if left < 0:
                Path(path).write_bytes(b"PAR1")
                raise full
            real(table, path)

        with monkeypatch.context() as limited:
            limited.setattr(Path, "write_bytes", spend(Path.write_bytes))
            limited.setattr(Path, "write_text", spend(Path.write_text))
            limited.setattr(slice_table.pq, "write_table", write_parquet)
            try:
                convert([source], out, settings, jobs=1)
            except IchError as error:
                failures += 1
                assert "No space left on device; make room" in str(error)  # noqa: PT017
        for name, content in contents(out).items():
            assert not name.rpartition("/")[2].startswith(".")
            if name.endswith(".png"):
                assert content == whole[name]
            elif name.endswith(".parquet"):
                slice_table.read_table(out / name)
    assert failures
    convert([source], out, settings, jobs=1)
    assert contents(out) == whole


def test_a_disk_that_is_really_full_is_reported_and_resumed(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no rights to mount a small file system")
    try:
        source = tmp_path / "train"
        source.mkdir()
        for number in range(60):
            (source / f"{name_of(number)}.dcm").write_bytes(noisy(number, 128))
        with pytest.raises(IchError, match=r"cannot write .*: .*[Nn]o space left"):
            convert([source], small / "images", BRAIN, jobs=2)
        pngs = list(small.rglob("*.png"))
        assert pngs
        for path in pngs:
            assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (128, 128)
        subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
        convert([source], small / "images", BRAIN, jobs=1)
        convert([source], tmp_path / "whole", BRAIN, jobs=1)
        assert contents(small / "images") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "-l", small], check=False)


def test_a_file_where_a_folder_should_be_is_reported(tmp_path):
    source = tmp_path / "train"
    source.mkdir()
    (source / f"{name_of(1)}.dcm").write_bytes(noisy(1))
    for name in ("train", "parts"):
        out = tmp_path / f"images-{name}"
        out.mkdir()
        convert([source], tmp_path / "whole", BRAIN, jobs=1)
        (out / "settings.json").write_bytes((tmp_path / "whole" / "settings.json").read_bytes())
        (out / name).write_text("")
        with pytest.raises(IchError, match=rf"cannot tidy .*{name}: Not a directory"):
            convert([source], out, BRAIN, jobs=1)


def test_a_bomb_is_refused_by_its_size(tmp_path):
    data = bomb(random.Random(0), originals()["unsigned 12-bit, -1024 True"])
    with pytest.raises(DicomError, match="inflate to more than 134,217,728 bytes") as caught:
        read(data)
    assert caught.value.kind == "unsupported"
