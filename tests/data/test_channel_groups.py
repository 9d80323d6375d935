import copy
import random
import warnings
from functools import lru_cache

import albumentations as A
import cv2
import numpy as np
import pytest

from ich.data import augment, channel_groups
from ich.data.augmenter import Augmenter
from ich.errors import IchError

HEIGHT, WIDTH = 100, 104

SEPARABLE = [
    A.Affine(rotate=(-30, 30), translate_percent=(-0.1, 0.1), scale=(0.9, 1.1), shear=(-5, 5), p=1),
    A.Affine(rotate=(-30, 30), interpolation=cv2.INTER_CUBIC, border_mode=cv2.BORDER_REFLECT_101, fill=7, p=1),
    A.Blur(p=1),
    A.CenterCrop(60, 70),
    A.CoarseDropout(fill=30, p=1),
    A.Crop(3, 5, 90, 80),
    A.CropAndPad(px=(-8, 8), p=1),
    A.D4(p=1),
    A.ElasticTransform(p=1),
    A.GaussianBlur(p=1),
    A.GridDistortion(p=1),
    A.GridDropout(p=1),
    A.HorizontalFlip(p=1),
    A.InvertImg(p=1),
    A.LongestMaxSize(120),
    A.MedianBlur(p=1),
    A.MotionBlur(p=1),
    A.NoOp(),
    A.OpticalDistortion(p=1),
    A.Pad(8),
    A.PadIfNeeded(120, 130),
    A.Perspective(p=1),
    A.RandomBrightnessContrast(p=1),
    A.RandomBrightnessContrast(ensure_safe_range=True, p=1),
    A.RandomCrop(60, 70),
    A.RandomCropFromBorders(p=1),
    A.RandomGamma(p=1),
    A.RandomResizedCrop((HEIGHT, WIDTH), scale=(0.7, 1), p=1),
    A.RandomResizedCrop((HEIGHT, WIDTH), scale=(0.7, 1), interpolation=cv2.INTER_AREA, p=1),
    A.RandomRotate90(p=1),
    A.RandomScale(p=1),
    A.RandomSizedCrop((60, 90), (HEIGHT, WIDTH), p=1),
    A.Resize(80, 120, interpolation=cv2.INTER_LANCZOS4),
    A.Rotate(p=1),
    A.SafeRotate(p=1),
    A.SmallestMaxSize(120),
    A.Transpose(p=1),
    A.VerticalFlip(p=1),
]
with warnings.catch_warnings(action="ignore"):  # it is an Affine, says albumentations; but users have it
    SEPARABLE.append(A.ShiftScaleRotate(p=1))


@lru_cache
def picture(channels, height=HEIGHT, width=WIDTH):
    """Channels of waves and noise, each its own."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 20, (channels, height, width))
    planes = [120 + 90 * np.sin(x / (7 + channel)) * np.cos(y / (9 + channel)) for channel in range(channels)]
    return np.ascontiguousarray(np.moveaxis(np.clip(planes + noise, 0, 255).astype(np.uint8), 0, 2))


def whole(transform, seed, **data):
    """What albumentations gives for all channels at once, with the random numbers of an Augmenter's seed."""
    transform, numbers = copy.deepcopy(transform), np.random.PCG64(0)
    state = numbers.state
    state["state"]["state"] = seed
    numbers.state = state
    transform.set_random_state(np.random.Generator(numbers), random.Random(seed))
    return transform(**data)


@pytest.fixture
def split(monkeypatch):
    """The numbers of channels of the images that were split."""
    seen, original = [], channel_groups._split
    monkeypatch.setattr(channel_groups, "_split", lambda image: seen.append(image.shape[2]) or original(image))
    return seen


def check(transform, channels, seeds=4, height=HEIGHT, width=WIDTH):
    image = picture(channels, height, width)
    before, mask, augmenter = image.copy(), image[..., 0] // 64, Augmenter(transform)
    for seed in range(seeds):
        expected = whole(transform, seed, image=image)["image"]
        actual, _ = augmenter(image, None, "a", seed)
        assert actual.dtype == np.uint8
        assert actual.flags.c_contiguous
        np.testing.assert_array_equal(actual, expected)
        both = whole(transform, seed, image=image, mask=mask)
        actual, actual_mask = augmenter(image, mask, "a", seed)
        np.testing.assert_array_equal(actual, both["image"])
        np.testing.assert_array_equal(actual_mask, both["mask"])
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("transform", SEPARABLE, ids=lambda transform: type(transform).__name__)
def test_groups_give_the_pixels_of_one_call(transform, split):
    """Each behind a Resize of the same size, which has a Compose split for the fast ones too."""
    for channels in (3, 4, 6, 7, 9, 12):
        check(A.Compose([transform, A.Resize(HEIGHT, WIDTH)]), channels, seeds=2)
        if type(transform) in channel_groups.SLOW:
            check(transform, channels, seeds=1)
    assert set(split) == {6, 7, 9, 12}


def test_each_transform_of_the_lists_is_compared():
    assert {type(transform) for transform in SEPARABLE} == {*channel_groups.SLOW, *channel_groups.FAST}


@pytest.mark.parametrize("transform", [A.ChannelDropout, A.GaussNoise])
def test_the_comparison_tells_what_must_not_be_on_the_lists(transform, monkeypatch):
    monkeypatch.setattr(channel_groups, "SLOW", (transform,))
    with pytest.raises((AssertionError, IchError)):
        check(transform(p=1), 9)


def backward(image, **parameters):
    return np.ascontiguousarray(image[..., ::-1])


class Mirrored(A.Affine):
    """A user's subclass, whose pixels depend on other channels."""

    def apply(self, img, **params):
        return super().apply(backward(img), **params)


def with_own_method():
    transform = A.Rotate(p=1)
    transform.apply = backward
    transform.add_targets({"image": "image"})
    return transform


WHOLE = [
    A.ChannelShuffle(p=1),
    A.ChannelDropout(p=1),
    A.GaussNoise(p=1),
    A.MultiplicativeNoise(per_channel=True, p=1),
    A.RandomBrightnessContrast(brightness_by_max=False, p=1),
    A.Affine(rotate=(-30, 30), fill=(1, 2, 3, 4), p=1),
    A.CoarseDropout(fill="random", p=1),
    A.Lambda(image=backward, p=1),
    A.OneOf([A.Affine(rotate=(-30, 30)), A.ChannelShuffle()], p=1),
    A.Compose([A.Affine(rotate=(-30, 30), p=1), A.GaussNoise(p=1)], p=0.8),
    Mirrored(rotate=(-30, 30), p=1),
    with_own_method(),
]


@pytest.mark.parametrize("transform", WHOLE, ids=lambda transform: type(transform).__name__)
def test_any_other_transform_gets_the_whole_image(transform, split):
    check(transform if isinstance(transform, A.Compose) else A.Compose([transform]), 9)
    if not isinstance(transform, A.Compose):
        check(transform, 9)
        assert not split
    split.clear()
    check(A.Compose([A.HorizontalFlip(), A.Affine(rotate=(-9, 9)), transform, A.Resize(50, 60), A.VerticalFlip()]), 9)
    assert len(split) == 16  # of 8 calls, before and behind the transform


@pytest.mark.parametrize("channels", [6, 9])
@pytest.mark.parametrize("name", [name for name in augment.PIPELINES if name != "none"])
def test_named_pipelines_get_groups(name, channels, split):
    check(augment.pipeline(name, HEIGHT, WIDTH), channels, seeds=20)
    assert len(split) == 40


@pytest.mark.parametrize("name", [name for name in augment.PASSES if name != "none"])
def test_passes_give_the_pixels_of_one_call(name):
    check(augment.PASSES[name](HEIGHT, WIDTH), 9, seeds=1)


CONTAINERS = [
    A.OneOf([A.Affine(rotate=(-30, 30)), A.Blur(), A.RandomGamma(p=0.2)], p=0.8),
    A.SomeOf([A.Affine(rotate=(-30, 30)), A.Blur(), A.RandomGamma()], n=2),
    A.RandomOrder([A.Affine(rotate=(-30, 30)), A.Blur(), A.RandomGamma()], n=2),
    A.OneOrOther(A.Affine(rotate=(-30, 30)), A.Blur()),
    A.Sequential([A.Affine(rotate=(-30, 30)), A.Blur()], p=0.6),
    A.Compose([A.HorizontalFlip(), A.Compose([A.Affine(rotate=(-30, 30)), A.Blur()], p=0.6)], p=0.7),
]


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: type(container).__name__)
def test_transforms_that_hold_others_draw_the_same(container, split):
    check(A.Compose([container, A.HorizontalFlip()]), 9, seeds=12)
    assert len(split) == 24


def test_a_list_of_transforms_is_split_only_where_that_is_faster(split):
    check(A.Compose([A.HorizontalFlip(), A.RandomBrightnessContrast()]), 9)
    check(A.HorizontalFlip(), 9)
    check(A.Affine(rotate=(-30, 30)), 9, height=64, width=64)
    check(A.Compose([A.ToFloat(), A.Affine(rotate=(-30, 30), p=1), A.FromFloat(dtype="uint8")]), 9)
    check(A.Affine(rotate=(-30, 30)), 4)
    assert not split


def test_a_compose_that_looks_at_each_transform_stays_as_it_is(split):
    check(A.Compose([A.Affine(rotate=(-30, 30))], save_applied_params=True), 9)
    check(A.ReplayCompose([A.Affine(rotate=(-30, 30))]), 9)
    assert not split


def test_numbers_of_channels_may_change_from_image_to_image():
    augmenter, transform = Augmenter(A.Affine(rotate=(-30, 30), p=1)), A.Affine(rotate=(-30, 30), p=1)
    for channels in (9, 5, 16, 3, 9, 200):
        image = picture(channels)
        actual, _ = augmenter(image, None, "a", channels)
        np.testing.assert_array_equal(actual, whole(transform, channels, image=image)["image"])
        view = np.asarray(image).transpose(1, 0, 2)  # not contiguous
        actual, _ = augmenter(view, None, "a", channels)
        np.testing.assert_array_equal(actual, whole(transform, channels, image=view)["image"])
