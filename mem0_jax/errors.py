"""The error a person can fix: the command line prints it in one line, without a traceback."""


class UserError(Exception):
    """Bad input from outside the program (a file, a flag, a configuration).

    The message names the thing that is wrong, what was expected, and how to fix it. Modules derive their own class from
    this one; the command line prints the message of any of them and exits with code 1.
    """
