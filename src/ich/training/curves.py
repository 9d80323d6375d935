"""The learning curves of a fold as a picture."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ich.competition.labels import LABELS
from ich.files import replacing


def draw(history: pd.DataFrame, path: Path, title: str) -> None:
    """Draw the loss, the competition's score and the AUC of the held-out slices by label, each over the epochs.

    Of a label that all of these slices have, or none, there is no AUC: the legend says n/a.

    Args:
        history: a row an epoch, with the columns that training's history.csv has.
        path: of the picture; its suffix tells the format.

    Raises:
        IchError: the system refuses to write.
    """
    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 3)
    for axes, metric, told in zip(panels, ("loss", "weighted_log_loss"), ("loss", "weighted log loss"), strict=False):
        axes.plot(epochs, history[metric], marker=".", label="trained on, as the epoch went")
        axes.plot(epochs, history[f"val_{metric}"], marker=".", label="held out, after the epoch")
        axes.set(title=told, xlabel="epoch")
        # The first epochs of a network are far off; from there on the curves fall by a factor, not by a difference.
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    panels[0].legend()
    for label in LABELS:
        auc = history[f"val_auc_{label}"]
        panels[2].plot(epochs, auc, marker=".", label=f"{label}: n/a" if auc.isna().all() else label)
    panels[2].set(title="AUC, held out", xlabel="epoch")
    panels[2].legend(fontsize="small")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
