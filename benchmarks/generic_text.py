"""Generic prose that every Python brings: its language reference (`pydoc` topics) as user messages of 2000 characters.

    python benchmarks/generic_text.py FILE.jsonl

About 114,000 tokens of Qwen2.5's tokenizer: enough for 128 x 512 calibration tokens, which the demo's prompts are not.
"""

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

PIECE = 2000  # characters


def write(file: Path) -> Path:
    """Write the messages as JSON lines with `id` and `prompt`; return `file`."""
    rows = []
    for name in sorted(topics):
        text = topics[name].strip()
        rows += [{"id": f"{name}-{i}", "prompt": text[i : i + PIECE]} for i in range(0, len(text), PIECE)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


if __name__ == "__main__":
    write(Path(sys.argv[1]))
