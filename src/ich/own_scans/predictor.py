"""From the Hounsfield units of one scan to probabilities: the models of a result, applied as it applies them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import keras
import numpy as np
import pandas as pd

from ich.competition.labels import LABELS
from ich.data import augment
from ich.data.scan_windows import ScanOrder, ScanWindows, mean_over_windows
from ich.errors import IchError
from ich.images.render import Settings, field_of_view, over_slices, render
from ich.images.slice_table import by_scan, nearest
from ich.models import backbones, gradcam, scan
from ich.own_scans.model_spec import BlendPart, ModelSpec, RunPart, SecondStagePart
from ich.results import fitted_blend
from ich.second_stage import fitted, scans
from ich.second_stage.scans import Scans
from ich.training import inference


@dataclass(frozen=True, slots=True)
class Slices:
    """One scan's slices in scan order, as models read them.

    Args:
        ids: of each slice, unique, (n,).
        z: mm along the slice normal, ascending, (n,); NaN if unknown.
        order: place in the series, ascending, (n,); what could not be read is missing.
        hu: int16 arrays, (rows, columns), which may differ in shape.
    """

    ids: Sequence[str]
    z: np.ndarray
    order: np.ndarray
    hu: Sequence[np.ndarray]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a result predicts of a scan.

    Args:
        probabilities: float64, (n, 6), in the order of `LABELS`.
        heat: uint8, (n, 6, MAP_SIDE, MAP_SIDE), Grad-CAM over the whole slice, at its highest place 255 times the
            probability of the label; None if it was not asked for, or the backend has none.
    """

    probabilities: np.ndarray
    heat: np.ndarray | None


class Predictor:
    """Predicts scans, one at a time.

    The folds' mean, TTA, second stages, blends and calibration are those of the result.

    Args:
        spec: what the result consists of; its files are read now.
        heat: whether to compute Grad-CAM, of the runs that the result is made of.

    Raises:
        IchError: a file cannot be read, a part cannot predict single scans, or the runs read no images alike.
    """

    def __init__(self, spec: ModelSpec, heat: bool = False):
        self.spec = spec
        self.parts: dict[str, _Run | _SecondStage | _Blend] = {}
        stages = [part for part in spec.parts.values() if isinstance(part, SecondStagePart)]
        embedded = {part.of[0] for part in stages if part.sequence.features == "embeddings"}
        for name, part in spec.parts.items():
            if isinstance(part, RunPart):
                self.parts[name] = _Run(part, name in embedded, heat and keras.backend.backend() == "tensorflow")
            elif isinstance(part, SecondStagePart):
                self.parts[name] = _SecondStage(part)
            else:
                self.parts[name] = _Blend(part)

    def __call__(self, slices: Slices) -> Prediction:
        """Predict one scan of at least one slice."""
        outputs: dict[str, _Output] = {}
        for name, part in self.parts.items():
            outputs[name] = part(slices, outputs)
        probabilities = outputs[self.spec.result].probabilities
        heats = [output.heat for output in outputs.values() if output.heat is not None]
        if not heats:
            return Prediction(probabilities, None)
        shown = np.rint(np.mean(heats, axis=0) * probabilities[..., None, None]).astype(np.uint8)
        return Prediction(probabilities, shown)


@dataclass(frozen=True, slots=True)
class _Output:
    """What a part gives for a scan; of each fold's model its logits and embeddings, if a second stage reads them."""

    probabilities: np.ndarray
    by_fold: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    heat: np.ndarray | None = None


class _Run:
    """The models of a run, one a fold."""

    def __init__(self, part: RunPart, embeddings: bool, heat: bool):
        self.part, self.embeddings = part, embeddings
        self.settings = Settings.of(part.preprocess)
        advice = "copy or export the model again, or train the fold again"
        models = [inference.read_model(part.folder / file, advice) for file in part.files]
        self.image_shape = scan.image_shape(models[0])
        # What the slice classifier of a scan model sees: in the scan's logits, slices mix.
        trunks = [gradcam.split(scan.slice_model(model)) for model in models] if heat else []
        within = trunks if part.scan is None else []  # the network gives the feature maps as well
        self.networks = [_network(model, embeddings, maps) for model, maps in zip_longest(models, within)]
        self.heads = [head for _, head in trunks]
        self.trunks = [keras.Model(trunk.inputs, {"maps": trunk.outputs[0]}) for trunk, _ in trunks]
        passes = augment.passes(part.tta, *self.image_shape[:2])
        self.passes = [(transform, True) for transform in passes]
        if heat and None not in passes:
            self.passes.append((None, False))  # Grad-CAM is of the slices as they are

    def __call__(self, slices: Slices, outputs: dict[str, _Output]) -> _Output:
        pictures = [render(hu, self.settings) for hu in slices.hu]
        for picture, _ in pictures:
            self._check(picture.shape)
        images = _with_neighbors([picture for picture, _ in pictures], slices.order, self.part.neighbours)
        windows = None
        if self.part.scan is not None:
            rows, starts = _scan_order(slices)
            windows = ScanWindows(ScanOrder(rows, starts, np.nan_to_num(slices.z[rows])), self.part.scan, True)
        mean = inference.MeanOfPasses(len(images), self.part.mean)
        logits: list[list[np.ndarray]] = [[] for _ in self.networks]  # by fold and pass, as the next
        embeddings: list[list[np.ndarray]] = [[] for _ in self.networks]
        heats = []
        for transform, counts in self.passes:
            given = images if transform is None else np.stack([transform(image=image)["image"] for image in images])
            for k in range(len(self.networks)):
                of_pass = self._of_fold(k, given, windows, heat=transform is None and bool(self.heads))
                if counts:
                    mean.add(of_pass["logits"])
                    if self.embeddings:
                        logits[k].append(of_pass["logits"])
                        embeddings[k].append(of_pass["embeddings"].astype(np.float32))
                if "heat" in of_pass:
                    heats.append(of_pass["heat"])
        by_fold = []
        if self.embeddings:
            for of_logits, of_embeddings in zip(logits, embeddings, strict=True):
                embedding = np.mean(of_embeddings, axis=0).astype(np.float16)
                by_fold.append((inference.mean_logits(of_logits, self.part.mean), embedding))
        heat = None
        if heats:
            boxes = [box for _, box in pictures]
            fields = [field_of_view(hu.shape, box, self.settings) for hu, box in zip(slices.hu, boxes, strict=True)]
            heat = over_slices(_shares(np.mean(heats, axis=0)), fields, [hu.shape for hu in slices.hu])
        return _Output(mean.probabilities(), by_fold, heat)

    def _check(self, shape: tuple[int, ...]) -> None:
        """Refuse an image, without its neighbors, that the models do not take."""
        shape = (*shape[:2], shape[2] * len(self.part.neighbours))
        expected = self.image_shape
        if shape != expected:
            given, takes = (
                f"{height} × {width} with {channels} channels" for height, width, channels in (shape, expected)
            )
            raise IchError(f"the images of this scan are {given}, the model takes {takes}")

    def _of_fold(self, k: int, images: np.ndarray, windows: ScanWindows | None, heat: bool) -> dict[str, np.ndarray]:
        """Return what the model of fold `k` gives for all slices, by name, and Grad-CAM as heat."""
        head = self.heads[k] if heat else None
        if windows is None:
            return self._predict(self.networks[k], images.__getitem__, len(images), head)
        layout = windows.layout()

        def batch_of(some: slice) -> dict[str, np.ndarray]:
            rows = layout[some]
            return {"image": images[rows], **windows.inputs(rows)}  # the model replaces what stands for padding

        of_windows = self._predict(self.networks[k], batch_of, len(layout))
        outputs = {name: mean_over_windows(values, layout, len(images)) for name, values in of_windows.items()}
        if heat:
            outputs |= self._predict(self.trunks[k], images.__getitem__, len(images), head)
        return outputs

    def _predict(
        self,
        network: keras.Model,
        batch_of: Callable[[slice], Any],
        count: int,
        head: keras.Model | None = None,
    ) -> dict[str, np.ndarray]:
        """Predict `count` samples in batches, which `batch_of` gives; feature maps as Grad-CAM if there is a head."""
        of_batches: dict[str, list[np.ndarray]] = {}
        for start in range(0, count, self.part.batch_size):
            batch = batch_of(slice(start, start + self.part.batch_size))
            samples = min(self.part.batch_size, count - start)
            if short := -samples % _MULTIPLE[keras.backend.backend()]:
                batch = keras.tree.map_structure(partial(_filled, short=short), batch)
            outputs = {name: values[:samples] for name, values in network.predict_on_batch(batch).items()}
            maps = outputs.pop("maps", None)
            if head is not None and maps is not None:
                outputs["heat"] = gradcam.of_all_labels(head, maps)
            for name, values in outputs.items():
                of_batches.setdefault(name, []).append(values)
        return {name: np.concatenate(parts) for name, parts in of_batches.items()}


def _filled(values: np.ndarray, short: int) -> np.ndarray:
    return np.concatenate([values, np.repeat(values[-1:], short, axis=0)])


def _shares(heat: np.ndarray) -> np.ndarray:
    """Scale each map, (n, 6, height, width), so that its highest place is 1; one without any stays 0."""
    peak = heat.max(axis=(2, 3), keepdims=True)
    return np.divide(heat, peak, out=np.zeros_like(heat), where=peak > 0)


_MULTIPLE = {"tensorflow": 1, "jax": 16, "torch": 1}
"""Batches are filled up to a multiple of this: JAX compiles for every new size."""


def _network(model: keras.Model, embeddings: bool, trunk: tuple[keras.Model, keras.Model] | None) -> keras.Model:
    """Return a model of named outputs: logits, embeddings and feature maps, as they are asked for."""
    outputs = {"logits": model.outputs[0]}
    if embeddings:
        outputs["embeddings"] = backbones.with_features(model).outputs[1]
    if trunk is not None:
        outputs["maps"] = trunk[0].outputs[0]
    return keras.Model(model.input, outputs)


class _SecondStage:
    """The models of a second stage, by kind and fold."""

    def __init__(self, part: SecondStagePart):
        self.part = part
        models = {
            kind: [fitted.read_model(part.folder / f"fold{k}", kind) for k in range(part.folds)]
            for kind in part.weights
        }
        self.stage = fitted.SecondStage(part.sequence, models, part.weights)

    def __call__(self, slices: Slices, outputs: dict[str, _Output]) -> _Output:
        given = [outputs[name] for name in self.part.of]
        # Rounded as in the files that it was trained on: where a probability is all but 1, its logit depends on that.
        probabilities = [pd.DataFrame(output.probabilities.astype(np.float32)) for output in given]
        logits = np.mean([scans.logits_of(frame).to_numpy() for frame in probabilities], axis=0)
        of_scan, rows = _as_scans(slices, logits)
        embedded = None
        if self.part.sequence.features == "embeddings":
            embedded = [_as_scans(slices, *of_fold)[0] for of_fold in given[0].by_fold].__getitem__
        predicted = np.empty((len(rows), len(LABELS)))
        predicted[rows] = self.stage.predict(of_scan, embedded)
        return _Output(predicted)


class _Blend:
    """Fitted weights, and a calibration where one helped."""

    def __init__(self, part: BlendPart):
        self.part = part
        self.blend = fitted_blend.of_description(part.method, part.fitted, part.of)

    def __call__(self, slices: Slices, outputs: dict[str, _Output]) -> _Output:
        return _Output(self.blend(np.stack([outputs[name].probabilities.astype(np.float32) for name in self.part.of])))


def _as_scans(slices: Slices, logits: np.ndarray, embeddings: np.ndarray | None = None) -> tuple[Scans, np.ndarray]:
    """Return the slices as a second stage reads them, and the row of each; one without a position is a scan alone."""
    rows, starts = _scan_order(slices)
    values = logits[rows].astype(np.float32).clip(-scans.LIMIT, scans.LIMIT)
    of_slices = np.zeros((len(rows), 0), np.float16) if embeddings is None else embeddings[rows]
    z = slices.z[rows].astype(np.float32)
    return Scans(pd.Index(slices.ids)[rows], starts, z, values, of_slices), rows


def _scan_order(slices: Slices) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the slices, those with a position first, and where scans begin and end: one without is one."""
    return by_scan(np.where(np.isfinite(slices.z), 0, -1), [np.arange(len(slices.z))])


def _with_neighbors(pictures: Sequence[np.ndarray], order: np.ndarray, offsets: Sequence[int]) -> np.ndarray:
    """Return images with their neighbors as channels, as `ich.images.slice_table.neighbours` chooses them.

    Args:
        pictures: uint8 (height, width, channels), of one shape.
        order: place of each in the series, ascending; what could not be read is missing.
    """
    places = [nearest(order, np.clip(order + offset, order[0], order[-1]), offset) for offset in offsets]
    return np.stack([np.concatenate([pictures[place] for place in row], axis=-1) for row in zip(*places, strict=True)])
