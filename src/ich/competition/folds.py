"""Folds for cross-validation, stratified by label and grouped by patient.

Why not scikit-learn: its StratifiedGroupKFold refuses multi-label targets, and GroupKFold balances the number of slices
alone. A fold may then hold half as many epidural hemorrhages as another, as 0.4 % of the slices show one.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from ich.competition.labels import INDEX_NAME, LABELS, check_frame
from ich.errors import IchError, name_some, one_line, or_na
from ich.files import replacing

COLUMNS: tuple[str, ...] = ("PatientID", "fold", *LABELS)

# Shares of the total are integers in this unit: their sums and products are exact, so that a seed gives the same folds
# on every machine. Below 2**29, so that a sum of eight products fits int64.
_WHOLE = 2**28
# More partners for a swap cost time without a measurable gain.
_PARTNERS = 512
# Nor does a third pass gain anything.
_PASSES = 2

_REMAKE = "name another file (data.folds), or, if it is damaged, remove it and run scripts/make_folds.py"


def make_folds(frame: pd.DataFrame, n_folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Assign each patient to a fold, so that patients, slices and all six labels spread evenly.

    Patients with the largest shares come first; each joins the fold that keeps the sum of squared fold loads least.
    Then patients of different folds are swapped while that sum falls. Among equal patients the seed and the ids decide,
    not the order of the rows.

    Args:
        frame: one row a slice: index SOPInstanceUID, column PatientID (strings) and the six of `LABELS` (int8).
        n_folds: 2 or more.
        seed: of the random choice among equal patients.

    Returns:
        The same rows in the same order; columns PatientID, fold (int64, 0 to n_folds - 1) and the six labels.

    Raises:
        IchError: n_folds is below 2 or above the number of patients; a slice has no PatientID or is listed twice;
            `ich.competition.labels.check_frame` refuses the labels.
    """
    if n_folds < 2:
        raise IchError(f"n_folds is {n_folds}, but cross-validation needs 2 or more; set it to 5, for example")
    _check_slices(frame, "the frame to fold")
    # Sorted, so that the order of the rows has no effect.
    patient, patients = pd.factorize(frame["PatientID"], sort=True)
    if len(patients) < n_folds:
        fewer = f"set folds.n to {len(patients)} at most, or " if len(patients) > 1 else ""
        raise IchError(
            f"{len(patients)} patient{'s are' if len(patients) != 1 else ' is'} too few for {n_folds} folds, as a "
            f"patient is never split; {fewer}add patients with labeled slices"
        )
    counts = np.empty((len(patients), 2 + len(LABELS)), dtype=np.int64)
    counts[:, 0] = 1
    counts[:, 1] = np.bincount(patient)
    for column, label in enumerate(LABELS, start=2):
        counts[:, column] = np.bincount(patient, weights=frame[label])
    fold = _assign(counts, n_folds, np.random.default_rng(seed))
    return frame.assign(fold=fold[patient])[list(COLUMNS)]


def _assign(counts: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Return the fold of each patient.

    All folds have the same target load, so the best balance has the least sum of squared loads. A patient of shares s
    adds 2 (load · s) + s · s to the square of the fold they join: least where load · s is least.

    Args:
        counts: int64, shape (patients, quantities): each patient's amount of each quantity to balance.

    Returns:
        int64, shape (patients,).
    """
    shares = np.rint(counts / np.maximum(counts.sum(axis=0), 1) * _WHOLE).astype(np.int64)
    shuffled = rng.permutation(len(counts))
    largest_first = shuffled[np.argsort(-shares[shuffled].max(axis=1), kind="stable")]

    loads = np.zeros((n_folds, counts.shape[1]), dtype=np.int64)
    fold = np.empty(len(counts), dtype=np.int64)
    # No fold stays empty: patients are a quantity of their own, so that only an empty fold has load · s = 0.
    for patient in largest_first:
        fold[patient] = (loads @ shares[patient]).argmin()
        loads[fold[patient]] += shares[patient]

    # Closed to a ring, so that the last patients have partners too; of few patients each meets all.
    ring = np.concatenate([shuffled, shuffled[:_PARTNERS]])
    for _ in range(_PASSES):
        swaps = 0
        for place, patient in enumerate(shuffled):
            partners = ring[place : place + _PARTNERS]
            home = fold[patient]
            gains = shares[partners] - shares[patient]
            # Half the change of the sum of squares, if the patient's fold gains this and the partner's loses it.
            change = (gains * (loads[home] - loads[fold[partners]] + gains)).sum(axis=1)
            change[fold[partners] == home] = 0
            best = change.argmin()
            if change[best] < 0:
                other = partners[best]
                loads[home] += gains[best]
                loads[fold[other]] -= gains[best]
                fold[patient], fold[other] = fold[other], home
                swaps += 1
        if swaps == 0:
            break
    return fold


@dataclass(frozen=True, slots=True)
class Audit:
    """The balance of folds and their shared patients; `str()` gives a table.

    Args:
        table: a row for each fold: patients and slices (int64), then the prevalence of each label (share of slices).
        deviation: for each label, the largest relative deviation of a fold's prevalence from that of all slices; NaN
            if no slice has the label.
        shared: number of patients that each fold (row) shares with each other one (column), int64; 0 on the diagonal,
            and everywhere in sound folds.
        leaking: PatientIDs of these patients, sorted.
    """

    table: pd.DataFrame
    deviation: pd.Series
    shared: pd.DataFrame
    leaking: tuple[str, ...]

    def __str__(self) -> str:
        shown = self.table.astype(str)
        for label in LABELS:
            shown[label] = [f"{share:.3%}" for share in self.table[label]]
        shown.loc["deviation"] = ["", "", *(or_na(self.deviation[label], ".2%") for label in LABELS)]
        if self.leaking:
            verdict = f"LEAK: patients in more than one fold: {name_some(self.leaking)}"
        else:
            verdict = "no patient is in two folds"
        return f"{shown.to_string()}\n{verdict}; deviation: of the worst fold's prevalence from that of all slices"


def audit(folds: pd.DataFrame) -> Audit:
    """Count patients, slices and labels of each fold, and find patients in two folds, independently of `make_folds`.

    Args:
        folds: columns PatientID, fold and the six labels, a row for each slice.
    """
    by_fold = dict(list(folds.groupby("fold")))
    members = {fold: set(rows["PatientID"]) for fold, rows in by_fold.items()}
    table = pd.DataFrame(
        {
            "patients": {fold: len(ids) for fold, ids in members.items()},
            "slices": {fold: len(rows) for fold, rows in by_fold.items()},
        }
        | {label: {fold: rows[label].mean() for fold, rows in by_fold.items()} for label in LABELS}
    ).rename_axis("fold")
    whole = folds[list(LABELS)].mean()
    shared = pd.DataFrame(
        {a: {b: len(members[a] & members[b]) if a != b else 0 for b in members} for a in members}, dtype="int64"
    )
    leaking = set().union(*(members[a] & members[b] for a in members for b in members if a < b))
    return Audit(
        table=table,
        deviation=(table[list(LABELS)] / whole - 1).abs().max(),
        shared=shared,
        leaking=tuple(sorted(leaking)),
    )


def check_no_shared_patients(folds: pd.DataFrame) -> None:
    """Refuse folds that share a patient.

    Raises:
        IchError: a patient is in more than one fold; the message names them.
    """
    leaking = audit(folds).leaking
    if leaking:
        raise IchError(
            f"patients in more than one fold: {name_some(leaking)}; the score would be of patients seen in training: "
            "delete the file of folds, and make it again with scripts/make_folds.py"
        )


def write_folds(path: str | Path, folds: pd.DataFrame) -> None:
    """Write the CSV that training reads: SOPInstanceUID, PatientID, fold and the six labels, a row for each slice.

    Identifiers are written unchanged, with control characters and line breaks: PS3.5 (6.2) forbids these, but they may
    be all that distinguishes two patients.

    Raises:
        IchError: `read_folds` would refuse the frame, or the system refuses the write.
    """
    _check_folds(folds, "the frame of folds")
    with replacing(Path(path)) as temporary:
        returns = folds["PatientID"].str.contains("\r").any() or folds.index.str.contains("\r").any()
        # The csv module quotes a field with a line feed, but not one with a carriage return.
        quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
        folds[list(COLUMNS)].to_csv(temporary, lineterminator="\n", quoting=quoting)


def cannot_read(path: Path, error: OSError) -> IchError:
    """Return the error for a file of folds that the system cannot open."""
    advice = "make it with scripts/make_folds.py"
    if isinstance(error, FileNotFoundError) and not path.is_absolute():
        advice = f"work in the directory where it was made, or {advice}"
    return IchError(f"cannot read {path}: {one_line(error)}; {advice}")


def read_folds(path: str | Path) -> pd.DataFrame:
    """Read and check a file of `write_folds`, which may have been edited since.

    Returns:
        Index SOPInstanceUID; columns PatientID (strings), fold (int64) and the six labels (int8).

    Raises:
        IchError: the file cannot be read, has other columns, an id twice, a slice without a patient, a value that is
            not an integer, labels other than 0 and 1, an `any` that is not the OR of the five, fold numbers with a
            gap, or a patient in two folds.
    """
    expected = [INDEX_NAME, *COLUMNS]
    types = {INDEX_NAME: pa.string(), "PatientID": pa.string(), "fold": pa.int64()} | dict.fromkeys(LABELS, pa.int8())
    # Without null_values an empty number is an error, not a null that pandas would make a float.
    options = pyarrow.csv.ConvertOptions(column_types=types, null_values=[])
    try:
        with Path(path).open("rb") as file:
            table = pyarrow.csv.read_csv(
                file, convert_options=options, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
            )
    except pa.ArrowInvalid as error:
        raise IchError(f"{path} is not a file of folds: {one_line(error)}; {_REMAKE}") from error
    except OSError as error:
        raise cannot_read(Path(path), error) from error
    if table.column_names != expected:
        raise IchError(
            f"{path} has the columns {','.join(table.column_names)}, expected {','.join(expected)}; {_REMAKE}"
        )
    folds = table.to_pandas().set_index(INDEX_NAME)
    _check_folds(folds, str(path))
    return folds


def _check_slices(frame: pd.DataFrame, name: str) -> None:
    """Raise IchError if a slice lacks a PatientID, or `check_frame` refuses the labels."""
    missing_columns = [column for column in ("PatientID", *LABELS) if column not in frame.columns]
    if missing_columns:
        raise IchError(
            f"{name} lacks the columns {', '.join(missing_columns)}; join the label frame and the slice table first"
        )
    check_frame(frame[list(LABELS)])
    missing = (frame["PatientID"].isna() | (frame["PatientID"] == "")).to_numpy()
    if missing.any():
        raise IchError(
            f"{name} has no PatientID for {name_some(frame.index[missing])}; without it they could leak from fold to "
            "fold: read their headers again, or leave them out (folds.allow_unmatched=true)"
        )
    kind = pd.api.types.infer_dtype(frame["PatientID"])
    if kind not in ("string", "empty"):
        raise IchError(f"{name} has PatientIDs of the kind {kind}, expected strings; use `.astype(str)`")


def _check_folds(folds: pd.DataFrame, name: str) -> None:
    """Raise IchError if a frame of folds is not as `read_folds` returns it."""
    _check_slices(folds, name)
    if "fold" not in folds.columns:
        raise IchError(f"{name} lacks the column fold; make it with scripts/make_folds.py")
    if not pd.api.types.is_integer_dtype(folds["fold"].dtype):
        raise IchError(
            f"{name} has folds as {folds['fold'].dtype}, expected whole numbers; make it with scripts/make_folds.py"
        )
    numbers = sorted(folds["fold"].unique().tolist())
    if len(numbers) < 2 or numbers != list(range(len(numbers))):
        raise IchError(
            f"{name} has the folds {name_some(numbers) or 'none'}; expected 0, 1 and so on without a gap, 2 folds at"
            f" least; {_REMAKE}"
        )
    check_no_shared_patients(folds)
