"""What the tests of distillation share."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def alpaca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"instruction": f"how many apples are left when {i} are eaten?", "output": f"three of {i} apples are left"}
        for i in range(6)
    ]
    said = [("user", "the quick"), ("assistant", "brown fox"), ("user", "and then?"), ("assistant", "a dog")]
    rows.append({"messages": [{"role": role, "content": content} for role, content in said]})
    file = tmp_path_factory.mktemp("prompts") / "alpaca.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file
