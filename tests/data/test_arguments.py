import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import inspect
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ich.data import arguments
from ich.data.generator import DataGenerator
from ich.errors import IchError

FRAME = pd.DataFrame({"filename": ["a.png"], "class": ["x"]})
CALLS = {
    "the constructor": lambda **given: DataGenerator(["a"], **given),
    "a frame": lambda **given: DataGenerator.from_dataframe(FRAME, **given),
    "a folder": lambda **given: DataGenerator.from_directory("photos", **given),
    "nothing": lambda **given: DataGenerator(**given),
    "no frame": lambda **given: DataGenerator.from_dataframe(**given),
    "no folder": lambda **given: DataGenerator.from_directory(**given),
}
KNOWN = {
    name
    for method in (DataGenerator.__init__, DataGenerator.from_dataframe, DataGenerator.from_directory)
    for name in inspect.signature(method).parameters
} | {"workers", "use_multiprocessing", "max_queue_size"}


@pytest.mark.parametrize("call", CALLS)
def test_arguments_that_others_have_are_answered_with_todays(call):
    for name, instead in arguments.INSTEAD.items():
        with pytest.raises(IchError, match=re.escape(f"{name} is not an argument here; write {instead}")):
            CALLS[call](**{name: None})


@pytest.mark.parametrize("call", CALLS)
def test_any_other_is_answered_by_those_that_there_are(call):
    with pytest.raises(IchError, match="there is no argument colour, sise; those that there are: ") as raised:
        CALLS[call](colour=1, sise=2)
    listed = set(str(raised.value).partition("are: ")[2].split(", "))
    assert listed <= KNOWN
    assert {"shuffle", "augment", "workers", "use_multiprocessing"} <= listed
    assert ("class_mode" in listed) == ("frame" in call or "folder" in call)


def test_what_is_advised_exists():
    assert not set(arguments.INSTEAD) & KNOWN
    for instead in {*arguments.INSTEAD.values(), *arguments.CLASS_MODES.values()}:
        advised = set(re.findall(r"\b([a-z_]+)=", instead.partition("A.Compose")[0])) - {"class_weight"}
        assert advised <= KNOWN, instead


def test_every_argument_of_the_legacy_generators_is_known_or_answered():
    tf = pytest.importorskip("tensorflow")
    legacy = getattr(tf.keras.preprocessing.image, "ImageDataGenerator", None)
    if legacy is None:
        pytest.skip("this Keras has dropped it")
    for method in (legacy.__init__, legacy.flow_from_directory, legacy.flow_from_dataframe):
        theirs = set(inspect.signature(method).parameters) - {"self", "kwargs"}
        assert theirs <= KNOWN | set(arguments.INSTEAD)


class Own(DataGenerator):
    """A user's, with an argument more."""

    def __init__(self, *args, sharpen=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.sharpen = sharpen


def test_a_class_derived_from_it_may_have_arguments_of_its_own():
    dataset = Own.from_dataframe(FRAME, reader=np.load, sharpen=True, workers=2, shuffle=False)
    assert dataset.sharpen
    assert dataset.workers == 2
    with pytest.raises(IchError, match=r"there is no argument blur; those that there are: .*sharpen"):
        Own.from_dataframe(FRAME, reader=np.load, blur=True)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'ids'"):
        DataGenerator()


def test_warnings_stand_at_the_line_that_gave_the_cause(tmp_path):
    for name in ("x/a.png", "empty/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    options = {"image_dir": tmp_path / "x", "on_error": "skip", "shuffle": True}
    lines, first = inspect.getsourcelines(test_warnings_stand_at_the_line_that_gave_the_cause)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        DataGenerator(["a", "b"], {"a": 0, "b": 1}, **options)  # 1
        Own(["a", "b"], {"a": 0, "b": 1}, **options)
        DataGenerator.from_dataframe(FRAME, classes=["x", "y"], **options)  # 1
        DataGenerator.from_directory(tmp_path)  # 2
    counted = Counter((Path(warning.filename).name, warning.lineno) for warning in raised)
    for offset, line in enumerate(lines):
        if re.search(r"# \d$", line):
            assert counted.pop(("test_arguments.py", first + offset)) == int(line.strip()[-1])
    _, of_own = inspect.getsourcelines(Own.__init__)
    assert counted == {("test_arguments.py", of_own + 1): 1}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("labeled", [False, True])
def test_names_that_are_not_utf8_are_reported(labeled, tmp_path):
    name = os.fsdecode(b"d\xe9mo")
    labels = pd.DataFrame({"any": [1.0]}, index=["a"]) if labeled else None
    frame = pd.DataFrame({"filename": ["a.png"], "class": pd.Series([name], dtype=object)})
    (tmp_path / name).mkdir()
    (tmp_path / "b").mkdir()
    for image in ("a.png", "b/a.png"):
        (tmp_path / image).write_bytes(b"")
    for build in (
        lambda: DataGenerator([name, "a"], labels, image_dir=tmp_path),
        lambda: DataGenerator.from_dataframe(frame, class_mode="categorical", image_dir=tmp_path),
        lambda: DataGenerator.from_directory(tmp_path, class_mode="categorical"),
    ):
        with pytest.raises(IchError, match=r"the name 'd\\udce9mo' is not UTF-8; rename it"):
            build()
