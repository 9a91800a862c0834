"""The command line starts fast: help, and what is wrong with a name, come before any large library is imported."""

import json
import subprocess
import sys
from pathlib import Path

LARGE = ("torch", "transformers", "datasets", "pyarrow", "omegaconf", "numpy", "scipy", "huggingface_hub")
PROGRAM = """
import contextlib, io, json, sys
from sparsedraft.cli import main
commands, large = json.loads(sys.argv[1])
for words in commands:
    sys.argv[1:] = words
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
    print(json.dumps([code, [name for name in large if name in sys.modules], said.getvalue()]))
"""
HELP = ("--help", "prune --help", "run --help")
WRONG = (
    ("inspect /nowhere/model", "/nowhere/model: no such folder"),
    ("run /nowhere/recipe.yaml", "there is no such file"),
    ("plan /nowhere/recipe.yaml", "there is no such file"),
    ("eval MODEL /nowhere/drafter --prompts demo:eval", "/nowhere/drafter: no such folder"),
    ("eval MODEL lookup --prompts none.jsonl", "none.jsonl: there is no such file"),
    ("prune owner/name --calibration none.jsonl --out o", "none.jsonl: there is no such file"),
    ("generate MODEL --prompt x --drafter none.gguf", "there is no such GGUF file"),
    ("finetune MODEL /nowhere/data --out o", "/nowhere/data is no distilled data folder"),
    ("finetune MODEL /nowhere/data --out o --loss kld", "--loss kld is not known"),
)


def started(*commands: str, model: Path = Path()) -> list[tuple[int, list[str], str]]:
    """(exit code, the LARGE libraries imported so far, stderr) of each command, one after the other in a new process.

    What one imports stays: where none is imported after the last, none of them imported one.
    """
    words = [[str(model) if word == "MODEL" else word for word in command.split()] for command in commands]
    program = [sys.executable, "-c", PROGRAM, json.dumps([words, LARGE])]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_help_needs_none() -> None:
    for command, (code, large, _) in zip(HELP, started(*HELP), strict=True):
        assert code == 0 and not large, command


def test_nor_does_a_wrong_name(tmp_path: Path) -> None:
    """Whatever hub the other names are of, it is not asked."""
    found = started(*(command for command, _ in WRONG), model=tmp_path)
    for (command, message), (code, large, stderr) in zip(WRONG, found, strict=True):
        assert code == 2 and message in " ".join(stderr.split()), command
        assert not {*large} - {"huggingface_hub"}, f"{command}: its rules say what a name is"


def test_a_plain_checkpoint_is_inspected_with_neither_torch_nor_transformers(tiny_checkpoint: Path) -> None:
    ((code, large, _),) = started("inspect MODEL", model=tiny_checkpoint)
    assert code == 0 and large == ["numpy"]
