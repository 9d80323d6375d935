"""Keras's own semantics: the same frame and folder through the legacy ImageDataGenerator."""

import os
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from ich.data.generator import DataGenerator
from ich.errors import IchError

NAMES = ["b/2.png", "a/10.png", "a/9.jpg", "c/x/1.png", "c/1.PNG", "b/1.jpeg", "a/deep/er/0.png"]

try:
    LEGACY = tf.keras.preprocessing.image.ImageDataGenerator
except AttributeError:
    LEGACY = None
pytestmark = [
    pytest.mark.skipif(LEGACY is None, reason="this Keras has dropped the legacy ImageDataGenerator for good"),
    pytest.mark.filterwarnings("ignore:.* left out are", "ignore:there is no sample of the class"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Color noise in a folder a class; files that are no images, and one outside of the classes, beside it."""
    path = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for name in [*NAMES, "outside.png"]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        suffix = ".png" if name.lower().endswith("png") else ".jpg"
        # Larger blocks than those of JPEG's colors, so that both decoders agree.
        small = rng.integers(0, 256, (2, 3, 3), dtype=np.uint8)
        data = cv2.imencode(suffix, np.kron(small, np.ones((16, 16, 1), np.uint8)))[1]
        (path / name).write_bytes(data.tobytes())
    (path / "a" / "notes.txt").write_text("no image")
    (path / "empty").mkdir()
    return path


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "filename": NAMES,
            "class": ["cat", "dog", "cat", "cat", "dog", "dog", "cat"],
            "three": ["z", "x", "y", "x", "x", "z", "y"],
            "several": [["cat", "dog"], ["dog"], [], ["emu"], "cat", ("emu", "cat", "dog"), ["cat", "cat"]],
            "one": [0.5, 1, 2, 3, 4, 5, 6],
            "two": [9, 8, 7, 6, 5, 4, 3],
            "weight": [1.0, 2, 3, 4, 5, 6, 7],
        }
    )


def same(ours, theirs, tolerance=0):
    """Batch for batch: shapes, images, labels, weights."""
    assert len(ours) == len(theirs)
    for index in range(len(ours)):
        own, reference = ours[index], theirs[index]
        if isinstance(reference, np.ndarray):
            own, reference = (own,), (reference,)
        assert len(own) == len(reference)
        assert own[0].shape == reference[0].shape
        assert np.abs(own[0] - reference[0]).max() <= tolerance
        for labels, expected in zip(own[1:], reference[1:], strict=True):
            assert labels.dtype == np.float32
            np.testing.assert_array_equal(labels, expected)
    assert ours.ids.tolist() == theirs.filenames


def both_of_frame(frame, folder, size=(32, 48), color_mode="rgb", **options):
    ours = DataGenerator.from_dataframe(
        frame, image_dir=folder, batch_size=3, target_size=size, color_mode=color_mode, **options, shuffle=False
    )
    theirs = LEGACY().flow_from_dataframe(
        frame, directory=folder, batch_size=3, target_size=size, color_mode=color_mode, shuffle=False, **options
    )
    return ours, theirs


@pytest.mark.parametrize(
    "options",
    [
        {"class_mode": "raw", "y_col": "one"},
        {"class_mode": "raw", "y_col": ["one", "two"]},
        {"class_mode": "raw", "y_col": ["two"], "weight_col": "weight"},
        {"class_mode": None},
    ],
    ids=str,
)
def test_numbers_and_no_labels_of_a_frame(folder, frame, options):
    ours, theirs = both_of_frame(frame, folder, **options)
    same(ours, theirs, tolerance=3)
    assert ours.class_indices is None


@pytest.mark.parametrize(
    "options",
    [
        {"class_mode": "binary"},
        {"class_mode": "binary", "classes": ["dog", "cat"]},
        {"class_mode": "sparse", "y_col": "three", "weight_col": "weight"},
        {"class_mode": "sparse", "y_col": "three", "classes": ["z", "x"]},
        {"class_mode": "categorical"},
        {"y_col": "three"},
        {"class_mode": "categorical", "y_col": "three", "classes": ["z", "y", "x", "never"]},
        {"class_mode": "categorical", "y_col": "several"},
        {"class_mode": "categorical", "y_col": "several", "weight_col": "weight"},
    ],
    ids=str,
)
def test_classes_of_a_frame(folder, frame, options):
    ours, theirs = both_of_frame(frame, folder, **options)
    same(ours, theirs, tolerance=3)
    assert ours.class_indices == theirs.class_indices
    assert list(ours.class_indices) == list(theirs.class_indices)


def test_of_lists_the_requested_classes_and_an_empty_list_stays(folder, frame):
    options = {"class_mode": "categorical", "y_col": "several", "classes": ["dog", "cat"]}
    ours, theirs = both_of_frame(frame[frame["several"].map(len) > 0], folder, **options)
    same(ours, theirs, tolerance=3)
    # Keras drops what has no class at all, which would be every healthy patient: here they stay.
    kept = DataGenerator.from_dataframe(frame, image_dir=folder, **options, shuffle=False)
    assert NAMES[2] in kept.ids
    assert kept.labels[kept.ids.get_loc(NAMES[2])].tolist() == [0, 0]


@pytest.mark.parametrize("class_mode", ["categorical", "binary", "sparse", None])
@pytest.mark.parametrize("classes", [None, ["c", "a"]])
def test_folders(folder, class_mode, classes):
    if class_mode == "binary" and classes is None:
        pytest.skip("four folders are no two classes: Keras gives 0 to 3, here it is refused")
    ours = DataGenerator.from_directory(
        folder,
        class_mode=class_mode,
        classes=classes,
        batch_size=3,
        target_size=(32, 48),
        color_mode="rgb",
        shuffle=False,
    )
    theirs = LEGACY().flow_from_directory(
        folder, class_mode=class_mode, classes=classes, batch_size=3, target_size=(32, 48), shuffle=False
    )
    same(ours, theirs, tolerance=3)
    assert ours.class_indices == theirs.class_indices
    if class_mode == "sparse":
        assert ours.labels.tolist() == theirs.classes.tolist()


@pytest.mark.parametrize("color_mode", ["grayscale", "rgb", "rgba"])
@pytest.mark.parametrize("size", [(32, 48), (7, 9), (64, 50), (256, 256)])
def test_colors_and_size(folder, frame, color_mode, size):
    png = frame[frame["filename"].str.lower().str.endswith("png")]
    ours, theirs = both_of_frame(png, folder, size, color_mode, class_mode=None, interpolation="nearest")
    same(ours, theirs, tolerance=color_mode == "grayscale")  # gray is rounded at another place


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "hamming", "box", "lanczos"])
@pytest.mark.parametrize("size", [(64, 96), (7, 9), (40, 11)])
@pytest.mark.parametrize("color_mode", ["rgb", "rgba", "grayscale"])
def test_every_interpolation_is_that_of_keras_enlarging_and_reducing(folder, frame, interpolation, size, color_mode):
    png = frame[frame["filename"].str.lower().str.endswith("png")]
    ours, theirs = both_of_frame(png, folder, size, color_mode, class_mode=None, interpolation=interpolation)
    same(ours, theirs, tolerance=color_mode == "grayscale")


def test_alpha_weighs_the_colors_in_rgba_alone(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "1.png"), noise)
    frame = pd.DataFrame({"filename": ["1.png"]})
    ours, theirs = both_of_frame(frame, tmp_path, (7, 9), "rgba", class_mode=None, interpolation="bilinear")
    same(ours, theirs)
    each = DataGenerator(["1"], image_dir=tmp_path, target_size=(7, 9), interpolation="bilinear")[
        0
    ]  # four windows, say
    assert np.abs(each[..., :3].astype(int) - ours[0][..., :3]).max() > 20
    np.testing.assert_array_equal(each[..., 3], ours[0][..., 3])


def test_the_same_through_fit(folder, frame):
    def trained(samples):
        tf.keras.utils.set_random_seed(0)
        model = tf.keras.Sequential([tf.keras.Input((7, 9, 3)), tf.keras.layers.Flatten(), tf.keras.layers.Dense(2)])
        model.compile("sgd", "mse")
        model.fit(samples, epochs=2, verbose=0, shuffle=False)
        return [*model.get_weights(), model.predict(samples, verbose=0), model.evaluate(samples, verbose=0)]

    png = frame[frame["filename"].str.lower().str.endswith("png")]
    ours, theirs = both_of_frame(png, folder, (7, 9))
    ours.preprocess = lambda image: image.astype(np.float32) / 255
    theirs.image_data_generator.rescale = 1 / 255
    for own, reference in zip(trained(ours), trained(theirs), strict=True):
        np.testing.assert_allclose(own, reference, rtol=1e-4, atol=1e-5)


def test_pictures_of_every_suffix_are_found_as_keras_finds_them(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for suffix in (".png", ".bmp", ".tif", ".tiff", ".ppm"):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / name / f"1{suffix}"), noise)
    ours = DataGenerator.from_directory(tmp_path, target_size=(8, 8), color_mode="rgb", batch_size=3, shuffle=False)
    with pytest.warns(UserWarning, match="tiff"):
        theirs = LEGACY().flow_from_directory(tmp_path, target_size=(8, 8), batch_size=3, shuffle=False)
    same(ours, theirs)
    assert len(ours.ids) == 10


def test_what_a_folder_holds_beside_images_is_counted_and_said(folder, tmp_path):
    for name in ("a/1.png", "a/deep/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((folder / "b/2.png").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DataGenerator.from_directory(tmp_path, shuffle=False)
    for name in (
        "a/1.gif",
        "a/2.GIF",
        "a/notes",
        "b/x.txt",
        "a/.DS_Store",
        "b/._1.png",
        "b/.git/1.png",
        ".cache/1.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "beside.png").write_bytes(b"")
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match="left out are|no sample of the class") as raised:
        dataset = DataGenerator.from_directory(tmp_path, shuffle=False)
    assert dataset.ids.tolist() == ["a/1.png", "a/deep/2.png", "b/1.png"]
    assert dataset.class_indices == {"a": 0, "b": 1, "empty": 2}
    left, without = sorted(str(warning.message) for warning in raised)[::-1]
    assert without.startswith(f"{tmp_path}: left out are 2 .gif, 1 .txt, 2 hidden file(s), 2 hidden folder(s), ")
    assert "1 image(s) beside the folders of classes, 1 link(s) to folders, 1 without suffix; read are .png" in without
    assert left == "there is no sample of the class empty, which still has an index"


def test_a_name_that_is_not_utf_8_and_a_folder_without_rights_are_reported(folder, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    os.close(os.open(os.fsencode(tmp_path) + b"/a/\xff.png", os.O_CREAT))
    with pytest.raises(IchError, match=r"the name 'a/\\udcff.png' is not UTF-8; rename it"):
        DataGenerator.from_directory(tmp_path)

    def denied(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(IchError, match="cannot be listed: Permission denied; give it rights to read"):
        DataGenerator.from_directory(tmp_path)


def test_lists_of_classes_from_parquet_keep_healthy_patients(folder, frame, tmp_path):
    frame["several"] = [["cat", "dog"], ["dog"], [], ["emu"], ["cat"], ["emu", "cat", "dog"], []]
    frame[["filename", "several"]].to_parquet(tmp_path / "t.parquet")
    read = pd.read_parquet(tmp_path / "t.parquet")
    assert isinstance(read["several"][0], np.ndarray)
    options = {"image_dir": folder, "y_col": "several", "shuffle": False}
    actual, expected = (DataGenerator.from_dataframe(table, **options) for table in (read, frame))
    assert actual.class_indices == expected.class_indices == {"cat": 0, "dog": 1, "emu": 2}
    np.testing.assert_array_equal(actual.labels, expected.labels)
    assert actual.labels[[2, 6]].tolist() == [[0, 0, 0]] * 2
    assert len(actual.ids) == len(NAMES)


def test_without_a_directory_the_frame_holds_paths(folder, frame):
    paths = frame.assign(filename=[str(folder / name) for name in NAMES])
    ours = DataGenerator.from_dataframe(paths, image_dir=None, shuffle=False)
    assert ours.labels.tolist() == DataGenerator.from_dataframe(frame, image_dir=folder, shuffle=False).labels.tolist()
    assert ours[0][0].shape == (7, 32, 48, 3)


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x_col": ["filename", "three"]}, r"x_col is \['filename', 'three'\], expected one column; several files"),
        ({"weight_col": "digits"}, r"weights are numbers, but of b/2.png in the column digits there is '1' \(str\)"),
        ({"weight_col": "when"}, r"weights are numbers, but of b/2.png in the column when there is Timestamp\("),
        (
            {"extra": ["uid"]},
            "the extra inputs of b/2.png hold 20240101, which float32 rounds to 20240100: it is exact",
        ),
        ({"extra": ["one", "one"]}, "the extra inputs have several columns one; give each a name of its own"),
        ({"class_mode": "raw", "y_col": ["one", "one"]}, "the labels have several columns one; give each a name"),
        ({"extra": "age"}, "the frame lacks the columns age; it has"),
        ({"extra": [None, "one"]}, "x_col, y_col, weight_col and extra name columns, and one of them is None"),
        ({"classes": [1, "1"]}, r"classes have names of their own, but 1 \(int\) and '1' \(str\) are written alike"),
        ({"labels": len}, "labels of from_dataframe are columns of the frame: name them by x_col=, y_col= and"),
        ({"ids": ["a"], "weights": {}}, "ids, weights of from_dataframe are columns of the frame"),
        ({"class_mode": "multi_output"}, "class_mode is 'multi_output', expected one of .*; write raw with several"),
        (
            {"y_col": "mixed"},
            r"mixed holds classes that cannot be sorted: 'a' \(str\), 3 \(int\); make all of them str",
        ),
        ({"y_col": "dicts"}, r"dicts holds classes that cannot be sorted: .*\(dict\)"),
        ({"x_col": "file"}, "the frame lacks the columns file; it has filename, class, three"),
        ({"y_col": ["one", "four"], "weight_col": "w", "extra": ["age"]}, "the frame lacks the columns four, w, age"),
        ({"class_mode": "multi"}, "class_mode is 'multi', expected one of raw, binary, categorical, sparse, None"),
        ({"class_mode": "raw", "y_col": None}, "class_mode raw needs a column of labels: y_col=…"),
        ({"class_mode": "sparse", "y_col": ["one", "two"]}, "class_mode sparse takes one column of classes, got 2"),
        (
            {"class_mode": "sparse", "y_col": "several"},
            r"several holds several classes for b/2.png, .*: categorical takes them",
        ),
        ({"class_mode": "binary", "y_col": "three"}, "class_mode binary takes two classes, found 3: x, y, z"),
        ({"class_mode": "binary", "classes": ["cat"]}, "class_mode binary takes two classes, found 1: cat"),
        ({"class_mode": "raw", "y_col": "class"}, "labels are numbers, but .*; class_mode of from_dataframe takes"),
        ({"y_col": "hole"}, "hole names no class for a/10.png; leave these rows out"),
        ({"y_col": "hole in a list"}, "hole in a list names no class for b/1.jpeg; leave these rows out"),
        ({"class_mode": "raw", "y_col": "nan"}, "the labels of a/9.jpg are not all numbers"),
        ({"x_col": "three"}, "ids are listed twice: x, z, y; give each sample once"),
        ({"classes": ["emu"]}, "there are no samples: the list of ids is empty"),
    ],
)
def test_frames_that_make_no_sense_are_refused(folder, frame, options, message):
    frame["hole"] = ["a", None, "b", "a", "a", "a", "a"]
    frame["hole in a list"] = [["a"], ["b"], [], ["a"], ["b"], ["a", None], ["b"]]
    frame["digits"], frame["when"], frame["uid"] = list("1234567"), pd.Timestamp("2020"), 20240101
    frame["mixed"], frame["dicts"] = ["a", 3, "a", "a", "a", "a", "a"], [{"a": 1}] * 7
    frame["nan"] = [1, 2, np.nan, 4, 5, 6, 7]
    frame[None] = 1
    with pytest.raises(IchError, match=message):
        DataGenerator.from_dataframe(frame, image_dir=folder, **options)


def test_columns_of_one_name_and_what_is_no_frame_are_refused(folder, frame):
    twice = pd.concat([frame, frame[["filename", "weight"]]], axis=1)
    with pytest.raises(IchError, match="the frame has several columns filename, weight; give each a name of its own"):
        DataGenerator.from_dataframe(twice, image_dir=folder, weight_col="weight")
    with pytest.raises(IchError, match="the frame is a str, expected a pandas DataFrame with a row a sample"):
        DataGenerator.from_dataframe("table.csv")
    same_column = DataGenerator.from_dataframe(
        frame, y_col="filename", image_dir=folder, class_mode="sparse", shuffle=False
    )
    assert same_column.labels.tolist() == [sorted(NAMES).index(name) for name in NAMES]


def test_an_empty_frame_is_refused(frame):
    for options in ({}, {"class_mode": None}, {"class_mode": "raw", "y_col": "one"}):
        with pytest.raises(IchError, match="there are no samples: the list of ids is empty"):
            DataGenerator.from_dataframe(frame.iloc[:0], **options)


def test_folders_that_make_no_sense_are_refused(folder):
    with pytest.raises(IchError, match="none is no folder; expected one with a folder of images for each class"):
        DataGenerator.from_directory(folder / "none")
    with pytest.raises(IchError, match=r"empty has no images \(\.png, .*\) in folders of classes"):
        DataGenerator.from_directory(folder / "empty")
    with pytest.raises(IchError, match=r"has no images .* in folders of empty"):
        DataGenerator.from_directory(folder, classes=["empty"])
    with pytest.raises(IchError, match="has no folder of the class d"):
        DataGenerator.from_directory(folder, classes=["a", "d"])
    with pytest.raises(IchError, match="from_directory takes the folder as its first argument, and no image_dir"):
        DataGenerator.from_directory(folder, image_dir=folder)
    with pytest.raises(IchError, match="class_mode raw needs columns of numbers; folders are classes"):
        DataGenerator.from_directory(folder, class_mode="raw")
    with pytest.raises(IchError, match="class_mode binary takes two classes, found 4: a, b, c, … "):
        DataGenerator.from_directory(folder, class_mode="binary")


def test_ids_with_a_suffix_and_more_inputs(folder, frame):
    frame = frame[frame["filename"].isin(["b/2.png", "a/10.png"])].assign(id=["b/2", "a/10"])
    generator = DataGenerator.from_dataframe(
        frame, "id", ["one", "two"], image_dir=folder, class_mode="raw", suffix=".png", extra=["weight"]
    )
    x, y = generator[0]
    assert x["image"].shape == (2, 32, 48, 3)
    assert x["weight"].tolist() == [[1], [2]]
    assert y.tolist() == [[0.5, 9], [1, 8]]
