"""Which epoch a generator shows, whatever Keras or its user calls."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import inspect
import re
import sys
import textwrap
import warnings

import keras
import numpy as np
import psutil
import pytest

from ich.data.generator import DataGenerator
from ich.data.sampling import Weighted
from ich.errors import IchError

COUNT, BATCH = 24, 2
IDS = [f"ID_{number:03}" for number in range(COUNT)]
MODES = [
    pytest.param({"workers": 1}, id="no worker"),
    pytest.param({"workers": 3, "max_queue_size": 2}, id="threads"),
    pytest.param({"workers": 2, "use_multiprocessing": True, "max_queue_size": 2}, id="processes"),
]
pytestmark = pytest.mark.timeout(120)


def read(path):
    return np.full((4, 4, 1), int(path.name[3:]), np.uint8)


def noise(image, rng):
    """The sample's number in the first row, the draw in the second."""
    image = image.copy()
    image[1] = rng.integers(0, 256)
    return image


def label(id):
    return [int(id[3:])]


def generator(**options):
    options = {"reader": read, "suffix": "", "augment": noise, "batch_size": BATCH, "shuffle": True} | options
    return DataGenerator(IDS, label, **options)


class Recorder(keras.Model):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.scale = self.add_weight()
        self.build((None, 4, 4, 1))
        self.compile(optimizer="sgd", run_eagerly=True)

    def build(self, shape):
        self.built = True

    def train_step(self, data):
        x = keras.ops.convert_to_numpy(data[0])
        self.seen.append(tuple((int(image[0, 0, 0]), int(image[1, 0, 0])) for image in x))
        return {"loss": 0.0}

    test_step = train_step

    def call(self, x):
        return x


def shown(dataset, epochs):
    """The batches of these epochs, by a plain loop."""
    batches = []
    for epoch in epochs:
        dataset.set_epoch(epoch)
        batches += [tuple((int(i[0, 0, 0]), int(i[1, 0, 0])) for i in dataset[k][0]) for k in range(len(dataset))]
    return batches


EXPECTED = shown(generator(), range(5))
LENGTH = len(generator())


def test_epochs_differ():
    assert len(set(EXPECTED)) == len(EXPECTED) == 5 * LENGTH


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [1, LENGTH - 1])
def test_fewer_steps_than_batches_are_refused_before_the_first(mode, steps):
    model, before = Recorder(), set(psutil.Process().children())
    with pytest.raises(IchError, match=rf"steps_per_epoch is {steps}, and an epoch has 12 batches.*sampling=lambda"):
        model.fit(generator(**mode), steps_per_epoch=steps, epochs=2, verbose=0)
    assert model.seen == []
    assert set(psutil.Process().children()) <= before or not mode.get("use_multiprocessing")


def test_the_advice_for_fewer_steps_of_a_sampling_helps():
    drawn = Weighted(np.ones(COUNT), n=22)
    with pytest.raises(IchError, match="the generator's sampling choose 10 samples in place of 22, such as") as refused:
        Recorder().fit(generator(sampling=drawn), steps_per_epoch=5, verbose=0)
    n = int(re.search(r"Weighted with n=(\d+)", str(refused.value))[1])
    model = Recorder()
    model.fit(generator(sampling=Weighted(np.ones(COUNT), n)), epochs=2, shuffle=False, verbose=0)
    assert len(model.seen) == 10


def test_the_advice_for_fewer_steps_helps():
    ids = IDS
    with pytest.raises(IchError) as refused:
        Recorder().fit(generator(), steps_per_epoch=5, verbose=0)
    advice = str(refused.value)
    sampling = eval(advice[advice.index("lambda") :], {"ids": ids})
    model = Recorder()
    model.fit(generator(sampling=sampling), epochs=2, shuffle=False, verbose=0)
    assert len(model.seen) == 10
    first, second = ({number for batch in part for number, _ in batch} for part in (model.seen[:5], model.seen[5:]))
    assert len(first) == len(second) == 10
    assert first != second


@pytest.mark.parametrize("mode", MODES)
def test_as_many_steps_as_batches(mode):
    model = Recorder()
    model.fit(generator(**mode), steps_per_epoch=LENGTH, epochs=3, shuffle=False, verbose=0)
    assert model.seen == EXPECTED[: 3 * LENGTH]


@pytest.mark.parametrize("mode", MODES)
def test_a_fit_that_begins_at_an_epoch_shows_that_epoch(mode):
    model = Recorder()
    model.fit(generator(**mode), initial_epoch=2, epochs=4, shuffle=False, verbose=0)
    assert model.seen == EXPECTED[2 * LENGTH : 4 * LENGTH]


class Stop(keras.callbacks.Callback):
    """An end in the middle of an epoch."""

    def __init__(self, epoch, batch=3):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("mode", MODES)
def test_a_training_that_keras_restores_shows_what_one_in_one_go_does(tmp_path, mode):
    def fit(dataset, *more):
        model = Recorder()
        restoring = keras.callbacks.BackupAndRestore(tmp_path)
        model.fit(dataset, epochs=4, shuffle=False, verbose=0, callbacks=[restoring, *more])
        return model.seen

    with pytest.raises(KeyboardInterrupt):
        fit(generator(**mode), Stop(2))
    assert fit(generator(**mode)) == EXPECTED[2 * LENGTH : 4 * LENGTH]


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_fit_goes_on_with_the_same_generator(mode):
    dataset, model = generator(**mode), Recorder()
    with pytest.raises(KeyboardInterrupt):
        model.fit(dataset, epochs=3, shuffle=False, verbose=0, callbacks=[Stop(1)])
    assert dataset.epoch == 1
    model.seen = []
    model.fit(dataset, initial_epoch=1, epochs=3, shuffle=False, verbose=0)
    assert model.seen == EXPECTED[LENGTH : 3 * LENGTH]


def test_a_second_fit_goes_on():
    dataset, model = generator(), Recorder()
    for _ in range(2):
        model.fit(dataset, epochs=2, shuffle=False, verbose=0)
    assert model.seen == EXPECTED[: 4 * LENGTH]


def test_a_loop_of_ones_own_that_ends_its_epochs():
    dataset, batches, epoch_iterator = generator(), [], range(3)  # a name that Keras has too
    for epoch in epoch_iterator:
        assert dataset.epoch == epoch
        dataset.on_epoch_begin()
        batches += [tuple((int(i[0, 0, 0]), int(i[1, 0, 0])) for i in dataset[k][0]) for k in range(len(dataset))]
        dataset.on_epoch_end()
    assert batches == EXPECTED[: 3 * LENGTH]


def test_a_callback_that_ends_the_epoch_too_does_not_skip_one():
    for wrap in (lambda dataset: dataset, Outer):
        dataset, model = generator(), Recorder()
        ending = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, dataset=dataset: dataset.on_epoch_end()
        )
        model.fit(wrap(dataset), epochs=3, shuffle=False, verbose=0, callbacks=[ending])
        assert model.seen == EXPECTED[: 3 * LENGTH]


class Outer(keras.utils.PyDataset):
    """Hands all on to a generator, as data sets that mix or change batches do."""

    def __init__(self, inner, **options):
        super().__init__(**options)
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]

    def on_epoch_begin(self):
        self.inner.on_epoch_begin()

    def on_epoch_end(self):
        self.inner.on_epoch_end()


@pytest.mark.parametrize("mode", MODES)
def test_within_another_data_set(mode):
    model = Recorder()
    model.fit(Outer(generator(), **mode), epochs=3, shuffle=False, verbose=0)
    assert model.seen == EXPECTED[: 3 * LENGTH]


class Asking(keras.callbacks.Callback):
    """Asks which samples each batch holds."""

    def __init__(self, samples):
        super().__init__()
        self.samples, self.ids = samples, []

    def on_train_batch_end(self, batch, logs=None):
        self.ids.append(self.samples.ids_of(batch).tolist())

    on_test_batch_end = on_train_batch_end


class Named(Outer):
    """Asks for the ids of batches itself, whose numbers are those that it hands on."""

    def on_epoch_begin(self):
        super().on_epoch_begin()
        assert len(self.inner.ids_of(0)) == BATCH

    def __getitem__(self, index):
        assert [int(id[3:]) for id in self.inner.ids_of(index)] == self.inner[index][1].ravel().tolist()
        return self.inner[index]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wrap", [lambda dataset, **mode: dataset, Outer], ids=["alone", "wrapped"])
def test_a_callback_gets_the_ids_of_a_batch_unless_keras_shuffles_them(wrap, mode):
    dataset, model = generator(**mode), Recorder()
    asking = Asking(dataset)
    model.fit(wrap(dataset, **mode), shuffle=False, epochs=2, verbose=0, callbacks=[asking])
    assert asking.ids == [[IDS[number] for number, _ in batch] for batch in model.seen]
    with pytest.raises(IchError, match=r"fit shows the batches in an order of its own, .*; give it shuffle=False"):
        Recorder().fit(wrap(dataset, **mode), verbose=0, callbacks=[asking])
    other = Asking(dataset)  # it is another data set that is shuffled
    Recorder().fit(generator(), verbose=0, callbacks=[other])
    assert len(other.ids) == LENGTH


def test_ids_are_given_in_evaluation_and_to_a_wrapping_data_set_though_keras_shuffles():
    dataset, model = generator(), Recorder()
    asking = Asking(dataset)
    model.evaluate(dataset, verbose=0, callbacks=[asking])
    assert asking.ids == [[IDS[number] for number, _ in batch] for batch in model.seen]
    Recorder().fit(Named(dataset), verbose=0)


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_shows_the_same_each_time_and_leaves_the_epoch(mode):
    dataset, model = generator(**mode), Recorder()
    for _ in range(2):
        model.evaluate(dataset, verbose=0)
        model.evaluate(dataset, steps=3, verbose=0)
    assert model.seen == [*EXPECTED[:LENGTH], *EXPECTED[:3]] * 2
    assert dataset.epoch == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_part_of_the_validation_is_the_same_part_each_time(mode):
    train = generator(batch_size=COUNT)
    model = Recorder()
    model.fit(train, validation_data=generator(**mode), validation_steps=3, epochs=4, shuffle=False, verbose=0)
    assert [batch for batch in model.seen if len(batch) == BATCH] == EXPECTED[:3] * 4


@pytest.mark.parametrize("mode", MODES)
def test_predictions_of_shuffled_samples_are_refused(mode):
    for options in ({}, {"shuffle": False, "sampling": lambda rng: rng.permutation(COUNT)}):
        with pytest.raises(IchError, match=r"in the order of this epoch, not in that of the ids; give .*shuffle=False"):
            Recorder().predict(generator(**options, **mode), verbose=0)
    for hook in ("on_epoch_begin", "on_epoch_end"):
        half = type("Half", (Outer,), {hook: keras.utils.PyDataset.__dict__[hook]})  # hands on the other one
        with pytest.raises(IchError, match="in the order of this epoch, not in that of the ids"):
            Recorder().predict(half(generator(), **mode), verbose=0)
    dataset = generator(shuffle=False, augment=None, **mode)
    for _ in range(2):
        assert Recorder().predict(dataset, verbose=0)[:, 0, 0, 0].tolist() == list(range(COUNT))
    assert [id for k in range(len(dataset)) for id in dataset.ids_of(k)] == IDS


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a strategy of TensorFlow's")
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_that_keras_draws_to_build_a_model_is_no_epoch(mode):
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        model = Recorder()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(generator(**mode), epochs=3, shuffle=False, verbose=0)
    assert model.seen == EXPECTED[: 3 * LENGTH]


def large(path):
    return np.full((300, 300, 1), int(path.name[3:]), np.uint8)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere batches go through a pipe")
def test_processes_leave_nothing_open():
    """Each batch of processes is an open file as long as it is kept."""
    dataset, model = generator(reader=large, workers=2, use_multiprocessing=True), Recorder()
    counts = []
    counting = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: counts.append(psutil.Process().num_fds())
    )
    model.fit(
        dataset, validation_data=dataset, validation_steps=2, epochs=6, shuffle=False, verbose=0, callbacks=[counting]
    )
    assert counts[-1] <= counts[2] + 2


class Renamed(Recorder):
    """Trains by Keras's own `fit`, with a name in it that another version might have."""

    def __init__(self, old, new):
        super().__init__()
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(Recorder.fit)))
        source = source[source.index("def fit") :].replace("super()", "super(type(self), self)")
        renamed = re.sub(rf"(?<![\w._]){old}\b", new, source)
        assert renamed != source
        namespace = dict(vars(sys.modules[Recorder.fit.__module__]))
        exec(renamed, namespace)
        self._fit = namespace[new if old == "fit" else "fit"]

    def train(self, *arguments, **options):
        return self._fit(self, *arguments, **options)


@pytest.mark.parametrize(
    ("old", "new"), [("epoch_iterator", "batches"), ("epoch", "number"), ("initial_epoch", "first"), ("fit", "learn")]
)
def test_a_keras_that_names_its_variables_otherwise_is_refused(old, new):
    model = Renamed(old, new)
    with pytest.raises(IchError, match=rf"^Keras {keras.__version__}, .* does not say which epoch it is at"):
        model.train(generator(), epochs=2, verbose=0)
