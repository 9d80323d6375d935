"""The data of a run: the slice table and the folds, each read once, and the digests that environment.json records."""

from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd

from ich.competition import folds
from ich.config import Config
from ich.images import convert, slice_table
from ich.images.render import Settings
from ich.training import external
from ich.training.joined import Joined

DIGESTED = ("SOPInstanceUID", "split", "status", "size", "crc")
"""Columns of the slice table that tell which slices there are, and which DICOM files they were made of."""


def read_slices(config: Config, columns: Sequence[str] = tuple(slice_table.SCHEMA.names)) -> pd.DataFrame:
    """Read the slice table of the config's images, which must be of the config's preprocess section.

    Args:
        columns: as `slice_table.read_table` takes them.

    Raises:
        IchError: not converted yet, or of other settings.
    """
    table = slice_table.read_table(config.data.images / "slices.parquet", columns)
    convert.check_settings(config.data.images, Settings.of(config.preprocess))
    return table


class RunData:
    """Slice table, folds and digests of a config's data, each read when it is first needed, and kept.

    Not all are needed everywhere: a Kaggle notebook predicts the test set where there are no folds.

    Args:
        columns: of the slice table, besides those that digests, neighboring slices and sampling by series need;
            `facts` needs SeriesInstanceUID and z.
    """

    def __init__(self, config: Config, columns: Sequence[str] = ()):
        self._config = config
        self._columns = columns

    @cached_property
    def slices(self) -> pd.DataFrame:
        """The slice table; raises as `read_slices`."""
        columns = [*DIGESTED, *self._columns]
        model, train = self._config.model, self._config.train
        if model.neighbours != [0] or model.scan is not None or train.slices_per_series is not None:
            columns += ["SeriesInstanceUID", "order"]
        if model.scan is not None:
            columns.append("z")
        if self._config.data.external:
            columns += [*external.IDS, "order"]
        if train.pseudo is not None:
            columns.append("PatientID")
        return read_slices(self._config, list(dict.fromkeys(columns)))

    @cached_property
    def external(self) -> list[Joined]:
        """The scans of data.external; raises as `ich.training.external.read`."""
        return external.read(self._config, self.slices)

    @cached_property
    def folds(self) -> pd.DataFrame:
        """The folds; raises as `ich.competition.folds.read_folds`."""
        return folds.read_folds(self._config.data.folds_path)

    @cached_property
    def folds_digest(self) -> dict[str, str]:
        """SHA-256 of the file of folds, as environment.json holds it."""
        path = self._config.data.folds_path
        try:
            return {"folds_sha256": sha256(path.read_bytes()).hexdigest()}
        except OSError as error:
            raise folds.cannot_read(path, error) from error

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the file of folds, and of which DICOM files the train images were made of."""
        return self.folds_digest | {"images_sha256": split_digest(self.slices, "train")}

    @cached_property
    def trained_on(self) -> dict[str, Any]:
        """What cannot change once a training began: `digests`, and number and digest of the external slices."""
        digests = self.digests  # first, as it names what is to be made first
        if not self.external:
            return digests | {"external": None}
        digest = sha256()
        for extra in self.external:
            rows = slice_table.readable(extra.slices, "train").loc[extra.labels.index]
            digest.update(f"{slices_digest(rows)} {extra.weight}\n".encode() + extra.labels.to_numpy(np.int8).tobytes())
        count = sum(len(extra.labels) for extra in self.external)
        return digests | {"external": {"slices": count, "sha256": digest.hexdigest()}}

    @property
    def facts(self) -> dict[str, Any]:
        """What environment.json records of the data: `trained_on`, and the distance of the slices in mm."""
        return self.trained_on | {"slice_distance_mm": slice_table.slice_distance(self.slices)}

    def readable(self, split: str) -> pd.DataFrame:
        """Return size and crc of the readable slices of a split, in the table's order, by SOPInstanceUID."""
        return slice_table.readable(self.slices, split)[["size", "crc"]]

    def held_out(self, k: int) -> pd.DataFrame:
        """Return size and crc of the slices that fold `k` holds out, in the order of the folds, by SOPInstanceUID."""
        return self.readable("train").loc[self.folds.index[self.folds["fold"] == k]]


def split_digest(table: pd.DataFrame, split: str) -> str:
    """Return the digest of a split's readable slices: train by SOPInstanceUID, test in the order it is predicted in."""
    rows = slice_table.readable(table, split)
    return slices_digest(rows.sort_index() if split == "train" else rows)


def slices_digest(table: pd.DataFrame) -> str:
    """Return the SHA-256 of which DICOM files slices were made of, in their order.

    Args:
        table: size and crc of the files, indexed by SOPInstanceUID.
    """
    digest = sha256()
    for id, size, crc in zip(table.index, table["size"], table["crc"], strict=True):
        digest.update(f"{id} {size} {crc}\n".encode())
    return digest.hexdigest()
