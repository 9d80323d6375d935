"""A validation as a page, and as a short table for the screen."""

from collections.abc import Mapping
from math import isnan
from pathlib import Path

import numpy as np

from ich.competition.labels import LABELS
from ich.files import replacing
from ich.own_scans.scores import AT, Score
from ich.own_scans.validate import Level, Validation
from ich.report import figures
from ich.report.html import render
from ich.report.page import Absent, Table, svg_picture
from ich.report.scan_page import NOTICE

MARKER = "<title>Validation of "
"""In the first bytes of every page that is written here."""

_RANKING = {
    "auc": "AUC",
    "average_precision": "average precision",
    "sensitivity": f"sensitivity at {AT:.0%} specificity",
    "specificity": f"specificity at {AT:.0%} sensitivity",
}
_CALIBRATION = {"log_loss": "log loss", "intercept": "calibration intercept", "slope": "calibration slope"}
_RECALIBRATED = {f"recalibrated_{key}": f"{name}, recalibrated" for key, name in _CALIBRATION.items()}
_NAMES = _RANKING | _CALIBRATION | _RECALIBRATED


def write(validation: Validation, path: Path) -> None:
    """Write the page.

    Raises:
        IchError: the system refuses to write.
    """
    context = {
        "name": validation.facts["predictions"],
        "notice": NOTICE,
        "facts": Table(["", ""], [[name, str(value)] for name, value in _facts(validation).items()]),
        "levels": [_level(level) for level in validation.levels],
        "published": _published(validation),
        "out_of_fold": _out_of_fold(validation.out_of_fold),
        "joined": _joined(validation),
        "notes": validation.notes,
    }
    page = render("validation.html", context)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def as_text(validation: Validation) -> str:
    """The most important numbers of each level, aligned for the screen."""
    blocks = []
    for level in validation.levels:
        rows = [["label", "with", "of", "AUC", _RANKING["sensitivity"], "log loss", "recalibrated"]]
        for k, label in enumerate(LABELS):
            y, scores = level.truth[:, k], level.scores.get(label, {})
            names = ("auc", "sensitivity", "log_loss", "recalibrated_log_loss")
            rows.append([label, *_counted(y), *(_with_interval(scores.get(name)) for name in names)])
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        blocks.append(f"{len(level.truth):,} {level.unit} of {level.patients:,} patients\n" + "\n".join(lines))
    return "\n\n".join(blocks)


def counts(validation: Validation) -> list[str]:
    """What has no label, or no prediction, as sentences; none where all have both."""
    sentences = []
    unit = "slice(s)" if validation.levels[0].unit == "slices" else "scan(s)"
    for (count, first), what in (
        (validation.unlabeled, f"{unit} without a label"),
        (validation.unpredicted, "label(s) without a prediction"),
    ):
        if count:
            more = ", …" if count > len(first) else ""
            sentences.append(f"{count:,} {what} were left out: {', '.join(first)}{more}")
    return sentences


def _facts(validation: Validation) -> dict[str, str]:
    facts = validation.facts
    model = facts["model"]
    return {
        "predictions": facts["predictions"],
        "model": ", ".join(str(model[key]) for key in ("name", "digest") if model.get(key)) or "not named",
        "labels": f"{facts['labels']} (format {facts['format']}, joined by {facts['joined_by']})",
    }


def _level(level: Level) -> dict:
    ranked, calibrated, missing = [], [], []
    for k, label in enumerate(LABELS):
        y, scores = level.truth[:, k], level.scores.get(label, {})
        ranked.append([label, *_counted(y), *(_with_interval(scores.get(name)) for name in _RANKING)])
        of_label = [label]
        for name in _CALIBRATION:
            of_label += [_with_interval(scores.get(name)), _with_interval(scores.get(f"recalibrated_{name}"))]
        calibrated.append(of_label)
        if label in level.reasons:
            missing.append([label, level.reasons[label]])
        of_reason: dict[str, list[str]] = {}
        for name, score in scores.items():
            if score.reason:
                of_reason.setdefault(score.reason, []).append(_NAMES[name])
        missing += [[label, f"{', '.join(metrics)}: {reason}"] for reason, metrics in of_reason.items()]
    head = [text for name in _CALIBRATION.values() for text in (name, f"{name}, recalibrated")]
    return {
        "unit": level.unit,
        "highest": level.unit != "slices",
        "count": f"{len(level.truth):,}",
        "patients": f"{level.patients:,}",
        "ranking": Table(["label", "with it", "of", *_RANKING.values()], ranked),
        "calibration": Table(["label", *head], calibrated),
        "missing": Table(["label", "reason"], missing),
        "curves": svg_picture(
            figures.ranking_curves(level.truth, level.probabilities),
            "ROC curves and curves of precision against recall, one for each label; the table has their areas",
        ),
        "calibration_curves": svg_picture(
            figures.calibration_curves(level.truth, level.probabilities, level.recalibrated, level.unit),
            f"for each label: the share of {level.unit} that have it against the mean probability, in tenths of the"
            " probability, as predicted and (dashed) recalibrated, and how many these are",
        ),
    }


def _published(validation: Validation) -> Table:
    head = ["label", *(f"here, {level.unit}" for level in validation.levels)]
    head += [f"{study['who']}; {study['on']} ({study['source']})" for study in validation.published]
    rows = []
    for label in LABELS:
        here = [_with_interval(level.scores.get(label, {}).get("auc")) for level in validation.levels]
        rows.append([label, *here, *(_number(study["auc"].get(label)) for study in validation.published)])
    return Table(head, rows)


def _out_of_fold(score: Mapping | None) -> Table | Absent:
    if not score:
        return Absent("predictions.json has no out-of-fold score of the model")
    keys = {"auc": ("AUC of slices", 3), "by_label": ("log loss of slices", 4), "prevalence": ("prevalence", 4)}
    rows = []
    for label in LABELS:
        rows.append([label, *(_number(score.get(key, {}).get(label), digits) for key, (_, digits) in keys.items())])
    rows.append(["weighted mean", "", _number(score.get("weighted_log_loss"), 4), ""])
    return Table(["label", *(name for name, _ in keys.values())], rows)


def _joined(validation: Validation) -> Table:
    rows = []
    for (count, first), what in (
        (validation.unlabeled, "predicted, without a label"),
        (validation.unpredicted, "labels without a prediction"),
    ):
        rows.append([what, f"{count:,}", ", ".join(first) + (", …" if count > len(first) else "")])
    return Table(["what", "count", "the first"], rows)


def _counted(y: np.ndarray) -> list[str]:
    """How many have a label, and of how many it is known."""
    return [f"{(y == 1).sum():,}", f"{(~np.isnan(y)).sum():,}"]


def _with_interval(score: Score | None) -> str:
    if score is None or isnan(score.value):
        return "n/a"
    return f"{score.value:.3f}" + ("" if isnan(score.low) else f" [{score.low:.3f}, {score.high:.3f}]")


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
