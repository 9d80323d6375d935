"""IchError, the error for users, and the parts of its messages: names, numbers, errors of the system and libraries."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from math import isnan
from pathlib import Path

_LONGEST = 300  # characters of a library's error


class IchError(Exception):
    """Input that a stage cannot work with.

    The message is a sentence for the user: what was found, what was expected, what to do. Scripts print it and exit
    with status 1; a traceback is for unforeseen errors.
    """


def name_some(ids: Collection, total: int | None = None) -> str:
    """Return the first three ids and, if there are more, their total number, for a message.

    Args:
        ids: all ids; or the first three alone, if `total` is given.
        total: number of all ids; None takes the length of `ids`.
    """
    total = len(ids) if total is None else total
    shown = ", ".join(printable(str(id)) for id in islice(ids, 3))
    return shown if total <= 3 else f"{shown}, … ({total} in all)"


def one_line(error: BaseException | str, *, named: bool = False) -> str:
    """Return an error of the system or a library as one printable line, for a message of ours.

    An error of the system gives its reason alone, as the message names the file; for a relative path that does not
    exist the working directory is added. An error without text, or a KeyError, whose text is only the key, gets its
    type before it.

    Args:
        named: always put the error's type before its text.

    Returns:
        At most 300 characters: a longer text loses its middle, as its cause stands first (pyarrow's) or last (Keras's).
    """
    text = printable(" ".join(str(getattr(error, "strerror", None) or error).split()))
    if isinstance(error, FileNotFoundError) and error.filename and not Path(error.filename).is_absolute():
        text += f", from the working directory {Path.cwd()}"
    if isinstance(error, BaseException) and (named or not text or isinstance(error, KeyError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2 - 1]} … {text[2 - _LONGEST // 2 :]}"
    return text


def printable(text: str) -> str:
    r"""Return the text with escapes for unprintable characters, such as \udcff in a file name of another encoding."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def not_there(path: Path) -> str:
    """Return the sentence that a path does not exist; a relative one with the working directory."""
    absolute = f"{path.absolute()} does not exist"
    if path.is_absolute():
        return absolute
    return f"{absolute} ({path} from the working directory {Path.cwd()}: is that the right one?)"


def or_na(value: float, form: str) -> str:
    """Return a number as `format` writes it; n/a for NaN, such as an AUC without positives."""
    return "n/a" if isnan(value) else format(value, form)


@contextmanager
def names_in_utf8() -> Iterator[None]:
    """Within the block, raise IchError for a name that is not UTF-8, as pandas, Arrow and HDF5 require.

    Raises:
        IchError: text holds surrogates, by which Python represents bytes that are not UTF-8.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            raise
        around = error.object[max(0, error.start - 100) : error.end + 100]
        raise IchError(f"the name '{one_line(around)}' is not UTF-8; rename it") from error
