"""Split and damaged GGUF files: all parts or none, and nothing taken on trust that a header claims."""

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufs import rounded, same, write_gguf
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.gguf.header import read_header
from sparsedraft.models.gguf.parts import read_parts
from tiny import build_llama


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEDRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def parts(tmp_path: Path, tokenizer: Any) -> list[Path]:
    """A two-layer llama in parts of seven tensors."""
    found = write_gguf(tmp_path / "a.gguf", rounded(build_llama(layers=2)), tokenizer, split=7)
    assert [path.name for path in found] == [f"a-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return found


def test_all_parts_are_read_whichever_is_named(parts: list[Path], tmp_path: Path, tokenizer: Any) -> None:
    folder = checkpoint.find(parts[0])
    same(rounded(build_llama(layers=2)), folder)
    assert checkpoint.find(parts[2]) == folder, "the key is that of all parts"
    write_gguf(tmp_path / "whole.gguf", rounded(build_llama(layers=2)), tokenizer)
    whole = checkpoint.find(tmp_path / "whole.gguf")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_another_part_is_another_model(parts: list[Path], tokenizer: Any) -> None:
    first = checkpoint.find(parts[0])
    write_gguf(parts[0].with_name("a.gguf"), rounded(build_llama(layers=2, seed=5)), tokenizer, split=7)
    assert checkpoint.find(parts[0]) != first


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda parts: parts[1].unlink(), "one of 3 parts, and a-00002-of-00003.gguf is not beside it; put"),
        (
            lambda parts: [part.unlink() for part in parts[1:]],
            "a-00002-of-00003.gguf is not beside it .nor are 1 others",
        ),
        (lambda parts: parts[1].write_bytes(parts[2].read_bytes()), "a-00002.* is not part 2 of 3"),
        (
            lambda parts: parts[1].write_bytes(parts[1].read_bytes()[:-200]),
            "a-00002.* not a whole GGUF file .*ends at byte",
        ),
        (lambda parts: parts[0].rename(parts[0].with_name("b.gguf")), "b.gguf is one of 3 parts.* found by name"),
    ],
)
def test_parts_that_are_not_there(parts: list[Path], cache: Path, harm: Any, message: str) -> None:
    harm(parts)
    with pytest.raises(UserError, match=message):
        checkpoint.find(next(parts[0].parent.glob("*.gguf")) if not parts[0].exists() else parts[0])
    assert not cache.exists() or not [*cache.iterdir()]


@pytest.mark.parametrize("name", ["blk.1.attn_k.weight", "output_norm.weight", "token_embd.weight"])
def test_a_tensor_that_is_missing(tmp_path: Path, tokenizer: Any, cache: Path, name: str) -> None:
    write_gguf(tmp_path / "a.gguf", build_llama(layers=2), tokenizer, tensors={name: None})
    with pytest.raises(UserError, match=rf"does not hold the whole model: 1 tensor \({name.removesuffix('.weight')}\)"):
        checkpoint.find(tmp_path / "a.gguf")
    assert not [*cache.iterdir()], "random weights are never kept"


def test_a_first_part_that_says_nothing_of_the_others(parts: list[Path], tmp_path: Path) -> None:
    raw = parts[0].read_bytes()
    (tmp_path / "alone.gguf").write_bytes(raw.replace(b"split.count", b"split.conut"))
    with pytest.raises(UserError, match=r"whole model: 13 tensors \(.* and 9 more\) missing"):
        checkpoint.find(tmp_path / "alone.gguf")


def header(tensors: int, keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


ALIGNED = text("general.alignment") + struct.pack("<II", 4, 3)
MANY = text("a.b") + struct.pack("<IIQ", 9, 8, 1 << 40)
NUMBERS = text("a.b") + struct.pack("<IIQ", 9, 6, 1 << 40)
DEEP = text("a.b") + struct.pack("<IIQ", 9, 9, 5)
HUGE = text("t") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0)
WIDE = text("t") + struct.pack("<I", 1 << 31)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"GGUF",
        b"GGML" + bytes(40),
        header(1 << 60, 0),
        header(0, 1 << 60),
        header(0, 1, struct.pack("<Q", 1 << 62)),
        *(header(0, 1, key + bytes(50)) for key in (MANY, NUMBERS, DEEP, ALIGNED)),
        *(header(1, 0, tensor + bytes(50)) for tensor in (HUGE, WIDE)),
    ],
)
def test_absurd_claims_are_refused_before_anything_is_made_of_them(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(raw)
    with pytest.raises(UserError, match=r"a\.gguf"):
        checkpoint.find(tmp_path / "a.gguf")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import build_tokenizer

    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    write_gguf(path, build_llama(layers=1), build_tokenizer())
    return path


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), cut=st.booleans())
def test_damaged_headers_get_a_sentence_or_stay_inside_the_file(one: Path, seed: int, cut: bool) -> None:
    dice, raw = random.Random(seed), bytearray(one.read_bytes())
    for _ in range(dice.randint(1, 8)):
        raw[dice.choice([dice.randrange(4, 400), dice.randrange(len(raw) // 20)])] = dice.choice([0, 1, 127, 255])
    path = one.with_name("damaged.gguf")
    path.write_bytes(raw[: dice.randrange(len(raw))] if cut else raw)
    try:
        found = read_header(path)
        read_parts(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= tensor.start <= tensor.start + tensor.size <= len(raw) for tensor in found.tensors)
