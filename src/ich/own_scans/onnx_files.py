"""The image models of runs as ONNX, by Keras's own export, each checked against Keras on images of the training."""

import importlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import keras
import numpy as np

from ich.data.generator import DataGenerator
from ich.errors import IchError, one_line
from ich.own_scans.model_spec import ModelSpec, RunPart
from ich.training import inference
from ich.training.run_data import read_slices
from ich.training.run_directory import Run

_BATCH = 16
_TOLERANCE = 1e-3
"""Largest difference of logits: the two sum in different orders."""


def write(spec: ModelSpec, folder: Path) -> Iterator[str]:
    """Write `<part>/fold<k>/model.onnx` for each model of each run: images 0 to 255 as float32 -> logits.

    Args:
        spec: of a result directory.
        folder: to write into.

    Yields:
        The path within the folder of each file written.

    Raises:
        IchError: a package or the training's images are missing, a run is of scan models, Keras cannot export a model,
            or ONNX Runtime predicts something else of a batch of images.
    """
    runtime = [_imported(name) for name in ("onnx", "tf2onnx", "onnxruntime")][-1]
    if keras.backend.backend() != "tensorflow":
        raise IchError("--onnx needs the backend TensorFlow (KERAS_BACKEND=tensorflow)")
    for name, part in spec.parts.items():
        if isinstance(part, RunPart):
            if part.scan is not None:
                raise IchError(
                    f"{part.folder} reads {part.scan} slices at once, and --onnx is of models of one; leave it out"
                )
            images = _images(part)
            for file in part.files:
                target = f"{name}/{Path(file).with_suffix('.onnx').as_posix()}"
                _write_one(part.folder / file, folder / target, images, runtime)
                yield target


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise IchError(f"--onnx needs {name} ({one_line(error)}): pip install 'ich[onnx]'") from error


def _images(part: RunPart) -> np.ndarray:
    """Return a batch of the training's images, float32."""
    run = Run.open(part.folder)
    table = read_slices(run.config)
    ids = table.loc[(table["split"] == "train") & (table["status"] == "ok"), "SOPInstanceUID"]
    batch = ids.iloc[np.linspace(0, len(ids) - 1, min(_BATCH, len(ids))).astype(int)]
    options = inference.generator_options(run.config, "train", table)
    options |= {"workers": 1, "use_multiprocessing": False}
    return np.asarray(DataGenerator(list(batch), batch_size=len(batch), **options)[0], np.float32)


def _write_one(source: Path, target: Path, images: np.ndarray, runtime: ModuleType) -> None:
    model = inference.read_model(source, "train the fold again")
    expected = model.predict_on_batch(images)  # before the export, which takes no model that was never called
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of NumPy, about tf2onnx
            model.export(target, format="onnx", verbose=False)
        session = runtime.InferenceSession(os.fspath(target), providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    except Exception as error:  # tf2onnx and ONNX Runtime raise many kinds for layers that they do not know
        raise IchError(f"{source} cannot be written as ONNX ({one_line(error)}); export without --onnx") from error
    difference = float(np.abs(logits - expected).max())
    if not difference <= _TOLERANCE:
        raise IchError(
            f"{source} as ONNX predicts other logits than Keras (by up to {difference:.2g}); export without --onnx"
        )
