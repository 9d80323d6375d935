"""A fitted blend that is read again; how it is fitted is tested in test_blend.py."""

import json
import re

import numpy as np
import pytest
import yaml
from test_blend import recipe, simulate

from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.results import blend, fitted_blend

NAMES = ["runs/a", "runs/b"]


@pytest.mark.parametrize(
    "how",
    [
        recipe(),
        recipe(by_label=True, calibration="platt", any_at_least_max=True),
        recipe("mean", calibration="temperature"),
        recipe("logit_mean"),
    ],
)
def test_what_it_tells_makes_the_same_blend(how):
    members, table = simulate(240, noise=(0.2, 2.0))
    members[..., 1] **= 3  # so that a calibration helps
    members[..., 5] = members[..., :5].max(axis=2) / 2  # and raising any
    fitted = blend.fit(members, table, how)
    content = json.loads(json.dumps(fitted.describe(NAMES) | {"weighted_log_loss": 0.1}))
    again = fitted_blend.of_description(how.method, content, NAMES)
    np.testing.assert_array_equal(again(members), fitted(members))
    assert again.raises_any == how.any_at_least_max
    assert (again.calibration.scale[1] != 1) == (how.calibration is not None)
    np.testing.assert_array_equal(again(members[:, 7:8]), fitted(members)[7:8])  # a slice alone
    turned = fitted_blend.of_description(how.method, content, NAMES[::-1])
    np.testing.assert_allclose(turned(members[::-1]), fitted(members), rtol=1e-12)


def description():
    members, table = simulate(60, noise=(0.2, 2.0))
    return blend.fit(members, table, recipe(calibration="platt", any_at_least_max=True)).describe(NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("weights"), "KeyError"),
        (lambda content: content["weights"].pop("any"), "KeyError"),
        (lambda content: content["weights"]["any"].pop("runs/a"), "the weights are of other members"),
        (lambda content: content["weights"]["any"].update({"runs/c": 0.0}), "the weights are of other members"),
        (lambda content: content["weights"].update(any=0.5), "AttributeError"),
        (lambda content: content["weights"]["any"].update({"runs/a": "much"}), "ValueError"),
        (lambda content: content["weights"]["any"].update({"runs/a": 10**400}), "OverflowError"),
        (lambda content: content["weights"]["any"].update({"runs/a": 2.0}), "do not add up to 1"),
        (lambda content: content["weights"].update(any={"runs/a": 2.0, "runs/b": -1.0}), "weights are below 0"),
        (lambda content: content["weights"]["any"].update({"runs/a": float("nan")}), "weights are below 0"),
        (lambda content: content["calibration"].pop("subdural"), "KeyError"),
        (lambda content: content["calibration"]["any"].update(scale=-1.0), "or its scale below 0"),
        (lambda content: content["calibration"]["any"].update(offset=None), "a calibration is not finite"),
        (lambda content: content["any_at_least_max"]["any"].update(kept="no"), "kept is neither true nor false"),
        (lambda content: content.update(any_at_least_max=None), "TypeError"),
    ],
)
def test_a_recipe_that_is_not_whole_is_refused(change, message):
    content = description()
    fitted_blend.of_description("weights", content, NAMES)
    change(content)
    with pytest.raises(
        IchError,
        match=f"the description of the blend is incomplete or invalid .*{message}.*make the blend again by its",
    ):
        fitted_blend.of_description("weights", content, NAMES)


def test_a_method_that_knows_no_other_scans_is_refused():
    with pytest.raises(IchError, match=r"rank_mean counts a slice's ranks among all .* by another method"):
        fitted_blend.of_description("rank_mean", description(), NAMES)
    with pytest.raises(IchError, match="unknown method 'median' of blending"):
        fitted_blend.of_description("median", description(), NAMES)


def write_blend(folder, content, method="weights", **more):
    config = {"name": folder.name, "data": {}, "blend": {"runs": NAMES, "method": method, **more}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "score.json").write_text(json.dumps(content | {"weighted_log_loss": 0.1, "of_prevalence": 0.2}))


def test_it_is_read_from_its_directory(tmp_path):
    write_blend(tmp_path, description())
    members, again = fitted_blend.read(tmp_path)
    assert list(map(str, members)) == NAMES
    assert again.mixture.weights.shape == (2, len(LABELS))
    write_blend(tmp_path, description(), "rank_mean")
    with pytest.raises(IchError, match=rf"^{re.escape(str(tmp_path))}: rank_mean counts"):
        fitted_blend.read(tmp_path)
    (tmp_path / "config.yaml").write_text("name: a-run\n")
    with pytest.raises(IchError, match=r"is not a blend; name a directory that scripts/blend.py wrote"):
        fitted_blend.read(tmp_path)
