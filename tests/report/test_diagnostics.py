import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich.competition import metrics
from ich.competition.labels import INDEX_NAME, LABELS
from ich.images import slice_table
from ich.report import diagnostics
from ich.results import bootstrap


def some_table(n=60, seed=0):
    """Three slices a patient, two folds, and probabilities that know a little."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 6)) < 0.3).astype(np.int8)
    labels[:, 5] = labels[:, :5].max(axis=1)
    ids = pd.Index([f"ID_{k:04x}" for k in range(n)], name=INDEX_NAME)
    table = pd.DataFrame(labels, columns=list(LABELS), index=ids)
    table = table.assign(PatientID=[f"p{k // 3}" for k in range(n)], fold=np.arange(n) // 3 % 2)
    return table, np.clip(0.3 * labels + 0.6 * rng.random((n, 6)) + 0.01, 0, 1)


def test_by_label_agrees_with_slow_counts():
    table, p = some_table()
    by_label = diagnostics.by_label(table, p)
    for k, label in enumerate(LABELS):
        y, row = table[label].to_numpy(), by_label.loc[label]
        yes, no = p[y == 1, k], p[y == 0, k]
        pairs = (yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()
        assert row["auc"] == pytest.approx(pairs)
        cuts = [cut for cut in [*p[:, k], 2.0] if (no < cut).mean() >= 0.9]  # a slice is called if it has the cut
        assert row["sensitivity"] == pytest.approx(max((yes >= cut).mean() for cut in cuts))
        order = np.argsort(-p[:, k])
        precision = np.cumsum(y[order]) / np.arange(1, len(y) + 1)
        assert row["average_precision"] == pytest.approx(precision[y[order] == 1].mean())
        assert row["positives"] == y.sum()
        assert row["of_prevalence"] == pytest.approx(
            -(y.mean() * np.log(y.mean()) + (1 - y.mean()) * np.log1p(-y.mean()))
        )
    np.testing.assert_allclose(by_label["log_loss"], metrics.log_loss_by_label(table[list(LABELS)], p))
    interval = bootstrap.estimate(metrics.log_losses(table[list(LABELS)], p), table["PatientID"].to_numpy())
    np.testing.assert_allclose(by_label[["low", "high"]], np.stack([interval.low, interval.high], axis=1))


def test_a_label_that_no_slice_has_has_no_ranking():
    table, p = some_table()
    epidural = diagnostics.by_label(table.assign(epidural=np.int8(0)), p).loc["epidural"]
    assert epidural[["auc", "average_precision", "sensitivity"]].isna().all()
    assert epidural["of_prevalence"] == pytest.approx(0, abs=1e-12)


def test_one_patient_has_no_interval():
    table, p = some_table(n=3)
    assert diagnostics.by_label(table, p)[["low", "high"]].isna().all(axis=None)
    assert diagnostics.by_group(table, p, table["fold"])[["low", "high"]].isna().all(axis=None)


def test_groups_add_up_to_the_whole():
    table, p = some_table()
    groups = diagnostics.by_group(table, p, table["fold"])
    assert groups["slices"].sum() == len(table)
    whole = metrics.weighted_log_loss(table[list(LABELS)], p)
    assert (groups["weighted_log_loss"] * groups["slices"]).sum() / len(table) == pytest.approx(whole)
    part = (table["fold"] == 1).to_numpy()
    y = table.loc[part, list(LABELS)]
    assert groups.loc[1, "of_prevalence"] == metrics.prevalence_log_loss(y)
    assert groups.loc[1, "patients"] == table.loc[part, "PatientID"].nunique()
    np.testing.assert_allclose(
        groups.loc[1, [f"{label} log loss" for label in LABELS]].astype(float), metrics.log_loss_by_label(y, p[part])
    )


def test_groups_keep_the_order_of_categories_and_leave_out_what_has_none():
    table, p = some_table()
    names = pd.Categorical(["low", "high", None] * 20, categories=["low", "high", "never"], ordered=True)
    groups = diagnostics.by_group(table, p, pd.Series(names))
    assert groups.index.tolist() == ["low", "high"]
    assert groups["slices"].tolist() == [20, 20]


def some_slices():
    """A scan of three, one slice of which cannot be read, a scan of one, and a slice without a scan."""
    rows = [
        {"SOPInstanceUID": f"ID_{name}", "SeriesInstanceUID": series, "split": "train", "status": status}
        | {"BitsStored": bits, "ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        for name, series, status, bits, z in (
            ("c", "ID_s", "ok", 16, 10.0),
            ("a", "ID_s", "ok", 16, 0.0),
            ("b", "ID_s", "truncated", None, 5.0),
            ("lone", "ID_t", "ok", 12, 0.0),
            ("stray", None, "truncated", None, 0.0),
        )
    ]
    return slice_table.scan_order(slice_table.to_frame(rows))


def test_facts_of_scans():
    ids = pd.Index(["ID_a", "ID_c", "ID_lone", "ID_stray", "ID_unknown"])
    facts = diagnostics.scan_facts(some_slices(), ids)
    assert facts["scan"].tolist() == ["ID_s", "ID_s", "ID_t", "ID_stray", "ID_unknown"]
    np.testing.assert_array_equal(facts["slices"], [3, 3, 1, np.nan, np.nan])
    np.testing.assert_array_equal(facts["order"], [0, 2, 0, np.nan, np.nan])
    np.testing.assert_array_equal(facts["position"], [0, 1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(facts["BitsStored"], [16, 16, 12, np.nan, np.nan])


@given(st.lists(st.one_of(st.integers(0, 60).map(float), st.just(np.nan)), min_size=1, max_size=60))
def test_bands_hold_what_they_say(values):
    values = pd.Series(values, dtype=float)
    named = diagnostics.bands(values)
    assert (named.isna() == values.isna()).all()
    assert named.nunique() <= 4
    ends = -1.0
    for name in named.cat.categories if values.notna().any() else ():
        low, _, high = name.partition(" to ")
        inside = values[named == name]
        assert (inside.min(), inside.max()) == (float(low), float(high or low))
        assert inside.min() > ends  # ascending, and none in two
        ends = inside.max()


def test_fifths():
    fifths = diagnostics.fifths(pd.Series([0, 0.19, 0.2, 0.5, 0.79, 0.8, 1, np.nan]))
    names = ["lowest fifth", "lowest fifth", "second", "middle", "fourth", "top fifth", "top fifth"]
    assert fifths[:7].tolist() == names
    assert fifths.isna().tolist() == [False] * 7 + [True]


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("highest", [False, True])
def test_extremes_are_the_extremes_of_scans_not_seen_yet(positive, highest):
    table, p = some_table()
    truth, scans = table[list(LABELS)].to_numpy(), table["PatientID"].to_numpy()
    extremes = diagnostics.extremes(truth, p, scans, positive=positive, highest=highest)
    assert [k for _, k in extremes] == list(range(6))
    seen = set()
    for row, k in extremes:
        fit = [i for i in range(len(p)) if truth[i, k] == positive and scans[i] not in seen]
        assert p[row, k] == (max if highest else min)(p[i, k] for i in fit)
        assert row in fit
        seen.add(scans[row])


def test_a_label_without_such_slices_has_no_extreme():
    table, p = some_table()
    truth = table[list(LABELS)].to_numpy() * np.array([0, 1, 1, 1, 1, 1])
    extremes = diagnostics.extremes(truth, p, np.arange(len(p)), positive=True, highest=False)
    assert [k for _, k in extremes] == [1, 2, 3, 4, 5]
