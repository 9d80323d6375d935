import numpy as np
import pytest

from ich.data.channels import MOST, Parts, apart, files_of, joined, put, stack
from ich.errors import IchError

RNG = np.random.default_rng(0)


def arrays(*counts, dtype=np.uint8, shape=(5, 7)):
    return [RNG.integers(0, 256, (*shape, count)).astype(dtype) for count in counts]


@pytest.mark.parametrize("counts", [(1, 1), (3, 3, 3), (1, 2, 4), (1,) * 9, (MOST - 1, 1), (3,)])
def test_parts_give_the_pixels_of_a_concatenation(counts):
    given = arrays(*counts)
    given[0] = np.repeat(given[0], 2, axis=1)[:, ::2]  # as a user's reader may give it
    image, expected = stack(given, "a"), np.concatenate(given, axis=-1)
    assert (image.shape, image.dtype, image.ndim) == (expected.shape, expected.dtype, 3)
    assert isinstance(image, Parts) == (len(counts) > 1)
    assert (joined(image) == expected).all()
    for images, place in (
        (np.zeros((3, *expected.shape), np.uint8), 1),
        (np.zeros((2, 3, *image.shape), np.uint8), (1, 2)),
    ):
        put(image, images, place)
        assert (images[place] == expected).all()
        images[place] = 0
        assert not images.any()  # nothing beside it


def test_parts_are_put_into_memory_of_another_kind():
    class Shared(np.ndarray):
        """As a worker's batch, in memory that another process has too."""

    given, memory = arrays(3, 1), bytearray(64 + 2 * 5 * 7 * 4)
    put(stack(given, "a"), Shared((2, 5, 7, 4), np.uint8, memory, 64), 1)
    assert (np.frombuffer(memory, np.uint8)[64:].reshape(2, -1)[1] == np.concatenate(given, axis=-1).ravel()).all()


def test_an_array_that_is_read_only_is_copied_once():
    rows = np.frombuffer(RNG.bytes(5 * 22), np.uint8).reshape(5, 22)[:, 1:]  # as a decoded PNG lies
    given = rows.reshape(5, 7, 3)
    image, images = stack([given], "a"), np.zeros((2, 5, 7, 3), np.uint8)
    put(image, images, 1)
    for actual in (joined(image), images[1], joined(stack([image, image], "a"))[..., 3:]):
        assert (actual == given).all()
    assert joined(image).flags.writeable
    assert joined(image).flags.c_contiguous
    floats = np.float32(given)
    floats.flags.writeable = False
    assert stack([floats], "a").flags.writeable


@pytest.mark.parametrize("counts", [(3, 3, 3), (1, 1), (3,)])
def test_arrays_of_one_shape_stay_apart(counts):
    given = arrays(*counts)
    image, images = stack(given, "a"), np.zeros((2, len(counts), 5, 7, counts[0]), np.uint8)
    assert files_of(image) == len(counts)
    image = apart(image, len(counts))
    assert (image.shape, image.dtype, image.ndim) == (images.shape[1:], np.uint8, 4)
    put(image, images, 1)
    assert (images[1] == given).all()
    assert (joined(image) == given).all()
    assert not images[0].any()


def test_arrays_of_several_shapes_are_one():
    given = arrays(3, 1)
    image, pixels = stack(given, "a"), np.concatenate(given, axis=-1)
    assert files_of(image) == 1
    assert (joined(apart(image, 1)) == pixels[None]).all()
    # As those of the first sample were: 2 and 2 channels.
    assert (joined(apart(image, 2)) == [pixels[..., :2], pixels[..., 2:]]).all()
    assert (joined(apart(pixels, 2)) == [pixels[..., :2], pixels[..., 2:]]).all()


def test_parts_of_parts_are_one_row_of_parts():
    a, b, c = arrays(1, 3, 2)
    image = stack([stack([a, b], "a"), c, stack([a, c], "a")], "a")
    assert [array.shape[2] for array in image.arrays] == [1, 3, 2, 1, 2]
    assert (joined(image) == np.concatenate([a, b, c, a, c], axis=-1)).all()


@pytest.mark.parametrize(
    "given",
    [
        arrays(1, 2, dtype=np.float32),
        arrays(1, 2, dtype=np.uint16),
        arrays(MOST, 1),
        arrays(0, 2),
        arrays(1, 2, shape=(2, 5, 7)),
    ],
)
def test_what_opencv_does_not_take_is_joined_at_once(given):
    image = stack(given, "a")
    assert isinstance(image, np.ndarray)
    assert (image == np.concatenate(given, axis=-1)).all()
    images = np.zeros((2, *image.shape), image.dtype)
    put(image, images, 1)
    assert (images[1] == image).all()


@pytest.mark.parametrize("other", [arrays(1, shape=(5, 6)), arrays(1, dtype=np.uint16)])
def test_images_that_do_not_fit_together_are_refused(other):
    with pytest.raises(IchError, match=r"^a has images that do not fit .*uint8 of \(5, 7, 1\), .* give target_size="):
        stack(arrays(1) + other, "a")


def test_a_place_of_another_shape_is_refused_and_not_left_empty():
    with pytest.raises(ValueError, match=r"an image of \(5, 7, 2\) does not fit into uint8 of \(5, 6, 2\)"):
        put(stack(arrays(1, 1), "a"), np.zeros((2, 5, 6, 2), np.uint8), 0)
