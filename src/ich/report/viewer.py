"""A slice in its windows and the predictions along its scan, for a notebook's slider."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.images.render import Settings
from ich.report import pictures
from ich.report.colors import COLORS

_HEIGHT, _WINDOW, _CURVES = 3.4, 2.8, 5.6  # inches: of the figure; the widths of a window and of the curves


def slice_view(
    folder: Path,
    scan: pd.DataFrame,
    settings: Settings,
    place: int,
    labels: pd.DataFrame | None = None,
    predictions: pd.DataFrame | None = None,
) -> Figure:
    """Draw a slice in each window with its labels, and the probabilities along the scan with its position.

    All slices of a scan give figures of one size.

    Args:
        folder, settings: as for `ich.report.pictures.windows_of`.
        scan: rows of the slice table, one series in scan order (`ich.report.pictures.find_scans`).
        place: index of the slice in these rows, from 0.
        labels: a label frame; slices that it lacks get no labels.
        predictions: probabilities, indexed likewise; None draws no curves, and missing slices are gaps.

    Raises:
        IchError: the rows are of several series, or there is no such place; or as `ich.report.pictures.windows_of`. A
            slice that could not be read is a black square.
    """
    if scan["SeriesInstanceUID"].nunique() > 1:
        series = ", ".join(scan["SeriesInstanceUID"].unique())
        raise IchError(f"the rows belong to several series, {series}; give those of one")
    if not 0 <= place < len(scan):
        raise IchError(f"there is no place {place} in a scan of {len(scan)} slices, counted from 0")
    row = scan.iloc[place]
    windows = dict.fromkeys(pictures.window_names(settings), np.zeros((1, 1), np.uint8))
    if row["status"] == "ok":
        windows = pictures.windows_of(folder, row["path"], settings)
    widths = [_WINDOW] * len(windows) + ([] if predictions is None else [_CURVES])
    figure = Figure(figsize=(sum(widths), _HEIGHT), layout="constrained")
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    for axes, (name, picture) in zip(panels, windows.items(), strict=False):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize="medium")
        axes.axis("off")
    if predictions is not None:
        known = None if labels is None else labels.reindex(scan["SOPInstanceUID"])
        _draw_curves(panels[-1], predictions.reindex(scan["SOPInstanceUID"]), known, place)
    figure.suptitle(_title(row, place, len(scan), labels), fontsize="medium", parse_math=False)
    return figure


def _draw_curves(axes: Axes, predictions: pd.DataFrame, labels: pd.DataFrame | None, place: int) -> None:
    """Draw probabilities along the scan, with a bar below slices that have a bleed."""
    places = np.arange(len(predictions))
    for label, color in COLORS.items():
        axes.plot(places, predictions[label], color=color, marker=".", markersize=4, linewidth=1, label=label)
    if labels is not None:
        axes.bar(places, (labels["any"] == 1) * -0.05, width=1, color="gray", label="has a bleed")
    axes.axvline(place, color="black", linewidth=0.8, linestyle="--")
    axes.set(ylim=(-0.07, 1.02), xlim=(-0.8, len(places) - 0.2), xlabel="slice of the scan", ylabel="probability")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.grid(alpha=0.3)


def _title(row: pd.Series, place: int, count: int, labels: pd.DataFrame | None) -> str:
    id = row["SOPInstanceUID"]
    parts = [id, f"slice {place} of 0 to {count - 1}"]
    parts += [] if pd.isna(row["z"]) else [f"z {row['z']:.1f} mm"]
    if row["status"] != "ok":
        parts.append(f"no image: {row['status']}")
    if labels is not None and id in labels.index:
        parts.append("has " + (", ".join(label for label in LABELS if labels.at[id, label]) or "no bleed"))
    return "   ".join(parts)
