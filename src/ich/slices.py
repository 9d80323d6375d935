"""The slice table: one row a slice, read or not; and the order of slices within their scan.

Columns in DICOM's spelling hold what the file says; lower-case ones are ours.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ich.errors import IchError
from ich.files import replacing

_VECTOR = pa.list_(pa.float64())

SCHEMA = pa.schema(
    [
        ("SOPInstanceUID", pa.string()),  # unique
        ("PatientID", pa.string()),
        ("StudyInstanceUID", pa.string()),
        ("SeriesInstanceUID", pa.string()),
        ("split", pa.string()),  # train or test
        ("z", pa.float64()),  # mm along the normal of the series' slices
        ("order", pa.int32()),  # 0-based place in the series
        ("ImagePositionPatient", _VECTOR),  # mm
        ("ImageOrientationPatient", _VECTOR),
        ("PixelSpacing", _VECTOR),  # mm
        ("Rows", pa.int32()),
        ("Columns", pa.int32()),
        ("BitsStored", pa.int32()),
        ("PixelRepresentation", pa.int32()),
        ("RescaleIntercept", pa.float64()),
        ("RescaleSlope", pa.float64()),
        ("repaired", pa.string()),  # what was mended, empty if nothing
        ("status", pa.string()),  # ok, or the kind of the error
        ("reason", pa.string()),  # the error's sentence, empty if ok
        ("path", pa.string()),  # of the PNG, from the table's folder; null if none was written
        ("size", pa.int64()),  # bytes of the DICOM file
    ]
)


def scan_order(table: pd.DataFrame) -> pd.DataFrame:
    """Fill in z and order, and sort the rows by split, series and order.

    z is the ImagePositionPatient along the normal of the slices, the cross product of the two directions of
    ImageOrientationPatient (PS3.3, C.7.6.2.1.1): the third coordinate alone misplaces slices of a tilted gantry. One
    normal serves a series, that of its first slice by id that has one, so that positions can be compared. Slices at
    one z are ordered by SOPInstanceUID. A slice without a position has no z and no order; nor has one without a
    series.
    """
    table = table.sort_values("SOPInstanceUID", ignore_index=True)
    position, orientation = (
        _stack(table[k], n) for k, n in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6))
    )
    normal = np.cross(orientation[:, :3], orientation[:, 3:])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    length[length == 0] = np.nan  # a row along its column, or no direction at all: there is no normal
    normal = pd.DataFrame(normal / length)
    series = table["SeriesInstanceUID"]
    normal = normal.groupby(series).first().reindex(series)
    table["z"] = (position * normal.to_numpy()).sum(axis=1)  # NaN where either is unknown
    table = table.sort_values(["split", "SeriesInstanceUID", "z", "SOPInstanceUID"], ignore_index=True)
    placed = table["z"].notna()
    order = table[placed].groupby(["split", "SeriesInstanceUID"]).cumcount()
    table["order"] = order.reindex(table.index).astype("Int32")
    return table


def _stack(column: pd.Series, length: int) -> np.ndarray:
    unknown = [np.nan] * length
    return np.array([unknown if value is None else value for value in column], dtype=np.float64).reshape(-1, length)


def to_frame(rows: list[dict]) -> pd.DataFrame:
    """Rows as a table with all columns of `SCHEMA`, in its types."""
    return pa.Table.from_pylist(rows, SCHEMA).to_pandas()


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write the table as Parquet, in the columns and types of `SCHEMA`."""
    with replacing(path) as temporary:
        # Without the metadata of pandas, which tell in which types the columns came: equal tables are equal bytes.
        pq.write_table(pa.Table.from_pandas(table, SCHEMA, preserve_index=False).replace_schema_metadata(), temporary)


def read_table(path: Path) -> pd.DataFrame:
    """Read a slice table.

    Raises:
        IchError: the file is missing, no Parquet, lacks a column, or lists a slice twice.
    """
    if not path.exists():
        raise IchError(f"{path} does not exist; run scripts/preprocess.py with this config first")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise IchError(f"{path} is no slice table ({error}); delete it and run scripts/preprocess.py again") from error
    missing = set(SCHEMA.names) - set(table.column_names)
    if missing:
        raise IchError(
            f"{path} lacks {', '.join(sorted(missing))}; it is of another version: convert into a new folder"
        )
    try:
        frame = table.select(SCHEMA.names).cast(SCHEMA).to_pandas()
    except pa.ArrowException as error:
        raise IchError(
            f"{path} holds other types ({error}); it is of another version: convert into a new folder"
        ) from error
    twice = frame["SOPInstanceUID"][frame["SOPInstanceUID"].duplicated()]
    if len(twice):
        raise IchError(f"{path} lists {twice.iloc[0]} twice; delete it and run scripts/preprocess.py again")
    return frame


def readable(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The slices of a split that have an image, indexed by SOPInstanceUID."""
    return table[(table["split"] == split) & (table["status"] == "ok")].set_index("SOPInstanceUID")
