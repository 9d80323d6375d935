"""Draw README.md's picture, a slice's life: HU, windows, augmentation, prediction with Grad-CAM, submission.

    python docs/slice_life.py runs/demo

Follows a test slice of a run: the one with the most confident kind of bleeding, or the one named. Reads the slice from
the archive, so that data.sources of the run's config must exist.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image  # which comes with Matplotlib

from ich import cli
from ich.competition.labels import ANY, LABELS, to_long
from ich.data import augment
from ich.data.generator import DataGenerator
from ich.dicom import archive, reader
from ich.dicom.windows import Window, apply_window, name_of
from ich.errors import IchError
from ich.files import replacing
from ich.images import reading, render
from ich.models import gradcam
from ich.results.predictions import read_predictions
from ich.training import inference
from ich.training.run_directory import Run

_HU_SHOWN = Window(center=0, width=2000)  # of the slice before it is windowed
_EPOCHS = 4  # shown of the augmented slice

# Of the picture at 100 dpi, in pixels: five tiles in a row.
_WIDTH, _MARGIN, _TILE, _GAP = 900, 14, 164, 13
_GROUND, _TEXT, _QUIET, _MARK = "#14181d", "#f2f4f7", "#aab4bf", "#ffb000"


class Life(NamedTuple):
    """The content of the picture.

    Args:
        id, file: SOPInstanceUID, and path in the archive.
        hu: int16, shape (rows, columns).
        windows: name -> the converted slice at full size; uint8, shape (side, side).
        png: the converted slice, uint8, shape (height, width, channels).
        augment: the pipeline's name.
        augmented: the slice in the first epochs of a training, uint8, (n, height, width, channels).
        label: the label of the Grad-CAM map.
        heat: Grad-CAM, mean of the models, float32, shape (height, width), 0 to 1.
        models: their number.
        probabilities: indexed by the six labels.
        rows: lines of the submission.
    """

    id: str
    file: str
    hu: np.ndarray
    windows: dict[str, np.ndarray]
    png: np.ndarray
    augment: str
    augmented: np.ndarray
    label: str
    heat: np.ndarray
    models: int
    probabilities: pd.Series
    rows: list[str]


def follow(run: Run, id: str | None = None, label: str | None = None) -> Life:
    """Follow a test slice from the archive to the submission.

    Args:
        run: a run with test predictions.
        id: SOPInstanceUID; None takes the slice with the highest probability of a kind of bleeding.
        label: label of the Grad-CAM map; None takes the slice's most probable kind of bleeding.

    Raises:
        IchError: the run is a second stage or has no prediction of the slice, its sources do not exist or lack the
            slice, its images are not of `files: channels`, there is no such label, or as
            `ich.models.gradcam.heatmaps`.
    """
    run.check_reads_images()
    config = run.config
    settings = render.Settings.of(config.preprocess)
    if label is not None and label not in LABELS:
        raise IchError(f"no label is called {label!r}; there are {', '.join(LABELS)}")
    if settings.files != "channels":
        raise IchError(f"the picture is of images of preprocess.files=channels, not {settings.files}")
    predictions = read_predictions(run.predictions_path)
    id = predictions[list(LABELS[:ANY])].max(axis=1).idxmax() if id is None else id
    if id not in predictions.index:
        raise IchError(f"{run.predictions_path} has no prediction of {id}; name a slice of the test set")
    member = next((m for m in archive.members(config.data.sources, config.data.split) if m.id == id), None)
    if member is None:
        raise IchError(f"the sources {', '.join(map(str, config.data.sources))} have no slice {id}")
    hu, _ = reader.read(member.read())
    large, _ = render.render(hu, replace(settings, size=max(hu.shape)))
    probabilities = predictions.loc[id]
    label = probabilities[list(LABELS[:ANY])].idxmax() if label is None else label
    options = inference.generator_options(config, "test") | {"batch_size": 1}
    inputs = DataGenerator([id], **options)[0]
    pipeline = augment.pipeline(config.train.augment, *inputs.shape[1:3])
    samples = DataGenerator([id], augment=pipeline, seed=config.train.seed, **options)
    augmented = []
    for epoch in range(_EPOCHS):
        samples.set_epoch(epoch)
        augmented.append(_own(samples[0][0], config.model.neighbours))
    label_index = np.array([LABELS.index(label)])
    models = [inference.load_model(run, k) for k in run.finished_folds()]
    return Life(
        id=id,
        file=member.name,
        hu=hu,
        windows={name_of(window): large[..., k] for k, window in enumerate(settings.windows)},
        png=reading.read(config.data.images / "test" / f"{id}.png"),
        augment=config.train.augment,
        augmented=np.stack(augmented),
        label=label,
        heat=np.mean([gradcam.heatmaps(model, inputs, label_index)[0] for model in models], axis=0),
        models=len(models),
        probabilities=probabilities,
        rows=to_long(predictions.loc[[id]]).to_csv(index=False, header=False, float_format="%.9g").splitlines(),
    )


def _own(image: np.ndarray, neighbours: list[int]) -> np.ndarray:
    """Return the channels of the slice itself, or of the middle neighbor if it is not among them."""
    parts = np.split(image, len(neighbours), axis=-1)
    return parts[neighbours.index(0) if 0 in neighbours else len(parts) // 2]


def draw(life: Life, dpi: int = 100) -> Figure:
    """Draw the picture, 900 pixels wide at 100 dpi, on a dark ground that suits white and black pages."""
    page = _Page(518, dpi)
    upper, lower = 64, 64 + _TILE + 92
    names = list(life.windows)[:3]

    page.step(0, upper, "1  A DICOM slice", f"reader.read: {life.hu.dtype} HU,\n{_size(life.hu)}")
    page.tile(0, upper, _square(apply_window(life.hu, _HU_SHOWN)), "black -1000, white 1000 HU")
    page.step(
        1,
        upper,
        "2  In windows, written as a PNG",
        f"render.render: uint8, {_size(life.png)}, one window for each channel\n({', '.join(life.windows)})",
    )
    for place, name in enumerate(names, 1):
        page.tile(place, upper, life.windows[name], name)
    colors = life.png.shape[-1] == 3
    page.tile(len(names) + 1, upper, life.png, "the PNG: red, green, blue" if colors else "the PNG")
    page.arrow(1, upper)

    page.step(0, lower, "3  In a batch", f"DataGenerator: augmented\nanew in each epoch ({life.augment})")
    for place, picture in enumerate(life.augmented):
        page.tile(0, lower, picture, part=place)
    page.note(0, lower, "as training would show it")
    page.step(1, lower, "4  Predicted", f"predict_test: the mean of\n{life.models} models; gradcam.heatmaps")
    seen = gradcam.overlaid(life.windows[names[0]], life.heat)
    page.tile(1, lower, seen, f"Grad-CAM: {life.label}")
    page.bars(2, lower, life.probabilities, life.label)
    page.step(
        3, lower, "5  In the submission", "make_submission: six rows of a CSV,\nchecked against the sample submission"
    )
    page.lines(3, lower, ["ID,Label", "...", *life.rows, "..."])
    for place in (1, 3):
        page.arrow(place, lower)
    return page.figure


def save(figure: Figure, path: Path) -> None:
    """Write the picture as a PNG of 256 colors, with 0.4 of the bytes of a full-color PNG.

    Raises:
        IchError: the system refuses.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    colors = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(256, dither=Image.Dither.NONE)
    with replacing(path) as temporary:
        colors.save(temporary, format="PNG", optimize=True)


class _Page:
    """Tiles and texts, placed by column (0 to 4) and pixels from the top."""

    def __init__(self, height: int, dpi: int):
        self.height = height
        self.figure = Figure(figsize=(_WIDTH / 100, height / 100), dpi=dpi, facecolor=_GROUND)

    def _text(self, x: float, y: float, text: str, size: float, color: str = _TEXT, **options: Any) -> None:
        options = {"va": "top", "parse_math": False, "linespacing": 1.25} | options
        self.figure.text(x / _WIDTH, 1 - y / self.height, text, fontsize=size, color=color, **options)

    def _box(self, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        return x / _WIDTH, 1 - (y + height) / self.height, width / _WIDTH, height / self.height

    def step(self, column: int, top: float, title: str, how: str) -> None:
        self._text(_left(column), top - 52, title, 10, weight="bold")
        self._text(_left(column), top - 33, how, 8, _QUIET)

    def note(self, column: int, top: float, text: str) -> None:
        self._text(_left(column), top + _TILE + 16, text, 8, va="baseline")

    def tile(self, column: int, top: float, picture: np.ndarray, note: str = "", part: int | None = None) -> None:
        """Draw a picture, uint8, with a line below; `part` (0 to 3) draws a quarter of the place."""
        side = _TILE if part is None else (_TILE - 4) // 2
        right, down = (0, 0) if part is None else (part % 2 * (side + 4), part // 2 * (side + 4))
        axes = self.figure.add_axes(self._box(_left(column) + right, top + down, side, side))
        axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="antialiased", aspect="auto")
        axes.axis("off")
        if note:
            self.note(column, top, note)

    def arrow(self, column: int, top: float) -> None:
        """Draw an arrow from the previous column to this one."""
        self._text(_left(column) - _GAP / 2, top + _TILE / 2, "\u25b6", 8, _MARK, ha="center", va="center")

    def bars(self, column: int, top: float, probabilities: pd.Series, marked: str) -> None:
        step = _TILE / len(probabilities)
        for place, (label, p) in enumerate(probabilities.items()):
            y = top + place * step
            color = _MARK if label == marked else _TEXT
            self._text(_left(column), y + 11, label, 8, color, va="baseline")
            self._text(_left(column) + _TILE, y + 11, f"{p:.2f}", 8, color, ha="right", va="baseline")
            for width, shade in ((_TILE, "#2c333b"), (_TILE * p, color)):
                axes = self.figure.add_axes(self._box(_left(column), y + 16, width, 5))
                axes.patch.set_facecolor(shade)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)

    def lines(self, column: int, top: float, lines: list[str]) -> None:
        self._text(_left(column), top, "\n".join(lines), 8.4, family="monospace", linespacing=1.5)


def _left(column: int) -> int:
    return _MARGIN + column * (_TILE + _GAP)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]} \u00d7 {image.shape[1]}"


def _square(picture: np.ndarray) -> np.ndarray:
    """Pad a slice with black to a square; uint8, shape (side, side)."""
    rows, columns = picture.shape
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    return cv2.copyMakeBorder(picture, top, side - rows - top, left, side - columns - left, cv2.BORDER_CONSTANT)


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, help="a directory of runs/ with test predictions")
    parser.add_argument("--slice", metavar="ID", help="a slice of the test set (default: the most confident)")
    parser.add_argument("--label", help="label of the Grad-CAM map (default: the most probable kind of bleeding)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="(default: %(default)s)")
    parser.add_argument("--dpi", type=int, default=180, help="100 makes it 900 pixels wide (default: %(default)s)")
    arguments = parser.parse_args(argv)
    life = follow(Run.open(arguments.run), arguments.slice, arguments.label)
    save(draw(life, arguments.dpi), arguments.out)
    print(f"{life.id}, {life.label} {life.probabilities[life.label]:.2f}: {arguments.out}")


if __name__ == "__main__":
    cli.run(main)
