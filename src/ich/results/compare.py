"""Results side by side, whatever made them: a run, its sequence stage, a blend.

Of a result's directory this reads `oof.parquet`, the out-of-fold predictions; `environment.json`, for the digest of the
folds; `config.yaml`, for where the folds are; and `predictions_test.parquet`, if it is there.
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
    """Out-of-fold predictions that belong side by side.

    Args:
        table: the folds, as `ich.competition.folds.read_folds` gives them.
        oof: directory, as it was named -> probabilities, float32, shape (slices of `table`, 6), in its order.
        data: the data section of the first directory's config, with `folds` where they were read.
        folds_sha256: the digest that all of them name.
    """

    table: pd.DataFrame
    oof: dict[str, np.ndarray]
    data: dict
    folds_sha256: str


def read_results(paths: Sequence[Path], folds_path: Path | None = None) -> Results:
    """Read the out-of-fold predictions of several directories, and the folds that they share.

    Args:
        folds_path: of the folds; None takes the path in the first directory's config.

    Raises:
        IchError: a directory is named twice or has no predictions; the folds cannot be found; a directory was made with
            other folds; its predictions are not those of the folds' slices.
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
            raise IchError(f"{paths[0]}/config.yaml does not say where the folds are; name their file with --folds")
        folds_path = Path(data.get("folds") or Path(data["images"]) / "folds.csv")
    table = read_folds(folds_path)
    digest = sha256_of(folds_path)
    oof = {}
    for path in paths:
        check_folds(path, digest, folds_path)
        oof[str(path)] = _rows_of(table.index, path / "oof.parquet", f"slices of {folds_path}")
    return Results(table, oof, data | {"folds": str(folds_path)}, digest)


def data_of(path: Path) -> tuple[Path, Path, list[Path]]:
    """Where the images, the folds and the DICOM files are, by a config or a result directory.

    Args:
        path: a YAML file, or a directory that holds config.yaml.

    Returns:
        (folder of the images, file of the folds, sources); whether they are there is not looked at.

    Raises:
        IchError: it cannot be read, or does not say where the images are.
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
    """Folders and zips of DICOM files that a config's section data names."""
    sources = data.get("sources") or []
    return [Path(source) for source in ([sources] if isinstance(sources, str) else sources)]


def read_test(paths: Sequence[Path]) -> tuple[pd.Index, np.ndarray]:
    """The test predictions of several directories.

    Returns:
        (ids, probabilities): the slices in the order of the first directory's, and float32, shape (directories,
        slices, 6).

    Raises:
        IchError: a directory has none, or of other slices, or made in another way than out of fold.
    """
    for path in paths:
        check_alike(path)
    ids = read_predictions(paths[0] / "predictions_test.parquet").index
    what = f"slices of {paths[0]}/predictions_test.parquet"
    return ids, np.stack([_rows_of(ids, path / "predictions_test.parquet", what) for path in paths])


def compare(table: pd.DataFrame, predictions: Mapping[str, np.ndarray], baseline: str) -> pd.DataFrame:
    """Scores side by side, and their differences from one of them, all on the same resampled patients.

    Args:
        table: as in `Results`.
        predictions: name -> probabilities, shape (n, 6).
        baseline: the name to compare with.

    Returns:
        A row a name; columns weighted_log_loss, its standard_error, low and high; difference (its own less the
        baseline's: negative is better), difference_standard_error, difference_low and difference_high; the six labels'
        log losses. Intervals are of 95 %, by bootstrap over patients.
    """
    y, patients = table[list(LABELS)].to_numpy(), table["PatientID"].to_numpy()
    by_label = {name: metrics.log_losses(y, p) for name, p in predictions.items()}
    losses = np.stack([np.average(own, axis=1, weights=list(METRIC_WEIGHTS.values())) for own in by_label.values()], 1)
    place = list(by_label).index(baseline)
    scores = bootstrap.estimate(losses, patients)
    differences = bootstrap.estimate(losses - losses[:, [place]], patients)
    names = ("weighted_log_loss", "standard_error", "low", "high")
    columns: dict[str, Sequence[float] | np.ndarray] = dict(zip(names, scores, strict=True))
    columns |= dict(zip(("difference", *(f"difference_{name}" for name in names[1:])), differences, strict=True))
    columns |= {label: [own[:, k].mean() for own in by_label.values()] for k, label in enumerate(LABELS)}
    return pd.DataFrame(columns, index=pd.Index(by_label, name="run"))


def working_in(out: Path, config: dict) -> AbstractContextManager[None]:
    """Keep other processes from a directory, which must hold nothing or results of this config.

    Raises:
        IchError: it holds something else, or another process works in it.
    """

    def check() -> None:
        ours = folders.is_ours(out, folders.RESULT)
        if ours and set(names_in(out)) != {"environment.json"} and read_mapping(out / "config.yaml") != config:
            raise IchError(f"{out} holds something else than this blend's results; name another directory")

    return folders.locked(out, check)


def write_results(
    out: Path, config: dict, found: Results, oof: np.ndarray, test: pd.DataFrame | None, score: dict
) -> None:
    """Write what was made of other directories' predictions as such a directory itself.

    Args:
        out: the directory, within `working_in`.
        config: plain values, with a data section that says where the folds are.
        found: what it was made of; environment.json names each one's predictions by their SHA-256.
        oof: probabilities of `found.table`'s slices, shape (n, 6).
        test: probabilities of the test slices, indexed by SOPInstanceUID, or None.
        score: plain values.

    Raises:
        IchError: a file cannot be written.
    """
    sweep(out)
    remove(out / "score.json", out / "predictions_test.parquet")  # of an earlier blend of the same name
    made_of = {name: sha256_of(Path(name) / "oof.parquet") for name in found.oof}
    facts = environment.environment() | {"folds_sha256": found.folds_sha256, "made_of": made_of}
    facts["passes"] = {name: passes_of(Path(name)) for name in found.oof}
    write_json(out / "environment.json", facts)  # first: it tells whose the directory is
    with replacing(out / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False))
    provenance = {"made_of": made_of}
    write_predictions(frame(found.table.index, oof), out / "oof.parquet", provenance)
    if test is not None:
        write_predictions(test, out / "predictions_test.parquet", provenance)
    write_json(out / "score.json", score)


def frame(ids: pd.Index, probabilities: np.ndarray) -> pd.DataFrame:
    """Probabilities, shape (n, 6), as `ich.results.predictions.write_predictions` takes them."""
    return pd.DataFrame(probabilities, index=ids.rename(INDEX_NAME), columns=list(LABELS))


def judge(found: Results, probabilities: np.ndarray) -> dict:
    """The score of what was made of several directories' predictions, and its gain over the best of them.

    The best is picked by its score on these very slices, which flatters it: the gain errs on the low side.

    Args:
        probabilities: of each slice by what was not fitted on its patient, shape (n, 6).

    Returns:
        What `ich.competition.metrics.summary` tells; `runs`, each one's own score; `best_run`; `gain`, with its
        standard error and 95 % interval by bootstrap over patients. Plain values.
    """
    score = metrics.summary(found.table[list(LABELS)].to_numpy(), probabilities)
    alone = {name: metrics.weighted_log_loss(found.table[list(LABELS)], p) for name, p in found.oof.items()}
    best = min(alone, key=lambda name: alone[name])
    told = compare(found.table, {"best": found.oof[best], "made": probabilities}, baseline="made").loc["best"]
    return score | {
        "runs": alone,
        "best_run": best,
        "gain": float(told["difference"]),
        "gain_standard_error": float(told["difference_standard_error"]),
        "gain_interval": [float(told["difference_low"]), float(told["difference_high"])],
    }


def _rows_of(ids: pd.Index, path: Path, what: str) -> np.ndarray:
    """Predictions in the order of `ids`, of which there must be exactly those."""
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
