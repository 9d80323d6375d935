from dataclasses import replace
from itertools import pairwise

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import eagerly

from ich.config import Sequence
from ich.errors import IchError
from ich.second_stage import rnn, scans

TINY = Sequence(
    width=8,
    dilations=[1, 2],
    units=4,
    dropout=0.1,
    epochs=2,
    batch_size=4,
    learning_rate=3e-3,
    warmup_epochs=0.5,
    weight_decay=0.02,
    clip_norm=1.0,
    ema=0.9,
    window=16,
    noise=0.3,
    shuffle_kinds=0.0,
    label_weights=None,
)
CONVOLUTIONS = TINY.model_copy(update={"units": 0})  # whose graphs are traced in a fraction of the time


def some_scans(lengths, seed=0, embedding=0):
    """Runs of positives, and scores that see each slice of them with an error."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((sum(lengths), 6), np.int8)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for a, b in pairwise(starts):
        for k in range(5):
            if rng.random() < 0.4:
                first = rng.integers(a, b)
                labels[first : min(b, first + 5), k] = 1
    labels[:, 5] = labels[:, :5].max(axis=1)
    logits = (4.0 * labels - 3 + rng.normal(0, 2, labels.shape)).astype(np.float32)
    z = np.concatenate([np.arange(n) * 5.0 for n in lengths]).astype(np.float32)
    embeddings = rng.normal(size=(len(z), embedding)).astype(np.float16)
    return scans.Scans(pd.RangeIndex(len(z)), starts, z, logits, embeddings), labels


def woken(model, seed=0):
    """Weights that are all different: a new network's last are 0, and it gives the first stage's logits."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    return model


def features(several):
    return 42 + 3 * several.embeddings.shape[1]


SCALE = np.arange(3.0), np.array([0.1, 1, 9])


@pytest.mark.parametrize(
    ("units", "embedding", "scale"),
    [
        (0, 0, None),
        (0, 3, None),
        (4, 3, SCALE),
        *[pytest.param(*more, marks=pytest.mark.slow) for more in ((0, 3, SCALE), (4, 0, None), (4, 3, None))],
    ],
)
def test_a_scan_is_predicted_the_same_alone_and_in_any_batch(units, embedding, scale):
    """The longest in one batch with the shortest, each alone, and behind more padding than its batch needs."""
    several, _ = some_scans((7, 1, 40, 400, 2, 16), embedding=embedding)
    model = woken(rnn.build(features(several), TINY.model_copy(update={"units": units}), scale))
    together = rnn.predict(model, several, batch_size=6)
    assert np.ptp(together) > 1
    in_twos = rnn.predict(model, several, batch_size=2)
    np.testing.assert_allclose(in_twos, together, atol=2e-5)
    for k in range(len(several)):
        alone = rnn.predict(model, several.take(np.array([k])), batch_size=1)
        np.testing.assert_allclose(alone, together[several.rows(k)], atol=2e-5)


def test_what_lies_in_the_padding_is_not_read():
    rng = np.random.default_rng(0)
    model = woken(rnn.build(42, TINY))
    slices = rng.normal(size=(3, 12, 42)).astype(np.float32)
    real = np.arange(12) < np.array([[12], [5], [1]])
    predictions = model.predict_on_batch([np.where(real[..., None], slices, 0), real])
    other = model.predict_on_batch([np.where(real[..., None], slices, 99), real])
    np.testing.assert_allclose(other[real], predictions[real], atol=1e-6)


@pytest.mark.parametrize("embedding", [0, 3])
def test_a_scan_read_backwards_is_predicted_the_same(embedding):
    several, _ = some_scans((9, 30), embedding=embedding)
    scale = (np.arange(3.0), np.ones(3)) if embedding else None
    model = woken(rnn.build(features(several), TINY, scale))
    backwards = np.concatenate([np.arange(8, -1, -1), np.arange(38, 8, -1)])
    turned = replace(
        several,
        z=several.z[backwards],
        logits=several.logits[backwards],
        embeddings=several.embeddings[backwards],
    )
    predictions = rnn.predict(model, several, 2)
    np.testing.assert_allclose(rnn.predict(model, turned, 2), predictions[backwards], atol=2e-5)


def test_a_new_network_gives_the_squashed_logits():
    several, _ = some_scans((5, 9))
    predictions = rnn.predict(rnn.build(42, TINY), several, 2)
    np.testing.assert_allclose(predictions, 6 * np.tanh(several.logits / 6), atol=1e-5)


def test_a_scan_of_one_slice_without_a_place():
    several, _ = some_scans((1,))
    several = replace(several, z=np.array([np.nan], np.float32))
    assert np.isfinite(rnn.predict(woken(rnn.build(42, TINY)), several, 1)).all()


def test_scans_of_any_length_trace_a_network_a_few_times_at_most():
    network = rnn.build(42, CONVOLUTIONS)
    for length in (1, 5, 12, 20, 40, 70, 33):
        scan, _ = some_scans((length,))
        assert rnn.predict(network, scan, 16).shape == (length, 6)
    assert 1 <= network.predict_function.experimental_get_tracing_count() <= 2


@pytest.mark.slow
def test_embeddings_of_any_scale_are_treated_alike():
    factor = 64  # changes no digit
    several, labels = some_scans((16,) * 8, embedding=2)
    predictions = rnn.predict(rnn.train(several, labels, TINY, seed=0)[0], several, 4)
    other = replace(several, embeddings=(factor * several.embeddings).astype(np.float16))
    model, _ = rnn.train(other, labels, TINY, seed=0)
    np.testing.assert_allclose(rnn.predict(model, other, 4), predictions, atol=1e-3)


# ------------------------------------------------------------------------------------------------------ training


def test_batches_to_learn_from():
    several, labels = some_scans((7, 3, 40, 20, 1), embedding=2)
    data = rnn.ScanBatches(several, labels, TINY.model_copy(update={"batch_size": 3, "noise": 0.0}), seed=0)
    assert len(data) == 2
    x, y, weights = data[1]
    batch, length, features = x["slices"].shape
    assert batch == len(data.order[1])
    assert length - 3 <= x["real"].sum(axis=1).max() <= length <= 16
    assert features == 48
    assert y.shape == (batch, length, 6)
    np.testing.assert_array_equal(weights > 0, x["real"])
    assert (y[~x["real"]] == 0).all()
    known = {(*np.round(row, 4), *label) for row, label in zip(np.tanh(several.logits / 6), labels, strict=True)}
    for row, label in zip(x["slices"][x["real"]][:, :6], y[x["real"]], strict=True):
        assert (*np.round(row, 4), *label) in known


def test_kinds_that_change_places_take_their_labels_along():
    several, labels = some_scans((16,) * 8)
    several = replace(several, logits=(4.0 * labels - 2).astype(np.float32))
    data = rnn.ScanBatches(
        several, labels, TINY.model_copy(update={"batch_size": 8, "noise": 0.0, "shuffle_kinds": 1.0}), seed=0
    )
    x, y, _ = data[0]
    np.testing.assert_array_equal(x["slices"][..., :6] > 0, y == 1)
    np.testing.assert_array_equal(y[..., 5], y[..., :5].max(axis=-1))


def test_what_is_drawn_depends_on_seed_epoch_and_scan_alone():
    several, labels = some_scans((7, 3, 40, 20))

    def epochs(seed, order=(0, 1)):
        data = rnn.ScanBatches(several, labels, TINY.model_copy(update={"batch_size": 2}), seed=seed)
        drawn = []
        for _ in range(2):
            batches = {index: data[index][0]["slices"].tobytes() for index in order}
            drawn.append((batches[0], batches[1]))
            data.on_epoch_end()
        return drawn

    first, second = epochs(0)
    again, _ = epochs(0, order=(1, 0))
    assert first == again
    assert first != second
    assert first != epochs(1)[0]


def test_an_epoch_has_every_scan_once_whatever_its_batches():
    several, labels = some_scans(np.random.default_rng(0).integers(1, 50, 103))
    orders, samples = {}, {}
    for size in (4, 7, 200):
        section = TINY.model_copy(update={"batch_size": size, "noise": 0.0})
        data = rnn.ScanBatches(several, labels, section, seed=0)
        data.on_epoch_end()
        orders[size] = data.order
        sizes = {len(batch) for batch in data.order}
        assert max(sizes) - min(sizes) <= 1
        assert sorted(np.concatenate(data.order)) == list(range(103))
        of_scan = {}
        for index, batch in enumerate(data.order):
            x, y, _ = data[index]
            for scan, slices, real, truth in zip(batch, x["slices"], x["real"], y, strict=True):
                of_scan[scan] = slices[real].tobytes(), truth[real].tobytes()
        samples[size] = of_scan
    assert samples[4] == samples[7] == samples[200]
    assert [len(orders[size]) for size in (4, 7, 200)] == [26, 15, 1]
    few = TINY.model_copy(update={"max_batches": 5})
    assert [len(batch) for batch in rnn.ScanBatches(several, labels, few, seed=0).order] in ([21, 21, 21, 20, 20],)


def test_scans_of_like_length_share_a_batch_in_an_order_that_does_not_tell_it():
    several, labels = some_scans(np.random.default_rng(0).integers(1, 50, 400))
    data = rnn.ScanBatches(several, labels, TINY.model_copy(update={"batch_size": 8, "window": 40}), seed=0)
    real = [data[index][0]["real"] for index in range(1, len(data))]
    assert np.mean([mask.mean() for mask in real]) > 0.8  # 0.55 if they were put together by chance
    longest = np.array([mask.sum(axis=1).max() for mask in real[: rnn._POOL - 1]])
    assert (np.diff(longest) > 0).sum() in range(4, 11)
    first = [batch.tolist() for batch in data.order]
    data.on_epoch_end()
    assert not {tuple(sorted(batch)) for batch in first} & {tuple(sorted(batch.tolist())) for batch in data.order}


def test_a_slice_weighs_the_same_in_every_batch():
    """The mean of an epoch's losses is the mean over all its slices, as of one batch of all."""
    several, labels = some_scans(np.random.default_rng(0).integers(1, 40, 24))
    model = woken(rnn.build(42, CONVOLUTIONS))
    model.trainable = False
    rnn.compile_model(model, CONVOLUTIONS, 1)
    losses = {}
    for size in (24, 6, 3):
        data = rnn.ScanBatches(several, labels, TINY.model_copy(update={"batch_size": size}), seed=0)
        batches = [data[index] for index in range(len(data))]
        weights = np.concatenate([of_batch[of_batch > 0] for _, _, of_batch in batches])
        assert len(set(weights)) == 1
        assert weights.sum() == pytest.approx(len(data), rel=1e-5)
        losses[size] = np.mean([model.test_on_batch(*batch) for batch in batches])
    assert losses[6] == pytest.approx(losses[24], rel=1e-4)
    assert losses[3] == pytest.approx(losses[24], rel=1e-4)


def test_batches_of_any_lengths_are_trained_on():
    several, labels = some_scans((3, 3, 3, 3, 3, 3, 3, 30, 30))
    for size, network in ((2, TINY), (9, CONVOLUTIONS)):
        section = network.model_copy(update={"batch_size": size, "window": 16})
        _, history = rnn.train(several, labels, section, seed=0)
        assert np.isfinite(history["loss"]).all()


def test_padding_weighs_nothing_in_the_loss():
    several, labels = some_scans((9, 4))
    model = rnn.build(42, TINY)
    losses = []
    for window in (9, 64):
        data = rnn.ScanBatches(
            several, labels, TINY.model_copy(update={"batch_size": 2, "window": 64, "noise": 0.0}), seed=3
        )
        x, y, weights = data[0]
        rnn.compile_model(model, TINY, 1)
        x = {name: values[:, :window] for name, values in x.items()}
        losses.append(model.test_on_batch(x, y[:, :window], weights[:, :window]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_training_improves_on_the_first_stage_and_repeats_itself():
    several, labels = some_scans((20,) * 60)
    network = TINY.model_copy(update={"width": 16, "epochs": 12, "batch_size": 8, "window": 20})
    model, history = rnn.train(several, labels, network, seed=0)
    assert len(history) == 12
    assert history["loss"].iloc[-1] < 0.75 * history["loss"].iloc[0]
    held_out, truth = some_scans((20,) * 40, seed=1)
    predictions = rnn.predict(model, held_out, 8)

    def loss(logits):
        return np.mean(np.logaddexp(0, logits) - truth * logits)

    assert loss(predictions) < 0.8 * loss(held_out.logits)
    again, _ = rnn.train(several, labels, network.model_copy(update={"epochs": 1}), seed=0)
    same, _ = rnn.train(several, labels, network.model_copy(update={"epochs": 1}), seed=0)
    np.testing.assert_allclose(rnn.predict(again, held_out, 8), rnn.predict(same, held_out, 8), atol=1e-5)


def test_a_loss_that_is_no_number():
    several, labels = some_scans((10,) * 8)
    with pytest.raises(IchError, match=r"NaN loss in epoch 1; lower sequence.learning_rate, and give"):
        rnn.train(replace(several, logits=several.logits * np.nan), labels, CONVOLUTIONS, seed=0)


@pytest.mark.parametrize(
    ("layer", "name"),
    [("SubtypeViews", "_KindViews"), ("FoldLabelsIntoBatch", "_Apart"), ("UnfoldLabels", "_Together")],
)
def test_models_that_were_saved_under_earlier_names_are_read(layer, name):
    assert keras.saving.get_registered_object(f"ich>{name}") is getattr(rnn, layer)


def test_subtypes_that_are_folded_into_the_batch_are_unfolded_again():
    x = np.arange(2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 3, 5, 4)
    folded = keras.ops.convert_to_numpy(rnn.FoldLabelsIntoBatch()(x))
    assert folded.shape == (10, 3, 4)
    np.testing.assert_array_equal(folded[7], x[1, :, 2])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(rnn.UnfoldLabels()(folded)), x)


def test_the_mean_of_several_networks_is_saved_and_read_in_safe_mode(tmp_path):
    several, _ = some_scans((9, 4), embedding=2)
    networks = [woken(rnn.build(features(several), TINY), seed) for seed in (0, 1)]
    rnn.mean_of(networks).save(tmp_path / "model.keras")
    read = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    with eagerly():
        predictions = [rnn.predict(network, several, 2) for network in networks]
        np.testing.assert_allclose(rnn.predict(read, several, 2), np.mean(predictions, axis=0), atol=1e-5)
    assert rnn.mean_of(networks[:1]) is networks[0]
