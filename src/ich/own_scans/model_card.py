"""The model card of an exported model: what it is, what it was trained on, how good it is out of fold, its limits."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.images import slice_table
from ich.own_scans import scores
from ich.own_scans.model_spec import BlendPart, ModelSpec, RunPart, SecondStagePart
from ich.own_scans.scores import Score
from ich.report import diagnostics
from ich.report.scan_page import NOTICE
from ich.results import compare
from ich.results.result_directory import read_mapping, shortcomings
from ich.training import inference

RESAMPLES = 200
"""Of patients, for the intervals of rankings: each sorts all slices."""

Thresholds = dict[str, dict[str, dict[str, float] | None]]


class _OutOfFold(NamedTuple):
    table: pd.DataFrame
    probabilities: np.ndarray
    images: Path | None


def describe(result: Path, spec: ModelSpec) -> tuple[str, Thresholds]:
    """Write the model card of a result, and find each label's thresholds.

    Args:
        result: its directory.
        spec: of the result.

    Returns:
        The card as Markdown; label -> `ich.own_scans.scores.operating_points`.

    Raises:
        IchError: the out-of-fold predictions or the folds are missing or of another data set.
    """
    results = compare.read_results([result])
    images = results.data.get("images")
    out_of_fold = _OutOfFold(
        results.table, results.oof[str(result)].astype(np.float64), None if images is None else Path(images)
    )
    truth = out_of_fold.table[list(LABELS)].to_numpy()
    thresholds = {
        label: scores.operating_points(truth[:, k], out_of_fold.probabilities[:, k]) for k, label in enumerate(LABELS)
    }
    blocks = [
        f"# {spec.result}\n\n{NOTICE}",
        _USE,
        _trained(spec, out_of_fold.table),
        _scored(spec, out_of_fold),
        _by_kind(out_of_fold),
        _thresholds(thresholds),
        _LIMITS,
        _LICENSE,
    ]
    return "\n\n".join(blocks) + "\n", thresholds


_USE = """Probabilities of five kinds of intracranial hemorrhage, and of any, for each slice of a head CT. With the
software `ich`, from the folder above this one:

    python scripts/predict_scans.py MODEL SCANS --out OUT

`ich-model.json` says how the files are put together and has the SHA-256 of each, which is checked at loading."""

_LIMITS = f"""## Limits

- Figures are out of fold: each slice by a model that has not seen its patient. The exported model averages all folds'
  models, so that its thresholds may lie a little off.
- The training's scans are of adults with acute findings, mostly of a few hospitals of North and South America. At other
  hospitals published models lose 2 to 14 points of AUC, and calibration breaks before ranking does: validate on labeled
  scans of the place where it is to be used (scripts/validate_scans.py).
- Children, scans after surgery, contrast series and other parts of the body are not in the training.
- A low probability does not exclude a bleed. {NOTICE}"""

_LICENSE = """## License of the data

Trained on the images of the RSNA Intracranial Hemorrhage Detection challenge (2019), which the competition's rules give
for non-commercial research; nobody may try to identify a person in them. Neither they nor labels or predictions are in
these files. Cite Flanders et al., Construction of a Machine Learning Dataset through Collaboration: The RSNA 2019 Brain
CT Hemorrhage Challenge, Radiology: Artificial Intelligence 2020;2(3):e190211, doi 10.1148/ryai.2020190211."""


def _trained(spec: ModelSpec, table: pd.DataFrame) -> str:
    counts = f"{len(table):,} slices of {table['PatientID'].nunique():,} patients, in {table['fold'].nunique()} folds"
    written = [inference.metadata_of(path) for path in spec.files().values() if path.suffix == ".keras"]
    dates = sorted({row["date_saved"].partition("@")[0] for row in written if "date_saved" in row})
    versions = dict(sorted(spec.packages.items()))
    facts = [
        ["trained on", f"the RSNA challenge's training set, or the archive in its place: {counts}"],
        *([f"beside it, {name}", _joined(part)] for name, part in spec.parts.items() if _joined(part)),
        ["models saved", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "n/a"],
        ["code", spec.commit or "n/a"],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        ["slices", f"{spec.thickness:g} mm thick; thinner ones are averaged to slabs of that"],
        *([f"part {name}", _part(part)] for name, part in spec.parts.items()),
    ]
    return "## What it is\n\n" + _table(["", ""], facts)


def _joined(part: RunPart | SecondStagePart | BlendPart) -> str:
    """Return what joined the training of a run beside the competition's labeled slices; empty if nothing did."""
    if not isinstance(part, RunPart):
        return ""
    environment = read_mapping(part.folder / "environment.json")
    external, pseudo = environment.get("external"), environment.get("pseudo")
    said = [f"{external['slices']:,} slices of other scans, with labels and terms of their own"] if external else []
    if pseudo:
        said.append(f"test slices, at most {pseudo['test_slices']:,} a fold, with another run's predictions as labels")
    return "; ".join(said)


def _part(part: RunPart | SecondStagePart | BlendPart) -> str:
    if isinstance(part, RunPart):
        of = part.preprocess
        windows = ", ".join(str(window) for window in of.windows)
        side = "the slice's own size" if of.size is None else f"{of.size} × {of.size}"
        crop = ", cropped to the head" if of.crop else ""
        reads = "" if part.scan is None else f" of {part.scan} slices at once"
        return (
            f"{part.folds} image models{reads}, one a fold; windows {windows}; {side}{crop};"
            f" neighbors {part.neighbours};"
            f" passes {', '.join(part.tta)}, mean of {part.mean}"
        )
    if isinstance(part, SecondStagePart):
        kinds = ", ".join(f"{kind} {weight:.2f}" for kind, weight in part.weights.items())
        return (
            f"second stage of {', '.join(part.of)}, which reads {part.sequence.features}; {part.folds} folds; {kinds}"
        )
    tried = [f", {name}" for name in ("calibration", "any_at_least_max") if name in part.fitted]
    return f"blend of {', '.join(part.of)} by {part.method}{''.join(tried)}"


def _scored(spec: ModelSpec, out_of_fold: _OutOfFold) -> str:
    score = spec.out_of_fold
    truth, patients = out_of_fold.table[list(LABELS)].to_numpy(), out_of_fold.table["PatientID"].to_numpy(str)
    of_labels = diagnostics.by_label(out_of_fold.table, out_of_fold.probabilities)
    rows = []
    for k, label in enumerate(tqdm(LABELS, desc="score", unit="label", disable=None)):
        log_loss = of_labels.loc[label]
        rows.append(
            [
                label,
                f"{log_loss['positives']:,.0f}",
                _number(Score(log_loss["log_loss"], log_loss["low"], log_loss["high"]), 4),
                *(_number(value, 3) for value in _ranking(truth[:, k], out_of_fold.probabilities[:, k], patients)),
            ]
        )
    columns = ["label", "slices with it", "log loss", "AUC", "average precision"]
    columns += ["sensitivity at 90 % specificity", "specificity at 90 % sensitivity"]
    summary = (
        f"Weighted log loss {score['weighted_log_loss']:.4f}; predicting each label's share everywhere scores"
        f" {score['of_prevalence']:.4f}. In brackets the 95 % interval, by bootstrap over patients."
    )
    warnings = [f"- **Warning:** {sentence}" for sentence in shortcomings(spec.result, score)]
    return "\n\n".join(["## Out-of-fold scores", summary, *warnings, _table(columns, rows)])


def _ranking(y: np.ndarray, p: np.ndarray, patients: np.ndarray) -> list[Score]:
    """Return `ich.own_scans.scores.RANKING` with intervals."""
    (first, *blocks) = [scores.ranking(y, p, weights) for weights in scores.resampled(patients, RESAMPLES)]
    drawn = np.concatenate(blocks) if blocks else np.empty((0, len(scores.RANKING)))
    return [scores.with_interval(first[0, k], drawn[:, k], y) for k in range(len(scores.RANKING))]


def _by_kind(out_of_fold: _OutOfFold) -> str:
    try:
        if out_of_fold.images is None:
            raise IchError("the result does not say where its images are")
        slices = slice_table.read_table(out_of_fold.images / "slices.parquet")
    except IchError:  # its message has paths of this machine
        return "## By kind of scan\n\nNot known: the slice table of the training was not there at the export."
    facts = diagnostics.scan_facts(slices, out_of_fold.table.index)
    rows = [
        [
            title,
            str(group),
            f"{row['slices']:,.0f}",
            f"{row['patients']:,.0f}",
            _number(Score(row["weighted_log_loss"], row["low"], row["high"]), 4),
            f"{row['of_prevalence']:.4f}",
        ]
        for title, groups in diagnostics.by_kind_of_scan(out_of_fold.table, out_of_fold.probabilities, facts).items()
        for group, row in groups.iterrows()
    ]
    columns = ["kind", "group", "slices", "patients", "weighted log loss", "of prevalence"]
    return "## By kind of scan\n\n" + _table(columns, rows)


def _thresholds(thresholds: Thresholds) -> str:
    rows = []
    for label, of_label in thresholds.items():
        for aim, point in of_label.items():
            numbers = ["n/a"] * 3
            if point is not None:
                numbers = [f"{point['threshold']:.6g}", *(f"{point[name]:.3f}" for name in of_label)]
            rows.append([label, f"{scores.AT:.0%} {aim}", *numbers])
    columns = ["label", "for", "probability of at least", "sensitivity", "specificity"]
    return "## Thresholds\n\nOf a slice, out of fold; also in `ich-model.json`.\n\n" + _table(columns, rows)


def _number(score: Score, digits: int) -> str:
    if np.isnan(score.value):
        return "n/a"
    interval = "" if np.isnan(score.low) else f" ({score.low:.{digits}f} to {score.high:.{digits}f})"
    return f"{score.value:.{digits}f}{interval}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])
