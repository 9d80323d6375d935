"""What is written down of the commands, and what comes of giving them again: tests/test_end_to_end.py."""

import json
from pathlib import Path

import pytest

from ich.errors import IchError
from ich.results import commands


def given(folder, stage, *argv, content=None, made_of=(), wrote=None):
    """A command that leaves a file with this content, or nothing new."""
    work = commands.Work(folder, "*.txt", made_of=made_of)
    if content is not None:
        (folder / "out.txt").write_text(content)
    work.done(stage, argv, wrote)


def lines(*folders):
    return [record["command"].removeprefix("python scripts/") for record in commands.read(*folders)]


def test_a_command_that_did_something_is_written_down_as_it_was_given(tmp_path):
    given(tmp_path, "predict", "runs/my run", "--set", "predict.tta=[none, flip]", content="a")
    given(tmp_path, "predict", "runs/my run", content="a")
    (record,) = commands.read(tmp_path)
    assert record["command"] == "python scripts/predict.py 'runs/my run' --set 'predict.tta=[none, flip]'"
    assert (record["stage"], record["time"][-6:]) == ("predict", "+00:00")


def test_none_is_what_the_process_was_given(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/home/me/scripts/train.py", "a.yaml", "--fold", "0"])
    assert commands.as_shell_line("train", None) == "python scripts/train.py a.yaml --fold 0"


def test_a_prediction_stands_as_often_as_it_was_made_and_a_training_where_it_was_first(tmp_path):
    for content, arguments in enumerate([["train_kfold", "a"], ["predict", "r"], ["predict", "r", "--set", "x=1"]]):
        given(tmp_path, *arguments, content=str(content))
    given(tmp_path, "predict", "r", content="back")
    given(tmp_path, "train_kfold", "a", content="a fold anew")
    given(tmp_path, "predict", "r", content="of the new fold")
    assert lines(tmp_path) == ["train_kfold.py a", "predict.py r", "predict.py r --set x=1", *["predict.py r"] * 2]
    given(tmp_path, "predict", "r", content="again")
    assert lines(tmp_path) == ["train_kfold.py a", "predict.py r", "predict.py r --set x=1", *["predict.py r"] * 2]


def test_commands_of_several_results_are_in_the_order_of_time(tmp_path):
    """A replay must extract features and train a second stage on the passes that these had read."""
    run, stage = tmp_path / "run", tmp_path / "stage"
    run.mkdir()
    stage.mkdir()
    given(run, "predict", "run", "--set", "tta=flip", content="1")
    given(run, "extract_features", "run", content="2")
    given(stage, "train_sequence", "run", content="1", made_of=commands.read(run))
    given(run, "predict", "run", "--set", "tta=none", content="3")
    given(run, "predict", "run", "--set", "tta=flip", content="4")
    expected = ["predict.py run --set tta=flip", "extract_features.py run", "train_sequence.py run"]
    expected += ["predict.py run --set tta=none", "predict.py run --set tta=flip"]
    assert lines(run, stage) == lines(stage, run) == expected
    assert lines(run) == [expected[0], expected[1], expected[3], expected[4]]


def test_what_it_was_made_of_stands_before_it_as_it_was_then(tmp_path):
    images, run, stage = (tmp_path / name for name in ("images", "run", "stage"))
    for folder in (images, run, stage):
        folder.mkdir()
    given(images, "preprocess", "a.yaml", content="1")
    given(images, "make_folds", "a.yaml", wrote=images / "folds.csv")
    given(run, "train_kfold", "a.yaml", content="1", made_of=commands.read(images))
    given(images, "preprocess", "b.yaml", content="2")
    given(run, "predict", "run", content="2", made_of=commands.read(images))
    given(stage, "train_sequence", "run", content="1", made_of=commands.read(run))
    given(run, "predict", "run", "--set", "x=1", content="3", made_of=commands.read(images))
    before = ["preprocess.py a.yaml", "make_folds.py a.yaml", "train_kfold.py a.yaml", "preprocess.py b.yaml"]
    assert lines(run) == [*before, "predict.py run", "predict.py run --set x=1"]
    assert lines(stage) == [*before, "predict.py run", "train_sequence.py run"]  # which has not seen the last
    assert lines(run, stage, tmp_path) == [
        *before,
        "predict.py run",
        "train_sequence.py run",
        "predict.py run --set x=1",
    ]


def test_folds_of_two_folders_of_images_have_one_name_and_both_count(tmp_path):
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
        given(tmp_path / name, "make_folds", f"{name}.yaml", wrote=tmp_path / name / "folds.csv")
    assert lines(tmp_path / "small", tmp_path / "large") == ["make_folds.py small.yaml", "make_folds.py large.yaml"]


def test_of_several_files_of_folds_a_runs_own_counts_and_of_one_made_anew_the_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = Path("images")
    images.mkdir()
    given(images, "preprocess", "a.yaml", content="1")
    given(images, "make_folds", "a.yaml", wrote=images / "folds.csv")
    given(images, "make_folds", "a.yaml", "--set", "data.folds=ten.csv", wrote=Path("ten.csv"))
    given(images, "make_folds", "a.yaml", "--set", "folds.seed=1", wrote=images / "folds.csv")
    of_run = [
        record["command"].partition("make_folds.py ")[2] for record in commands.of_images(images, Path("ten.csv"))
    ]
    assert of_run == ["", "a.yaml --set data.folds=ten.csv"]
    of_run = [
        record["command"].partition("make_folds.py ")[2] for record in commands.of_images(images, images / "folds.csv")
    ]
    assert of_run == ["", "a.yaml --set folds.seed=1"]
    monkeypatch.chdir(images)  # the record tells the same from any working directory
    own = commands.of_images(tmp_path / images, tmp_path / images / "folds.csv")
    assert [record["command"].partition("make_folds.py ")[2] for record in own] == of_run


@pytest.mark.parametrize("text", ["{", "[]", '{"command": "a"}', '{"command": "a", "made_of": 3}'])
def test_a_damaged_file_is_reported(tmp_path, text):
    (tmp_path / commands.FILE).write_text(json.dumps({"command": "a", "made_of": []}) + f"\n{text}\n")
    with pytest.raises(
        IchError, match=r"commands.jsonl, which lists the commands that made a result, is damaged; restore it, or"
    ):
        commands.read(tmp_path)


def test_a_record_that_cannot_be_written_is_a_warning_as_the_work_is_done(tmp_path, capsys):
    (tmp_path / commands.FILE).mkdir()
    given(tmp_path, "predict", "a", content="1")
    assert capsys.readouterr().err.startswith("warning: the command is not recorded: cannot write ")
