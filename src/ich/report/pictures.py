"""Slices as pictures: contact sheets of converted images, and a scan as a montage."""

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
        heading: a line above.
        tiles: grey pictures of one size, uint8, shape (height, width).
        captions: of each tile, the text above it; lines are split at newlines.
        marked: of each tile, whether its caption is in another colour.
    """

    heading: str
    tiles: Sequence[np.ndarray]
    captions: Sequence[str]
    marked: Sequence[bool]


def windows_of(folder: Path, path: str, settings: Settings) -> dict[str, np.ndarray]:
    """What a converted slice looks like in each window.

    Args:
        folder: of the images.
        path: of the slice's first PNG in it, as the slice table has it.
        settings: of the folder's images.

    Returns:
        Window's name -> uint8, shape (height, width). Images of HU are windowed here, in three of the presets.

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
    """The windows that `windows_of` gives."""
    return list(_HU_WINDOWS) if settings.files == "hu" else [name_of(window) for window in settings.windows]


def contact_sheet(folder: Path, table: pd.DataFrame, settings: Settings, n: int = 24, most: int = 300) -> "Figure":
    """Random slices, all repaired ones, and a list of those that could not be read.

    Args:
        folder, settings: as of `windows_of`.
        table: the folder's slice table.
        n: how many random slices; the same ones each time.
        most: repaired slices that are shown, and lines of the list; the heading says how many there are in all.

    Raises:
        IchError: as `windows_of`.
    """
    ok = table[table["status"] == "ok"]
    lost = table[table["status"] != "ok"]
    repaired = ok[ok["repaired"] != ""]
    drawn = ok.sample(min(n, len(ok)), random_state=0)
    side = 128
    names = window_names(settings)
    sections = []
    for rows, heading in (
        (drawn, f"{len(drawn)} of {len(ok):,} slices, at random; windows: {', '.join(names)}"),
        (repaired.head(most), f"repaired on reading: {_shown(repaired, most)}"),
    ):
        tiles = []
        for path in rows["path"]:
            windows = windows_of(folder, path, settings)
            tiles.append(np.concatenate([_fitted(picture, side) for picture in windows.values()], axis=1))
        captions = [f"{row.SOPInstanceUID} {row.repaired}" for row in rows.itertuples()]
        sections.append(Section(heading, tiles, captions, [False] * len(tiles)))
    footer = [f"without an image: {_shown(lost, most)}"]
    footer += [f"{row.SOPInstanceUID}  {row.status} ({STATUSES[row.status]})" for row in lost.head(most).itertuples()]
    return sheet(sections, columns=max(1, 12 // len(names)), footer=footer)


def find_scans(table: pd.DataFrame, id: str) -> pd.DataFrame:
    """The rows of a study's scans, each in its order.

    Args:
        table: the slice table.
        id: a StudyInstanceUID, a SeriesInstanceUID, or the SOPInstanceUID of a slice of the series that is meant.

    Raises:
        IchError: the table has none of that name.
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
    """A study's slices in scan order, with labels and predictions above each; a section a series.

    Args:
        folder, settings: as of `windows_of`.
        scans: rows of the slice table, as `find_scans` gives them. A slice without an image is a black square.
        window: its name; None takes the first.
        labels: a label frame; slices that it lacks get no labels.
        predictions: probabilities, indexed likewise; of each slice those of 0.1 and more are written, and that of any.

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
            place = "no place in the scan" if pd.isna(row.order) else f"{row.order:.0f}  z {row.z:.1f} mm"
            if row.status == "ok":
                windows = windows_of(folder, row.path, settings)
                picture = _fitted(windows[window or next(iter(windows))], side)
            else:
                place += f"  no image: {row.status}"
            known = labels is not None and id in labels.index
            true = [label for label in LABELS if known and labels.at[id, label]]
            said = predictions.loc[id] if predictions is not None and id in predictions.index else {}
            lines = [place]
            if known:
                lines.append("has " + (" ".join(_SHORT[label] for label in true) or "none"))
            shown = [label for label in LABELS if label in said and (said[label] >= 0.1 or label == "any")]
            lines += wrap(" ".join(f"{_SHORT[label]}\u00a0{said[label]:.2f}" for label in shown), 34)
            tiles.append(picture)
            captions.append("\n".join(lines))
            marked.append(bool(true))
        first = rows.iloc[0]
        heading = f"study {first['StudyInstanceUID']}, series {series}, {len(rows)} slices, {first['split']}"
        sections.append(Section(heading, tiles, captions, marked))
    footer = ["; ".join(f"{short} {label}" for label, short in _SHORT.items() if short != label)]
    footer += [] if predictions is None else ["numbers: predicted probabilities, of any and of what has 0.1 or more"]
    return sheet(sections, columns=6, footer=footer)


_SHORT = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "any"), strict=True))


def sheet(sections: Sequence[Section], columns: int, footer: Sequence[str] = ()) -> "Figure":
    """Pictures in rows under captions, pixel by pixel: saved at its own dpi, nothing is scaled."""
    from matplotlib.figure import Figure  # only here: it must not keep a conversion from starting

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
    figure.figimage(cv2.cvtColor(canvas, cv2.COLOR_GRAY2RGB))  # a map of greys would round some of them
    for x, y, text, colour, size in texts:
        place = (x / width, 1 - y / len(canvas))
        figure.text(*place, text, color=colour, fontsize=size, va="top", parse_math=False, linespacing=1.2)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Write a figure in the format of the path's suffix.

    Raises:
        IchError: the system refuses.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary)


def png(figure: "Figure") -> bytes:
    """The figure as a PNG in its own size. For notebooks: they show no figure without axes, as a sheet is, and cut the
    edges of others, so that a picture which a slider changes would jump."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def save_if_possible(draw: Callable[[], "Figure"], path: Path) -> bool:
    """Draw and write a picture of work that is done; if that fails, say why on stderr, as the work stands without it.

    Returns:
        Whether the picture was written.
    """
    try:
        save(draw(), path)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the work
        print(f"warning: {path} was not drawn ({one_line(error, named=True)})", file=sys.stderr)
        return False
    return True


def _shown(rows: pd.DataFrame, most: int) -> str:
    return f"{len(rows):,}" if len(rows) <= most else f"{most:,} of {len(rows):,}"


def _fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """Scaled into a black square, its proportions kept."""
    scale = side / max(picture.shape)
    height, width = (max(1, round(length * scale)) for length in picture.shape)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = cv2.resize(picture, (width, height), interpolation=how)
    return square
