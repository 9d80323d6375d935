"""Offsets between the folds' models, on first stages made up of files."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import table_of_scores
from scipy.special import expit
from test_train import first_stage

from ich.competition import folds
from ich.competition.labels import INDEX_NAME, LABELS
from ich.config import Sequence
from ich.errors import IchError
from ich.results.predictions import read_predictions, write_predictions
from ich.second_stage import alignment, inputs, train

LINEAR = ["sequence.kind=linear"]
ALIGNED = [*LINEAR, "sequence.align=true"]
OFFSETS = np.array([[2, -1, 0.5, 1.5, -2, 1], [-2, 1, -0.5, -1.5, 2, -1]])
WAY = {"tta": ["none"], "mean": "probability"}


def frame(table, logits):
    return pd.DataFrame(logits.astype(np.float32), pd.Index(table[INDEX_NAME]), list(LABELS))


def logits_of(table):
    return table[[f"score_{label}" for label in LABELS]].to_numpy()


def predicted(folder, offsets=OFFSETS, tta=("none",)):
    """A first stage whose models' logits are off by so much, with the test set's passes; each further one is off by 1.

    Without an offset, all models give the same logits, so that all else is equal.
    """
    run = first_stage(folder)
    table, unseen = table_of_scores(), table_of_scores(6, seed=1)
    fold = folds.read_folds(run.config.data.folds_path)["fold"].loc[table[INDEX_NAME]].to_numpy()
    way, means = {"tta": [*tta], "mean": "probability"}, []
    for k in (0, 1):
        held_out = frame(table[fold == k], expit(logits_of(table[fold == k]) + offsets[k]))
        write_predictions(held_out, run.fold(k) / "oof.parquet", {**way, "model": f"model {k}"})
        run.passes(k).mkdir()
        for number, name in enumerate(tta):
            values = logits_of(unseen) + offsets[k] + number
            provenance = {"model": f"model {k}", "slices": "some", "pass": name}
            write_predictions(frame(unseen, values), run.passes(k) / f"test-{name}.parquet", provenance)
            means.append(expit(values))
    models = ["model 0", "model 1"]
    held_out = [read_predictions(run.fold(k) / "oof.parquet") for k in (0, 1)]
    write_predictions(pd.concat(held_out), run.oof_path, {**way, "models": models})
    write_predictions(frame(unseen, np.mean(means, axis=0)), run.predictions_path, {**way, "models": models})
    return run


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return predicted(tmp_path_factory.mktemp("uneven"))


def train_on(run, overrides, name):
    return train.train(inputs.inputs_from_runs([run.path], name, overrides), run.path.parent)


# --------------------------------------------------------------------------------------------------- the offsets


def test_an_offset_brings_the_mean_probability_to_the_target():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(-3, 3, (50, 6)), rng.uniform(0.01, 0.99, 6)
    offset = alignment.offset(logits, target)
    np.testing.assert_allclose(expit(logits + offset).mean(axis=0), target, atol=1e-9)
    np.testing.assert_allclose(alignment.offset(logits - 2, target), offset + 2, atol=1e-9)


@pytest.mark.parametrize(("value", "target", "expected"), [(-80, 1, 30), (80, 0, -30), (np.float32(15), 1, 0)])
def test_certain_models_have_an_offset_too(value, target, expected):
    offset = alignment.offset(np.full((3, 6), value), np.full(6, float(target)))
    np.testing.assert_allclose(offset, expected, atol=1e-6)


def test_models_that_differ_by_an_offset_are_aligned(uneven):
    """Nothing is left of what they differ by; their mean over the test set is that of the mean of both."""
    offsets = alignment.offsets_of(uneven.path)
    np.testing.assert_allclose(*(offsets + OFFSETS), atol=1e-5)
    mean = read_predictions(uneven.predictions_path).to_numpy(np.float64).mean(axis=0)
    for k in (0, 1):
        logits = read_predictions(uneven.passes(k) / "test-none.parquet").to_numpy()
        np.testing.assert_allclose(expit(logits + offsets[k]).mean(axis=0), mean, atol=1e-6)


def test_models_without_an_offset_stay(tmp_path):
    offsets = alignment.offsets_of(predicted(tmp_path, np.zeros((2, 6))).path)
    np.testing.assert_allclose(offsets, 0, atol=1e-5)


def test_passes_are_averaged_as_in_the_predictions(tmp_path):
    run = predicted(tmp_path, tta=("none", "flip"))
    offsets = alignment.offsets_of(run.path)
    mean = read_predictions(run.predictions_path).to_numpy(np.float64).mean(axis=0)
    for k in (0, 1):
        parts = [expit(read_predictions(run.passes(k) / f"test-{name}.parquet")) for name in ("none", "flip")]
        p = (parts[0] + parts[1]).to_numpy(np.float64) / 2
        np.testing.assert_allclose(expit(np.log(p / (1 - p)) + offsets[k]).mean(axis=0), mean, atol=1e-6)


# -------------------------------------------------------------------------------------------------- the training


def test_a_second_stage_reads_other_folds_as_it_learned_to(uneven, tmp_path):
    """With an offset of up to 4 between the folds, it scores as on folds without; left alone, it misreads them."""
    _, alike = train_on(predicted(tmp_path, np.zeros((2, 6))), LINEAR, "alike")
    _, aligned = train_on(uneven, ALIGNED, "aligned")
    _, left = train_on(uneven, LINEAR, "left")
    assert aligned["weighted_log_loss"] < 1.05 * alike["weighted_log_loss"]
    assert left["weighted_log_loss"] > 1.5 * alike["weighted_log_loss"]
    assert aligned["of_first_stage"] == left["of_first_stage"]  # which is the first stage as it is


def test_labels_and_held_out_slices_are_not_looked_at(uneven, monkeypatch):
    stage = inputs.inputs_from_runs([uneven.path], "own", ALIGNED)
    read = []
    monkeypatch.setattr(alignment, "read_predictions", lambda path: [read.append(path.name), read_predictions(path)][1])
    stage.offsets()
    assert set(read) == {"predictions_test.parquet", "test-none.parquet"}


def test_the_offsets_are_constants_of_the_second_stage(tmp_path, monkeypatch):
    """New test predictions are read by the models that are there: what these learned from has not changed."""
    run = predicted(tmp_path)
    second, facts = train_on(run, ALIGNED, "second")
    kept = second.environment()["offsets"]
    expected = alignment.offsets_of(run.path)
    assert [[of_fold[label] for label in LABELS] for of_fold in kept] == expected.tolist()
    monkeypatch.setattr(train.logistic.Model, "fit", None)
    monkeypatch.setattr(alignment, "offsets_of", None)
    assert train_on(run, ALIGNED, "second")[1] == facts
    before = read_predictions(second.predictions_path)
    predictions = read_predictions(run.predictions_path)
    write_predictions(predictions / 2, run.predictions_path)
    assert train_on(run, ALIGNED, "second")[1] == facts
    assert not read_predictions(second.predictions_path).equals(before)
    assert second.environment()["offsets"] == kept
    facts_of_run = second.environment()
    second.environment_path.write_text(json.dumps(facts_of_run | {"offsets": None}))
    with pytest.raises(IchError, match="lacks the offsets"):
        train_on(run, ALIGNED, "second")
    second.environment_path.write_text(json.dumps(facts_of_run))
    (second.fold(0) / "linear.json").unlink()  # fitted again on the same numbers, it predicts the same
    monkeypatch.undo()
    monkeypatch.setattr(alignment, "offsets_of", None)
    assert train_on(run, ALIGNED, "second")[1] == facts


ZEROS = dict.fromkeys(LABELS, 0.0)


@pytest.mark.parametrize(
    "offsets",
    [None, [], [{"any": 1}, {}], [ZEROS] * 3, *([ZEROS | {"any": value}] * 2 for value in ("x", None, float("nan")))],
)
def test_offsets_that_were_lost_are_not_made_anew(uneven, offsets):
    with pytest.raises(IchError, match=r"environment.json lacks the offsets that the folds were aligned by"):
        train._offsets_in(uneven, {"offsets": offsets})


def test_of_several_runs_the_mean_of_the_offsets_counts(uneven, tmp_path):
    other = predicted(tmp_path, -3 * OFFSETS)
    offsets = inputs._mean_offsets([uneven.path, other.path])
    np.testing.assert_allclose(
        offsets, (alignment.offsets_of(uneven.path) + alignment.offsets_of(other.path)) / 2, atol=1e-12
    )


def test_a_network_on_embeddings_needs_no_alignment():
    with pytest.raises(ValueError, match="each network reads embeddings and logits of one model"):
        Sequence(kind="recurrent", features="embeddings", shuffle_kinds=0, align=True)
    assert Sequence(features="embeddings", shuffle_kinds=0, align=True).align  # of a blend, the other kinds


# ----------------------------------------------------------------------------------------- what cannot be aligned


def test_a_table_has_no_test_set(tmp_path):
    table_of_scores().to_parquet(tmp_path / "scores.parquet")
    with pytest.raises(IchError, match="is a table of scores without a test set, by which models are aligned"):
        inputs.inputs_from_table(tmp_path / "scores.parquet", overrides=ALIGNED, root=tmp_path)


def test_a_second_stage_has_no_models_that_read_the_test_set(uneven, tmp_path):
    path = shutil.copytree(uneven.path, tmp_path / "second")
    (path / "environment.json").write_text(json.dumps(uneven.environment() | {"first_stage": ["runs/first"]}))
    with pytest.raises(IchError, match="second is a second stage, whose models read no images"):
        alignment.offsets_of(path)


def test_a_blend_has_no_models(tmp_path):
    (tmp_path / "config.yaml").write_text("blend: {runs: [runs/a, runs/b]}")
    with pytest.raises(IchError, match="is a blend, which has no models to align"):
        alignment.offsets_of(tmp_path)


def test_what_the_test_set_lacks_is_named(tmp_path):
    run = predicted(tmp_path)
    path = run.passes(1) / "test-none.parquet"
    logits, then = read_predictions(path), {"model": "model 1", "slices": "some", "pass": "none"}
    write_predictions(logits.iloc[1:], path, then)
    with pytest.raises(IchError, match=r"are of other slices: ID_1"):
        alignment.offsets_of(run.path)
    write_predictions(logits, path, then | {"model": "another"})
    with pytest.raises(IchError, match=r"fold1/passes/test-none.parquet is not by the model in .*fold1; run scripts/"):
        alignment.offsets_of(run.path)
    path.unlink()
    with pytest.raises(IchError, match=r"run scripts/predict.py .*first"):
        train_on(run, ALIGNED, "second")
    assert not (run.path.parent / "second" / "config.yaml").exists()
    predictions = read_predictions(run.predictions_path)
    write_predictions(predictions, run.predictions_path, WAY | {"models": ["others"]})
    with pytest.raises(IchError, match="were made in two ways"):
        alignment.offsets_of(run.path)
    for name in ("oof.parquet", "predictions_test.parquet"):
        write_predictions(read_predictions(run.path / name), run.path / name, {})
    with pytest.raises(IchError, match="does not say which models predicted it"):
        alignment.offsets_of(run.path)
    run.predictions_path.unlink()
    with pytest.raises(IchError, match=r"predictions_test.parquet is missing; run scripts/predict.py"):
        train_on(run, ALIGNED, "second")
