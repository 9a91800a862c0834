"""The bytes that each token of a vocabulary writes, by which two vocabularies are compared."""

import random

import pytest
import torch

from across import GREEDY, PROMPT, decoded
from sparsedraft.maths.sampling import Dice
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.vocab import surfaces
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.speculate.tokenizers import uag
from tokens import FAITHFUL, built, byte_level
from toys import Toy


@pytest.mark.parametrize("name", [*FAITHFUL, "unigram", "wordpiece", "smollm2"])
def test_surfaces_are_what_decoding_writes(name: str, request: pytest.FixtureRequest) -> None:
    t = checkpoint.load_tokenizer(request.getfixturevalue("smollm2")) if name == "smollm2" else built(name)
    found = surfaces(t)
    anchor = t("is a", add_special_tokens=False)["input_ids"]
    base, checked, parts = decoded(t, anchor), 0, 0
    for written, number in random.Random(0).sample(sorted(found.items()), min(4000, len(found))):
        text = decoded(t, [*anchor, number])
        assert text.startswith(base)
        if "\ufffd" in text and len(written) < 8:  # a part of a character: the bytes that are left make it whole
            parts += 1
            continue
        assert text[len(base) :].encode() == written, t.convert_ids_to_tokens(number)
        checked += 1
    assert checked > 60 and checked + parts == min(4000, len(found))
    specials = {i for i, token in t.added_tokens_decoder.items() if token.special}
    assert not specials & {*found.values()} and len(found) <= len(t) - len(specials)


@pytest.mark.parametrize("name", ["byte-level", "gemma", "llama", "metaspace"])
def test_surfaces_of_bytes_make_characters(name: str) -> None:
    t, write = built(name), surfaces(built(name))
    anchor = t("is a", add_special_tokens=False)["input_ids"]
    for letter in "🙈ж\u0323龘":
        ids = [write[bytes([b])] for b in letter.encode()]
        assert decoded(t, [*anchor, *ids]) == decoded(t, anchor) + letter
    assert {bytes([b]) for b in range(256)} <= write.keys()


def test_an_added_token_writes_itself() -> None:
    t = byte_level()
    t.add_tokens(["今 b"])  # not spelt in the letters of a byte-level vocabulary
    assert surfaces(t)["今 b".encode()] == t.convert_tokens_to_ids("今 b")
    assert decoded(t, t("a今 b")["input_ids"]) == "a今 b"


def test_bytes_that_both_have_are_read_at_once() -> None:
    """The intersection goes on in the middle of a character, which text cannot."""
    p, q = built("byte-level"), built("gemma")
    vocabulary = uag.vocabulary_map(surfaces(p), surfaces(q), len(p), len(q), (None, None))
    prompt, bytes_ = p(PROMPT)["input_ids"], [surfaces(p)[bytes([b])] for b in "🙈".encode()]
    readers = uag.Readers(p, q, [(prompt, q(PROMPT)["input_ids"])], len(q))
    uag.intersection_drafter(Toy(lambda ids: torch.zeros(len(q))), readers, vocabulary, GREEDY)
    for n in range(5):
        read = readers(TokenSequence(0, [*prompt, *bytes_[:n]], len(prompt), 99, Dice(0)))
        assert read == [*q(PROMPT)["input_ids"], *(surfaces(q)[bytes([b])] for b in "🙈".encode()[:n])]


def test_overlaps_are_sensible() -> None:
    alike = surfaces(built("gemma")), surfaces(built("llama"))
    assert len(alike[0].keys() & alike[1].keys()) > 0.95 * len(alike[1]), "newlines are added tokens in one of them"
    words = surfaces(built("wordpiece"))
    assert b" the" in words and b"##" not in b"".join(words)
    vocabulary = uag.vocabulary_map(*alike, 500, 400, (3, 3))
    pairs = vocabulary.inverse()
    assert uag.vocabulary_map(*alike, 500, 400, (None, 3)).inverse().get(3) is None, "special tokens are not text"
    assert pairs[3] == 3 and max(pairs) < 500 and max(pairs.values()) < 400
    assert len({*pairs.values()}) == len(pairs)
