"""The report of a result directory: one HTML page that needs nothing beside it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ich import folders
from ich.competition import folds, metrics
from ich.competition.labels import LABELS, METRIC_WEIGHTS
from ich.errors import IchError, one_line, or_na
from ich.files import replacing
from ich.images import convert, slice_table
from ich.report import diagnostics, figures, galleries
from ich.report.html import render
from ich.report.page import Absent, Picture, Table, or_absent, svg_picture
from ich.results import commands, compare
from ich.results.predictions import read_predictions
from ich.results.result_directory import read_mapping, score_file, share, shortcomings
from ich.training.curves import learning_curves

_QUARANTINED = 100  # slices without an image that are listed
_CURVES = [f"{split}{name}" for name in ("loss", "weighted_log_loss") for split in ("", "val_")]
_CURVES += [f"val_auc_{label}" for label in LABELS]


def write_report(path: Path, folds_path: Path | None = None, pages: bool = False) -> Path:
    """Write `report.html` into a result directory.

    A section whose input is missing (models of a blend, images, test predictions) says so in its place.

    Args:
        path: a run, second stage or blend: oof.parquet, config.yaml and environment.json.
        folds_path: the file of folds; None takes the path in the directory's config.
        pages: whether to write the pages of the scans in its galleries too, into `scans/`, and link to them.

    Returns:
        The page's path.

    Raises:
        IchError: there are no out-of-fold predictions of the folds' slices (`ich.results.compare.read_results`), or the
            page cannot be written.
    """
    results = compare.read_results([path], folds_path)
    table, probabilities = results.table, results.oof[str(path)].astype(np.float64)
    of_images = or_absent(_images, path, results, probabilities, pages)
    if isinstance(of_images, Absent):
        of_images = dict.fromkeys(("weak_spots", "galleries", "conversion", "quarantined"), of_images)
    score = or_absent(score_file, path)
    score = {} if isinstance(score, Absent) else score  # the section of the steps says why
    context = {
        "name": path.resolve().name,
        "score": _score(table, probabilities),
        "warnings": shortcomings(path, score | metrics.summary(table[list(LABELS)].to_numpy(), probabilities)),
        "by_label": _by_label(table, probabilities),
        "by_fold": _groups(diagnostics.by_group(table, probabilities, table["fold"]), "fold"),
        "gains": or_absent(_gains, path),
        "learning": or_absent(_learning, path, sorted(table["fold"].unique())),
        "ranking": svg_picture(
            figures.ranking_curves(table[list(LABELS)].to_numpy(), probabilities),
            "ROC curves and curves of precision against recall, one for each label; the table by label has their areas",
        ),
        "calibration": svg_picture(
            figures.calibration_curves(table[list(LABELS)].to_numpy(), probabilities),
            "for each label: the share of slices that have it against the mean probability, in tenths of the"
            " probability, and how many slices these are",
        ),
        "test": or_absent(_test, path, table, probabilities),
        "folds": _folds_audit(table),
        "folds_path": results.data["folds"],
        "quarantined_shown": _QUARANTINED,
        "images": results.data.get("images"),
        "config": (path / "config.yaml").read_text(encoding="utf-8"),
        "environment": _environment(read_mapping(path / "environment.json")),
        "commands": or_absent(_commands, path, folds_path),
        **of_images,
    }
    page = render("report.html", context)
    with folders.locked(path, wait=folders.SHORT), replacing(path / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path / "report.html"


def _images(path: Path, results: compare.Results, probabilities: np.ndarray, pages: bool) -> dict:
    """Sections that need the images or their slice table."""
    if not results.data.get("images"):
        raise IchError("the config does not say where the images are")
    folder = Path(results.data["images"])
    slices = slice_table.read_table(folder / "slices.parquet")
    facts = diagnostics.scan_facts(slices, results.table.index)
    return {
        "weak_spots": or_absent(_weak_spots, results.table, probabilities, facts),
        "galleries": galleries.draw(path, folder, results, slices, facts, pages),
        "conversion": convert.summary(slices),
        "quarantined": _quarantined(slices),
    }


def _score(table: pd.DataFrame, probabilities: np.ndarray) -> dict[str, str]:
    score = compare.compare(table, {"this": probabilities}, baseline="this").loc["this"]
    floor = metrics.prevalence_log_loss(table[list(LABELS)].to_numpy())
    return {
        "value": f"{score['weighted_log_loss']:.4f}",
        "interval": f"{score['low']:.4f} to {score['high']:.4f}",
        "floor": f"{floor:.4f}",
        "share": share(score["weighted_log_loss"], floor),
        "slices": f"{len(table):,}",
        "patients": f"{table['PatientID'].nunique():,}",
        "folds": str(table["fold"].nunique()),
    }


def _by_label(table: pd.DataFrame, probabilities: np.ndarray) -> Table:
    head = ["label", "weight", "slices", "prevalence", "log loss", "95 % interval", "prevalence baseline", "AUC"]
    head += ["average precision", f"sensitivity at {diagnostics.SPECIFICITY:.0%} specificity"]
    rows = [
        [
            row.Index,
            str(METRIC_WEIGHTS[row.Index]),
            f"{row.positives:,}",
            f"{row.prevalence:.2%}",
            f"{row.log_loss:.4f}",
            _span(row.low, row.high),
            f"{row.of_prevalence:.4f}",
            or_na(row.auc, ".4f"),
            or_na(row.average_precision, ".4f"),
            or_na(row.sensitivity, ".1%"),
        ]
        for row in diagnostics.by_label(table, probabilities).itertuples()
    ]
    return Table(head, rows)


def _groups(groups: pd.DataFrame, name: str) -> Table:
    head = [name, "slices", "patients", "any", "log loss", "95 % interval", "prevalence baseline"]
    head += [f"{label} log loss" for label in LABELS]
    rows = [
        [
            str(row["group"]),
            f"{row['slices']:,}",
            f"{row['patients']:,}",
            f"{row['any']:.1%}",
            f"{row['weighted_log_loss']:.4f}",
            _span(row["low"], row["high"]),
            f"{row['of_prevalence']:.4f}",
            *(f"{row[f'{label} log loss']:.4f}" for label in LABELS),
        ]
        for row in groups.rename_axis("group").reset_index().to_dict("records")
    ]
    return Table(head, rows)


def _weak_spots(table: pd.DataFrame, probabilities: np.ndarray, facts: pd.DataFrame) -> dict:
    scored = diagnostics.by_kind_of_scan(table, probabilities, facts)
    if not scored:
        raise IchError("the slice table has none of these slices: it belongs to other images")
    alt = (
        "weighted log loss with its interval, by slices of the scan, position in the scan and format; as in the tables"
    )
    return {
        "figure": svg_picture(figures.group_scores(scored), alt),
        "tables": [_groups(groups, title) for title, groups in scored.items()],
    }


def _gains(path: Path) -> dict:
    """Gains in score.json: of TTA over one pass, of a second stage over the first, of a blend over its members."""
    score = score_file(path)
    lines, members = [], None
    if score.get("tta") not in (None, ["none"]) and "plain_weighted_log_loss" in score:
        gain = score["plain_weighted_log_loss"] - score["weighted_log_loss"]
        passes = ", ".join(score["tta"])
        lines.append(
            f"One pass over the slices as they are scores {score['plain_weighted_log_loss']:.4f}: the TTA passes"
            f" ({passes}) gain {gain:+.4f}."
        )
    if "of_first_stage" in score:
        gain = score["of_first_stage"] - score["weighted_log_loss"]
        lines.append(f"The first stage scores {score['of_first_stage']:.4f}: the second gains {gain:+.4f}.")
        lines += [
            f"Its kind {kind} alone scores {score['of_kinds'][kind]:.4f}; its weight is {weight:.2f}."
            for kind, weight in score.get("weights", {}).get("test", {}).items()
        ]
    if {"runs", "best_run", "gain", "gain_interval", "weights"} <= score.keys():
        low, high = score["gain_interval"]
        lines.append(
            f"Gain over the best member, {score['best_run']}: {score['gain']:+.4f} (95 % interval {low:+.4f} to"
            f" {high:+.4f}, over patients)."
        )
        members = Table(
            ["member", "log loss", *(f"weight, {label}" for label in LABELS)],
            [
                [run, f"{loss:.4f}", *(f"{score['weights'][label][run]:.3f}" for label in LABELS)]
                for run, loss in score["runs"].items()
            ],
        )
    for trial in ("calibration", "any_at_least_max"):
        lines += [
            f"{trial} of {label}: gains {gain['gain']:+.5f} ± {gain['standard_error']:.5f} (standard error),"
            f" {'kept' if gain['kept'] else 'left out'}."
            for label, gain in score.get(trial, {}).items()
        ]
    if not lines:
        raise IchError("this run has one stage and one pass: there are no steps to compare")
    return {"lines": lines, "members": members}


def _test(path: Path, table: pd.DataFrame, probabilities: np.ndarray) -> Table:
    if not (path / "predictions_test.parquet").exists():
        raise IchError("there are no test predictions: scripts/predict.py makes them")
    test = read_predictions(path / "predictions_test.parquet")
    rows = [
        [label, f"{table[label].mean():.2%}", f"{probabilities[:, k].mean():.2%}", f"{test[label].mean():.2%}"]
        for k, label in enumerate(LABELS)
    ]
    head = ["label", "prevalence in train", "mean probability out of fold", f"mean of {len(test):,} test slices"]
    return Table(head, rows)


def _folds_audit(table: pd.DataFrame) -> dict:
    audit = folds.audit(table)
    rows = [
        [str(row.Index), f"{row.patients:,}", f"{row.slices:,}", *(f"{getattr(row, label):.3%}" for label in LABELS)]
        for row in audit.table.itertuples()
    ]
    rows.append(["deviation", "", "", *(or_na(audit.deviation[label], ".2%") for label in LABELS)])
    chart = figures.label_balance(audit.table)
    return {
        "table": Table(["fold", "patients", "slices", *LABELS], rows),
        "figure": svg_picture(chart, "the prevalence of each label in each fold, as in the table"),
        "leaking": audit.leaking,
    }


def _quarantined(slices: pd.DataFrame) -> Table:
    failed = slices[slices["status"] != "ok"]
    rows = [[row.SOPInstanceUID, row.split, row.status, row.reason] for row in failed.head(_QUARANTINED).itertuples()]
    return Table(["slice", "split", "status", "reason"], rows)


def _environment(facts: Mapping) -> Table:
    rows = []
    for key, value in facts.items():
        for name, fact in value.items() if isinstance(value, dict) else [(None, value)]:
            text = ", ".join(map(str, fact)) if isinstance(fact, list) else str(fact)
            rows.append([key if name is None else f"{key}: {name}", text])
    return Table(["name", "value"], rows)


def _commands(path: Path, folds_path: Path | None) -> list[str]:
    """Return the recorded commands that made the directory, and the one that makes this page."""
    recorded = [entry["command"] for entry in commands.read(path)]
    if not recorded:
        raise IchError(f"{path} has no {commands.FILE} with the commands; its config and environment are below")
    arguments = [str(path), *(["--folds", str(folds_path)] if folds_path else [])]
    return [*recorded, commands.as_shell_line("report", arguments)]


def _span(low: float, high: float) -> str:
    return "n/a" if np.isnan(low) else f"{low:.4f} to {high:.4f}"


def _learning(path: Path, ks: list[int]) -> Picture:
    histories = {}
    for k in ks:
        file = path / f"fold{k}" / "history.csv"
        if not file.exists():
            continue
        try:
            history = pd.read_csv(file)
            if {"seed", "loss"} <= set(history):
                raise IchError(
                    "a second stage's networks train without validation; their training loss is in"
                    f" {path}/fold<k>/history.csv"
                )
            if history.empty:
                raise ValueError("it has no epoch")
            histories[k] = history[_CURVES].astype("float64")
        except (OSError, ValueError, KeyError) as error:
            raise IchError(
                f"{file} is not the history of a training ({one_line(error)}); restore it, or do without"
            ) from error
    if not histories:
        raise IchError("no fold has a training history here")
    last = "; ".join(f"fold {k} ends at {history['val_loss'].iloc[-1]:.4f}" for k, history in histories.items())
    return svg_picture(learning_curves(histories), f"loss and AUC over the epochs; held-out loss: {last}")
