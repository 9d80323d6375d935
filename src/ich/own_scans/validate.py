"""Predictions of somebody's scans against their labels: joined, scored, told beside what is known of the model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ich.competition.labels import LABELS
from ich.errors import IchError, name_some, not_there, one_line
from ich.files import sha256_of
from ich.own_scans import scores, truth
from ich.own_scans.published import PUBLISHED
from ich.own_scans.scores import Score
from ich.own_scans.truth import Truth

_IDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_NAMED = 3  # of what has no label, or no prediction


@dataclass(frozen=True)
class Level:
    """The scores of units: of slices, or of what several slices belong to, by their highest probability.

    Args:
        unit: "slices", "scans" or "studies".
        patients: how many there are.
        truth: float64, shape (n, 6), 0, 1 or NaN.
        probabilities: float64, shape (n, 6).
        recalibrated: float64, shape (n, 6), NaN where there are none.
        scores: of each label, by name as `ich.own_scans.scores.score` gives them; none where no label is known.
        reasons: why a label has no scores, or is not recalibrated.
    """

    unit: str
    patients: int
    truth: np.ndarray
    probabilities: np.ndarray
    recalibrated: np.ndarray
    scores: dict[str, dict[str, Score]]
    reasons: dict[str, str]


@dataclass(frozen=True)
class Validation:
    """The content of the page and of validation.json.

    Args:
        facts: what was compared with what, as JSON takes it.
        levels: the labels' own first.
        unlabeled: count and first names of what was predicted and has no label.
        unpredicted: count and first names of the labels without a prediction.
        notes: what is to be known.
        out_of_fold: score.json of the model's result; None if the predictions do not have it.
        published: what others reached on this data set, or at other hospitals.
    """

    facts: dict[str, Any]
    levels: list[Level]
    unlabeled: tuple[int, list[str]]
    unpredicted: tuple[int, list[str]]
    notes: list[str]
    out_of_fold: Mapping | None
    published: list[dict] = field(default_factory=list)


def validate(predictions: Path, labels: Path, format: str) -> Validation:
    """Score predictions against labels.

    Args:
        predictions: a folder that predict_scans wrote: slices.csv and predictions.json.
        labels: a CSV of a format of `ich.own_scans.truth.FORMATS`.

    Raises:
        IchError: a file cannot be read or has another content, or no label belongs to a prediction.
    """
    slices, record = read_slices(predictions), read_record(predictions)
    known = truth.read_truth(labels, format)
    keys = known.keys_of(slices).replace("", None)
    has_label = keys.isin(known.labels.index)
    if not has_label.any():
        raise IchError(_nothing_in_common(predictions, labels, known, keys, slices, record))
    notes = [*known.notes, *_made_notes(record)]
    patients, identified_by = _patients(slices)
    notes.append(identified_by)
    slices = slices.assign(key=keys, patient=patients)
    joined = slices[has_label]
    with threadpool_limits(1, user_api="blas"):  # of matrices as thin as these, threads would wait for one another
        levels = _levels(slices, known)
    if format == "ct-ich":
        notes += _numbering(joined, keys, known)
    several = int((joined.groupby("key")["SeriesInstanceUID"].nunique() > 1).sum())
    if several:
        notes.append(f"{several:,} {levels[0].unit} are in several series: the highest probability of all counts")
    name = "SOPInstanceUID" if known.of_slices else "SeriesInstanceUID"
    unlabeled = slices.loc[~has_label, name].unique()
    unpredicted = known.labels.index.difference(keys[has_label], sort=False)
    facts = {
        "predictions": str(predictions),
        "model": {key: value for key, value in record.get("model", {}).items() if key != "out_of_fold"},
        "labels": str(labels),
        "format": format,
        "joined_by": known.kind,
        "sha256": {"slices.csv": sha256_of(predictions / "slices.csv"), "labels": sha256_of(labels)},
    }
    return Validation(
        facts,
        levels,
        (len(unlabeled), list(map(str, unlabeled[:_NAMED]))),
        (len(unpredicted), list(map(str, unpredicted[:_NAMED]))),
        notes,
        record.get("model", {}).get("out_of_fold"),
        [study for study in PUBLISHED if format in study["formats"]],
    )


def as_json(validation: Validation) -> dict:
    """What validation.json says; null for what cannot be computed, with the reason beside it."""
    return {
        "validation_of": validation.facts,
        "notes": validation.notes,
        "without_label": dict(zip(("count", "first"), validation.unlabeled, strict=True)),
        "without_prediction": dict(zip(("count", "first"), validation.unpredicted, strict=True)),
        "levels": {level.unit: _level_as_json(level) for level in validation.levels},
        "out_of_fold": validation.out_of_fold,
        "published": validation.published,
        "interval": f"95 %, {scores.RESAMPLES} bootstrap resamples of patients",
    }


def _level_as_json(level: Level) -> dict:
    labels = {}
    for k, label in enumerate(LABELS):
        y = level.truth[:, k]
        labels[label] = {
            "positives": int((y == 1).sum()),
            "negatives": int((y == 0).sum()),
            "unknown": int(np.isnan(y).sum()),
            **{
                name: {key: None if isinstance(v, float) and np.isnan(v) else v for key, v in score._asdict().items()}
                for name, score in level.scores.get(label, {}).items()
            },
            **({"reason": level.reasons[label]} if label in level.reasons else {}),
        }
    return {"count": len(level.truth), "patients": level.patients, "labels": labels}


def read_slices(predictions: Path) -> pd.DataFrame:
    """Return slices.csv: text, and six probabilities."""
    path = predictions / "slices.csv"
    try:
        slices = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise IchError(f"{not_there(path)}; expected a folder that scripts/predict_scans.py wrote") from error
    except (OSError, ValueError) as error:  # pandas' parsers raise ValueErrors
        raise IchError(f"{path} cannot be read: {one_line(error)}; make the predictions again") from error
    if missing := [name for name in ("file", *_IDS, *LABELS) if name not in slices]:
        raise IchError(f"{path} lacks the columns {', '.join(missing)}; make the predictions again")
    for label in LABELS:
        slices[label] = pd.to_numeric(slices[label], errors="coerce")
    wrong = ~((slices[list(LABELS)] >= 0) & (slices[list(LABELS)] <= 1)).all(axis=1)  # NaN is wrong too
    if wrong.any():
        raise IchError(
            f"{path} has no probabilities for {name_some(slices.loc[wrong, 'SOPInstanceUID'].tolist())}; make the"
            " predictions again"
        )
    return slices


def read_record(predictions: Path) -> dict:
    """Return predictions.json."""
    path = predictions / "predictions.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IchError(
            f"{path} cannot be read ({one_line(error)}); expected a folder that scripts/predict_scans.py wrote"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("model"), dict):
        raise IchError(f"{path} says nothing of a model; expected a folder that scripts/predict_scans.py wrote")
    return record


def _made_notes(record: dict) -> list[str]:
    return [] if record.get("complete", True) else ["the predictions are not complete: predict_scans.py was stopped"]


def _nothing_in_common(
    predictions: Path, labels: Path, known: Truth, keys: pd.Series, slices: pd.DataFrame, record: dict
) -> str:
    message = f"no label of {labels} ({known.kind}: {name_some(known.labels.index)}) is of a scan in {predictions}"
    if keys.notna().any():
        message += f", which has {name_some(keys.dropna().unique())}"
    else:
        message += (
            f", where no slice has such a name, as {slices['SOPInstanceUID'].iloc[0]} of {slices['file'].iloc[0]}"
        )
    if record.get("options", {}).get("hash_ids"):
        return f"{message}; predict again without --hash-ids, which replaced the names"
    if known.kind.startswith("CQ500"):
        return (
            f"{message}; predict the folder that holds the folders 'CQ500CT0 CQ500CT0' …, or predict with --patient-id"
        )
    return f"{message}; name the labels of these scans"


def _patients(slices: pd.DataFrame) -> tuple[pd.Series, str]:
    """Return who each slice is of, for the bootstrap, and by which identifier that is known."""
    patients = pd.Series("", slices.index)
    used = []
    for column in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        if column in slices:
            empty = patients == ""
            taken = empty & (slices[column] != "")
            patients[taken] = f"{column} " + slices.loc[taken, column]
            if taken.any():
                used.append(f"{column} ({slices.loc[taken, column].nunique():,})")
    message = f"patients are told apart by {', '.join(used)}"
    if not (len(used) == 1 and used[0].startswith("PatientID")):
        message += "; two scans of one patient may count as two patients: predicted with --patient-id, DICOM tells"
    return patients, message


def _levels(slices: pd.DataFrame, known: Truth) -> list[Level]:
    joined = slices[slices["key"].isin(known.labels.index)]
    unit = "slices" if known.of_slices else "studies" if known.kind == "StudyInstanceUID" else "scans"
    levels = [_level(unit, joined, joined["key"], known)]
    if known.of_slices:
        whole = slices[slices["SeriesInstanceUID"].isin(joined["SeriesInstanceUID"])]
        levels.append(_level("scans", whole, whole["SeriesInstanceUID"], known))
    return levels


def _level(unit: str, slices: pd.DataFrame, groups: pd.Series, known: Truth) -> Level:
    """Score groups of slices: by the highest probability; a label is there if a slice has it."""
    labels = known.labels.reindex(slices["key"]).set_axis(slices.index)
    y, unknown = labels.groupby(groups).max(), labels.isna().groupby(groups).any()
    y = y.mask(unknown & (y != 1)).to_numpy(np.float64)  # of what is unknown in part, only a 1 is sure
    p = slices[list(LABELS)].groupby(groups).max().to_numpy(np.float64)
    patients = slices["patient"].groupby(groups).first().to_numpy(object).astype(str)
    of_labels: dict[str, dict[str, Score]] = {}
    reasons: dict[str, str] = {}
    after = np.full(p.shape, np.nan)
    for k, label in enumerate(tqdm(LABELS, desc=f"score {unit}", unit="label", disable=None)):
        there = ~np.isnan(y[:, k])
        if not there.any():
            reasons[label] = "no label is given"
            continue
        recalibrated = None
        try:
            recalibrated = after[there, k] = scores.recalibrate(y[there, k], p[there, k], patients[there])
        except IchError as error:
            reasons[label] = f"not recalibrated: {error}"
        of_labels[label] = scores.score(y[there, k], p[there, k], recalibrated, patients[there])
    return Level(unit, len(set(patients)), y, p, after, of_labels, reasons)


def _numbering(joined: pd.DataFrame, keys: pd.Series, known: Truth) -> list[str]:
    """Return what speaks against the numbers of CT-ICH's slices being those of the volumes."""
    notes = []
    of_patient = known.labels.index.str.partition(".").get_level_values(0).value_counts()
    counts = keys.dropna().str.partition(".")[0].value_counts()
    other = [number for number, count in counts.items() if of_patient.get(number, count) != count]
    if other:
        notes.append(f"patients with another number of labels than of slices read: {name_some(sorted(other))}")
    number = joined["key"].str.partition(".")[2].astype(int)
    series = joined["SeriesInstanceUID"]
    y = known.labels["any"].loc[joined["key"]].to_numpy()
    p = joined["any"].to_numpy(np.float64)
    there = np.lexsort((number, series))
    back = np.lexsort((-number, series))
    if np.isnan(y).any() or len(np.unique(y)) < 2:
        return notes
    ones = np.ones((1, len(y)))
    as_given, reversed_ = scores.ranking(y[there], p[there], ones)[0, 0], scores.ranking(y[back], p[there], ones)[0, 0]
    if reversed_ > as_given:
        notes.append(
            f"the labels fit better with the slices numbered from the other end (AUC of `any` {reversed_:.3f}, as"
            f" numbered {as_given:.3f}): check that the volumes are stored from the feet to the head"
        )
    return notes
