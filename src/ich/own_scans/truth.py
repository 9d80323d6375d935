"""Labels that somebody else's data set brings: of scans or of slices, from the CSV files that they come in."""

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ich.competition.labels import ANY, LABELS
from ich.errors import IchError, name_some, not_there, one_line

KEYS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
"""What a plain CSV can be keyed by, the finest first."""

_ABBREVIATED = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH"), strict=True))
_READERS = ("R1", "R2", "R3")
_VALUES = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0} | dict.fromkeys(("", "na", "nan", "n/a"), np.nan)
_CQ500 = re.compile(r"(?<![A-Za-z0-9])CQ500-?CT-?0*(\d+)(?![0-9])", re.IGNORECASE)
_NIFTI = re.compile(r"(?:.*/)?0*(\d+)\.(\d+)")


@dataclass(frozen=True)
class Truth:
    """The labels of a data set.

    Args:
        kind: what a row is of, for messages: "CQ500-CT-<number>".
        of_slices: a row is of a slice; else of a series, a study or a patient.
        labels: float64, a row each, indexed by its key; columns `LABELS`: 0, 1, or NaN where the label is unknown.
        keys_of: slices.csv as a frame of text -> the key of each slice, None where it has none.
        notes: what is to be known of the labels.
    """

    kind: str
    of_slices: bool
    labels: pd.DataFrame
    keys_of: Callable[[pd.DataFrame], pd.Series]
    notes: tuple[str, ...] = ()


def read_truth(path: Path, format: str) -> Truth:
    """Read the labels of a data set.

    Args:
        format: a key of `FORMATS`.

    Raises:
        IchError: the file cannot be read, lacks columns of the format, a value is no label, or a row stands twice with
            different labels.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except FileNotFoundError as error:
        raise IchError(f"labels {not_there(path)}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise IchError(f"labels {path} cannot be read as CSV: {one_line(error)}") from error
    head = [name.strip() for name in rows[0]] if rows else []
    if ragged := [",".join(row) for row in rows if len(row) != len(head)]:
        raise IchError(
            f"{path} has {len(head)} columns, and other numbers of values in {name_some(ragged)}; correct them"
        )
    table = pd.DataFrame(rows[1:], columns=head, dtype=str)
    named: dict[str, list[str]] = {}
    for name in head:
        named.setdefault(_plainly(name), []).append(name)
    if alike := [", ".join(names) for plain, names in named.items() if plain and len(names) > 1]:
        raise IchError(f"labels {path} have the columns {'; '.join(alike)}, which read alike; keep one of each")
    if table.empty:
        raise IchError(f"labels {path} hold no rows; expected {_expected(format)}")
    return FORMATS[format](table, path)


def _cq500(table: pd.DataFrame, path: Path) -> Truth:
    """CQ500's reads.csv: a row a scan, three readers, of whom the majority counts."""
    votes = {label: [f"{reader}:{short}" for reader in _READERS] for label, short in _ABBREVIATED.items()}
    columns = _columns(table, ["name", *(vote for of_label in votes.values() for vote in of_label)], "cq500", path)
    names = table[columns["name"]].str.strip()
    keys = names.map(_cq500_key)
    if keys.isna().any():
        raise IchError(f"{path} names {name_some(names[keys.isna()].tolist())}; expected CQ500-CT-<number>")
    labels = pd.DataFrame(index=pd.Index(keys))
    for label, of_label in votes.items():
        read = np.stack([_numbers(table[columns[vote]], vote, path) for vote in of_label])
        ones, zeros = (read == 1).sum(axis=0), (read == 0).sum(axis=0)
        labels[label] = np.select([ones >= 2, zeros >= 2], [1.0, 0.0], np.nan)
    notes = ["the label of a scan is what two of the three readers saw; `any` is their ICH"]
    notes += _disagreement(labels)
    return Truth("CQ500-CT-<number>", False, _distinct(labels, path), _cq500_keys, tuple(notes))


def _cq500_key(text: str) -> str | None:
    """The name of a CQ500 scan that stands in a text, of whatever spelling.

    Raises:
        IchError: several stand there.
    """
    scans = sorted(set(_CQ500.findall(text)))
    if len(scans) > 1:
        raise IchError(f"{text} names several scans of CQ500 ({', '.join(scans)}); expected one")
    return f"CQ500-CT-{scans[0]}" if scans else None


def _cq500_keys(slices: pd.DataFrame) -> pd.Series:
    """By PatientID where it names a scan of CQ500, else by the path of the file ("CQ500CT0 CQ500CT0/…")."""
    none = pd.Series(None, slices.index, dtype=object)
    by_patient, by_file = (
        slices[column].map({text: _cq500_key(text) for text in slices[column].unique()}).astype(object)
        if column in slices
        else none
        for column in ("PatientID", "file")
    )
    contrary = by_patient.notna() & by_file.notna() & (by_patient != by_file)
    if contrary.any():
        first = slices[contrary].iloc[0]
        raise IchError(f"the file {first['file']} has the PatientID {first['PatientID']}, which names another scan")
    return by_patient.where(by_patient.notna(), by_file)


def _ct_ich(table: pd.DataFrame, path: Path) -> Truth:
    """CT-ICH's hemorrhage_diagnosis.csv: a row a slice; `any` is the OR of the five."""
    bleeds = {label: label.capitalize() for label in LABELS[:ANY]}
    columns = _columns(table, ["PatientNumber", "SliceNumber", *bleeds.values()], "ct-ich", path)
    numbers = []
    for name in ("PatientNumber", "SliceNumber"):
        text = table[columns[name]].str.strip().str.replace(r"\.0$", "", regex=True)
        if not (whole := text.str.fullmatch(r"\d+")).all():
            raise IchError(f"{path} has the {name} {name_some(text[~whole].tolist())}; expected whole numbers")
        numbers.append(text.str.lstrip("0").where(lambda stripped: stripped != "", "0"))
    labels = pd.DataFrame(index=pd.Index(numbers[0] + "." + numbers[1]))
    for label, name in bleeds.items():
        labels[label] = _numbers(table[columns[name]], name, path)
    labels["any"] = _any_of(labels)
    notes = ["`any` is whether a slice has one of the five kinds"]
    if (none := _named(table).get("nohemorrhage")) is not None:
        contrary = labels.index[_numbers(table[none], none, path) == labels["any"].to_numpy()]
        if len(contrary):
            notes.append(f"No_Hemorrhage contradicts the five kinds in {name_some(contrary)}: the five count")
    return Truth("<PatientNumber>.<SliceNumber>", True, _distinct(labels, path), _ct_ich_keys, tuple(notes))


def _ct_ich_keys(slices: pd.DataFrame) -> pd.Series:
    """By "<number of the file>.<number of the slice>", in which a NIfTI slice's SOPInstanceUID ends."""
    matches = slices["SOPInstanceUID"].map(_NIFTI.fullmatch)
    return matches.map(lambda match: f"{match[1]}.{match[2]}" if match else None)


def _plain(table: pd.DataFrame, path: Path) -> Truth:
    """A CSV with a column of UIDs and some of the six labels."""
    named = _named(table)
    key = next((key for key in KEYS if _plainly(key) in named), None)
    given = [label for label in LABELS if label in named]
    if key is None or not given:
        other = "cq500" if "r1ich" in named else "ct-ich" if "patientnumber" in named else ""
        advice = f"; these are columns of --format {other}" if other else ""
        raise IchError(f"{path} has the columns {_shown(table)}; expected {_expected('plain')}{advice}")
    keys = table[named[_plainly(key)]].str.strip()
    if (keys == "").any():
        raise IchError(f"{path} has {(keys == '').sum():,} row(s) without {key}; expected one in each row")
    labels = pd.DataFrame(np.nan, pd.Index(keys), list(LABELS))
    for label in given:
        labels[label] = _numbers(table[named[label]], label, path)
    notes = [f"labels are joined by {key}"]
    if "any" not in given and len(given) == ANY:
        labels["any"] = _any_of(labels)
        notes.append("`any` is not given: it is whether one of the five kinds is there")
    elif len(given) < len(LABELS):
        notes.append(f"not given: {', '.join(label for label in LABELS if label not in given)}")
    if "any" in given:
        notes += _disagreement(labels)
    return Truth(key, key == KEYS[0], _distinct(labels, path), lambda slices: slices[key], tuple(notes))


FORMATS: dict[str, Callable[[pd.DataFrame, Path], Truth]] = {"plain": _plain, "cq500": _cq500, "ct-ich": _ct_ich}
"""How a file of labels is read, by name."""

_EXPECTED = {
    "plain": f"one of {', '.join(KEYS)}, and one or more of {', '.join(LABELS)}",
    "cq500": f"name, and of each reader (R1, R2, R3) {', '.join(f'R1:{short}' for short in _ABBREVIATED.values())}",
    "ct-ich": "PatientNumber, SliceNumber, " + ", ".join(label.capitalize() for label in LABELS[:ANY]),
}


def _expected(format: str) -> str:
    return f"the columns {_EXPECTED[format]}"


def _plainly(name: str) -> str:
    """A column's name without case and signs: R1:ICH, r1.ich and R1_ICH are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _named(table: pd.DataFrame) -> dict[str, str]:
    return {_plainly(name): name for name in table.columns}


def _columns(table: pd.DataFrame, names: Iterable[str], format: str, path: Path) -> dict[str, str]:
    named = _named(table)
    if missing := [name for name in names if _plainly(name) not in named]:
        raise IchError(
            f"{path} has the columns {_shown(table)}, but no {name_some(missing)}; expected {_expected(format)}"
        )
    return {name: named[_plainly(name)] for name in names}


def _shown(table: pd.DataFrame) -> str:
    return one_line(", ".join(map(str, table.columns)))


def _numbers(column: pd.Series, name: str, path: Path) -> np.ndarray:
    """0, 1, or NaN for an empty value."""
    text = column.str.strip().str.lower()
    wrong = ~text.isin(list(_VALUES))
    if wrong.any():
        raise IchError(f"{path} has {name_some(column[wrong].unique())} in {name}; expected 0, 1, or nothing")
    return text.map(_VALUES).to_numpy(np.float64)


def _any_of(labels: pd.DataFrame) -> np.ndarray:
    """1 where one of the five is, 0 where all five are not, else unknown."""
    five = labels[list(LABELS[:ANY])].to_numpy()
    return np.select([(five == 1).any(axis=1), (five == 0).all(axis=1)], [1.0, 0.0], np.nan)


def _disagreement(labels: pd.DataFrame) -> list[str]:
    """Report where `any` contradicts the five other labels; the labels stay as they are."""
    derived = _any_of(labels)
    contrary = labels.index[(labels["any"].to_numpy() != derived) & labels["any"].notna() & ~np.isnan(derived)]
    if contrary.empty:
        return []
    return [f"`any` is not the OR of the five kinds in {name_some(contrary)}: it is left as given"]


def _distinct(labels: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A row a key, in the order of `LABELS`; rows that stand twice with equal labels are one."""
    labels = labels[list(LABELS)]
    whole = labels.rename_axis("key").reset_index().drop_duplicates()
    twice = whole["key"][whole["key"].duplicated()]
    if len(twice):
        raise IchError(
            f"{path} lists {name_some(twice.unique())} more than once with different labels; keep one row each"
        )
    return whole.set_index("key")
