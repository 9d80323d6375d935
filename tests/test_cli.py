import subprocess
import sys

import pytest

from ich import cli
from ich.errors import IchError


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


def test_what_nobody_foresaw_keeps_its_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main)


def test_overrides_are_collected():
    parser = cli.parser("what it does")
    cli.add_config(parser)
    arguments = parser.parse_args(["a.yaml", "--set", "train.epochs=1", "--set", "name=b"])
    assert arguments.overrides == ["train.epochs=1", "name=b"]
