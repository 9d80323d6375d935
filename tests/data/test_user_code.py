import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import random
import sys
from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
import pytest

from ich.data import user_code
from ich.errors import IchError


class Own(A.ImageOnlyTransform):
    pass


def replaced():
    transform = A.HorizontalFlip()
    transform.apply = lambda image, **params: image
    return transform


def test_an_error_names_the_argument_and_the_sample():
    assert user_code.call("reader", "ID_1", divmod, 7, 2) == (3, 1)
    with pytest.raises(IchError, match=r"^ID_1: reader raised ZeroDivisionError: "):
        user_code.call("reader", "ID_1", divmod, 7, 0)
    with pytest.raises(KeyboardInterrupt):
        user_code.call("reader", "ID_1", lambda: (_ for _ in ()).throw(KeyboardInterrupt))


@pytest.mark.parametrize("given", [None, "image", [np.ones(2), np.ones(3)], np.ones(3), np.array([["a"]]), {}])
def test_what_is_no_image_is_refused(given):
    with pytest.raises(IchError, match=r"^ID_1: reader gave .*, expected an image, an array of \(height, width, ch"):
        user_code.as_image(given, "reader", "ID_1")
    assert user_code.as_image(1.5, "preprocess", "ID_1", min_axes=0) == 1.5


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (None, False),
        (A.HorizontalFlip(), False),
        (A.Compose([A.OneOf([A.HorizontalFlip()])]), False),
        (A.Compose([A.OneOf([Own()])]), True),
        (A.Lambda(image=abs), True),
        (A.FDA(), False),
        (A.FDA(read_fn=abs), True),
        (replaced(), True),
        (A.Compose([A.OneOf([replaced()])]), True),
        (abs, True),
    ],
)
def test_what_is_not_albumentations_own_is_a_users(augment, expected):
    assert user_code.has_user_code(augment) is expected


class Torch:
    """Has what is used of torch, which is not installed."""

    default_generator = SimpleNamespace(manual_seed=lambda seed: setattr(Torch, "seed", seed))


def test_global_states_are_seeded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", Torch)
    draws = []
    for seed in (2**100, 2**100 + 1, 2**100):
        user_code.seed_global_states(seed)
        of_cv2 = cv2.randu(np.empty((1, 4)), 0, 1).tolist()
        draws.append((np.random.rand(), random.random(), of_cv2, Torch.seed))  # noqa: NPY002
    assert draws[0] == draws[2]
    assert all(first != second for first, second in zip(draws[0], draws[1], strict=True))
    assert 0 <= Torch.seed < 2**64
    monkeypatch.delitem(sys.modules, "torch")
    user_code.seed_global_states(0)
    assert "torch" not in sys.modules
