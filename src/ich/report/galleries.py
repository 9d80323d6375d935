"""Galleries of a result: worst misses, worst false alarms and most confident hits, with Grad-CAM."""

from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

from ich.competition.labels import LABELS
from ich.images import convert, slice_table
from ich.report import diagnostics, figures, pictures, run_scan, scan_page
from ich.report.heat import heatmaps
from ich.report.page import Absent, Picture, or_absent, png_picture, svg_picture
from ich.results import compare

SCANS = "scans"
"""The folder of the scans' pages in a result directory."""


def draw(
    path: Path, folder: Path, results: compare.Results, slices: pd.DataFrame, facts: pd.DataFrame, pages: bool
) -> dict:
    """Choose the worst misses, the worst false alarms and the most confident hits: one slice for each label.

    Args:
        path: the result directory; Grad-CAM uses its models, where it has some.
        folder: the images' folder.
        results: the directory's predictions alone.
        slices: the images' slice table.
        facts: `ich.report.diagnostics.scan_facts` of the predictions' slices.
        pages: whether to write the page of each slice's scan into the result directory, and link to it.

    Returns:
        `kinds`, title -> the page's content for each slice; `no_heat`, why there is no Grad-CAM, or None.
    """
    table, probabilities = results.table, results.oof[str(path)]
    truth, scans = table[list(LABELS)].to_numpy(), facts["scan"].to_numpy()
    kinds = {
        "The worst misses": {"positive": True, "highest": False},
        "The worst false alarms": {"positive": False, "highest": True},
        "The most confident hits": {"positive": True, "highest": True},
    }
    chosen = {title: diagnostics.extremes(truth, probabilities, scans, **kind) for title, kind in kinds.items()}
    pairs = [pair for selected in chosen.values() for pair in selected]
    heat = or_absent(lambda: dict(heatmaps(path, table["fold"], [(table.index[row], k) for row, k in pairs])))
    heat_of = {} if isinstance(heat, Absent) else heat
    page_of = _pages(path, folder, results, slices, {table.index[row] for row, _ in pairs}) if pages else {}
    show = partial(_case, folder, table, probabilities, slices.set_index("SOPInstanceUID"), facts)
    return {
        "kinds": {
            title: [
                show(row, k, heat_of.get((table.index[row], k))) | {"page": page_of.get(table.index[row])}
                for row, k in selected
            ]
            for title, selected in chosen.items()
        },
        "no_heat": heat if isinstance(heat, Absent) else None,
    }


def _pages(
    path: Path, folder: Path, results: compare.Results, slices: pd.DataFrame, ids: set[str]
) -> dict[str, str | Absent]:
    """Write the pages of slices' scans; return at each slice's id the address of its place in one."""
    table, settings = results.table, convert.read_settings(folder)
    sources = run_scan.Sources(compare.sources_in(results.data))
    predictions = pd.DataFrame(results.oof[str(path)], table.index, list(LABELS))
    pages: dict[str, str | Absent] = dict.fromkeys(ids, Absent("the series of this slice is not known"))
    for series, rows in slices[slices["SOPInstanceUID"].isin(ids)].groupby("SeriesInstanceUID"):
        scan = slices[slices["SeriesInstanceUID"] == series]
        shown = or_absent(run_scan.view, folder, scan, settings, sources, table, predictions)
        if not isinstance(shown, Absent):
            file = f"{SCANS}/{sha256(str(series).encode()).hexdigest()[:16]}.html"
            scan_page.write_scan_page(shown, path / file, "../report.html#slices")
            places = {id: f"{file}#{place}" for place, id in enumerate(shown.ids, 1)}
        pages |= {id: shown if isinstance(shown, Absent) else places[id] for id in rows["SOPInstanceUID"]}
    return pages


def _case(
    folder: Path,
    table: pd.DataFrame,
    probabilities: np.ndarray,
    slices: pd.DataFrame,
    facts: pd.DataFrame,
    row: int,
    k: int,
    heat: np.ndarray | None,
) -> dict:
    """One slice of a gallery."""
    id, label = table.index[row], LABELS[k]
    true = [name for name in LABELS if table[name].iloc[row]]
    scan = slices[(slices["SeriesInstanceUID"] == facts["scan"].iloc[row]) | (slices.index == id)]
    return {
        "label": label,
        "probability": f"{probabilities[row, k]:.3f}",
        "id": id,
        "study": scan["StudyInstanceUID"].fillna("").get(id),
        "fold": int(table["fold"].iloc[row]),
        "truth": ", ".join(true) or "none",
        "predicted": ", ".join(f"{name} {p:.2f}" for name, p in zip(LABELS, probabilities[row], strict=True)),
        "slices": or_absent(_slice_pictures, folder, scan, id, label, heat),
        "curve": _scan_curve(table, probabilities, facts, row, k),
    }


def _slice_pictures(folder: Path, scan: pd.DataFrame, id: str, label: str, heat: np.ndarray | None) -> list[Picture]:
    """The slice before, the slice in its windows, the slice after, and Grad-CAM over its first window."""
    settings = convert.read_settings(folder)
    known, places = slice_table.neighbours(scan.reset_index(), pd.Index([id]), (-1, 0, 1))
    before, own, after = (pictures.windows_of(folder, scan.at[known[place], "path"], settings) for place in places[0])
    first = next(iter(own))
    shown = [png_picture(own[window], f"slice {id}, {window} window", window) for window in own]
    if heat is not None:
        from ich.models import gradcam

        alt = f"Grad-CAM of {label} over the {first} window of slice {id}"
        caption = f"Grad-CAM, {label}" if heat.any() else f"Grad-CAM: no evidence for {label}"
        shown.append(png_picture(gradcam.overlaid(own[first], heat), alt, caption))
    shown += [
        png_picture(image[first], f"the slice {where} {id}, {first} window", f"slice {where}")
        for where, image in (("before", before), ("after", after))
    ]
    return shown


def _scan_curve(
    table: pd.DataFrame, probabilities: np.ndarray, facts: pd.DataFrame, row: int, k: int
) -> Picture | Absent:
    here = facts["order"].iloc[row]
    if np.isnan(here):
        return Absent("this slice has no position in a scan")
    scan = np.flatnonzero((facts["scan"] == facts["scan"].iloc[row]).to_numpy() & facts["order"].notna().to_numpy())
    scan = scan[np.argsort(facts["order"].to_numpy()[scan])]
    order, p = facts["order"].to_numpy()[scan], probabilities[scan, k]
    truth = table[LABELS[k]].to_numpy()[scan]
    where = ", ".join(f"{place:g}" for place in order[truth == 1]) or "no slice"
    alt = f"probability of {LABELS[k]} from slice to slice of the scan; {where} has it; this is slice {here:g}"
    return svg_picture(figures.along_scan(order, p, truth, here, LABELS[k]), alt)
