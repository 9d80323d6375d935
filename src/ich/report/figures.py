"""Charts of predictions and folds as Matplotlib figures, and figures as SVG."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from ich.report.colors import COLORS
from ich.report.diagnostics import SPECIFICITY

_BINS = np.linspace(0, 1, 11)  # of probabilities, for calibration
_POINTS = 400  # of a curve: more are invisible


def svg(figure: Figure) -> bytes:
    """Return the figure as SVG; equal figures give equal bytes."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "ich"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def ranking_curves(truth: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Draw ROC and precision-recall curves, one color for each label; constant labels are left out.

    Args:
        truth: 0 or 1, shape (n, 6); NaN where it is unknown.
        probabilities: shape (n, 6).
    """
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    roc, precision = figure.subplots(1, 2)
    for (label, color), y, p in zip(COLORS.items(), truth.T, probabilities.T, strict=True):
        y, p = y[~np.isnan(y)], p[~np.isnan(y)]
        if len(np.unique(y)) < 2:
            continue
        false_alarms, sensitivity, _ = roc_curve(y, p)
        roc.plot(*_thinned(false_alarms, sensitivity), color=color, label=label)
        values, recall, _ = precision_recall_curve(y, p, drop_intermediate=True)
        precision.plot(*_thinned(recall, values), color=color, label=label)
        precision.axhline(y.mean(), color=color, linewidth=0.6, linestyle=":")
    roc.axline((0, 0), slope=1, color="gray", linewidth=0.6, linestyle=":")
    roc.axvline(1 - SPECIFICITY, color="gray", linewidth=0.6, linestyle="--")
    roc.set(title="ROC", xlabel="1 - specificity", ylabel="sensitivity")
    precision.set(title="precision and recall (dotted: prevalence)", xlabel="recall", ylabel="precision")
    for axes in (roc, precision):
        axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
        axes.grid(alpha=0.3)
    if roc.lines[0].get_label() in COLORS:  # else Matplotlib warns of an empty legend
        roc.legend(fontsize="small", loc="lower right")
    return figure


def calibration_curves(
    truth: np.ndarray, probabilities: np.ndarray, recalibrated: np.ndarray | None = None, unit: str = "slices"
) -> Figure:
    """Draw the share of positives against the mean probability, in tenths of the probability, and their counts.

    Args:
        truth, probabilities: as of `ranking_curves`.
        recalibrated: other probabilities of the same, drawn dashed; NaN where there are none.
        unit: what is counted.
    """
    figure = Figure(figsize=(10, 7.6), layout="constrained")
    panels = figure.subplots(4, 3, sharex=True, height_ratios=(3, 1, 3, 1))
    for k, (label, color) in enumerate(COLORS.items()):
        row, column = divmod(k, 3)
        curve, counts = panels[2 * row, column], panels[2 * row + 1, column]
        mean, share, count = _binned(truth[:, k], probabilities[:, k])
        curve.axline((0, 0), slope=1, color="gray", linewidth=0.6, linestyle=":")
        curve.plot(mean, share, marker="o", color=color)
        if recalibrated is not None:
            curve.plot(*_binned(truth[:, k], recalibrated[:, k])[:2], marker=".", linestyle="--", color=color)
        curve.set(title=label, xlim=(0, 1), ylim=(-0.03, 1.03))
        counts.bar((_BINS[:-1] + _BINS[1:]) / 2, count, width=0.09, color=color)
        if count.any():  # else Matplotlib warns of a scale without a number
            counts.set(yscale="log", ylim=(0.7, None))
        if column == 0:
            curve.set_ylabel("share of positives")
            counts.set_ylabel(unit)
        if row == 1:
            counts.set_xlabel("probability")
        curve.grid(alpha=0.3)
    return figure


def _binned(truth: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean probability and the share of positives in each tenth that has some, and the count in all ten."""
    known = ~(np.isnan(truth) | np.isnan(probability))
    y, p = truth[known], probability[known].astype(np.float64)
    bin_of = np.clip(np.digitize(p, _BINS) - 1, 0, len(_BINS) - 2)
    count = np.bincount(bin_of, minlength=len(_BINS) - 1)
    some = count > 0
    mean, share = (np.bincount(bin_of, values, minlength=len(count))[some] / count[some] for values in (p, y))
    return mean, share, count


def group_scores(kinds: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the weighted log loss of groups with its interval, beside the groups' prevalence baselines.

    Args:
        kinds: title -> groups as `ich.report.diagnostics.by_group` gives them.
    """
    heights = [len(groups) + 1 for groups in kinds.values()]
    figure = Figure(figsize=(8, 0.34 * sum(heights) + 0.8), layout="constrained")
    panels = figure.subplots(len(kinds), squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for axes, (title, groups) in zip(panels, kinds.items(), strict=True):
        places = np.arange(len(groups))
        axes.hlines(places, groups["low"], groups["high"], color=COLORS["epidural"])
        axes.plot(groups["weighted_log_loss"], places, "o", color=COLORS["epidural"], label="weighted log loss, 95 %")
        axes.plot(groups["of_prevalence"], places, "|", color="gray", markersize=12, label="prevalence baseline")
        axes.set_yticks(places, groups.index.astype(str))
        axes.set(title=title, ylim=(len(groups) - 0.5, -0.5))
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.3, axis="x")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=2)
    panels[-1].set_xlim(left=0)
    return figure


def along_scan(order: np.ndarray, probability: np.ndarray, truth: np.ndarray, here: float, label: str) -> Figure:
    """Draw the probability of a label along a scan, with the true slices shaded and one slice marked.

    Args:
        order: the slices' positions, ascending, shape (n,).
        probability: of the label, shape (n,).
        truth: 0 or 1, shape (n,).
        here: position of the marked slice.
    """
    figure = Figure(figsize=(3.6, 1.9))
    axes = figure.add_axes((0.17, 0.25, 0.8, 0.7))  # fixed: an automatic layout takes longest, and a page has many
    axes.bar(order[truth == 1], 1, width=1, color="#F0C6A8", edgecolor="#F0C6A8")  # the edge closes hairline gaps
    axes.plot(order, probability, color=COLORS[label], marker=".", markersize=3, linewidth=1)
    axes.axvline(here, color="black", linewidth=0.8, linestyle="--")
    axes.set(ylim=(0, 1.02), xlabel="slice of the scan", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize="small")
    return figure


def label_balance(prevalence: pd.DataFrame) -> Figure:
    """Draw the prevalence of each label in each fold, with the mean over the folds.

    Args:
        prevalence: one row for each fold, one column for each label: those of `ich.competition.folds.Audit.table`.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(2, 3, sharex=True).ravel()
    for axes, (label, color) in zip(panels, COLORS.items(), strict=True):
        axes.bar(prevalence.index.astype(str), prevalence[label], color=color, width=0.7)
        axes.axhline(prevalence[label].mean(), color="gray", linewidth=0.8, linestyle="--")
        axes.set(title=label, ylim=(0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    for axes in panels[3:]:
        axes.set_xlabel("fold")
    figure.suptitle("share of slices with each label (dashed: the folds' mean)", fontsize="medium")
    return figure


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thin a curve to points evenly along its length, both ends included."""
    if len(x) <= _POINTS:
        return x, y
    length = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], _POINTS)).clip(0, len(x) - 1))
    return x[kept], y[kept]
