"""A picture of samples: as they are in the files, and as the network sees them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def draw(samples: Sequence[tuple[Iterable[str], np.ndarray, np.ndarray]]) -> Figure:
    """Draw samples side by side: the images in the files above, what the network sees below.

    Args:
        samples: of each the lines of its title, its stored image and the one that the network sees, of any dtype, shape
            (height, width[, channels]), of volumes with more dimensions before.
    """
    figure = Figure(figsize=(2.2 * len(samples), 5.6), layout="constrained")
    for column, (title, *images) in enumerate(samples):
        above, below = (figure.add_subplot(2, len(samples), row * len(samples) + column + 1) for row in (0, 1))
        for axes, image in zip((above, below), images, strict=True):
            axes.imshow(**_drawable(image))
            axes.axis("off")
        # A line holds some 24 letters at this width, and six lines all labels of a slice.
        lines = [line for text in title for line in wrap(text, 24, max_lines=6)]
        above.set_title("\n".join(lines), fontsize=8, parse_math=False)
    return figure


def label_text(
    label: np.ndarray | None, names: Sequence[str] | None = None, classes: Mapping[Hashable, int] | None = None
) -> str:
    """Return a label in words: the names of what is 1, if labels have names and are 0 or 1; else the numbers.

    Args:
        names: of the columns.
        classes: the index of each class by its name.
    """
    if label is None:
        return ""
    label = np.atleast_1d(label)
    if label.ndim > 1:
        return f"labels of {label.shape}"
    if names is not None and np.isin(label, (0, 1)).all():
        return ", ".join(name for name, value in zip(names, label, strict=True) if value) or "none"
    if classes is not None and len(label) == 1:
        return str(list(classes)[int(label[0])])
    return " ".join(f"{value:g}" for value in label.ravel())


def _drawable(image: np.ndarray) -> dict[str, Any]:
    """Return what imshow takes: an image of three or four bytes a pixel in color, else its middle channel in gray."""
    while image.ndim > 3:  # of a volume, the middle
        image = image[image.shape[0] // 2]
    if image.dtype == np.uint8 and image.shape[-1] in (3, 4):
        return {"X": image}
    limits = {"vmin": 0, "vmax": 255} if image.dtype == np.uint8 else {}
    return {"X": image[..., image.shape[-1] // 2], "cmap": "gray"} | limits
