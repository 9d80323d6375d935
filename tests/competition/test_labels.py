import gzip
import io
import lzma
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.competition.labels import LABELS, METRIC_WEIGHTS, check_frame, read_ids, read_labels, to_long
from ich.errors import IchError

FIVE = LABELS[:-1]

images = st.lists(st.from_regex(r"ID_[0-9a-f]{1,9}", fullmatch=True), min_size=1, max_size=12, unique=True)


def hash_bit(name, label):
    """A label that depends on the image alone, so that those listed twice agree."""
    return (int(name[3:], 16) + len(label) + ord(label[0])) // 2 % 2


@st.composite
def label_files(draw):
    """Rows (image, label, 0 or 1) of whole images, some of them listed twice, in blocks of six or shuffled."""
    rows = []
    names = draw(images)
    for name in names + draw(st.lists(st.sampled_from(names), max_size=3)):
        five = [hash_bit(name, label) for label in FIVE]
        rows += [(name, label, value) for label, value in zip(LABELS, [*five, max(five)], strict=True)]
    return draw(st.permutations(rows)) if draw(st.booleans()) else rows


def as_file(rows, header="ID,Label"):
    return io.BytesIO("\n".join([header, *(f"{image}_{label},{value}" for image, label, value in rows), ""]).encode())


def pivot(file):
    """The usual way, slow and plain: what `read_labels` must agree with."""
    table = pd.read_csv(file)
    table[["image", "label"]] = table["ID"].str.rsplit("_", n=1, expand=True)
    wide = table.pivot_table(index="image", columns="label", values="Label", aggfunc="max")
    wide = wide.loc[table["image"].drop_duplicates(), list(LABELS)].astype(np.int8)
    return wide.rename_axis(index="SOPInstanceUID", columns=None)


def rows_of(*names, ones=()):
    """Six rows for each image; `ones` are pairs (image, label) to set, `any` with them."""
    hit = {name for name, _ in ones}
    return [(n, label, int((n, label) in ones or (label == "any" and n in hit))) for n in names for label in LABELS]


# ----------------------------------------------------------------------------------------------------- reading


def test_labels_have_the_order_and_the_weights_of_the_competition():
    assert LABELS == ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
    assert list(METRIC_WEIGHTS) == list(LABELS)
    assert [METRIC_WEIGHTS[label] for label in LABELS] == [1, 1, 1, 1, 1, 2]


@given(label_files())
def test_reading_agrees_with_the_pivot_table(rows):
    frame, merged = read_labels(as_file(rows))
    pd.testing.assert_frame_equal(frame, pivot(as_file(rows)))
    assert merged == (pd.Series([image for image, _, _ in rows]).value_counts() > 6).sum()
    check_frame(frame)


@given(label_files())
def test_the_long_form_reads_back_the_same(rows):
    frame = read_labels(as_file(rows)).frame
    again, merged = read_labels(io.BytesIO(to_long(frame).to_csv(index=False).encode()))
    pd.testing.assert_frame_equal(again, frame)
    assert merged == 0


def test_labels_each_in_a_block_of_their_own_are_read_too():
    rows = sorted(rows_of("ID_b", "ID_a", ones=[("ID_a", "subdural")]), key=lambda row: LABELS.index(row[1]))
    pd.testing.assert_frame_equal(read_labels(as_file(rows)).frame, pivot(as_file(rows)))


def test_one_row_listed_twice_counts_as_one_merged_image():
    rows = rows_of("ID_a", "ID_b")
    frame, merged = read_labels(as_file([*rows, rows[2]]))
    assert (len(frame), merged) == (2, 1)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.xz", ".zip"])
@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_unpacked_by_their_suffix(tmp_path, suffix, kind):
    path, plain = tmp_path / f"labels{suffix}", as_file(rows_of("ID_a", "ID_b")).read()
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("labels.csv", plain)
    else:
        path.write_bytes({".csv": bytes, ".csv.gz": gzip.compress, ".csv.xz": lzma.compress}[suffix](plain))
    assert list(read_labels(kind(path)).frame.index) == ["ID_a", "ID_b"]


def test_a_member_of_an_archive_is_read_and_left_open(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/stage_2_train.csv", as_file(rows_of("ID_a")).read())
        archive.writestr("folder/other.txt", "")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive, archive.open("folder/stage_2_train.csv") as member:
        assert list(read_labels(member).frame.index) == ["ID_a"]
        assert not member.closed


def test_windows_line_ends_quotes_and_a_byte_order_mark_are_read():
    plain = as_file(rows_of("ID_a")).read().replace(b"\n", b"\r\n").replace(b"ID_a_any", b'"ID_a_any"')
    assert read_labels(io.BytesIO(b"\xef\xbb\xbf" + plain)).frame.shape == (1, 6)


# ------------------------------------------------------------------------------------------------------ errors

GOOD = rows_of("ID_1", "ID_2", "ID_3", "ID_4", "ID_5")
FAULTS = {
    "missing label": (
        [row for row in GOOD if row[:2] != ("ID_3", "subdural")],
        r"fewer than six labels for ID_3 \(no sub",
    ),
    "missing labels": ([row for row in GOOD if row[1] != "any"], r"for ID_1, ID_2, ID_3, … \(5 in all\) \(no any\)"),
    "contradiction": (
        [*GOOD, *rows_of("ID_4", ones=[("ID_4", "epidural")])],
        "lists ID_4 more than once with different",
    ),
    "any without the five": ([*GOOD[:-1], ("ID_5", "any", 1)], "`any` disagrees .* of ID_5; it is 1 exactly"),
    "one of five without any": ([*GOOD[:-2], ("ID_5", "subdural", 1), GOOD[-1]], "`any` disagrees .* of ID_5"),
    "unknown label": ([*GOOD, ("ID_2", "foo", 0)], r"has the ids ID_2_foo; expected ID_<hex>_<label>"),
    "no underscore": ([*GOOD, *rows_of("x")], r"about the images x; an image is called ID_<hex>"),
    "no image": ([*GOOD, *rows_of("ID")], "about the images ID;"),
    "not hexadecimal": ([*GOOD, *rows_of("ID_../a")], "about the images ID_../a;"),
    "two labels": ([*GOOD, *rows_of("ID_a_any")], "about the images ID_a_any;"),
    "value 2": ([*GOOD[:-1], ("ID_5", "any", 2)], "the rows ID_5_any,2; a label is 0 or 1"),
    "probability": (
        [(*row[:2], 0.5) for row in GOOD],
        r"_epidural,0.5, .* … \(30 in all\); a label is 0 or 1: .*predictions",
    ),
    "no value": ([*GOOD[:-1], ("ID_5", "any", "")], "the rows ID_5_any,;"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_rows_are_refused_alike_in_blocks_and_out_of_order(fault):
    rows, message = FAULTS[fault]
    with pytest.raises(IchError, match=message) as in_blocks:
        read_labels(as_file(rows))
    # The first image still appears first, but its first label comes last.
    with pytest.raises(IchError) as out_of_order:
        read_labels(as_file([*rows[1:], rows[0]]))
    if fault != "probability":  # it names rows, in their order
        assert str(in_blocks.value) == str(out_of_order.value)


@given(label_files(), st.data())
def test_any_single_fault_is_found_and_named(rows, data):
    at = data.draw(st.integers(0, len(rows) - 1))
    image, label, value = rows[at]
    # Of an image that is listed twice, the other row stays, and nothing is missing.
    faults = ["unknown", "value", "contradiction"] + ["missing"] * (rows.count(rows[at]) == 1)
    wrong = {
        "unknown": [(image, "foo", value)],
        "value": [(image, label, 7)],
        "contradiction": [(image, label, value), (image, label, 1 - value)],
        "missing": [],
    }[data.draw(st.sampled_from(faults))]
    with pytest.raises(IchError, match=image):
        read_labels(as_file([*rows[:at], *wrong, *rows[at + 1 :]]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a label file: Empty CSV file"),
        (b"ID,Label\n", "has a header but no rows"),
        (b"id,label\nID_a_any,1\n", "has the header id,label, expected ID,Label"),
        (b"ID,Label,x\nID_a_any,1,1\n", "has the header ID,Label,x"),
        (b"ID,Label\nID_a_any,1,1\n", "is not a label file: .*; expected the header ID,Label and two values a line"),
        (b"ID,Label\nanything,1\n", "has the ids anything"),
        (b"ID,Label\n\xff_foo,1\n", r"has the ids \\xff_foo"),
    ],
)
def test_files_that_are_no_label_files_are_refused(content, message):
    with pytest.raises(IchError, match=message):
        read_labels(io.BytesIO(content))


def test_an_image_whose_id_is_no_text_is_refused():
    plain = as_file(rows_of("ID_a", "ID_b")).read().replace(b"ID_b", b"ID_\xff")
    with pytest.raises(IchError, match=r"images ID_\\xff"):
        read_labels(io.BytesIO(plain))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(IchError, match=r"cannot read .*none\.csv: No such file"):
        read_labels(tmp_path / "none.csv")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zip"])
def test_damaged_compressed_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"labels{suffix}"
    path.write_bytes(b"not compressed at all")
    with pytest.raises(IchError, match="cannot read"):
        read_labels(path)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_truncated_compressed_files_are_refused(tmp_path, suffix, compress):
    path = tmp_path / f"labels{suffix}"
    path.write_bytes(compress(as_file(rows_of(*(f"ID_{i:x}" for i in range(500)))).read())[:-40])
    with pytest.raises(IchError, match=r"cannot read .* get the file again"):
        read_labels(path)


def test_a_zip_of_several_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", "")
        archive.writestr("b.csv", "")
    with pytest.raises(IchError, match="holds 2 files, expected the label file alone"):
        read_labels(tmp_path / "a.zip")


def test_text_files_are_refused():
    with pytest.raises(IchError, match="open it in binary mode"):
        read_labels(io.StringIO("ID,Label\n"))


# -------------------------------------------------------------------------------------------------- frames


def a_frame(*names):
    return read_labels(as_file(rows_of(*names))).frame


def test_the_long_form_has_the_order_of_a_submission():
    frame = a_frame("ID_b", "ID_a").astype(np.float32)
    frame.iloc[:] = np.arange(12).reshape(2, 6) / 16
    long = to_long(frame)
    assert list(long.columns) == ["ID", "Label"]
    assert list(long["ID"]) == [f"{image}_{label}" for image in ("ID_b", "ID_a") for label in LABELS]
    np.testing.assert_array_equal(long["Label"], np.arange(12) / 16)
    assert long["Label"].dtype == np.float32


def test_no_images_make_no_rows():
    assert len(to_long(a_frame("ID_a").iloc[:0])) == 0


def test_the_long_form_fills_nothing_in():
    frame = a_frame("ID_a", "ID_b").astype(np.float32)
    frame.iloc[1, 2] = np.nan
    with pytest.raises(IchError, match="ID_b lack a value; nothing is filled in"):
        to_long(frame)


@pytest.mark.parametrize("check", [check_frame, to_long])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f[list(reversed(LABELS))], "in this order, got any, subdural"),
        (lambda f: f.drop(columns="any"), "expected the columns"),
        (
            lambda f: f.reset_index(drop=True),
            "expected an index of strings named SOPInstanceUID, got integer named None",
        ),
        (lambda f: f.rename_axis("image"), "got string named image"),
        (lambda f: pd.concat([f, f.iloc[1:2]]), "ID_b are in more than one row"),
    ],
)
def test_frames_of_another_shape_are_refused(check, spoil, message):
    with pytest.raises(IchError, match=message):
        check(spoil(a_frame("ID_a", "ID_b")))


def test_frames_of_other_values_are_refused():
    frame = a_frame("ID_a", "ID_b")
    with pytest.raises(IchError, match="labels are int8, got int64"):
        check_frame(frame.astype({"any": np.int64}))
    for value in (2, -1):
        other = frame.copy()
        other.loc["ID_b", "any"] = value
        with pytest.raises(IchError, match="labels are 0 or 1, but ID_b have others"):
            check_frame(other)
    frame.loc["ID_a", "any"] = 1
    with pytest.raises(IchError, match="in the label frame, `any` disagrees with the five other labels of ID_a"):
        check_frame(frame)


# ---------------------------------------------------------------------------------------------- sample submissions


def sample(*lines: str) -> io.BytesIO:
    return io.BytesIO("\n".join(["ID,Label", *lines, ""]).encode())


def test_a_sample_submission_gives_its_rows_and_images_in_its_own_order():
    lines = [f"ID_{image}_{label}" for image in ("b", "a") for label in reversed(LABELS)]
    rows, images = read_ids(sample(*(f"{line},0.5" for line in lines)))
    assert rows.tolist() == lines
    assert images.tolist() == ["ID_b", "ID_a"]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([f"ID_a_{label},0.5" for label in LABELS[1:]], "fewer than six rows for ID_a"),
        ([f"ID_a_{label},0.5" for label in (*LABELS, "any")], "the rows ID_a_any more than once"),
        (["ID_a_bleed,0.5"], "the ids ID_a_bleed"),
        ([], "no rows"),
    ],
)
def test_a_damaged_sample_submission_is_refused(lines, complaint):
    with pytest.raises(IchError, match=complaint):
        read_ids(sample(*lines))


# ---------------------------------------------------------------------------------------------- the real files


@pytest.mark.real
def test_the_original_label_file_is_read_whole():
    path = Path(os.environ["RSNA_SAMPLE"]) / "stage_1_train.csv.xz"
    frame, merged = read_labels(path)
    assert (len(frame), merged) == (674_258, 4)
    plain = pd.read_csv(path).drop_duplicates("ID", ignore_index=True)
    pd.testing.assert_frame_equal(to_long(frame).astype({"Label": np.int64}), plain)


@pytest.mark.real
def test_the_label_file_in_the_archive_is_read():
    with zipfile.ZipFile(Path(os.environ["RSNA_SAMPLE"]) / "rsna-intracranial-hemorrhage-detection.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith("/stage_2_train.csv"))
        with archive.open(name) as member:
            frame = read_labels(member).frame
        pd.testing.assert_frame_equal(frame, pivot(io.BytesIO(archive.read(name))))
    assert frame.sum().to_dict() == {
        "epidural": 0,
        "intraparenchymal": 42,
        "intraventricular": 4,
        "subarachnoid": 18,
        "subdural": 15,
        "any": 49,
    }
