import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pickle
from concurrent.futures import ThreadPoolExecutor

import albumentations as A
import numpy as np
import pytest

from ich.data.augmenter import Augmenter
from ich.errors import IchError

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 12, 1), dtype=np.uint8)
TRANSFORM = A.Compose([A.HorizontalFlip(), A.RandomCrop(8, 8), A.VerticalFlip()])


def shift(image, rng):
    return np.roll(image, rng.integers(0, 12), axis=1)


@pytest.mark.parametrize("augment", [TRANSFORM, A.RandomCrop(8, 8), shift], ids=["Compose", "transform", "function"])
def test_the_seed_alone_decides_in_any_order_thread_and_copy(augment):
    augmenter = Augmenter(augment)
    images = [augmenter(IMAGE, None, "a", seed)[0] for seed in range(20)]
    assert len({image.tobytes() for image in images}) > 5
    copy = pickle.loads(pickle.dumps(augmenter))
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda seed: copy(IMAGE, None, "b", seed)[0], list(range(20))[::-1] * 3))
    for image, other in zip(images[::-1] * 3, again, strict=True):
        np.testing.assert_array_equal(image, other)


def test_without_augmentation_all_is_as_it_was():
    label = np.ones((2, 2))
    assert Augmenter(None)(IMAGE, label, "a", 0) == (IMAGE, label)


@pytest.mark.parametrize("label", [None, np.float32(1), np.ones(3)])
def test_a_mask_moves_with_its_image_and_any_other_label_stays(label):
    augmenter = Augmenter(TRANSFORM)
    for seed in range(10):
        image, mask = augmenter(IMAGE, IMAGE[..., 0], "a", seed)
        np.testing.assert_array_equal(image[..., 0], mask)
        plain, same = augmenter(IMAGE, label, "a", seed)
        np.testing.assert_array_equal(plain, image)
        assert same is label


BRIGHT = A.Compose([A.OneOf([A.RandomBrightnessContrast(), A.GaussNoise()])])


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("augment", [TRANSFORM, A.HorizontalFlip(), A.Compose([BRIGHT, A.Affine()]), shift])
def test_a_flattened_mask_is_refused_where_pixels_may_move(augment, classes):
    numbers = 16 * 12 * classes
    for label, in_table in ((np.zeros(numbers), 1), (None, numbers)):
        with pytest.raises(
            IchError, match=rf"of a are {numbers} numbers, .* has 192 pixels: a flattened mask would not"
        ):
            Augmenter(augment)(IMAGE, label, "a", 0, in_table)
        for other in (BRIGHT, A.RandomBrightnessContrast(), None):
            Augmenter(other)(IMAGE, label, "a", 0, in_table)


def test_other_vectors_and_those_of_tiny_images_are_no_masks():
    for numbers in (1, 6, 191, 200):
        Augmenter(shift)(IMAGE, np.zeros(numbers), "a", 0)
        Augmenter(shift)(IMAGE, None, "a", 0, numbers)
    Augmenter(A.HorizontalFlip())(IMAGE[:4, :4], np.zeros(128), "a", 0)


def test_a_dropped_axis_of_one_channel_comes_back():
    assert Augmenter(lambda image, rng: image[..., 0])(IMAGE, None, "a", 0)[0].shape == IMAGE.shape


@pytest.mark.parametrize(
    ("augment", "label", "message"),
    [
        (shift, np.ones((16, 12)), r"the labels of a are a mask of \(16, 12\), and augment is a function of the image"),
        (TRANSFORM, np.ones((12, 16)), r"the labels of a have the shape \(12, 16\), and its image of \(16, 12, 1\)"),
        (lambda image, rng: 1 / 0, None, "a: augment raised ZeroDivisionError"),
        (lambda image, rng: None, None, "a: augment gave NoneType, expected an image"),
        (A.RandomCrop(99, 99, p=1), None, "a: augment raised "),
    ],
)
def test_what_cannot_be_augmented_names_the_sample(augment, label, message):
    with pytest.raises(IchError, match=message):
        Augmenter(augment)(IMAGE, label, "a", 0)
