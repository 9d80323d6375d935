"""The slice table, one row a slice, readable or not; and the order of slices within their scan.

Columns in DICOM's spelling hold values of the file; lower-case ones are computed here.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ich.errors import IchError, name_some, not_there, one_line
from ich.files import replacing

_VECTOR = pa.list_(pa.float64())

_TIE = 0.01
"""mm; below the slice distance of any scanner (0.2), above the rounding errors of positions."""
SAME_PLANE = np.cos(np.deg2rad(0.5))
"""Cosine between normals that count as one plane: headers have directions to 6 digits, and noise of some scanners
changes the 4th. At half a degree, the corner of a slice of 250 mm lies 1.5 mm off the plane, less than most slices'
thickness."""

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
        # The square that a crop kept, in pixels of the slice: its first row and column, which may lie outside the
        # slice, and its side. Pixel (r, c) of a PNG of n × n pixels has its center at crop_top + (r + 0.5) ×
        # crop_side / n - 0.5, and likewise for columns. Null without a crop.
        ("crop_top", pa.int32()),
        ("crop_left", pa.int32()),
        ("crop_side", pa.int32()),
        ("BitsStored", pa.int32()),
        ("PixelRepresentation", pa.int32()),
        ("RescaleIntercept", pa.float64()),
        ("RescaleSlope", pa.float64()),
        ("repaired", pa.string()),  # the repairs, empty if none
        ("status", pa.string()),  # ok, or the kind of the error
        ("reason", pa.string()),  # the error's sentence, empty if ok
        ("path", pa.string()),  # of the PNG (of several, the first) within the table's folder; null if none was written
        ("png_size", pa.int64()),  # bytes of the PNG, of several the sum
        ("size", pa.int64()),  # bytes of the DICOM file
        ("crc", pa.int64()),  # CRC-32 of its bytes; null if they cannot be read
    ]
)


def scan_order(table: pd.DataFrame) -> pd.DataFrame:
    """Compute z and order, and sort the rows by split, series and order.

    z is the ImagePositionPatient along the normal of the slices, the cross product of the two directions of
    ImageOrientationPatient (PS3.3, C.7.6.2.1.1): the third coordinate alone misplaces slices of a tilted gantry. A
    series has one normal, so that positions can be compared: the one that most of its slices share; of several, that of
    the first slice by id. A slice in another plane, such as a localizer, has no z and no order; nor has one without a
    position or a series. A slice without a direction takes that of its series.

    Slices closer than `_TIE` to the previous one get the z of the first of them, and are ordered by SOPInstanceUID.
    """
    # Copies the whole table only once, for the result: it may have a million rows.
    table = table.reset_index(drop=True)
    series = pd.factorize(table["SeriesInstanceUID"])[0]  # -1 where it is unknown
    z = _along_normal(table, series)
    keys = ["split", "SeriesInstanceUID", "z", "SOPInstanceUID"]
    columns = {key: pa.array(z if key == "z" else table[key]) for key in keys}
    places = _sorted(columns)
    split = pd.factorize(table["split"])[0][places]
    starts = np.ones(len(z), bool)  # True where a slice does not share the z of the previous one
    starts[1:] = (np.diff(series[places]) != 0) | (np.diff(split) != 0) | ~(np.diff(z[places]) < _TIE)
    z[places] = z[places][np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    places = _sorted(columns | {"z": pa.array(z)})
    table = table.take(places).reset_index(drop=True)
    table["z"] = z[places]
    placed = table.loc[table["z"].notna(), keys[:2]]
    table["order"] = placed.groupby(keys[:2]).cumcount().reindex(table.index).astype("Int32")
    return table


def _along_normal(table: pd.DataFrame, series: np.ndarray) -> np.ndarray:
    """Return the position of each slice along the normal of its series in mm, NaN if it has none."""
    ids = table["SOPInstanceUID"].sort_values().index.to_numpy()
    normal = _normals(table)
    shared = np.full((series.max(initial=-1) + 2, 3), np.nan)  # the last row is for slices without a series, -1
    shared[:-1] = _shared_normals(normal[ids], series[ids], len(shared) - 1)
    shared = shared[series]
    z = (_stack(table["ImagePositionPatient"], 3) * shared).sum(axis=1)  # NaN if either is unknown
    z[np.abs((normal * shared).sum(axis=1)) < SAME_PLANE] = np.nan
    return z


def _sorted(columns: dict[str, pa.Array]) -> np.ndarray:
    return pc.sort_indices(pa.table(columns), [(key, "ascending") for key in columns]).to_numpy()


def _shared_normals(normal: np.ndarray, series: np.ndarray, count: int) -> np.ndarray:
    """Return the normal that most slices of each series share, of several the first; shape (count, 3), NaN if none.

    A normal and its opposite describe the same plane.

    Args:
        normal: shape (rows, 3), NaN if unknown.
        series: from 0, -1 where it is unknown.
    """
    shared = np.full((count, 3), np.nan)
    known = np.flatnonzero((series >= 0) & ~np.isnan(normal).any(axis=1))
    normal, series = normal[known], series[known]
    present, first = np.unique(series, return_index=True)
    shared[present] = normal[first]
    mixed = np.unique(series[(normal != shared[series]).any(axis=1)])  # all other series have a single normal
    rows = np.flatnonzero(np.isin(series, mixed))
    rows = rows[np.argsort(series[rows], kind="stable")]
    for series_rows in np.split(rows, np.flatnonzero(np.diff(series[rows])) + 1):
        different, first, number = np.unique(normal[series_rows], axis=0, return_index=True, return_counts=True)
        sharing = np.array([number[np.abs(different @ candidate) >= SAME_PLANE].sum() for candidate in different])
        best = np.lexsort([first, -sharing])[:1]  # empty if no series is mixed
        shared[series[series_rows[:1]]] = different[best]
    return shared


def by_scan(series: np.ndarray, keys: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Put slices into the order of their scans; one without a series is a scan of its own.

    Args:
        series: int64, (n,), a number for each series; below 0 for none.
        keys: what orders the slices of a series, the last key first, as for np.lexsort.

    Returns:
        (rows, starts), int64: the slices scan after scan, (n,); where each scan begins in them, and n, (scans + 1,).
    """
    series = np.where(series < 0, series.max(initial=0) + 1 + np.arange(len(series)), series)
    rows = np.lexsort([*keys, series])
    return rows, np.append(np.flatnonzero(np.diff(series[rows], prepend=-1)), len(rows))


def slice_distance(table: pd.DataFrame) -> float | None:
    """Return the median distance in mm between neighboring readable slices of the training; None if none is known.

    Args:
        table: columns split, status, SeriesInstanceUID and z.
    """
    train = table[(table["split"] == "train") & (table["status"] == "ok")].sort_values(["SeriesInstanceUID", "z"])
    steps = train.groupby("SeriesInstanceUID")["z"].diff()
    distance = float(steps[steps > _TIE].median())
    return distance if np.isfinite(distance) else None


def scan_audit(table: pd.DataFrame) -> pd.DataFrame:
    """Count irregularities in the geometry of each series.

    Args:
        table: from `scan_order`.

    Returns:
        A row a series, indexed by SeriesInstanceUID, int64 columns: slices; ties, slices at the z of the previous one;
        gaps, steps in z more than 1.5 times both adjacent steps, where a slice may be missing; orientations, distinct
        directions of the normal (rounded to 0.01), mixed if more than 1; unplaced, slices without z; out_of_plane,
        those of them that lie in another plane than most of their series.
    """
    keys = ["split", "SeriesInstanceUID"]
    table = table[[*keys, "z", "SOPInstanceUID", "ImageOrientationPatient", "ImagePositionPatient"]]
    table = table.sort_values([*keys, "z", "SOPInstanceUID"], ignore_index=True)
    step = table.groupby(keys)["z"].diff()
    moved = step.where(step > 0)
    adjacent = [moved.groupby([table[key] for key in keys]).shift(shift) for shift in (1, -1)]
    longest = pd.concat(adjacent, axis=1).max(axis=1)
    normals = _normals(table)
    normal = pd.Series(list(map(tuple, np.round(normals, 2) + 0.0)), table.index)  # + 0.0: of -0.0
    counts = pd.DataFrame(
        {
            "SeriesInstanceUID": table["SeriesInstanceUID"],
            "slices": 1,
            "ties": step == 0,
            "gaps": step > 1.5 * longest,
            "orientations": ~pd.concat([table[keys[1]], normal], axis=1).duplicated() & ~np.isnan(normals).any(axis=1),
            "unplaced": table["z"].isna(),
            "out_of_plane": table["z"].isna() & table["ImagePositionPatient"].notna() & ~np.isnan(normals).any(axis=1),
        }
    )
    return counts.groupby("SeriesInstanceUID").sum().astype("int64")


def _normals(table: pd.DataFrame) -> np.ndarray:
    """Return the unit normal of each slice, NaN if it has none; float64, shape (rows, 3)."""
    orientation = _stack(table["ImageOrientationPatient"], 6)
    normal = np.cross(orientation[:, :3], orientation[:, 3:])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    length[length == 0] = np.nan  # parallel directions, or none: no normal
    return normal / length


def _stack(column: pd.Series, length: int) -> np.ndarray:
    """Return a column of vectors as float64 of shape (rows, length), NaN for nulls."""
    vectors = pa.chunked_array(pa.array(column, _VECTOR)).combine_chunks()
    known = vectors.is_valid().to_numpy(zero_copy_only=False)
    stacked = np.full((len(vectors), length), np.nan)
    stacked[known] = vectors.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, length)
    return stacked


def to_frame(rows: list[dict]) -> pd.DataFrame:
    """Return rows as a table with all columns of `SCHEMA`, in its types."""
    return _to_pandas(pa.Table.from_pylist(rows, SCHEMA))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    # Vectors stay Arrow's: Python objects would take more memory than all other columns.
    return table.to_pandas(types_mapper={_VECTOR: pd.ArrowDtype(_VECTOR)}.get)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write the table as Parquet, in the columns and types of `SCHEMA`."""
    with replacing(path) as temporary:
        # Without pandas' metadata on the input dtypes, so that equal tables have equal bytes.
        pq.write_table(pa.Table.from_pandas(table, SCHEMA, preserve_index=False).replace_schema_metadata(), temporary)


def read_table(path: Path, columns: Sequence[str] = tuple(SCHEMA.names)) -> pd.DataFrame:
    """Read a slice table.

    Args:
        columns: the columns to read, SOPInstanceUID among them; a few take a tenth of the memory of all.

    Raises:
        IchError: the file is missing or not Parquet, lacks a column, or lists a slice twice.
    """
    if not path.exists():
        raise IchError(f"{not_there(path)}; run scripts/preprocess.py with this config first")
    try:
        with pq.ParquetFile(path) as file:
            missing = set(SCHEMA.names).difference(file.schema_arrow.names)
            table = file.read(list(columns))
    except (pa.ArrowException, OSError) as error:
        raise IchError(
            f"{path} is not a slice table ({one_line(error)}); delete it and run scripts/preprocess.py again"
        ) from error
    if missing:
        raise IchError(
            f"{path} lacks {', '.join(sorted(missing))}; it is of another version: convert into a new folder"
        )
    try:
        frame = _to_pandas(table.select(list(columns)).cast(pa.schema([SCHEMA.field(name) for name in columns])))
    except pa.ArrowException as error:
        raise IchError(
            f"{path} holds other types ({one_line(error)}); it is of another version: convert into a new folder"
        ) from error
    # By Arrow: pandas would create an object for each string.
    if pc.count_distinct(table["SOPInstanceUID"]).as_py() < len(table):
        twice = frame["SOPInstanceUID"][frame["SOPInstanceUID"].duplicated()]
        raise IchError(f"{path} lists {twice.iloc[0]} twice; delete it and run scripts/preprocess.py again")
    return frame


def readable(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the slices of a split that have an image, indexed by SOPInstanceUID."""
    return table[(table["split"] == split) & (table["status"] == "ok")].set_index("SOPInstanceUID")


def neighbours(table: pd.DataFrame, ids: pd.Index, offsets: Sequence[int]) -> tuple[pd.Index, np.ndarray]:
    """Return the neighbors of each slice in its scan.

    Beyond the first and the last slice, that slice is repeated. An unreadable neighbor is replaced by the nearest
    readable slice, of two equally near ones by the one farther from the slice itself, which shows more. A slice without
    a position in a scan is its own neighbor.

    Args:
        table: a slice table.
        ids: SOPInstanceUIDs of readable slices.
        offsets: such as (-1, 0, 1).

    Returns:
        (known, places): the SOPInstanceUIDs of all readable slices; and for each id and offset the index into them,
        int32, shape (len(ids), len(offsets)).

    Raises:
        IchError: an id is not a readable slice of the table, or `table` is not a slice table.
    """
    if not isinstance(table, pd.DataFrame):
        raise IchError(f"the slice table is a {type(table).__name__}, expected a DataFrame, as read_table gives it")
    needed = ("SOPInstanceUID", "SeriesInstanceUID", "split", "order", "status")
    lacking = [name for name in needed if name not in table.columns]
    if lacking:
        is_index = "; call its reset_index()" if table.index.name in lacking else ""
        raise IchError(f"the slice table lacks the columns {', '.join(lacking)}, which read_table gives{is_index}")
    is_ok = (table["status"] == "ok").to_numpy()
    ok = table[is_ok]
    known = pd.Index(ok["SOPInstanceUID"])
    own = known.get_indexer(ids)
    if (own < 0).any():
        raise IchError(f"the slice table has no readable slices {name_some(ids[own < 0])}; is it of other images?")
    groups = table.groupby(["split", "SeriesInstanceUID"])  # order is counted within these groups
    series = groups.ngroup().fillna(-1).to_numpy(dtype=np.int64)[is_ok]  # -1 without a series
    order = ok["order"].astype("float64").to_numpy()
    placed = np.flatnonzero(np.isfinite(order) & (series >= 0))
    last = groups["order"].transform("max").astype("float64").to_numpy()[is_ok]
    # All series on one axis, far enough apart that no offset reaches into the next.
    stride = 4 * (np.nanmax(order, initial=0) + max(map(abs, offsets), default=0) + 1)
    line = np.full(len(ok), np.nan)
    line[placed] = series[placed] * stride + order[placed]
    sorted_places = placed[np.argsort(line[placed], kind="stable")]
    sorted_line = line[sorted_places]
    places = np.repeat(own[:, None], len(offsets), axis=1).astype(np.int32)
    here = np.flatnonzero(np.isfinite(line[own]))
    for column, offset in enumerate(offsets):
        base = line[own[here]] - order[own[here]]
        target = base + np.clip(order[own[here]] + offset, 0, last[own[here]])
        places[here, column] = sorted_places[nearest(sorted_line, target, offset)]
    return known, places


def nearest(line: np.ndarray, targets: np.ndarray, offset: int) -> np.ndarray:
    """Return the index of the number nearest to each target; of two as near, the one that `offset` points to.

    Args:
        line: ascending, at least one number.
        offset: negative takes the smaller of the two, else the larger.
    """
    after = np.searchsorted(line, targets).clip(0, len(line) - 1)
    before = (after - 1).clip(0)
    gap_after, gap_before = np.abs(line[after] - targets), np.abs(line[before] - targets)
    take_before = (gap_before < gap_after) | ((gap_before == gap_after) & (offset < 0))
    return np.where(take_before, before, after)
