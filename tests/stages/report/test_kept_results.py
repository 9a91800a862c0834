"""The results of earlier runs, kept without a manifest, still give their tables."""

from pathlib import Path

import pytest

import results
from places import ROOT
from sparsedraft.stages.report.load import load
from sparsedraft.stages.report.tables import headline

KEPT = sorted(folder for folder in (ROOT / "docs/results").iterdir() if (folder / "eval").is_dir())


@pytest.mark.parametrize("run", KEPT, ids=lambda run: run.name)
def test_tables_are_made_again_byte_for_byte(run: Path) -> None:
    first, last = f"<!-- results of {run.name} -->\n", f"<!-- end of {run.name} -->\n"
    pages = [text for page in sorted((ROOT / "docs").rglob("*.md")) if first in (text := page.read_text())]
    assert [text.partition(first)[2].partition(last)[0] for text in pages] == [f"\n{results.table(run)}\n"]


@pytest.mark.parametrize("run", KEPT, ids=lambda run: run.name)
def test_a_manifest_is_made_of_their_folders(run: Path) -> None:
    found = load(run)
    assert found.manifest.baseline == "layer-pruned+distilled"
    assert "of no fewer MACs" in headline(found.result, found.manifest.baseline)
    packed = {drafter.name for drafter in found.manifest.drafters if drafter.packed}
    assert packed == {folder.parent.name.replace("of", ":") for folder in run.glob("packed/[!.]*/result.json")}
    assert found.speed is None or len(found.speed["drafters"]) == len(found.packed)
