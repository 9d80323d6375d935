import io
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich.dicom import archive
from ich.dicom.archive import members, open_table
from ich.errors import IchError

FILES = {
    "rsna/stage_2_train/ID_0000000a1.dcm": b"one" * 300,
    "rsna/stage_2_train/ID_0000000a2.dcm": os.urandom(777),
    "rsna/stage_2_test/ID_0000000b1.dcm": b"",
    "rsna/stage_2_train.csv": b"ID,Label\n",
    "rsna/readme.txt": b"no slice",
}
SLICES = {Path(name).stem: (name, data) for name, data in FILES.items() if name.endswith(".dcm")}


def as_folder(place, files=FILES):
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def as_zip(path, files=FILES, method=zipfile.ZIP_DEFLATED, **options):
    with zipfile.ZipFile(path, "w", method, **options) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


class Pipe(io.BytesIO):
    """What can only be written on and on."""

    def tell(self):
        raise io.UnsupportedOperation

    seek = tell


def ids(listed):
    return [member.id for member in listed]


# -------------------------------------------------------------------------------------------------- what is there


@pytest.mark.parametrize("kind", ["folder", "stored", "deflated"])
def test_each_slice_is_found_once_with_its_bytes_and_split(tmp_path, kind):
    if kind == "folder":
        source = as_folder(tmp_path / "data")
    else:
        source = as_zip(tmp_path / "data.zip", method=getattr(zipfile, f"ZIP_{kind.upper()}"))
    listed = members([source])
    assert ids(listed) == sorted(SLICES)
    for member in listed:
        name, data = SLICES[member.id]
        assert (member.name, member.size, member.read()) == (name, len(data), data)
        assert member.split == ("test" if "test" in name else "train")


def test_folder_zip_and_several_of_them_give_the_same(tmp_path):
    train = {name: data for name, data in FILES.items() if "train" in name}
    test = {name: data for name, data in FILES.items() if "test" in name}
    together = members([as_folder(tmp_path / "a", train), as_zip(tmp_path / "b.zip", test)])
    assert [(m.id, m.split, m.read()) for m in together] == [
        (m.id, m.split, m.read()) for m in members([as_zip(tmp_path / "all.zip")])
    ]


def test_a_zip_behind_other_bytes_and_one_of_zip64_are_read(tmp_path):
    plain = as_zip(tmp_path / "plain.zip")
    (tmp_path / "shifted.zip").write_bytes(b"#!/bin/sh\n" * 50 + plain.read_bytes())
    with zipfile.ZipFile(tmp_path / "zip64.zip", "w") as file:
        for name, data in FILES.items():
            with file.open(name, "w", force_zip64=True) as member:
                member.write(data)
    # Written to a stream, sizes follow the data and the local headers hold none.
    stream = Pipe()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in FILES.items():
            file.writestr(name, data)
    (tmp_path / "streamed.zip").write_bytes(stream.getvalue())
    for name in ("shifted.zip", "zip64.zip", "streamed.zip"):
        assert {m.id: m.read() for m in members([tmp_path / name])} == {k: data for k, (_, data) in SLICES.items()}


@pytest.mark.parametrize("pack", [as_folder, lambda place, files: as_zip(place.with_suffix(".zip"), files)])
def test_capital_suffix_counts_and_what_macos_adds_does_not(tmp_path, pack):
    files = {
        "train/ID_a.DCM": b"a",
        "train/ID_b.Dcm": b"b",
        "__MACOSX/train/._ID_a.dcm": b"junk",
        "train/._ID_b.dcm": b"junk",
        "train/ID_c.dcm.txt": b"no",
        "train/dcm": b"no",
        "test/._x.csv": b"no",
    }
    assert ids(members([pack(tmp_path / "data", files)])) == ["ID_a", "ID_b"]


@pytest.mark.parametrize("pack", [as_folder, lambda place, files: as_zip(place.with_suffix(".zip"), files)])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_slices_in_hidden_folders_are_left_out_and_counted(tmp_path, pack, slash):
    shown = {"train/ID_a.dcm": b"a", "train/.b.dcm": b"b", "train/..c/ID_c.txt": b"", "test/x.gz": b""}
    hidden = {".Trashes/501/train/ID_a.dcm": b"old", "train/.git/ID_d.dcm": b"d", "__MACOSX/train/ID_e.DCM": b"e",
              "train/.git/config": b"no slice", ".Trashes/stage_2_train.csv": b"old"}  # fmt: skip
    files = {name.replace("/", slash): data for name, data in (shown | hidden | {"stage_2_train.csv": b"new"}).items()}
    source = pack(tmp_path / "data", files)
    listed = members([source])
    assert ids(listed) == [".b", "ID_a"]
    assert re.fullmatch(
        r"3 DICOM file\(s\) in hidden folders \(such as \S+/\S+\), 1 \.gz \(such as test/x\.gz\)",
        listed.left_out.replace("\\", "/"),
    )
    with open_table([source], "_train.csv") as file:
        assert file.read() == b"new"
    assert (
        len(members([as_folder(tmp_path / ".hidden" / "source", {"train/ID_a.dcm": b"a"})])) == 1
    )  # the source itself
    with pytest.raises(IchError, match=r"holds no .* but 1 DICOM file\(s\) in hidden folders \(such as \.x"):
        members([pack(tmp_path / "only", {".x/train/ID_a.dcm": b"a"})])


def test_odd_names_are_kept_apart_and_can_be_read(tmp_path):
    names = ["ID a", "ID_ä漢", "..", "a\nb", "x" * 240, "ID_1.2", "%2e%2e"]
    files = {f"train/{name}.dcm": name.encode() for name in names}
    for source in (as_folder(tmp_path / "data", files), as_zip(tmp_path / "data.zip", files)):
        assert {m.id: m.read() for m in members([source])} == {name: name.encode() for name in names}


def test_a_name_in_another_encoding_becomes_an_id_that_a_table_takes(tmp_path):
    folder = os.fsencode(tmp_path / "train")
    os.mkdir(folder)  # noqa: PTH102 - bytes
    try:
        with open(folder + b"/ID_\xff.dcm", "wb") as file:  # noqa: PTH123
            file.write(b"slice")
    except OSError:
        pytest.skip("this file system takes no such name")
    (member,) = members([tmp_path / "train"])
    assert member.id == "ID_\\udcff"
    assert member.read() == b"slice"


def test_a_source_in_another_encoding_is_read(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        as_folder(folder, {"train/ID_a.dcm": b"a"})
    except OSError:
        pytest.skip("this file system takes no such name")
    for source in (folder, as_zip(folder / "b.zip", {"train/ID_a.dcm": b"a"})):
        (member,) = members([source])
        assert (member.source, member.read()) == (str(source), b"a")
    (folder / "empty").mkdir()
    with pytest.raises(IchError, match="holds no"):
        members([folder / "empty"])


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    disk = as_folder(tmp_path / "disk", {"deep/ID_a.dcm": b"a"})
    source = tmp_path / "data"
    as_folder(source, {"test/ID_b.dcm": b"b"})
    (source / "stage_2_train").symlink_to(disk)
    (source / "test" / "round").symlink_to(source)
    (disk / "deep" / "self").symlink_to(disk / "deep")
    assert [(m.id, m.split) for m in members([source])] == [("ID_a", "train"), ("ID_b", "test")]


def test_what_cannot_be_opened_has_its_member_and_is_reported_on_reading(tmp_path):
    source = as_folder(tmp_path / "train", {"ID_a.dcm": b"a", "folder.dcm/ID_b.dcm": b"b"})
    (source / "ID_c.dcm").symlink_to(tmp_path / "nothing")
    os.mkfifo(source / "ID_d.dcm")  # reading it would wait for ever
    listed = members([source])
    assert ids(listed) == ["ID_a", "ID_b", "ID_c"]
    with pytest.raises(IchError, match=r"ID_c\.dcm cannot be read: No such file"):
        listed[2].read()
    (source / "ID_a.dcm").unlink()
    with pytest.raises(IchError, match=r"train: ID_a\.dcm cannot be read: No such file"):
        listed[0].read()


def test_a_folder_that_may_not_be_entered_is_reported(tmp_path, monkeypatch):
    source = as_folder(tmp_path / "data", {"train/ID_a.dcm": b"a", "train/shut/ID_b.dcm": b"b"})
    real = os.scandir

    def scandir(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(archive.os, "scandir", scandir)
    with pytest.raises(IchError, match="shut cannot be read: Permission denied"):
        members([source])


WINDOWS = {name.replace("/", "\\"): data for name, data in FILES.items()}


@pytest.mark.parametrize("kind", ["zip", "unpacked", "mixed"])
def test_backslashes_between_folders_are_read_as_slashes(tmp_path, kind):
    files = WINDOWS | {"rsna\\stage_2_train\\": b"", "__MACOSX\\rsna\\._ID_0000000a1.dcm": b"junk"}
    if kind == "mixed":
        files = {name.replace("\\", "/", 1): data for name, data in files.items()}
    if kind == "unpacked":  # as zipfile does it elsewhere: one folder, of files with backslashes in their names
        files.pop("rsna\\stage_2_train\\")
        source = as_folder(tmp_path / "data", files)
    else:
        source = as_zip(tmp_path / "data.zip", files)
    listed = members([source])
    assert [(m.id, m.split, m.read()) for m in listed] == [
        (m.id, m.split, m.read()) for m in members([as_zip(tmp_path / "plain.zip")])
    ]
    assert listed.left_out == f"1 .txt (such as {next(name for name in files if name.endswith('.txt'))})"
    with open_table([source], "_train.csv") as file:
        assert file.read() == b"ID,Label\n"


def test_one_slice_by_a_slash_and_by_a_backslash_stands_twice(tmp_path):
    path = as_zip(tmp_path / "data.zip", {"train/ID_a.dcm": b"1", "train\\ID_a.dcm": b"2"})
    with pytest.raises(IchError, match=r"ID_a as .*train/ID_a\.dcm and .*train\\ID_a\.dcm"):
        members([path])


@pytest.mark.parametrize("pack", [as_folder, lambda place, files: as_zip(place.with_suffix(".zip"), files)])
def test_other_endings_of_dicom_are_read_and_the_rest_is_counted(tmp_path, pack):
    files = {f"train/ID_{name}": name.encode() for name in ("a.dcm", "b.DICOM", "c.dicom", "d.IMA", "e.dic", "f.Dcm")}
    beside = ["IM0001", "IM0002", "sub/1.2.840.113619.2.5", "DICOMDIR", "a.gz", "b.gz", "ID_x.DCM.GZ"]
    beside += ["a.JPG", "x.tar.7z", "n.b.txt", "z.nii", "train.csv", "a.html"]
    companions = ["stage_2_train.csv", "stage_2_sample_submission.csv", ".DS_Store", "Thumbs.db", "._a.dcm"]
    source = pack(tmp_path / "data", files | {f"train/{name}": b"?" for name in [*beside, *companions]})
    listed = members([source])
    assert ids(listed) == [f"ID_{letter}" for letter in "abcdef"]
    assert {m.name: m.read() for m in listed} == files
    summary = re.sub(r" \(such as train/\S+\)", "", listed.left_out)
    assert summary == "4 without an extension, 3 .gz, 1 .7z, 1 .csv, 1 .html, 3 of 3 other kinds"
    both = members([source, as_folder(tmp_path / "more", {"test/ID_g.dcm": b"g", "test/d.gz": b"?"})]).left_out
    assert re.match(r"4 without an extension \(such as train/\S+\), 4 \.gz \(such as train/\S+\), 1 ", both)


def test_a_source_without_slices_tells_what_it_holds(tmp_path):
    files = {f"train/{number}": b"" for number in range(1200)} | {"stage_2_train.csv": b"", "a.png": b""}
    for source in (as_folder(tmp_path / "data", files), as_zip(tmp_path / "data.zip", files)):
        message = r"holds no .* files, but 1,200 without an extension \(such as train/\d+\), 1 \.png \(.*; point"
        with pytest.raises(IchError, match=rf"{source.name} {message}"):
            members([source])


# --------------------------------------------------------------------------------------------------- train or test


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("stage_2_train/x.dcm", "train"),
        ("stage_2_train_images/x.dcm", "train"),
        ("stage_1_test_images/a/b/x.dcm", "test"),
        ("rsna-train/train/x.dcm", "train"),
        ("train/old/test/x.dcm", "test"),  # the nearest folder decides
        ("test.dcm/train/test.dcm", "train"),  # the file's own name does not
        ("Train/x.dcm", "train"),
        ("TEST/x.dcm", "test"),
        ("stage-2-train/x.dcm", "train"),
        ("stage 2 train images/x.dcm", "train"),
        ("Stage.1.Test/x.dcm", "test"),
        ("test2/batch (3)/x.dcm", "test"),
        ("test/train_test/x.dcm", "test"),  # both words decide nothing
        ("train/latest/x.dcm", "train"),
    ],
)
def test_the_nearest_folder_tells_the_split(tmp_path, name, split):
    for source in (as_folder(tmp_path / "data", {name: b""}), as_zip(tmp_path / "data.zip", {name: b""})):
        assert [m.split for m in members([source])] == [split]
        assert [m.split for m in members([source], "test")] == ["test"]


def test_the_name_of_the_source_tells_the_split(tmp_path):
    assert members([as_folder(tmp_path / "Stage.2.Train", {"x.dcm": b""})])[0].split == "train"
    assert members([as_folder(tmp_path / "stage_2_test", {"x.dcm": b""})])[0].split == "test"
    assert members([as_zip(tmp_path / "stage_2_train.zip", {"a/y.dcm": b""})])[0].split == "train"


@pytest.mark.parametrize("folder", ["trainer", "Training", "contest", "latest", "attest", "data", "train_test"])
def test_a_split_that_nothing_tells_is_asked_for(tmp_path, folder):
    with pytest.raises(
        IchError, match=rf"no folder of {folder}/x\.dcm has the word `train` or `test` in .*set data\.split"
    ):
        members([as_folder(tmp_path / "data", {f"{folder}/x.dcm": b""})])


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_missing_an_empty_and_a_senseless_source_are_reported(tmp_path):
    with pytest.raises(IchError, match="nowhere does not exist; expected a folder or a"):
        members([tmp_path / "nowhere"])
    with pytest.raises(IchError, match="x" * 300 + " cannot be read: File name too long"):
        members([tmp_path / ("x" * 300)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(IchError, match=r"empty holds no \.dcm, \.dicom, \.dic or \.ima files; point"):
        members([tmp_path / "empty"])
    with pytest.raises(IchError, match=r"empty\.zip holds no \.dcm, \.dicom, \.dic or \.ima files; point"):
        members([as_zip(tmp_path / "empty.zip", {})])
    with pytest.raises(IchError, match=r"empty holds no \.dcm, \.dicom, \.dic or \.ima files; point"):  # one of several
        members([as_folder(tmp_path / "data"), tmp_path / "empty"])
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(IchError, match=r"text\.zip is no readable zip .*download it again"):
        members([tmp_path / "text.zip"])


def test_an_id_that_stands_twice_is_reported_with_both_places(tmp_path):
    source = as_folder(tmp_path / "data", {"train/ID_a.dcm": b"1", "test/ID_a.dcm": b"2", "train/ID_b.dcm": b"3"})
    with pytest.raises(IchError, match=r"1 slice\(s\) are twice .* ID_a as .*test/ID_a\.dcm and .*train/ID_a\.dcm"):
        members([source])
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as file:
        file.writestr("train/ID_a.dcm", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("train/ID_a.dcm", b"2")
    with pytest.raises(IchError, match="are twice"):
        members([tmp_path / "twice.zip"])


def test_a_cut_zip_is_reported(tmp_path):
    path = as_zip(tmp_path / "data.zip")
    whole = path.read_bytes()
    for cut in range(0, len(whole), 29):
        path.write_bytes(whole[:cut])
        with pytest.raises(IchError, match="no readable zip"):
            members([path])


def first_of(path):
    return members([path])[0]


def patched(path, at, data):
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_is_noticed(tmp_path, method):
    path = as_zip(tmp_path / "data.zip", {"train/x.dcm": os.urandom(500)}, method)
    patched(path, 30 + len("train/x.dcm") + 200, b"....")
    with pytest.raises(IchError, match=r"data\.zip: train/x\.dcm is damaged"):
        first_of(path).read()


def test_a_member_that_is_not_where_the_directory_says_is_reported(tmp_path):
    path = as_zip(tmp_path / "data.zip", {"train/x.dcm": b"x"})
    member = first_of(path)
    patched(path, 0, b"????")
    with pytest.raises(IchError, match="is not where the zip's directory says"):
        member.read()
    path.write_bytes(b"PK")
    with pytest.raises(IchError, match="is damaged"):
        member.read()
    path.unlink()
    with pytest.raises(IchError, match="cannot be read: No such file"):
        member.read()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_packing_is_reported(tmp_path, method):
    path = as_zip(tmp_path / "data.zip", {"train/x.dcm": b"x" * 100}, method)
    with pytest.raises(IchError, match=f"packed by method {method}, expected deflate or none"):
        first_of(path).read()


def test_encryption_is_reported(tmp_path):
    path = as_zip(tmp_path / "data.zip", {"train/x.dcm": b"x" * 100})
    at_directory = path.read_bytes().index(b"PK\x01\x02")
    patched(path, 6, b"\x01")
    patched(path, at_directory + 8, b"\x01")
    with pytest.raises(IchError, match=r"x\.dcm is encrypted; unpack it"):
        first_of(path).read()


def test_a_member_larger_than_any_slice_is_refused_before_it_takes_memory(tmp_path):
    path = as_zip(tmp_path / "data.zip", {"train/x.dcm": b"x" * 100})
    at = path.read_bytes().index(b"PK\x01\x02")
    for field in (20, 24):  # packed and unpacked size
        patched(path, at + field, struct.pack("<I", 2**31))
        with pytest.raises(IchError, match="more than any slice"):
            first_of(path).read()


def test_a_zip_bomb_does_not_unpack(tmp_path):
    path = as_zip(tmp_path / "data.zip", {"train/x.dcm": bytes(50_000_000)})
    at = path.read_bytes().index(b"PK\x01\x02")
    patched(path, at + 24, struct.pack("<I", 1000))
    with pytest.raises(IchError, match="checksum differs"):
        first_of(path).read()


@settings(max_examples=300, deadline=2000)
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 255, None]), st.integers(0, 255)),
        min_size=1,
        max_size=6,
    )
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_zip_gives_its_slices_or_an_error_and_nothing_else(tmp_path_factory, changes):
    path = as_zip(tmp_path_factory.getbasetemp() / "damaged.zip")
    whole = bytearray(path.read_bytes())
    for place, extreme, byte in changes:
        whole[int(place * len(whole))] = byte if extreme is None else extreme
    path.write_bytes(whole)
    contents = {data for _, data in SLICES.values()}
    try:
        for member in members([path], split="train"):
            data = member.read()
            assert data in contents or zlib.crc32(data) == member.crc
    except IchError as error:
        message = str(error)
        assert "damaged.zip" in message


# ---------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("pack", [as_folder, lambda place, files: as_zip(place.with_suffix(".zip"), files)])
def test_the_one_table_is_opened(tmp_path, pack):
    files = {"rsna/stage_2_train.csv": b"ID,Label\n", "__MACOSX/rsna/._stage_2_train.csv": b"junk", "other.csv": b""}
    with open_table([pack(tmp_path / "data", files)], "_train.csv") as file:
        assert file.read() == b"ID,Label\n"


def test_none_and_several_tables_are_reported(tmp_path):
    first = as_folder(tmp_path / "a", {"stage_2_train.csv": b""})
    second = as_zip(tmp_path / "b.zip", {"stage_1_train.csv": b""})
    with (
        pytest.raises(IchError, match=r"one file …_submission\.csv in .*b\.zip, found none"),
        open_table([first, second], "_submission.csv"),
    ):
        pass
    with (
        pytest.raises(IchError, match=r"found .*stage_2_train\.csv, .*stage_1_train\.csv; name the file"),
        open_table([first, second], "_train.csv"),
    ):
        pass
    with pytest.raises(IchError, match="does not exist"), open_table([tmp_path / "c"], "_train.csv"):
        pass


def test_a_table_that_cannot_be_read_is_reported(tmp_path):
    path = as_zip(tmp_path / "data.zip", {"stage_2_train.csv": os.urandom(500)}, zipfile.ZIP_STORED)
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02")
    patched(path, 100, b"....")
    with pytest.raises(IchError, match=r"stage_2_train\.csv is damaged: its checksum"):
        open_table([path], ".csv")
    for field, value, said in ((8, b"\x01", "encrypted"), (10, b"\x63", "packed by method 99")):
        path.write_bytes(whole)
        patched(path, at + field, value)
        patched(path, field - 2, value)
        with pytest.raises(IchError, match=f"stage_2_train.csv is {said}"):
            open_table([path], ".csv")
    folder = as_folder(tmp_path / "data", {})
    folder.mkdir()
    (folder / "x_train.csv").symlink_to(tmp_path / "nothing")
    with pytest.raises(IchError, match=r"x_train\.csv cannot be read"), open_table([folder], "_train.csv"):
        pass


def test_an_error_of_the_reader_passes_as_it_is(tmp_path):
    source = as_folder(tmp_path / "data")
    with pytest.raises(ZeroDivisionError), open_table([source], "_train.csv"):
        1 / 0  # noqa: B018


# -------------------------------------------------------------------------------------- our directory and zipfile's


def by_zipfile(path):
    """The slices of a zip as Python reads its directory; name -> sizes, method, CRC. None where it cannot."""
    try:
        with zipfile.ZipFile(path) as file:
            return [
                (info.orig_filename, info.file_size, info.compress_size, info.compress_type, info.CRC)
                for info in file.infolist()
                if info.orig_filename[-4:].lower() == ".dcm" and info.orig_filename.rpartition("/")[2][:2] != "._"
            ]
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, ValueError, struct.error, OSError):
        return None


def by_us(path):
    return [(m.name, m.size, m.packed, m.method, m.crc) for m in members([path], split="train")]


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
EXTRA = st.lists(st.tuples(st.integers(2, 0x6FFF), st.binary(max_size=20)), max_size=3)


@settings(max_examples=150, deadline=2000)
@given(
    files=st.lists(
        st.tuples(NAMES, st.binary(max_size=60), st.booleans(), st.booleans(), EXTRA, st.binary(max_size=20)),
        max_size=5,
    ),
    comment=st.binary(max_size=80),
    before=st.binary(max_size=80),
    cp437=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_our_directory_is_what_zipfile_reads(tmp_path_factory, files, comment, before, cp437):
    path = tmp_path_factory.getbasetemp() / "oracle.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number, (name, data, deflated, zip64, extra, note) in enumerate(files):
            name = name.encode("cp437", "replace").decode("cp437") if cp437 else name
            info = zipfile.ZipInfo(f"{number}/{name}{number}.dcm")
            info.compress_type = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
            info.extra = b"".join(struct.pack("<HH", kind, len(field)) + field for kind, field in extra)
            info.comment = note
            with file.open(info, "w", force_zip64=zip64) as member:
                member.write(data)
        file.comment = comment
    path.write_bytes(before + path.read_bytes())
    expected = by_zipfile(path)
    if expected is None:  # a signature in the comment
        return
    if not expected:
        with pytest.raises(IchError, match="holds no"):
            members([path])
        return
    assert sorted(by_us(path)) == sorted(expected)
    contents = {f"{number}/": data for number, (_, data, *_) in enumerate(files)}
    for member in members([path], split="train"):
        if not member.name.startswith("/"):
            assert member.read() == contents[member.name[: member.name.index("/") + 1]]


def test_a_name_in_the_old_encoding_is_read_as_zipfile_does(tmp_path):
    path = as_zip(tmp_path / "data.zip", {"train/ID_u.dcm": b"x"})
    path.write_bytes(path.read_bytes().replace(b"ID_u", b"ID_\x81"))  # ü of code page 437
    assert by_us(path) == by_zipfile(path)
    assert ids(members([path])) == ["ID_ü"]


@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n" * 50])
def test_more_members_than_a_plain_zip_counts(tmp_path, before):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(65_537):
            file.writestr(f"train/ID_{number:09x}.dcm", b"%d" % number)
    path.write_bytes(before + path.read_bytes())
    assert b"PK\x06\x06" in path.read_bytes()[-200:]  # it took a zip64 end
    listed = members([path])
    assert len(listed) == 65_537
    for number in (0, 1, 40_000, 65_536):
        assert (listed[number].id, listed[number].read()) == (f"ID_{number:09x}", b"%d" % number)


def test_a_comment_that_looks_like_an_end_of_a_zip_does_not_hide_slices(tmp_path):
    path = as_zip(tmp_path / "data.zip", {"train/x.dcm": b"x"})
    whole = path.read_bytes()
    for comment in (b"PK\x05\x06", b"PK\x05\x06" + bytes(17), b"PK\x05\x06" + bytes(30)):
        path.write_bytes(whole[:-2] + struct.pack("<H", len(comment)) + comment)
        try:
            assert ids(members([path])) == ["x"]
        except IchError as error:
            message = str(error)
            assert "no readable zip" in message or "holds no" in message


def test_entries_that_reach_beyond_the_directory_are_not_the_end_of_it(tmp_path):
    path = as_zip(tmp_path / "data.zip", {f"train/{n}.dcm": b"x" for n in range(5)})
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02")
    for field in (28, 30, 32):  # lengths of name, extra field and comment; of the first entry
        path.write_bytes(whole)
        patched(path, at + field, struct.pack("<H", 60_000))
        with pytest.raises(IchError, match=r"no readable zip .*reaches beyond its directory"):
            members([path])
    path.write_bytes(whole)
    patched(path, at, b"??")
    with pytest.raises(IchError, match="no entry of its directory at byte 0"):
        members([path])


def zip64_of(tmp_path, *numbers, offset=0xFFFFFFFF):
    """A zip whose one entry has these numbers in a zip64 field."""
    path = tmp_path / "data.zip"
    info = zipfile.ZipInfo("train/x.dcm")
    info.extra = struct.pack("<HH", 0x9999, 8 * len(numbers)) + struct.pack(f"<{len(numbers)}Q", *numbers)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, b"x")
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02")
    directory = whole[at:].replace(b"\x99\x99", b"\x01\x00")
    path.write_bytes(whole[:at] + directory)
    patched(path, at + 20, struct.pack("<LL", 0xFFFFFFFF, 0xFFFFFFFF))
    patched(path, at + 42, struct.pack("<L", offset))
    return path


def test_numbers_of_64_bits_that_cannot_be_are_reported(tmp_path):
    assert first_of(zip64_of(tmp_path, 1, 1, 0)).read() == b"x"
    with pytest.raises(IchError, match="lacks its zip64 numbers"):
        members([zip64_of(tmp_path, 1, 1)])
    for numbers in ((2**63, 1, 0), (1, 2**64 - 1, 0), (1, 1, 2**63)):
        with pytest.raises(IchError, match=r"its directory says of 'train/x\.dcm' what cannot be"):
            members([zip64_of(tmp_path, *numbers)])
    path = as_zip(tmp_path / "data.zip", {"train/x.dcm": b"x"})
    patched(path, len(path.read_bytes()) - 6, struct.pack("<L", 1000))  # the directory's place: behind itself
    with pytest.raises(IchError, match="what cannot be"):
        members([path])
    patched(path, len(path.read_bytes()) - 10, struct.pack("<L", 1000))  # its size
    with pytest.raises(IchError, match="its directory should have 1,000 bytes and ends at byte"):
        members([path])


def test_a_zip64_end_that_is_not_there_is_reported(tmp_path):
    path = as_zip(tmp_path / "data.zip", {"train/x.dcm": b"x"})
    whole = path.read_bytes()
    for place in (0, 10**6, 2**64 - 1):
        path.write_bytes(whole[:-22] + struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1) + whole[-22:])
        with pytest.raises(IchError, match="its zip64 end is not where it should be"):
            members([path])


@settings(max_examples=400, deadline=2000)
@given(
    zip64=st.booleans(),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_directory_is_refused_or_read_as_zipfile_does(tmp_path_factory, zip64, changes):
    path = tmp_path_factory.getbasetemp() / "damaged-directory.zip"
    path.unlink(missing_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(4):
            with file.open(f"train/{number}.dcm", "w", force_zip64=zip64) as member:
                member.write(b"%d" % number * 50)
    whole = bytearray(path.read_bytes())
    first = whole.index(b"PK\x01\x02")
    for place, byte in changes:
        whole[first + int(place * (len(whole) - first))] = byte
    path.write_bytes(whole)
    try:
        ours = sorted(by_us(path))
    except IchError as error:
        assert "damaged-directory.zip" in str(error)  # noqa: PT017
        return
    theirs = by_zipfile(path)
    assert theirs is None or ours == sorted(theirs)


def test_links_to_what_could_be_read_for_ever_are_left_out(tmp_path):
    source = as_folder(tmp_path / "train", {"ID_a.dcm": b"a"})
    os.mkfifo(tmp_path / "pipe")
    (source / "ID_b.dcm").symlink_to(tmp_path / "pipe")
    (source / "ID_c.dcm").symlink_to("/dev/zero")
    assert ids(members([source])) == ["ID_a"]


def test_a_zip_made_from_another_folder_has_no_hidden_slices(tmp_path):
    """`cd out && zip -r ../x.zip ../stage_2_train` stores names that begin with two dots."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("../stage_2_train/ID_a.dcm", b"one")
    assert [member.id for member in archive.members([tmp_path / "x.zip"])] == ["ID_a"]
