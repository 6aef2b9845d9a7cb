"""The two exceptions that end a run without a traceback, and the exit statuses beside 0 and 1."""

USER_ERROR = 2  # a user's mistake, told in one line
STALLED = 70  # no progress for train.stall_abort_seconds
STOPPED = 75  # stopped on request; the same command goes on
INTERRUPTED = 130  # a second SIGINT: left at once


class UserError(ValueError):
    """A mistake of the user's: the text is one line that says what is wrong, where, and the remedy.

    The launch scripts print that line and exit with status 2, without a traceback.
    """


class Stopped(Exception):
    """A run was asked to stop, has saved what it had, and has said so.

    The launch scripts exit with status 75, which schedulers take as "try again".
    """
