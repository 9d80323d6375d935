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
        description: what the slices are, for messages.
        labels: six columns of 0 to 1, indexed by SOPInstanceUID.
        weight: of each slice in the loss, where the competition's own have 1.
        images: their folder of images; None for the run's own.
        slices: their slice table, with the columns of the run's own; None if the run's own table lists them.
        notes: sentences for the screen: the slices left out, with the reason, and cautions about the labels.
    """

    description: str
    labels: pd.DataFrame
    weight: float
    images: Path | None = None
    slices: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.labels):,} {self.description} with the weight {self.weight:g}"


def training_set(
    labels: pd.DataFrame, slices: pd.DataFrame, options: dict[str, Any], joined: Sequence[Joined]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Add the joined slices to the labels, the slice table and the arguments of DataGenerator.

    Args:
        labels: six columns of the fold's own training slices, by SOPInstanceUID.
        slices: the slice table.
        options: `ich.training.inference.generator_options` of the split train.
        joined: none returns the others unchanged.
    """
    if not joined:
        return labels, slices, options
    folders: dict[str, Path] = {}
    tables = [(options["image_dir"].parent, slices)]
    tables += [
        (extra.images, extra.slices) for extra in joined if extra.images is not None and extra.slices is not None
    ]
    for images, table in tables:
        readable = table[table["status"] == "ok"]
        in_split = {split: images / split for split in readable["split"].unique()}
        folders |= dict(zip(readable["SOPInstanceUID"], readable["split"].map(in_split), strict=True))
    weights = [pd.Series(1.0, labels.index), *(pd.Series(extra.weight, extra.labels.index) for extra in joined)]
    slices = pd.concat([table for _, table in tables], ignore_index=True)
    options = options | {
        "image_dir": folders,
        "slices": None if options["slices"] is None else slices,
        "weights": None if all(extra.weight == 1 for extra in joined) else pd.concat(weights),
    }
    return pd.concat([labels, *(extra.labels for extra in joined)]), slices, options
