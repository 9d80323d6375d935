"""Hard phantoms: findings that look like bleeds get no label, bleeds that hardly show get theirs."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import plan_series

from ich.competition.labels import LABELS
from ich.synthetic import artifacts, mimics
from ich.synthetic.archive import _labels_of, _paint, render_series
from ich.synthetic.artifacts import Motion
from ich.synthetic.bleeds import VISIBLE_AREA, VISIBLE_CONTRAST, pour
from ich.synthetic.head import Head
from ich.synthetic.plan import Hard, draw_plan
from ich.synthetic.tissue import render

MAKERS = {
    "falx": mimics.falx,
    "plexus": mimics.plexus,
    "nucleus": mimics.nucleus,
    "basilar": mimics.basilar,
    "dura": mimics.dura,
    "craniotomy": mimics.craniotomy,
}


def hard_series(kinds=(), findings=(), thickness=5.0, beam_hardening=0.0, motion=None, slices=24, size=96, seed=3):
    series = plan_series(seed=seed, kinds=kinds, slices=slices, size=size)
    return replace(series, hard=Hard(thickness, tuple(findings), beam_hardening, motion or {}))


def head_of(series):
    return Head.draw(np.random.default_rng(series.anatomy))


def test_hard_patients_are_the_same_ones():
    easy, hard = (draw_plan(patients=6, test_patients=2, seed=4, hard=hard) for hard in (False, True))
    assert all(series.hard is None for series in easy)
    for plain, difficult in zip(easy, hard, strict=True):
        assert plain == replace(difficult, hard=None, bleeds=plain.bleeds, noise_level=plain.noise_level)
        for bleed, faint in zip(plain.bleeds, difficult.bleeds, strict=True):
            assert bleed == replace(faint, hu=bleed.hu, isodense=False)
            assert 37 <= faint.hu <= bleed.hu or faint.isodense
        spacing = np.diff([s.table for s in difficult.slices]).mean()
        assert difficult.hard.thickness == pytest.approx(spacing, rel=0.2)  # a repeated slice has no distance
        assert all(0 <= k < len(difficult.slices) for k in difficult.hard.motion)


def test_studies_of_a_patient_have_the_same_findings_and_all_kinds_of_them_occur():
    of_patient, forms, isodense = {}, set(), 0
    for series in draw_plan(patients=120, test_patients=0, hard=True):
        of_patient.setdefault(series.patient_id, set()).add(series.hard.mimics)
        forms |= {mimic.form for mimic in series.hard.mimics}
        isodense += any(bleed.isodense for bleed in series.bleeds)
    assert all(len(findings) == 1 for findings in of_patient.values())
    assert forms == {*mimics.MIMICS, "flap", "no_flap"}
    assert isodense


@pytest.mark.parametrize("name", MAKERS)
def test_a_finding_is_as_bright_as_blood_and_gets_no_label(name):
    plain = hard_series()
    head, rng = head_of(plain), np.random.default_rng(0)
    finding = MAKERS[name](head, rng)
    bright = 0
    for s in plain.slices:
        without, _ = _paint(head, plain, s, (96, 96), None)
        with_it = replace(plain, hard=replace(plain.hard, mimics=(finding,)))
        painted, _ = _paint(head, with_it, s, (96, 96), None)
        brighter = (painted - without >= VISIBLE_CONTRAST) & (painted > 40) & (painted < 90)
        bright += brighter.sum() * s.spacing**2 >= VISIBLE_AREA
        assert not _labels_of(head, with_it, s, None).any()
    assert bright >= 2, "it would be labeled if it were blood"


def test_a_falx_is_as_thick_in_every_slice_where_a_bleed_along_it_tapers():
    series = hard_series(slices=30)
    head = head_of(series)
    plate = mimics.Mimic("falx", (1.0, 0.0, 62.0), (5.0, 40.0, 30.0), 65.0)
    thickness = []
    for s in series.slices:
        tissue = render(head, series.plane(s), (96, 96))
        if abs(tissue.z.mean() - 62) < 20:
            share = mimics.MIMICS["falx"](tissue, plate) > 0
            thickness.append(share.sum(axis=1).max())
    assert len(thickness) >= 5
    assert np.ptp(thickness) <= 2


@pytest.mark.parametrize("form", ["flap", "no_flap"])
def test_an_operation_takes_bone_away(form):
    plain = hard_series()
    head = head_of(plain)
    middle = (head.half_width * 0.7, head.half_length * 0.7, 50.0)
    operated = replace(plain, hard=replace(plain.hard, mimics=(mimics.Mimic(form, middle, (4.0, 30.0, 0.0), 55.0),)))
    bone = [
        sum(int((_paint(head, series, s, (96, 96), None)[0] > 300).sum()) for s in series.slices)
        for series in (plain, operated)
    ]
    assert bone[1] < bone[0] * (0.995 if form == "flap" else 0.97)


def test_an_isodense_bleed_is_labeled_where_it_lies_and_brightens_nothing():
    series = hard_series(("subdural",), seed=6)  # a young head: brain lies against the bone
    dense = next(b for b in series.bleeds if b.kind == "subdural")
    faint = replace(series, bleeds=(replace(dense, hu=40.0, isodense=True),))
    without = replace(series, bleeds=())
    head, column = head_of(series), LABELS.index("subdural")
    labels = {
        name: np.array([_labels_of(head, plan, s, series.shift)[column] for s in series.slices])
        for name, plan in {"dense": series, "faint": faint}.items()
    }
    assert labels["faint"].sum() >= 2
    assert np.abs(labels["faint"] - labels["dense"]).sum() <= 2
    for k in np.flatnonzero(labels["faint"]):
        blood, plain = (_paint(head, plan, series.slices[k], (96, 96), series.shift)[0] for plan in (faint, without))
        assert np.percentile(blood - plain, 99) < 40  # it fills sulci, which are dark
        assert (blood - plain).min() < -3  # and takes the place of gray matter


def test_a_slice_is_the_mean_over_its_thickness():
    series = hard_series(("intraparenchymal",), [mimics.Mimic("falx", (1.0, 0.0, 62.0), (5.0, 40.0, 30.0), 65.0)])
    head, s = head_of(series), series.slices[12]
    hu, brighter = _paint(head, series, s, (64, 64), series.shift)
    distance = series.hard.thickness / 3
    normal = np.cross(series.orientation[:3], series.orientation[3:])
    expected, gains = 0, 0
    for k in (-1, 0, 1):
        origin = tuple(np.array(series.origin) - k * distance * normal)  # as if the head lay lower, or higher
        tissue = render(head, replace(series, origin=origin).plane(s), (64, 64), series.shift)
        mimics.paint(tissue, series.hard.mimics)
        part, gain = pour(tissue, series.bleeds)
        expected, gains = expected + part / 3, gains + gain.get("intraparenchymal", 0) / 3
    assert hu == pytest.approx(expected, abs=0.05)
    assert brighter["intraparenchymal"] == pytest.approx(gains, abs=0.05)
    assert hu != pytest.approx(_paint(head, replace(series, hard=None), s, (64, 64), series.shift)[0], abs=5)


def test_beam_hardening_stays_at_the_base_and_differs_from_slice_to_slice():
    plain = hard_series()
    hardened = replace(plain, hard=replace(plain.hard, beam_hardening=15.0))
    differences = [
        np.abs(after.hu.astype(int) - before.hu)
        for before, after in zip(render_series(plain), render_series(hardened), strict=True)
    ]
    # Near the base the noise differs too: the streaks are drawn first, by the same generator.
    heights = [plain.plane(s).points(2, 2)[2].mean() for s in plain.slices]
    assert all(d.max() == 0 for d, z in zip(differences, heights, strict=True) if z > 50)
    near = [k for k, z in enumerate(heights) if abs(z) < 8]
    base = [np.zeros((96, 96), np.float32) for _ in near[:2]]
    for k, hu in zip(near, base, strict=False):
        artifacts.harden(hu, plain.plane(plain.slices[k]), 15.0, np.random.default_rng([plain.noise, k]))
        assert 5 < np.abs(hu).max() < 60
    assert np.abs(base[0] - base[1]).max() > 5
    bone = np.full((96, 96), 900, np.float32)
    artifacts.harden(bone, plain.plane(plain.slices[near[0]]), 15.0, np.random.default_rng(0))
    assert (bone == 900).all()


def test_motion_doubles_edges_by_its_distance():
    hu = np.zeros((40, 40), np.float32)
    hu[20, 10] = 100
    moved = artifacts.move(hu, Motion(right=6.0, down=-4.0, rotation=0.0), spacing=2.0)
    assert moved[20, 10] == pytest.approx(60)
    assert moved[18, 13] == pytest.approx(40, abs=0.5)
    assert moved.sum() == pytest.approx(100, abs=0.5)
    series = hard_series(motion={5: Motion(4.0, 3.0, 2.0)}, slices=8)
    still = replace(series, hard=replace(series.hard, motion={}))
    differing = [
        k
        for k, (rendered, reference) in enumerate(zip(render_series(series), render_series(still), strict=True))
        if (rendered.hu != reference.hu).any()
    ]
    assert differing == [5]


def test_labels_are_those_of_the_same_bleeds_in_an_easy_scan_to_a_slice_at_their_ends():
    # So the prevalences are those of an easy archive, which are tested over many patients.
    series = hard_series(LABELS[:-1], slices=20)
    head = head_of(series)
    faint = replace(series, bleeds=tuple(bleed.faint(np.random.default_rng(1)) for bleed in series.bleeds))
    easy, hard = (
        np.stack([_labels_of(head, plan, s, series.shift) for s in plan.slices])
        for plan in (replace(series, hard=None), faint)
    )
    assert easy.sum(axis=0).min() >= 2
    assert np.abs(easy.sum(axis=0, dtype=int) - hard.sum(axis=0, dtype=int)).max() <= 2
