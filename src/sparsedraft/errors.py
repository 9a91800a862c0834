"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in what the user gave: its message is one sentence that names the field, the value and the mend.

    The command line prints it without a traceback and exits with code 2.
    """
