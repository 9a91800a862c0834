"""The one exception that means "the user can mend this", and the message of any other error in one line."""


class UserError(Exception):
    """A mistake in what the user gave: its message is one sentence that names the field, the value and the mend.

    The command line prints it without a traceback and exits with code 2.
    """


class Unsupported(UserError):
    """The native engine does not run this model, but transformers may: `--runtime auto` takes transformers then."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where the message is empty.

    A line that ends with a colon only announces the next, so that one is added.
    """
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
