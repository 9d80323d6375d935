"""Predict anybody's scans by a trained result: find them, read them, predict them one by one, write tables and pages.

In OUT:

slices.csv        a row a slice: its file, identifiers, place, six probabilities
scans.csv         a row a scan: the highest probability of each label, and the slice that has it
series.csv        a row a series, read or not, with the reason; and one for each kind of file that belongs to none
unread.csv        a row a file of a series that could not be read
predictions.json  how all this was made; written first and last
index.html        all scans, with a picture each
scans/            a page a scan, and its rows as Parquet, from which the same command resumes
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from ich import folders
from ich.dicom.slice_error import KINDS
from ich.errors import IchError
from ich.files import sweep, write_json
from ich.own_scans import find, slabs
from ich.own_scans.model_spec import ModelSpec
from ich.own_scans.options import Options, shown
from ich.own_scans.predictor import Predictor, Slices
from ich.own_scans.scan_files import COLUMNS, ReadScan, ScanFiles, rows_of, view_of
from ich.own_scans.series import Series
from ich.own_scans.tables import Summary, write_tables
from ich.report import scan_page
from ich.report.scan_page import NOTICE
from ich.results import environment


def predict_scans(spec: ModelSpec, sources: Sequence[Path], out: Path, options: Options) -> Summary:
    """Predict every scan in folders, zips and files, and write what was found.

    A scan that was predicted before, from the same files by the same model, is not predicted again. Rows and pages of
    scans that the sources hold no more are removed.

    Args:
        spec: as `ich.own_scans.model_spec.read_model` gives it.
        out: a new or empty folder, or one of this function's with the same model and options, and no other sources.

    Raises:
        IchError: a source cannot be read or holds no files, a model cannot be read, or `out` holds something else, is
            in use, or cannot be written.
    """
    digest = spec.digest()
    for source in sources:
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise IchError(f"{out} lies within {source}, whose files are all looked at; name a folder outside of it")
    record = _provenance(spec, digest, sources, options)
    with _working_in(out, record):
        listing = find.find_series(sources, options.all_series)
        write_json(out / folders.PREDICTIONS.marker, record | {"complete": False})
        files = ScanFiles(out, spec, digest, options)
        _predict(files, [series for series in listing.series if series.status == "read"])
        summary, counts = write_tables(files, listing)
        write_json(out / folders.PREDICTIONS.marker, record | {"complete": True, "counts": counts})
        return summary


@contextmanager
def _working_in(out: Path, now: dict) -> Iterator[None]:
    """Work alone in a folder, which must be new, empty, or of the same model and options, and of no other sources."""

    def check() -> None:
        if not folders.is_ours(out, folders.PREDICTIONS):
            return
        before = json.loads((out / folders.PREDICTIONS.marker).read_text(encoding="utf-8"))
        differing = ["options"] if before["options"] != now["options"] else []
        if not isinstance(before["model"], dict) or before["model"].get("digest") != now["model"]["digest"]:
            differing.append("models")
        if not set(before.get("sources_sha256", ())) <= set(now["sources_sha256"]):
            differing.append("sources")  # whose rows would go
        if differing:
            raise IchError(
                f"{out} holds predictions with other {' and '.join(differing)}; name another folder, or delete it"
                " (of more sources, give all: those predicted before are not predicted again)"
            )

    with folders.locked(out, check):
        for folder in (out, out / "scans"):
            sweep(folder)
        yield


def _provenance(spec: ModelSpec, digest: str, sources: Sequence[Path], options: Options) -> dict:
    """Return what predictions.json says beside the counts."""
    return {
        "notice": NOTICE,
        "model": {
            "name": spec.result,
            "digest": digest,
            "trained_by_commit": spec.commit,
            "parts": {name: part.kind for name, part in spec.parts.items()},
            "thickness_mm": spec.thickness,
            "thresholds": spec.thresholds,
            "out_of_fold": spec.out_of_fold,
        },
        "environment": environment.environment(),
        "sources": [] if options.hash_ids else [str(source) for source in sources],
        "sources_sha256": [sha256(str(source.resolve()).encode()).hexdigest() for source in sources],
        "options": asdict(options),
    }


def _read(series: Series) -> ReadScan:
    slices, hu, order, unread = [], [], [], []
    for place, (slice_, pixels) in enumerate(find.read_slices(series)):
        if isinstance(pixels, np.ndarray):
            slices.append(slice_)
            hu.append(pixels)
            order.append(place)
        else:
            unread.append((slice_.file, pixels.kind, pixels.reason))
    return ReadScan(series, slices, hu, np.array(order, np.int64), unread)


def _predict(files: ScanFiles, series: list[Series]) -> None:
    """Predict the scans that are not predicted yet; meanwhile read the next one, and write the previous one's page."""
    todo = [scan for scan in series if files.facts(scan) is None]
    total = sum(len(scan.slices) for scan in series)
    done = total - sum(len(scan.slices) for scan in todo)
    if not todo:
        return
    predictor = Predictor(files.spec, heat=files.options.pages)
    with (
        ThreadPoolExecutor(1, "read") as reading,
        ThreadPoolExecutor(1, "page") as writing,
        tqdm(total=total, initial=done, unit="slice", desc="predict", disable=None) as bar,
    ):
        ahead: Future[ReadScan] = reading.submit(_read, todo[0])
        written: Future[None] | None = None
        try:
            for number, scan_files in enumerate(todo):
                scan = ahead.result()
                if number + 1 < len(todo):
                    ahead = reading.submit(_read, todo[number + 1])
                write = _predict_one(predictor, files, scan)
                if written is not None:
                    written.result()
                written = writing.submit(write)
                bar.update(len(scan_files.slices))
            if written is not None:
                written.result()
        finally:
            ahead.cancel()


def _reason_shown(kind: str, reason: str, options: Options) -> str:
    """Return why a slice was not read; in general words if names are not to be written, as reasons may hold them."""
    return KINDS.get(kind, kind) if options.hash_ids else reason


def _predict_one(predictor: Predictor, files: ScanFiles, scan: ReadScan) -> Callable[[], None]:
    """Predict a scan; return a function that writes its page and its rows, in this order."""
    series, spec, options = scan.series, files.spec, files.options
    unread = [(shown(file, options), kind, _reason_shown(kind, reason, options)) for file, kind, reason in scan.unread]
    facts: dict[str, Any] = {"unread": unread, "slices": len(scan.slices), "failed": ""}
    if not scan.slices:
        file, _, reason = unread[0]
        facts["failed"] = f"none of its {len(unread)} slices could be read, such as {file}: {reason}"
        return partial(files.write, series, pd.DataFrame(columns=list(COLUMNS)), facts)
    z = np.array([file.z for file in scan.slices])
    slab_of = np.arange(len(z))
    if options.slabs and len({pixels.shape for pixels in scan.hu}) == 1:
        slab_of = slabs.slab_numbers(z, series.thickness, spec.thickness)
    has_slabs = slab_of[-1] + 1 < len(z)
    first = np.unique(slab_of, return_index=True)[1].tolist()
    slices = Slices(
        ids=[scan.slices[place].uid for place in first],
        z=np.array([z[slab_of == number].mean() for number in range(len(first))]) if has_slabs else z,
        order=np.arange(len(first)) if has_slabs else scan.order,
        hu=slabs.averaged(scan.hu, slab_of),
    )
    try:
        prediction = predictor(slices)
    except IchError as error:  # of this scan, such as images of a size that the model does not take
        facts |= {"failed": str(error), "slices": 0}
        return partial(files.write, series, pd.DataFrame(columns=list(COLUMNS)), facts)
    probabilities = prediction.probabilities[slab_of]
    rows = rows_of(scan, probabilities, options)
    thickness = slabs.slab_thickness(z, slab_of, spec.thickness) if has_slabs else series.thickness or series.spacing
    facts["thickness_mm"] = thickness
    facts["slabs"] = len(first) if has_slabs else 0

    def write() -> None:
        if options.pages:
            heat = None if prediction.heat is None else prediction.heat[slab_of]
            view = view_of(files, scan, rows, probabilities, heat, slab_of, facts)
            page = files.path(series).with_suffix(".html")
            facts["thumbnail"] = base64.b64encode(scan_page.write_scan_page(view, page, "../index.html")).decode()
        files.write(series, rows, facts)

    return write
