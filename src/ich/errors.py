"""The error that a user can mend, and how what others say becomes a part of its message."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from math import isnan
from pathlib import Path

_LONGEST = 300  # characters of what a library says


class IchError(Exception):
    """Input that a stage cannot work with.

    The message is a sentence for the user: what was found, what was expected, what to do. Scripts print it and exit
    with status 1; a traceback is for what nobody foresaw.
    """


def name_some(ids: Collection, total: int | None = None) -> str:
    """The first three ids and, if there are more, how many there are in all: for messages that name what is wrong.

    Args:
        ids: anything sized, of which the first three are shown; or those alone, if `total` says how many there are.
    """
    total = len(ids) if total is None else total
    shown = ", ".join(printable(str(one)) for one in islice(ids, 3))
    return shown if total <= 3 else f"{shown}, … ({total} in all)"


def one_line(said: BaseException | str, *, named: bool = False) -> str:
    """What the system or a library says, in one line for a message of ours, which terminals, tables and pages take.

    Of the system's errors it is the reason alone, as the message names the file; of a relative path that does not exist
    also the working directory that it was looked for from. Where the text says nothing by itself
    (there is none, or it is a KeyError's key) the error's type stands with it.

    Args:
        named: put the error's type before what it says, always.

    Returns:
        At most 300 characters: a longer text loses its middle, as its cause stands first (pyarrow's) or last (Keras's).
    """
    text = printable(" ".join(str(getattr(said, "strerror", None) or said).split()))
    if isinstance(said, FileNotFoundError) and said.filename and not Path(said.filename).is_absolute():
        text += f", from the working directory {Path.cwd()}"
    if isinstance(said, BaseException) and (named or not text or isinstance(said, KeyError)):
        text = f"{type(said).__name__}: {text}" if text else type(said).__name__
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2 - 1]} … {text[2 - _LONGEST // 2 :]}"
    return text


def printable(text: str) -> str:
    r"""The text with what cannot be shown or encoded as its escape: \udcff, of a file's name in another encoding."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def not_there(path: Path) -> str:
    """That a path does not exist, where it was looked for and, of a relative one, from which working directory."""
    told = f"{path.absolute()} does not exist"
    return (
        told
        if path.is_absolute()
        else f"{told} ({path} from the working directory {Path.cwd()}: is that the right one?)"
    )


def or_na(value: float, form: str) -> str:
    """A number as `format` writes it; n/a for NaN, a number that does not exist, such as an AUC without positives."""
    return "n/a" if isnan(value) else format(value, form)


@contextmanager
def names_in_utf8() -> Iterator[None]:
    """Within the block, say of a name in another encoding that it is one: pandas, Arrow and HDF5 take text as UTF-8.

    Raises:
        IchError: such a name was met, which Python holds with surrogates in place of its bytes.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            raise
        around = error.object[max(0, error.start - 100) : error.end + 100]
        raise IchError(f"the name '{one_line(around)}' is not UTF-8; rename it") from error
