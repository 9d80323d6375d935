"""Grad-CAM of a run's slices by the models that have not seen their patients."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ich.errors import IchError
from ich.results.result_directory import read_mapping
from ich.training.run_directory import Run

_BATCH = 16  # slices


def heatmaps(
    path: Path, fold: pd.Series, pairs: Sequence[tuple[str, int]], split: str = "train"
) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    """Yield Grad-CAM of slices and labels, fold by fold.

    Args:
        path: the run's directory.
        fold: whose model is asked, at each slice's id.
        pairs: id and index of a label.
        split: where the slices are, train or test.

    Yields:
        A pair, and float32, (height, width) of what the model sees, as `ich.models.gradcam.heatmaps` gives it.

    Raises:
        IchError: the directory has no models, or those of a second stage; or the images cannot be read.
    """
    if first := read_mapping(path / "environment.json").get("first_stage"):
        runs = " or ".join(name for name in first if Path(name).is_dir())  # others are tables of scores
        raise IchError(
            "a second stage's models read predictions, not images: there is no Grad-CAM"
            + (f"; see the report of {runs}" if runs else "")
        )
    if not any((path / f"fold{k}" / "model.keras").exists() for k in fold.unique()):
        raise IchError("this directory has no models: there is no Grad-CAM")
    run = Run.open(path)

    from ich.data.generator import DataGenerator
    from ich.models import gradcam, scan
    from ich.training import inference  # only here: a blend's report needs no TensorFlow

    # Of a scan model, what its slice classifier sees: in the scan's logits, slices mix.
    options = inference.generator_options(run.config, split) | {"scan": None}
    for k in sorted({int(fold[id]) for id, _ in pairs}):
        model = scan.slice_model(inference.load_model(run, k))
        own = [pair for pair in pairs if fold[pair[0]] == k]
        ids = list(dict.fromkeys(id for id, _ in own))
        samples = DataGenerator(pd.Index(ids), batch_size=_BATCH, **options)
        for number in range(len(samples)):
            batch, part = samples[number], ids[number * _BATCH : (number + 1) * _BATCH]
            here = [pair for pair in own if pair[0] in part]
            for start in range(0, len(here), _BATCH):
                asked = here[start : start + _BATCH]
                rows, labels = [part.index(id) for id, _ in asked], np.array([label for _, label in asked])
                yield from zip(asked, gradcam.heatmaps(model, batch[rows], labels), strict=True)
