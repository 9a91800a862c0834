"""The tokenizer, template and ends of a text in a GGUF file: its own, whatever lies beside it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ggufs import rounded, same, write_gguf
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.ends import end_ids
from tiny import build_llama, build_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEDRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def test_the_tokenizer_in_the_file_counts(tmp_path: Path) -> None:
    tokenizer, other = build_tokenizer(), build_tokenizer()
    other = other.train_new_from_iterator(["something else altogether, in other words"] * 4, 300)
    other.chat_template = "{{ 'another' }}"
    model = rounded(build_llama(layers=2))
    crowded, alone = tmp_path / "crowded", tmp_path / "alone"
    for folder in (crowded, alone):
        folder.mkdir()
        write_gguf(folder / "a.gguf", model, tokenizer)
    other.save_pretrained(crowded)
    (crowded / "chat_template.jinja").write_text("{{ 'a third' }}")
    wrong = build_llama(layers=1, rope_parameters={"rope_type": "default", "rope_theta": 5.0}).config.to_dict()
    (crowded / "config.json").write_text(json.dumps({**wrong, "eos_token_id": 9}))
    (crowded / "generation_config.json").write_text(json.dumps({"eos_token_id": [7], "temperature": 9.0}))
    found = checkpoint.find(crowded / "a.gguf")
    same(model, found)
    text = "the quick brown fox is something else"
    loaded = checkpoint.load_tokenizer(found)
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"] != other(text)["input_ids"]
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.chat_template == tokenizer.chat_template
    written = json.loads((found / "generation_config.json").read_text())
    assert written["eos_token_id"] == tokenizer.eos_token_id and "temperature" not in written
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    before = {name: (found / name).read_bytes() for name in names}
    shutil.rmtree(found)
    assert checkpoint.find(alone / "a.gguf") == found, "the key is the file's own"
    assert {name: (found / name).read_bytes() for name in names} == before


@pytest.mark.parametrize(
    ("kind", "text", "pieces"),
    [
        ("gpt-2", "a  12", ["a", "\u0120", "\u012012"]),
        ("smollm", "a  12", ["a", "\u0120\u0120", "1", "2"]),
        ("qwen2", "a  12", ["a", "\u0120", "\u0120", "1", "2"]),
        ("stablelm2", "a  12", ["a", "\u0120", "\u0120", "1", "2"]),
        ("llama-bpe", "a  1234", ["a", "\u0120", "\u0120", "123", "4"]),
    ],
)
def test_text_is_split_as_the_file_says(
    tmp_path: Path, tokenizer: Any, kind: str, text: str, pieces: list[str]
) -> None:
    write_gguf(tmp_path / "a.gguf", build_llama(layers=1), tokenizer, pre=kind)
    backend = checkpoint.load_tokenizer(checkpoint.find(tmp_path / "a.gguf")).backend_tokenizer
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_a_split_that_is_not_known(tmp_path: Path, tokenizer: Any) -> None:
    write_gguf(tmp_path / "a.gguf", build_llama(layers=1), tokenizer, pre="deepseek-coder")
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.pre is 'deepseek-coder'"):
        checkpoint.find(tmp_path / "a.gguf")


def test_every_id_that_the_file_says_ends_a_text(tmp_path: Path, tokenizer: Any) -> None:
    write_gguf(tmp_path / "a.gguf", build_llama(layers=1), tokenizer, ends={"eot": 310, "eom": 7})
    folder = checkpoint.find(tmp_path / "a.gguf")
    assert end_ids(folder, checkpoint.load_tokenizer(folder)) == {tokenizer.eos_token_id, 310, 7}
