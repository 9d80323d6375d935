import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from recorder import Recorder

from ich.competition.labels import LABELS
from ich.data.generator import DataGenerator
from ich.data.mixing import Mix, mix_batch
from ich.errors import IchError
from ich.models.losses import LabelAUC, WeightedBinaryCrossentropy, WeightedLogLoss

COUNT, SIZE = 11, 32
IDS = [f"ID_{number:03x}" for number in range(COUNT)]


def batch_of(count=8, slices=None, channels=3, dtype=np.uint8, weighted=False, seed=0):
    rng = np.random.default_rng(seed)
    lead = (count,) if slices is None else (count, slices)
    images = rng.integers(0, 256, (*lead, 20, 28, channels)).astype(dtype)
    labels = rng.integers(0, 2, (*lead, 6)).astype(np.float32)
    return images, labels, rng.uniform(0.2, 2, lead).astype(np.float32) if weighted else None


def mixed(mix, batch, seed=1):
    images, labels, weights = (None if part is None else part.copy() for part in batch)
    return mix(images, labels, weights, np.random.default_rng(seed))


def shares(before, after):
    """Each sample's partner and own share, found in the labels of samples whose labels are distinct unit vectors."""
    count = len(before)
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-6)
    own = after[np.arange(count), np.arange(count)]
    others = after.copy()
    others[np.arange(count), np.arange(count)] = 0
    return others.argmax(axis=1), own


@pytest.mark.parametrize("slices", [None, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.uint16])
def test_mixup_is_the_mean_of_two_images_by_the_shares_of_their_labels(slices, dtype):
    images, _, _ = batch = batch_of(slices=slices, dtype=dtype)
    eye = np.eye(8, dtype=np.float32)
    labels = eye if slices is None else np.repeat(eye[:, None], slices, axis=1)
    mixture, soft, weights = mixed(Mix(mixup=1.0), (images, labels, None))
    assert weights is None
    assert mixture.dtype == dtype
    assert soft.dtype == np.float32
    if slices is not None:
        assert (soft == soft[:, :1]).all()  # the same partner and share in all slices
        soft = soft[:, 0]
    partner, own = shares(eye, soft)
    assert sorted(partner) == list(range(8))
    assert (partner != np.arange(8)).all()
    for k in range(8):
        expected = own[k] * images[k].astype(np.float64) + (1 - own[k]) * images[partner[k]]
        assert np.abs(mixture[k] - expected).max() <= (1e-4 if dtype == np.float32 else 0.501)
    assert len(np.unique(own)) == 8
    assert batch[0] is images


@pytest.mark.parametrize("slices", [None, 3])
def test_cutmix_pastes_one_rectangle_and_counts_its_area(slices):
    images, _, _ = batch_of(slices=slices)
    for place in range(8):  # so that each pixel shows whose it is
        images[place] = place
    eye = np.eye(8, dtype=np.float32)
    labels = eye if slices is None else np.repeat(eye[:, None], slices, axis=1)
    mixture, soft, _ = mixed(Mix(cutmix=1.0), (images, labels, None))
    soft = soft if slices is None else soft[:, 0]
    mixture = mixture[:, None] if slices is None else mixture
    cut = 0
    for k in range(8):
        assert (mixture[k] == mixture[k, :1, :, :, :1]).all()  # in all slices and channels alike
        plane = mixture[k, 0, :, :, 0]
        others = plane != k
        np.testing.assert_allclose(soft[k, k], 1 - others.mean(), atol=1e-6)
        if not others.any():
            continue
        cut += 1
        assert len(np.unique(plane[others])) == 1
        assert soft[k, plane[others][0]] == pytest.approx(others.mean(), abs=1e-6)
        rows, columns = np.flatnonzero(others.any(axis=1)), np.flatnonzero(others.any(axis=0))
        assert others[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert cut >= 5


@pytest.mark.parametrize("slices", [None, 4])
def test_the_loss_of_a_mixture_is_that_of_both_labels_by_share_and_weight(slices):
    images, labels, weights = batch_of(slices=slices, weighted=True)
    logits = np.random.default_rng(3).normal(size=labels.shape).astype(np.float32)
    _, of_shares, _ = mixed(Mix(mixup=0.7), (images, np.eye(8, dtype=np.float32), None))  # the same draws
    partner, own = shares(np.eye(8), of_shares)
    _, soft, mixed_weights = mixed(Mix(mixup=0.7), (images, labels, weights))
    assert mixed_weights.dtype == np.float32

    def loss(y, w):
        return w * (np.logaddexp(0, logits) - y * logits).mean(axis=-1)

    own = own.reshape(-1, *[1] * (weights.ndim - 1))
    expected = own * loss(labels, weights) + (1 - own) * loss(labels[partner], weights[partner])
    np.testing.assert_allclose(loss(soft, mixed_weights), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mix", [Mix(mixup=1.0), Mix(cutmix=1.0)])
def test_padding_reaches_no_slice_and_stays_padding(mix):
    images, labels, weights = batch_of(count=6, slices=5, weighted=True)
    length = [5, 3, 1, 4, 5, 2]
    padded = np.arange(5) >= np.array(length)[:, None]
    weights[padded] = 0
    images[padded], labels[padded] = 255, 1
    mixture, soft, of_loss = mixed(mix, (images, labels, weights))
    assert ((of_loss == 0) == padded).all()
    np.testing.assert_array_equal(mixture[padded], images[padded])
    other_images, other_labels = images.copy(), labels.copy()
    other_images[padded], other_labels[padded] = 0, 0
    again, other_soft, other_of_loss = mixed(mix, (other_images, other_labels, weights))
    np.testing.assert_array_equal(mixture[~padded], again[~padded])
    np.testing.assert_array_equal(soft[~padded], other_soft[~padded])
    np.testing.assert_array_equal(of_loss, other_of_loss)
    assert (mixture[~padded] != images[~padded]).any()


def test_a_share_of_the_batches_is_mixed_and_both_ways_take_turns():
    images, labels, _ = batch_of(count=4)
    images[:] = np.arange(4, dtype=np.uint8)[:, None, None, None] * 60
    kinds = []
    for seed in range(200):
        mixture, _, _ = mixed(Mix(mixup=1.0, cutmix=1.0, share=0.5), (images, labels, None), seed)
        changed = mixture != images
        kinds.append("none" if not changed.any() else "cut" if set(np.unique(mixture)) <= {0, 60, 120, 180} else "up")
    assert 70 < kinds.count("none") < 130
    assert 30 < kinds.count("cut") < 70
    assert 30 < kinds.count("up") < 70


def test_a_batch_of_one_sample_stays():
    batch = batch_of(count=1, weighted=True)
    for after, before in zip(mixed(Mix(cutmix=1.0), batch), batch, strict=True):
        np.testing.assert_array_equal(after, before)


# ------------------------------------------------------------------------------------------- in the generator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for id_ in IDS:
        cv2.imwrite(str(path / f"{id_}.png"), rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def labels():
    return pd.DataFrame(np.random.default_rng(1).integers(0, 2, (COUNT, 6)), index=IDS, columns=list(LABELS))


@pytest.fixture(scope="module")
def weights():
    return pd.Series(np.linspace(0.5, 1.5, COUNT), IDS)


BOTH = Mix(mixup=0.4, cutmix=1.0)


def same(first, second):
    assert len(first) == len(second)
    return all(np.array_equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("mode", [{"workers": 3}, {"workers": 2, "use_multiprocessing": True}])
def test_fit_shows_the_same_mixtures_with_threads_and_processes_and_resumed(folder, labels, weights, mode):
    options = {"image_dir": folder, "batch_size": 4, "mix": BOTH, "seed": 5}
    plain = DataGenerator(IDS, labels, weights=weights, **options)
    expected = []
    for epoch in range(3):
        plain.set_epoch(epoch)
        expected += [plain[index] for index in range(len(plain))]
    whole, resumed = Recorder(), Recorder()
    whole.fit(DataGenerator(IDS, labels, weights=weights, **options, **mode), epochs=3, verbose=0, shuffle=False)
    assert same(whole.seen, expected)
    resumed.fit(
        DataGenerator(IDS, labels, weights=weights, **options, **mode),
        epochs=3,
        initial_epoch=1,
        verbose=0,
        shuffle=False,
    )
    assert same(resumed.seen, expected[len(plain) :])
    unmixed = DataGenerator(IDS, labels, weights=weights, image_dir=folder, batch_size=4, seed=5)
    assert unmixed[0][0].dtype == expected[0][0].dtype == np.uint8
    assert not same([unmixed[0]], expected[:1])


def test_what_a_function_draws_from_global_states_is_the_batchs_own_in_processes(folder, labels):
    def mix(images, labels, weights, rng):
        return images, labels + np.random.random(labels.shape).astype(np.float32), weights  # noqa: NPY002

    seen = []
    for workers in (1, 3):
        recorder = Recorder()
        generator = DataGenerator(
            IDS, labels, image_dir=folder, batch_size=2, mix=mix, workers=workers, use_multiprocessing=True
        )
        recorder.fit(generator, verbose=0, shuffle=False)
        seen.append(recorder.seen)
    assert same(*seen)


def test_metrics_and_loss_take_soft_labels(folder, labels, weights):
    generator = DataGenerator(IDS, labels, image_dir=folder, batch_size=4, mix=Mix(mixup=1.0), weights=weights)
    model = keras.Sequential([keras.Input((SIZE, SIZE, 1)), keras.layers.Flatten(), keras.layers.Dense(6)])
    aucs = [LabelAUC(label) for label in LABELS]
    model.compile(loss=WeightedBinaryCrossentropy(), metrics=[WeightedLogLoss(), *aucs])
    scores = model.test_on_batch(*generator[0], return_dict=True)
    assert np.isfinite([scores["loss"], scores["weighted_log_loss"]]).all()


def test_passes_of_tta_are_not_mixed(folder, labels):
    generator = DataGenerator(IDS, labels, image_dir=folder, mix=Mix(mixup=1.0), tta=[None])
    plain = DataGenerator(IDS, labels, image_dir=folder)
    assert same([generator.at_pass(0)[0]], [plain[0]])
    assert not same([generator[0]], [plain[0]])


def test_inputs_beside_the_image_stay():
    images, labels, _ = batch_of()
    mask = np.ones((8, 1), np.float32)
    x, _ = mix_batch(({"image": images, "mask": mask}, labels), Mix(mixup=1.0), np.random.default_rng(0), "a batch")
    assert x["mask"] is mask
    assert x["image"] is images


@pytest.mark.parametrize("given", [{}, {"mixup": 0}, {"cutmix": np.inf}, {"mixup": 1, "share": 0}, {"mixup": -1}])
def test_refuses_a_mix_of_nothing(given):
    with pytest.raises(IchError, match="expected a number above 0"):
        Mix(**given)


def test_refuses_where_labels_would_be_wrong(folder, labels):
    mix, files = Mix(cutmix=1.0), {"image_dir": folder}
    classes = pd.Series(np.arange(COUNT) % 3, IDS)
    with pytest.raises(IchError, match=r"whole numbers up to 2: .*third class; num_classes="):
        DataGenerator(IDS, classes, mix=mix, **files)
    assert DataGenerator(IDS, classes, num_classes=3, mix=mix, **files)[0][1].shape == (COUNT, 3)
    with pytest.raises(IchError, match=r"batch 0 of epoch 0: mix raised .*third class"):
        DataGenerator(IDS, lambda id: classes[id], mix=mix, **files)[0]
    for mask in (np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE, 2)), np.zeros(SIZE * SIZE), np.zeros((4, 4))):
        with pytest.raises(IchError, match="are masks"):
            DataGenerator(IDS, lambda id, mask=mask: mask, mix=mix, **files)[0]
    frame = pd.DataFrame({"filename": [f"{id_}.png" for id_ in IDS], "class": ["a", "b"] * 5 + ["a"]})
    with pytest.raises(IchError, match="class_mode sparse gives numbers of classes; write categorical"):
        DataGenerator.from_dataframe(frame, class_mode="sparse", mix=mix, **files)
    with pytest.raises(IchError, match="mix is for training"):
        DataGenerator(IDS, labels, shuffle=False, mix=mix, **files)
    with pytest.raises(IchError, match="mix is for training"):
        DataGenerator(IDS, mix=mix, **files)
    with pytest.raises(IchError, match="extra inputs would be of one of both"):
        DataGenerator(IDS, labels, mix=mix, extra=pd.DataFrame({"age": 1.0}, IDS), **files)
    with pytest.raises(IchError, match="mix is a str, expected a function"):
        DataGenerator(IDS, labels, mix="cutmix", **files)
    with pytest.raises(IchError, match=r"images of \(11, 9\), expected \(batch, height"):
        DataGenerator(IDS, labels, mix=mix, preprocess=lambda image: image.ravel()[:9], **files)[0]


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (lambda images, labels, weights, rng: images, "gave a ndarray, expected a tuple"),
        (lambda images, labels, weights, rng: (images[:-1], labels, weights), "gave images of"),
        (lambda images, labels, weights, rng: (images, labels, labels), "gave weights of"),
        (lambda images, labels, weights, rng: 1 / 0, "mix raised ZeroDivisionError"),
    ],
)
def test_refuses_what_a_function_gives(folder, labels, mix, message):
    with pytest.raises(IchError, match=f"batch 0 of epoch 0: mix {message.removeprefix('mix ')}"):
        DataGenerator(IDS, labels, image_dir=folder, mix=mix)[0]
