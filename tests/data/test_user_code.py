import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import random

import albumentations as A
import numpy as np
import pytest

from ich.data import user_code
from ich.errors import IchError


class Own(A.ImageOnlyTransform):
    pass


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
        (abs, True),
    ],
)
def test_what_is_not_albumentations_own_is_a_users(augment, expected):
    assert user_code.has_user_code(augment) is expected


def test_global_states_are_seeded():
    draws = []
    for seed in (2**100, 2**100 + 1, 2**100):
        user_code.seed_global_states(seed)
        draws.append((np.random.rand(), random.random()))  # noqa: NPY002
    assert draws[0] == draws[2] != draws[1]
