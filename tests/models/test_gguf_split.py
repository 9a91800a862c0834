"""Text is split in a written file as the checkpoint's own tokenizer splits it."""

from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, pre_tokenizers

from packed_folders import save
from sparsedraft.models import checkpoint
from sparsedraft.models.gguf import convert_gguf
from sparsedraft.models.gguf.write_split import GPT2, NAMES, SPLITS
from stages import export
from tiny import build_llama, build_tokenizer

TEXTS = ["a  12 345", "It's  I'LL\n\n done ", "x=1;\ty+=2 ", "ünï 😀 1234567"]


def tokenizer_of(name: str) -> Any:
    """A tokenizer with the split that llama.cpp calls `name`."""
    tokenizer = build_tokenizer()
    backend = tokenizer.backend_tokenizer
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    elif name != "gpt-2":
        expression, whole = next(key for key, value in NAMES.items() if value == name)
        split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.model.ignore_merges = whole
    return tokenizer


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_comes_back(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(name)
    save(build_llama(layers=1), tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    assert export(tmp_path / "a", tmp_path / "a.gguf", "bf16")["split"] == name
    assert gguf.GGUFReader(tmp_path / "a.gguf").fields["tokenizer.ggml.pre"].contents() == name
    back = checkpoint.load_tokenizer(convert_gguf(tmp_path / "a.gguf", cache=tmp_path))
    for text in TEXTS:
        assert back(text, add_special_tokens=False)["input_ids"] == tokenizer(text)["input_ids"], text


def test_gpt2s_own_expression_is_the_byte_levels(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT2), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    save(build_llama(layers=1), tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    assert export(tmp_path / "a", tmp_path / "a.gguf", "bf16")["split"] == "gpt-2"
    plain = build_tokenizer()
    assert all(plain(text)["input_ids"] == tokenizer(text)["input_ids"] for text in TEXTS)


def test_a_token_that_begins_every_text(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    save(build_llama(layers=1), tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    export(tmp_path / "a", tmp_path / "a.gguf", "bf16")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() and not fields["tokenizer.ggml.add_eos_token"].contents()
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 1
