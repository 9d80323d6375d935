"""What the charts show, read off their lines; whether they look well, a person sees."""

from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import auc, roc_curve

from ich.competition.labels import LABELS
from ich.report import figures


def some(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, 6)) < 0.2).astype(np.int8)
    return truth, np.clip(truth * 0.3 + rng.random((n, 6)) * 0.7, 0, 1)


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_ranking_curves_are_the_curves_with_fewer_points():
    truth, p = some()
    roc, precision = figures.ranking_curves(truth, p).axes
    for k, label in enumerate(LABELS):
        full = roc_curve(truth[:, k], p[:, k])
        x, y = lines(roc)[label].T
        assert len(x) <= 401
        assert auc(x, y) == pytest.approx(auc(full[0], full[1]), abs=2e-3)
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert len(lines(precision)[label]) <= 401


def test_a_label_that_all_slices_have_is_left_out():
    truth, p = some(100)
    truth[:, 2] = 1
    roc, _ = figures.ranking_curves(truth, p).axes
    assert set(lines(roc)) >= set(LABELS) - {"intraventricular"}
    assert "intraventricular" not in lines(roc)


@pytest.mark.filterwarnings("error")
def test_without_a_label_of_both_kinds_there_is_no_legend():
    truth, p = some(100)
    for has in (0, 1):
        roc, _ = figures.ranking_curves(np.full_like(truth, has), p).axes
        assert roc.get_legend() is None


def test_calibration_is_mean_against_share_and_its_counts():
    truth, p = some()
    p[0] = 1.0  # belongs to the last tenth
    axes = {axes.get_title(): axes for axes in figures.calibration_curves(truth, p).axes}
    for k, label in enumerate(LABELS):
        points = axes[label].lines[1].get_xydata()
        tenth = np.minimum((p[:, k] * 10).astype(int), 9)
        expected = [(p[tenth == t, k].mean(), truth[tenth == t, k].mean()) for t in np.unique(tenth)]
        np.testing.assert_allclose(points, expected)
    heights = [patch.get_height() for patch in figures.calibration_curves(truth, p).axes[3].patches]
    np.testing.assert_array_equal(heights, np.histogram(p[:, 0], np.linspace(0, 1, 11))[0])


def test_along_scan_shades_what_has_it():
    order = np.array([0.0, 1, 3])
    (axes,) = figures.along_scan(order, np.array([0.1, 0.9, 0.2]), np.array([0, 1, 1]), 3, "any").axes
    assert [patch.get_x() + 0.5 for patch in axes.patches] == [1, 3]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0, 0.1], [1, 0.9], [3, 0.2]])


def test_group_scores_and_label_balance_show_their_tables():
    groups = pd.DataFrame(
        {"weighted_log_loss": [0.2, 0.1], "low": [0.1, np.nan], "high": [0.3, np.nan], "of_prevalence": [0.4, 0.5]},
        index=["a", "b"],
    )
    first, second = figures.group_scores({"one": groups, "other": groups}).axes
    assert [label.get_text() for label in second.get_yticklabels()] == ["a", "b"]
    np.testing.assert_array_equal(first.lines[0].get_xdata(), [0.2, 0.1])
    prevalence = pd.DataFrame(np.arange(12).reshape(2, 6) / 100, columns=list(LABELS))
    for axes, label in zip(figures.label_balance(prevalence).axes, LABELS, strict=True):
        assert [patch.get_height() for patch in axes.patches] == prevalence[label].tolist()


def test_svg_is_the_same_each_time_and_loads_nothing():
    p = np.array([0.1, 0.2])
    first, second = (figures.svg(figures.along_scan(np.arange(2), p, p > 0.1, 0, "any")) for _ in range(2))
    assert first == second
    for element in ElementTree.fromstring(first).iter():
        for name, value in element.attrib.items():
            assert not name.endswith("href") or value.startswith("#"), value
