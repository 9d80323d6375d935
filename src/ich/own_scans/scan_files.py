"""The files of a scan in scans/: its rows, by which the same command continues, and its page."""

import json
from collections import Counter
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ich.competition.labels import LABELS
from ich.dicom.bits import AIR
from ich.dicom.member import Member
from ich.files import replacing
from ich.own_scans.model_spec import ModelSpec
from ich.own_scans.options import Options, named, title
from ich.own_scans.series import Series, SliceFile
from ich.report.scan_page import ScanView

IDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
COLUMNS = ("file", *IDS, "z", "order", *LABELS)
"""Of slices.csv."""

_KEY = b"scan"


class ReadScan(NamedTuple):
    """A series whose files were read."""

    series: Series
    slices: list[SliceFile]
    hu: list[np.ndarray]
    order: np.ndarray
    unread: list[tuple[str, str, str]]  # file, kind of error, reason


class ScanFiles:
    """The files of the scans, one a scan: its rows, what was not read of it, its picture."""

    def __init__(self, out: Path, spec: ModelSpec, digest: str, options: Options):
        self.out, self.spec, self.digest, self.options = out, spec, digest, options

    def path(self, series: Series) -> Path:
        return self.out / "scans" / f"{sha256(series.uid.encode()).hexdigest()[:16]}.parquet"

    def provenance(self, series: Series) -> str:
        """Return a digest of what decides the predictions of a scan, and its page."""
        files = [(file.file, file.uid, file.frame, *_version(file.member), repr(file.z)) for file in series.slices]
        content = [self.digest, asdict(self.options), series.thickness, list(series.notes), files]
        return sha256(json.dumps(content).encode()).hexdigest()

    def facts(self, series: Series) -> dict | None:
        """Return what the file of a scan says beside its rows; None if it is missing, damaged or outdated."""
        try:
            facts = json.loads((pq.read_schema(self.path(series)).metadata or {})[_KEY])
        except (OSError, pa.ArrowException, KeyError, ValueError):
            return None
        if facts.get("provenance") != self.provenance(series):
            return None
        if self.options.pages and facts["slices"] and not self.path(series).with_suffix(".html").is_file():
            return None
        return facts

    def write(self, series: Series, rows: pd.DataFrame, facts: dict) -> None:
        table = pa.Table.from_pandas(rows, preserve_index=False)
        table = table.replace_schema_metadata({_KEY: json.dumps(facts | {"provenance": self.provenance(series)})})
        with replacing(self.path(series)) as temporary:
            pq.write_table(table, temporary)


def _version(member: Member) -> tuple[int | None, ...]:
    """Return what tells a file from an earlier one of its name: its size, and its checksum or when it was written."""
    if member.offset is not None:
        return member.size, member.crc
    try:
        return member.size, Path(member.source, member.name).stat().st_mtime_ns
    except OSError:
        return member.size, None


def rows_of(scan: ReadScan, probabilities: np.ndarray, options: Options) -> pd.DataFrame:
    """Return the rows of slices.csv."""
    series = scan.series
    rows = pd.DataFrame(
        {
            "file": ["" if options.hash_ids else file.file for file in scan.slices],
            "SOPInstanceUID": [named(file.uid, options) for file in scan.slices],
            "SeriesInstanceUID": named(series.uid, options),
            "StudyInstanceUID": named(series.study, options),
            "z": [file.z for file in scan.slices],
            "order": scan.order,
        }
    )
    rows = rows.join(pd.DataFrame(probabilities, columns=list(LABELS)))
    if options.patient_id:
        rows["PatientID"] = named(series.patient, options)
    return rows


def view_of(
    files: ScanFiles,
    scan: ReadScan,
    rows: pd.DataFrame,
    probabilities: np.ndarray,
    heat: np.ndarray | None,
    slab_of: np.ndarray,
    facts: dict,
) -> ScanView:
    """Return what the page of a scan shows; `slab_of` is the number of each slice's slab."""
    series, options = scan.series, files.options
    about = {
        "Study": named(series.study, options),
        "Series": named(series.uid, options),
        "Description": "" if options.hash_ids else series.description,
        "Kernel": series.kernel,
        "Slices": f"{len(scan.slices)}, {_mm(series.spacing)} apart, {_mm(series.thickness)} thick",
        "Slabs": f"read as {facts['slabs']} slabs of {_mm(facts['thickness_mm'])}" if facts["slabs"] else "",
        "Not read": "; ".join(f"{file}: {reason}" for file, _, reason in facts["unread"]),
        "Notes": "; ".join(series.notes),
        "Model": f"{files.spec.result}, {files.digest[:12]}",
        "Patient": named(series.patient, options) if options.patient_id else "",
    }
    shapes = Counter(pixels.shape for pixels in scan.hu)
    return ScanView(
        title=title(series, options),
        facts=[(name, value) for name, value in about.items() if value],
        ids=rows["SOPInstanceUID"].tolist(),
        hu=np.stack([_fitted(pixels, shapes.most_common(1)[0][0]) for pixels in scan.hu]),
        spacing=series.pixel_spacing,
        z=rows["z"].to_numpy(),
        probabilities=probabilities,
        heat=heat,
        heat_note="" if heat is None else _HEAT_NOTE,
        edges=("R", "L", "A", "P") if series.oriented else None,
        groups=slab_of,
    )


_HEAT_NOTE = (
    "Grad-CAM of the slice models, mean of the folds, as strong as the label is probable: where a model looked, not"
    " where a bleed ends."
)


def _mm(distance: float | None) -> str:
    return "n/a" if distance is None else f"{distance:.4g} mm"


def _fitted(hu: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a slice cut or filled with air at its lower right to a shape; a page shows all slices in one."""
    if hu.shape == shape:
        return hu
    out = np.full(shape, AIR, np.int16)
    rows, columns = np.minimum(hu.shape, shape)
    out[:rows, :columns] = hu[:rows, :columns]
    return out
