import numpy as np
import pytest

from ich.data.batch import Sample, make_batch
from ich.errors import IchError

LABELS = np.arange(12, dtype=np.float32).reshape(6, 2)


def samples(rows, shape=(3, 4, 1), dtype=np.uint8, label=lambda row: None):
    return (Sample(row, f"ID_{row}", np.full(shape, row, dtype), label(row)) for row in rows)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 1), (400, 400, 2), (2, 3, 4, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_images_are_stacked_where_tensorflow_takes_them_without_a_copy(shape, dtype):
    x = make_batch(samples([4, 0, 4], shape, dtype), 3)
    assert (x.shape, x.dtype) == ((3, *shape), dtype)
    assert x.ctypes.data % 64 == 0
    for image, row in zip(x, [4, 0, 4], strict=True):
        assert (image == row).all()


def test_labels_weights_and_extra_inputs_are_those_of_the_rows():
    weights, age = np.arange(6, dtype=np.float32), LABELS[:, 1:]
    x, y, w = make_batch(samples([5, 2]), 2, LABELS, weights, {"age": age})
    assert list(x) == ["image", "age"]
    assert x["image"][:, 0, 0, 0].tolist() == [5, 2]
    assert x["age"].tolist() == [[11], [5]]
    assert y.tolist() == [[10, 11], [4, 5]]
    assert w.tolist() == [5, 2]
    x, y = make_batch(samples([1]), 1, LABELS)
    assert (x.shape, y.tolist()) == ((1, 3, 4, 1), [[2, 3]])


def test_own_labels_are_stacked_or_refused_if_they_do_not_fit():
    _, y = make_batch(samples([3, 1], label=lambda row: np.full((2, 2), row)), 2, len)
    assert (y.shape, y[:, 0, 0].tolist()) == ((2, 2, 2), [3, 1])
    with pytest.raises(IchError, match=r"the labels of ID_1 have the shape \(1,\), those of ID_3 \(3,\); give all"):
        make_batch(samples([3, 1], label=np.ones), 2, len)
