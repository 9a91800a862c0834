"""Tasks with human-written answers that a Python environment brings: write a function of the standard library from its
docstring (the answer is its source), explain a topic of the language reference (the answer is its beginning), say what
an installed package is for from its README (the answer is its summary), and translate Django's messages to English.

    python studies/reference_tasks.py FILE.jsonl [--limit N] [--longest CHARACTERS] [--kinds coding,explaining,...]

Rows hold `id`, `category`, `instruction` and `output`; the kinds take turns, each by the SHA-256 of its ids:
same Python and same packages, same file. Django's wheel is downloaded by pip for its translations and not installed.
"""

import argparse
import ast
import hashlib
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from pydoc_data.topics import topics

LINES = range(4, 26)  # of a function, docstring left out
CHARACTERS = 700  # of an explanation, up to the end of its paragraph
MARKUP = (  # of READMEs: images, then links around them, tags, addresses, directives and their fields, lines of rules
    r"!\[[^\]]*\]\([^)]*\)", r"\[[^\]]*\]\([^)]*\)", r"<[^>]*>", r"https?://\S+", r"\.\. .*", r"(?m)^\s*:\w+:.*$",
    r"(?m)^[^\w\n]*$",
)  # fmt: skip
README = 800  # characters of a package's own description
DJANGO = "django==5.2.8"
LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "nl": "Dutch", "it": "Italian"}
MESSAGE = re.compile(r'(?m)^msgid ((?:".*"\n)+)msgstr ((?:".*"\n)+)')


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


def summaries() -> Iterator[dict[str, str]]:
    """Installed packages: the beginning of the README is the task, the summary line in the metadata the answer."""
    for package in metadata.distributions():
        about = package.metadata
        summary, text = about["Summary"] or "", about["Description"]
        text = str(text)
        for markup in MARKUP:
            text = re.sub(markup, "", text)
        text = re.sub(r"\n\s*\n+", "\n\n", text).strip()[:README]
        if len(text) > README // 2 and 20 < len(summary) < 200:
            yield {
                "id": f"package.{about['Name']}",
                "category": "summarising",
                "instruction": f"Summarise in one sentence what this package is for.\n\n{text}",
                "output": summary.rstrip(".") + ".",
            }


def translations() -> Iterator[dict[str, str]]:
    """Messages of Django in other languages, with the English that they were translated from."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, DJANGO]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for code, language in LANGUAGES.items():
                seen: set[str] = set()
                for name in archive.namelist():
                    if not name.endswith(".po") or f"/locale/{code}/" not in name:
                        continue
                    for english, other in MESSAGE.findall(archive.read(name).decode()):
                        english, other = ("".join(re.findall(r'"(.*)"', part)) for part in (english, other))
                        if len(english) < 40 or not other or "%" in english or "\\" in english or english in seen:
                            continue
                        seen.add(english)
                        yield {
                            "id": f"message.{code}.{hashlib.sha256(english.encode()).hexdigest()[:12]}",
                            "category": "translation",
                            "instruction": f"Translate {language} to English: {other}",
                            "output": english,
                        }


KINDS: dict[str, Callable[[], Iterator[dict[str, str]]]] = {
    "coding": functions,
    "explaining": explanations,
    "summarising": summaries,
    "translation": translations,
}


def rows(kinds: Sequence[str], longest: int | None = None) -> list[dict[str, str]]:
    """All tasks of these kinds of at most `longest` characters; the kinds take turns as long as they last."""
    piles = [
        sorted(
            (row for row in KINDS[kind]() if longest is None or len(row["instruction"]) <= longest),
            key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest(),
        )
        for kind in kinds
    ]
    return [row for turn in zip_longest(*piles) for row in turn if row is not None]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--longest", type=int, help="of the tasks, in characters")
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    tasks = rows(options.kinds.split(","), options.longest)[: options.limit]
    options.file.write_text("".join(json.dumps(row) + "\n" for row in tasks))
