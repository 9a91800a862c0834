"""The blocks of code on a page of the documentation."""

import re
from pathlib import Path


def code_blocks(page: Path, language: str = "python") -> list[str]:
    """Every fenced block of `language` on `page`, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
