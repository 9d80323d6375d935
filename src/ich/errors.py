"""The error that a user can mend."""


class IchError(Exception):
    """Input that a stage cannot work with.

    The message is a sentence for the user: what was found, what was expected, what to do. Scripts print it and exit
    with status 1; a traceback is for what nobody foresaw.
    """
