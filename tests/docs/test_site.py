"""The site builds without a broken link, and README and the pages keep their own rules."""

import re
from operator import attrgetter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```[\s\S]*?^```$|^(?: {4}[^\n]*\n)+", re.M)  # blocks of code
NAMES = re.compile(  # of models, patterns, settings, dates and machines: no figures
    r"`[^`]*`|\]\([^)]*\)|\d+:\d+|K ?= ?\d+|\d(\.\d+)?e-\d|[A-Za-z²]\S*\d\S*|\d+(\.\d+)?B\b|SD² (at )?\d+ ?%"
    r"|\d+ (January|February|March|April|May|June|July|August|September|October|November|December)( \d{4})?|95 %"
    r"|\d{4}-\d\d-\d\d|20\d\d\b|\d+(-bit| bits?| cores?| threads?)\b|\d+ % (sparse|unstructured|mask)"
)
INTERVAL = re.compile(r"\([-+]?\d[^()a-z]*(to )?[^()a-z]*\)")  # belongs to the figure before it
RANGE = re.compile(r"(\d) to [-+]?\d[\d,.]*")  # is one figure
NAME = attrgetter("name")
FIGURE = re.compile(r"(?<![\w.])\d[\d,]*(\.\d+)?")


def test_the_logs_lines_are_wrapped_and_its_entries_newest_first() -> None:
    lines = (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")], "tables may be wider"
    entries = [line for line in lines if line.startswith("## ")]
    assert not [entry for entry in entries if not re.match(r"## \d{4}-\d\d-\d\d · \S", entry)]
    assert entries == sorted(entries, key=lambda entry: entry[3:13], reverse=True)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=NAME)
def test_no_paragraph_has_more_than_three_figures(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    dense = [block for block in paragraphs(text) if figures(block) > 3]
    assert not dense, f"{len(dense)} paragraphs, the first: {dense[0][:400]}"


@pytest.mark.parametrize("page", PAGES, ids=NAME)
def test_links_into_the_repository_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", page.read_text(encoding="utf-8")))
    local = [link for link in links if "://" not in link]
    lost = [
        link
        for link in local
        if not (page.parent / link).exists() and not link.startswith(("commands/", "changelog", "modules", "records"))
    ]
    assert not lost, f"{page.name} names {lost}, which are not there"


def figures(block: str) -> int:
    """How many figures a paragraph gives."""
    return len(FIGURE.findall(RANGE.sub(r"\1", NAMES.sub("", INTERVAL.sub("", block)))))


def paragraphs(text: str) -> list[str]:
    """Paragraphs and items of lists; tables and headings left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "<!--"))]
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))
    return [block.strip() for block in blocks if block.strip()]


def test_the_site_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strictly: a broken link or anchor, or a page outside of the navigation, is an error. No network is used."""
    pytest.importorskip("material", reason="the extra docs is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    build(config)
    page = (tmp_path / "commands" / "prune.html").read_text(encoding="utf-8")
    assert "--calibration" in page and "required" in page, "a command's page has its options"
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?https?://(?!\S*sparsedraft)[^>]+", page)
