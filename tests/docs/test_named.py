"""What the pages name is there: files of the repository, and the messages that the program really prints."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "LOG.md")]
FILES = re.compile(r"(?<![\w./-])(?:src|tests|benchmarks|studies|docs|recipes)/[\w./*+-]*\w")
MODULES = re.compile(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|hpp|cpp|inc))`")
GENERATED = ("docs/commands", "docs/changelog")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    named = {name for name in FILES.findall(text) if "NAME" not in name and "STAGE" not in name}
    below = {f"src/sparsedraft/{name}" for name in MODULES.findall(text)}
    lost = sorted(n for n in named if not (ROOT / n).exists() and not n.startswith(GENERATED))
    lost += sorted(name for name in below - named if not (ROOT / name).exists() and not (ROOT / name[16:]).exists())
    assert not lost, f"{page.name} names {lost}"


def test_troubleshooting_quotes_messages_of_the_source() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    source = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "src").rglob("*.py")))
    source += (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    told = re.sub(r"\"\n\s*f?\"", "", source)  # adjacent literals are one text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    quotes = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(quotes) > 20
    assert not [quote for quote in quotes if quote not in told]
