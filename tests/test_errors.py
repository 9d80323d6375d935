import ast
import errno
import zipfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ich.errors import name_some, not_there, one_line, or_na, printable

ROOT = Path(__file__).parent.parent


def test_ids_are_named_three_at_most():
    assert name_some(["a", "b", "c"]) == "a, b, c"
    assert name_some(["a", "b", "c", "d"]) == "a, b, c, … (4 in all)"
    assert name_some(["a", "b", "c"], total=9) == "a, b, c, … (9 in all)"


@pytest.mark.parametrize(
    ("error", "plain", "named"),
    [
        (
            OSError(errno.ENOENT, "No such file or directory", "/a.csv"),
            "No such file or directory",
            "FileNotFoundError: ",
        ),
        (
            OSError("unable to open file\n(signature not found)"),
            "unable to open file (signature not found)",
            "OSError: ",
        ),
        (ValueError("one\n\n  two\tthree\n"), "one two three", "ValueError: "),
        (KeyError("size"), "KeyError: 'size'", ""),
        (EOFError(), "EOFError", ""),
        (zipfile.BadZipFile("Bad CRC-32 for file 'a'"), "Bad CRC-32 for file 'a'", "BadZipFile: "),
        (ValueError("no class '\udcff' in \x1b[31m"), r"no class '\udcff' in \x1b[31m", "ValueError: "),
        ("pip:\n  no", "pip: no", ""),
    ],
)
def test_what_others_say_is_one_line(error, plain, named):
    assert one_line(error) == plain
    assert one_line(error, named=True) == named + plain


def test_of_a_long_text_both_ends_stay():
    text = one_line(ValueError("<class 'Dense'> could not be read\n\nconfig={" + "x" * 5000 + "}\n\nbecause of units"))
    assert len(text) == 300
    assert text.startswith("<class 'Dense'> could not be read config={xx")
    assert text.endswith("xx} because of units")
    assert " … " in text


@given(st.text(st.characters()), st.booleans())
def test_whatever_is_said_is_a_line_that_can_be_encoded(text, named):
    line = one_line(ValueError(text), named=named)
    assert line
    assert len(line) <= 300
    assert line.isprintable()
    line.encode("utf-8")
    assert printable(line) == line


def test_a_yaml_error_keeps_its_place():
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.safe_load("a: b: c")
    assert "\n" in str(caught.value)
    assert one_line(caught.value).startswith("mapping values are not allowed here in")
    assert "line 1, column 5" in one_line(caught.value)


def of_others(handler):
    """Whether it catches errors that are not ours."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {getattr(kind, "attr", getattr(kind, "id", "")) for kind in kinds} - {"IchError", "DicomError"}


@pytest.mark.parametrize(
    "path", sorted((*ROOT.glob("src/ich/**/*.py"), *ROOT.glob("scripts/*.py"))), ids=lambda p: p.stem
)
def test_no_message_of_ours_has_what_a_library_says_as_it_is(path):
    raw = [
        f"{path.name}:{node.lineno}"
        for handler in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(handler, ast.ExceptHandler) and handler.name and of_others(handler)
        for text in ast.walk(handler)
        if isinstance(text, ast.FormattedValue) and getattr(getattr(text.value, "func", None), "id", "") != "one_line"
        for node in ast.walk(text.value)
        if isinstance(node, ast.Name) and node.id == handler.name
    ]
    assert not raw, "put it through errors.one_line"


def test_what_does_not_exist_is_n_a():
    assert or_na(0.5, ".2%") == "50.00%"
    assert or_na(float("nan"), ".2%") == "n/a"


def test_of_a_relative_path_it_is_reported_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not_there(Path("a/b")) == (
        f"{tmp_path}/a/b does not exist (a/b from the working directory {tmp_path}: is that the right one?)"
    )
    assert not_there(Path("/none")) == "/none does not exist"
    error = OSError(errno.ENOENT, "No such file or directory", "a.csv")
    assert one_line(error) == f"No such file or directory, from the working directory {tmp_path}"
