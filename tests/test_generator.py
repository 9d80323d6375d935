import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich import augment, images
from ich.errors import IchError
from ich.generator import DataGenerator
from ich.labels import LABELS

SIZE, COUNT, BATCH = 32, 23, 5
IDS = [f"ID_{number:09x}" for number in range(COUNT)]
MODES = [
    pytest.param({"workers": 1}, id="one thread"),
    pytest.param({"workers": 2}, id="two threads"),
    pytest.param({"workers": 4, "max_queue_size": 2}, id="four threads, short queue"),
    pytest.param({"workers": 2, "use_multiprocessing": True}, id="two processes"),
]
# Processes are forked beside TensorFlow's threads, as Keras does it.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Grey noise, of which the first pixel is the sample's number."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, one in enumerate(IDS):
        image = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
        image[0, 0] = number
        cv2.imwrite(str(path / f"{one}.png"), image)
    return path


@pytest.fixture(scope="module")
def labels():
    """Of other images too, and in another order: labels are found by id."""
    rng = np.random.default_rng(1)
    ids = [*IDS[::-1], "ID_fff", "ID_ffe"]
    return pd.DataFrame(rng.integers(0, 2, (len(ids), 6), dtype=np.int8), index=ids, columns=list(LABELS))


def epoch_of(generator, epoch=None):
    if epoch is not None:
        generator.set_epoch(epoch)
    return [generator[index] for index in range(len(generator))]


def numbers(batch):
    return batch[:, 0, 0, 0].tolist()


def heavy():
    return augment.pipeline("heavy", SIZE, SIZE)


def same(one, other):
    """Batches equal bit for bit, images and labels."""
    return len(one) == len(other) and all(
        a[0].dtype == b[0].dtype and np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
        for a, b in zip(one, other, strict=True)
    )


# ------------------------------------------------------------------------------------------------- the batches


@settings(deadline=None, max_examples=20)
@given(
    batch_size=st.integers(1, COUNT + 3), shuffle=st.booleans(), seed=st.integers(0, 2**32), epoch=st.integers(0, 99)
)
def test_every_sample_once_an_epoch_with_its_label(folder, labels, batch_size, shuffle, seed, epoch):
    generator = DataGenerator(
        IDS, labels, image_dir=folder, batch_size=batch_size, shuffle=shuffle, seed=seed, epoch=epoch
    )
    batches = epoch_of(generator)
    sizes = [len(x) for x, _ in batches]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= batch_size
    seen = [number for x, _ in batches for number in numbers(x)]
    assert sorted(seen) == list(range(COUNT))
    if not shuffle:
        assert seen == list(range(COUNT))
    for x, y in batches:
        assert x.dtype == np.uint8
        assert x.shape[1:] == (SIZE, SIZE, 1)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, labels.loc[[IDS[number] for number in numbers(x)]])
        for number, image in zip(numbers(x), x, strict=True):
            np.testing.assert_array_equal(image, images.read(folder / f"{IDS[number]}.png"))


def test_without_labels_images_alone_in_the_order_of_the_ids(folder):
    ids = pd.Index(IDS[::-1])
    batches = epoch_of(DataGenerator(ids, image_dir=folder, batch_size=BATCH))
    assert all(isinstance(batch, np.ndarray) for batch in batches)
    assert [number for batch in batches for number in numbers(batch)] == list(range(COUNT))[::-1]


def test_only_batches_that_exist(folder, labels):
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=BATCH)
    for index in (-1, len(generator)):
        with pytest.raises(IndexError, match=f"batch {index} of 5"):
            generator[index]
    assert len(list(generator)) == 5


def test_epochs_differ_in_order_and_augmentation_and_repeat_by_number(folder, labels):
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=BATCH, shuffle=True, augment=heavy())
    first, second = epoch_of(generator, 0), epoch_of(generator, 1)
    assert not same(first, second)
    assert same(epoch_of(generator, 0), first)
    fresh = DataGenerator(IDS, labels, image_dir=folder, batch_size=BATCH, shuffle=True, augment=heavy(), epoch=1)
    assert same(epoch_of(fresh), second)
    other = DataGenerator(IDS, labels, image_dir=folder, batch_size=BATCH, shuffle=True, augment=heavy(), seed=1)
    assert not same(epoch_of(other), first)


def test_a_sample_looks_the_same_in_any_batch_and_any_company(folder, labels):
    def looks(ids, batch_size, shuffle):
        generator = DataGenerator(
            ids, labels, image_dir=folder, batch_size=batch_size, shuffle=shuffle, augment=heavy(), epoch=3
        )
        order = generator._plan[1]
        pictures = np.concatenate([x for x, _ in epoch_of(generator)])
        return {ids[row]: picture.tobytes() for row, picture in zip(order, pictures, strict=True)}

    expected = looks(IDS, BATCH, shuffle=False)
    assert len(set(expected.values())) == COUNT
    assert looks(IDS, 7, shuffle=True) == expected
    assert looks(IDS[::-2], 3, shuffle=False) == {one: expected[one] for one in IDS[::-2]}


def test_asked_from_many_threads_in_any_order(folder, labels):
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=2, shuffle=True, augment=heavy())
    expected = epoch_of(generator)
    wanted = np.random.default_rng(0).integers(0, len(generator), 60).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(generator.__getitem__, wanted))
    assert same(found, [expected[index] for index in wanted])


def test_pickled_after_use_it_goes_on(folder, labels):
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=BATCH, shuffle=True, augment=heavy(), workers=3)
    expected = epoch_of(generator, 2)
    again = pickle.loads(pickle.dumps(generator))
    assert same(epoch_of(again), expected)
    assert again.workers == 3


def test_nine_channels_from_npy(tmp_path, labels):
    stored = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 9), dtype=np.uint8)
    for one, array in zip(IDS, stored, strict=True):
        np.save(tmp_path / f"{one}.npy", array)
    plain = DataGenerator(IDS, labels, image_dir=tmp_path, suffix=".npy", batch_size=BATCH)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in epoch_of(plain)]), stored)
    augmented = DataGenerator(IDS, labels, image_dir=tmp_path, suffix=".npy", batch_size=BATCH, augment=heavy())
    assert augmented[0][0].shape == (BATCH, SIZE, SIZE, 9)


# ------------------------------------------------------------------------------------------------- under Keras


class Recorder(keras.Model):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def train_step(self, data):
        self.seen.append(tuple(keras.ops.convert_to_numpy(part) for part in data))
        return {"loss": 0.0}

    def call(self, x):
        return x


@pytest.fixture
def recorder():
    model = Recorder()
    model.compile(run_eagerly=True)
    return model


@pytest.mark.parametrize("mode", MODES)
def test_fit_shows_every_epoch_as_the_plain_loop_does(folder, labels, recorder, mode):
    options = {"image_dir": folder, "batch_size": BATCH, "shuffle": True, "augment": heavy(), "seed": 7}
    plain = DataGenerator(IDS, labels, **options)
    expected = [batch for epoch in range(3) for batch in epoch_of(plain, epoch)]
    recorder.fit(DataGenerator(IDS, labels, **options, **mode), epochs=3, verbose=0, shuffle=False)
    assert same(recorder.seen, expected)


@pytest.mark.parametrize("mode", [MODES[0], MODES[1]])
def test_fit_in_two_parts_is_fit_in_one(folder, labels, mode):
    options = {"image_dir": folder, "batch_size": BATCH, "shuffle": True, "augment": heavy(), **mode}
    whole, kept, resumed = Recorder(), Recorder(), Recorder()
    for model in (whole, kept, resumed):
        model.compile(run_eagerly=True)
    whole.fit(DataGenerator(IDS, labels, **options), epochs=4, verbose=0, shuffle=False)
    generator = DataGenerator(IDS, labels, **options)
    kept.fit(generator, epochs=2, verbose=0, shuffle=False)
    kept.fit(generator, epochs=4, initial_epoch=2, verbose=0, shuffle=False)
    assert same(kept.seen, whole.seen)
    generator = DataGenerator(IDS, labels, **options, epoch=2)
    resumed.fit(generator, epochs=4, initial_epoch=2, verbose=0, shuffle=False)
    assert same(resumed.seen, whole.seen[-2 * len(generator) :])


@pytest.mark.parametrize("mode", MODES)
def test_predict_keeps_the_order_time_after_time(folder, recorder, mode):
    generator = DataGenerator(IDS, image_dir=folder, batch_size=BATCH, **mode)
    for _ in range(2):
        found = recorder.predict(generator, verbose=0)
        assert numbers(found) == list(range(COUNT))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mode", MODES)
def test_a_bad_image_ends_the_epoch_with_its_id_and_does_not_hang(folder, labels, recorder, tmp_path, mode):
    for one in IDS:
        (tmp_path / f"{one}.png").write_bytes((folder / f"{one}.png").read_bytes())
    (tmp_path / f"{IDS[17]}.png").write_bytes(b"junk")
    generator = DataGenerator(IDS, labels, image_dir=tmp_path, batch_size=2, **mode)
    for action in (recorder.fit, recorder.predict):
        # TensorFlow raises an error of its own, with the text of the worker's.
        with pytest.raises(Exception, match=rf"{IDS[17]}.png holds no image that can be decoded \(4 bytes\)"):
            action(generator, verbose=0)


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": []}, "there are no samples: the list of ids is empty"),
        ({"ids": ["ID_a", "ID_b", "ID_a"]}, r"1 id\(s\) are listed twice, such as ID_a; give each sample once"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"labels": None, "shuffle": True}, "shuffle needs labels: without them, order is what ties"),
        ({"ids": [*IDS, "ID_abc"]}, r"1 id\(s\) have no labels, such as ID_abc; leave them out or label them"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(folder, labels, changes, message):
    arguments = {"ids": IDS, "labels": labels, "image_dir": folder} | changes
    with pytest.raises(IchError, match=message):
        DataGenerator(arguments.pop("ids"), **arguments)


def test_labels_listed_twice_are_refused(folder, labels):
    with pytest.raises(IchError, match="the labels list ID_ffe twice; merge its rows first"):
        DataGenerator(IDS, pd.concat([labels, labels.tail(1)]), image_dir=folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_that_are_no_numbers_are_refused(folder, labels, value):
    spoilt = labels.astype(float)
    spoilt.loc[IDS[4], "any"] = value
    with pytest.raises(IchError, match=f"the labels of {IDS[4]} are not all numbers"):
        DataGenerator(IDS, spoilt, image_dir=folder)
    DataGenerator([one for one in IDS if one != IDS[4]], spoilt, image_dir=folder)


def test_an_image_of_another_shape_is_refused(folder, labels, tmp_path):
    np.save(tmp_path / f"{IDS[0]}.npy", np.zeros((SIZE, SIZE), np.uint8))
    np.save(tmp_path / f"{IDS[1]}.npy", np.zeros((SIZE, SIZE, 3), np.uint8))
    generator = DataGenerator(IDS[:2], labels, image_dir=tmp_path, suffix=".npy")
    with pytest.raises(IchError, match=rf"{IDS[1]}.npy gives \(32, 32, 3\), the first image gave \(32, 32, 1\)"):
        generator[0]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_images_of_more_than_eight_bits_are_refused(labels, tmp_path, dtype):
    np.save(tmp_path / f"{IDS[0]}.npy", np.zeros((SIZE, SIZE), dtype))
    generator = DataGenerator(IDS[:1], labels, image_dir=tmp_path, suffix=".npy")
    with pytest.raises(IchError, match=f"{IDS[0]}.npy holds {np.dtype(dtype)}, expected uint8"):
        generator[0]


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".png", "ID_000000000.png cannot be read: No such file or directory; was it converted?"),
        (".tiff", "there are readers for .png, .jpg, .jpeg, .npy, none for '.tiff'"),
    ],
)
def test_a_missing_image_is_told(labels, tmp_path, suffix, message):
    with pytest.raises(IchError, match=message):
        DataGenerator(IDS, labels, image_dir=tmp_path, suffix=suffix)[0]
