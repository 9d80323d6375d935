import cv2
import numpy as np
import pandas as pd

from ich.competition.labels import LABELS
from ich.training import curves


def history(epochs):
    columns = [prefix + name for prefix in ("", "val_") for name in ("loss", "weighted_log_loss")]
    columns += [f"val_auc_{label}" for label in LABELS]
    values = np.linspace(0.9, 0.1, epochs)[:, None] * np.ones(len(columns))
    return pd.DataFrame(values, columns=columns).rename_axis("epoch")


def test_a_picture_of_one_epoch_and_of_many(tmp_path):
    pictures = []
    for epochs in (1, 30):
        curves.draw(history(epochs), tmp_path / "curves.png", "tiny, fold 0")
        pictures.append(cv2.imread(str(tmp_path / "curves.png")))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_every_curve_is_in_the_picture(tmp_path):
    """Of each number that is drawn, another value gives another picture."""
    one = history(4)
    curves.draw(one, tmp_path / "one.png", "")
    before = (tmp_path / "one.png").read_bytes()
    drawn = ["loss", "weighted_log_loss"]
    for name in [*drawn, *(f"val_{name}" for name in drawn), *(f"val_auc_{label}" for label in LABELS)]:
        other = one.copy()
        other.loc[2, name] *= 0.5
        curves.draw(other, tmp_path / "other.png", "")
        assert (tmp_path / "other.png").read_bytes() != before, name


def test_an_auc_that_does_not_exist_is_n_a(tmp_path, monkeypatch):
    drawn, save = [], curves.Figure.savefig

    def savefig(figure, *arguments, **options):
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(curves.Figure, "savefig", savefig)
    one = history(3)
    one["val_auc_epidural"] = np.nan
    one.loc[1, "val_auc_any"] = np.nan
    curves.draw(one, tmp_path / "one.png", "")
    told = [text.get_text() for text in drawn[0].axes[2].get_legend().get_texts()]
    assert told == ["epidural: n/a", *LABELS[1:]]
