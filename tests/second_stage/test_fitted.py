"""A second stage put together from models that are made up; trained ones are read in test_train.py."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from ich.config import Sequence
from ich.errors import IchError
from ich.second_stage import boosting, fitted, logistic, rnn
from ich.second_stage.fitted import SecondStage
from ich.second_stage.scans import Scans
from ich.second_stage.trees import Trees


def some_scans(lengths=(3, 5), seed=0, embedding=0):
    n = sum(lengths)
    rng = np.random.default_rng(seed)
    z = np.concatenate([5 * np.arange(length) for length in lengths]).astype(np.float32)
    logits = rng.normal(-2, 2, (n, 6)).astype(np.float32)
    ids = pd.Index([f"ID_{number}" for number in range(n)])
    return Scans(ids, np.cumsum([0, *lengths]), z, logits, np.zeros((n, embedding), np.float16))


def constant(logit):
    """Trees that give this logit to every slice."""
    return boosting.Model(56, (Trees.none(logit),) * 6, Trees.none(logit))


def line(offset):
    return logistic.Model(np.zeros((6, 46)), np.full(6, float(offset)))


def logit(p):
    return np.log(p / (1 - p))


def test_probabilities_are_averaged_over_folds_and_logits_over_kinds():
    section = Sequence()
    models = {"boosting": [constant(-3.0), constant(1.0)], "linear": [line(0), line(-2)]}
    predictions = SecondStage(section, models, {"boosting": 0.25, "linear": 0.75}).predict(some_scans())
    trees, linear = (expit(-3.0) + expit(1.0)) / 2, (expit(0.0) + expit(-2.0)) / 2
    np.testing.assert_allclose(predictions, np.full((8, 6), expit(0.25 * logit(trees) + 0.75 * logit(linear))))


def test_a_kind_without_weight_is_not_asked():
    models = {"boosting": [None, None], "linear": [line(1)]}
    predictions = SecondStage(Sequence(), models, {"boosting": 0.0, "linear": 1.0}).predict(some_scans())
    np.testing.assert_allclose(predictions, expit(1.0))


def test_certainty_is_clipped_as_stored_logits_are():
    predictions = SecondStage(Sequence(kind="linear"), {"linear": [line(800)]}, {"linear": 1.0}).predict(some_scans())
    np.testing.assert_allclose(predictions, expit(15.0))


def test_each_network_reads_the_embeddings_of_its_fold(monkeypatch):
    monkeypatch.setattr(rnn, "predict", lambda model, of, size: model + of.logits)
    section = Sequence(kind="recurrent", features="embeddings", shuffle_kinds=0)
    stage = SecondStage(section, {"recurrent": [1.0, 2.0]}, {"recurrent": 1.0})
    of_folds = [some_scans(seed=seed) for seed in (1, 2)]
    predictions = stage.predict(some_scans(), of_folds.__getitem__)
    expected = (expit(1 + of_folds[0].logits) + expit(2 + of_folds[1].logits)) / 2
    np.testing.assert_allclose(predictions, expected, rtol=1e-5)
    with pytest.raises(IchError, match="the embeddings are not of the scans that are predicted"):
        stage.predict(some_scans((3, 4)), of_folds.__getitem__)
    with pytest.raises(IchError, match=r"reads embeddings, and there are none; .* sequence.features=embeddings"):
        stage.predict(some_scans())
    with pytest.raises(IchError, match=r"reads no embeddings; give what sequence.features=logits says"):
        SecondStage(Sequence(kind="linear"), {"linear": [line(0)]}, {"linear": 1.0}).predict(
            some_scans(), of_folds.__getitem__
        )


def write_stage(folder, weights):
    for k in (0, 1):
        constant(k).save(folder / f"fold{k}" / "boosting.npz")
    score = {"weighted_log_loss": 0.1, "of_prevalence": 0.2, "weights": weights}
    (folder / "score.json").write_text(json.dumps(score))


def test_it_is_read_from_its_directory(tmp_path):
    write_stage(tmp_path, {"test": {"boosting": 1.0}})
    section = Sequence(kind="boosting")
    predictions = SecondStage.read(tmp_path, section, 2).predict(some_scans())
    np.testing.assert_allclose(predictions, (expit(0.0) + expit(1.0)) / 2)
    digests = [fitted.digest(tmp_path / f"fold{k}", ["boosting"]) for k in (0, 1, 0)]
    assert digests[0] == digests[2] != digests[1]
    with pytest.raises(IchError, match=r"fold2/boosting.npz is missing, .*: run the command of scripts/train_sequence"):
        SecondStage.read(tmp_path, section, 3)


@pytest.mark.parametrize(
    "weights", [None, [], {"test": None}, {"test": {"linear": 1}}, {"test": {"boosting": 0.5}},
                {"test": {"boosting": "1"}}, {"test": {"boosting": float("nan")}}]
)  # fmt: skip
def test_weights_that_are_none_are_refused(tmp_path, weights):
    write_stage(tmp_path, weights)
    with pytest.raises(IchError, match=r"score.json holds no weights of boosting that add up to 1; run the command of"):
        SecondStage.read(tmp_path, Sequence(kind="boosting"), 2)


def test_weights_below_zero_are_refused(tmp_path):
    write_stage(tmp_path, {"test": {"recurrent": 1.0, "boosting": 0.5, "linear": -0.5}})
    with pytest.raises(IchError, match=r"no weights of recurrent, boosting, linear that add up to 1"):
        SecondStage.read(tmp_path, Sequence(), 2)
