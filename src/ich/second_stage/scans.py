"""Scans as sequences: a first stage's scores in scan order.

All scans are concatenated in flat arrays, scan `i` in the rows `starts[i]` to `starts[i + 1]`: the competition's
752,803 slices with embeddings of 256 numbers take 0.4 GB this way. Padding is added only to the scans of a batch.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy.special import logit

from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError, name_some, one_line
from ich.images.slice_table import by_scan

_IDS = (INDEX_NAME, "PatientID", "SeriesInstanceUID")

LIMIT = 15.0
"""Logits are clipped to ±LIMIT: stored float32 probabilities carry no information beyond."""


@dataclass(frozen=True, slots=True)
class Scans:
    """Slices in scan order.

    Args:
        ids: SOPInstanceUIDs, (n,).
        starts: int64, (scans + 1,): where each scan begins, and n.
        z: float32, (n,): mm along the scan; NaN for a slice without a place, which is a scan of its own.
        logits: float32, (n, 6), clipped to ±`LIMIT`.
        embeddings: float16, (n, e); e is 0 if there are none. They may lie in a file, mapped into memory.
    """

    ids: pd.Index
    starts: np.ndarray
    z: np.ndarray
    logits: np.ndarray
    embeddings: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def rows(self, scan: int) -> np.ndarray:
        """The rows of one scan's slices; int64."""
        return np.arange(self.starts[scan], self.starts[scan + 1])

    def take(self, chosen: np.ndarray) -> "Scans":
        """Select scans, in the order given; int64, (scans,)."""
        rows = np.concatenate([np.zeros(0, np.int64), *map(self.rows, chosen)])
        starts = np.concatenate([[0], np.cumsum(self.lengths[chosen])])
        return Scans(self.ids[rows], starts, self.z[rows], self.logits[rows], self.embeddings[rows])


def arrange(table: pd.DataFrame, logits: pd.DataFrame, embeddings: np.ndarray | None = None) -> Scans:
    """Put scored slices into scan order.

    A slice without a score (it could not be read) is left out, and shows as a gap in z. Slices at the same z are
    ordered by SOPInstanceUID. A slice without a z or a series is a scan of its own.

    Args:
        table: index SOPInstanceUID; columns SeriesInstanceUID (null if unknown) and z (mm, NaN if unknown); rows
            without scores are ignored.
        logits: six columns, indexed by SOPInstanceUID.
        embeddings: float16, (len(logits), e), in the order of `logits`.

    Raises:
        IchError: a score without a row of the table, a duplicate id, a NaN score.
    """
    for frame, what in ((table, "slice table"), (logits, "scores")):
        if not frame.index.is_unique:
            twice = frame.index[frame.index.duplicated()].unique()
            raise IchError(f"the {what} list {name_some(twice)} twice; keep one row of each")
    unknown = logits.index.difference(table.index)
    if len(unknown):
        raise IchError(
            f"the slice table has no {name_some(unknown)}, of which there are scores; give the table of these images"
        )
    values = logits[list(LABELS)].to_numpy(np.float32)
    wrong = np.isnan(values).any(axis=1)
    if wrong.any():
        raise IchError(f"the scores of {name_some(logits.index[wrong])} are NaN; predict these slices again")
    if embeddings is None:
        embeddings = np.zeros((len(logits), 0), np.float16)
    if len(embeddings) != len(logits):
        raise IchError(f"there are {len(embeddings):,} embeddings of {len(logits):,} slices; extract them again")

    rows = table.loc[logits.index]
    z = rows["z"].to_numpy(np.float64, na_value=np.nan)
    series = pd.factorize(rows["SeriesInstanceUID"], sort=True)[0]
    alone = (series < 0) | ~np.isfinite(z)
    order, starts = by_scan(np.where(alone, -1, series), [logits.index.to_numpy(str), z])
    return Scans(
        ids=logits.index[order],
        starts=starts,
        z=np.where(alone, np.nan, z).astype(np.float32)[order],
        logits=values[order].clip(-LIMIT, LIMIT),
        # Not copied if in scan order already: extracted ones are, and their file may be larger than the memory.
        embeddings=embeddings if (np.diff(order) == 1).all() else embeddings[order],
    )


def batches(scans: Scans, size: int) -> Iterator[np.ndarray]:
    """Yield the numbers of the scans in batches of similar lengths, so that little is padded."""
    order = np.argsort(scans.lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def padded(parts: list[np.ndarray], length: int, value: float = 0.0) -> np.ndarray:
    """Stack arrays of shape (n_i, ...) into one of shape (parts, length, ...), each padded at its end with `value`."""
    out = np.full((len(parts), length, *parts[0].shape[1:]), value, parts[0].dtype)
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out


def logits_of(probabilities: pd.DataFrame) -> pd.DataFrame:
    """Convert probabilities to float64 logits, clipped to ±`LIMIT`."""
    return logit(probabilities.astype("float64")).clip(-LIMIT, LIMIT)


def read_scores(path: Path) -> pd.DataFrame:
    """Read a table of slices with their labels and a first stage's scores; no images are needed.

    Args:
        path: CSV, compressed or not, or Parquet, a row a slice: SOPInstanceUID, PatientID, SeriesInstanceUID, z (mm,
            ascending or descending along the scan), the six labels, and for each a logit, score_<label>.

    Returns:
        These columns, indexed by SOPInstanceUID; labels int8.

    Raises:
        IchError: the file cannot be read, lacks a column, or has a label that is neither 0 nor 1, text in place
            of a score or z, or a slice without a patient.
    """
    numeric = ["z", *(f"score_{label}" for label in LABELS)]
    columns = [*_IDS, *LABELS, *numeric]
    try:
        table = (
            pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=dict.fromkeys(_IDS, str))
        )
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pandas' and Arrow's derive from the first two
        raise IchError(f"{path} cannot be read as a table ({one_line(error)}); give CSV or Parquet") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise IchError(f"{path} lacks the columns {', '.join(missing)}")
    labels = table[list(LABELS)]
    if not labels.isin([0, 1]).all(axis=None):
        raise IchError(f"{path} holds labels other than 0 and 1")
    text = [column for column in numeric if not is_numeric_dtype(table[column])]
    if text:
        raise IchError(f"{path} holds other things than numbers in the columns {', '.join(text)}; correct them")
    if (unknown := table["PatientID"].isna()).any():
        raise IchError(f"{path} names no patient of {name_some(table.loc[unknown, INDEX_NAME])}; fill PatientID in")
    return table[columns].astype(dict.fromkeys(LABELS, "int8")).set_index(INDEX_NAME)
