"""What goes wrong in the middle of an epoch: damaged images, other people's functions, interrupts."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import multiprocessing
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
from recorder import Recorder

from ich.data.generator import DataGenerator
from ich.errors import IchError

SIZE, COUNT = 16, 24
IDS = [f"ID_{number:03}" for number in range(COUNT)]
MODES = [
    pytest.param({"workers": 0}, id="no worker"),
    pytest.param({"workers": 3}, id="threads"),
    pytest.param({"workers": 3, "use_multiprocessing": True}, id="processes"),
]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder(tmp_path):
    """Images whose every pixel is the sample's number, from 1."""
    for number, id_ in enumerate(IDS):
        cv2.imwrite(str(tmp_path / f"{id_}.png"), np.full((SIZE, SIZE), number + 1, np.uint8))
    return tmp_path


@pytest.fixture
def labels():
    return pd.DataFrame({"number": np.arange(COUNT) + 1}, IDS)


@pytest.fixture
def recorder():
    return Recorder()


def truncate(path):
    path.write_bytes(path.read_bytes()[:50])


DAMAGE = {
    "missing": (lambda path: path.unlink(), "cannot be read: No such file or directory; was it converted?"),
    "zero bytes": (lambda path: path.write_bytes(b""), r"holds no image that can be decoded \(0 bytes\)"),
    "truncated": (truncate, r"holds no image that can be decoded \(50 bytes\)"),
    "junk": (lambda path: path.write_bytes(b"junk"), r"holds no image that can be decoded \(4 bytes\)"),
}


# ------------------------------------------------------------------------------------------------- it is reported


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_image_is_named(folder, labels, kind):
    spoil, message = DAMAGE[kind]
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=4, shuffle=False)
    spoil(folder / f"{IDS[17]}.png")
    assert generator[0][1].ravel().tolist() == [1, 2, 3, 4]
    with pytest.raises(IchError, match=f"{IDS[17]}.png {message}"):
        generator[4]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [[17], [0], IDS.index(IDS[-1:][0]), range(COUNT)], ids=["one", "first", "last", "all"])
def test_a_bad_image_ends_the_epoch_with_its_id_and_does_not_hang(folder, labels, recorder, mode, bad):
    bad = [bad] if isinstance(bad, int) else bad
    for number in bad:
        truncate(folder / f"{IDS[number]}.png")
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=2, **mode, shuffle=False)
    for action in (recorder.fit, recorder.predict):
        # TensorFlow raises an error of its own, with the text of the worker's.
        with pytest.raises(Exception, match=rf"{IDS[bad[0]]}.png holds no image that can be decoded \(50 bytes\)"):
            action(generator, verbose=0)


def fail_at_17(image, rng=None):
    if image.flat[0] == 18:
        raise ZeroDivisionError("seventeen")
    return image


def fail_in_transform(image, **_):
    return fail_at_17(image)


def label_or_fail(id):
    return [np.nan] if id == IDS[3] else {}[id] if id == IDS[17] else [1.0]


def read_or_fail(path):
    if path.stem == IDS[17]:
        raise PermissionError(13, "Permission denied", str(path))
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": fail_at_17}, "ID_017: augment raised ZeroDivisionError: seventeen"),
        ({"augment": A.Lambda(image=fail_in_transform, p=1)}, "ID_017: augment raised ZeroDiv"),
        ({"preprocess": fail_at_17}, "ID_017: preprocess raised ZeroDivisionError: seventeen"),
        ({"reader": read_or_fail}, "ID_017.png: reader raised PermissionError: Permission denied"),
        ({"labels": label_or_fail}, "the labels of ID_003 are not all numbers; nothing is filled in"),
    ],
)
def test_what_a_function_raises_in_a_worker_reaches_the_caller_with_the_id(
    folder, labels, recorder, mode, options, message
):
    generator = DataGenerator(
        IDS, **{"labels": labels, "image_dir": folder, "batch_size": 3} | options | mode, shuffle=False
    )
    with pytest.raises(Exception, match=message):
        recorder.fit(generator, verbose=0)


@pytest.mark.parametrize("function", ["augment", "preprocess", "reader"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "gave NoneType, expected an image"),
        ((np.zeros((4, 4, 1)), np.zeros(3)), "gave tuple, expected an image"),
        ({"image": np.zeros((4, 4, 1))}, "gave dict, expected an image"),
        (np.array(["a"]), r"gave <U1 of \(1,\), expected an image"),
    ],
)
def test_what_is_no_image_is_named_with_the_function_that_gave_it(folder, labels, function, given, message):
    options = {"image_dir": folder, function: lambda *_: given}
    with pytest.raises(IchError, match=f"ID_000.*: {function} {message}"):
        DataGenerator(IDS, labels, shuffle=False, **options)[0]


def test_a_vector_is_what_preprocess_may_give_but_not_augment(folder, labels):
    def mean(image, rng=None):
        return image.mean(axis=(0, 1))

    x, _ = DataGenerator(IDS, labels, image_dir=folder, preprocess=mean)[0]
    assert x.shape == (COUNT, 1)
    with pytest.raises(IchError, match=r"augment gave float64 of \(1,\), expected an image, an array of \(height"):
        DataGenerator(IDS, labels, image_dir=folder, augment=mean)[0]


def test_an_augmentation_that_drops_the_axis_of_one_channel_gets_it_back(folder, labels):
    x, _ = DataGenerator(IDS, labels, image_dir=folder, augment=lambda image, rng: cv2.blur(image, (3, 3)))[0]
    assert x.shape == (COUNT, SIZE, SIZE, 1)


def test_labels_of_several_shapes_are_reported(folder):
    given = lambda id: [1.0, 2.0] if id == IDS[3] else [1.0]  # noqa: E731
    with pytest.raises(IchError, match=r"the labels of ID_003 have the shape \(2,\), those of ID_000 \(1,\); give all"):
        DataGenerator(IDS, given, image_dir=folder, shuffle=False)[0]


def test_a_label_that_cannot_be_had_is_named(folder):
    generator = DataGenerator(IDS, label_or_fail, image_dir=folder, batch_size=1, shuffle=False)
    with pytest.raises(IchError, match="ID_017: labels raised KeyError: 'ID_017'"):
        generator[17]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_image_of_another_size_is_named_unless_there_is_a_target_size(folder, labels, on_error):
    cv2.imwrite(str(folder / f"{IDS[5]}.png"), np.full((SIZE, 20), 6, np.uint8))
    options = {"image_dir": folder, "shuffle": True, "batch_size": COUNT, "on_error": on_error}
    # It can be read, and so is not skipped: which size is the right one is not for chance to say.
    with pytest.raises(IchError, match=r"ID_0.. gives uint8 of \(16, .*\), the first image gave .*; give target_size="):
        DataGenerator(IDS, labels, **options)[0]
    x, y = DataGenerator(IDS, labels, **options, target_size=(8, 8))[0]
    assert x[:, 0, 0, 0].tolist() == y.ravel().tolist()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (A.RandomScale((0.5, 0.5), p=0.5), r"gives uint8 of \(.*\), the first image gave uint8 of"),
        (A.ToFloat(p=0.5), "gives (float32|uint8) of .*, the first image gave (uint8|float32)"),
    ],
)
def test_an_augmentation_that_changes_size_or_dtype_now_and_then_is_reported(folder, labels, transform, message):
    with pytest.raises(IchError, match=message + ".*an augmentation that keeps size and dtype"):
        DataGenerator(IDS, labels, image_dir=folder, augment=A.Compose([transform]))[0]


def test_neighbours_that_do_not_fit_or_cannot_be_read_name_the_slice_too(folder, labels):
    rows = {"SOPInstanceUID": IDS, "SeriesInstanceUID": "ID_s", "split": "train", "order": range(COUNT), "status": "ok"}
    options = {"image_dir": folder, "batch_size": 1, "neighbours": (0, 1), "slices": pd.DataFrame(rows)}
    cv2.imwrite(str(folder / f"{IDS[5]}.png"), np.zeros((SIZE, 20), np.uint8))
    truncate(folder / f"{IDS[9]}.png")
    generator = DataGenerator(IDS, labels, **options, shuffle=False)
    with pytest.raises(
        IchError, match=r"ID_004 has images that do not fit .*: uint8 of \(16, 16, 1\), uint8 of \(16, 20"
    ):
        generator[4]
    with pytest.raises(IchError, match=r"ID_008 with its neighbours: .*ID_009.png holds no image"):
        generator[8]


def test_colors_that_a_file_does_not_have_name_the_file(tmp_path, labels):
    np.save(tmp_path / f"{IDS[0]}.npy", np.zeros((4, 4, 9), np.uint8))
    generator = DataGenerator(IDS[:1], labels, image_dir=tmp_path, suffix=".npy", color_mode="rgb")
    with pytest.raises(IchError, match=r"ID_000.npy: an image of shape \(4, 4, 9\) has no color_mode rgb"):
        generator[0]


def test_a_batch_larger_than_the_data(folder, labels):
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=1000)
    assert len(generator) == 1
    assert len(generator[0][0]) == COUNT


# ------------------------------------------------------------------------------------------------- it is skipped


@pytest.mark.parametrize("mode", MODES)
def test_skipped_images_are_replaced_by_others_the_same_in_each_run(folder, labels, recorder, mode):
    spoilt = [IDS[3], IDS[17], IDS[18]]
    for id_ in spoilt:
        truncate(folder / f"{id_}.png")
    options = {"image_dir": folder, "batch_size": 5, "shuffle": True, "on_error": "skip", "augment": A.HorizontalFlip()}
    plain = DataGenerator(IDS, labels, **options)
    expected = []
    for epoch in range(2):
        plain.set_epoch(epoch)
        expected += [plain[index] for index in range(len(plain))]
    # Once an epoch, and once more if it is drawn in place of another.
    assert sorted(plain.skipped) == spoilt
    assert all(2 <= count <= 6 for count in plain.skipped.values())
    generator = DataGenerator(IDS, labels, **options, **mode)
    recorder.fit(generator, epochs=2, verbose=0, shuffle=False)
    assert len(recorder.seen) == len(expected)
    for (x, y), (want_x, want_y) in zip(recorder.seen, expected, strict=True):
        np.testing.assert_array_equal(x, want_x)
        np.testing.assert_array_equal(y, want_y)
        assert x[:, 0, 0, 0].tolist() == y.ravel().tolist()  # the label of what is shown, and never zeros
    shown = [int(number) for x, _ in recorder.seen for number in x[:, 0, 0, 0]]
    assert len(shown) == 2 * COUNT
    assert not {4, 18, 19} & set(shown)
    # Workers count, in other processes too; TensorFlow draws some batches once more to learn their shapes.
    assert set(generator.skipped) == set(spoilt)
    assert all(count >= 2 for count in generator.skipped.values())


def test_the_ids_of_a_batch_are_those_of_the_samples_that_are_shown(folder, labels):
    for id_ in IDS[3:20:2]:
        truncate(folder / f"{id_}.png")
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=5, shuffle=True, on_error="skip")
    for epoch in range(2):
        generator.set_epoch(epoch)
        for index in range(len(generator)):
            before = generator.skipped
            ids = generator.ids_of(index)
            assert generator.skipped == before  # it only looks
            assert labels.loc[ids, "number"].tolist() == generator[index][1].ravel().tolist()


def test_a_preview_counts_nothing(folder, labels):
    truncate(folder / f"{IDS[3]}.png")
    generator = DataGenerator(IDS[:5], labels, image_dir=folder, shuffle=True, on_error="skip")
    titles = {axes.get_title() for axes in generator.preview(5).axes[::2]}
    assert len(titles) == 4  # one stands twice, in place of that which cannot be read
    assert generator.skipped == {}
    generator[0]
    assert generator.skipped == {IDS[3]: 1}


def batches_of(generator):
    """In the process of a pool."""
    return [len(_generators[generator][index][0]) for index in range(len(_generators[generator]))]


_generators = {}


def test_what_forked_workers_skip_is_counted_after_pickling_too(folder, labels):
    truncate(folder / f"{IDS[3]}.png")
    first = DataGenerator(IDS, labels, image_dir=folder, batch_size=COUNT, shuffle=True, on_error="skip")
    first[0]
    copied = _generators["copied"] = pickle.loads(pickle.dumps(first))
    assert copied.skipped == first.skipped == {IDS[3]: 1}
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(batches_of, ("copied",)) == [COUNT]
    assert copied.skipped == {IDS[3]: 2}
    assert first.skipped == {IDS[3]: 1}


def test_nothing_is_skipped_at_prediction(folder, labels):
    truncate(folder / f"{IDS[0]}.png")
    generator = DataGenerator(
        IDS, labels, image_dir=folder, shuffle=True, on_error="skip", tta=[None], batch_size=COUNT
    )
    assert len(generator[0][0]) == COUNT
    with pytest.raises(IchError, match=r"ID_000\.png holds no image"):
        generator.at_pass(0)[0]
    assert DataGenerator(IDS[1:], image_dir=folder).skipped == {}


def test_nothing_but_damage_ends(folder, labels):
    for id_ in IDS:
        truncate(folder / f"{id_}.png")
    generator = DataGenerator(IDS, labels, image_dir=folder, shuffle=True, on_error="skip")
    with pytest.raises(
        IchError, match=r"ID_... and 15 samples drawn in its place cannot be read; the last: .*\.png holds"
    ):
        generator[0]


def test_what_a_function_raises_is_not_skipped(folder, labels):
    generator = DataGenerator(IDS, labels, image_dir=folder, shuffle=True, on_error="skip", augment=fail_at_17)
    with pytest.raises(IchError, match="ID_017: augment raised ZeroDivisionError"):
        generator[0]


# ------------------------------------------------------------------------------------------------- processes


def handler_in(generator, name):
    multiprocessing.current_process().name = name
    generator[0]
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("name", ["Keras_worker_ForkPoolWorker-1", "SpawnPoolWorker-1"])
def test_only_workers_of_keras_leave_an_interrupt_to_the_process_that_trains(folder, labels, name):
    generator = DataGenerator(IDS, labels, image_dir=folder)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(handler_in, (generator, name)) == name.startswith("Keras")


SCRIPT = """
import os, sys, time
import keras, numpy as np, pandas as pd
from ich.data.generator import DataGenerator

class Slow(keras.Model):
    def train_step(self, data):
        print("step", flush=True)
        time.sleep(0.01)
        return {"loss": 0.0}

    def call(self, x):
        return x

def read(path):
    time.sleep(0.05)  # so slow that the workers are at work when the interrupt comes
    return np.zeros((8, 8, 1), np.uint8)

ids = [f"{number}" for number in range(20_000)]
generator = DataGenerator(
    ids, pd.Series(1.0, ids), reader=read, batch_size=4, workers=2, use_multiprocessing=sys.argv[1] == "processes"
)
model = Slow()
model.compile(run_eagerly=True)
model.fit(generator, verbose=0)
"""


# An interrupt to all processes is the hardest case: workers must leave it to the first, and the first must end them.
@pytest.mark.parametrize(
    ("kind", "group"),
    [
        ("processes", True),
        pytest.param("processes", False, marks=pytest.mark.slow),
        pytest.param("threads", False, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_in_the_middle_of_an_epoch_ends_the_workers(kind, group):
    """`group`: to all processes, as a terminal's Ctrl-C, or to the first alone."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for _ in range(5):
            assert process.stdout.readline() == "step\n", process.stderr.read()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2 * (kind == "processes")
        for _ in range(4):  # one that comes while TensorFlow finalizes an object is lost there, as any user's
            (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=10)
                break
        assert process.returncode
        assert "KeyboardInterrupt" in errors
        deadline = time.monotonic() + 10
        while alive := [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
