import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.dicom.windows import PRESETS, Window, apply_window, apply_windows, preset
from ich.errors import IchError

ALL_HU = np.arange(-32768, 32768).astype(np.int16)

windows = st.builds(Window, center=st.floats(-2000, 4000), width=st.floats(1e-3, 1e5))


def gray(hu, center, width):
    """The contract's formula, as a person would write it for one value."""
    share = (float(hu) - (center - width / 2)) / width
    return round(min(max(share, 0.0), 1.0) * 255)  # Python rounds halves to even, as NumPy does


@given(window=windows, hu=st.lists(st.integers(-32768, 32767), min_size=1, max_size=20))
def test_agrees_with_the_formula_value_by_value(window, hu):
    expected = [gray(h, window.center, window.width) for h in hu]
    assert apply_window(np.array(hu, np.int16), window).tolist() == expected


@pytest.mark.parametrize("name", PRESETS)
def test_preset_maps_its_ends_and_never_falls(name):
    window = preset(name)
    image = apply_window(ALL_HU, window)
    assert image.dtype == np.uint8
    assert (np.diff(image.astype(int)) >= 0).all()
    low, high = int(window.center - window.width / 2), int(window.center + window.width / 2)
    assert not apply_window(np.arange(-32768, low + 1).astype(np.int16), window).any()
    assert (apply_window(np.arange(high, 32768).astype(np.int16), window) == 255).all()
    assert apply_window(np.int16([window.center]), window) in (127, 128)


def test_presets_are_those_of_the_competition():
    assert {name: (w.center, w.width) for name, w in PRESETS.items()} == {
        "brain": (40, 80),
        "subdural": (80, 200),
        "stroke": (40, 40),
        "soft_tissue": (40, 380),
        "bone": (600, 2800),
    }


def test_channels_are_the_windows_in_their_order():
    hu = ALL_HU[32768:][: 16 * 24].reshape(16, 24)
    order = [PRESETS["bone"], PRESETS["brain"], PRESETS["subdural"]]
    image = apply_windows(hu, order)
    assert image.shape == (16, 24, 3)
    for channel, window in enumerate(order):
        np.testing.assert_array_equal(image[..., channel], apply_window(hu, window))


@pytest.mark.parametrize(
    "view",
    [lambda a: a[:, ::-1], lambda a: a[::2, ::3], lambda a: a.T, np.asfortranarray],
    ids=["reversed", "steps", "T", "F"],
)
def test_layout_in_memory_does_not_matter(view):
    hu = ALL_HU[32700:33100].reshape(20, 20)
    window = PRESETS["brain"]
    np.testing.assert_array_equal(apply_window(view(hu), window), view(apply_window(hu, window)))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float64, ">i2"])
def test_other_types_are_refused(dtype):
    with pytest.raises(IchError, match=r"int16, got .*ich\.dicom\.read"):
        apply_window(np.zeros((2, 2), dtype), PRESETS["brain"])


def test_unknown_preset_lists_those_that_exist():
    with pytest.raises(IchError, match=r"'brian'.*brain, subdural, stroke, soft_tissue, bone"):
        preset("brian")


@pytest.mark.parametrize(
    ("center", "width"), [(40, 0), (40, -1), (float("nan"), 80), (40, float("inf")), (float("inf"), 80)]
)
def test_window_that_cannot_be_is_refused(center, width):
    with pytest.raises(IchError, match="width above 0, got"):
        Window(center=center, width=width)
