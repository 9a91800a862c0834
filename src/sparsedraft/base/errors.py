"""The one exception that means "the user can mend this", and what other errors say in one line."""


class UserError(Exception):
    """A mistake in what the user gave: its message is one sentence that names the field, the value and the mend.

    The command line prints it without a traceback and exits with code 2.
    """


class Unsupported(UserError):
    """What the native engine does not run, though transformers may: `--runtime auto` takes transformers then."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing. A line that ends with a colon is not yet one."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
