"""Learning curves of one fold or several, as a Matplotlib figure."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ich.competition.labels import LABELS


def learning_curves(histories: Mapping[int, pd.DataFrame]) -> Figure:
    """Draw loss, weighted log loss and AUC over the epochs, one color for each fold.

    One fold shows the AUC of each label, several that of any. A label that all held-out slices have, or none, has no
    AUC: the legend says n/a.

    Args:
        histories: fold -> one row for each epoch, with the columns of history.csv.
    """
    is_alone = len(histories) == 1
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    *losses, auc = figure.subplots(1, 3)
    for color, (fold, history) in enumerate(histories.items()):
        epochs = np.arange(1, len(history) + 1)
        for axes, metric in zip(losses, ("loss", "weighted_log_loss"), strict=True):
            axes.plot(epochs, history[metric], "--", color=f"C{color}", linewidth=1)
            held_out = history[f"val_{metric}"].to_numpy()
            some = ~np.isnan(held_out)  # not every epoch is validated
            axes.plot(epochs[some], held_out[some], marker=".", color=f"C{color}", label=f"fold {fold}")
            axes.set(title=metric.replace("_", " "))
        for label in LABELS if is_alone else ("any",):
            values = history[f"val_auc_{label}"].to_numpy()
            some = ~np.isnan(values)
            name = label if is_alone else f"fold {fold}"
            auc.plot(epochs[some], values[some], marker=".", label=name if some.any() else f"{name}: n/a")
    for axes in losses:
        axes.plot([], [], "--", color="gray", label="training, during the epoch")
        axes.plot([], [], marker=".", color="gray", label="held out, after the epoch")
        axes.set_yscale("log")  # the loss of the first epochs is far higher
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    auc.set(title="AUC, held out" if is_alone else "AUC of any, held out")
    for axes in (*losses, auc):
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure
