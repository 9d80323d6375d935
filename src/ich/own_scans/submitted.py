"""Predictions of the competition's test slices by predict_scans, as a submission takes them."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError, name_some, one_line
from ich.files import sha256_of
from ich.own_scans.tables import UNREAD_COLUMNS
from ich.own_scans.validate import read_record, read_slices
from ich.results.result_directory import shortcomings


class Submitted(NamedTuple):
    """What a submission takes.

    Args:
        predictions: six probabilities, float64, by SOPInstanceUID.
        table: what `ich.competition.submission.fill_missing` takes: slices that were predicted, and those that were
            found and could not be; a slice of which nothing was found is not in it.
        score: of the model, out of fold.
        provenance: as `ich.results.result_directory.describe` tells of a result.
    """

    predictions: pd.DataFrame
    table: pd.DataFrame
    score: dict
    provenance: dict


def read_folder(folder: Path, images: pd.Index) -> Submitted:
    """Read a folder of predict_scans whose source was the competition's test slices.

    A slice that could not be read is known by the name of its file, which in the competition is its SOPInstanceUID;
    where its header is damaged too, by being asked for, as long as no more are than files were left out.

    Args:
        images: the slices that the sample submission asks for.

    Raises:
        IchError: a file is missing or damaged, the predictions are not complete, or two are of one slice.
    """
    record, slices = read_record(folder), read_slices(folder)
    if record.get("complete") is not True:
        raise IchError(f"the predictions of {folder} are not complete; run the same command of predict_scans.py again")
    ids = pd.Index(slices["SOPInstanceUID"], name=INDEX_NAME)
    if not ids.is_unique:
        raise IchError(f"{folder}/slices.csv has two predictions of {name_some(ids[ids.duplicated()])}; predict again")
    model, score = record["model"], record["model"].get("out_of_fold") or {}
    if not {"weighted_log_loss", "of_prevalence"} <= score.keys():
        raise IchError(f"{folder}/predictions.json does not tell the model's out-of-fold score; predict again")
    provenance = {
        "run": model.get("name"),
        "commit": model.get("trained_by_commit"),
        "out_of_fold_weighted_log_loss": score["weighted_log_loss"],
        "prevalence_weighted_log_loss": score["of_prevalence"],
        "warnings": shortcomings(str(model.get("name")), score),
        "predictions": {
            "model": {key: value for key, value in model.items() if key not in ("out_of_fold", "thresholds")},
            "options": record["options"],
            "counts": record.get("counts"),
            "slices_sha256": sha256_of(folder / "slices.csv"),
        },
    }
    predicted = slices[["SOPInstanceUID", "SeriesInstanceUID"]].assign(status="ok")
    table = pd.concat([predicted, _unread(folder, images.difference(ids, sort=False))]).assign(split="test")
    return Submitted(slices[list(LABELS)].set_axis(ids), table, score, provenance)


def _unread(folder: Path, missing: pd.Index) -> pd.DataFrame:
    """Return the rows of the slices that are asked for and were found, but not predicted."""
    broken = _read_csv(folder / "unread.csv", UNREAD_COLUMNS)
    of_series = broken["SeriesInstanceUID"].set_axis(broken["file"].map(lambda name: Path(name).stem))
    known = of_series[of_series.index.isin(missing) & ~of_series.index.duplicated()]
    rest = missing.difference(known.index, sort=False)
    counts = _read_csv(folder / "series.csv", ("files", "slices", "unread")).fillna("0").astype(int)
    left_out = int(counts["files"].sum() - counts["slices"].sum()) - len(known)
    if len(rest) > left_out:
        rest = rest[:0]
    ids = [*known.index, *rest]
    series = [*known, *[None] * len(rest)]
    return pd.DataFrame({"SOPInstanceUID": ids, "SeriesInstanceUID": series, "status": "not_read"})


def _read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, usecols=list(columns))
    except (OSError, ValueError) as error:
        raise IchError(f"{path} cannot be read ({one_line(error)}); make the predictions again") from error
