"""The error that a user can mend."""

from collections.abc import Collection
from itertools import islice


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
    shown = ", ".join(str(one) for one in islice(ids, 3))
    return shown if total <= 3 else f"{shown}, … ({total} in all)"
