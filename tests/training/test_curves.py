import io

import numpy as np
import pandas as pd
import pytest

from ich.competition.labels import LABELS
from ich.training.curves import learning_curves


def history(epochs):
    columns = [prefix + name for prefix in ("", "val_") for name in ("loss", "weighted_log_loss")]
    columns += [f"val_auc_{label}" for label in LABELS]
    values = np.linspace(0.9, 0.1, epochs)[:, None] * np.ones(len(columns))
    return pd.DataFrame(values, columns=columns).rename_axis("epoch")


def drawn(histories):
    file = io.BytesIO()
    learning_curves(histories).savefig(file, format="png")
    return file.getvalue()


def legend(figure, panel):
    return [text.get_text() for text in figure.axes[panel].get_legend().get_texts()]


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("epochs", [1, 30])
def test_a_picture_of_one_epoch_and_of_many(folds, epochs):
    assert drawn({k: history(epochs) for k in range(folds)})


@pytest.mark.parametrize("folds", [1, 2])
def test_every_curve_is_in_the_picture(folds):
    """Another value of any number that is drawn gives another line."""

    def lines(histories):
        return [line.get_ydata().tolist() for axes in learning_curves(histories).axes for line in axes.lines]

    before = lines({k: history(4) for k in range(folds)})
    labels = LABELS if folds == 1 else ["any"]
    losses = ["loss", "weighted_log_loss"]
    for name in [*losses, *(f"val_{name}" for name in losses), *(f"val_auc_{label}" for label in labels)]:
        other = history(4)
        other.loc[2, name] *= 0.5
        assert lines({k: other if k == folds - 1 else history(4) for k in range(folds)}) != before, name


def test_an_auc_that_does_not_exist_is_n_a():
    table = history(3)
    table["val_auc_epidural"] = np.nan
    table.loc[1, "val_auc_any"] = np.nan
    assert legend(learning_curves({0: table}), 2) == ["epidural: n/a", *LABELS[1:]]
    table["val_auc_any"] = np.nan
    assert legend(learning_curves({0: history(3), 1: table}), 2) == ["fold 0", "fold 1: n/a"]


def test_epochs_without_validation_are_left_out_of_the_curves():
    table = history(4)
    held_out = [name for name in table if name.startswith("val_")]
    table.loc[[0, 2], held_out] = np.nan
    figure = learning_curves({0: table})
    for axes in figure.axes:
        lines = [line for line in axes.lines if line.get_marker() == "." and len(line.get_xdata())]
        assert all(list(line.get_xdata()) == [2, 4] for line in lines)
        assert lines


def test_folds_have_a_color_each():
    figure = learning_curves({0: history(2), 3: history(2)})
    assert legend(figure, 0) == ["fold 0", "fold 3", "training, during the epoch", "held out, after the epoch"]
