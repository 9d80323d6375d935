"""Features of slices for a second stage: what each fold's model tells of them, as logits and as embeddings.

In `fold<k>/features/`, of fold k's model, each in scan order:

oof.parquet, oof.npy      the slices that it held out
seen.parquet, seen.npy    those that it was trained on, with embeddings alone
test.parquet, test.npy    the test set

A Parquet file has six float32 logits a slice, in the order of its index, and is written last; how it was made and the
digest of its .npy are a part of it. The .npy holds the embeddings, float16, shape (slices, n): what the model's last
layer reads, see `ich.models.backbones.with_features`. Both are the mean over the TTA passes, the logits as
`predict.mean` says.

Of what a model has trained on, its features are better than they are of new patients: it knows those slices by heart.
"""

from collections.abc import Callable
from functools import cache, partial
from hashlib import file_digest
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pyarrow as pa

from ich.competition import folds
from ich.competition.labels import INDEX_NAME, LABELS
from ich.data import augment
from ich.data.generator import DataGenerator
from ich.errors import IchError, name_some, one_line
from ich.files import remove, replacing, sweep
from ich.models import backbones
from ich.results.predictions import read_predictions, read_provenance, write_predictions
from ich.second_stage import scans
from ich.training import inference, run_directory
from ich.training.chunked_inference import predict_parts, read_part
from ich.training.run_directory import Run


def extract(run: Run, embeddings: bool, results: Run | None = None) -> list[Path]:
    """Write the features of every readable slice, by the models that `ich.second_stage.embeddings` says.

    Logits alone are put together from the passes that `ich.training.inference.predict_test` keeps, or makes. With
    embeddings,
    each batch goes through all passes at once: memory does not grow with slices or passes, nor does the disk with
    passes. Nothing is made again that is there and was made of the same model, slices and passes; what was begun goes
    on where it was.

    Args:
        results: to whose directory all is written, if not to the run's own; see `runs.Run.elsewhere`.

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
    run.check_data()
    with (results or run).locked_whole():
        return _extract_all(run, embeddings, results or run)


def _extract_all(run: Run, embeddings: bool, results: Run) -> list[Path]:
    """As `extract`, in a directory that others are kept from."""
    columns = [*run_directory.DIGESTED, "SeriesInstanceUID", "z"]
    table = run_directory.slices_of(run.config, columns).set_index(INDEX_NAME)
    fold = folds.read_folds(run.config.data.folds_path)["fold"]
    test = inference.split_slices(run.config, "test").index
    written = []
    for k in range(run.config.folds.n):
        parts = {"oof": fold.index[fold == k]}
        if embeddings:
            parts["seen"] = fold.index[fold != k]
        if len(test):
            parts["test"] = test
        distribute = run.config.machine.distribute
        model = cache(partial(inference.load_model, run, k, distribute))  # read if a pass is to be made, and once
        for folder in (results.features(k), results.passes(k)):
            sweep(folder)
        for part, ids in parts.items():
            rows = table.loc[in_scan_order(table, ids)]
            written.append(_extract(run, k, part, rows, embeddings, model, results))
    return written


def in_scan_order(table: pd.DataFrame, ids: pd.Index) -> pd.Index:
    """Slices in the order that `ich.second_stage.scans.arrange` gives them.

    Args:
        table: as it takes it.
    """
    return scans.arrange(table, pd.DataFrame(0.0, ids, list(LABELS))).ids


def read(folder: Path, part: str) -> tuple[pd.DataFrame, np.ndarray, dict]:
    """Read what `extract` wrote with embeddings.

    Args:
        folder: `runs.Run.features` of a fold.
        part: oof, seen or test.

    Returns:
        (logits, embeddings, provenance): float32, six columns by SOPInstanceUID; float16, (slices, n), in the same
        order, mapped from the file; how they were made.

    Raises:
        IchError: there are none, or the files are damaged or not of each other.
    """
    path = folder / f"{part}.parquet"
    again = f"run scripts/extract_features.py {folder.parents[1]} --embeddings"
    provenance = read_provenance(path)
    if provenance is None or not provenance.get("embeddings"):
        raise IchError(f"{path} is missing or tells of no embeddings; {again}")
    logits, file = read_predictions(path), path.with_suffix(".npy")
    told = provenance["embeddings"]
    try:
        with file.open("rb") as opened:
            digest = file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise IchError(f"{file} cannot be read ({one_line(error)}); delete {path}, and {again}") from error
    if digest != told["sha256"]:
        raise IchError(f"{file} is damaged, or not of the slices that {path} lists; delete both, and {again}")
    return logits, np.load(file, mmap_mode="r", allow_pickle=False), provenance


def check_honest(path: Path, table: pd.DataFrame, test: pd.Index | None) -> list[Path]:
    """Prove that each model's features are of the slices that they should be, and that it saw none of its fold.

    The model that made them is the one that predicted its fold as held out, and
    `ich.second_stage.inputs.check_out_of_fold` has found these predictions to be of that fold alone.

    Args:
        path: the run's directory.
        table: the folds, as `ich.competition.folds.read_folds` gives them.
        test: the slices of the test set; None asks for no features of it.

    Returns:
        The Parquet files, fold by fold, those of the test set last in each.

    Raises:
        IchError: features are missing, or of other slices; they are of another model than predicted the fold; or they
            were made in two ways.
    """
    again = f"run scripts/extract_features.py {path} --embeddings"
    files, hows = [], set()
    for k in sorted(table["fold"].unique()):
        held_out = path / f"fold{k}" / "oof.parquet"
        model = (read_provenance(held_out) or {}).get("model")
        wanted = {"oof": table.index[table["fold"] == k], "seen": table.index[table["fold"] != k]}
        if test is not None:
            wanted["test"] = test
        for part, ids in wanted.items():
            file = held_out.parent / "features" / f"{part}.parquet"
            made = read_provenance(file) or {}
            if not made.get("embeddings"):
                raise IchError(f"{file} is missing or tells of no embeddings; {again}")
            if model is None or made["model"] != model:
                raise IchError(
                    f"{file} is of another model than {held_out}, so that nothing tells whose patients it has not seen;"
                    f" run scripts/predict.py {path}, then {again}"
                )
            differing = read_predictions(file).index.symmetric_difference(ids)
            if len(differing):
                raise IchError(f"{file} is of other slices than it should be: {name_some(differing)}; {again}")
            hows.add((*made["tta"], made["mean"]))
            files.append(file)
    if len(hows) > 1:
        raise IchError(f"the features of {path} were made in {len(hows)} ways, {hows}; {again}")
    return files


def _extract(
    run: Run,
    k: int,
    part: str,
    rows: pd.DataFrame,
    embeddings: bool,
    model: Callable[[], keras.Model],
    results: Run,
) -> Path:
    """Write one part; nothing to do if it is there.

    Args:
        rows: of the slice table, in scan order.
    """
    section = run.config.predict
    path = results.features(k) / f"{part}.parquet"
    made: dict[str, Any] = {
        "model": inference.model_digest(run, k),
        "slices": run_directory.slices_digest(rows),
        "tta": section.tta,
        "mean": section.mean,
    }
    then = read_provenance(path) or {}
    enough = not embeddings or (then.get("embeddings") and path.with_suffix(".npy").is_file())
    if enough and {key: then.get(key) for key in made} == made:
        run_directory.discard_parts(path)  # they are there if a kill came before their removal
        return path
    if embeddings:
        logits, made["embeddings"] = _with_embeddings(run, k, part, rows, made, model, path)
    else:
        logits = _from_passes(run, k, part, rows, model, results)
        remove(path.with_suffix(".npy"))  # of another model, or other passes
    write_predictions(pd.DataFrame(logits, rows.index, list(LABELS)), path, made)
    run_directory.discard_parts(path)
    return path


def _from_passes(
    run: Run,
    k: int,
    part: str,
    rows: pd.DataFrame,
    model: Callable[[], keras.Model],
    results: Run,
) -> np.ndarray:
    """The mean logits of the passes that predictions are made of, which are there if the run has predicted."""
    # In the order of predictions, not in that of scans: the files are theirs.
    split = "train" if part == "oof" else "test"
    ids = inference.split_slices(run.config, split)
    if part == "oof":
        table = folds.read_folds(run.config.data.folds_path)
        ids = ids.loc[table.index[table["fold"] == k]]
    digest = run_directory.slices_digest(ids)
    told = [
        inference.pass_logits(
            run, k, part, name, ids.index, digest, model, results.passes(k) / f"{part}-{name}.parquet"
        )
        for name in run.config.predict.tta
    ]
    frame = pd.DataFrame(inference.mean_logits(told, run.config.predict.mean), ids.index)
    return frame.loc[rows.index].to_numpy()


def _with_embeddings(
    run: Run,
    k: int,
    part: str,
    rows: pd.DataFrame,
    made: dict,
    model: Callable[[], keras.Model],
    path: Path,
) -> tuple[np.ndarray, dict]:
    """Logits of a part, its embeddings written; and what is to be told of them."""
    config = run.config
    network = backbones.with_features(model())
    numbers = network.outputs[1].shape[-1]
    row = np.dtype([("logits", np.float32, len(LABELS)), ("embedding", np.float16, numbers)])

    def merge(told: list) -> np.ndarray:
        merged = np.empty(len(told[0][0]), row)
        merged["logits"] = inference.mean_logits([logits for logits, _ in told], config.predict.mean)
        with np.errstate(over="ignore"):  # told below
            merged["embedding"] = np.mean([embedding.astype(np.float32) for _, embedding in told], axis=0)
        if not np.isfinite(merged["embedding"]).all():
            raise IchError(
                f"fold {k}'s model gives embeddings that are no numbers of float16 (up to 65,504); train"
                " another run with a lower train.learning_rate, or work with its logits alone"
            )
        return merged

    transforms = augment.passes(config.predict.tta, *network.input_shape[1:3])
    options = inference.generator_options(config, "test" if part == "test" else "train")
    samples = DataGenerator(rows.index, batch_size=config.predict.batch_size, tta=transforms, **options)
    passes = [samples.at_pass(number) for number in range(len(transforms))]
    saved = predict_parts(network, passes, inference.parts_of(path, made, config), merge, f"fold {k}, {part}, features")
    file, logits = path.with_suffix(".npy"), []
    # Not through a map of the file: where the disk is full, that is no error that could be told, but the end.
    with replacing(file) as temporary:
        with temporary.open("wb") as opened:
            header = {"descr": "<f2", "fortran_order": False, "shape": (len(rows), numbers)}
            np.lib.format.write_array_header_1_0(opened, header)
            for one in saved:
                told = read_part(one)
                opened.write(told["embedding"].tobytes())
                logits.append(told["logits"].copy())
        with temporary.open("rb") as opened:
            digest = file_digest(opened, "sha256").hexdigest()
    return np.concatenate(logits), {"numbers": numbers, "sha256": digest}
