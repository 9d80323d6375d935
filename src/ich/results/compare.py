"""Compare results of any kind (run, second stage, blend), and write those made of others.

It reads from a result's directory `oof.parquet`, the out-of-fold predictions; `environment.json`, for the digest of the
folds; `config.yaml`, for the path of the folds; and `predictions_test.parquet`, if there is one.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from ich import folders
from ich.competition import metrics
from ich.competition.folds import read_folds
from ich.competition.labels import INDEX_NAME, LABELS, METRIC_WEIGHTS
from ich.errors import IchError, name_some
from ich.files import names_in, remove, replacing, sha256_of, sweep, write_json
from ich.results import bootstrap, environment
from ich.results.predictions import read_predictions, write_predictions
from ich.results.result_directory import check_alike, check_folds, check_result, passes_of, read_mapping


class Results(NamedTuple):
    """Out-of-fold predictions of several results with the same folds.

    Args:
        table: the folds, from `ich.competition.folds.read_folds`.
        oof: directory as the user named it -> probabilities, float32, shape (slices of `table`, 6), in its order.
        data: the data section of the first directory's config, with the path that was read as `folds`.
        folds_sha256: the digest of the folds, the same for all.
    """

    table: pd.DataFrame
    oof: dict[str, np.ndarray]
    data: dict
    folds_sha256: str


def read_results(paths: Sequence[Path], folds_path: Path | None = None) -> Results:
    """Read the out-of-fold predictions of several directories, and their common folds.

    Args:
        folds_path: of the folds; None takes it from the first directory's config.

    Raises:
        IchError: a directory is named twice or has no predictions; the folds cannot be found; a directory was made with
            other folds; its predictions are not of exactly the folds' slices.
    """
    twice = [path for place, path in enumerate(paths) if path in paths[:place]]
    if twice:
        raise IchError(f"{twice[0]} is named twice; name each once")
    for path in paths:
        check_result(path)
    data = read_mapping(paths[0] / "config.yaml").get("data")
    data = data if isinstance(data, dict) else {}
    if folds_path is None:
        if not data.get("folds") and not data.get("images"):
            raise IchError(
                f"{paths[0]}/config.yaml lacks the path of the folds (data.folds or data.images); name"
                " their file with --folds"
            )
        folds_path = Path(data.get("folds") or Path(data["images"]) / "folds.csv")
    table = read_folds(folds_path)
    digest = sha256_of(folds_path)
    oof = {}
    for path in paths:
        check_folds(path, digest, folds_path)
        oof[str(path)] = _rows_of(table.index, path / "oof.parquet", f"slices of {folds_path}")
    return Results(table, oof, data | {"folds": str(folds_path)}, digest)


def data_of(path: Path) -> tuple[Path, Path, list[Path]]:
    """Return the paths of images, folds and DICOM files from a config or a result directory.

    Args:
        path: a YAML file, or a directory that holds config.yaml.

    Returns:
        (folder of the images, file of the folds, sources); they may not exist.

    Raises:
        IchError: the config cannot be read, or lacks data.images.
    """
    if not path.is_file():
        check_result(path)
        path /= "config.yaml"
    data = read_mapping(path).get("data")
    if not isinstance(data, dict) or not data.get("images"):
        raise IchError(f"{path} does not say where the images are; expected data.images")
    folds = data.get("folds") or Path(data["images"]) / "folds.csv"
    return Path(data["images"]), Path(folds), sources_in(data)


def sources_in(data: Mapping) -> list[Path]:
    """Return the folders and zips of DICOM files in a config's data section."""
    sources = data.get("sources") or []
    return [Path(source) for source in ([sources] if isinstance(sources, str) else sources)]


def read_test(paths: Sequence[Path]) -> tuple[pd.Index, np.ndarray]:
    """Read the test predictions of several directories.

    Returns:
        (ids, probabilities): the slices in the first directory's order, and float32, shape (directories, slices, 6).

    Raises:
        IchError: a directory has none, has other slices, or made them in another way than out of fold.
    """
    for path in paths:
        check_alike(path)
    ids = read_predictions(paths[0] / "predictions_test.parquet").index
    what = f"slices of {paths[0]}/predictions_test.parquet"
    return ids, np.stack([_rows_of(ids, path / "predictions_test.parquet", what) for path in paths])


def compare(table: pd.DataFrame, predictions: Mapping[str, np.ndarray], baseline: str) -> pd.DataFrame:
    """Compute scores and their differences from a baseline, with intervals on the same resampled patients.

    Args:
        table: as in `Results`.
        predictions: name -> probabilities, shape (n, 6).
        baseline: the name to compare with.

    Returns:
        A row a name; columns weighted_log_loss, its standard_error, low and high; difference (its loss minus the
        baseline's: negative is better), difference_standard_error, difference_low and difference_high; the six labels'
        log losses. Intervals are of 95 %, by bootstrap over patients.
    """
    y, patients = table[list(LABELS)].to_numpy(), table["PatientID"].to_numpy()
    by_label = {name: metrics.log_losses(y, p) for name, p in predictions.items()}
    losses = np.stack(
        [np.average(loss, axis=1, weights=list(METRIC_WEIGHTS.values())) for loss in by_label.values()], 1
    )
    place = list(by_label).index(baseline)
    scores = bootstrap.estimate(losses, patients)
    differences = bootstrap.estimate(losses - losses[:, [place]], patients)
    names = ("weighted_log_loss", "standard_error", "low", "high")
    columns: dict[str, Sequence[float] | np.ndarray] = dict(zip(names, scores, strict=True))
    columns |= dict(zip(("difference", *(f"difference_{name}" for name in names[1:])), differences, strict=True))
    columns |= {label: [loss[:, k].mean() for loss in by_label.values()] for k, label in enumerate(LABELS)}
    return pd.DataFrame(columns, index=pd.Index(by_label, name="run"))


def working_in(out: Path, config: dict) -> AbstractContextManager[None]:
    """Lock a result's directory, which must be empty or hold results of this config, against other processes.

    Raises:
        IchError: it has other content, or another process works in it.
    """

    def check() -> None:
        ours = folders.is_ours(out, folders.RESULT)
        if ours and set(names_in(out)) != {"environment.json"} and read_mapping(out / "config.yaml") != config:
            raise IchError(f"{out} holds other files than this blend's results; name another directory")

    return folders.locked(out, check)


def write_results(
    out: Path, config: dict, results: Results, oof: np.ndarray, test: pd.DataFrame | None, score: dict
) -> None:
    """Write a blend as a result's directory.

    Args:
        out: the directory, within `working_in`.
        config: plain values, with a data section that has the path of the folds.
        results: what it was made of; environment.json has the SHA-256 of each one's predictions.
        oof: probabilities of `results.table`'s slices, shape (n, 6).
        test: probabilities of the test slices, indexed by SOPInstanceUID, or None.
        score: plain values.

    Raises:
        IchError: a file cannot be written.
    """
    sweep(out)
    remove(out / "score.json", out / "predictions_test.parquet")  # of an earlier blend of the same name
    made_of = {name: sha256_of(Path(name) / "oof.parquet") for name in results.oof}
    facts = environment.environment() | {"folds_sha256": results.folds_sha256, "made_of": made_of}
    facts["passes"] = {name: passes_of(Path(name)) for name in results.oof}
    write_json(out / "environment.json", facts)  # first, as it marks the directory as ours
    with replacing(out / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False))
    provenance = {"made_of": made_of}
    write_predictions(frame(results.table.index, oof), out / "oof.parquet", provenance)
    if test is not None:
        write_predictions(test, out / "predictions_test.parquet", provenance)
    write_json(out / "score.json", score)


def frame(ids: pd.Index, probabilities: np.ndarray) -> pd.DataFrame:
    """Return probabilities, shape (n, 6), as a frame for `ich.results.predictions.write_predictions`."""
    return pd.DataFrame(probabilities, index=ids.rename(INDEX_NAME), columns=list(LABELS))


def judge(results: Results, probabilities: np.ndarray) -> dict:
    """Return the score of a blend of several results, and its gain over the best of them.

    The best is selected by its score on the same slices, which is biased in its favor: the gain is an underestimate.

    Args:
        probabilities: of each slice by a blend that was not fitted on its patient, shape (n, 6).

    Returns:
        The content of `ich.competition.metrics.summary`; `runs`, the score of each; `best_run`; `gain`, with its
        standard error and 95 % interval by bootstrap over patients. Plain values.
    """
    score = metrics.summary(results.table[list(LABELS)].to_numpy(), probabilities)
    alone = {name: metrics.weighted_log_loss(results.table[list(LABELS)], p) for name, p in results.oof.items()}
    best = min(alone, key=lambda name: alone[name])
    gain = compare(results.table, {"best": results.oof[best], "blend": probabilities}, baseline="blend").loc["best"]
    return score | {
        "runs": alone,
        "best_run": best,
        "gain": float(gain["difference"]),
        "gain_standard_error": float(gain["difference_standard_error"]),
        "gain_interval": [float(gain["difference_low"]), float(gain["difference_high"])],
    }


def _rows_of(ids: pd.Index, path: Path, what: str) -> np.ndarray:
    """Return the predictions of a file in the order of `ids`, which must be exactly its slices."""
    frame = read_predictions(path)
    if not frame.index.is_unique:
        raise IchError(f"{path} has {frame.index[frame.index.duplicated()][0]} twice; make it again")
    differing = frame.index.symmetric_difference(ids)
    if len(differing):
        raise IchError(
            f"{path} has predictions of {len(frame):,} slices, not of the {len(ids):,} {what}; they differ in"
            f" {name_some(differing)}: make it again from the same images"
        )
    return frame.loc[ids].to_numpy(dtype=np.float32)
