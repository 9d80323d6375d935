import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ich.data import channels
from ich.data.sample_reader import SampleReader, SkipCounts, folders_of
from ich.errors import IchError
from ich.images.slice_table import to_frame

IDS = pd.Index([f"ID_{number}" for number in range(6)])
TABLE = to_frame(
    [
        {"SOPInstanceUID": id, "SeriesInstanceUID": "s", "split": "train", "order": order, "status": "ok"}
        for order, id in enumerate(IDS)
    ]
)


@pytest.fixture
def folder(tmp_path):
    """Images whose pixels are the sample's number, and in a second file that plus 100."""
    for number, id in enumerate(IDS):
        np.save(tmp_path / f"{id}.npy", np.full((4, 6), number, np.uint8))
        np.save(tmp_path / f"{id}.b.npy", np.full((4, 6, 2), number + 100, np.uint8))
    return tmp_path


def pixels(reader, row):
    image = channels.joined(reader.read(row, IDS[row]))
    assert image.shape[:2] == (4, 6)
    return image[0, 0].tolist()


def test_channels_of_files_and_of_neighbours_stand_one_after_the_other(folder):
    assert pixels(SampleReader(IDS, folder, (".npy",)), 3) == [3]
    both = SampleReader(IDS, folder, (".npy", ".b.npy"), (-1, 0, 2), TABLE)
    for reader in (both, pickle.loads(pickle.dumps(both))):
        assert pixels(reader, 1) == [0, 100, 100, 1, 101, 101, 3, 103, 103]
        assert pixels(reader, 5) == [4, 104, 104, 5, 105, 105, 5, 105, 105]


def test_a_slice_is_read_once_for_a_sample_and_for_samples_in_order(folder):
    read = []

    def reader(path):
        read.append(path.name)
        return np.load(path)

    for ordered, expected in ((True, [1, 2, 3, 4, 5]), (False, [1, 2, 3, 2, 3, 4, 4, 5])):
        samples = SampleReader(IDS, folder, (".npy",), (-1, 0, 1), TABLE, reader=reader, ordered=ordered)
        assert [pixels(samples, row) for row in (2, 3, 5)] == [[1, 2, 3], [2, 3, 4], [4, 5, 5]]
        assert read == [f"ID_{number}.npy" for number in expected]
        read.clear()


@pytest.mark.parametrize("options", [{"overlapping": True}, {"neighbours": (0, 0)}, {"neighbours": (1,)}], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_one_sample_does_to_its_image_no_other_sees(folder, options, dtype):
    reader = SampleReader(
        IDS, folder, (".npy",), slices=TABLE, reader=lambda path: np.load(path).astype(dtype), **options
    )
    before = [pixels(reader, row) for row in range(6)]
    for row in range(6):
        channels.joined(reader.read(row, IDS[row]))[...] += 50
    assert [pixels(reader, row) for row in range(6)] == before


@pytest.mark.parametrize("kind", [int, Path, str])
@pytest.mark.parametrize("options", [{"neighbours": (-1, 0, 1)}, {"overlapping": True}], ids=str)
def test_ids_are_names_numbers_or_paths(folder, kind, options):
    ids = pd.Index([kind(str(number)) for number in range(6)], dtype=None if kind is int else object)
    table = TABLE.assign(SOPInstanceUID=list(ids))
    read = []
    reader = SampleReader(
        ids,
        dict.fromkeys(ids, folder),
        (".npy",),
        slices=table,
        reader=lambda path: read.append(path) or EMPTY,
        **options,
    )
    reader.read(1, ids[1])
    assert [path.name for path in read] == [f"{k}.npy" for k in ([0, 1, 2] if "neighbours" in options else [1])]


EMPTY = np.zeros((4, 6, 1), np.uint8)


def test_files_of_the_samples_and_their_neighbours_are_looked_for(folder):
    (folder / "ID_3.npy").unlink()
    SampleReader(IDS[:3], folder, (".npy", ".b.npy")).check_files(may_lack=False)
    reader = SampleReader(IDS[2:3], folder, (".npy",), neighbours=(0, 1), slices=TABLE)
    with pytest.raises(IchError, match=r"1 of 2 samples lack .*/<id>.npy: ID_3; were they converted"):
        reader.check_files(may_lack=False)
    with pytest.warns(UserWarning, match=r"1 of 2 samples lack .*: ID_3; others will be shown in their place"):
        reader.check_files(may_lack=True)


def test_each_slice_lies_in_its_own_folder(folder, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    (folder / "ID_3.npy").rename(others / "ID_3.npy")
    named = {id: str(others if id == "ID_3" else folder) for id in IDS}
    for image_dir in (named, pd.Series(named)):
        reader = SampleReader(IDS, folders_of(image_dir), (".npy",), (0, 1), TABLE)
        reader.check_files(may_lack=False)
        assert [pixels(reader, row) for row in (2, 3)] == [[2, 3], [3, 4]]
    (others / "ID_3.npy").unlink()
    with pytest.raises(IchError, match=r"1 of 6 samples lack .*others/<id>\.npy: ID_3"):
        reader.check_files(may_lack=False)
    with pytest.raises(IchError, match="names no folder of 1 slices: ID_3"):
        SampleReader(IDS[2:3], folders_of({"ID_2": folder}), (".npy",), (0, 1), TABLE)
    with pytest.raises(IchError, match="image_dir lists ID_2 twice"):
        folders_of(pd.Series(["a", "b"], ["ID_2", "ID_2"]))


def test_the_first_replacement_that_can_be_read_is_taken(folder):
    for number in (0, 2):
        (folder / f"ID_{number}.npy").unlink()
    reader = SampleReader(IDS, folder, (".npy",))
    row, image, unreadable = reader.read_or_replace(0, "ID_0", iter([2, 0, 4, 1]))
    assert (row, image[0, 0, 0], unreadable) == (4, 4, [0, 2])
    row, _, unreadable = reader.read_or_replace(1, "ID_1", iter([2]))
    assert (row, unreadable) == (1, [])
    with pytest.raises(IchError, match=r"ID_0 and 2 samples drawn in its place cannot be read; the last: .*ID_0.npy"):
        reader.read_or_replace(0, "ID_0", [2, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": (0.5,)}, r"neighbours is \(0.5,\), expected offsets"),
        ({"neighbours": (0, 1)}, "neighbours need the slice table"),
        ({"color_mode": "bgr"}, "color_mode is 'bgr'"),
    ],
)
def test_what_cannot_be_read_so_is_refused_at_once(options, message):
    with pytest.raises(IchError, match=message):
        SampleReader(IDS, Path(), **options)


def add(rows):
    counts.add(rows)


counts = SkipCounts(4)


def test_skips_of_forked_processes_are_counted_and_a_copy_counts_alone():
    counts.add([1, 3])
    process = multiprocessing.get_context("fork").Process(target=add, args=([3],))
    process.start()
    process.join()
    assert counts.counts() == {1: 1, 3: 2}
    copy = pickle.loads(pickle.dumps(counts))
    copy.add([0])
    assert copy.counts() == {0: 1, 1: 1, 3: 2}
    assert counts.counts() == {1: 1, 3: 2}
