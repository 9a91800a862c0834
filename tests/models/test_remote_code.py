"""Checkpoints with code of their own: it is never run and nobody is asked; what transformers has itself, loads."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from sparsedraft import cli
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from tiny import build_llama

MODEL = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
TOKENIZER = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizerFast"]}


def with_code(source: Path, folder: Path, file: str, auto_map: object, **fields: object) -> Path:
    """A copy of a checkpoint whose `file` names own.py, which leaves a mark when it runs."""
    shutil.copytree(source, folder)
    (folder / "own.py").write_text(
        f"""import pathlib
import transformers as hf
pathlib.Path({str(folder / "mark")!r}).touch()
class OwnConfig(hf.LlamaConfig): model_type = "own"
class OwnForCausalLM(hf.LlamaForCausalLM): config_class = OwnConfig
class OwnTokenizer(hf.PreTrainedTokenizerFast): pass
OwnTokenizerFast = OwnTokenizer
"""
    )
    read = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**read, "auto_map": auto_map, **fields}))
    return folder


class Terminal(io.StringIO):
    """Says yes to whatever is asked, and notes that it was."""

    asked = False

    def readline(self, *_: int) -> str:
        self.asked = True
        return "y\n"


COMMANDS = {
    "generate": ["generate", "MODEL", "--prompt", "a"],
    "distill": ["distill", "MODEL", "demo:train", "--out", "OUT"],
    "prune": ["prune", "MODEL", "--calibration", "demo:train", "--out", "OUT"],
    "drop-layers": ["drop-layers", "MODEL", "--layers", "2", "--calibration", "demo:train", "--out", "OUT"],
    "eval": ["eval", "PLAIN", "MODEL", "--prompts", "demo:eval", "--out", "OUT"],
    "pack": ["pack", "MODEL", "--out", "OUT"],
    "inspect": ["inspect", "MODEL"],
}
CASES = {
    "model": ("config.json", MODEL, {"model_type": "own", "architectures": ["OwnForCausalLM"]}),
    "known type": ("config.json", MODEL, {}),
    "tokenizer": ("tokenizer_config.json", TOKENIZER, {"tokenizer_class": "OwnTokenizer"}),
    "tokenizer, as once": ("tokenizer_config.json", TOKENIZER["AutoTokenizer"], {}),
}


@pytest.mark.parametrize(
    ("command", "case"), [*((c, "model") for c in COMMANDS), *(("generate", case) for case in CASES if case != "model")]
)
def test_code_is_never_run(
    command: str, case: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    file, auto_map, fields = CASES[case]
    folder = with_code(tiny_checkpoint, tmp_path / "model", file, auto_map, **fields)
    places = {"MODEL": folder, "PLAIN": tiny_checkpoint, "OUT": tmp_path / "out"}
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys, "argv", ["sparsedraft", *(str(places.get(word, word)) for word in COMMANDS[command])])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "needs code of its own" in told and "Own" in told, told
    assert not terminal.asked and not (folder / "mark").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_class_that_transformers_has_is_left_alone(file: str, tiny_checkpoint: Path, tmp_path: Path):
    """As on the hub, where many folders still hold the code of before transformers had the model."""
    names = {
        "config.json": {
            "AutoConfig": "o/n--own.LLaMA_Config",
            "AutoModelForCausalLM": "own.LLaMA_ForCausalLM",
            "AutoTokenizer": "owner/name",  # as Phi-4-mini has it
        },
        "tokenizer_config.json": {"AutoTokenizer": ["own.LlamaTokenizer", None]},
    }
    folder = with_code(tiny_checkpoint, tmp_path / "model", file, names[file])
    ids = torch.tensor([[5, 17, 99, 4]])
    with torch.no_grad():
        assert torch.equal(checkpoint.load(folder)(ids).logits, build_llama()(ids).logits)
    same = checkpoint.load_tokenizer(tiny_checkpoint)("how many apples")["input_ids"]
    assert checkpoint.load_tokenizer(folder)("how many apples")["input_ids"] == same
    assert not (folder / "mark").exists()


def test_a_tokenizer_that_only_config_json_names(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = with_code(tiny_checkpoint, tmp_path / "model", "config.json", TOKENIZER)
    assert checkpoint.load_tokenizer(folder)("a")["input_ids"]  # tokenizer_config.json names a class that there is
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "tokenizer_class": "OwnTokenizer"}))
    with pytest.raises(UserError, match="needs code of its own for its tokenizer"):
        checkpoint.load_tokenizer(folder)
    assert not (folder / "mark").exists()
