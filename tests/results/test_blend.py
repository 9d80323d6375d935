import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from ich.competition import metrics
from ich.competition.labels import INDEX_NAME, LABELS
from ich.errors import IchError
from ich.results import blend, bootstrap, fitted_blend
from ich.results.blend import Recipe
from ich.results.fitted_blend import METHODS

few = settings(max_examples=10)  # each fits several times
EDGES = [0.0, 1.0, 1e-300, 1e-15, 1 - 1e-15]


def recipe(method="weights", by_label=False, calibration=None, any_at_least_max=False):
    return Recipe(method, by_label, calibration, any_at_least_max)


def fold_table(y, n_folds=3):
    """Two slices a patient; patients take folds in turn."""
    patient = np.arange(len(y)) // 2
    ids = pd.Index([f"ID_{k:04x}" for k in range(len(y))], name=INDEX_NAME)
    table = pd.DataFrame(y, columns=list(LABELS), index=ids, dtype=np.int8)
    return table.assign(PatientID=[f"ID_p{k:03d}" for k in patient], fold=patient % n_folds)


def simulate(n=600, noise=(0.5, 1.0, 1.5), seed=0, n_folds=3):
    """Members that see the truth's logits under noise of their own: (members, table)."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-2, 2, (n, 6))
    truth[:, 5] = truth[:, :5].max(axis=1) + 1
    y = (rng.random(truth.shape) < expit(truth)).astype(np.int8)
    members = np.stack([expit(truth + rng.normal(0, sigma, truth.shape)) for sigma in noise])
    return members.astype(np.float32), fold_table(y, n_folds)


@st.composite
def cases(draw, members=None):
    """Any members of a few slices, with impossible certainties now and then: (members, table)."""
    n = draw(st.integers(6, 16))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    y = rng.integers(0, 2, (n, 6))
    values = rng.random((members or draw(st.integers(1, 4)), n, 6))
    values = np.where(
        rng.random(values.shape) < draw(st.sampled_from([0, 0.1, 1])), rng.choice(EDGES, values.shape), values
    )
    return values.astype(draw(st.sampled_from([np.float32, np.float64]))), fold_table(y)


def losses(table, p):
    return metrics.log_loss_by_label(table[list(LABELS)].to_numpy(), p)


# ------------------------------------------------------------------------------------------- weights


@given(cases(), st.sampled_from(METHODS), st.booleans())
@few
def test_weights_are_on_the_simplex(case, method, by_label):
    weights = blend.fit(*case, recipe(method, by_label and method == "weights" and len(case[0]) > 1)).mixture.weights
    assert weights.shape == (len(case[0]), 6)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-12)


@given(cases(), st.sampled_from([None, *range(6)]))
@few
def test_no_weights_are_better(case, label):
    """The log loss is convex, so its slopes tell: towards no member does it fall from here (Karush, Kuhn, Tucker)."""
    members, table = case
    p = np.clip(members.astype(np.float64), 1e-15, 1 - 1e-15)
    y = table[list(LABELS)].to_numpy()
    label = None if len(members) == 1 else label
    weights = blend.fit(*case, recipe(by_label=label is not None)).mixture.weights
    of_truth = np.where(y == 1, p, 1 - p)
    mixed = np.einsum("ml,mnl->nl", weights, of_truth)
    towards = (of_truth / mixed).mean(axis=1)  # (members, 6); at most 1 at the minimum, of members with weight 1
    towards = towards @ [1 / 7, 1 / 7, 1 / 7, 1 / 7, 1 / 7, 2 / 7] if label is None else towards[:, label]
    assert (towards <= 1 + 1e-5).all()


@given(cases())
@few
def test_in_sample_the_fitted_mixture_is_never_above_the_best_member(case):
    members, table = case
    metric = np.array([1, 1, 1, 1, 1, 2]) / 7
    alone = np.array([losses(table, p) for p in members])
    assert losses(table, blend.fit(*case, recipe())(members)) @ metric <= (alone @ metric).min() + 1e-6
    by_label = losses(table, blend.fit(*case, recipe(by_label=len(members) > 1))(members))
    assert (by_label <= alone.min(axis=0) + 1e-6).all()


def test_the_sharper_member_weighs_more_and_noise_nothing():
    members, table = simulate(4000, noise=(0.5, 1.0, 8.0))
    weights = blend.fit(members, table, recipe()).mixture.weights[:, 0]
    assert weights[0] > weights[1] > weights[2]
    assert weights[2] < 0.05


def test_each_label_can_have_its_own():
    members, table = simulate(2000, noise=(0.3, 3.0))
    members[:, :, 0] = members[::-1, :, 0]  # of this label, the other one knows more
    weights = blend.fit(members, table, recipe(by_label=True)).mixture.weights
    assert weights[1, 0] > 0.7
    assert (weights[0, 1:] > 0.7).all()


# ------------------------------------------------------------------------------------------- mixtures


@given(cases(members=1), st.sampled_from(["weights", "mean"]))
@few
def test_a_blend_of_one_member_is_that_member(case, method):
    np.testing.assert_array_equal(blend.fit(*case, recipe(method))(case[0]), case[0][0])
    np.testing.assert_array_equal(blend.nested(*case, recipe(method)), case[0][0])


@given(cases(members=1))
@few
def test_the_logit_mean_of_one_member_is_that_member_clipped(case):
    clipped = np.clip(case[0][0].astype(np.float64), 1e-15, 1 - 1e-15)
    np.testing.assert_allclose(blend.fit(*case, recipe("logit_mean"))(case[0]), clipped, rtol=1e-9)


@given(cases())
@few
def test_means_are_what_they_are_called(case):
    members, _ = case
    np.testing.assert_allclose(blend.fit(*case, recipe("mean"))(members), members.mean(axis=0, dtype=float), rtol=1e-9)
    p = np.clip(members.astype(np.float64), 1e-15, 1 - 1e-15)
    odds = np.exp(np.log(p / (1 - p)).mean(axis=0))
    np.testing.assert_allclose(blend.fit(*case, recipe("logit_mean"))(members), odds / (1 + odds), rtol=1e-6)


@given(cases(), st.sampled_from(METHODS), st.booleans(), st.sampled_from([None, "temperature", "platt"]), st.booleans())
@settings(few, max_examples=5)
def test_what_comes_out_is_probabilities(case, method, by_label, calibration, any_at_least_max):
    how = recipe(method, by_label and method == "weights" and len(case[0]) > 1, calibration, any_at_least_max)
    blended = blend.nested(*case, how)
    assert blended.shape == case[0].shape[1:]
    assert ((blended >= 0) & (blended <= 1)).all()


@given(cases(), st.sampled_from(METHODS), st.randoms(use_true_random=False))
@few
def test_the_order_of_slices_and_members_has_no_say(case, method, random):
    members, table = case
    slices, order = list(range(len(table))), list(range(len(members)))
    random.shuffle(slices)
    random.shuffle(order)
    blended = blend.nested(members, table, recipe(method))
    turned = blend.nested(members[order][:, slices], table.iloc[slices], recipe(method))
    np.testing.assert_allclose(turned, blended[slices], atol=1e-3)


def slow_rank(value, reference):
    return (sum(item < value for item in reference) + sum(item == value for item in reference) / 2 + 0.5) / (
        len(reference) + 1
    )


@given(cases())
@few
def test_ranks_are_counted_among_what_was_fitted_on(case):
    """A slice's rank does not depend on which others are predicted beside it."""
    members, _ = case
    values, reference = members[0, :3], np.sort(members[0], axis=0)
    slow = [[slow_rank(values[i, k], reference[:, k]) for k in range(6)] for i in range(3)]
    np.testing.assert_allclose(fitted_blend._ranks(values, reference), slow)
    fitted = blend.fit(*case, recipe("rank_mean"))
    np.testing.assert_array_equal(fitted(members[:, :1]), fitted(members)[:1])


@given(cases())
@few
def test_the_rank_mean_does_not_see_monotone_transforms(case):
    members, table = case
    members = members.astype(np.float32).astype(np.float64)  # so that no two values become one
    bent = members / (3 - 2 * members)
    expected, actual = (blend.nested(m, table, recipe("rank_mean")) for m in (members, bent))
    np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_the_rank_mean_is_a_probability_again():
    members, table = simulate(2000)
    of_ranks = losses(table, blend.nested(members**3, table, recipe("rank_mean")))
    assert (of_ranks < losses(table, members.mean(axis=0)) + 0.02).all()


# ------------------------------------------------------------------------------------------- nested


@pytest.mark.parametrize(("method", "k"), [("weights", 0), ("mean", 1), ("rank_mean", 2)])
def test_a_patient_is_never_fitted_on_and_judged(method, k):
    """Other labels of a fold change nothing of its own predictions, whatever is fitted; but the others' they do."""
    members, table = simulate(240)
    how = recipe(method, by_label=method == "weights", calibration="platt", any_at_least_max=True)
    own = (table["fold"] == k).to_numpy()
    spoilt = table.copy()
    spoilt.loc[own, list(LABELS)] = 1 - table.loc[own, list(LABELS)]
    before, after = blend.nested(members, table, how), blend.nested(members, spoilt, how)
    np.testing.assert_array_equal(after[own], before[own])
    assert method == "mean" or (after[~own] != before[~own]).any()


def test_each_fold_is_blended_by_a_fit_on_the_others():
    members, table = simulate(240)
    how = recipe(by_label=True)
    nested = blend.nested(members, table, how)
    for k in range(3):
        own = (table["fold"] == k).to_numpy()
        fitted = blend.fit(members[:, ~own], table[~own], how)
        np.testing.assert_array_equal(nested[own], fitted(members[:, own]))


def test_a_blend_of_independent_members_beats_the_best_of_them():
    members, table = simulate(4000, noise=(1.0, 1.0, 1.0))
    y, patients = table[list(LABELS)].to_numpy(), table["PatientID"].to_numpy()
    alone = np.stack([metrics.log_losses(y, p).mean(axis=1) for p in members])
    blended = metrics.log_losses(y, blend.nested(members, table, recipe())).mean(axis=1)
    gain = bootstrap.estimate(alone[alone.mean(axis=1).argmin()] - blended, patients)
    assert gain.low > 0


# ------------------------------------------------------------------------------------------- what is kept if it helps


@pytest.mark.parametrize("kind", ["temperature", "platt"])
def test_calibration_is_kept_where_it_helps_and_only_there(kind):
    members, table = simulate(4000, noise=(0.0,))
    bent = members.astype(np.float64)
    bent[:, :, 2] = expit(3 * np.log(bent[:, :, 2] / (1 - bent[:, :, 2])))  # far too sure of this label
    fitted = blend.fit(bent, table, recipe(calibration=kind))
    calibration = fitted.describe(["one"])["calibration"]
    assert calibration["intraventricular"]["kept"]
    assert calibration["intraventricular"]["scale"] == pytest.approx(1 / 3, rel=0.1)
    left_out = [label for label in LABELS if not calibration[label]["kept"]]
    assert left_out
    for label in left_out:
        assert (calibration[label]["scale"], calibration[label]["offset"]) == (1, 0)
        assert calibration[label]["gain"] <= calibration[label]["standard_error"]
        k = LABELS.index(label)
        np.testing.assert_array_equal(fitted(bent)[:, k], bent[0, :, k])
    gain = losses(table, blend.nested(bent, table, recipe())) - losses(
        table, blend.nested(bent, table, recipe(calibration=kind))
    )
    assert gain[2] == pytest.approx(calibration["intraventricular"]["gain"])  # the same folds, the same fits


def test_any_is_raised_if_that_helps_and_only_then():
    rng = np.random.default_rng(0)
    members, table = simulate(1000, noise=(0.0,))
    table["any"] = table[list(LABELS[:5])].max(axis=1)
    low, high = members.copy(), members.copy()
    low[..., 5] = members[..., :5].max(axis=2) * 0.3
    helped = blend.fit(low, table, recipe(any_at_least_max=True))
    assert helped.describe(["one"])["any_at_least_max"]["any"]["kept"]
    np.testing.assert_array_equal(helped(low), fitted_blend.raise_any(low[0]))

    high[..., 5] = np.where(table["any"] == 1, 0.95, 0.05)
    high[..., 0] = rng.random(len(table))  # what is far off must not pull any along
    left = blend.fit(high, table, recipe(any_at_least_max=True))
    assert not left.describe(["one"])["any_at_least_max"]["any"]["kept"]
    np.testing.assert_array_equal(left(high), high[0])


def test_raising_leaves_the_five_alone():
    p = np.array([[0.1, 0.9, 0.2, 0.0, 0.3, 0.4], [0.1, 0.2, 0.2, 0.0, 0.3, 0.4]])
    raised = fitted_blend.raise_any(p)
    np.testing.assert_array_equal(raised[:, :5], p[:, :5])
    np.testing.assert_array_equal(raised[:, 5], [0.9, 0.4])
    assert p[0, 5] == 0.4


def test_it_describes_itself_in_plain_numbers():
    members, table = simulate(240, noise=(1.0, 1.0))
    description = blend.fit(members, table, recipe()).describe(["a", "b"])
    assert list(description) == ["weights"]
    assert list(description["weights"]) == list(LABELS)
    assert sum(description["weights"]["any"].values()) == pytest.approx(1)
    description = blend.fit(members, table, recipe(calibration="platt", any_at_least_max=True)).describe(["a", "b"])
    assert list(description) == ["weights", "calibration", "any_at_least_max"]
    assert list(description["calibration"]) == list(LABELS)
    assert {type(value) for value in description["calibration"]["any"].values()} == {float, bool}


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m, t: (m, t, recipe("median")),
            "unknown method 'median' of blending; expected one of weights, mean, logit_me",
        ),
        (
            lambda m, t: (m[:1], t, recipe(by_label=True)),
            "weights of one member are 1 for every label; name several, or leave by_label out",
        ),
        (
            lambda m, t: (m, t, recipe("mean", by_label=True)),
            "weights are fitted by label, mean has none to fit; leave",
        ),
        (lambda m, t: (m, t, recipe(calibration="isotonic")), "unknown calibration 'isotonic'"),
        (lambda m, t: (m[:0], t, recipe()), r"members of shape \(0, 12, 6\) for 12 slices; expected \(members, slices"),
        (lambda m, t: (m[0], t, recipe()), r"members of shape \(12, 6\) for 12 slices"),
        (lambda m, t: (m[:, 1:], t, recipe()), r"members of shape \(3, 11, 6\) for 12 slices"),
        (lambda m, t: (m[:, :0], t[:0], recipe()), r"members of shape \(3, 0, 6\) for 0 slices"),
        (lambda m, t: (m - 1, t, recipe()), r"NaN or values outside \[0, 1\]; blends take probabilities"),
        (lambda m, t: (m * np.nan, t, recipe()), r"values outside \[0, 1\]"),
        (
            lambda m, t: (m, t.assign(fold=np.arange(12) % 2), recipe()),
            "shared between folds|more than one fold|in two",
        ),
        (lambda m, t: (m, t.assign(fold=0), recipe()), "there is one fold only; .* two at least"),
        (
            lambda m, t: (m, t.assign(fold=t["fold"] % 2), recipe(calibration="platt")),
            "expected three folds at least",
        ),
        (
            lambda m, t: (m, t.assign(fold=t["fold"] % 2), recipe(any_at_least_max=True)),
            "expected three folds at least",
        ),
    ],
)
def test_what_cannot_be_blended_is_refused(change, message):
    with pytest.raises(IchError, match=message):
        blend.nested(*change(*simulate(12)))
