import argparse
import os
import random
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_config

from ich import cli
from ich.config import Config
from ich.errors import IchError

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_a_users_mistake_is_a_sentence_and_status_1(capsys):
    def main():
        raise IchError("the folder x does not exist; name another")

    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    assert exit.value.code == "error: the folder x does not exist; name another"  # a string makes it status 1


def test_status_and_stream_as_a_shell_sees_them():
    code = "from ich import cli, errors\ndef main(): raise errors.IchError('found this, expected that')\ncli.run(main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: found this, expected that\n")


def test_ctrl_c_is_status_130(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    assert exit.value.code == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [ImportError("initialization failed"), SystemError(), IchError("a worker was killed")]
)
def test_ctrl_c_that_an_extension_or_a_pool_makes_another_error_of_is_ctrl_c(capsys, error):
    def main():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    assert exit.value.code == 130
    assert capsys.readouterr().err == "stopped; the same command continues\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_ignored_stays_so():
    code = "import os, signal; from ich import cli; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = ended(code + "cli.run(lambda: (os.kill(os.getpid(), signal.SIGINT), print('went on')))")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"went on\n", b"")


INTERRUPTED = """
import os, random, runpy, signal, sys
script, config, at = sys.argv[1:]
sys.argv = [script, config, "--fold", "0"]
count = 0

class Finder:
    def find_spec(name, path=None, target=None):
        global count
        count += "ich.config" in sys.modules  # from where the script begins its work
        if at in (str(count), name):
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize("at", [*random.Random(5).sample(range(1, 600), 3), "tensorflow.python.framework.ops"])
def test_ctrl_c_in_the_middle_of_the_imports_is_status_130(at, data, tmp_path):
    (tmp_path / "c.yaml").write_text(tiny_config(data).resolved())
    done = ended(INTERRUPTED, SCRIPTS / "train.py", "c.yaml", str(at), cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith(b"stopped; the same command continues\n")  # TensorFlow tells of its build before
    assert b"Traceback" not in done.stderr


def test_what_nobody_foresaw_keeps_its_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main)


def ended(code, *arguments, cwd=None, **environment):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, cwd=cwd, env=os.environ | environment)


@pytest.mark.parametrize("script", ["blend", "report", "predict", "make_submission"])
def test_an_argument_in_another_encoding_is_a_sentence(script):
    done = ended(
        "import sys, runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')", SCRIPTS / f"{script}.py", b"r\xe9"
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == rb"error: the name 'r\udce9' is not UTF-8; rename it" + b"\n"


def test_a_name_in_another_encoding_met_on_the_way_is_a_sentence_and_other_text_keeps_its_traceback(capsys):
    def main(text="a" * 500 + "\udce9.png", encoding="utf-8"):
        text.encode(encoding)

    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    assert str(exit.value.code) == rf"error: the name '{'a' * 100}\udce9.png' is not UTF-8; rename it"
    with pytest.raises(UnicodeEncodeError):
        cli.run(lambda: main("é", "ascii"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_shows_escapes(encoding):
    code = "from ich import cli\nimport sys\ncli.run(lambda: (print('→ é \\udce9'), print('…', file=sys.stderr)))"
    done = ended(code, PYTHONIOENCODING=encoding)
    accent = {"ascii": rb"\xe9", "latin-1": b"\xe9"}[encoding]
    assert (done.returncode, done.stdout, done.stderr) == (0, rb"\u2192 " + accent + rb" \udce9" + b"\n", b"\\u2026\n")


def test_a_script_ends_with_what_it_wrote_and_what_comes_next(capsys):
    overrides = ["data.images=a b", "train.epochs=1"]
    cli.wrote("runs/a", cli.command("predict", "runs/a", overrides=overrides), cli.command("report", Path("runs/a")))
    assert capsys.readouterr().out == (
        "wrote: runs/a\nnext:  python scripts/predict.py runs/a --set 'data.images=a b'\n"
        "or:    python scripts/report.py runs/a\n"
    )
    cli.wrote("a.png")
    assert capsys.readouterr().out == "wrote: a.png\n"


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_says_what_it_wrote(path):
    assert re.search(r"\bwrote\(", path.read_text(encoding="utf-8"))


def test_overrides_are_collected():
    parser = cli.parser("what it does")
    cli.add_config(parser, "train")
    arguments = parser.parse_args(["a.yaml", "--set", "train.epochs=1", "--set", "name=b"])
    assert arguments.overrides == ["train.epochs=1", "name=b"]
    assert parser.parse_args(["a.yaml"]).overrides == []


# ------------------------------------------------------------------------------------------- options without effect

FIRST = {"data.sources", "data.split"}
PLACES = {"data.images", "data.folds"}
READERS = {"machine.workers", "machine.processes"}
MACHINE = {"machine.jobs", "machine.backend", "machine.scheduler", *READERS}
OF_TRAINING = {"machine.steps_per_execution", "machine.jit_compile", "machine.distribute", "machine.log_to"}
MACHINE |= OF_TRAINING


# The schema, key by key: a new key belongs in here and, if a script is to take it, in PLACED below and in cli.USES.
KEYS = {
    "name": "",
    "data": "sources split labels sample_submission images folds external",
    "preprocess": "windows size fit crop files",
    "folds": "n seed allow_unmatched",
    "model": "name weights dropout drop_path gem freeze_batch_norm neighbours scan",
    "train": (
        "seed epochs head_epochs init_from batch_size fixed_batches accumulate augment augment_on mixup cutmix "
        "mix_share learning_rate warmup_epochs backbone_rate weight_decay clip_norm loss focal_gamma label_weights "
        "label_smoothing ema_momentum slices_per_series centre_weighted positive_share pseudo pseudo_weight "
        "validate_every keep precision"
    ),
    "predict": "batch_size tta mean",
    "sequence": (
        "kind features align seed seeds width dilations units dropout epochs batch_size max_batches "
        "learning_rate warmup_epochs weight_decay clip_norm label_weights ema window noise shuffle_kinds reach rounds "
        "tree_rate"
    ),
    "machine": "jobs backend scheduler workers processes steps_per_execution jit_compile distribute log_to",
}


def keys_of(*sections):
    """The keys of sections, each with its section's name; of all if none is named."""
    for section in sections or KEYS:
        yield from (f"{section}.{key}" for key in KEYS[section].split()) if KEYS[section] else [section]


SETTINGS = set(keys_of("preprocess", "folds"))
TRAINING = {"name", *PLACES, "data.external", *SETTINGS, *keys_of("model", "train", "predict")}
TRAINING |= MACHINE - {"machine.jobs"}
# What each script's --set takes.
PLACED = {
    "preprocess": {*FIRST, "data.images", *keys_of("preprocess")} | MACHINE - READERS - OF_TRAINING,
    "make_folds": {"data.sources", "data.labels", *PLACES, *SETTINGS},
    "train": TRAINING - {"machine.backend", "machine.scheduler"},
    "train_kfold": TRAINING,
    "predict": {*PLACES, *keys_of("predict"), *READERS, "machine.distribute"},
    "extract_features": {*PLACES, *keys_of("predict"), *READERS, "machine.distribute"},
    "train_sequence": {*PLACES, "folds.n", "folds.seed", *keys_of("sequence")},
    "make_submission": {"data.sources", "data.sample_submission", "data.images"},
}


class Parsed(Exception):
    """Where a script would begin its work."""


def script(name):
    return runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"]


@pytest.fixture
def parse_only(monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, *arguments):
        raise Parsed(parse(parser, *arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


POSITIONAL = {"train": ["a", "--fold", "0"]}


def test_every_key_and_every_script_with_overrides_is_placed():
    schema = {name: list(getattr(field.annotation, "model_fields", ())) for name, field in Config.model_fields.items()}
    assert schema == {section: keys.split() for section, keys in KEYS.items()}
    with_set = {p.stem for p in SCRIPTS.glob("*.py") if re.search(r"cli\.add_(config|run|overrides)\(", p.read_text())}
    assert with_set == set(cli.USES) == set(PLACED)


@pytest.mark.parametrize("stage", sorted(PLACED))
def test_a_key_is_used_or_refused_by_name(stage, parse_only):
    main, every = script(stage), list(keys_of())
    assert PLACED[stage] <= set(every)
    for key in every:
        arguments = [*POSITIONAL.get(stage, ["a"]), "--set", f"{key}=1"]
        if key in PLACED[stage]:
            with pytest.raises(Parsed) as parsed:
                main(arguments)
            assert parsed.value.args[0].overrides == [f"{key}=1"]
        else:
            with pytest.raises(IchError, match=rf"^--set {re.escape(key)} has no effect on {stage}.py, which uses "):
                main(arguments)


def test_a_misspelt_key_and_a_section_that_is_used_in_part_are_refused(parse_only):
    for override in ("dta.images=1", "data={images: a}", "machine=1", "predicted.mean=logit"):
        with pytest.raises(IchError, match=r"has no effect on predict.py, which uses data.images, "):
            script("predict")(["runs/a", f"--set={override}"])
    with pytest.raises(Parsed):
        script("predict")(["runs/a", "--set", "predict={mean: logit}", "--set", " predict.mean = logit"])


@pytest.mark.parametrize(
    ("stage", "arguments", "said"),
    [
        ("make_submission", ["r", "--sample-submission", "s.csv", "--set", "data.sources=x"], "beside --sample-subm"),
        ("make_submission", ["r", "--set", "data.images=x"], "without a policy"),
        ("make_submission", ["r", "--missing", "refuse", "--set", "data.images=x"], "without a policy"),
        ("train_sequence", ["--table", "s.csv", "--set", "data.folds=x"], "with --table"),
        ("train_sequence", ["runs/a", "--set", "folds.n=3"], "without --table"),
    ],
)
def test_an_override_without_effect_beside_another_option_is_refused(stage, arguments, said):
    with pytest.raises(IchError, match=rf"^--set [a-z.]+ has no effect {said}.*; leave it out$"):
        script(stage)(arguments)


def test_failures_are_none_of_a_verification(capsys):
    with pytest.raises(SystemExit):
        script("preprocess")(["a.yaml", "--verify", "--max-failures", "1"])
    assert "--max-failures has no effect beside --verify" in capsys.readouterr().err
