"""Slices that join the training set of each fold, and are never held out: external ones, pseudo-labeled ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True, eq=False)
class Joined:
    """Slices that join a training set.

    Args:
        what: they are, for messages.
        labels: six columns of 0 to 1, indexed by SOPInstanceUID.
        weight: of each in the loss, where the competition's own have 1.
        images: the folder of images that they lie in; None is the run's own.
        slices: their slice table, in the columns of the run's own; None is in the run's own.
        told: sentences on what was left out, and why, and on what to know of the labels.
    """

    what: str
    labels: pd.DataFrame
    weight: float
    images: Path | None = None
    slices: pd.DataFrame | None = None
    told: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.labels):,} {self.what} with the weight {self.weight:g}"


def training_set(
    labels: pd.DataFrame, slices: pd.DataFrame, options: dict[str, Any], joined: Sequence[Joined]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Return labels, slice table and arguments of DataGenerator with others joined; as they are if there are none.

    Args:
        labels: six columns of the fold's own training slices, by SOPInstanceUID.
        slices: the slice table.
        options: `ich.training.inference.generator_options` of the split train.
    """
    if not joined:
        return labels, slices, options
    folders: dict[str, Path] = {}
    tables = [(options["image_dir"].parent, slices)]
    tables += [(one.images, one.slices) for one in joined if one.images is not None and one.slices is not None]
    for images, table in tables:
        readable = table[table["status"] == "ok"]
        in_split = {split: images / split for split in readable["split"].unique()}
        folders |= dict(zip(readable["SOPInstanceUID"], readable["split"].map(in_split), strict=True))
    weights = [pd.Series(1.0, labels.index), *(pd.Series(one.weight, one.labels.index) for one in joined)]
    slices = pd.concat([table for _, table in tables], ignore_index=True)
    options = options | {
        "image_dir": folders,
        "slices": None if options["slices"] is None else slices,
        "weights": None if all(one.weight == 1 for one in joined) else pd.concat(weights),
    }
    return pd.concat([labels, *(one.labels for one in joined)]), slices, options
