"""The house rules that no linter checks: sizes of functions and files, names that stay in their module, no back doors.

import-linter sees every `import` statement (`make check`); what it cannot see is looked for here.
"""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "tests", "benchmarks", "studies", "docs")
LINES_OF_FUNCTION, PARAMETERS, LINES_OF_FILE = 60, 8, 400
LOADERS = {"import_module", "__import__", "find_spec", "run_module", "exec", "eval"}  # import by a name in a string

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees(folder: str) -> list[tuple[str, ast.Module]]:
    """(path, syntax tree) of every Python file."""
    files = sorted((ROOT / folder).rglob("*.py"))
    return [(str(file.relative_to(ROOT)), ast.parse(file.read_text(encoding="utf-8"))) for file in files]


def long_functions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, Function) and (lines := (node.end_lineno or 0) - node.lineno + 1) > LINES_OF_FUNCTION:
            yield f"{node.name} has {lines} lines"


def wide_functions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            a = node.args
            named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            count = len(named) - (named[:1] != [] and named[0].arg in ("self", "cls"))
            if count > PARAMETERS:
                yield f"{node.name} takes {count} parameters"


def names_of_others(tree: ast.Module) -> Iterator[str]:
    """Names with an underscore that belong to another module of the package."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sparsedraft":
            modules |= {alias.asname or alias.name for alias in node.names}
            # the compiled extension is called so as extensions are
            yield from (f"imports {a.name}" for a in node.names if a.name.startswith("_") and a.name != "_native")
    for node in ast.walk(tree):
        owner = getattr(node, "value", None)
        if isinstance(node, ast.Attribute) and isinstance(owner, ast.Name) and owner.id in modules:
            yield from (f"takes {owner.id}.{name}" for name in (node.attr,) if name[:1] == "_" != name[1:2])


def back_doors(tree: ast.Module) -> Iterator[str]:
    """Imports that import-linter does not see: by a name in a string, or of all layers by the package's own names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in LOADERS - {"exec", "eval"} or (isinstance(node.func, ast.Name) and name in LOADERS):
                yield f"calls {name}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.modules":
            yield "reads sys.modules"
        if isinstance(node, ast.Import) and any(alias.name == "sparsedraft" for alias in node.names):
            yield "imports the whole package"
        if isinstance(node, ast.ImportFrom) and (node.module == "sparsedraft" or node.level):
            yield f"imports {', '.join(alias.name for alias in node.names)} from the package itself"


def breaches(rule: Callable[[ast.Module], Iterator[str]], *folders: str) -> list[str]:
    return [f"{path}: {fault}" for folder in folders for path, tree in trees(folder) for fault in rule(tree)]


def test_functions_are_short_and_take_few_parameters() -> None:
    assert breaches(long_functions, *FOLDERS) == []
    assert breaches(wide_functions, *FOLDERS) == []


def test_files_are_short() -> None:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    assert [str(file) for file in files if len(file.read_text(encoding="utf-8").splitlines()) > LINES_OF_FILE] == []


def test_private_names_stay_in_their_module() -> None:
    assert breaches(names_of_others, "src") == []


def test_no_import_gets_round_the_layers() -> None:
    assert breaches(back_doors, "src") == []


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (long_functions, "def f():\n" + "    pass\n" * 60),
        (wide_functions, "def f(a, b, c, d, e, f, g, *, h, **i): ..."),
        (wide_functions, "class A:\n    def f(self, a, b, c, d, e, f, g, h, i): ..."),
        (names_of_others, "from sparsedraft.base.places import _free"),
        (names_of_others, "from sparsedraft.base import places\nplaces._free()"),
        (back_doors, "import importlib\nimportlib.import_module('sparsedraft.cli')"),
        (back_doors, "__import__('sparsedraft.cli')"),
        (back_doors, "exec('import sparsedraft.cli')"),
        (back_doors, "import sys\nsys.modules['sparsedraft.cli']"),
        (back_doors, "import sparsedraft\nsparsedraft.generate()"),
        (back_doors, "def f():\n    from sparsedraft import generate"),
    ],
)
def test_each_rule_sees_a_breach(rule: Callable[[ast.Module], Iterator[str]], code: str) -> None:
    assert [*rule(ast.parse(code))]


@pytest.mark.parametrize("code", ["model.eval()", "def f(self, a, b, c, d, e, f, g, h): ...", "self._own = 1"])
def test_what_is_allowed_is_none(code: str) -> None:
    rules = (long_functions, wide_functions, names_of_others, back_doors)
    assert not [fault for rule in rules for fault in rule(ast.parse(code))]
