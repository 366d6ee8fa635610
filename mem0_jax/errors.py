"""The error a person can fix: the command line prints it in one line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input from outside the program (a file, a flag, a configuration).

    The message names the thing that is wrong, what was expected, and how to fix it. Modules derive their own class from
    this one; the command line prints the message of any of them and exits with code 1.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'demo'?"`` for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
