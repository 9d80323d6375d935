import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ich.config import Config, Sequence, WindowConfig, differences, load, load_data
from ich.errors import IchError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
LEAST = {"name": "one", "data": {"sources": "a.zip", "images": "images/one"}}


@pytest.fixture
def written(tmp_path):
    def write(content, **sections):
        path = tmp_path / "one.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump({**content, **sections}))
        return path

    return write


def config(**sections):
    return Config.model_validate({**LEAST, **sections})


def refusal(path, *overrides):
    with pytest.raises(IchError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "Traceback" not in message
    return message.replace(str(path), "FILE")


# ------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid_and_named_after_its_file(path):
    assert load(path).name == path.stem


def test_the_least_config_has_defaults_for_all_else(written):
    loaded = load(written(LEAST))
    assert loaded.data.sources == [Path("a.zip")]
    assert loaded.data.folds_path == Path("images/one/folds.csv")
    assert loaded.preprocess.windows == ["brain"]
    assert loaded == config()


def test_one_source_or_several(written):
    data = {"sources": ["a.zip", "b"], "images": "i", "folds": "f.csv"}
    loaded = load(written(LEAST, data=data))
    assert loaded.data.sources == [Path("a.zip"), Path("b")]
    assert loaded.data.folds_path == Path("f.csv")


def test_windows_by_name_and_by_value_in_their_order(written):
    windows = ["subdural", {"center": 40, "width": 380}, "bone"]
    loaded = load(written(LEAST, preprocess={"windows": windows}))
    assert loaded.preprocess.windows == ["subdural", WindowConfig(center=40, width=380), "bone"]


def test_numbers_as_people_write_them(written):
    # YAML 1.1 takes 1e-3, without a point, for text.
    loaded = load(written("name: one\ndata: {sources: a, images: i}\ntrain: {learning_rate: 1e-3}\n"))
    assert loaded.train.learning_rate == 1e-3


@given(
    st.builds(
        lambda windows, weights, rate, seed, weight_file: config(
            preprocess={"windows": windows},
            train={"label_weights": weights, "learning_rate": rate, "seed": seed},
            model={"weights": weight_file},
        ),
        st.lists(
            st.sampled_from(["brain", "bone"])
            | st.builds(lambda c, w: {"center": c, "width": w}, st.integers(-100, 100), st.floats(0.5, 4000)),
            max_size=3,
        ),
        st.none() | st.lists(st.floats(0, 1e6), max_size=6),
        st.floats(1e-12, 1),
        st.integers(0, 2**31 - 1),
        st.sampled_from([None, "imagenet", "null", "1e-3", "a: b", "öß/ä.h5", "yes"]),
    )
)
def test_resolved_reads_back_as_the_same_config(original):
    again = Config.model_validate(yaml.safe_load(original.resolved()))
    assert again == original
    assert differences(original, again) == []


def test_resolved_writes_every_default_out():
    content = yaml.safe_load(config().resolved())
    assert list(content) == list(Config.model_fields)
    assert content["train"]["epochs"] == config().train.epochs
    assert content["machine"]["workers"] == config().machine.workers


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        config().name = "other"


def test_the_head_leaves_epochs_to_the_whole_network(written):
    path = written(LEAST)
    assert "the training has 3 epochs; leave the whole network one" in refusal(
        path, "train.epochs=3", "train.head_epochs=3"
    )
    message = refusal(path, "train.epochs=3", "train.head_epochs=1", "train.warmup_epochs=2.5")
    assert "the training has 2 epochs of the whole network; set it to these at most" in message
    load(path, ["train.epochs=3", "train.head_epochs=1", "train.warmup_epochs=2"])


def test_a_compiler_that_devices_do_not_share(written):
    message = refusal(written(LEAST), "machine.jit_compile=true", "machine.distribute=mirrored")
    assert "needs machine.jit_compile=auto or false: XLA compiles nothing that several devices share" in message


def test_ways_to_sample_that_do_not_go_together(written):
    path = written(LEAST)
    assert refusal(path, "train.slices_per_series=4", "train.positive_share=0.5") == (
        "config FILE: train.positive_share is 0.5: Value error, train.slices_per_series is set too; an epoch is sampled"
        " in one of both ways"
    )
    load(path, ["train.slices_per_series=4", "train.centre_weighted=true"])
    assert refusal(path, "machine.distribute=mirrored", "machine.steps_per_execution=8") == (
        "config FILE: machine.distribute is 'mirrored': Value error, needs machine.steps_per_execution=1: TensorFlow"
        " fails in Keras's loop over several steps"
    )
    load(path, ["train.positive_share=0.5"])


def test_what_does_not_go_with_embeddings(written):
    path = written(LEAST)
    assert refusal(path, "sequence.features=embeddings") == (
        "config FILE: sequence.shuffle_kinds is 0.2: Value error, embeddings know one kind of bleeding from another;"
        " set sequence.shuffle_kinds=0"
    )
    for kind in ("boosting", "linear"):
        assert refusal(path, "sequence.features=embeddings", f"sequence.kind={kind}") == (
            "config FILE: sequence.features is 'embeddings': Value error, the network alone reads them; set"
            " sequence.kind to recurrent or blend, or sequence.features to logits"
        )
    load(path, ["sequence.features=embeddings", "sequence.shuffle_kinds=0"])


NETWORK_ALONE = {
    "seeds": 2,
    "width": 8,
    "dilations": [1],
    "units": 4,
    "dropout": 0.1,
    "epochs": 9,
    "batch_size": 4,
    "max_batches": 9,
    "learning_rate": 0.1,
    "warmup_epochs": 1,
    "weight_decay": 0.1,
    "clip_norm": 2,
    "label_weights": [1, 1, 1, 1, 1, 1],
    "ema": 0.9,
    "window": 9,
    "noise": 0,
    "shuffle_kinds": 0,
}
TREES_ALONE = {"reach": 2, "rounds": 9, "tree_rate": 0.1}


@pytest.mark.parametrize(
    ("with_it", "key", "value", "needs"),
    [
        ("train.loss=weighted_bce", "train.focal_gamma", 1.5, "needs train.loss=focal, "),
        ("train.slices_per_series=null", "train.centre_weighted", True, "needs train.slices_per_series, "),
        ("preprocess.size=null", "preprocess.fit", "stretch", "needs preprocess.size, "),
        ("machine.backend=threads", "machine.scheduler", "tcp://a:1", "needs machine.backend=dask, "),
        *(
            (f"sequence.kind={kind}", f"sequence.{key}", value, f"needs sequence.kind=recurrent or blend, not {kind}")
            for key, value in NETWORK_ALONE.items()
            for kind in ("boosting", "linear")
        ),
        *(
            (f"sequence.kind={kind}", f"sequence.{key}", value, f"needs sequence.kind=boosting or blend, not {kind}")
            for key, value in TREES_ALONE.items()
            for kind in ("recurrent", "linear")
        ),
        ("sequence.kind=linear", "sequence.seed", 1, "needs sequence.kind=recurrent or boosting or blend, not linear"),
    ],
)
def test_a_key_that_nothing_reads_is_refused_on_the_command_line_and_named_in_a_file(
    written, with_it, key, value, needs
):
    path = written(LEAST)
    section, _, name = key.partition(".")
    default = getattr(getattr(load(path), section), name)
    for override in (f"{key}={value}", f"{key}={json.dumps(default)}"):
        message = refusal(path, with_it, override)
        assert message.startswith("config FILE: ")
        assert needs in message
        assert message.endswith("; or leave it out")
    assert load(path, [with_it]).unused == {}  # with the default, as a run's own config has it

    named = load(written(LEAST, **{section: {name: value}}), [with_it])
    assert list(named.unused) == [key]
    assert named.unused[key].partition(" has no effect: it ")[2].startswith(needs)
    assert getattr(getattr(named, section), name) == value  # for when another key is set again
    path.write_text(named.resolved())
    assert load(path).unused == named.unused


def test_a_crop_leaves_nothing_to_fit(written):
    path = written(LEAST, preprocess={"size": 64, "fit": "stretch"})
    assert load(path, ["preprocess.crop=true"]).unused == {
        "preprocess.fit": 'preprocess.fit="stretch" has no effect: it needs preprocess.crop=false: what is cropped is'
        " square already"
    }
    assert "needs preprocess.crop=false" in refusal(path, "preprocess.crop=true", "preprocess.fit=stretch")


@pytest.mark.parametrize(("section", "default"), [("train", 1.0), ("sequence", 2.0)])
def test_a_warm_up_is_no_longer_than_the_training(written, section, default):
    message = f"has 3 epochs; set it to these at most, or leave it at {default}"
    assert message in refusal(written(LEAST), f"{section}.epochs=3", f"{section}.warmup_epochs=3.5")
    assert message in refusal(written(LEAST, **{section: {"warmup_epochs": 4}}), f"{section}.epochs=3")


def test_every_config_of_the_repository_takes_every_kind_of_second_stage():
    for path in CONFIGS:
        for kind in ("recurrent", "boosting", "linear", "blend"):
            assert load(path, [f"sequence.kind={kind}"]).sequence.kind == kind
    assert list(load(CONFIGS[0].with_name("demo.yaml"), ["sequence.kind=linear"]).unused) == [
        "sequence.epochs",
        "sequence.batch_size",
        "sequence.shuffle_kinds",
        "sequence.rounds",
    ]
    assert list(load(CONFIGS[0], ["sequence={kind: linear, width: 8}"]).unused) == ["sequence.width"]


def test_every_key_of_the_second_stage_is_read_by_some_kind(written):
    """So that a new one is told whose it is."""
    others = {"kind", "features", "align", "seed"}
    assert {*NETWORK_ALONE, *TREES_ALONE, *others} == set(Sequence.model_fields)
    path = written(LEAST)
    for kind, keys in {"recurrent": NETWORK_ALONE, "boosting": TREES_ALONE}.items():
        for of in (kind, "blend"):
            load(path, [f"sequence.kind={of}", *(f"sequence.{key}={value}" for key, value in keys.items())])
            load(path, [f"sequence.kind={of}", "sequence.seed=1"])


def test_what_has_an_effect_together_is_taken(written):
    path = written(LEAST)
    load(path, ["train.loss=focal", "train.focal_gamma=1.5"])
    load(path, ["train.epochs=3", "train.warmup_epochs=3"])
    load(path, ["sequence.epochs=1"])  # whose warm-up is two epochs unless told otherwise
    load(path, ["preprocess.size=64", "preprocess.fit=stretch"])
    load(path, ["machine.backend=dask", "machine.scheduler=tcp://a:1"])


# ------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("train.learning_rate=1e-4", "train.learning_rate", 1e-4),
        (" train.augment =heavy", "train.augment", "heavy"),
        ("model.weights=", "model.weights", None),
        ("model.weights=null", "model.weights", None),
        ("model.weights=a=b.h5", "model.weights", "a=b.h5"),
        ("train.label_weights=[1, 1, 1, 1, 1, 2]", "train.label_weights", [1, 1, 1, 1, 1, 2]),
        ("preprocess.windows=[{center: 1, width: 2}]", "preprocess.windows", [WindowConfig(center=1, width=2)]),
        ("data.sources=b.zip", "data.sources", [Path("b.zip")]),
        ("name=two", "name", "two"),
        ("train={epochs: 7}", "train.epochs", 7),
    ],
)
def test_set(written, override, path, value):
    actual = load(written(LEAST), [override])
    for key in path.split("."):
        actual = getattr(actual, key)
    assert actual == value


def test_set_makes_a_section_the_last_one_wins_and_the_rest_stays(written):
    path = written(LEAST, train={"seed": 5, "epochs": 2})
    loaded = load(path, ["train.epochs=3", "train.epochs=4", "folds.n=2"])
    assert (loaded.train.epochs, loaded.train.seed, loaded.folds.n) == (4, 5, 2)
    assert yaml.safe_load(path.read_text())["train"] == {"seed": 5, "epochs": 2}


def test_an_augmentation_on_the_device_needs_one(written):
    message = refusal(written(LEAST), "train.augment=none", "train.augment_on=device")
    assert "train.augment is none, which leaves nothing to do there; set it to cpu, or train.augment" in message


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train.=3", ".epochs=3", "train..epochs=3", ""])
def test_a_set_of_another_form_is_refused(written, override):
    assert refusal(written(LEAST), override) == f"--set {override!r} is not of the form section.key=value"


def test_a_set_below_a_value_is_refused(written):
    assert refusal(written(LEAST), "name.part=3") == "--set 'name.part=3': name is no section"


def test_a_set_that_is_no_yaml_is_refused(written):
    assert refusal(written(LEAST), "train.epochs=[").startswith("--set 'train.epochs=[': the value is no YAML: ")


def test_a_set_of_an_unknown_key_is_refused(written):
    message = refusal(written(LEAST), "train.epoch=3")
    assert message.startswith("config FILE: train.epoch is no known key; there are seed, epochs, ")


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"trian": {}}, "trian is no known key; there are name, data, preprocess, folds, model, train, predict"),
        ({"predict": {"test_time": "flip"}}, "predict.test_time is now called predict.tta; rename it"),
        (
            {"machine": {"tensorboard": True}},
            "machine.tensorboard is now a value of machine.log_to: tensorboard; set that",
        ),
        ({"train": {"lr": 1}}, "train.lr is no known key; there are seed, epochs"),
        ({"preprocess": {"window": "brain"}}, "preprocess.window is no known key; there are windows, size, fit"),
        (
            {"preprocess": {"windows": ["brain", {"center": 40, "width": 80, "level": 1}]}},
            "config FILE: preprocess.windows.1.level is no known key; there are center, width",
        ),
        (
            {"preprocess": {"windows": [{"center": 40, "widht": 80}]}},
            "config FILE: preprocess.windows.0.width is missing; preprocess.windows.0.widht is no known key; "
            "there are center, width",
        ),
        (
            {"preprocess": {"windows": [{"center": 40, "width": -80}]}},
            "config FILE: preprocess.windows.0.width is -80: Input should be greater than 0",
        ),
        ({"preprocess": {"windows": ["brain", 40]}}, "config FILE: preprocess.windows.1 is 40: "),
        ({"preprocess": {"windows": 40}}, "preprocess.windows.0 is 40: Input should be"),
        ({"machine": {"jobs": 0}}, "machine.jobs is 0: "),
        ({"folds": {"seed": -1}}, "folds.seed is -1: "),
        ({"preprocess": {"size": 8}}, "preprocess.size is 8: "),
        ({"preprocess": {"fit": "crop"}}, "preprocess.fit is 'crop': Input should be 'pad' or 'stretch'"),
        ({"train": {"epochs": 0}}, "train.epochs is 0: "),
        ({"train": {"epochs": "many"}}, "train.epochs is 'many': "),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate is nan: "),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate is inf: "),
        ({"train": {"label_weights": [1, 1, 1, 1, 1, float("nan")]}}, "train.label_weights.5 is nan: "),
        ({"train": 3}, "train is 3: "),
        ({"model": {"dropout": 1}}, "model.dropout is 1: "),
        ({"folds": {"n": 1}}, "folds.n is 1: "),
        ({"machine": {"workers": 0}}, "machine.workers is 0: "),
        ({"name": "../elsewhere"}, "name is '../elsewhere': "),
        ({"name": ".hidden"}, "name is '.hidden': "),
        ({"name": "two\n"}, "name is 'two\\n': "),
        ({"name": "x" * 65}, "name is 'xxx"),
        (
            {"name": 2024},
            "name is 2024, which YAML reads as int, expected text; put it into quotes",
        ),
        ({"data": {"images": "i"}}, "config FILE: data.sources is missing"),
        ({"data": {"images": "i", "sources": []}}, "data.sources is []: "),
        ({"data": {"images": "i", "sources": "a", "split": "val"}}, "data.split is 'val': "),
    ],
)
def test_what_is_wrong_is_named_by_its_path(written, sections, expected):
    message = refusal(written(LEAST, **sections))
    assert expected in message
    assert "|" not in message


def test_all_that_is_wrong_is_reported_at_once(written):
    message = refusal(written(LEAST, train={"lr": 1, "epochs": 0}, model={"nam": "x"}))
    assert all(part in message for part in ("train.lr is no", "train.epochs is 0", "model.nam is no"))


def test_a_file_that_is_not_there(tmp_path):
    assert refusal(tmp_path / "no.yaml") == (
        "config FILE cannot be read: No such file or directory; configs/ holds examples"
    )


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b"!!python/object/apply:os.system [echo]"])
def test_a_file_that_is_no_plain_yaml(tmp_path, content):
    path = tmp_path / "one.yaml"
    path.write_bytes(content)
    assert refusal(path).startswith("config FILE is no YAML: ")


@pytest.mark.parametrize(("content", "kind"), [("", "NoneType"), ("- a\n", "list"), ("a\n", "str")])
def test_a_file_without_sections(written, content, kind):
    assert refusal(written(content)) == f"config FILE holds {kind}, expected sections of keys; configs/ holds examples"


# ------------------------------------------------------------------------------------------------- differences


def test_differences_name_the_paths_and_both_values():
    first = config(train={"epochs": 3}, model={"weights": None})
    second = config(train={"epochs": 4}, model={"weights": "imagenet"})
    assert differences(first, second) == ["model.weights: None / imagenet", "train.epochs: 3 / 4"]


def test_the_machine_makes_no_difference():
    other = config(machine={"workers": 9, "jobs": 1, "processes": True})
    assert other != config()
    assert differences(config(), other) == []


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of values of another type
@pytest.mark.parametrize(
    "section", [name for name in Config.model_fields if name not in ("name", "data", "predict", "sequence", "machine")]
)
def test_every_other_value_makes_one(section):
    """A field that the comparison forgets would let a run be continued under another setting."""
    base = config()
    for key, value in getattr(base, section):
        part = getattr(base, section).model_copy(update={key: "another" if value is None else [value]})
        changed = base.model_copy(update={section: part})
        assert [line.split(":")[0] for line in differences(base, changed)] == [f"{section}.{key}"]


@pytest.mark.parametrize("section", ["data", "predict", "sequence", "machine"])
def test_where_the_data_are_and_what_works_on_them_makes_no_difference(section):
    base = config()
    for key, value in getattr(base, section):
        part = getattr(base, section).model_copy(update={key: "another" if value is None else [value]})
        assert differences(base, base.model_copy(update={section: part})) == []


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: one\ndata: {sources: a, images: b}\ntrain:\n  epochs: 1\n  epochs: 2\n")
    with pytest.raises(IchError, match="is no YAML: epochs stands twice in one section, line 4"):
        load(path)


def test_an_empty_section_and_a_single_window_are_what_they_look_like(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: one\ndata: {sources: a, images: b}\ntrain:\npreprocess: {windows: bone}\n")
    loaded = load(path)
    assert (loaded.train, loaded.preprocess.windows) == (config().train, ["bone"])


def test_the_data_of_a_config_of_another_kind(tmp_path):
    path = tmp_path / "blend.yaml"
    path.write_text("blend: {runs: [a, b]}\ndata: {sources: a.zip, images: there}\n")
    assert load_data(path).images == Path("there")
    assert load_data(path, ["data.images=elsewhere"]).images == Path("elsewhere")
    with pytest.raises(IchError, match=r"data.imges is no known key; there are sources, split, labels"):
        load_data(path, ["data.imges=elsewhere"])
    path.write_text("blend: {}\n")
    with pytest.raises(IchError, match=r"blend.yaml: data is missing"):
        load_data(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[]", r"tta is \[\]"),
        ("{}", r"tta.0 is {}"),
        ("[none, flip, none]", "none is named twice, and the mean counts each pass once; name it once"),
    ],
)
def test_passes_at_test_time_are_one_or_more(tmp_path, value, said):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\ndata: {sources: a.zip, images: there}\n")
    assert load(path, ["predict.tta=flip"]).predict.tta == ["flip"]
    with pytest.raises(IchError, match=said):
        load(path, [f"predict.tta={value}"])


def test_the_advice_on_text_that_yaml_reads_as_a_number_helps(written):
    for key, text in (("name", "20240101"), ("data.sources", "7"), ("model.weights", "2024-01-01")):
        message = refusal(written(LEAST), f"{key}={text}")
        assert f" is {text}, which YAML reads as " in message
        advised = re.search(r'on a command line --set "(.*)=\'…\'"', message)[1]
        actual = load(written(LEAST), [f"{advised}='{text}'"])
        for part in key.split("."):
            actual = getattr(actual, part)
        assert str(actual[0] if isinstance(actual, list) else actual) == text
