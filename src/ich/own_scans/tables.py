"""The tables of all scans, slices.csv, scans.csv, series.csv and unread.csv, and index.html."""

import base64
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ich.competition.labels import LABELS
from ich.files import remove, replacing
from ich.own_scans.find import Found
from ich.own_scans.options import Options, named, title
from ich.own_scans.reasons import REASONS
from ich.own_scans.scan_files import COLUMNS, IDS, ScanFiles
from ich.own_scans.series import Series
from ich.report import scan_page
from ich.report.scan_page import IndexRow

UNREAD = ("empty", "unreadable", "damaged_zip", "no_identity")
"""Reasons of files of no series that may have been slices."""

_SCANS = [*IDS[1:], "slices", "thickness_mm", *LABELS, *(f"slice_{label}" for label in LABELS)]
_SERIES = [
    *(*IDS[1:], "modality", "description", "kernel", "files", "slices", "unread", "thickness_mm", "spacing_mm"),
    *("status", "reason", "detail", "notes"),
]
UNREAD_COLUMNS = ("file", "SeriesInstanceUID", "reason")
"""Of unread.csv."""

_OWN = re.compile(r"[0-9a-f]{16}\.(parquet|html)")


class Summary(NamedTuple):
    """What was done.

    Args:
        scans: predicted, those of an earlier run of the same command included.
        slices: predicted.
        skipped: series by the reason why they were not read.
        others: files of no series, by the reason.
        unread: files that should have been read and could not be.
    """

    scans: int
    slices: int
    skipped: dict[str, int]
    others: dict[str, int]
    unread: int


def write_tables(files: ScanFiles, listing: Found) -> tuple[Summary, dict]:
    """Write the CSV files and the index of what the scans' files hold, and remove the files of other scans."""
    options, out = files.options, files.out
    own = ["PatientID"] if options.patient_id else []
    scan_rows, series_rows, unread_rows, index = [], [], [], []
    slices, unread, skipped = 0, 0, Counter[str]()
    with replacing(out / "slices.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join([*COLUMNS, *own]) + "\n")
        for series in listing.series:
            facts = files.facts(series) if series.status == "read" else None
            broken = _broken(series, facts)
            row = _series_row(series, facts, broken, options)
            series_rows.append(row)
            shown = [("", "")] * len(broken) if options.hash_ids else broken  # reasons quote files, too
            unread_rows += [[name, row["SeriesInstanceUID"], reason] for name, reason in shown]
            unread += row["unread"]
            if row["status"] != "read" or facts is None:
                skipped[row["reason"]] += 1
                continue
            rows = pq.read_table(files.path(series)).to_pandas()
            rows.to_csv(file, header=False, index=False, float_format="%.8g", lineterminator="\n")
            slices += len(rows)
            scan_rows.append(_scan_row(rows, facts))
            if options.pages:
                index.append(_index_row(files.path(series), series, scan_rows[-1], facts, options))
    for reason, (count, first) in listing.others.items():
        lost = count if reason in UNREAD else 0
        unread += lost
        row = {"files": count, "slices": 0, "unread": lost, "status": "skipped"}
        detail = "" if options.hash_ids else f"such as {first}"
        series_rows.append(row | {"reason": reason, "detail": detail})
    _write_csv(out / "scans.csv", scan_rows, [*_SCANS, *own])
    _write_csv(out / "series.csv", series_rows, _SERIES)
    _write_csv(out / "unread.csv", unread_rows, UNREAD_COLUMNS)
    if options.pages:
        others = [row for row in series_rows if row["status"] != "read"]
        excluded = [(row.get("description") or _files(row["files"]), row["reason"], row["detail"]) for row in others]
        scan_page.write_index(index, excluded, out / "index.html")
    _discard_others(out / "scans", {files.path(series).stem for series in listing.series if series.status == "read"})
    counts = {"scans": len(scan_rows), "slices": slices, "not_read": dict(skipped), "unread_files": unread}
    others_by_reason = {reason: count for reason, (count, _) in listing.others.items()}
    return Summary(len(scan_rows), slices, dict(skipped), others_by_reason, unread), counts


def _broken(series: Series, facts: dict | None) -> list[tuple[str, str]]:
    """Return the files of a series that could not be read, and why."""
    return [*series.unread, *(() if facts is None else ((file, reason) for file, _, reason in facts["unread"]))]


def _series_row(series: Series, facts: dict | None, broken: list[tuple[str, str]], options: Options) -> dict[str, Any]:
    """Return the row of series.csv."""
    row = {
        "SeriesInstanceUID": named(series.uid, options),
        "StudyInstanceUID": named(series.study, options),
        "modality": series.modality,
        "description": "" if options.hash_ids else series.description,
        "kernel": series.kernel,
        "files": series.files,
        "slices": 0 if facts is None else facts["slices"],
        "unread": len(broken) if series.status == "read" or series.reason == "damaged" else 0,
        "thickness_mm": series.thickness,
        "spacing_mm": series.spacing,
        "status": series.status,
        "reason": series.reason,
        "detail": REASONS.get(series.reason, "") if options.hash_ids else series.detail,
        "notes": "; ".join(series.notes),
    }
    if series.status == "failed":
        row["unread"] = series.files
    if facts is not None and facts["failed"]:
        row |= {"status": "failed", "reason": "not_predicted", "detail": facts["failed"]}
        row["unread"] = series.files
    elif series.status == "read" and broken:
        such_as = "" if options.hash_ids else f", such as {broken[0][0]}: {broken[0][1]}"
        row["detail"] = f"{len(broken)} not read{such_as}"
    return row


def _scan_row(rows: pd.DataFrame, facts: dict) -> dict[str, Any]:
    """Return the row of scans.csv."""
    row: dict[str, Any] = {name: rows[name].iloc[0] for name in IDS[1:]}
    row |= {"slices": len(rows), "thickness_mm": facts["thickness_mm"]}
    for label in LABELS:
        strongest = _middle_of_highest(rows[label].to_numpy())
        row |= {label: rows[label].iloc[strongest], f"slice_{label}": rows["SOPInstanceUID"].iloc[strongest]}
    return row | ({"PatientID": rows["PatientID"].iloc[0]} if "PatientID" in rows else {})


def _middle_of_highest(probabilities: np.ndarray) -> int:
    """The middle place of the first run of the highest value: of a slab, whose slices have one probability."""
    first = int(probabilities.argmax())
    lower = np.flatnonzero(probabilities[first:] < probabilities[first])
    length = int(lower[0]) if len(lower) else len(probabilities) - first
    return first + (length - 1) // 2


def _index_row(path: Path, series: Series, scan: dict, facts: dict, options: Options) -> IndexRow:
    return IndexRow(
        page=f"scans/{path.stem}.html",
        title=title(series, options),
        study=scan["StudyInstanceUID"],
        slices=scan["slices"],
        probabilities=[scan[label] for label in LABELS],
        thumbnail=base64.b64decode(facts["thumbnail"]),
        notes=[*series.notes, *([f"{len(facts['unread'])} slice(s) not read"] if facts["unread"] else [])],
    )


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def _write_csv(path: Path, rows: list, columns: Sequence[str]) -> None:
    with replacing(path) as temporary:
        frame = pd.DataFrame(rows, columns=columns)
        frame.to_csv(temporary, index=False, float_format="%.8g", lineterminator="\n")


def _discard_others(folder: Path, kept: set[str]) -> None:
    """Remove the pages and rows of scans that are in the sources no more."""
    for path in folder.glob("*"):
        if _OWN.fullmatch(path.name) and path.stem not in kept:
            remove(path)
