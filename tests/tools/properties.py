"""Every property that a test checks: the first sentence of its file, and the test's name as words.

python tests/tools/properties.py                   # all of them
python tests/tools/properties.py --since COMMIT    # those that went and those that came since then
"""

import argparse
import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def sources(commit: str | None) -> Iterator[tuple[str, str]]:
    """(name, text) of every test file, as it is or as it was at `commit`."""
    if commit is None:
        yield from ((str(f.relative_to(ROOT)), f.read_text()) for f in sorted((ROOT / "tests").rglob("test_*.py")))
        return
    for name in git("ls-tree", "-r", "--name-only", commit, "tests").splitlines():
        if name.rpartition("/")[2].startswith("test_") and name.endswith(".py"):
            yield name, git("show", f"{commit}:{name}")


def properties(commit: str | None) -> dict[str, tuple[str, str]]:
    """(file, its first sentence) by test; tests of one name are told apart by their files' names."""
    found: dict[str, tuple[str, str]] = {}
    for file, text in sources(commit):
        tree = ast.parse(text)
        said = (ast.get_docstring(tree) or "").partition("\n\n")[0].replace("\n", " ")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                name = node.name.removeprefix("test_").replace("_", " ")
                found[name if name not in found else f"{name} ({file})"] = file, said
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", help="a commit to compare with")
    since, now = parser.parse_args().since, properties(None)
    if since is None:
        file = ""
        for name, (where, said) in now.items():
            if where != file:
                print(f"\n{where}: {said}")
                file = where
            print(f"    {name}")
        print(f"\n{len(now)} properties")
        return
    before = properties(since)
    for title, names, other in (("gone", before, now), ("new", now, before)):
        for name, (file, _) in names.items():
            if name not in other:
                print(f"{title}  {file}: {name}")
    print(f"{len(before)} properties before, {len(now)} now")


if __name__ == "__main__":
    main()
