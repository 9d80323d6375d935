"""Each key of a config is seen to arrive where it decides something: what is handed over changes with it.

Nothing is trained. A key that stands in no table here fails, so that a new one is reported where it is seen.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_images, table_of_scores, tiny_config

from ich.competition import folds, labels
from ich.competition.labels import LABELS
from ich.config import Config
from ich.errors import IchError
from ich.images import convert
from ich.images.render import render
from ich.models import backbones, devices
from ich.results.predictions import read_predictions
from ich.second_stage import boosting, inputs, rnn, scan_features, train
from ich.training import fold, inference, trackers
from ich.training.run_data import RunData
from ich.training.run_directory import Run

SCRIPTS = Path(__file__).parents[2] / "scripts"


class Captured(Exception):
    """Ends what would train."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The images of conftest, with a bleed in every other slice, and a file of weights."""
    path = tmp_path_factory.mktemp("data")
    make_images(path)
    table = folds.read_folds(path / "folds.csv")
    table.loc[np.arange(len(table)) % 2 == 0, list(LABELS)] = 0
    table.loc[np.arange(len(table)) % 2 == 1, "any"] = 1
    folds.write_folds(path / "folds.csv", table)
    (path / "weights.h5").touch()
    return path


def changed(place, beside, key=None, value=None):
    """The config of conftest with some values, and one more."""
    content = tiny_config(place).model_dump(mode="json")
    content["model"]["name"] = "least"
    if beside.get("sequence.kind") == "recurrent":  # quick to build
        content["sequence"] |= {"width": 4, "units": 2, "dilations": [2]}
    for path, setting in [*beside.items(), *([] if key is None else [(key, value)])]:
        section, name = path.split(".")
        content[section][name] = setting
    return Config.model_validate(content)


def check(look, place, patch, tmp_path, key, entry):
    """What is seen with another value of a key is another thing, and what was expected if the table says."""
    value, probe, expected, beside = entry
    if value == "WEIGHTS":
        value = expected = str(place / "weights.h5")
    before = (look, *sorted(map(str, beside.items())))
    if before not in BEFORE:
        BEFORE[before] = look(changed(place, beside), patch, tmp_path / "before")
    usual, actual = probe(BEFORE[before]), probe(look(changed(place, beside, key, value), patch, tmp_path / "after"))
    assert usual != actual
    if expected is not DIFFERS:
        assert actual == expected


DIFFERS = object()
BEFORE = {}  # what is seen without the key's other value, once for all keys


def arrives(value, probe, expected=DIFFERS, **beside):
    return value, probe, expected, {name.replace("__", "."): setting for name, setting in beside.items()}


# ------------------------------------------------------------------------------------------- the first stage


def training_of(config, patch, path):
    """All that training fold 0 hands to Keras."""
    seen = SimpleNamespace()

    def builder(name):
        def build(images, weights):
            seen.name, seen.backbone_weights = name, weights
            return keras.layers.GlobalAveragePooling2D()(keras.layers.Dense(2)(images))

        return build

    def fit(model, train, validation_data, **options):
        seen.model, seen.train, seen.held_out, seen.fit = model, train, validation_data, options
        seen.layers = {layer.name: layer for layer in model.layers}
        seen.optimizer, seen.loss = model.optimizer.get_config(), model.loss
        seen.schedule = model.optimizer._learning_rate.get_config()
        seen.callbacks = {type(callback).__name__: callback for callback in options["callbacks"]}
        inputs = [train[batch][0] for batch in range(len(train))]
        seen.images = [(x.get("image", x.get("unaugmented")) if isinstance(x, dict) else x).tobytes() for x in inputs]
        seen.ids = [id for batch in range(len(train)) for id in train.ids_of(batch)]
        seen.first = [keras.ops.convert_to_numpy(variable).tobytes() for variable in model.trainable_variables]
        raise Captured

    def adjustable(images, weights):
        x = keras.layers.BatchNormalization()(keras.layers.Dense(2)(images))
        branch = keras.layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(x)
        return keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([x, branch]))

    builders = {"least": builder("least"), "other": builder("other"), "adjustable": adjustable}
    patch.setattr(backbones, "BUILDERS", builders)
    patch.setattr(devices, "mirrored", lambda **sizes: tf.distribute.MirroredStrategy(["CPU:0"]))
    patch.setattr(trackers, "find_spec", lambda name: True)
    patch.setattr(keras.callbacks, "TensorBoard", type("TensorBoard", (keras.callbacks.Callback,), {"__init__": _any}))
    patch.setattr(keras.Model, "fit", fit)
    patch.setattr(keras.Model, "test_on_batch", lambda *arguments: None)
    with pytest.raises(Captured):
        fold.train_fold(Run.begin(config, path), 0)
    return seen


def _any(self, *arguments, **options):
    keras.callbacks.Callback.__init__(self)


def dropout(seen):
    return next(layer.rate for layer in seen.model.layers if isinstance(layer, keras.layers.Dropout))


def correction(seen):
    last = seen.layers.get("loss_correction")
    return last and (last.gamma, last.label_smoothing)


TRAINING = {
    "model.name": arrives("other", lambda seen: seen.name, "other"),
    "model.weights": arrives("WEIGHTS", lambda seen: seen.backbone_weights),
    "model.dropout": arrives(0.35, dropout, 0.35),
    "model.drop_path": arrives(0.05, dropout, 0.05, model__name="adjustable"),
    "model.gem": arrives(3.0, lambda seen: getattr(seen.layers.get("gem"), "exponent", None), 3.0),
    "model.freeze_batch_norm": arrives(True, lambda seen: len(seen.first), 4, model__name="adjustable"),
    "model.neighbours": arrives([-1, 0, 1], lambda seen: seen.train[0][0].shape[-1], 3),
    "model.scan": arrives(
        {"slices": 3, "kind": "attention", "units": 12, "depth": 2, "slice_loss": 0.25},
        lambda seen: (
            seen.train[0][0]["mask"].shape[1] if seen.train.scan else None,
            seen.model.name,
            sum(isinstance(layer, keras.layers.MultiHeadAttention) for layer in seen.model.layers),
            seen.layers["logits"].input.shape[-1],
            getattr(seen.loss, "weight", None),
        ),
        (3, "scan_attention", 2, 12, 0.25),
    ),
    "train.seed": arrives(1, lambda seen: (seen.first, seen.ids, seen.images)),
    "train.epochs": arrives(3, lambda seen: (seen.fit["epochs"], seen.schedule["decay_steps"]), (3, 6)),
    "train.head_epochs": arrives(
        1, lambda seen: (seen.fit["epochs"], len(seen.first), seen.schedule["decay_steps"]), (1, 2, 3), train__epochs=3
    ),
    "train.batch_size": arrives(4, lambda seen: len(seen.train[0][0]), 4),
    "train.fixed_batches": arrives(True, lambda seen: len(seen.ids), 15),
    "train.accumulate": arrives(2, lambda seen: seen.optimizer["gradient_accumulation_steps"], 2),
    "train.augment": arrives("none", lambda seen: seen.images),
    "train.augment_on": arrives(
        "device",
        lambda seen: (isinstance(seen.train[0][0], dict), type(seen.model).__name__),
        (True, "_Augmented"),
    ),
    "train.mixup": arrives(0.4, lambda seen: seen.train.mix.mixup, 0.4, train__cutmix=1.0),
    "train.cutmix": arrives(0.7, lambda seen: (seen.train.mix.cutmix, seen.images), train__mixup=0.4),
    "train.mix_share": arrives(0.5, lambda seen: seen.train.mix.share, 0.5, train__cutmix=1.0),
    "train.learning_rate": arrives(0.02, lambda seen: seen.schedule["warmup_target"], 0.02),
    "train.warmup_epochs": arrives(0.5, lambda seen: seen.schedule["warmup_steps"], 2, train__epochs=2),
    "train.backbone_rate": arrives(0.1, lambda seen: seen.optimizer.get("factors"), [0.1, 0.1, 1, 1]),
    "train.weight_decay": arrives(0.03, lambda seen: seen.optimizer["weight_decay"], 0.03),
    "train.clip_norm": arrives(0.7, lambda seen: seen.optimizer["global_clipnorm"], 0.7),
    "train.loss": arrives(
        "focal", lambda seen: (type(seen.loss).__name__, correction(seen)), ("WeightedFocalLoss", (2.0, 0.0))
    ),
    "train.focal_gamma": arrives(
        1.5, lambda seen: (seen.loss.gamma, correction(seen)), (1.5, (1.5, 0.0)), train__loss="focal"
    ),
    "train.label_weights": arrives([6, 5, 4, 3, 2, 1], lambda seen: seen.loss.weights, [6, 5, 4, 3, 2, 1]),
    "train.label_smoothing": arrives(
        0.1, lambda seen: (seen.loss.label_smoothing, correction(seen)), (0.1, (0.0, 0.1))
    ),
    "train.ema_momentum": arrives(
        0.9,
        lambda seen: (seen.optimizer["use_ema"], seen.optimizer["ema_momentum"], "SwapEMAWeights" in seen.callbacks),
        (True, 0.9, True),
    ),
    "train.slices_per_series": arrives(2, lambda seen: len(seen.ids), 6),
    "train.centre_weighted": arrives(
        True, lambda seen: seen.train.sampling.centre_weighted, True, train__slices_per_series=2
    ),
    "train.positive_share": arrives(
        0.75,
        lambda seen: (len(seen.ids), seen.model.layers[-1].get_config().get("oversampling")),
        (8, 3.0),
    ),
    "train.validate_every": arrives(2, lambda seen: seen.fit["validation_freq"], [2, 3], train__epochs=3),
    "train.keep": arrives("best", lambda seen: "KeepBest" in seen.callbacks, True),
    "train.precision": arrives("mixed_bfloat16", lambda seen: seen.model.get_layer("logits").input.dtype, "bfloat16"),
    "predict.batch_size": arrives(6, lambda seen: len(seen.held_out[0][0]), 6),
    "machine.workers": arrives(3, lambda seen: (seen.train.workers, seen.held_out.workers), (3, 3)),
    "machine.processes": arrives(True, lambda seen: seen.train.use_multiprocessing, True),
    "machine.steps_per_execution": arrives(2, lambda seen: seen.model.steps_per_execution, 2),
    "machine.jit_compile": arrives(True, lambda seen: seen.model.jit_compile, True),
    "machine.distribute": arrives(
        "mirrored", lambda seen: type(seen.model.distribute_strategy).__name__, "MirroredStrategy"
    ),
    "machine.log_to": arrives(["tensorboard"], lambda seen: "TensorBoard" in seen.callbacks, True),
}


@pytest.mark.parametrize("key", TRAINING)
def test_a_key_arrives_in_the_training(place, tmp_path, monkeypatch, key):
    before = keras.config.dtype_policy()
    try:
        check(training_of, place, monkeypatch, tmp_path, key, TRAINING[key])
    finally:
        keras.config.set_dtype_policy(before)


def script(name, config, path):
    path.mkdir()
    (path / "one.yaml").write_text(config.resolved())
    runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"]([str(path / "one.yaml")])


def conversion_of(config, patch, path):
    """What scripts/preprocess.py hands to the conversion, and what becomes of a slice."""
    seen = SimpleNamespace()

    def converted(sources, images, settings, **how):
        seen.settings, seen.how = settings, how
        raise Captured

    patch.setattr(convert, "convert", converted)
    config = config.model_copy(update={"data": config.data.model_copy(update={"images": path / "images"})})
    with pytest.raises(Captured):
        script("preprocess", config, path)
    hu = np.full((40, 60), -1000, np.int16)
    hu[8:30, 12:40] = np.arange(28) * 5
    image, _ = render(hu, seen.settings)
    seen.image = image.shape, image.tobytes()
    return seen


CONVERSION = {
    "preprocess.windows": arrives(["bone"], lambda seen: seen.image),
    "preprocess.size": arrives(32, lambda seen: seen.image[0], (32, 32, 1)),
    "preprocess.fit": arrives("stretch", lambda seen: seen.image, preprocess__size=32),
    "preprocess.crop": arrives(True, lambda seen: seen.image),
    "preprocess.files": arrives("separate", lambda seen: seen.settings.suffixes, [".brain.png"]),
    "machine.jobs": arrives(3, lambda seen: seen.how["jobs"], 3),
    "machine.backend": arrives("threads", lambda seen: seen.how["backend"], "threads"),
    "machine.scheduler": arrives("tcp://a:1", lambda seen: seen.how["scheduler"], "tcp://a:1", machine__backend="dask"),
}


@pytest.mark.parametrize("key", CONVERSION)
def test_a_key_arrives_in_the_conversion(place, tmp_path, monkeypatch, key):
    check(conversion_of, place, monkeypatch, tmp_path, key, CONVERSION[key])


def folds_of(config, patch, path):
    """What scripts/make_folds.py hands over, of a label file that lacks a slice and has one too many."""
    seen = SimpleNamespace()
    table = folds.read_folds(config.data.folds_path)[list(LABELS)].iloc[1:].rename(index={"ID_000000005": "ID_f05"})

    def capture(frame, **options):
        seen.slices, seen.options = len(frame), options
        raise Captured

    patch.setattr(labels, "read_labels", lambda path: (table, 0))
    patch.setattr(folds, "make_folds", capture)
    config = config.model_copy(update={"data": config.data.model_copy(update={"labels": path / "labels.csv"})})
    with pytest.raises((Captured, IchError)) as caught:
        script("make_folds", config, path)
    seen.refused = "set folds.allow_unmatched=true" in str(caught.value)
    return seen


FOLDS = {
    "folds.n": arrives(3, lambda seen: seen.options["n_folds"], 3, folds__allow_unmatched=True),
    "folds.seed": arrives(4, lambda seen: seen.options["seed"], 4, folds__allow_unmatched=True),
    "folds.allow_unmatched": arrives(True, lambda seen: seen.refused, False),
}


@pytest.mark.parametrize("key", FOLDS)
def test_a_key_arrives_in_the_folds(place, tmp_path, monkeypatch, key):
    check(folds_of, place, monkeypatch, tmp_path, key, FOLDS[key])


def prediction_of(config, patch, path):
    """What is predicted of the slices held out, by a model of which each pass gives other logits."""
    seen = SimpleNamespace(sizes=[], images=[])

    def predicted(network, samples, parts, title):
        seen.sizes.append(samples.batch_size)
        seen.images.append(samples[0].tobytes())
        return np.full((len(samples.ids), len(LABELS)), 4.0 * len(seen.images), np.float32)

    patch.setattr(inference, "predict_logits", predicted)
    run = Run.begin(config, path)
    run.claim("tensorflow", ["cpu:0"], RunData(run.config).digests)
    run.fold(0).mkdir()
    (run.fold(0) / "model.keras").touch()
    image = keras.Input((32, 32, 1))
    model = keras.Model(image, keras.layers.Dense(len(LABELS))(keras.layers.Flatten()(image)))
    inference.predict_held_out(run, 0, RunData(run.config), lambda: model)
    seen.oof = read_predictions(run.fold(0) / "oof.parquet").to_numpy().tobytes()
    return seen


PREDICTION = {
    "predict.batch_size": arrives(6, lambda seen: seen.sizes, [6]),
    "predict.tta": arrives(["none", "flip"], lambda seen: len(set(seen.images)), 2),
    "predict.mean": arrives("logit", lambda seen: seen.oof, predict__tta=["none", "flip"]),
}


@pytest.mark.parametrize("key", PREDICTION)
def test_a_key_arrives_in_the_prediction(place, tmp_path, monkeypatch, key):
    check(prediction_of, place, monkeypatch, tmp_path, key, PREDICTION[key])


# ------------------------------------------------------------------------------------------- the second stage


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    path = tmp_path_factory.mktemp("scores")
    table_of_scores(8, 6).to_parquet(path / "scores.parquet")
    return path


def second_stage_of(config, patch, path):
    """What the kinds of the second stage hand to Keras and scikit-learn, for the first fold."""
    seen = SimpleNamespace(kinds=[], forests=[], fits=[], noise=[], kept=[], read=[])
    part, noisy, drawn = train._train_part, scan_features.noisy, scan_features.drawn_kinds

    class Classifier:
        def __init__(self, **options):
            seen.forests.append(options)

        def fit(self, x, y):
            seen.features = x.shape[1]
            return self

    def fit(model, data, **options):
        layers = [*model._flatten_layers()]
        data[0]
        seen.fits.append(
            SimpleNamespace(
                weights=[keras.ops.convert_to_numpy(variable).tobytes() for variable in model.trainable_variables],
                width=next(layer.units for layer in layers if isinstance(layer, keras.layers.Dense)),
                dilations=[conv.dilation_rate[0] for conv in layers if isinstance(conv, keras.layers.Conv1D)],
                units=[gru.units for gru in layers if isinstance(gru, keras.layers.GRU)],
                dropout={layer.rate for layer in layers if type(layer) is keras.layers.Dropout},
                batch=data[0][0]["slices"].shape[:2],
                batches=len(data),
                epochs=options["epochs"],
                optimizer=model.optimizer.get_config(),
                schedule=model.optimizer._learning_rate.get_config(),
                loss=model.loss,
            )
        )
        return SimpleNamespace(epoch=[0] * options["epochs"], history={"loss": [0.1] * options["epochs"]})

    def train_part(run, stage, fold_of_scan, kind, k):
        seen.kinds.append(kind)
        if kind == stage.config.sequence.kinds[-1] and k == 1:
            raise Captured
        if k == 0:
            part(run, stage, fold_of_scan, kind, k)

    patch.setattr(train, "_train_part", train_part)
    patch.setattr(boosting, "HistGradientBoostingClassifier", Classifier)
    patch.setattr(boosting.Trees, "of_classifier", lambda *of: boosting.Trees.none(0.0))
    patch.setattr(rnn, "noisy", lambda *of: [seen.noise.append(of[1]), noisy(*of)][1])
    patch.setattr(rnn, "drawn_kinds", lambda *of: [seen.kept.append(of[0]), drawn(*of)][1])
    patch.setattr(rnn, "predict", lambda model, scans, size: [seen.read.append(size), scans.logits][1])
    patch.setattr(keras.Model, "fit", fit)
    overrides = ["folds.n=2", f"sequence={json.dumps(config.sequence.model_dump(mode='json'))}"]
    stage = inputs.inputs_from_table(path.parent.parent / "scores.parquet", "second", overrides, root=path)
    with pytest.raises(Captured):
        train.train(stage, path)
    seen.network = seen.fits[0] if seen.fits else None
    return seen


def of_network(name, expected=DIFFERS, value=None, **beside):
    probe = lambda seen: getattr(seen.network, name)  # noqa: E731
    return arrives(expected if value is None else value, probe, expected, sequence__kind="recurrent", **beside)


def of_trees(value, probe, expected=DIFFERS):
    return arrives(value, probe, expected, sequence__kind="boosting")


SECOND_STAGE = {
    "sequence.kind": arrives("linear", lambda seen: set(seen.kinds), {"linear"}),
    "sequence.seed": of_network("weights", value=1),
    "sequence.seeds": arrives(2, lambda seen: len(seen.fits), 2, sequence__kind="recurrent"),
    "sequence.width": of_network("width", 8),
    "sequence.dilations": of_network("dilations", [1, 3]),
    "sequence.units": of_network("units", [4, 4], value=4),
    "sequence.dropout": of_network("dropout", {0.15}, value=0.15),
    "sequence.epochs": of_network("epochs", 3),
    "sequence.batch_size": arrives(
        2, lambda seen: (seen.network.batch[0], set(seen.read)), (2, {2}), sequence__kind="recurrent"
    ),
    "sequence.max_batches": arrives(
        2, lambda seen: seen.network.batches, 2, sequence__kind="recurrent", sequence__batch_size=1
    ),
    "sequence.learning_rate": arrives(
        0.02, lambda seen: seen.network.schedule["warmup_target"], 0.02, sequence__kind="recurrent"
    ),
    "sequence.warmup_epochs": arrives(
        1, lambda seen: seen.network.schedule["warmup_steps"], 1, sequence__kind="recurrent"
    ),
    "sequence.weight_decay": arrives(
        0.03, lambda seen: seen.network.optimizer["weight_decay"], 0.03, sequence__kind="recurrent"
    ),
    "sequence.clip_norm": arrives(
        0.7, lambda seen: seen.network.optimizer["global_clipnorm"], 0.7, sequence__kind="recurrent"
    ),
    "sequence.label_weights": arrives(
        [6, 5, 4, 3, 2, 1], lambda seen: seen.network.loss.weights, [6, 5, 4, 3, 2, 1], sequence__kind="recurrent"
    ),
    "sequence.ema": arrives(0.9, lambda seen: seen.network.optimizer["ema_momentum"], 0.9, sequence__kind="recurrent"),
    # The first batch is padded beyond the longest sample.
    "sequence.window": arrives(4, lambda seen: seen.network.batch[1], 4 + rnn._STEP, sequence__kind="recurrent"),
    "sequence.noise": arrives(0.1, lambda seen: set(seen.noise), {0.1}, sequence__kind="recurrent"),
    "sequence.shuffle_kinds": arrives(0.4, lambda seen: set(seen.kept), {0.4}, sequence__kind="recurrent"),
    "sequence.reach": of_trees(2, lambda seen: seen.features),
    "sequence.rounds": of_trees(9, lambda seen: {forest["max_iter"] for forest in seen.forests}, {9}),
    "sequence.tree_rate": of_trees(0.2, lambda seen: {forest["learning_rate"] for forest in seen.forests}, {0.2}),
}


@pytest.mark.parametrize("key", SECOND_STAGE)
def test_a_key_arrives_in_the_second_stage(place, scores, tmp_path, monkeypatch, key):
    (tmp_path / "scores.parquet").symlink_to(scores / "scores.parquet")
    (tmp_path / "roots").mkdir()
    check(second_stage_of, place, monkeypatch, tmp_path / "roots", key, SECOND_STAGE[key])


def test_the_seed_of_the_second_stage_arrives_in_its_trees(place, scores, tmp_path, monkeypatch):
    (tmp_path / "scores.parquet").symlink_to(scores / "scores.parquet")
    (tmp_path / "roots").mkdir()
    entry = of_trees(5, lambda seen: {forest["random_state"] for forest in seen.forests}, {5})
    check(second_stage_of, place, monkeypatch, tmp_path / "roots", "sequence.seed", entry)


def test_the_features_of_the_second_stage_are_those_asked_for(scores, tmp_path):
    """tests/test_features.py sees that the network reads them."""
    asked = ["sequence.features=embeddings", "sequence.shuffle_kinds=0"]
    with pytest.raises(IchError, match="is a table of scores, which has no embeddings"):
        inputs.inputs_from_table(scores / "scores.parquet", "second", asked, root=tmp_path)


# ------------------------------------------------------------------------------------------- all of them


def test_every_key_stands_in_a_table():
    """A new key is seen to arrive somewhere, or here it fails."""
    # Tests of their own, in test_alignment.py, test_pseudo.py and test_initial.py.
    tested_apart = {"sequence.features", "sequence.align", "train.pseudo", "train.pseudo_weight", "train.init_from"}
    sections = ("preprocess", "folds", "model", "train", "predict", "sequence", "machine")
    keys = {f"{section}.{key}" for section in sections for key in Config.model_fields[section].annotation.model_fields}
    assert keys == {*TRAINING, *CONVERSION, *FOLDS, *PREDICTION, *SECOND_STAGE, *tested_apart}
