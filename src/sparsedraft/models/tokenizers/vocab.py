"""What two vocabularies have in common."""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

BYTE = re.compile("<0x([0-9A-F]{2})>")


def same_tokens(target: PreTrainedTokenizerBase, drafter: PreTrainedTokenizerBase) -> bool:
    """Whether both have the same tokens under the same ids."""
    return bool(target.get_vocab() == drafter.get_vocab())


def surfaces(tokenizer: PreTrainedTokenizerBase) -> dict[bytes, int]:
    """Every token's id by the bytes that it writes in the middle of a text; special ones, which write none, left out.

    Of two tokens with the same bytes the one that is a piece of text counts (not the one for a single byte), then the
    lower id. A tokenizer that is not the `tokenizers` library's has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    kinds = _kinds(backend.decoder)
    write = _writer(backend.decoder, kinds)
    fallback = "ByteFallback" in kinds
    by_bytes: dict[bytes, tuple[bool, int]] = {}
    for token, number in tokenizer.get_vocab().items():
        if number in special:
            continue
        byte = BYTE.fullmatch(token) if fallback and len(token) == 6 else None
        written = bytes([int(byte[1], 16)]) if byte else write(token)
        if written and (written not in by_bytes or (bool(byte), number) < by_bytes[written]):
            by_bytes[written] = (bool(byte), number)
    return {written: number for written, (_, number) in by_bytes.items()}


def _kinds(decoder: Any) -> list[str]:
    """The types of a decoder's parts."""
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())  # what it pickles; the whole tokenizer as JSON takes seconds
    return [part["type"] for part in state.get("decoders", [state])]


def _writer(decoder: Any, kinds: list[str]) -> Callable[[str], bytes]:
    """What a token writes in the middle of a text.

    Byte-level vocabularies spell bytes as letters; any other decoder is asked, behind a token that is there for the
    place only.
    """
    if "ByteLevel" in kinds:
        letters = byte_letters()
        return lambda token: bytes(letters[c] for c in token) if all(c in letters for c in token) else token.encode()
    if not kinds:
        return lambda token: f" {token}".encode()
    spaces = [kind for kind in kinds if kind not in ("ByteFallback", "Fuse", "Strip")]
    usual = spaces in (["Replace"], ["Metaspace"]) and decoder.decode(["a", "▁b▁▁"]) == "a b  "
    if usual:  # the same as asking, quicker
        return lambda token: token.replace("▁", " ").encode()
    return lambda token: decoder.decode(["a", token]).removeprefix("a").encode()


@cache
def byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for (GPT-2's table, Radford et al. 2019): printable
    Latin-1 characters stand for themselves, the other bytes for the letters from U+0100 on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(rest)}
