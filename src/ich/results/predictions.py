"""Read and write files of predictions: six numbers a slice, with their provenance."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError, not_there, one_line
from ich.files import replacing

_KEY = b"provenance"


def write_predictions(frame: pd.DataFrame, path: Path, provenance: dict | None = None) -> None:
    """Write six float32 numbers a slice, indexed by SOPInstanceUID.

    Args:
        provenance: how they were made, plain values; stored in the file.
    """
    table = pa.Table.from_pandas(frame.astype("float32"))
    table = table.replace_schema_metadata({**table.schema.metadata, _KEY: json.dumps(provenance or {})})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a file of `write_predictions`.

    Raises:
        IchError: the file is missing, not Parquet, has other columns, or holds NaN or infinite values.
    """
    try:
        frame = pq.read_table(path).to_pandas()
    except FileNotFoundError as error:
        raise IchError(f"predictions {not_there(path)}; run the command that makes them") from error
    except (pa.ArrowException, OSError) as error:
        raise IchError(
            f"predictions {path} cannot be read ({one_line(error)}); delete the file, and run its command again"
        ) from error
    floats = all(pd.api.types.is_float_dtype(dtype) for dtype in frame.dtypes)
    if list(frame.columns) != list(LABELS) or frame.index.name != INDEX_NAME or not floats:
        raise IchError(
            f"predictions {path} have the columns {', '.join(map(str, frame.columns))} under the index"
            f" {frame.index.name}, expected the numbers {', '.join(LABELS)} under {INDEX_NAME}; make them again"
        )
    finite = np.isfinite(frame.to_numpy()).all(axis=1)
    if not finite.all():
        raise IchError(
            f"predictions {path} hold NaN or infinite values of {(~finite).sum():,} slice(s), such as"
            f" {frame.index[~finite][0]}; delete the file, and run its command again"
        )
    return frame


def read_provenance(path: Path) -> dict | None:
    """Return the provenance of a file of predictions; empty if it has none, None if there is no intact file."""
    try:
        provenance = json.loads((pq.read_schema(path).metadata or {}).get(_KEY, b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        return None
    return {"tta" if key == "test_time" else key: value for key, value in provenance.items()}  # the key in older runs
