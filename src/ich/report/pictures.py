"""Contact sheets of converted slices, and scans as montages."""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import pandas as pd

from ich.competition.labels import LABELS
from ich.dicom import reader
from ich.dicom.windows import PRESETS, apply_window, name_of
from ich.errors import IchError, one_line
from ich.files import replacing
from ich.images import reading
from ich.images.render import STATUSES, Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_LINE = 13  # pixels of a line of text
_GAP = 6  # pixels between pictures
_NARROW = 760  # pixels that a sheet has at least, for its text
_HU_WINDOWS = ("brain", "subdural", "bone")  # of images that hold HU


class Section(NamedTuple):
    """A part of a sheet.

    Args:
        heading: a line above the tiles.
        tiles: gray pictures of one size, uint8, shape (height, width).
        captions: text above each tile; lines are split at newlines.
        marked: whether each tile's caption is highlighted.
    """

    heading: str
    tiles: Sequence[np.ndarray]
    captions: Sequence[str]
    marked: Sequence[bool]


def windows_of(folder: Path, path: str, settings: Settings) -> dict[str, np.ndarray]:
    """Read a converted slice in each window.

    Args:
        folder: the images' folder.
        path: the slice's first PNG in it, as in the slice table.
        settings: the folder's settings.

    Returns:
        Window's name -> uint8, shape (height, width). Images of HU are windowed here, by three presets.

    Raises:
        IchError: an image cannot be read, or holds other channels than the settings say.
    """
    if settings.files == "hu":
        hu = (reading.read(folder / path)[..., 0].astype(np.int32) + reader.AIR).astype(np.int16)
        return {name: apply_window(hu, PRESETS[name]) for name in _HU_WINDOWS}
    first = settings.suffixes[0]
    parts = [reading.read(folder / f"{path.removesuffix(first)}{suffix}") for suffix in settings.suffixes]
    channels = [channel for part in parts for channel in np.moveaxis(part, -1, 0)]
    if len(channels) != len(settings.windows):
        raise IchError(
            f"{folder / path} has {len(channels)} channels, its folder's settings {len(settings.windows)} windows;"
            " convert the slices again"
        )
    return {name_of(window): channel for window, channel in zip(settings.windows, channels, strict=True)}


def window_names(settings: Settings) -> list[str]:
    """Return the names of the windows that `windows_of` reads."""
    return list(_HU_WINDOWS) if settings.files == "hu" else [name_of(window) for window in settings.windows]


def contact_sheet(folder: Path, table: pd.DataFrame, settings: Settings, n: int = 24, limit: int = 300) -> "Figure":
    """Draw random slices and all repaired ones, and list those that could not be read.

    Args:
        folder, settings: as for `windows_of`.
        table: the folder's slice table.
        n: number of random slices, the same each time.
        limit: largest number of repaired slices drawn, and of lines in the list; the headings have the totals.

    Raises:
        IchError: as `windows_of`.
    """
    ok = table[table["status"] == "ok"]
    failed = table[table["status"] != "ok"]
    repaired = ok[ok["repaired"] != ""]
    sample = ok.sample(min(n, len(ok)), random_state=0)
    side = 128
    names = window_names(settings)
    sections = []
    for rows, heading in (
        (sample, f"{len(sample)} of {len(ok):,} slices, at random; windows: {', '.join(names)}"),
        (repaired.head(limit), f"repaired on reading: {_count(repaired, limit)}"),
    ):
        tiles = []
        for path in rows["path"]:
            windows = windows_of(folder, path, settings)
            tiles.append(np.concatenate([_fitted(picture, side) for picture in windows.values()], axis=1))
        captions = [f"{row.SOPInstanceUID} {row.repaired}" for row in rows.itertuples()]
        sections.append(Section(heading, tiles, captions, [False] * len(tiles)))
    footer = [f"without an image: {_count(failed, limit)}"]
    footer += [
        f"{row.SOPInstanceUID}  {row.status} ({STATUSES[row.status]})" for row in failed.head(limit).itertuples()
    ]
    return sheet(sections, columns=max(1, 12 // len(names)), footer=footer)


def find_scans(table: pd.DataFrame, id: str) -> pd.DataFrame:
    """Return the rows of a study's series, each in scan order.

    Args:
        table: the slice table.
        id: a StudyInstanceUID, a SeriesInstanceUID, or the SOPInstanceUID of a slice of the series.

    Raises:
        IchError: the table has no such id.
    """
    for column in ("StudyInstanceUID", "SeriesInstanceUID"):
        rows = table[table[column] == id]
        if len(rows):
            return rows.sort_values(["SeriesInstanceUID", "order"])
    series = table.loc[table["SOPInstanceUID"] == id, "SeriesInstanceUID"].dropna()
    if len(series) == 0:
        raise IchError(
            f"the slice table has no study, series or slice {id}; its column StudyInstanceUID lists the studies,"
            f" such as {next(iter(table['StudyInstanceUID'].dropna()), 'none')}"
        )
    return find_scans(table, series.iloc[0])


def montage(
    folder: Path,
    scans: pd.DataFrame,
    settings: Settings,
    window: str | None = None,
    labels: pd.DataFrame | None = None,
    predictions: pd.DataFrame | None = None,
) -> "Figure":
    """Draw a study's slices in scan order, with labels and predictions above each; one section for each series.

    Args:
        folder, settings: as for `windows_of`.
        scans: rows of the slice table (`find_scans`). A slice without an image is a black square.
        window: name of a window; None takes the first.
        labels: a label frame; slices that it lacks get no labels.
        predictions: probabilities, indexed likewise; those of 0.1 and more are written, and that of any.

    Raises:
        IchError: the images have no such window, or as `windows_of`.
    """
    names = window_names(settings)
    if window is not None and window not in names:
        raise IchError(f"the images of {folder} have the windows {', '.join(names)}, not {window!r}")
    side = 192
    sections = []
    for series, rows in scans.groupby("SeriesInstanceUID", dropna=False):
        tiles, captions, marked = [], [], []
        for row in rows.itertuples():
            id = row.SOPInstanceUID
            picture = np.zeros((side, side), np.uint8)
            position = "no position in the scan" if pd.isna(row.order) else f"{row.order:.0f}  z {row.z:.1f} mm"
            if row.status == "ok":
                windows = windows_of(folder, row.path, settings)
                picture = _fitted(windows[window or next(iter(windows))], side)
            else:
                position += f"  no image: {row.status}"
            lines, positive = [position], []
            if labels is not None and id in labels.index:
                positive = [label for label in LABELS if labels.at[id, label]]
                lines.append("has " + (" ".join(_SHORT[label] for label in positive) or "none"))
            if predictions is not None and id in predictions.index:
                p = predictions.loc[id]
                probable = [label for label in LABELS if p[label] >= 0.1 or label == "any"]
                lines += wrap(" ".join(f"{_SHORT[label]}\u00a0{p[label]:.2f}" for label in probable), 34)
            tiles.append(picture)
            captions.append("\n".join(lines))
            marked.append(bool(positive))
        first = rows.iloc[0]
        heading = f"study {first['StudyInstanceUID']}, series {series}, {len(rows)} slices, {first['split']}"
        sections.append(Section(heading, tiles, captions, marked))
    footer = ["; ".join(f"{short} {label}" for label, short in _SHORT.items() if short != label)]
    footer += [] if predictions is None else ["numbers: predicted probabilities of any, and of other labels from 0.1"]
    return sheet(sections, columns=6, footer=footer)


_SHORT = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "any"), strict=True))


def sheet(sections: Sequence[Section], columns: int, footer: Sequence[str] = ()) -> "Figure":
    """Lay out pictures in rows under captions, pixel by pixel: at its own dpi nothing is scaled."""
    from matplotlib.figure import Figure  # imported here: a conversion starts without it

    tile_width = max((tile.shape[1] for section in sections for tile in section.tiles), default=0)
    width = max(columns * (tile_width + _GAP) + _GAP, _NARROW)
    blocks, texts, top = [], [], _GAP
    for section in sections:
        texts.append((_GAP, top, section.heading, "white", 10))
        top += 2 * _LINE
        for first in range(0, len(section.tiles), columns):
            row = slice(first, first + columns)
            captions = section.captions[row]
            left = [_GAP + place * (tile_width + _GAP) for place in range(len(captions))]
            for x, caption, mark in zip(left, captions, section.marked[row], strict=True):
                texts.append((x, top, caption, "#FFB000" if mark else "#CCCCCC", 7))
            top += _LINE * max(caption.count("\n") + 1 for caption in captions)
            blocks += [(top, x, tile) for x, tile in zip(left, section.tiles[row], strict=True)]
            top += max(tile.shape[0] for tile in section.tiles[row]) + _GAP
        top += _LINE
    for line in footer:
        texts.append((_GAP, top, line, "white", 8))
        top += _LINE
    canvas = np.full((top + _GAP, width), 24, np.uint8)
    for y, x, tile in blocks:
        canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    figure = Figure(figsize=(width / _DPI, len(canvas) / _DPI), dpi=_DPI)
    figure.figimage(cv2.cvtColor(canvas, cv2.COLOR_GRAY2RGB))  # a gray colormap would round some values
    for x, y, text, color, size in texts:
        place = (x / width, 1 - y / len(canvas))
        figure.text(*place, text, color=color, fontsize=size, va="top", parse_math=False, linespacing=1.2)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the path's suffix.

    Raises:
        IchError: the system refuses.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary)


def png(figure: "Figure") -> bytes:
    """Return the figure as a PNG of its own size, for notebooks.

    They show no figure without axes, such as a sheet, and crop others, so that a figure under a slider would jump.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def save_if_possible(draw: Callable[[], "Figure"], path: Path) -> bool:
    """Draw and write a picture of finished work; a failure is a warning on stderr, as the work does not need it.

    Returns:
        Whether the picture was written.
    """
    try:
        save(draw(), path)
    except Exception as error:  # noqa: BLE001 - no error of a picture may cost the work
        print(f"warning: {path} was not drawn ({one_line(error, named=True)})", file=sys.stderr)
        return False
    return True


def _count(rows: pd.DataFrame, limit: int) -> str:
    return f"{len(rows):,}" if len(rows) <= limit else f"{limit:,} of {len(rows):,}"


def _fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """Scale a picture into a black square, its proportions kept."""
    scale = side / max(picture.shape)
    height, width = (max(1, round(length * scale)) for length in picture.shape)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = cv2.resize(picture, (width, height), interpolation=interpolation)
    return square
