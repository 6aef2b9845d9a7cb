"""The one exception that a user's mistake raises."""


class UserError(ValueError):
    """A mistake of the user's: the text is one line that says what is wrong, where, and the remedy.

    The launch scripts print that line and exit with status 2, without a traceback.
    """
