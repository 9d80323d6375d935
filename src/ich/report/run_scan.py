"""A scan of a run's own images as a page: its HU from the DICOM sources or the PNGs, its labels and predictions."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from isal import isal_zlib

from ich.competition.labels import LABELS
from ich.dicom import archive, reader
from ich.dicom.member import Member
from ich.dicom.windows import Window, name_of
from ich.errors import IchError
from ich.images import reading
from ich.images.render import MAP_SIDE, Box, Field, Settings, field_of_view, over_slices
from ich.report import pictures
from ich.report.heat import heatmaps
from ich.report.scan_page import ScanView

_HEAT_NOTE = (
    "Grad-CAM of the fold's model that has not seen the patient (of a test slice: of the first fold's), scaled by the"
    " slice's probability. It shows what a network looked at, not where a bleed ends."
)


class Sources:
    """The DICOM files of folders and zips, listed when the first is asked for."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths

    @cached_property
    def _members(self) -> archive.Members:
        if not self._paths:
            raise IchError("the config names no sources")
        return archive.members(self._paths, "train")  # of either split: the ids tell the slices

    def find(self, ids: pd.Series) -> dict[str, Member]:
        """Return the files of slices by their ids, without those that are not there; raises as `archive.members`."""
        asked = pc.is_in(self._members.table["id"], pa.array(ids)).combine_chunks()
        return {member.id: member for member in self._members.where(asked)[:]}


def view(
    folder: Path,
    scan: pd.DataFrame,
    settings: Settings,
    sources: Sources,
    labels: pd.DataFrame | None = None,
    predictions: pd.DataFrame | None = None,
    heat: Callable[[pd.DataFrame], np.ndarray] | None = None,
) -> ScanView:
    """Gather what a page shows of one series of the slice table.

    Its HU are those of the DICOM files, if all of them lie in the sources as they were when they were converted; else
    those that the PNGs tell, and the page says why.

    Args:
        folder, settings: as for `ich.report.pictures.windows_of`.
        scan: rows of the slice table, one series in scan order (`ich.report.pictures.find_scans`). Slices without an
            image are left out, and the page has their number.
        sources: where the DICOM files are.
        labels: a label frame; the page has labels if it has all slices.
        predictions: probabilities, indexed likewise; missing slices have none.
        heat: gives Grad-CAM of rows of the table, as `grad_cam` does; the page has it times the probability.

    Raises:
        IchError: the rows are of several series, or none has an image; or as `ich.report.pictures.windows_of`.
    """
    if scan["SeriesInstanceUID"].nunique() > 1:
        series = ", ".join(scan["SeriesInstanceUID"].unique())
        raise IchError(f"a page shows one series, and the rows belong to {series}; name one of them")
    readable = scan[scan["status"] == "ok"].sort_values(["order", "SOPInstanceUID"])
    if readable.empty:
        raise IchError(f"no slice of the series {scan['SeriesInstanceUID'].iloc[0]} has an image")
    first, ids = readable.iloc[0], readable["SOPInstanceUID"]
    known = pd.Index(ids).isin(labels.index) if labels is not None else np.zeros(len(ids), bool)
    facts = [
        ("StudyInstanceUID", str(first["StudyInstanceUID"])),
        ("SeriesInstanceUID", str(first["SeriesInstanceUID"])),
        ("PatientID", str(first["PatientID"])),
        ("split", str(first["split"])),
        ("slices", str(len(readable))),
    ]
    if len(readable) < len(scan):
        facts.append(("without an image, not on this page", str(len(scan) - len(readable))))
    if labels is not None and not known.all() and known.any():
        facts.append(("labels", f"known of {known.sum()} slices, and not shown"))
    fields = [_field(row, settings) for row in readable.itertuples()]
    try:
        hu, spacing = _from_sources(readable, sources)
        facts.append(("HU", "of the DICOM files"))
    except IchError as error:
        hu, spacing, how = _from_images(folder, readable, settings, fields)
        facts.append(("HU", f"{how}; the DICOM files are not shown: {error}"))
        fields = [Field(0, 0, *hu.shape[1:])] * len(fields)
    probabilities = np.full((len(ids), len(LABELS)), np.nan)
    if predictions is not None:
        probabilities = predictions[list(LABELS)].reindex(ids).to_numpy(np.float64)
    maps = None
    if heat is not None:
        shown = heat(readable) * np.nan_to_num(probabilities)[..., None, None]
        maps = over_slices(shown, fields, [hu.shape[1:]] * len(fields))
    return ScanView(
        title=f"Scan {first['SeriesInstanceUID']}",
        facts=facts,
        ids=ids.tolist(),
        hu=hu,
        spacing=spacing,
        z=readable["z"].to_numpy(np.float64),
        probabilities=probabilities,
        labels=labels.loc[ids, list(LABELS)].to_numpy() if labels is not None and known.all() else None,
        heat=maps,
        heat_note="" if maps is None else _HEAT_NOTE,
        edges=_edges(readable["ImageOrientationPatient"]),
    )


def grad_cam(path: Path, folds: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """Grad-CAM of slices for each label, by the model of each slice's fold; of test slices, of the first fold.

    Args:
        path: a run's directory.
        folds: as `ich.competition.folds.read_folds` gives them.
        rows: of the slice table, of one split.

    Returns:
        float32, shape (n, 6, 32, 32), over the image of each slice, the largest of each map 1.

    Raises:
        IchError: as `ich.report.heat.heatmaps`, or a train slice is in no fold.
    """
    ids = pd.Index(rows["SOPInstanceUID"])
    split = rows["split"].iloc[0]
    fold = folds["fold"].reindex(ids)
    if split == "test":
        fold = pd.Series(min((k for k in folds["fold"] if (path / f"fold{k}/model.keras").exists()), default=0), ids)
    if fold.isna().any():
        raise IchError(f"{fold.index[fold.isna()][0]} is in no fold: no model is known that has not seen its patient")
    place = {id: k for k, id in enumerate(ids)}
    out = np.zeros((len(ids), len(LABELS), MAP_SIDE, MAP_SIDE), np.float32)
    for (id, label), heatmap in heatmaps(
        path, fold, [(id, label) for id in ids for label in range(len(LABELS))], split
    ):
        out[place[id], label] = cv2.resize(heatmap, (MAP_SIDE, MAP_SIDE), interpolation=cv2.INTER_AREA)
    return out


def _edges(orientations: pd.Series) -> tuple[str, str, str, str] | None:
    """The patient's sides at the left, right, top and bottom edges of slices (PS3.3, C.7.6.2.1.1).

    Args:
        orientations: their ImageOrientationPatient.

    Returns:
        Of each edge the nearest of R, L, A, P, F (foot) and H (head); None if one is unknown or two differ.
    """
    edges = {_edges_of(orientation) for orientation in orientations}
    return edges.pop() if len(edges) == 1 else None


def _edges_of(orientation) -> tuple[str, str, str, str] | None:
    if not isinstance(orientation, (list, np.ndarray)) or len(orientation) != 6:
        return None
    row, column = np.reshape(orientation, (2, 3)).astype(np.float64)
    if not (np.isfinite([row, column]).all() and np.cross(row, column).any()):
        return None
    return (*_ends(row), *_ends(column))


def _ends(direction: np.ndarray) -> tuple[str, str]:
    """Where a direction comes from and where it goes to, of the patient."""
    axis = int(np.abs(direction).argmax())
    low, high = (("R", "L"), ("A", "P"), ("F", "H"))[axis]
    return (low, high) if direction[axis] > 0 else (high, low)


def _from_sources(scan: pd.DataFrame, sources: Sources) -> tuple[np.ndarray, tuple[float, float] | None]:
    members, slices = sources.find(scan["SOPInstanceUID"]), []
    for row in scan.itertuples():
        if row.SOPInstanceUID not in members:
            raise IchError(f"the sources lack {row.SOPInstanceUID}")
        data = members[row.SOPInstanceUID].read()
        if not pd.isna(row.crc) and isal_zlib.crc32(data) != row.crc:
            raise IchError(f"{row.SOPInstanceUID} has changed in the sources since it was converted")
        slices.append(reader.read(data)[0])
    return _stacked(slices), _one_spacing([_pixel_spacing(row) for row in scan.itertuples()])


def _from_images(
    folder: Path, scan: pd.DataFrame, settings: Settings, fields: Sequence[Field]
) -> tuple[np.ndarray, tuple[float, float] | None, str]:
    """HU of the PNGs, mm between their rows and columns, and how the HU were had."""
    slices, spacings = [], []
    for row, field in zip(scan.itertuples(), fields, strict=True):
        if settings.files == "hu":
            slices.append((reading.read(folder / row.path)[..., 0].astype(np.int32) + reader.AIR).astype(np.int16))
        else:
            slices.append(_unwindowed(pictures.windows_of(folder, row.path, settings), settings.windows))
        spacing = _pixel_spacing(row)
        rows, columns = slices[-1].shape
        spacings.append(spacing and (spacing[0] * field.rows / rows, spacing[1] * field.columns / columns))
    how = "of the PNGs, which hold HU"
    if settings.files != "hu":
        low = min(window.center - window.width / 2 for window in settings.windows)
        high = max(window.center + window.width / 2 for window in settings.windows)
        names = ", ".join(map(name_of, settings.windows))
        how = f"of the PNGs, as their windows ({names}) tell them, cut off below {low:g} and above {high:g}"
    return _stacked(slices), _one_spacing(spacings), how


def _unwindowed(windows: dict[str, np.ndarray], of: Sequence[Window]) -> np.ndarray:
    """HU by the narrowest window that is neither black nor white there, else by the widest."""
    of = sorted(of, key=lambda window: -window.width)
    hu = np.zeros(windows[name_of(of[0])].shape)
    for number, window in enumerate(of):
        gray = windows[name_of(window)]
        inside = (gray > 0) & (gray < 255) if number else np.ones(gray.shape, bool)
        hu[inside] = window.center + window.width * (gray[inside] / 255 - 0.5)
    return np.rint(hu).astype(np.int16)


def _field(row, settings: Settings) -> Field:
    """The part of a slice that its image shows, of a row of the slice table."""
    cropped = not pd.isna(row.crop_side)
    box = Box(int(row.crop_top), int(row.crop_left), int(row.crop_side)) if cropped else None
    return field_of_view((int(row.Rows), int(row.Columns)), box, settings)


def _stacked(slices: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {image.shape for image in slices}
    if len(shapes) > 1:
        raise IchError(f"the slices have several sizes ({', '.join(f'{a} × {b}' for a, b in sorted(shapes))})")
    return np.stack(slices)


def _pixel_spacing(row) -> tuple[float, float] | None:
    spacing = row.PixelSpacing  # an array; None or NA where it is unknown
    if not isinstance(spacing, (list, np.ndarray)) or len(spacing) != 2:
        return None
    between_rows, between_columns = map(float, spacing)
    return (between_rows, between_columns) if 0 < between_rows < np.inf and 0 < between_columns < np.inf else None


def _one_spacing(spacings: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    """The spacing of all slices; None where one is unknown, or they differ, as of slices cropped each for itself."""
    first = spacings[0]
    if first is None or any(spacing is None or not np.allclose(spacing, first, rtol=1e-3) for spacing in spacings):
        return None
    return first
