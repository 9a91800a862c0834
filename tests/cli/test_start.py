"""The command line starts fast: help, and what is wrong with a name, come before any large library is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LARGE = ("torch", "transformers", "datasets", "pyarrow", "omegaconf", "numpy", "scipy", "huggingface_hub")
PROGRAM = """
import json, sys
from sparsedraft.cli import main
try:
    main()
except SystemExit as left:
    print(json.dumps([left.code, [name for name in sys.argv.pop().split(",") if name in sys.modules]]))
"""


def started(*words: object) -> tuple[int, list[str], str]:
    """(exit code, the LARGE libraries that were imported, stderr) of the command in a process of its own."""
    program = f"import sys; sys.argv[1:] = {[*map(str, words)]!r}; large = {','.join(LARGE)!r}\n" + PROGRAM.replace(
        "sys.argv.pop()", "large"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    code, found = json.loads(done.stdout.splitlines()[-1])
    return code or 0, found, done.stderr


@pytest.mark.parametrize("words", ["--help", "prune --help", "run --help"])
def test_help_needs_none(words: str) -> None:
    code, large, _ = started(*words.split())
    assert code == 0 and not large


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("inspect /nowhere/model", "/nowhere/model: no such folder"),
        ("run /nowhere/recipe.yaml", "there is no such file"),
        ("plan /nowhere/recipe.yaml", "there is no such file"),
        ("eval MODEL /nowhere/drafter --prompts demo:eval", "/nowhere/drafter: no such folder"),
        ("eval MODEL lookup --prompts none.jsonl", "none.jsonl: there is no such file"),
        ("prune owner/name --calibration none.jsonl --out o", "none.jsonl: there is no such file"),
        ("generate MODEL --prompt x --drafter none.gguf", "there is no such GGUF file"),
        ("finetune MODEL /nowhere/data --out o", "/nowhere/data is no distilled data folder"),
        ("finetune MODEL /nowhere/data --out o --loss kld", "--loss kld is not known"),
    ],
)
def test_nor_does_a_wrong_name(words: str, message: str, tmp_path: Path) -> None:
    """Whatever hub the other names are of, it is not asked."""
    code, large, stderr = started(*(tmp_path if word == "MODEL" else word for word in words.split()))
    assert code == 2 and message in " ".join(stderr.split())
    assert not {*large} - {"huggingface_hub"}, "whose rules say what a name is"


def test_a_plain_checkpoint_is_inspected_with_neither_torch_nor_transformers(tiny_checkpoint: Path) -> None:
    code, large, _ = started("inspect", tiny_checkpoint)
    assert code == 0 and large == ["numpy"]
