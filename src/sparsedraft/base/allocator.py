"""The C library's memory."""

import ctypes
from contextlib import suppress


def trim() -> None:
    """Give freed memory back to the system: glibc's malloc keeps much of what lies between pieces that are in use."""
    with suppress(AttributeError, OSError, TypeError):  # other C libraries have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
