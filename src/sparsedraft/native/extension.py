"""The compiled extension, where it could be built."""

import os
from functools import cache
from typing import Any

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError


@cache
def _module() -> tuple[Any, str]:
    try:
        from sparsedraft.native import _native  # type: ignore[attr-defined]
    except ImportError as error:
        return None, str(error)
    return _native, ""


def is_built() -> bool:
    """Whether the extension can be used."""
    return _module()[0] is not None


def available() -> bool:
    """Whether the extension can be used; tells the user once what is missing where it cannot."""
    module, why = _module()
    if module is None:
        _say_once(
            f"the native runtime was not built ({why}): transformers runs in its place. Install a C++20 compiler and "
            "sparsedraft again to have it."
        )
    return module is not None


@cache
def _say_once(text: str) -> None:
    console.print(text)


def extension() -> Any:
    """The compiled module; UserError where there is none."""
    module, why = _module()
    if module is None:
        raise UserError(
            f"the native runtime was not built ({why}): give --runtime transformers, or install a C++20 compiler "
            "and sparsedraft again."
        )
    return module


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool(threads: int) -> Any:
    """A pool of `threads` threads, but no more than there are cores: the others would only get in their way.

    UserError where the system does not start so many.
    """
    try:
        return extension().Pool(min(threads, cores()))
    except RuntimeError as error:
        raise UserError(f"{threads} threads cannot be started ({error}): set OMP_NUM_THREADS to fewer.") from None


def fastest() -> str:
    """The fastest set of kernels that this CPU runs: amx, avx512, avx2, neon or portable (where none were built)."""
    module, _ = _module()
    return "portable" if module is None else module.kernels()
