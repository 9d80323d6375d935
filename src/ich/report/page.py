"""Parts of a page: pictures, tables, absent parts."""

import base64
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure

from ich.errors import IchError
from ich.images import png
from ich.report import figures

_SIDE = 256  # pixels of a slice in a page, at most


class Picture(NamedTuple):
    """A picture embedded in the page: a data URI, its alternative text, and a caption below it."""

    source: str
    alt: str
    caption: str = ""


class Table(NamedTuple):
    """Header and rows of text; the first cell of a row is its header."""

    head: list[str]
    rows: list[list[str]]


class Absent(NamedTuple):
    """The reason why a part of the page is missing."""

    absent: str


def or_absent(make: Callable, *arguments: Any) -> Any:
    """Return what `make` returns, or Absent with the sentence of its IchError."""
    try:
        return make(*arguments)
    except IchError as error:
        return Absent(str(error))


def svg_picture(figure: Figure, alt: str) -> Picture:
    """Embed a chart as SVG."""
    return Picture("data:image/svg+xml;base64," + base64.b64encode(figures.svg(figure)).decode(), alt)


def png_picture(image: np.ndarray, alt: str, caption: str) -> Picture:
    """Embed a slice, uint8, (height, width[, 3]), as a PNG of at most 256 pixels a side."""
    scale = _SIDE / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = png.encode(image if image.ndim == 3 else image[..., None])
    return Picture("data:image/png;base64," + base64.b64encode(data).decode(), alt, caption)
