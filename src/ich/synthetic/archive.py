"""Render a plan as phantom slices, and write an archive laid out like the competition's."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from ich.competition.labels import INDEX_NAME, LABELS, to_long
from ich.errors import IchError
from ich.files import replacing
from ich.synthetic import artifacts, mimics
from ich.synthetic.bleeds import pour, reaches, visible
from ich.synthetic.dicom_file import to_dicom
from ich.synthetic.head import Head
from ich.synthetic.plan import ODDITIES, SeriesPlan, SlicePlan
from ich.synthetic.tissue import render

FOLDER = "rsna-intracranial-hemorrhage-detection"

_RASTER = 320  # pixels of the longer edge on which tissue is computed; noise is added at full size
_LABEL_SPACING = 2.0  # mm; labels come from a raster of their own, so that they do not depend on an image's size


class PhantomSlice(NamedTuple):
    """A rendered slice: HU, int16, (rows, columns), and its six labels, int8."""

    hu: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class Summary:
    """An archive's number of slices by split, share of train slices with each label, and files with each oddity."""

    path: Path
    slices: dict[str, int]
    prevalence: dict[str, float]
    oddities: dict[str, list[str]] = field(repr=False)


def render_series(series: SeriesPlan) -> Iterator[PhantomSlice]:
    """Render the slices of a series, in their order."""
    head = Head.draw(np.random.default_rng(series.anatomy))
    shift = series.shift
    for index, s in enumerate(series.slices):
        labels = _labels_of(head, series, s, shift)
        scale = min(1.0, _RASTER / max(s.rows, s.columns))
        hu, _ = _paint(head, series, s, (round(s.rows * scale), round(s.columns * scale)), shift)
        rng = np.random.default_rng([series.noise, index])
        if series.hard is not None:
            artifacts.harden(hu, series.plane(s), series.hard.beam_hardening, rng)
            if index in series.hard.motion:
                hu = artifacts.move(hu, series.hard.motion[index], s.spacing / scale)
        hu = cv2.resize(hu, (s.columns, s.rows), interpolation=cv2.INTER_CUBIC)
        _add_scanner(hu, series, s, rng)
        low, high = s.stored_as.hu_range
        np.clip(np.rint(hu, out=hu), max(low, -1024), min(high, 3071), out=hu)
        hu = hu.astype(np.int16)
        if series.padded:
            hu[_outside_circle(s.rows, s.columns)] = -2000 + s.stored_as.intercept
        yield PhantomSlice(hu, labels)


def _labels_of(head: Head, series: SeriesPlan, s: SlicePlan, shift: tuple | None) -> np.ndarray:
    plane = series.plane(s)
    heights = plane.points(2, 2)[2]  # halfway to the corners, which are as far again from the mean
    heights = heights.mean() + 2 * (heights - heights.mean())
    if not any(reaches(bleed, float(heights.min()), float(heights.max())) for bleed in series.bleeds):
        return np.zeros(len(LABELS), np.int8)
    rows, columns = (max(8, round(n * s.spacing / _LABEL_SPACING)) for n in (s.rows, s.columns))
    _, brighter = _paint(head, series, s, (rows, columns), shift)
    return visible(brighter, s.rows * s.columns * s.spacing**2 / (rows * columns))


def _paint(
    head: Head, series: SeriesPlan, s: SlicePlan, shape: tuple[int, int], shift: tuple | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Paint a slice with its findings and bleeds: what `pour` returns, averaged over the slice's thickness."""
    parts = []
    for plane in series.planes(s):
        tissue = render(head, plane, shape, shift)
        if series.hard is not None:
            mimics.paint(tissue, series.hard.mimics)
        parts.append(pour(tissue, series.bleeds))
    if len(parts) == 1:
        return parts[0]
    hu = np.stack([hu for hu, _ in parts]).mean(axis=0)
    none = np.zeros(shape, np.float32)
    kinds = {kind for _, brighter in parts for kind in brighter}
    return hu, {kind: np.mean([brighter.get(kind, none) for _, brighter in parts], axis=0) for kind in kinds}


def write_archive(path: Path, plan: Sequence[SeriesPlan], jobs: int = 1, progress: bool = False) -> Summary:
    """Write an archive of phantom scans.

    The same plan gives the same bytes, whatever `jobs` is, with the same versions of the libraries.

    Args:
        path: of the zip, written under a temporary name until it is complete.
        plan: as `ich.synthetic.plan.draw_plan` gives it.
        jobs: worker processes.
        progress: show a bar.

    Raises:
        IchError: the number of jobs is out of range, or the zip cannot be written.
    """
    if jobs < 1:
        raise IchError(f"an archive needs 1 process or more to write it, got jobs {jobs}")
    labels: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    oddities: dict[str, list[str]] = {name: [] for name in ODDITIES}
    total = sum(len(s.slices) for s in plan)
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        tqdm(total=total, unit="slice", disable=not progress) as bar,
    ):
        work = Parallel(n_jobs=jobs, return_as="generator")(delayed(_files_of)(series) for series in plan)
        for series, files in zip(plan, work, strict=True):
            for s, (content, of_slice) in zip(series.slices, files, strict=True):
                member = f"{FOLDER}/stage_2_{series.split}/{s.uid}.dcm"
                _add(archive, member, content)
                labels[series.split][s.uid] = of_slice
                for oddity in s.oddities:
                    oddities[oddity].append(member)
            bar.update(len(files))
        train = (
            pd.DataFrame.from_dict(labels["train"], "index", columns=list(LABELS)).rename_axis(INDEX_NAME).sort_index()
        )
        twice = sorted(Path(member).stem for member in oddities["listed twice"])
        rows = pd.concat([to_long(train), to_long(train.loc[twice])])
        _add(archive, f"{FOLDER}/stage_2_train.csv", rows.to_csv(index=False))
        test = pd.Index(sorted(labels["test"]), dtype=object, name=INDEX_NAME)
        sample = to_long(pd.DataFrame(0.5, test, list(LABELS)))
        _add(archive, f"{FOLDER}/stage_2_sample_submission.csv", sample.to_csv(index=False))
        # The central directory lists the members by name, as the real archive's does, wherever their data lie.
        archive.filelist.sort(key=lambda member: member.filename)
    return Summary(
        path=path,
        slices={split: len(of_split) for split, of_split in labels.items()},
        prevalence=train.mean().to_dict(),
        oddities={name: sorted(members) for name, members in oddities.items()},
    )


def _files_of(series: SeriesPlan) -> list[tuple[bytes, np.ndarray]]:
    """Return the DICOM files of a series and their labels; the work of one process."""
    rendered = zip(series.slices, render_series(series), strict=True)
    return [(to_dicom(hu, series, s), labels) for s, (hu, labels) in rendered]


def _add(archive: zipfile.ZipFile, member: str, content: bytes | str) -> None:
    info = zipfile.ZipInfo(member, date_time=(2019, 11, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    info.create_system = 3  # Unix, whichever system writes it
    archive.writestr(info, content, compresslevel=1)


def _add_scanner(hu: np.ndarray, series: SeriesPlan, s: SlicePlan, rng: np.random.Generator) -> None:
    """Add the head holder, and noise correlated between neighboring pixels as by a soft kernel."""
    if series.holder:
        first = min(s.rows, s.rows // 2 + round(38 / s.spacing))
        down = (np.arange(first, s.rows, dtype=np.float32)[:, None] - s.rows / 2) * np.float32(s.spacing)
        right = (np.arange(s.columns, dtype=np.float32)[None, :] - s.columns / 2) * np.float32(s.spacing)
        ring = np.clip(1.8 - np.abs(np.sqrt(right * right + down * down) - 109), 0, 1)
        below = hu[first:]
        below += ring * np.clip(140 - below, 0, None)
    white = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = cv2.GaussianBlur(white, (0, 0), max(0.35, series.sharpness * 0.45 / s.spacing))
    hu += noise * np.float32(series.noise_level / noise.std())


def _outside_circle(rows: int, columns: int) -> np.ndarray:
    """Return a mask of the pixels outside a circular field of view: bool, rows x columns."""
    down = np.arange(rows)[:, None] - (rows - 1) / 2
    right = np.arange(columns)[None, :] - (columns - 1) / 2
    return down * down + right * right > (max(rows, columns) / 2) ** 2
