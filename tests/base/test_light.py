"""The lowest layer is light: the command line imports it before it knows whether it will need torch at all."""

import pkgutil
import subprocess
import sys

from sparsedraft import base


def test_base_imports_neither_torch_nor_transformers() -> None:
    """All of it but `processes`, which is about torch's own."""
    names = [module.name for module in pkgutil.iter_modules(base.__path__) if module.name != "processes"]
    assert {"artifact", "console", "hashing", "jsonfiles"} <= {*names}
    code = "\n".join([
        "import importlib, sys",
        *(f"importlib.import_module('sparsedraft.base.{name}')" for name in names),
        "print(*sorted({'torch', 'transformers', 'accelerate', 'datasets', 'pyarrow', 'numpy'} & sys.modules.keys()))",
    ])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
