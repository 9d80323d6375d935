"""A page of a scan that opens from disk alone: its slices to move through, windows, and probabilities along it.

NiiVue, as ipyniivue's wheel carries it, is a Jupyter widget of 5 MB, which each page would hold beside 5 MB of slices,
and it draws evenly spaced slices only; the page's own script needs neither.
"""

import base64
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ich.competition.labels import ANY, LABELS
from ich.dicom.windows import PRESETS, apply_window
from ich.errors import IchError
from ich.images import png
from ich.report import html
from ich.report.colors import COLORS

NOTICE = (
    "Research use only, not a medical device: these are a model's numbers, not a finding. No decision about a patient"
    " may rest on them."
)

MARKER = '<meta name="generator" content="ich scan page">'
"""What tells a scan's page from other files, in its first 4,096 bytes (`ich.files.check_own`)."""

# HU from and to, and the step in between: every whole unit where soft tissue, blood and fat are, coarser in air, bone
# and metal. -128 and 128 get the codes 256 and 512, so that the upper byte of soft tissue is constant.
_STEPS = ((-32768, -1024, 178), (-1024, -150, 16), (-150, 250, 1), (250, 3072, 8), (3072, 32769, 64))
LEVELS = np.concatenate([np.arange(*piece) for piece in _STEPS])
"""The HU that each code of a slice's pixels stands for, int64, rising."""

_EXACT = (
    "whole units from −150 to 250; within 8 HU down to −1024 and 4 HU up to 3071; beyond, within 89 HU below and 32 HU"
    " above"
)
_STRONGEST = 10  # slices, or slabs, listed for a label
_BARS = (50, 20, 10)  # mm, lengths of the scale bar
_BAR = 0.4  # of the picture's width, which the bar has at most
_COLUMNS = (ANY, *range(ANY))  # labels of the index: on a phone, the first are seen
_THUMBNAIL = 128  # pixels of its longer side


@dataclass(frozen=True)
class ScanView:
    """What a page shows of a scan of n slices.

    Args:
        title: of the page.
        facts: name and value of what else is to be known (UIDs, thickness, notes).
        ids: SOPInstanceUID of each slice, in scan order.
        hu: int16, shape (n, rows, columns), Hounsfield units.
        spacing: mm between rows and between columns; None if unknown: pixels are drawn square.
        z: float, shape (n,), mm along the slice normal, NaN if unknown.
        probabilities: float, shape (n, 6), in the order of LABELS; NaN where a slice has none.
        labels: 0 or 1, shape (n, 6), the truth; None if unknown.
        heat: uint8, shape (n, 6, height, width), Grad-CAM over the whole slice, at any resolution; None shows none.
        heat_note: whose Grad-CAM it is, and how it is scaled.
        edges: the patient's sides at the left, right, top and bottom edges of the slices, as ("R", "L", "A", "P"); None
            if unknown, which the page says.
        groups: int, shape (n,), the slab that each slice was read in, never falling; None if each was read alone.

    Raises:
        IchError: shapes or dtypes are others.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    ids: Sequence[str]
    hu: np.ndarray
    spacing: tuple[float, float] | None
    z: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray | None = None
    heat: np.ndarray | None = None
    heat_note: str = ""
    edges: tuple[str, str, str, str] | None = None
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.hu.dtype != np.int16 or self.hu.ndim != 3 or len(self.hu) != n or 0 in self.hu.shape:
            raise IchError(
                f"a page of {n} slices needs HU as int16 of shape ({n}, rows, columns), got {self.hu.dtype} of"
                f" {self.hu.shape}"
            )
        for name, array, shape in (
            ("z", self.z, (n,)),
            ("probabilities", self.probabilities, (n, len(LABELS))),
            ("labels", self.labels, (n, len(LABELS))),
            ("groups", self.groups, (n,)),
        ):
            if array is not None and array.shape != shape:
                raise IchError(f"a page of {n} slices needs {name} of shape {shape}, got {array.shape}")
        if self.groups is not None and (np.diff(self.groups) < 0).any():
            raise IchError("the slabs of slices in scan order have falling numbers, expected rising ones")
        heat = self.heat
        if heat is not None and (
            heat.dtype != np.uint8 or heat.ndim != 4 or heat.shape[:2] != (n, len(LABELS)) or 0 in heat.shape
        ):
            raise IchError(
                f"a page of {n} slices needs Grad-CAM as uint8 of shape ({n}, {len(LABELS)}, height, width), got"
                f" {heat.dtype} of {heat.shape}"
            )
        if self.spacing is not None and not all(math.isfinite(mm) and mm > 0 for mm in self.spacing):
            raise IchError(f"the spacing of pixels is {self.spacing}, expected two lengths in mm, or None if unknown")


@dataclass(frozen=True)
class IndexRow:
    """A scan in the index.

    Args:
        page: its page's address, relative to the index.
        title: what it is called there.
        study: StudyInstanceUID.
        slices: their number.
        probabilities: of each label the highest in the scan, NaN if there is none; in the order of LABELS.
        thumbnail: PNG of its strongest slice, as `write_scan_page` returns it.
        notes: what else is to be known.
    """

    page: str
    title: str
    study: str
    slices: int
    probabilities: Sequence[float]
    thumbnail: bytes
    notes: Sequence[str]


def write_scan_page(view: ScanView, path: Path, index: str | None = None) -> bytes:
    """Write a scan as one HTML page that opens from disk and sends no request.

    Args:
        path: the file to write.
        index: address of the page that lists the scans, relative to this one; None links to none.

    Returns:
        A PNG of the slice on which the page opens (the strongest, by the highest probability of any; of a slab the
        middle one) in the brain window, at most 128 pixels a side.

    Raises:
        IchError: the system refuses to write.
    """
    n, rows, columns = view.hu.shape
    height, width = view.spacing or (1.0, 1.0)
    slabs = _slabs(np.arange(n) if view.groups is None else view.groups)
    middles = slabs.sum(axis=1) // 2
    strongest = [middles[_strongest(column)].tolist() for column in view.probabilities[middles].T]
    start = next((order[0] for order in reversed(strongest) if order), n // 2)
    context = {
        "title": view.title,
        "facts": view.facts if view.spacing else [*view.facts, ("pixel spacing", "unknown: pixels are drawn square")],
        "notice": NOTICE,
        "exactness": _EXACT,
        "index": index,
        "n": n,
        "rows": rows,
        "columns": columns,
        "aspect": f"{columns * width:.6g} / {rows * height:.6g}",
        "edges": view.edges and dict(zip(("left", "right", "top", "bottom"), view.edges, strict=True)),
        "bar": view.spacing and _bar(columns * width),
        "heat": view.heat is not None,
        "heat_note": view.heat_note,
        "truth": view.labels is not None,
        "slabs": len(slabs) < n,
        "slices": _slices(view),
        "data": {
            "ids": list(view.ids),
            "z": _numbers(view.z, 3),
            "labels": LABELS,
            "colors": list(COLORS.values()),
            "probabilities": [_numbers(row, 5) for row in view.probabilities],
            "truth": None if view.labels is None else view.labels.astype(int).tolist(),
            "strongest": [order[:_STRONGEST] for order in strongest],
            "slabs": np.repeat(slabs, slabs[:, 1] - slabs[:, 0] + 1, axis=0).tolist(),
            "start": start,
            "levels": LEVELS.tolist(),
            "presets": [
                {"name": name.replace("_", " "), "center": window.center, "width": window.width}
                for name, window in PRESETS.items()
            ],
        },
    }
    html.write(path, "scan.html", context, "scan.js")
    return _thumbnail(view.hu[start], width / height)


def write_index(
    rows: Iterable[IndexRow],
    skipped: Sequence[tuple[str, str, str]],
    path: Path,
    notice: str = NOTICE,
    title: str = "Scans",
) -> None:
    """Write the list of scans, sortable by each label, and of the series that were not read.

    Args:
        rows: the scans; the highest probability of any comes first.
        skipped: series, reason, and what was found.
        path: the file to write.
        notice: above the table.
        title: of the page.

    Raises:
        IchError: the system refuses to write.
    """
    rows = sorted(rows, key=lambda row: (math.isnan(row.probabilities[ANY]), -row.probabilities[ANY], row.title))
    context = {
        "title": title,
        "notice": notice,
        "sorted_by": LABELS[ANY],
        "heads": ["scan", *(LABELS[k] for k in _COLUMNS), "slices"],
        "rows": [_index_row(row) for row in rows],
        "skipped": skipped,
    }
    html.write(path, "scan_index.html", context, "scan_index.js")


def encode(hu: np.ndarray) -> bytes:
    """A gray PNG of a slice: its pixels' codes in `LEVELS`, the upper bytes above the lower ones.

    Args:
        hu: int16, shape (rows, columns).

    Returns:
        A PNG of shape (2 rows, columns): of each pixel the code of the nearest level, of two the higher one.
    """
    codes = np.take(_CODES, hu.view(np.uint16))
    planes = np.empty((2, *codes.shape), np.uint8)
    np.right_shift(codes, 8, out=planes[0], casting="unsafe")
    np.bitwise_and(codes, 255, out=planes[1], casting="unsafe")
    return png.encode(planes.reshape(-1, codes.shape[1], 1))


def _code_table() -> np.ndarray:
    """The code of each int16, at the index of its bits as uint16."""
    hu = np.arange(65536, dtype=np.uint16).view(np.int16)
    return np.searchsorted((LEVELS[1:] + LEVELS[:-1] + 1) // 2, hu, side="right").astype(np.uint16)


_CODES = _code_table()


def _slices(view: ScanView) -> Iterator[dict[str, str]]:
    for k, hu in enumerate(view.hu):
        packed = {"hu": _base64(encode(np.ascontiguousarray(hu)))}
        if view.heat is not None:
            packed["heat"] = _base64(png.encode(view.heat[k].reshape(-1, view.heat.shape[3], 1)))
        yield packed


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bar(width: float) -> tuple[int, str] | None:
    """The scale bar of a picture of a width in mm: its length in mm, and in % of the width; None if none fits."""
    return next(((length, f"{100 * length / width:.4g}") for length in _BARS if length <= _BAR * width), None)


def _numbers(values: np.ndarray, digits: int) -> list[float | None]:
    """Rounded for JSON, which has no NaN."""
    return [round(float(value), digits) if math.isfinite(value) else None for value in values]


def _slabs(groups: np.ndarray) -> np.ndarray:
    """First and last slice of each slab, int, shape (slabs, 2)."""
    first = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
    return np.stack([first, np.append(first[1:], len(groups)) - 1], axis=1)


def _strongest(probabilities: np.ndarray) -> list[int]:
    """Slices from the highest probability down, of equal ones the first first; without those that have none."""
    order = np.argsort(-probabilities, kind="stable")
    return [int(place) for place in order if math.isfinite(probabilities[place])]


def _thumbnail(hu: np.ndarray, stretch: float) -> bytes:
    """A slice in the brain window; `stretch` is a pixel's width over its height."""
    rows, columns = hu.shape
    scale = _THUMBNAIL / max(rows, columns * stretch)
    size = (max(1, round(columns * stretch * scale)), max(1, round(rows * scale)))
    gray = apply_window(np.ascontiguousarray(hu), PRESETS["brain"])
    return png.encode(cv2.resize(gray, size, interpolation=cv2.INTER_AREA)[..., None])


def _index_row(row: IndexRow) -> dict[str, Any]:
    return {
        "page": row.page,
        "title": row.title,
        "study": row.study,
        "slices": row.slices,
        "probabilities": [
            {"key": "", "text": "none"} if math.isnan(p) else {"key": f"{p:.6f}", "text": f"{p:.3f}"}
            for p in (row.probabilities[k] for k in _COLUMNS)
        ],
        "picture": f"data:image/png;base64,{_base64(row.thumbnail)}",
        "notes": "; ".join(row.notes),
    }
