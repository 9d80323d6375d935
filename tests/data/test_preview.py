import numpy as np
import pytest

from ich.data.preview import draw, label_text


@pytest.mark.parametrize(
    ("label", "names", "classes", "text"),
    [
        (None, None, None, ""),
        (np.array([1, 0, 1]), ["a", "b", "c"], None, "a, c"),
        (np.array([0, 0]), ["a", "b"], None, "none"),
        (np.array([0.5, 1]), ["a", "b"], None, "0.5 1"),
        (np.float32(1), None, {"cat": 0, "dog": 1}, "dog"),
        (np.float32(0.25), None, None, "0.25"),
        (np.zeros((3, 4)), None, None, "labels of (3, 4)"),
    ],
)
def test_a_label_in_words(label, names, classes, text):
    assert label_text(label, names, classes) == text


def test_each_sample_is_drawn_as_stored_and_as_seen_under_its_title():
    stored, seen = np.zeros((4, 4, 1), np.uint8), np.ones((2, 2, 9), np.float32)
    figure = draw([(["ID_1", "a, b"], stored, seen), (["long " * 9], seen, stored)])
    assert [axes.get_title() for axes in figure.axes][::2][0] == "ID_1\na, b"
    assert max(map(len, figure.axes[2].get_title().split("\n"))) <= 24
    assert [axes.images[0].get_array().shape for axes in figure.axes] == [(4, 4), (2, 2), (2, 2), (4, 4)]
