"""Tasks with human-written answers that every Python brings: write a function of the standard library from its
docstring (the answer is its source), and explain a topic of the language reference (the answer is its beginning).

    python benchmarks/reference_tasks.py FILE.jsonl [--limit N] [--longest CHARACTERS]

Rows hold `id`, `category`, `instruction` and `output`, mixed by the SHA-256 of their ids: same Python, same file.
"""

import argparse
import ast
import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

LINES = range(4, 26)  # of a function, docstring left out
CHARACTERS = 700  # of an explanation, up to the end of its paragraph
TOPIC_SHARE = 3  # every so many-th row is an explanation, as long as there are any


def functions() -> Iterator[dict[str, str]]:
    """The documented top-level functions and methods of the standard library's own modules."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.glob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        for node in ast.walk(ast.parse(text)):
            doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if not isinstance(node, ast.FunctionDef) or not doc or len(doc) < 60 or node.name.startswith("_"):
                continue
            body = node.body[1:]  # without the docstring, which is the task
            source = ast.get_source_segment(text, node) or ""
            signature = source[: source.find(":\n")].removeprefix("def ")
            if not body or (body[-1].end_lineno or 0) - body[0].lineno + 1 not in LINES or "\n" in signature:
                continue
            written = "\n".join(text.split("\n")[body[0].lineno - 1 : body[-1].end_lineno])
            indent = " " * node.col_offset
            code = "\n".join(line.removeprefix(indent) for line in written.split("\n"))
            yield {
                "id": f"{file.stem}.{node.name}.{node.lineno}",
                "category": "coding",
                "instruction": f"Write the Python function `{signature}`.\n\n{doc}",
                "output": f"```python\ndef {signature}:\n{code}\n```",
            }


def explanations() -> Iterator[dict[str, str]]:
    """The topics of the language reference, cut at the end of a paragraph."""
    for name, text in sorted(topics.items()):
        title, _, rest = text.strip().partition("\n")
        rest = re.sub(r"^[*=\-]+\n+", "", rest.strip())
        cut = rest.rfind("\n\n", 0, CHARACTERS)
        if cut > 150:
            yield {
                "id": f"topic.{name}",
                "category": "explaining",
                "instruction": f"Explain what the reference of the Python language says on: {title.strip()}",
                "output": rest[:cut].strip(),
            }


def rows(longest: int | None = None) -> list[dict[str, str]]:
    """All tasks of at most `longest` characters, mixed in a fixed order; an explanation after every two functions."""

    def mixed(found: Iterator[dict[str, str]]) -> list[dict[str, str]]:
        short = (row for row in found if longest is None or len(row["instruction"]) <= longest)
        return sorted(short, key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())

    code, text = mixed(functions()), mixed(explanations())
    both: list[dict[str, str]] = []
    while code or text:
        both.append(text.pop() if text and (len(both) % TOPIC_SHARE == TOPIC_SHARE - 1 or not code) else code.pop())
    return both


def write(file: Path, limit: int | None = None, longest: int | None = None) -> Path:
    """Write the first `limit` tasks (of at most `longest` characters) as JSON lines; return `file`."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(longest)[:limit]))
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--longest", type=int, help="of the tasks, in characters")
    chosen = parser.parse_args()
    write(chosen.file, chosen.limit, chosen.longest)
