"""The threads of the OpenMP library that this process computes with.

torch's threads wait for work by turning in circles, for milliseconds with GNU's library and 200 with Intel's, and vLLM
binds each to a core. Threads of our own beside them would wait for their cores; so our kernels run on theirs.
"""

import ctypes
from pathlib import Path

NAMES = ("libiomp5", "libomp", "libgomp")


def team() -> int:
    """The address of the GOMP_parallel that torch calls; 0 where there is none, as outside of Linux.

    A preloaded library comes before the one that torch brings: so the linker decides, too.
    """
    try:
        return _address(ctypes.CDLL(None))
    except (AttributeError, OSError):
        pass
    for file in _loaded():
        try:
            return _address(ctypes.CDLL(file))
        except (AttributeError, OSError):
            continue
    return 0


def _address(library: ctypes.CDLL) -> int:
    return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0


def _loaded() -> list[str]:
    """The OpenMP libraries that this process has loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    files = {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6}
    return sorted(file for file in files if Path(file).name.startswith(NAMES))
