"""What two vocabularies have in common."""

import json
from functools import cache

from transformers import PreTrainedTokenizerBase


def same_tokens(target: PreTrainedTokenizerBase, drafter: PreTrainedTokenizerBase) -> bool:
    """Whether both have the same tokens under the same ids."""
    return bool(target.get_vocab() == drafter.get_vocab())


def surfaces(tokenizer: PreTrainedTokenizerBase) -> dict[bytes, int]:
    """Every ordinary token's id by the bytes that it writes in the middle of a text; special and added ones left out.

    Byte-level vocabularies spell bytes as letters, SentencePiece ones spaces as ▁ and single bytes as <0x41>; of two
    tokens with the same bytes the one that is a piece of text counts, then the lower id.
    """
    byte_level = '"ByteLevel"' in _spec(tokenizer)
    added = set(tokenizer.get_added_vocab())
    found: dict[bytes, tuple[bool, int]] = {}
    for token, number in tokenizer.get_vocab().items():
        if token in added:
            continue
        single = not byte_level and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        written = _bytes(token, byte_level, single)
        if written is not None and (written not in found or (single, number) < found[written]):
            found[written] = (single, number)
    return {written: number for written, (_, number) in found.items()}


def _spec(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    whole = json.loads(backend.to_str())
    return json.dumps([whole.get("decoder"), whole.get("pre_tokenizer")])


def _bytes(token: str, byte_level: bool, single: bool) -> bytes | None:
    if single:
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return None
    if not byte_level:
        return token.replace("▁", " ").encode()
    letters = byte_letters()
    if any(letter not in letters for letter in token):
        return None
    return bytes(letters[letter] for letter in token)


@cache
def byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for (GPT-2's table, Radford et al. 2019): printable
    Latin-1 characters stand for themselves, the other bytes for the letters from U+0100 on, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(rest)}
