"""Write tests/cli/help.txt: what `--help` says of every command now."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import help_texts

if __name__ == "__main__":
    help_texts.FILE.write_text(help_texts.written(), encoding="utf-8")
