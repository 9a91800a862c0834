"""Tells transformers of packed folders once it is imported: `import sparsedraft` must not wait for it, or for torch."""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

HOST = "transformers.quantizers.auto"  # where the methods are listed; every way to load a model imports it


def _register() -> None:
    from sparsedraft.native import quantizer

    if register := getattr(
        quantizer, "register", None
    ):  # else it is what imports transformers: it registers at its end
        register()


class Watcher:
    """Lets HOST be found as ever, and registers as soon as its code has run."""

    watches = HOST

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None" = None
    ) -> ModuleSpec | None:
        """None but for HOST."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == HOST else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: "ModuleType") -> None:
                run(module)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register now where transformers is there already, else when it comes; again and again does no harm."""
    if HOST in sys.modules:
        _register()
    elif not any(getattr(finder, "watches", "") == HOST for finder in sys.meta_path):
        sys.meta_path.insert(0, Watcher())
