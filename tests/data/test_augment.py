import copy
import os
import pickle
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import albumentations as A
import numpy as np
import pytest

from ich.data import augment
from ich.errors import IchError

HEIGHT, WIDTH = 40, 48


def phantom(channels):
    """A bright disc beside the middle on black, so that a move shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    disc = ((y - 18) ** 2 + (x - 28) ** 2 < 100) * (100 + 2 * x)
    return np.repeat(disc[..., None].astype(np.uint8), channels, axis=2)


def draw(compose, image, seed):
    compose.set_random_seed(seed)
    return compose(image=image)["image"]


@pytest.mark.parametrize("channels", [1, 3, 9])
@pytest.mark.parametrize("name", [name for name in augment.PIPELINES if name != "none"])
def test_shape_and_dtype_stay_and_the_seed_alone_decides(name, channels):
    image = phantom(channels)
    before = image.copy()
    compose = augment.pipeline(name, HEIGHT, WIDTH)
    first = [draw(compose, image, seed) for seed in range(20)]
    again = [draw(copy.deepcopy(compose), image, seed) for seed in reversed(range(20))][::-1]
    for drawn, redrawn in zip(first, again, strict=True):
        assert drawn.shape == image.shape
        assert drawn.dtype == np.uint8
        np.testing.assert_array_equal(drawn, redrawn)
    assert len({drawn.tobytes() for drawn in first}) > 10
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", [name for name in augment.PIPELINES if name != "none"])
def test_all_channels_move_alike(name):
    image = phantom(9)
    compose = augment.pipeline(name, HEIGHT, WIDTH)
    for seed in range(20):
        out = draw(compose, image, seed)
        assert (out == out[..., :1]).all()


@pytest.mark.parametrize("name", [name for name in augment.PIPELINES if name != "none"])
def test_beyond_the_edge_is_air(name):
    """A wholly bright image shows what is filled in: black, never a copy of what is inside."""
    compose = augment.pipeline(name, HEIGHT, WIDTH)
    image = np.full((HEIGHT, WIDTH, 1), 200, dtype=np.uint8)
    corners = {int(draw(compose, image, seed)[0, 0, 0]) for seed in range(40)}
    assert min(corners) == 0


@pytest.mark.parametrize("name", [name for name in augment.PIPELINES if name != "none"])
def test_the_head_stays_in_the_image(name):
    compose = augment.pipeline(name, HEIGHT, WIDTH)
    image = phantom(1)
    for seed in range(40):
        assert (draw(compose, image, seed) > 60).sum() > (image > 60).sum() / 2


@pytest.mark.parametrize("name", [name for name in augment.PIPELINES if name != "none"])
def test_pickled_and_in_threads_the_same(name):
    image = phantom(3)
    compose = augment.pipeline(name, HEIGHT, WIDTH)
    expected = [draw(compose, image, seed) for seed in range(16)]
    pickled = pickle.loads(pickle.dumps(compose))
    assert all(np.array_equal(draw(pickled, image, seed), expected[seed]) for seed in range(16))
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda seed: draw(copy.deepcopy(compose), image, seed), range(16))
    assert all(np.array_equal(result, reference) for result, reference in zip(results, expected, strict=True))


def test_none_is_no_pipeline():
    assert augment.pipeline("none", HEIGHT, WIDTH) is None


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(IchError, match="no augmentation is called 'hevy'; there are none, light, heavy"):
        augment.pipeline("hevy", HEIGHT, WIDTH)


# What the pass does to the column and row of a bright point: by hand, on an image of 40 × 48.
MOVED = {
    "none": (18, 28),
    "flip": (18, 19),
    "crop": (17.8, 29.1),  # 36 rows from 2, 43 columns from 2: (18.5 - 2) / 36 × 40 - 0.5, (28.5 - 2) / 43 × 48 - 0.5
    "crop_top_left": (20.1, 31.3),
    "crop_top_right": (20.1, 25.7),
    "crop_bottom_left": (15.6, 31.3),
    "crop_bottom_right": (15.6, 25.7),
    "rotate_left": (17.2, 27.7),
    "rotate_right": (18.8, 28.2),
}


@pytest.mark.parametrize("name", list(augment.PASSES))
def test_a_pass_moves_the_image_where_it_says_and_always_alike(name):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[17:20, 27:30] = 100
    (transform,) = augment.passes([name], HEIGHT, WIDTH)
    out = image if transform is None else transform(image=image)["image"]
    assert (out.shape, out.dtype) == (image.shape, image.dtype)
    assert (out == out[..., :1]).all()
    weight = out[..., 0] / out[..., 0].sum()
    place = (weight.sum(axis=1) @ np.arange(HEIGHT), weight.sum(axis=0) @ np.arange(WIDTH))
    assert place == pytest.approx(MOVED[name], abs=0.15)
    if transform is not None:
        for seed in range(5):
            np.testing.assert_array_equal(draw(A.Compose([copy.deepcopy(transform)]), image, seed), out)


def test_passes_come_in_their_order_and_wrong_names_are_refused():
    first, second = augment.passes(["none", "flip"], HEIGHT, WIDTH)
    assert first is None
    assert isinstance(second, A.HorizontalFlip)
    with pytest.raises(IchError, match="no TTA pass is called 'flap'; there are none, flip, crop, crop_top"):
        augment.passes(["none", "flap"], HEIGHT, WIDTH)
    with pytest.raises(IchError, match="the pass 'flip' stands twice in flip, none, flip; each counts once"):
        augment.passes(["flip", "none", "flip"], HEIGHT, WIDTH)


def test_albumentations_is_set_before_its_import_not_to_ask_the_network(monkeypatch):
    class Import(Exception):
        """Ends the import of albumentations, with what it would see."""

    class Finder:
        def find_spec(self, name, *_):
            if name == "albumentations":
                raise Import(os.environ.get("NO_ALBUMENTATIONS_UPDATE"))

    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    monkeypatch.delitem(sys.modules, "albumentations")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(Import) as caught:
        runpy.run_path(augment.__file__)
    assert caught.value.args == ("1",)


@pytest.mark.slow  # 7 CPU seconds of imports; the test above is the same without another process
def test_the_import_does_not_ask_the_network_for_a_newer_version():
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    code = """
import urllib.request
def refuse(*args, **kwargs): raise SystemExit("the network was asked")
urllib.request.OpenerDirector.open = refuse
import ich.data.augment, os
print(os.environ["NO_ALBUMENTATIONS_UPDATE"])
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"


def test_transforms_of_one_compose_happen_apart_from_one_another(tmp_path):
    """Through the generator: albumentations' own set_random_seed makes these two happen together or not at all."""
    from collections import Counter

    from ich.data.generator import DataGenerator

    brighter = A.RandomBrightnessContrast(brightness_limit=(0.2, 0.2), contrast_limit=(0, 0), p=0.5)
    compose = A.Compose([A.HorizontalFlip(p=0.5), brighter])
    image = np.zeros((4, 4, 1), np.uint8)
    image[:, :2] = 100
    ids = [f"ID_{number}" for number in range(400)]
    seen = DataGenerator(ids, lambda id: 0, reader=lambda path: image, augment=compose, batch_size=400)[0][0]
    happened = Counter(zip((seen[:, 0, 3, 0] > 60).tolist(), (seen.max(axis=(1, 2, 3)) > 100).tolist(), strict=True))
    assert len(happened) == 4
    assert min(happened.values()) > 60  # of 400, 100 expected
