"""Extract each fold's features, logits and embeddings, for a second stage, and check them for leakage.

In `fold<k>/features/`, by fold k's model, each in scan order:

oof.parquet, oof.npy      the slices that it held out
seen.parquet, seen.npy    those that it was trained on, with embeddings only
test.parquet, test.npy    the test set

A Parquet file has six float32 logits a slice, in the order of its index, and is written last; its provenance and the
digest of its .npy are a part of it. The .npy holds the embeddings, float16, shape (slices, n): what the model's last
layer reads, see `ich.models.backbones.with_features`. Both are the mean over the TTA passes, the logits as
`predict.mean` says.

Features of slices that a model was trained on are better than those of new patients: it has memorized them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pyarrow as pa

from ich.competition.labels import INDEX_NAME, LABELS
from ich.data import augment
from ich.data.generator import DataGenerator
from ich.errors import IchError, name_some
from ich.files import remove, replacing, sha256_of, sweep
from ich.models import backbones, scan
from ich.results.predictions import read_predictions, read_provenance, write_predictions
from ich.second_stage import scans
from ich.training import inference
from ich.training.chunked_inference import predict_parts
from ich.training.inference import Slices
from ich.training.parts import discard_parts, parts_folder, read_part
from ich.training.run_data import RunData, slices_digest
from ich.training.run_directory import Run


def extract(run: Run, embeddings: bool, results: Run | None = None) -> list[Path]:
    """Write the features of every readable slice, each by the model of its fold.

    Logits alone are the mean of the passes that `ich.training.inference.predict_test` keeps, or makes. With embeddings,
    each batch goes through all passes at once: memory does not grow with slices or passes, nor disk use with passes.
    Files of the same model, slices and passes are kept; unfinished ones are resumed.

    Args:
        results: to whose directory all is written, if not to the run's own; see `ich.training.results_folder`.

    Returns:
        The Parquet files.

    Raises:
        IchError: it is a second stage, a fold is not trained, the folds or images are others than those trained on, an
            image cannot be read, an embedding is beyond float16, a file cannot be written, or another process works in
            the directory.
    """
    pa.set_memory_pool(pa.system_memory_pool())  # as predict_test
    run.check_reads_images()
    run.check_finished()
    data = RunData(run.config, ["SeriesInstanceUID", "z"])
    run.check_data(data.digests)
    results = results or run
    with results.locked_whole():
        table, fold = data.slices.set_index(INDEX_NAME), data.folds["fold"]
        test = data.readable("test").index
        written = []
        for k in range(run.config.folds.n):
            ids = {"oof": fold.index[fold == k]}
            if embeddings:
                ids["seen"] = fold.index[fold != k]
            if len(test):
                ids["test"] = test
            # Loaded once, and only if a pass has to be predicted.
            model = cache(partial(inference.load_model, run, k, run.config.machine.distribute))
            for folder in (results.features(k), results.passes(k)):
                sweep(folder)
            for name, of_part in ids.items():
                ordered = scans.arrange(table, pd.DataFrame(0.0, of_part, list(LABELS))).ids
                part = _Part(run, results, data, k, name, table.loc[ordered], model)
                part.extract(embeddings)
                written.append(part.path)
    return written


def read(folder: Path, part: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Read what `extract` wrote with embeddings.

    Args:
        folder: `Run.features` of a fold.
        part: oof, seen or test.

    Returns:
        (logits, embeddings): float32, six columns by SOPInstanceUID; float16, (slices, n), in the same order, mapped
        from the file.

    Raises:
        IchError: there are none, or the files are damaged or do not belong together.
    """
    path = folder / f"{part}.parquet"
    again = f"run scripts/extract_features.py {folder.parents[1]} --embeddings"
    provenance = _provenance(path, again)
    logits, file = read_predictions(path), path.with_suffix(".npy")
    if not file.is_file():
        raise IchError(f"{file} is missing; delete {path}, and {again}")
    if sha256_of(file) != provenance["embeddings"]["sha256"]:
        raise IchError(f"{file} is damaged, or not of the slices that {path} lists; delete both, and {again}")
    return logits, np.load(file, mmap_mode="r", allow_pickle=False)


def check_features_match_folds(path: Path, table: pd.DataFrame, test: pd.Index | None) -> list[Path]:
    """Check that each model's features are of the expected slices, and that it saw none of its fold.

    Each file must be by the model that predicted its fold as held out; that these predictions are of that fold alone,
    `ich.second_stage.inputs.check_out_of_fold` has checked before.

    Args:
        path: the run's directory.
        table: the folds, as `ich.competition.folds.read_folds` gives them.
        test: the slices of the test set; None asks for no features of it.

    Returns:
        The Parquet files, fold by fold, those of the test set last in each.

    Raises:
        IchError: features are missing, or of other slices, or by another model than predicted the fold; or not all
            were made with the same passes.
    """
    again = f"run scripts/extract_features.py {path} --embeddings"
    files, passes = [], set()
    for k in sorted(table["fold"].unique()):
        held_out = path / f"fold{k}" / "oof.parquet"
        model = (read_provenance(held_out) or {}).get("model")
        expected = {"oof": table.index[table["fold"] == k], "seen": table.index[table["fold"] != k]}
        if test is not None:
            expected["test"] = test
        for part, ids in expected.items():
            file = held_out.parent / "features" / f"{part}.parquet"
            provenance = _provenance(file, again)
            if model is None or provenance["model"] != model:
                raise IchError(
                    f"{file} is by another model than {held_out}, so that it may have seen these patients; run"
                    f" scripts/predict.py {path}, then {again}"
                )
            differing = read_predictions(file).index.symmetric_difference(ids)
            if len(differing):
                raise IchError(f"{file} is of other slices than it should be: {name_some(differing)}; {again}")
            passes.add((*provenance["tta"], provenance["mean"]))
            files.append(file)
    if len(passes) > 1:
        raise IchError(f"the features of {path} were made in {len(passes)} ways, {passes}; {again}")
    return files


def _provenance(path: Path, again: str) -> dict:
    """Return the provenance of a file of features with embeddings; raise IchError if it has none."""
    provenance = read_provenance(path)
    if provenance is None or not provenance.get("embeddings"):
        raise IchError(f"{path} is missing or has no embeddings; {again}")
    return provenance


@dataclass(frozen=True)
class _Part:
    """The slices that one fold's model reads for one file of features.

    Args:
        name: oof, seen or test.
        rows: of the slice table, in scan order.
        model: loads the fold's model.
    """

    run: Run
    results: Run
    data: RunData
    k: int
    name: str
    rows: pd.DataFrame
    model: Callable[[], keras.Model]

    @property
    def path(self) -> Path:
        return self.results.features(self.k) / f"{self.name}.parquet"

    def extract(self, embeddings: bool) -> None:
        """Write the part, unless it exists."""
        provenance: dict[str, Any] = {
            "model": inference.model_digest(self.run, self.k),
            "slices": slices_digest(self.rows),
            "tta": self.run.config.predict.tta,
            "mean": self.run.config.predict.mean,
        }
        then, file = read_provenance(self.path) or {}, self.path.with_suffix(".npy")
        complete = not embeddings or (then.get("embeddings") and file.is_file())
        if not complete or {key: then.get(key) for key in provenance} != provenance:
            if embeddings:
                logits, provenance["embeddings"] = self._with_embeddings(provenance, file)
            else:
                logits = self._logits()
                remove(file)  # by another model, or other passes
            write_predictions(pd.DataFrame(logits, self.rows.index, list(LABELS)), self.path, provenance)
        discard_parts(self.path)  # also those left by a kill before their removal

    def _logits(self) -> np.ndarray:
        """Return the mean logits of the passes, read from their files if the run has predicted."""
        # In the order of predictions, not in scan order: the passes' files belong to the predictions.
        config, section = self.run.config, self.run.config.predict
        is_oof = self.name == "oof"
        slices = Slices.held_out(config, self.data, self.k) if is_oof else Slices.of_test(config, self.data)
        passes = []
        for tta in section.tta:
            path = self.results.passes(self.k) / f"{self.name}-{tta}.parquet"
            passes.append(inference.pass_logits(self.run, self.k, slices, tta, self.model, path))
        return pd.DataFrame(inference.mean_logits(passes, section.mean), slices.ids).loc[self.rows.index].to_numpy()

    def _with_embeddings(self, provenance: dict, file: Path) -> tuple[np.ndarray, dict]:
        """Write the embeddings; return the logits, and the number and digest of the embeddings."""
        config = self.run.config
        network = backbones.with_features(self.model())
        numbers = network.outputs[1].shape[-1]
        transforms = augment.passes(config.predict.tta, *scan.image_shape(network)[:2])
        shape = (len(transforms), len(LABELS))
        dtype = np.dtype([("logits", np.float32, shape), ("embedding", np.float16, numbers)])

        def merge(outputs: list) -> np.ndarray:
            merged = np.empty(outputs[0][0].shape[:-1], dtype)  # of samples, or of windows and their slices
            merged["logits"] = np.stack([logits for logits, _ in outputs], axis=-2)
            with np.errstate(over="ignore"):  # checked below
                merged["embedding"] = np.mean([embedding.astype(np.float32) for _, embedding in outputs], axis=0)
            if not np.isfinite(merged["embedding"]).all():
                raise IchError(
                    f"fold {self.k}'s model gives embeddings beyond float16 (65,504) or NaN; train another run with a"
                    " lower train.learning_rate, or use its logits only"
                )
            return merged

        options = inference.generator_options(config, "test" if self.name == "test" else "train", self.data.slices)
        samples = DataGenerator(self.rows.index, batch_size=config.predict.batch_size, tta=transforms, **options)
        passes = [samples.at_pass(number) for number in range(len(transforms))]
        folder = parts_folder(self.path, provenance, config.predict.batch_size)
        saved = predict_parts(network, passes, folder, merge, f"fold {self.k}, {self.name}, features")
        parts: Iterable[np.ndarray] = map(read_part, saved)
        if config.model.scan is not None:
            parts = [_mean_over_windows(samples, np.concatenate([*parts]))]
        logits = []
        # Not through a memory map: on a full disk, writing to one kills the process.
        with replacing(file) as temporary:
            with temporary.open("wb") as opened:
                header = {"descr": "<f2", "fortran_order": False, "shape": (len(self.rows), numbers)}
                np.lib.format.write_array_header_1_0(opened, header)
                for part in parts:
                    opened.write(part["embedding"].tobytes())
                    logits.append(inference.mean_logits([*np.moveaxis(part["logits"], 1, 0)], config.predict.mean))
            digest = sha256_of(temporary)
        return np.concatenate(logits), {"numbers": numbers, "sha256": digest}


def _mean_over_windows(samples: DataGenerator, windows: np.ndarray) -> np.ndarray:
    """Return logits and embeddings of slices from those of windows, as their means; structured as `windows`."""
    merged = np.empty(len(samples.ids), windows.dtype)
    for name in windows.dtype.names or ():
        merged[name] = samples.mean_over_windows(windows[name])
    return merged
