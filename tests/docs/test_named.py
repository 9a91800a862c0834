"""What the pages name is there: files of the repository, and the messages that the program really prints."""

import re
import tomllib
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


def walks() -> dict[str, list[list[str]]]:
    """The walks of the page on the architecture: for each, the cells of its rows."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## The life of (a \w+)$(.*?)(?=^## )", text, re.M | re.S)
    rows = {name: re.findall(r"^\| \d+ \|.*$", section, re.M) for name, section in sections}
    return {
        name: [[cell.strip() for cell in row.strip("|").split("|")] for row in found] for name, found in rows.items()
    }


def rank(file: str) -> int:
    """How high a file's folder lies: 0 is the highest of the layers that import-linter holds."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    folder = file.partition("/")[0].removesuffix(".py")
    return next(i for i, layer in enumerate(layers) if folder in re.split(r"\s*[|:]\s*", layer))


def test_there_are_three_walks() -> None:
    assert [*walks()] == ["a token", "a weight", "a recipe"] and all(len(rows) > 8 for rows in walks().values())


@pytest.mark.parametrize("walk", ["a token", "a weight", "a recipe"])
def test_a_walk_goes_down_only(walk: str) -> None:
    """Its files exist, none lies above the one before it, and what each step uses lies no higher than the step."""
    before = 0
    for _, file, _, uses in walks()[walk]:
        names = [re.fullmatch(r"`(.*)`", name).group(1) for name in (file, *filter(None, uses.split(", ")))]  # type: ignore[union-attr]
        assert not [name for name in names if not (ROOT / "src" / "sparsedraft" / name).is_file()]
        ranks = [rank(name) for name in names]
        assert ranks[0] >= before and min(ranks) == ranks[0], f"{names[0]} goes up"
        before = ranks[0]


def test_the_glossary_names_each_idea_once_and_where_it_lies() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Glossary")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    names = [row[0] for row in rows[2:]]
    assert len(names) == len(set(names)) > 20
    places = [row[2].strip("`") for row in rows[2:] if row[2].startswith("`")]
    assert not [place for place in places if not (ROOT / "src" / "sparsedraft" / place).exists()]
    for name, place in zip(names, (row[2].strip("`") for row in rows[2:]), strict=True):
        file = ROOT / "src" / "sparsedraft" / place
        if file.is_file():  # the code of the idea calls it by its name
            text = file.read_text(encoding="utf-8").lower().replace("_", "")
            assert any(word.lower().replace(" ", "") in text for word in name.split(", ")), (
                f"{place} does not say {name}"
            )


def test_troubleshooting_quotes_messages_of_the_source() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    source = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "src").rglob("*.py")))
    source += (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    told = re.sub(r"\"\n\s*f?\"", "", source)  # adjacent literals are one text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    quotes = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(quotes) > 20
    assert not [quote for quote in quotes if quote not in told]
