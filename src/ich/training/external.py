"""Read labeled scans beside the competition's (data.external); refuse those of the same patients."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from ich.competition import labels
from ich.competition.labels import INDEX_NAME, LABELS
from ich.config import Config
from ich.errors import IchError, name_some, one_line
from ich.images import convert, slice_table
from ich.images.render import Settings
from ich.training.joined import Joined

IDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")
"""Columns of the slice table that identify a slice, a scan or a patient in two sources."""


def read(config: Config, slices: pd.DataFrame) -> list[Joined]:
    """Read the scans of data.external, which join the training set of every fold.

    Args:
        slices: the slice table of the competition's images, with the columns `IDS`, size and crc.

    Raises:
        IchError: images or labels that cannot be read, of other settings than the section preprocess, without a slice
            in common, or with a slice, series, study or patient of the competition's images; a slice or series in two
            sources.
    """
    sources: list[Joined] = []
    for source in config.data.external:
        table = slice_table.read_table(source.images / "slices.parquet", list(slices.columns))
        convert.check_settings(source.images, Settings.of(config.preprocess))
        frame = read_labels(source.labels)
        readable = slice_table.readable(table, "train")
        both = readable.index.intersection(frame.index).sort_values()
        if len(both) == 0:
            raise IchError(
                f"{source.labels} labels none of the {len(readable):,} readable slices of the split train in"
                f" {source.images}; give what belongs together, converted with data.split=train"
            )
        used = table[table["SeriesInstanceUID"].isin(readable.loc[both, "SeriesInstanceUID"])]
        used = pd.concat([used, table[table["SOPInstanceUID"].isin(both)]]).drop_duplicates("SOPInstanceUID")
        used = used[used["split"] == "train"]
        for column in IDS:
            _refuse_shared(source.images, used, "the competition's images", slices, column, "could be held out too")
        for earlier in sources:
            for column in IDS[:2]:
                _refuse_shared(source.images, used, str(earlier.images), earlier.slices, column, "would count twice")
        left_out = {
            "slice(s) without a label": len(readable) - len(both),
            "label(s) without a readable slice of the split train": len(frame) - len(both),
            "slice(s) of the split test": int((table["split"] == "test").sum()),
        }
        sentences = [f"left out: {count:,} {kind}" for kind, count in left_out.items() if count]
        if anonymous := int(readable.loc[both, "PatientID"].isna().sum()):
            sentences.append(
                f"{anonymous:,} slice(s) have no PatientID: their UIDs alone tell them from the competition's"
            )
        notes = tuple(f"{source.images}: {sentence}" for sentence in sentences)
        description = f"external slices of {source.images}"
        sources.append(Joined(description, frame.loc[both], source.weight, source.images, used, notes=notes))
    return sources


def read_labels(path: Path) -> pd.DataFrame:
    """Read labels: the competition's long CSV, or one with the columns SOPInstanceUID and the six labels, and others.

    Returns:
        A label frame, see `ich.competition.labels`.

    Raises:
        IchError: the file cannot be read, or holds anything but six labels of 0 or 1 for each slice, listed once.
    """
    try:
        with path.open("rb") as file:
            header = file.readline()
    except OSError as error:
        raise IchError(f"cannot read {path}: {one_line(error)}; correct the labels in data.external") from error
    if INDEX_NAME.encode() not in header:
        return labels.read_labels(path).frame
    types = {INDEX_NAME: pa.string()} | dict.fromkeys(LABELS, pa.int8())
    # Without null_values an empty number is an error, not a null that pandas would make a float.
    options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[])
    try:
        frame = pyarrow.csv.read_csv(path, convert_options=options).to_pandas().set_index(INDEX_NAME)
        labels.check_frame(frame)
    except (pa.ArrowException, KeyError) as error:
        raise IchError(
            f"{path} is not a file of labels: {one_line(error)}; expected the columns {INDEX_NAME} and"
            f" {', '.join(LABELS)}, the labels 0 or 1"
        ) from error
    except IchError as error:
        raise IchError(f"{path}: {error}") from error
    return frame


def _refuse_shared(
    images: Path, table: pd.DataFrame, other: str, of_other: pd.DataFrame, column: str, reason: str
) -> None:
    """Raise IchError if two slice tables have a value of a column in common."""
    values = table[column].dropna().unique()
    shared = values[pd.Index(values).isin(of_other[column].dropna())]
    if len(shared):
        raise IchError(
            f"{images} and {other} have {len(shared):,} {column}(s) in common: {name_some(sorted(shared))}; these"
            f" {reason}: take their slices out of the labels in data.external"
        )
