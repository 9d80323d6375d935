import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import pytest
from recorder import Recorder

from ich.data import augment
from ich.data.affine_draw import IDENTITY, AffineDraw
from ich.data.augmenter import Augmenter
from ich.data.generator import DataGenerator
from ich.data.mixing import Mix
from ich.data.scan_windows import PADDING
from ich.errors import IchError
from ich.images.slice_table import to_frame

HEIGHT, WIDTH, COUNT = 40, 48, 11
IDS = [f"ID_{number:03x}" for number in range(COUNT)]
SEEDS = range(10**30, 10**30 + 400)


def on_cpu(image, draw):
    """By cv2.remap, which rounds its maps to 1/32 pixel: in a smooth image, that is less than a gray level."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    at = draw[0] * x + draw[1] * y + draw[2], draw[3] * x + draw[4] * y + draw[5]
    warped = cv2.remap(image, *(coordinates.astype(np.float32) for coordinates in at), cv2.INTER_LINEAR, borderValue=0)
    return np.clip(warped * draw[6] + draw[7], 0, 255)


def phantom():
    """Smooth, and black at its edge: there a crop's resize repeats pixels where a warp has 0."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    disc = 220 * np.exp(-(((y - 17) / 8) ** 2) - ((x - 27) / 9) ** 2)
    return np.repeat(np.rint(disc)[..., None].astype(np.uint8), 3, axis=2)


@pytest.mark.parametrize("name", ["light", "heavy"])
def test_a_draw_does_what_the_pipeline_does_with_the_same_seed(name):
    """So the distributions are equal too: each draw is that of albumentations. Where both differ, it is by one
    interpolation in place of two, and by their rounding."""
    compose, image = augment.pipeline(name, HEIGHT, WIDTH), phantom()
    draw, pipeline = AffineDraw(compose), Augmenter(compose)
    for seed in SEEDS[:100]:
        expected, _ = pipeline(image, None, "a", seed)
        difference = np.abs(on_cpu(image, draw(image, seed)) - expected)
        assert difference.max() < 9
        assert difference.mean() < 1
    assert draw(image, 5).tobytes() == AffineDraw(compose)(image, 5).tobytes() != draw(image, 6).tobytes()


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (A.HorizontalFlip(p=1), lambda image: image[:, ::-1]),
        (
            A.Affine(translate_px={"x": (3, 3), "y": (-2, -2)}, p=1),
            lambda i: np.pad(i, ((0, 2), (3, 0), (0, 0)))[2:, :-3],
        ),
        (A.Affine(rotate=(180, 180), p=1), lambda image: image[::-1, ::-1]),
        (A.RandomResizedCrop((HEIGHT, WIDTH), scale=(1, 1), ratio=(1.2, 1.2), p=1), lambda image: image),
        (A.RandomBrightnessContrast((0.2, 0.2), (0.5, 0.5), p=1), lambda i: np.clip(i * 1.5 + 51, 0, 255)),
        (A.HorizontalFlip(p=0), lambda image: image),
    ],
)
def test_one_transform_alone(transform, expected):
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    draw = AffineDraw(A.Compose([transform]))(image, 3)
    np.testing.assert_allclose(on_cpu(image, draw), expected(image), atol=1)


def test_the_share_of_the_whole_compose_counts():
    image = phantom()
    draw = AffineDraw(A.Compose([A.HorizontalFlip(p=1)], p=0.25))
    moved = np.mean([draw(image, seed)[0] == -1 for seed in SEEDS])
    assert 0.17 < moved < 0.33


def test_moments_of_heavy_are_those_of_its_definition():
    draw, image = AffineDraw(augment.pipeline("heavy", HEIGHT, WIDTH)), phantom()
    draws = np.array([draw(image, seed * 7919) for seed in SEEDS])
    area = np.abs(draws[:, 0] * draws[:, 4] - draws[:, 1] * draws[:, 3])
    assert 0.35 < (np.linalg.det(draws[:, [0, 1, 3, 4]].reshape(-1, 2, 2)) < 0).mean() < 0.65  # half are mirrored
    assert area.min() > 0.69 / 1.1**2
    assert area.max() < 1 / 0.9**2 + 0.01
    angle = np.degrees(np.arctan2(draws[:, 3], draws[:, 4]))
    assert 25 < np.abs(angle).max() < 36  # a crop's ratio of 0.9 to 1.1 turns what is turned by 30° a little more
    assert abs(angle.mean()) < 3
    assert 0.35 < (draws[:, 6] == 1).mean() < 0.65
    assert np.abs(draws[:, 6] - 1).max() <= 0.1
    assert np.abs(draws[:, 7]).max() <= 25.5
    assert draws.dtype == IDENTITY.dtype


ANYTHING_ELSE = {
    "there is none": None,
    "it is a function, no A.Compose": lambda image, rng: image,
    "it is a HorizontalFlip, no A.Compose": A.HorizontalFlip(),
    "records its draws": A.Compose([A.HorizontalFlip()], save_applied_params=True),
    "GaussianBlur is none of those": A.Compose([A.GaussianBlur()]),
    "OneOf is none of those": A.Compose([A.OneOf([A.HorizontalFlip()])]),
    "RandomBrightnessContrast does not come last": A.Compose([A.RandomBrightnessContrast(), A.HorizontalFlip()]),
    "takes the image's mean": A.Compose([A.RandomBrightnessContrast(brightness_by_max=False)]),
    "Affine is not bilinear": A.Compose([A.Affine(interpolation=cv2.INTER_CUBIC)]),
    "Affine fills what is beyond": A.Compose([A.Affine(fill=9)]),
    "Affine fits the size": A.Compose([A.Affine(fit_output=True)]),
    "RandomResizedCrop averages": A.Compose([A.RandomResizedCrop((4, 4), area_for_downscale="image")]),
}


@pytest.mark.parametrize("reason", ANYTHING_ELSE)
def test_what_a_matrix_cannot_say_is_refused(reason):
    with pytest.raises(IchError, match=rf"cannot apply this augmentation: .*{reason}.*augment_on='cpu'"):
        AffineDraw(ANYTHING_ELSE[reason])


def test_a_crop_to_another_size_is_refused():
    with pytest.raises(IchError, match=r"RandomResizedCrop gives \(20, 20\), the images are 40 × 48"):
        AffineDraw(A.Compose([A.RandomResizedCrop((20, 20), p=1)]))(phantom(), 0)


# ------------------------------------------------------------------------------------------ in DataGenerator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for id_ in IDS:
        cv2.imwrite(str(path / f"{id_}.png"), rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8))
    return path


LABELS = pd.DataFrame(np.eye(COUNT, 6, dtype=np.float32), IDS)


def generator(folder, labels=LABELS, **options):
    given = {"augment": augment.pipeline("heavy", HEIGHT, WIDTH), "augment_on": "device", "batch_size": 4}
    return DataGenerator(IDS, labels, image_dir=folder, **given | options)


def draws_by_id(dataset):
    return {
        id: draw.tobytes()
        for k in range(len(dataset))
        for id, draw in zip(dataset.ids_of(k), dataset[k][0]["augment"], strict=True)
    }


def test_images_come_as_read_with_the_draws_of_their_seeds(folder):
    dataset, on_the_cpu = generator(folder), generator(folder, augment_on="cpu")
    x, y = dataset[0]
    assert set(x) == {"unaugmented", "augment"}
    assert x["augment"].shape == (4, 8)
    np.testing.assert_array_equal(y, on_the_cpu[0][1])
    for image, draw, expected, id in zip(
        x["unaugmented"], x["augment"], on_the_cpu[0][0], dataset.ids_of(0), strict=True
    ):
        np.testing.assert_array_equal(image[0, ..., 0], cv2.imread(str(folder / f"{id}.png"), cv2.IMREAD_GRAYSCALE))
        assert np.abs(on_cpu(image[0], draw).mean() - expected.mean()) < 12
    assert draws_by_id(dataset) == draws_by_id(generator(folder, batch_size=3))
    assert draws_by_id(dataset) != draws_by_id(generator(folder, epoch=1))
    assert draws_by_id(dataset) != draws_by_id(generator(folder, seed=1))


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 2, "use_multiprocessing": True}], ids=str)
def test_workers_draw_the_same(folder, options):
    class Keeps(Recorder):
        def train_step(self, data):
            self.seen.append(data[0]["augment"].numpy().tobytes())
            return {"loss": 0.0}

    model = Keeps()
    model.fit(generator(folder, mix=Mix(mixup=1.0), **options), epochs=2, shuffle=False, verbose=0)
    expected = [generator(folder, epoch=epoch)[k][0]["augment"].tobytes() for epoch in (0, 1) for k in range(3)]
    assert model.seen == expected


def test_extra_inputs_stay_and_a_pass_and_a_preview_are_of_the_cpu(folder):
    extra = pd.DataFrame({"age": np.arange(COUNT)}, IDS)
    dataset = generator(folder, extra=extra, tta=[None])
    assert set(dataset[0][0]) == {"unaugmented", "age", "augment"}
    assert set(dataset.at_pass(0)[0][0]) == {"image", "age"}
    assert isinstance(generator(folder, labels=None, tta=[None]).at_pass(0)[0], np.ndarray)
    assert set(generator(folder, labels=None)[0]) == {"unaugmented", "augment"}
    seen = dataset.preview(2).axes[-1].images[0].get_array()  # of another shape than the batch before
    assert seen.shape[:2] == (HEIGHT, WIDTH)


ROWS = [
    {"SOPInstanceUID": id, "SeriesInstanceUID": f"S{k // 6}", "split": "train", "order": k % 6, "z": 5.0 * (k % 6)}
    | {"status": "ok"}
    for k, id in enumerate(IDS)
]


@pytest.mark.parametrize("scan", [{}, {"scan": 3, "batch_size": 2}], ids=str)
def test_neighbours_stay_apart_and_move_as_one(folder, scan):
    options = {"neighbours": (-1, 0, 1), "slices": to_frame(ROWS), "mix": Mix(cutmix=1.0)} | scan
    dataset = generator(folder, **options)
    read = generator(folder, augment=None, augment_on="cpu", **options | {"mix": None})
    x, joined = dataset[0][0], read[0][0]
    joined = joined["image"] if scan else joined
    assert x["unaugmented"].shape == (*joined.shape[:-3], 3, HEIGHT, WIDTH, 1)
    assert (joined[..., 0] != joined[..., 2]).any()
    np.testing.assert_array_equal(np.moveaxis(x["unaugmented"][..., 0], -3, -1), joined)
    assert x["augment"].shape == (len(joined), 8)
    assert x["mix"].shape == (len(joined), 9 if scan else 7)


def test_a_sample_of_another_size_is_reported_in_the_shape_of_its_image(folder):
    options = {"augment": A.Compose([A.HorizontalFlip()]), "batch_size": 2}
    dataset = generator(folder, reader=lambda path: np.zeros((8, 9 if path.stem == IDS[1] else 8), np.uint8), **options)
    with pytest.raises(IchError, match=r"gives uint8 of \(8, [89], 1\), the first image gave uint8 of \(8, [89], 1\)"):
        list(map(dataset.__getitem__, range(len(dataset))))


def test_slices_of_a_scan_move_as_one(folder):
    dataset = generator(folder, scan=4, slices=to_frame(ROWS), batch_size=2)
    for k in range(len(dataset)):
        x, _, _ = dataset[k]
        slices = dataset._plan.slices(k)
        assert set(x) == {"unaugmented", "mask", "z", "augment"}
        assert x["augment"].shape == (len(slices), 8)
        for window, draw in zip(slices, x["augment"], strict=True):
            assert window[0] != PADDING
            seed = dataset._seed_of(IDS[window[0]], 0, 0)
            np.testing.assert_array_equal(draw, AffineDraw(dataset.augment)(phantom(), seed))


REFUSED = {
    "augment_on is 'gpu', expected cpu or device": {"augment_on": "gpu"},
    "cannot apply this augmentation: there is none": {"augment": None},
    "mix is a function of images that the training model": {"mix": lambda *batch: batch[:3]},
    "preprocess is given the augmented image": {"preprocess": lambda image: image},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_come_before_or_after_it_is_refused(folder, message):
    with pytest.raises(IchError, match=message):
        generator(folder, **REFUSED[message])


def test_images_and_masks_that_the_model_cannot_augment_are_refused(folder):
    with pytest.raises(IchError, match=r"ID_.* is float32 of \(40, 48, 1\), expected uint8 .*; have the reader give"):
        generator(folder, reader=lambda path: np.zeros((HEIGHT, WIDTH, 1), np.float32))[0]
    with pytest.raises(IchError, match=r"ID_.* are a mask of \(40, 48\), which the training model does not augment"):
        generator(folder, labels=lambda id: np.zeros((HEIGHT, WIDTH), np.float32))[0]
    with pytest.raises(IchError, match=r"ID_.* are 1,920 numbers, .*: a flattened mask would not be augmented"):
        generator(folder, labels=lambda id: np.zeros(HEIGHT * WIDTH, np.float32))[0]
