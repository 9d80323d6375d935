import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import ctypes
import functools
import itertools
import pickle
import platform
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import albumentations as A
import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from conftest import make_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder import Recorder

from ich.competition.labels import LABELS
from ich.data import augment, shared_memory
from ich.data.generator import DataGenerator
from ich.data.sampling import PerSeries, PositiveShare, Weighted
from ich.dicom.windows import PRESETS
from ich.errors import IchError
from ich.images import reading
from ich.images.slice_table import to_frame

SIZE, COUNT, BATCH = 32, 23, 5
IDS = [f"ID_{number:09x}" for number in range(COUNT)]
MODES = [
    pytest.param({"workers": 0}, id="no worker"),
    pytest.param({"workers": 1}, id="one thread"),
    pytest.param({"workers": 2}, id="two threads"),
    pytest.param({"workers": 4, "max_queue_size": 2}, id="four threads, short queue"),
    pytest.param({"workers": 8}, id="eight threads"),
    pytest.param({"workers": 1, "use_multiprocessing": True}, id="one process"),
    pytest.param({"workers": 2, "use_multiprocessing": True}, id="two processes"),
    pytest.param({"workers": 8, "use_multiprocessing": True}, id="eight processes"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gray noise, of which the first pixel is the sample's number."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, id_ in enumerate(IDS):
        image = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
        image[0, 0] = number
        cv2.imwrite(str(path / f"{id_}.png"), image)
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


def stored(folder):
    return np.stack([reading.read(folder / f"{id_}.png") for id_ in IDS])


def heavy():
    return augment.pipeline("heavy", SIZE, SIZE)


def same(first, second):
    """Batches equal bit for bit, images and labels."""
    return len(first) == len(second) and all(
        a[0].dtype == b[0].dtype and np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
        for a, b in zip(first, second, strict=True)
    )


# ------------------------------------------------------------------------------------------------- the batches


@settings(max_examples=20)
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
            np.testing.assert_array_equal(image, reading.read(folder / f"{IDS[number]}.png"))


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
        order = generator._plan.rows
        pictures = np.concatenate([x for x, _ in epoch_of(generator)])
        return {ids[row]: picture.tobytes() for row, picture in zip(order, pictures, strict=True)}

    expected = looks(IDS, BATCH, shuffle=False)
    assert len(set(expected.values())) == COUNT
    assert looks(IDS, 7, shuffle=True) == expected
    assert looks(IDS[::-2], 3, shuffle=False) == {id_: expected[id_] for id_ in IDS[::-2]}


def test_asked_from_many_threads_in_any_order(folder, labels):
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=2, shuffle=True, augment=heavy())
    expected = epoch_of(generator)
    indices = np.random.default_rng(0).integers(0, len(generator), 60).tolist()
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(generator.__getitem__, indices))
    assert same(batches, [expected[index] for index in indices])


def test_pickled_after_use_it_goes_on(folder, labels):
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=BATCH, shuffle=True, augment=heavy(), workers=3)
    expected = epoch_of(generator, 2)
    again = pickle.loads(pickle.dumps(generator))
    assert same(epoch_of(again), expected)
    assert again.workers == 3


def test_nine_channels_from_npy(tmp_path, labels):
    stored = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 9), dtype=np.uint8)
    for id_, array in zip(IDS, stored, strict=True):
        np.save(tmp_path / f"{id_}.npy", array)
    plain = DataGenerator(IDS, labels, image_dir=tmp_path, suffix=".npy", batch_size=BATCH, shuffle=False)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in epoch_of(plain)]), stored)
    augmented = DataGenerator(
        IDS, labels, image_dir=tmp_path, suffix=".npy", batch_size=BATCH, augment=heavy(), shuffle=False
    )
    assert augmented[0][0].shape == (BATCH, SIZE, SIZE, 9)


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="it is glibc that is set")
def test_memory_is_used_again_though_malloc_was_set_to_give_it_back():
    resource = pytest.importorskip("resource")
    generator = DataGenerator(IDS, reader=lambda path: np.ones((512, 512, 1), np.uint8), batch_size=8)
    libc = ctypes.CDLL(None)
    for threshold in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, of which TensorFlow sets the first
        libc.mallopt(threshold, 2**17)
    generator[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        generator[0]
    pages = 10 * 8 * 2 * 512 * 512 // resource.getpagesize()  # of the images and of the batches
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages / 10


def test_with_labels_samples_are_shuffled_unless_set_otherwise(folder, labels):
    shuffled = DataGenerator(IDS, labels, image_dir=folder)
    assert shuffled.shuffle is True
    assert numbers(shuffled[0][0]) != list(range(COUNT))
    assert same(epoch_of(shuffled), epoch_of(DataGenerator(IDS, labels, image_dir=folder, shuffle=True)))
    assert DataGenerator(IDS, lambda id: 0, image_dir=folder).shuffle is True
    assert DataGenerator(IDS, image_dir=folder).shuffle is False
    assert numbers(DataGenerator(IDS, image_dir=folder)[0]) == list(range(COUNT))
    assert numbers(DataGenerator(IDS, labels, image_dir=folder, shuffle=False)[0][0]) == list(range(COUNT))
    frame = pd.DataFrame({"filename": [f"{id_}.png" for id_ in IDS], "class": ["a", "b"] * 11 + ["a"]})
    assert DataGenerator.from_dataframe(frame, image_dir=folder).shuffle is True
    assert DataGenerator.from_dataframe(frame, image_dir=folder, class_mode=None).shuffle is False


def test_without_a_seed_each_generator_is_another_and_can_be_had_again(folder, labels):
    options = {"image_dir": folder, "batch_size": BATCH, "augment": heavy()}
    first, second = (DataGenerator(IDS, labels, **options, seed=None) for _ in range(2))
    assert isinstance(first.seed, int)
    assert first.seed != second.seed
    assert not same(epoch_of(first), epoch_of(second))
    assert same(epoch_of(first), epoch_of(DataGenerator(IDS, labels, **options, seed=first.seed)))
    of_numpy, of_python = (DataGenerator(IDS, labels, **options, seed=seed) for seed in (np.int64(5), 5))
    assert same(epoch_of(of_numpy), epoch_of(of_python))


# ------------------------------------------------------------------------------------------------- under Keras


@pytest.fixture
def recorder():
    return Recorder()


@pytest.mark.parametrize("mode", MODES)
def test_fit_shows_every_epoch_as_the_plain_loop_does(folder, labels, recorder, mode):
    options = {"image_dir": folder, "batch_size": BATCH, "shuffle": True, "augment": heavy(), "seed": 7}
    plain = DataGenerator(IDS, labels, **options)
    expected = [batch for epoch in range(3) for batch in epoch_of(plain, epoch)]
    recorder.fit(DataGenerator(IDS, labels, **options, **mode), epochs=3, verbose=0, shuffle=False)
    assert same(recorder.seen, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they go through a pipe")
def test_large_batches_of_processes_arrive_as_they_were_without_a_copy(folder, labels, recorder, monkeypatch):
    options = {"image_dir": folder, "batch_size": BATCH, "shuffle": True, "target_size": (192, 192)}
    options["augment"] = augment.pipeline("heavy", 192, 192)
    plain = DataGenerator(IDS, labels, **options)
    expected = [batch for epoch in range(2) for batch in epoch_of(plain, epoch)]
    received, receive = [], shared_memory._received
    # By its name, by which workers pickle it.
    spy = functools.wraps(receive)(lambda *args: received.append(args) or receive(*args))
    monkeypatch.setattr(shared_memory, "_received", spy)
    generator = DataGenerator(IDS, labels, **options, workers=2, use_multiprocessing=True)
    recorder.fit(generator, epochs=2, verbose=0, shuffle=False)
    assert same(recorder.seen, expected)  # all of them held until now
    assert len(received) == sum(x.nbytes > 2**17 for x, _ in expected) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they go through a pipe")
@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.timeout(60)
def test_a_batch_that_cannot_be_had_from_a_process_ends_the_run(folder, labels, recorder, monkeypatch, labeled):
    receive = shared_memory._received
    lost = functools.wraps(receive)(lambda _, *where: receive(2**30, *where))  # of a process that there is not
    monkeypatch.setattr(shared_memory, "_received", lost)
    options = {"image_dir": folder, "target_size": (256, 256), "workers": 2, "use_multiprocessing": True}
    generator = DataGenerator(IDS, labels if labeled else None, **options)
    with pytest.raises(Exception, match=r"a batch cannot be had from the process 1073741824 that made it: .*No such"):
        recorder.fit(generator, verbose=0) if labeled else recorder.predict(generator, verbose=0)


@pytest.mark.parametrize("mode", [MODES[1], MODES[2], MODES[6]])
def test_fit_in_two_parts_is_fit_in_one(folder, labels, mode):
    options = {"image_dir": folder, "batch_size": BATCH, "shuffle": True, "augment": heavy(), **mode}
    whole, kept, resumed = Recorder(), Recorder(), Recorder()
    whole.fit(DataGenerator(IDS, labels, **options), epochs=4, verbose=0, shuffle=False)
    generator = DataGenerator(IDS, labels, **options)
    kept.fit(generator, epochs=2, verbose=0, shuffle=False)
    kept.fit(generator, epochs=4, initial_epoch=2, verbose=0, shuffle=False)
    assert same(kept.seen, whole.seen)
    generator = DataGenerator(IDS, labels, **options, epoch=2)
    resumed.fit(generator, epochs=4, initial_epoch=2, verbose=0, shuffle=False)
    assert same(resumed.seen, whole.seen[-2 * len(generator) :])


def test_fit_that_shuffles_batches_shows_each_sample_once_too(folder, labels, recorder):
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=BATCH, shuffle=True, workers=2)
    recorder.fit(generator, epochs=2, verbose=0)  # shuffle=True is Keras's default
    shown = [number for x, _ in recorder.seen for number in numbers(x)]
    assert sorted(shown[:COUNT]) == sorted(shown[COUNT:]) == list(range(COUNT))


@pytest.mark.parametrize("mode", [MODES[0], MODES[2], MODES[6]])
def test_predict_keeps_the_order_time_after_time(folder, recorder, mode):
    generator = DataGenerator(IDS, image_dir=folder, batch_size=BATCH, **mode)
    for _ in range(2):
        predicted = recorder.predict(generator, verbose=0)
        assert numbers(predicted) == list(range(COUNT))


def test_validation_is_never_augmented_and_does_not_move(folder, labels):
    class Watcher(Recorder):
        def test_step(self, data):
            return self.train_step(data)

    model = Watcher()
    held_out = DataGenerator(IDS, labels, image_dir=folder, batch_size=BATCH, workers=2, shuffle=False)
    train = DataGenerator(IDS, labels, image_dir=folder, batch_size=COUNT, shuffle=True, augment=heavy(), workers=2)
    model.fit(train, validation_data=held_out, epochs=3, verbose=0, shuffle=False)
    shown = [batch for batch in model.seen if len(batch[0]) < COUNT]
    assert same(shown, epoch_of(held_out) * 3)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in shown[:5]]), stored(folder))


def test_a_model_of_image_and_columns_learns_with_weights(folder, labels):
    extra = pd.DataFrame({"age": np.arange(COUNT), "thickness": 5.0}, IDS)
    generator = DataGenerator(
        IDS,
        labels["any"],
        image_dir=folder,
        batch_size=BATCH,
        extra=extra,
        weights=pd.Series(2.0, IDS),
        workers=2,
        shuffle=False,
    )
    x, y, weights = generator[1]
    assert {name: (value.shape, value.dtype.name) for name, value in x.items()} == {
        "image": ((BATCH, SIZE, SIZE, 1), "uint8"),
        "age": ((BATCH, 1), "float32"),
        "thickness": ((BATCH, 1), "float32"),
    }
    assert x["age"].ravel().tolist() == numbers(x["image"]) == list(range(BATCH, 2 * BATCH))
    assert weights.tolist() == [2.0] * BATCH
    assert weights.dtype == y.dtype == np.float32

    image, age = keras.Input((SIZE, SIZE, 1), name="image"), keras.Input((1,), name="age")
    thickness = keras.Input((1,), name="thickness")
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    joined = keras.layers.Concatenate()([pooled, keras.layers.Rescaling(1 / 100)(age), thickness])
    model = keras.Model([image, age, thickness], keras.layers.Dense(1)(joined))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(generator, epochs=2, verbose=0)
    weighted = model.evaluate(generator, verbose=0, return_dict=True)["loss"]
    plain = DataGenerator(IDS, labels["any"], image_dir=folder, batch_size=BATCH, extra=extra, shuffle=False)
    assert weighted == pytest.approx(2 * model.evaluate(plain, verbose=0), rel=1e-4)
    predicted = model.predict(
        DataGenerator(IDS, image_dir=folder, batch_size=BATCH, extra=extra, workers=2, shuffle=False), verbose=0
    )
    singly = [model({k: v[None] for k, v in zip(x, parts, strict=True)}) for parts in zip(*x.values(), strict=True)]
    np.testing.assert_allclose(predicted[BATCH : 2 * BATCH], np.concatenate(singly), rtol=1e-4, atol=1e-5)


def test_predictions_come_in_the_order_of_the_ids(folder):
    ids = pd.Index(np.random.default_rng(0).permutation(IDS))
    generator = DataGenerator(ids, image_dir=folder, batch_size=4, workers=4)
    model = keras.Sequential([keras.Input((SIZE, SIZE, 1)), keras.layers.Cropping2D(((0, SIZE - 1), (0, SIZE - 1)))])
    predicted = model.predict(generator, verbose=0).ravel()
    assert [IDS[int(number)] for number in predicted] == generator.ids.tolist()


# ------------------------------------------------------------------------------------------------- augmentation


def function(image, rng):
    return np.roll(image, rng.integers(0, SIZE), axis=rng.integers(0, 2))


AUGMENTATIONS = {
    "Compose": A.Compose([A.Affine(rotate=(-30, 30)), A.OneOf([A.HorizontalFlip(), A.VerticalFlip()], p=0.8)]),
    "ReplayCompose": A.ReplayCompose([A.Affine(rotate=(-30, 30)), A.HorizontalFlip()]),
    "one transform": A.Affine(rotate=(-30, 30), p=1),
    "a function": function,
}


@pytest.mark.parametrize("channels", [1, 3, 9])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_any_augmentation_of_any_channels_is_the_samples_own(labels, tmp_path, name, channels):
    pictures = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, channels), dtype=np.uint8)
    for id_, picture in zip(IDS, pictures, strict=False):
        np.save(tmp_path / f"{id_}.npy", picture)
    options = {"image_dir": tmp_path, "suffix": ".npy", "augment": AUGMENTATIONS[name]}
    generator = DataGenerator(IDS[:6], labels, batch_size=2, **options, shuffle=False)
    first, second = epoch_of(generator, 0), epoch_of(generator, 1)
    assert first[0][0].shape == (2, SIZE, SIZE, channels)
    assert not same(first, second)
    generator.set_epoch(0)
    with ThreadPoolExecutor(4) as pool:
        assert same(list(pool.map(generator.__getitem__, [0, 1, 2] * 8)), first * 8)
    whole = DataGenerator(IDS[:6][::-1], labels, batch_size=6, **options, shuffle=False)[0][0][::-1]
    np.testing.assert_array_equal(whole, np.concatenate([x for x, _ in first]))


class OfGlobalStates(A.ImageOnlyTransform):
    def apply(self, image, **_):
        return global_draw(image)


def global_draw(image, rng=None):
    image = image.copy()
    image[1, :4] = np.random.randint(0, 256, (4, 1))  # noqa: NPY002
    image[2, :4] = [[random.randrange(256)] for _ in range(4)]
    image[3, :4] = cv2.randu(np.empty((4, 1), np.uint8), 0, 256)
    return image


def global_draw_of_lambda(image, **_):
    return global_draw(image)


def global_reader(path):
    return global_draw(reading.read(path))


@pytest.mark.parametrize(
    "options",
    [
        {"augment": global_draw},
        {"augment": A.Compose([A.OneOf([OfGlobalStates(p=1)], p=1)])},
        {"augment": A.Lambda(image=global_draw_of_lambda, p=1)},
        {"preprocess": global_draw},
        {"reader": global_reader},
    ],
    ids=["function", "transform of one's own", "Lambda", "preprocess", "reader"],
)
def test_global_random_states_are_each_samples_own_in_processes(folder, labels, options):
    def shown(batch_size, workers, epochs=2):
        model = Recorder()
        generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=batch_size, **options)
        generator.workers, generator.use_multiprocessing = workers, True
        model.fit(generator, epochs=epochs, verbose=0, shuffle=False)
        drawn = [(int(i[0, 0, 0]), *(row.tobytes() for row in i[1:4, :4])) for x, _ in model.seen for i in x]
        return drawn[:COUNT], drawn[COUNT:]

    first, second = shown(BATCH, 2)
    for row in (1, 2, 3):
        assert len({sample[row] for sample in first + second}) == 2 * COUNT
    again, _ = shown(2, 3, epochs=1)
    assert sorted(again) == sorted(first)


def global_label(id):
    return [IDS.index(id), np.random.rand(), random.random()]  # noqa: NPY002


def test_labels_that_a_function_draws_are_each_samples_own_in_processes(folder):
    def shown(batch_size, workers):
        model = Recorder()
        generator = DataGenerator(IDS, global_label, image_dir=folder, batch_size=batch_size)
        generator.workers, generator.use_multiprocessing = workers, True
        model.fit(generator, epochs=3, verbose=0, shuffle=False)
        return np.concatenate([y for _, y in model.seen])

    first, again = shown(BATCH, 4), shown(2, 2)
    for drawn in (1, 2):
        assert len(np.unique(first[:, drawn])) == 3 * COUNT
    np.testing.assert_array_equal(first, again)


NEAREST = {"interpolation": cv2.INTER_NEAREST, "mask_interpolation": cv2.INTER_NEAREST}
MASKED = A.Compose(
    [
        A.RandomCrop(24, 24, p=1),
        A.HorizontalFlip(),
        A.Affine(rotate=(-30, 30), scale=(0.8, 1.2), p=0.8, **NEAREST),
        A.RandomResizedCrop((20, 28), scale=(0.5, 1), p=1, **NEAREST),
    ]
)


@pytest.mark.parametrize("mode", [MODES[0], MODES[2], MODES[6]])
def test_masks_are_augmented_with_their_images(folder, recorder, mode):
    """The mask is the image itself, so that it stays the image whatever is done to both."""
    options = {"image_dir": folder, "batch_size": BATCH, "augment": MASKED}
    plain = DataGenerator(IDS, lambda id: reading.read(folder / f"{id}.png")[..., 0], **options)
    expected = [batch for epoch in range(2) for batch in epoch_of(plain, epoch)]
    for x, y in expected:
        assert x.shape[1:] == (20, 28, 1)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, x[..., 0])
    recorder.fit(DataGenerator(IDS, plain.labels, **options, **mode), epochs=2, verbose=0, shuffle=False)
    assert same(recorder.seen, expected)
    without = DataGenerator(IDS, lambda id: 0, **options)
    np.testing.assert_array_equal(without[0][0], expected[0][0])  # a mask changes nothing of what is drawn


@pytest.mark.parametrize("channels", [1, 5])
def test_masks_of_channels_are_augmented_with_their_images(folder, channels):
    def mask(id):
        return np.repeat(reading.read(folder / f"{id}.png"), channels, axis=-1)

    x, y = DataGenerator(IDS, mask, image_dir=folder, augment=MASKED)[0]
    assert y.shape == (COUNT, 20, 28, channels)
    np.testing.assert_array_equal(y, np.repeat(x, channels, axis=-1))


def test_masks_without_augmentation_and_in_passes(folder):
    def mask(id):
        return reading.read(folder / f"{id}.png")[..., 0]

    options = {"image_dir": folder, "shuffle": False, "tta": [None, A.HorizontalFlip(p=1)]}
    generator = DataGenerator(IDS, mask, **options)
    np.testing.assert_array_equal(generator[0][1], stored(folder)[..., 0])
    np.testing.assert_array_equal(generator.at_pass(1)[0][1], stored(folder)[:, :, ::-1, 0])
    assert generator.preview(1).axes[0].get_title().endswith("labels of (32, 32)")


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (SIZE, SIZE),
            {"augment": function},
            r"are a mask of \(32, 32\), and augment is a function of the image alone",
        ),
        ((16, 16), {"augment": MASKED}, r"have the shape \(16, 16\), and its image of \(32, 32, 1\) cannot be augm"),
        ((10, 4), {"augment": MASKED}, r"have the shape \(10, 4\), and its image of"),
        ((SIZE, SIZE), {"augment": MASKED, "target_size": (30, 30)}, r"a mask has the height and width that the image"),
        ((SIZE, SIZE, 1, 2), {"augment": MASKED}, r"have the shape \(32, 32, 1, 2\), and its image of"),
    ],
)
def test_labels_that_cannot_be_augmented_with_the_image_are_refused(folder, shape, options, message):
    with pytest.raises(IchError, match=f"the labels of ID_000000000 .*{message}"):
        DataGenerator(IDS, lambda id: np.zeros(shape), image_dir=folder, shuffle=False, **options)[0]


def test_flattened_masks_of_a_function_or_a_table_are_refused(folder):
    masks = {id_: np.zeros(SIZE * SIZE) for id_ in IDS}
    options = {"image_dir": folder, "shuffle": False}
    for labels in (masks, masks.get):
        with pytest.raises(IchError, match=r"1,024 numbers, .* has 1,024 pixels: a flattened mask would not be"):
            DataGenerator(IDS, labels, augment=MASKED, **options)[0]
        with pytest.raises(IchError, match="a flattened mask would not be augmented"):
            DataGenerator(IDS, labels, tta=[A.HorizontalFlip(p=1)], **options).at_pass(0)[0]
        assert DataGenerator(IDS, labels, **options)[0][1].shape == (COUNT, SIZE * SIZE)
    one_hot = DataGenerator(IDS, pd.Series(0, IDS), num_classes=SIZE * SIZE, augment=heavy(), **options)
    assert one_hot[0][1].shape == (COUNT, SIZE * SIZE)
    frame = pd.DataFrame({"filename": [f"{id_}.png" for id_ in IDS], "class": 0})
    with pytest.warns(UserWarning, match="there is no sample of the class"):
        of_classes = DataGenerator.from_dataframe(frame, classes=range(SIZE * SIZE), augment=heavy(), **options)
    assert of_classes[0][1].shape == (COUNT, SIZE * SIZE)


def test_the_given_augmentation_is_left_alone(folder, labels):
    given = A.Compose([A.Affine(rotate=(-30, 30))], seed=5)
    before = A.Compose([A.Affine(rotate=(-30, 30))], seed=5)
    DataGenerator(IDS, labels, image_dir=folder, augment=given)[0]
    picture = stored(folder)[0]
    np.testing.assert_array_equal(given(image=picture)["image"], before(image=picture)["image"])


def test_a_pipeline_may_change_size_and_dtype_if_it_does_so_always(folder, labels):
    changed = A.Compose([A.Resize(16, 24), A.Normalize(mean=[0.5], std=[0.5])])
    x, _ = DataGenerator(IDS, labels, image_dir=folder, batch_size=BATCH, augment=changed)[0]
    assert x.shape == (BATCH, 16, 24, 1)
    assert x.dtype == np.float32


def test_passes_at_test_time_are_the_same_wherever_they_run(folder, labels):
    listed = [None, A.HorizontalFlip(p=1), A.Affine(rotate=(-30, 30), p=1)]
    generator = DataGenerator(IDS, image_dir=folder, batch_size=BATCH, tta=listed)
    passes = [np.concatenate(list(generator.at_pass(k))) for k in range(3)]
    np.testing.assert_array_equal(passes[0], stored(folder))
    np.testing.assert_array_equal(passes[1], stored(folder)[:, :, ::-1])
    other = DataGenerator(IDS[::-1], image_dir=folder, batch_size=7, tta=listed, epoch=9, workers=2)
    again = pickle.loads(pickle.dumps(other.at_pass(2)))
    np.testing.assert_array_equal(np.concatenate(list(again))[::-1], passes[2])

    sizes = DataGenerator(IDS, image_dir=folder, tta=[None, A.CenterCrop(16, 16)])
    assert [sizes.at_pass(k)[0].shape[1] for k in (0, 1, 0)] == [SIZE, 16, SIZE]

    drawn = DataGenerator(IDS, image_dir=folder, batch_size=BATCH, tta=heavy())
    first, second = (np.concatenate(list(drawn.at_pass(k))) for k in (0, 1))
    assert not np.array_equal(first, second)
    drawn.set_epoch(3)
    np.testing.assert_array_equal(np.concatenate(list(drawn.at_pass(1))), second)
    np.testing.assert_array_equal(np.concatenate(list(drawn)), stored(folder))  # without a pass, as they are


def test_test_time_leaves_training_as_it_is(folder, labels):
    options = {"image_dir": folder, "batch_size": BATCH, "shuffle": True, "augment": heavy()}
    with_passes = DataGenerator(IDS, labels, **options, tta=[None])
    without = DataGenerator(IDS, labels, **options)
    for epoch in (0, 1):
        assert same(epoch_of(with_passes, epoch), epoch_of(without, epoch))


@pytest.mark.parametrize(
    ("tta", "k", "message"),
    [
        (None, 0, "there is no pass 0: tta gives 0 passes, counted from 0"),
        ([None, None], 2, "there is no pass 2: tta gives 2 passes"),
        (A.HorizontalFlip(), -1, "there is no pass -1: tta gives any number of passes"),
    ],
)
def test_a_pass_that_does_not_exist_is_refused(folder, tta, k, message):
    with pytest.raises(IchError, match=message):
        DataGenerator(IDS, image_dir=folder, tta=tta).at_pass(k)


# ------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("mode", [MODES[0], MODES[3], MODES[6]])
def test_a_sampled_epoch_is_as_long_as_it_says_and_the_same_everywhere(folder, labels, recorder, mode):
    series = pd.Series([id_[-1:] < "8" for id_ in IDS])
    options = {"image_dir": folder, "batch_size": 3, "augment": heavy(), "sampling": PerSeries(series, 4, True)}
    plain = DataGenerator(IDS, labels, **options)
    assert len(plain) == 3  # 4 of each of both series
    expected = [batch for epoch in range(3) for batch in epoch_of(plain, epoch)]
    assert [len(x) for x, _ in expected] == [3, 3, 2] * 3
    recorder.fit(DataGenerator(IDS, labels, **options, **mode), epochs=3, verbose=0, shuffle=False)
    assert same(recorder.seen, expected)
    assert sorted(numbers(plain[0][0])) != sorted(numbers(expected[0][0]))


def test_a_share_of_positives(folder, labels):
    positive = labels["any"].reindex(IDS).to_numpy() == 1
    generator = DataGenerator(
        IDS, labels, image_dir=folder, batch_size=COUNT, shuffle=True, sampling=PositiveShare(positive, 0.8)
    )
    shown = np.concatenate([y[:, LABELS.index("any")] for _, y in epoch_of(generator)])
    assert shown.sum() == positive.sum()
    assert shown.mean() == pytest.approx(0.8, abs=1 / len(shown))


def test_repeated_samples_of_an_epoch_look_different_each_time(folder, labels):
    weights = np.zeros(COUNT)
    weights[[2, 5]] = 1
    generator = DataGenerator(
        IDS,
        labels,
        image_dir=folder,
        batch_size=4,
        sampling=Weighted(weights, 12),
        augment=A.Affine(rotate=(-90, 90), p=1),
    )
    batches = epoch_of(generator)
    pictures = [picture.tobytes() for x, _ in batches for picture in x]
    assert len(pictures) == len(set(pictures)) == 12
    assert same(epoch_of(generator, 0), batches)
    shown = np.concatenate([y for _, y in batches])
    assert {tuple(row) for row in shown} <= {tuple(labels.loc[IDS[place]]) for place in (2, 5)}


# ------------------------------------------------------------------------------------------------- 2.5-D


def scans():
    """Two scans, of which one slice could not be read."""
    rows = [
        {"SOPInstanceUID": id_, "SeriesInstanceUID": f"ID_s{number // 12}", "split": "train", "order": number % 12}
        for number, id_ in enumerate(IDS)
    ]
    table = to_frame([row | {"status": "truncated" if row["SOPInstanceUID"] == IDS[4] else "ok"} for row in rows])
    return table.sample(frac=1, random_state=0)


@pytest.mark.parametrize("mode", [MODES[0], MODES[3], MODES[6]])
def test_neighbours_fill_the_channels(folder, labels, recorder, mode):
    ids = [id_ for id_ in IDS if id_ != IDS[4]]
    options = {"image_dir": folder, "neighbours": (-1, 0, 1), "slices": scans(), "batch_size": BATCH}
    recorder.fit(DataGenerator(ids, labels, **options, **mode, shuffle=False), verbose=0, shuffle=False)
    x = np.concatenate([x for x, _ in recorder.seen])
    places = x[:, 0, 0].tolist()
    assert [place[1] for place in places] == [IDS.index(id_) for id_ in ids]
    assert places[0] == [0, 0, 1]
    assert places[3:5] == [[2, 3, 5], [3, 5, 6]]  # 4 could not be read
    assert places[10:12] == [[10, 11, 11], [12, 12, 13]]  # one scan ends, the next begins
    np.testing.assert_array_equal(x, stored(folder)[places][..., 0].transpose(0, 2, 3, 1))


def test_neighbours_are_augmented_alike(tmp_path, labels):
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    for id_ in IDS:
        cv2.imwrite(str(tmp_path / f"{id_}.png"), picture)
    table = scans().assign(status="ok")
    options = {"image_dir": tmp_path, "neighbours": (-2, 0, 1, 5), "slices": table, "augment": heavy()}
    x, _ = DataGenerator(IDS, labels, **options, shuffle=False)[0]
    assert x.shape == (COUNT, SIZE, SIZE, 4)
    for channel in range(1, 4):
        np.testing.assert_array_equal(x[..., 0], x[..., channel])
    assert not np.array_equal(x[0], x[1])


def test_neighbours_of_several_windows(tmp_path, labels):
    for number, id_ in enumerate(IDS):
        for window, value in (("brain", 0), ("bone", 100)):
            cv2.imwrite(str(tmp_path / f"{id_}.{window}.png"), np.full((4, 4), number + value, np.uint8))
    x, _ = DataGenerator(
        IDS,
        labels,
        image_dir=tmp_path,
        suffix=(".brain.png", ".bone.png"),
        neighbours=(0, 1),
        slices=scans().assign(status="ok"),
        shuffle=False,
    )[0]
    assert x[:, 0, 0].tolist()[:2] == [[0, 100, 1, 101], [1, 101, 2, 102]]


@pytest.mark.parametrize("offsets", [[1], [0, 1], (-1,), np.array([1])])
def test_gray_neighbours_keep_the_channel_axis_however_many_they_are(folder, labels, offsets):
    table = scans().assign(status="ok")
    x, _ = DataGenerator(IDS, labels, image_dir=folder, neighbours=offsets, slices=table, augment=heavy())[0]
    assert x.shape == (COUNT, SIZE, SIZE, len(offsets))
    x, _ = DataGenerator(IDS, labels, image_dir=folder, neighbours=offsets, slices=table, shuffle=False)[0]
    assert x[3, 0, 0].tolist() == [3 + offset for offset in offsets]


def test_neighbours_of_slices_that_the_table_does_not_have(folder, labels):
    with pytest.raises(IchError, match=f"the slice table has no readable slices {IDS[4]}"):
        DataGenerator(IDS, labels, image_dir=folder, neighbours=(0, 1), slices=scans())


# ------------------------------------------------------------------------------------------------- ways to read


def test_volumes_with_integer_labels_made_one_hot(tmp_path):
    volumes = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 8, 1), dtype=np.uint8)
    for id_, volume in zip(IDS, volumes, strict=False):
        np.save(tmp_path / f"{id_}.npy", volume)
    generator = DataGenerator(
        IDS[:5], pd.Series([2, 0, 1, 3, 2], IDS[:5]), image_dir=tmp_path, suffix=".npy", num_classes=4, shuffle=False
    )
    x, y = generator[0]
    np.testing.assert_array_equal(x, volumes)
    assert y.argmax(axis=1).tolist() == [2, 0, 1, 3, 2]
    assert y.shape == (5, 4)
    assert y.sum() == 5


def test_dicom_through_windows(tmp_path):
    for number, id_ in enumerate(IDS[:3]):
        (tmp_path / f"{id_}.dcm").write_bytes(make_dicom(uid=id_, RescaleIntercept=-1024 + number))
    windows = [PRESETS["brain"], PRESETS["bone"]]
    batch = DataGenerator(IDS[:3], image_dir=tmp_path, suffix=".dcm", window=windows)[0]
    for id_, image in zip(IDS, batch, strict=False):
        np.testing.assert_array_equal(image, reading.read(tmp_path / f"{id_}.dcm", windows))
    options = {"image_dir": tmp_path, "suffix": ".dcm"}
    np.testing.assert_array_equal(DataGenerator(IDS[:3], **options, window=["brain", PRESETS["bone"]])[0], batch)
    np.testing.assert_array_equal(DataGenerator(IDS[:3], **options, window="brain")[0], batch[..., :1])


def half(image):
    return image[::2, ::2].astype(np.float16) / 255


def text_reader(path):
    return np.loadtxt(path)


def test_functions_of_ones_own(tmp_path, labels):
    for number, id_ in enumerate(IDS):
        np.savetxt(tmp_path / f"{id_}.txt", np.full((4, 4), number))
    generator = DataGenerator(
        IDS,
        lambda id_: [int(id_[3:], 16), 1],
        image_dir=tmp_path,
        suffix=".txt",
        reader=text_reader,
        preprocess=half,
        shuffle=True,
    )
    x, y = generator[0]
    assert x.dtype == np.float16
    assert x.shape == (COUNT, 2, 2, 1)
    assert y.dtype == np.float32
    np.testing.assert_allclose(x[:, 0, 0, 0] * 255, y[:, 0], atol=0.02)
    assert y[:, 1].tolist() == [1] * COUNT


def test_colors_and_size(folder, labels):
    x, _ = DataGenerator(
        IDS, labels, image_dir=folder, color_mode="rgb", target_size=(16, 48), interpolation="area", shuffle=False
    )[0]
    assert x.shape == (COUNT, 16, 48, 3)
    np.testing.assert_array_equal(x[3], reading.resize(np.repeat(stored(folder)[3], 3, 2), (16, 48), "area"))


def test_a_picture_of_a_batch(folder, labels):
    spoken = labels.copy()
    spoken.loc[IDS[0]] = [1, 0, 0, 0, 0, 1]
    spoken.loc[IDS[1]] = 0
    figure = DataGenerator(IDS, spoken, image_dir=folder, augment=heavy(), shuffle=False).preview(3)
    assert len(figure.axes) == 6
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == f"{IDS[0]}\nepidural, any"
    assert titles[2] == f"{IDS[1]}\nnone"
    assert titles[1] == ""
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes[::2]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), stored(folder)[0, ..., 0])


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (8, 8, 4), (8, 8, 9), (4, 8, 8, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_picture_of_any_image(tmp_path, shape, dtype):
    np.save(tmp_path / f"{IDS[0]}.npy", np.ones(shape, dtype))
    options = {"image_dir": tmp_path, "suffix": ".npy", "preprocess": np.asarray}
    figure = DataGenerator(IDS[:1], pd.Series([0.25], IDS[:1]), **options).preview()
    figure.canvas.draw()
    assert figure.axes[0].get_title() == f"{IDS[0]}\n0.25"
    assert DataGenerator(IDS[:1], **options).preview(0).axes[0].get_title() == IDS[0]


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": []}, "there are no samples: the list of ids is empty"),
        ({"ids": ["ID_a", "ID_b", "ID_a"]}, "ids are listed twice: ID_a; give each sample once"),
        ({"batch_size": 0}, "batch_size is 0, expected a whole number of at least 1"),
        ({"labels": None, "shuffle": True}, "shuffle and sampling need labels: without them, order is what ties"),
        ({"labels": None, "sampling": lambda rng: [0]}, "shuffle and sampling need labels"),
        ({"labels": None, "on_error": "skip"}, "on_error='skip' is for training, with shuffle or sampling"),
        ({"on_error": "skip", "shuffle": False}, "a prediction keeps to its sample"),
        ({"on_error": "ignore"}, "on_error is 'ignore', expected raise or skip"),
        ({"labels": None, "weights": pd.Series(1.0, IDS)}, "weights need labels"),
        ({"weights": pd.Series(1.0, IDS[1:])}, f"there are no weights of {IDS[0]}; leave them out, or complete"),
        ({"weights": pd.Series(np.nan, IDS)}, "the weights of ID_000000000, .* are not all numbers"),
        ({"extra": pd.DataFrame({"age": 1}, IDS[1:])}, f"there are no extra inputs of {IDS[0]}"),
        (
            {"weights": pd.DataFrame({"a": 1, "b": 2}, IDS)},
            "weights have 2 columns, expected one number an id: a Series",
        ),
        ({"extra": pd.Series(1, IDS)}, "extra is a Series, expected a DataFrame: the names of its columns"),
        (
            {"extra": pd.DataFrame([[1, 2]] * COUNT, IDS, ["a", "a"])},
            "the extra inputs have several columns a; give each",
        ),
        ({"extra": pd.DataFrame({"image": 1}, IDS)}, "the input of images is called image; give that column of extra"),
        ({"sampling": PositiveShare(np.arange(9) > 4, 0.5)}, "the sampling is of 9 samples, the ids are 23"),
        ({"sampling": lambda rng: np.ones(COUNT, bool)}, r"the sampling gave bool of \(23,\), expected some places"),
        ({"sampling": lambda rng: np.zeros(0, int)}, r"the sampling gave int64 of \(0,\), expected some places"),
        ({"sampling": lambda rng: [0, COUNT]}, "the sampling chose places outside the 23 samples"),
        ({"sampling": lambda rng: [-1]}, "the sampling chose places outside the 23 samples"),
        ({"color_mode": "bgr"}, "color_mode is 'bgr', expected one of grayscale, rgb, rgba"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic', expected one of nearest"),
        ({"target_size": 32}, r"target_size is 32, expected \(height, width\)"),
        ({"suffix": ".dcm"}, "DICOM files are read through a window; say which"),
        ({"augment": [A.HorizontalFlip()]}, r"augment is a list, expected a function; several .* A.Compose\(\[…\]\)"),
        ({"reader": "cv2"}, "reader is a str, expected a function"),
        ({"preprocess": 255}, "preprocess is a int, expected a function"),
        ({"sampling": [0, 1]}, "sampling is a list, expected a function"),
        ({"ids": ["a.DCM"], "labels": None, "suffix": ""}, "DICOM files are read through a window; say which"),
        ({"neighbours": 1}, r"neighbours is 1, expected offsets in the scan, such as \(-1, 0, 1\)"),
        ({"neighbours": ()}, r"neighbours is \(\), expected offsets in the scan"),
        ({"neighbours": (0.5,)}, r"neighbours is \(0.5,\), expected offsets"),
        ({"batch_size": 2.5}, "batch_size is 2.5, expected a whole number of at least 1"),
        ({"batch_size": "32"}, "batch_size is '32', expected a whole number of at least 1"),
        (
            {"ids": "images"},
            "ids is a str, expected a list of ids; from_dataframe takes frames, from_directory folders",
        ),
        ({"ids": pd.DataFrame({"a": IDS})}, "ids is a DataFrame, expected a list of ids"),
        ({"ids": None}, "ids is None, expected a list of ids"),
        ({"ids": [*IDS, None]}, "ids are missing for some samples, or are pairs"),
        ({"ids": [("a", 1), ("b", 2)]}, "ids are missing for some samples, or are pairs"),
        ({"suffix": ".dcm", "window": "brian"}, "no window is called 'brian'; there are brain, subdural"),
        ({"suffix": ".dcm", "window": ["bone", "brian"]}, "no window is called 'brian'"),
        (
            {"suffix": ".dcm", "window": (40, 80)},
            r"window is \(40, 80\), expected a preset \(brain, .*, a Window\(center",
        ),
        ({"suffix": ".dcm", "window": 40}, r"window is 40, expected a preset \(brain, "),
        ({"seed": "1"}, "seed is '1', expected a whole number from 0, or None to draw one"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
        ({"seed": 1.5}, r"seed is 1\.5, expected a whole number from 0"),
        ({"epoch": -1}, "epoch is -1, expected a whole number from 0"),
        ({"neighbours": (-1, 0, 1)}, "neighbours need the slice table, which knows the order of slices"),
        ({"shuffle": "no"}, "shuffle is 'no', expected True or False"),
        ({"shuffle": 1}, "shuffle is 1, expected True or False"),
        ({"use_multiprocessing": "no"}, "use_multiprocessing is 'no', expected True or False"),
        ({"slices": scans().drop(columns="SOPInstanceUID"), "neighbours": (0, 1)}, "lacks the columns SOPInstanceUID"),
        ({"num_classes": 3}, "num_classes=3 takes one column of whole numbers from 0 to 2"),
        ({"labels": pd.Series(3, IDS), "num_classes": 3}, "num_classes=3 takes one column of whole numbers"),
        ({"labels": pd.Series(0.5, IDS), "num_classes": 3}, "num_classes=3 takes one column of whole numbers"),
        ({"labels": pd.Series(-1, IDS), "num_classes": 3}, "num_classes=3 takes one column of whole numbers"),
        ({"labels": len, "num_classes": 3}, "num_classes=3 takes one column of whole numbers"),
        ({"labels": pd.Series("bleed", IDS)}, "labels are numbers, but .*bleed.*; class_mode of from_dataframe"),
        ({"labels": pd.Series(pd.NA, IDS, dtype="Int8")}, r"the labels of ID_000000000, .*\(23 in all\) are not all"),
        ({"ids": [*IDS, "ID_abc"]}, "there are no labels of ID_abc; leave them out, or complete the labels"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(folder, labels, changes, message):
    arguments = {"ids": IDS, "labels": labels, "image_dir": folder} | changes
    with pytest.raises(IchError, match=message):
        DataGenerator(arguments.pop("ids"), **arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1", r"labels are numbers, but of ID_000000000 there is '1' \(str\); convert it"),
        ([np.datetime64("2020-01-01")], "labels are numbers, but of ID_000000000 there is"),
        ([0, None], "the labels of ID_000000000 are not all numbers; nothing is filled in"),
        ([0, np.inf], "the labels of ID_000000000 are not all numbers; nothing is filled in"),
        ([1, 2**24 + 1], "the labels of ID_000000000 hold 16777217, which float32 rounds to 16777216"),
    ],
)
def test_what_a_function_gives_as_a_label_is_held_to_the_same(folder, given, message):
    with pytest.raises(IchError, match=message):
        DataGenerator(IDS, lambda id_: given, image_dir=folder, shuffle=False)[0]


def test_labels_weights_and_inputs_of_dicts_are_those_of_frames(folder, labels):
    frames = {"labels": labels, "weights": labels["any"] + 1, "extra": labels[["epidural", "any"]]}
    dicts = {
        "labels": {id_: row.tolist() for id_, row in labels.iterrows()},
        "weights": (labels["any"] + 1).to_dict(),
        "extra": labels[["epidural", "any"]].to_dict("index"),
    }
    (x, *rest), (other, *others) = (
        DataGenerator(IDS, image_dir=folder, shuffle=False, **a)[0] for a in (frames, dicts)
    )
    assert list(x) == list(other)
    for first, second in zip([*x.values(), *rest], [*other.values(), *others], strict=True):
        np.testing.assert_array_equal(first, second)


def test_labels_listed_twice_are_refused(folder, labels):
    with pytest.raises(IchError, match="the labels list ID_ffe twice; merge their rows first"):
        DataGenerator(IDS, pd.concat([labels, labels.tail(1)]), image_dir=folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_that_are_no_numbers_are_refused(folder, labels, value):
    spoilt = labels.astype(float)
    spoilt.loc[IDS[4], "any"] = value
    with pytest.raises(IchError, match=f"the labels of {IDS[4]} are not all numbers"):
        DataGenerator(IDS, spoilt, image_dir=folder)
    DataGenerator([id_ for id_ in IDS if id_ != IDS[4]], spoilt, image_dir=folder)


def test_an_image_of_another_shape_is_refused(folder, labels, tmp_path):
    np.save(tmp_path / f"{IDS[0]}.npy", np.zeros((SIZE, SIZE), np.uint8))
    np.save(tmp_path / f"{IDS[1]}.npy", np.zeros((SIZE, SIZE, 3), np.uint8))
    generator = DataGenerator(IDS[:2], labels, image_dir=tmp_path, suffix=".npy")
    with pytest.raises(
        IchError,
        match=rf"{IDS[1]} gives uint8 of \(32, 32, 3\), the first image gave uint8 of \(32, 32, 1\); give target_size=",
    ):
        generator[0]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_images_of_more_than_eight_bits_are_refused(labels, tmp_path, dtype):
    np.save(tmp_path / f"{IDS[0]}.npy", np.zeros((SIZE, SIZE), dtype))
    generator = DataGenerator(IDS[:1], labels, image_dir=tmp_path, suffix=".npy")
    with pytest.raises(
        IchError, match=f"{IDS[0]} is {np.dtype(dtype)}, expected uint8, 0 to 255; convert it, or give preprocess="
    ):
        generator[0]


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".png", rf"23 of 23 samples lack .*/<id>.png: {IDS[0]}, .*; were they converted\? Leave them out, or correct"),
        ((".brain.png", ".png"), r"23 of 23 samples lack .*/<id>.brain.png or .*/<id>.png: ID_000000000, "),
        (".gif", r"there are readers for \.png, .*, \.dcm, none for '\.gif'; give reader="),
        ("", r"23 of 23 names of files end in none of \.png, .* suffix='\.png' if the names lack it, or give reader="),
    ],
)
def test_missing_images_are_counted_when_the_generator_is_made(labels, tmp_path, suffix, message):
    with pytest.raises(IchError, match=message):
        DataGenerator(IDS, labels, image_dir=tmp_path, suffix=suffix)
    DataGenerator(IDS, labels, image_dir=tmp_path, suffix=suffix, reader=np.load)  # whose affair it is


@pytest.mark.parametrize("few", [4, 100])  # more than 64 of a folder are found by listing it
def test_missing_images_are_named_wherever_they_lie_and_under_skip_reported_alone(tmp_path, monkeypatch, few):
    monkeypatch.chdir(tmp_path)
    names = [f"{folder}{number}.png" for folder in ("", "a/", "a/b/", f"{tmp_path}/c/") for number in range(few)]
    frame = pd.DataFrame({"filename": names, "class": 1})
    lost = [names[1], names[few], names[-1]]
    for name in names:
        if name not in lost:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
    options = {"class_mode": "raw", "shuffle": True}
    message = f"3 of {4 * few} samples lack ./<id>: {', '.join(lost)}"
    with pytest.raises(IchError, match=message):
        DataGenerator.from_dataframe(frame, image_dir=None, **options)
    with pytest.warns(UserWarning, match=f"{message}; others will be shown in their place"):
        DataGenerator.from_dataframe(frame, image_dir=None, on_error="skip", **options)
    DataGenerator.from_dataframe(frame[~frame["filename"].isin(lost)], image_dir=None, **options)


def test_of_several_files_a_sample_each_is_looked_for(folder, tmp_path):
    for id_ in IDS:
        for suffix in (".brain.png", ".bone.png"):
            (tmp_path / f"{id_}{suffix}").write_bytes((folder / f"{id_}.png").read_bytes())
    options = {"image_dir": tmp_path, "suffix": (".brain.png", ".bone.png")}
    DataGenerator(IDS, **options)
    (tmp_path / f"{IDS[3]}.bone.png").unlink()
    with pytest.raises(IchError, match=f"1 of 23 samples lack .*: {IDS[3]}; were they converted"):
        DataGenerator(IDS, **options)


def test_sixteen_bits_are_refused_by_a_sentence_in_tiff_too(tmp_path):
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "1.tif"), np.full((4, 4), 1000, np.uint16))
    with pytest.raises(IchError, match=r"a/1.tif is uint16, expected uint8, 0 to 255; convert it, or give preprocess="):
        DataGenerator.from_directory(tmp_path, shuffle=False)[0]
    x, _ = DataGenerator.from_directory(tmp_path, shuffle=False, preprocess=lambda image: image / np.float32(4000))[0]
    assert x.ravel().tolist() == [0.25] * 16


def test_of_neighbours_too_missing_images_are_counted(folder, labels, tmp_path):
    for id_ in IDS[:3]:
        (tmp_path / f"{id_}.png").write_bytes((folder / f"{id_}.png").read_bytes())
    with pytest.raises(IchError, match=f"1 of 2 samples lack .*: {IDS[3]}; were"):
        DataGenerator(IDS[2:3], image_dir=tmp_path, neighbours=(0, 1), slices=scans().assign(status="ok"))
    DataGenerator(IDS[1:2], image_dir=tmp_path, neighbours=(0, 1), slices=scans().assign(status="ok"))
