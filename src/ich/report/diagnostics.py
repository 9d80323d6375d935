"""Scores by label, fold and kind of scan, and the extreme slices."""

from collections.abc import Hashable

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ich.competition import metrics
from ich.competition.labels import ANY, LABELS, METRIC_WEIGHTS
from ich.results import bootstrap

SPECIFICITY = 0.9
"""Specificity at which sensitivities are computed."""


def by_label(table: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """Score the predictions of each label.

    Args:
        table: from `ich.competition.folds.read_folds`.
        probabilities: of its slices, shape (n, 6).

    Returns:
        One row for each label; columns positives, prevalence, log_loss with its low and high (95 %, bootstrap over
        patients; NaN for fewer than two), of_prevalence (log loss of the prevalence baseline), auc, average_precision,
        and sensitivity, the largest at a specificity of at least `SPECIFICITY`. The last three are NaN where all slices
        have the label or none has.
    """
    truth = table[list(LABELS)].to_numpy()
    losses = metrics.log_losses(truth, probabilities)
    low, high = _interval(losses, table)
    prevalence = truth.mean(axis=0)
    floor = metrics.log_loss_by_label(truth, np.broadcast_to(prevalence, truth.shape))
    ranked = [_ranking(truth[:, k], probabilities[:, k]) for k in range(len(LABELS))]
    scores = {
        "positives": truth.sum(axis=0, dtype=np.int64),
        "prevalence": prevalence,
        "log_loss": losses.mean(axis=0),
        "low": low,
        "high": high,
        "of_prevalence": floor,
    }
    ranked = pd.DataFrame(ranked, columns=["auc", "average_precision", "sensitivity"])
    return pd.DataFrame(scores).join(ranked).set_axis(pd.Index(LABELS, name="label"))


def by_group(table: pd.DataFrame, probabilities: np.ndarray, groups: pd.Series) -> pd.DataFrame:
    """Score each group of slices.

    Args:
        table, probabilities: as for `by_label`.
        groups: the group of each slice, in the table's order; slices without a group (NaN) are left out.

    Returns:
        One row for each group, sorted (categories in their own order); columns slices, patients, any (its prevalence),
        weighted_log_loss with its low and high (as in `by_label`), of_prevalence (the group's own prevalence baseline),
        and the six labels' log losses as `<label> log loss`.
    """
    truth = table[list(LABELS)].to_numpy()
    losses = metrics.log_losses(truth, probabilities)
    weighted = np.average(losses, axis=1, weights=list(METRIC_WEIGHTS.values()))
    rows = {}
    grouped = table.groupby(groups.set_axis(table.index), observed=True)
    for group in grouped.size().index:
        places = grouped.indices[group]
        low, high = _interval(weighted[places], table.iloc[places])
        rows[group] = {
            "slices": len(places),
            "patients": table["PatientID"].iloc[places].nunique(),
            "any": truth[places, ANY].mean(),
            "weighted_log_loss": weighted[places].mean(),
            "low": low,
            "high": high,
            "of_prevalence": metrics.prevalence_log_loss(truth[places]),
        } | {f"{label} log loss": loss for label, loss in zip(LABELS, losses[places].mean(axis=0), strict=True)}
    return pd.DataFrame.from_dict(rows, orient="index")


def scan_facts(slice_table: pd.DataFrame, ids: pd.Index) -> pd.DataFrame:
    """Describe the scans of slices by the slice table.

    Args:
        slice_table: from `ich.images.slice_table.read_table`.
        ids: SOPInstanceUIDs.

    Returns:
        One row for each id, in their order; columns scan (SeriesInstanceUID, or the slice's own id where unknown),
        order, slices (in the scan, read or not; float), position (0 at the scan's lowest z, 1 at its highest; NaN for a
        slice without position, or alone), BitsStored (float). All but scan are NaN for ids that the table lacks.
    """
    scans = slice_table.groupby(["split", "SeriesInstanceUID"])
    facts = pd.DataFrame(
        {
            "scan": slice_table["SeriesInstanceUID"].fillna(slice_table["SOPInstanceUID"]),
            "order": slice_table["order"].astype("float64"),
            "slices": scans["SOPInstanceUID"].transform("size"),
            "last": scans["order"].transform("max").astype("float64"),
            "BitsStored": slice_table["BitsStored"].astype("float64"),
        }
    ).set_axis(slice_table["SOPInstanceUID"])
    facts["position"] = facts["order"] / facts["last"].where(facts["last"] > 0)
    facts = facts.reindex(ids)
    facts["scan"] = facts["scan"].fillna(pd.Series(ids, index=ids))
    return facts[["scan", "order", "slices", "position", "BitsStored"]]


def by_kind_of_scan(table: pd.DataFrame, probabilities: np.ndarray, facts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Score groups of slices by their scan's length, their position in it and their format.

    Args:
        table, probabilities: as for `by_label`.
        facts: of the table's slices, from `scan_facts`.

    Returns:
        title -> `by_group`, of those facts that are known.
    """
    kinds = {
        "slices of the scan": bands(facts["slices"]),
        "position in the scan": fifths(facts["position"]),
        "format": facts["BitsStored"].map("{:.0f} bits".format, na_action="ignore"),
    }
    scored = {title: by_group(table, probabilities, groups) for title, groups in kinds.items()}
    return {title: groups for title, groups in scored.items() if len(groups)}


def bands(values: pd.Series) -> pd.Series:
    """Band values by quartiles, as ordered categories named by their ends, such as `24 to 31`.

    Equal values share a band, so there may be fewer than four; NaN has none.
    """
    known = values.dropna()
    if known.empty:
        return pd.Series(np.nan, index=values.index)
    edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75]))
    band = pd.Series(np.searchsorted(edges, values), index=values.index).where(values.notna())
    ends = values.groupby(band).agg(["min", "max"])
    names = {b: f"{low:g}" if low == high else f"{low:g} to {high:g}" for b, low, high in ends.itertuples()}
    return pd.Series(pd.Categorical(band.map(names), categories=list(names.values()), ordered=True), values.index)


def fifths(position: pd.Series) -> pd.Series:
    """Return the fifth of the scan of each slice, as an ordered category; NaN for a slice without a position."""
    names = ["lowest fifth", "second", "middle", "fourth", "top fifth"]
    fifth = np.minimum(position * 5, 4).to_numpy()
    codes = np.where(np.isnan(fifth), -1, np.nan_to_num(fifth).astype(int))
    return pd.Series(pd.Categorical.from_codes(codes, names, ordered=True), position.index)


def extremes(
    truth: np.ndarray, probabilities: np.ndarray, scans: np.ndarray, *, positive: bool, highest: bool
) -> list[tuple[int, int]]:
    """Choose for each label the positive (or negative) slice with the highest (or lowest) probability.

    Slices beside the worst show the same bleed: each scan is taken once, for the first label that needs it.

    Args:
        truth: 0 or 1, shape (n, 6).
        probabilities: shape (n, 6).
        scans: the scan of each slice, shape (n,).

    Returns:
        (row, label's index) pairs, at most one for each label.
    """
    chosen, seen = [], set[Hashable]()
    for k in range(truth.shape[1]):
        rows = np.flatnonzero(truth[:, k] == positive)
        order = rows[np.argsort(-probabilities[rows, k] if highest else probabilities[rows, k], kind="stable")]
        row = next((row for row in order.tolist() if scans[row] not in seen), None)
        if row is not None:
            seen.add(scans[row])
            chosen.append((row, k))
    return chosen


def _interval(losses: np.ndarray, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    if table["PatientID"].nunique() < 2:
        nothing = np.full(losses.shape[1:], np.nan)[()]  # a plain number for one column
        return nothing, nothing
    estimate = bootstrap.estimate(losses, table["PatientID"].to_numpy())
    return estimate.low, estimate.high


def _ranking(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    if truth.min() == truth.max():
        return np.nan, np.nan, np.nan
    false_alarms, sensitivity, _ = roc_curve(truth, scores)
    # 1 - SPECIFICITY is slightly below 0.1 in floats; a rate of exactly 0.1 counts.
    reached = sensitivity[false_alarms <= 1 - SPECIFICITY + 1e-12].max()
    return roc_auc_score(truth, scores), average_precision_score(truth, scores), reached
