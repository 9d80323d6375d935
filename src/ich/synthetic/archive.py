"""From a plan to phantom slices, and to an archive laid out like the competition's."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.files import replacing
from ich.synthetic.bleeds import pour, reaches, visible
from ich.synthetic.dicom_file import PixelFormat, to_dicom
from ich.synthetic.head import Head, render
from ich.synthetic.plan import ODDITIES, SeriesPlan, SlicePlan, draw_plan, plan_series

FOLDER = "rsna-intracranial-hemorrhage-detection"

_RASTER = 320  # pixels of the longer edge on which tissue is computed; noise is added at full size
_LABEL_SPACING = 2.0  # mm; labels come from a raster of their own, so that they do not depend on an image's size


@dataclass(frozen=True, slots=True)
class PhantomSlice:
    """A rendered slice: HU (int16, rows x columns), its six labels (int8), and where it lies."""

    uid: str
    hu: np.ndarray
    labels: np.ndarray
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    spacing: float
    stored_as: PixelFormat
    oddities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """What an archive holds: slices a split, share of train slices with each label, and the files of each oddity."""

    path: Path
    slices: dict[str, int]
    prevalence: dict[str, float]
    oddities: dict[str, list[str]] = field(repr=False)


def phantom_series(
    *, seed: int = 0, kinds: Sequence[str] = (), slices: int = 28, size: int = 512
) -> tuple[SeriesPlan, Iterator[PhantomSlice]]:
    """One scan in memory, with a bleed of each kind that is named: its plan, and its slices as they are asked for.

    `render_series(dataclasses.replace(plan, bleeds=()))` gives the same scan, to the noise, without blood.

    Raises:
        IchError: a kind is not one of the five.
    """
    plan = plan_series(seed=seed, kinds=kinds, slices=slices, size=size)
    return plan, render_series(plan)


def render_series(series: SeriesPlan) -> Iterator[PhantomSlice]:
    """The slices of a series, one at a time."""
    head = Head.draw(np.random.default_rng(series.anatomy))
    shift = series.shift
    for index, s in enumerate(series.slices):
        plane = series.plane(s)
        labels = _labels_of(head, series, s, shift)
        scale = min(1.0, _RASTER / max(s.rows, s.columns))
        tissue = render(head, plane, (round(s.rows * scale), round(s.columns * scale)), shift)
        hu, _ = pour(tissue, series.bleeds)
        hu = cv2.resize(hu, (s.columns, s.rows), interpolation=cv2.INTER_CUBIC)
        rng = np.random.default_rng([series.noise, index])
        _add_scanner(hu, series, s, rng)
        low, high = s.stored_as.hu_range
        np.clip(np.rint(hu, out=hu), max(low, -1024), min(high, 3071), out=hu)
        hu = hu.astype(np.int16)
        if series.padded:
            hu[_outside_circle(s.rows, s.columns)] = -2000 + s.stored_as.intercept
        yield PhantomSlice(
            s.uid, hu, labels, series.position(s), series.orientation, s.spacing, s.stored_as, s.oddities
        )


def series_labels(series: SeriesPlan) -> np.ndarray:
    """The labels that `render_series` gives, int8, shape (slices, 6), without its images and some ten times as fast."""
    if not series.bleeds:
        return np.zeros((len(series.slices), len(LABELS)), np.int8)
    head = Head.draw(np.random.default_rng(series.anatomy))
    return np.stack([_labels_of(head, series, s, series.shift) for s in series.slices])


def _labels_of(head: Head, series: SeriesPlan, s: SlicePlan, shift: tuple | None) -> np.ndarray:
    plane = series.plane(s)
    heights = plane.points(2, 2)[2]  # halfway to the corners, which are as far again from the mean
    heights = heights.mean() + 2 * (heights - heights.mean())
    if not any(reaches(bleed, float(heights.min()), float(heights.max())) for bleed in series.bleeds):
        return np.zeros(len(LABELS), np.int8)
    shape = tuple(max(8, round(n * s.spacing / _LABEL_SPACING)) for n in (s.rows, s.columns))
    _, brighter = pour(render(head, plane, shape, shift), series.bleeds)
    return visible(brighter, s.rows * s.columns * s.spacing**2 / (shape[0] * shape[1]))


def write_archive(
    path: Path,
    *,
    patients: int = 40,
    test_patients: int = 8,
    seed: int = 0,
    bleed_factor: float = 1.0,
    jobs: int = 1,
    size: int = 512,
    min_slices: int = 20,
    max_slices: int = 40,
    progress: bool = False,
) -> Summary:
    """Write an archive of phantom scans; see `draw_plan` for the arguments it shares.

    The same arguments give the same bytes, whatever `jobs` is, with the same versions of the libraries.

    Args:
        path: of the zip; it appears when it is whole.
        jobs: worker processes.
        progress: show a bar.

    Raises:
        IchError: an argument makes no scan, or the zip cannot be written.
    """
    if jobs < 1:
        raise IchError(f"an archive needs 1 process or more to write it, got jobs {jobs}")
    plan = draw_plan(
        patients=patients,
        test_patients=test_patients,
        seed=seed,
        bleed_factor=bleed_factor,
        size=size,
        min_slices=min_slices,
        max_slices=max_slices,
    )
    labels: dict[str, dict[str, np.ndarray]] = {"train": {}, "test": {}}
    manifest: dict[str, list[str]] = {name: [] for name in ODDITIES}
    total = sum(len(s.slices) for s in plan)
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        tqdm(total=total, unit="slice", disable=not progress) as bar,
    ):
        work = Parallel(n_jobs=jobs, return_as="generator")(delayed(_files_of)(series) for series in plan)
        for series, files in zip(plan, work, strict=True):
            for s, (content, its_labels) in zip(series.slices, files, strict=True):
                member = f"{FOLDER}/stage_2_{series.split}/{s.uid}.dcm"
                _add(archive, member, content)
                labels[series.split][s.uid] = its_labels
                for oddity in s.oddities:
                    manifest[oddity].append(member)
            bar.update(len(files))
        twice = {Path(member).stem for member in manifest["listed twice"]}
        _add(archive, f"{FOLDER}/stage_2_train.csv", _train_csv(labels["train"], twice))
        _add(archive, f"{FOLDER}/stage_2_sample_submission.csv", _sample_submission(labels["test"]))
        # The central directory lists the members by name, as the real archive's does, wherever their data lie.
        archive.filelist.sort(key=lambda member: member.filename)
    share = np.mean(list(labels["train"].values()), axis=0)
    return Summary(
        path=path,
        slices={split: len(found) for split, found in labels.items()},
        prevalence={label: float(p) for label, p in zip(LABELS, share, strict=True)},
        oddities={name: sorted(members) for name, members in manifest.items()},
    )


def _files_of(series: SeriesPlan) -> list[tuple[bytes, np.ndarray]]:
    """The DICOM files of a series and their labels: what a worker does."""
    return [
        (
            to_dicom(
                s.hu,
                stored_as=s.stored_as,
                uid=s.uid,
                patient_id=series.patient_id,
                study_uid=series.study_uid,
                series_uid=series.series_uid,
                position=s.position,
                orientation=s.orientation,
                spacing=s.spacing,
                window=series.window,
                explicit=series.explicit,
                truncated="truncated" in s.oddities,
            ),
            s.labels,
        )
        for s in render_series(series)
    ]


def _add(archive: zipfile.ZipFile, member: str, content: bytes | str) -> None:
    info = zipfile.ZipInfo(member, date_time=(2019, 11, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    info.create_system = 3  # else the byte tells the system that wrote it
    archive.writestr(info, content, compresslevel=1)


def _train_csv(labels: dict[str, np.ndarray], twice: set[str]) -> str:
    lines = ["ID,Label"]
    for uid in [*sorted(labels), *sorted(twice)]:
        lines += [f"{uid}_{label},{value}" for label, value in zip(LABELS, labels[uid], strict=True)]
    return "\n".join(lines) + "\n"


def _sample_submission(labels: dict[str, np.ndarray]) -> str:
    return "\n".join(["ID,Label", *(f"{uid}_{label},0.5" for uid in sorted(labels) for label in LABELS)]) + "\n"


def _add_scanner(hu: np.ndarray, series: SeriesPlan, s: SlicePlan, rng: np.random.Generator) -> None:
    """The head holder, and noise as a soft kernel leaves it: neighbouring pixels are alike."""
    if series.holder:
        first = min(s.rows, s.rows // 2 + round(38 / s.spacing))
        down = (np.arange(first, s.rows, dtype=np.float32)[:, None] - s.rows / 2) * np.float32(s.spacing)
        right = (np.arange(s.columns, dtype=np.float32)[None, :] - s.columns / 2) * np.float32(s.spacing)
        ring = np.clip(1.8 - np.abs(np.sqrt(right * right + down * down) - 109), 0, 1)
        below = hu[first:]
        below += ring * np.clip(140 - below, 0, None)
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), max(0.35, series.sharpness * 0.45 / s.spacing))
    hu += noise * np.float32(series.noise_level / noise.std())


def _outside_circle(rows: int, columns: int) -> np.ndarray:
    """Where a scanner with a circular field of view has measured nothing: bool, rows x columns."""
    down = np.arange(rows)[:, None] - (rows - 1) / 2
    right = np.arange(columns)[None, :] - (columns - 1) / 2
    return down * down + right * right > (max(rows, columns) / 2) ** 2
