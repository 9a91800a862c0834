"""A growing answer in another tokenizer's ids: its text is right after every step, its ids nearly always those of the
whole text at once, and the work of a step does not grow with the answer."""

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sparsedraft.models.tokenizers.detokenizer import BROKEN, LONGEST, Detokenizer, special_ids, tail
from sparsedraft.models.tokenizers.retokenizer import (
    BEHIND,
    CONTEXT,
    Piece,
    Retokenizer,
    inner,
    spliced,
)
from sparsedraft.models.tokenizers.vocab import surfaces
from tokens import FAITHFUL, TEXTS, built

PROMPT = "the prompt ends here:"


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def after_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """(prompt, answer): the ids of both encoded at once, cut where the prompt ends."""
    prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROMPT + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return whole[: len(prompt)], whole[len(prompt) :]


def steps(answer: list[int], seed: int, most: int = 5) -> Iterator[list[int]]:
    """The answer as it grows by random steps."""
    dice, end = random.Random(seed), 0
    while end < len(answer):
        end += dice.randint(1, most)
        yield answer[:end]


class Counting:
    """A tokenizer that counts the characters it encodes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer, self.encoded = tokenizer, 0

    def __call__(self, text: str, **options):
        self.encoded += len(text)
        return self.tokenizer(text, **options)

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("drafter", [*FAITHFUL, "unigram", "wordpiece"])
@pytest.mark.parametrize("target", FAITHFUL)
def test_a_growing_answer(target: str, drafter: str) -> None:
    """90 % of all steps give the ids of the whole text at once, and a FAITHFUL drafter reads the very text."""
    p, q = built(target), built(drafter)
    right = total = 0
    for seed, text in enumerate(TEXTS.values()):
        before, answer = after_prompt(p, text)
        prompt = q(PROMPT)["input_ids"]
        prompt = prompt[:-1] if prompt[-1] == q.convert_tokens_to_ids("</s>") else prompt
        reader = Retokenizer(p, q, prompt, before)
        for grown in steps(answer, seed):
            ids = reader.ids(grown)
            assert ids[: len(prompt)] == prompt
            own = ids[len(prompt) :]
            assert text.startswith(reader.text)
            assert len(grown) - reader.seen.pending < LONGEST, "nothing complete is held back for long"
            if drafter in FAITHFUL:
                assert decoded(q, ids) == PROMPT + reader.text
            right += own == after_prompt(q, reader.text)[1]
            total += 1
        assert reader.text == text
    assert total > 100 and right >= 0.9 * total, f"{right} of {total}"


@pytest.mark.parametrize("drafter", [*FAITHFUL, "unigram", "wordpiece"])
def test_the_work_of_a_step_does_not_grow(drafter: str) -> None:
    p, q = built("byte-level"), Counting(built(drafter))
    longest = max(len(PROMPT), *map(len, surfaces(q.tokenizer)))  # no piece of text that is taken whole is longer
    _, answer = after_prompt(p, " ".join(TEXTS.values()) * 4)
    reader = Retokenizer(p, q, q.tokenizer(PROMPT)["input_ids"])  # type: ignore[arg-type]
    most = 0
    for grown in steps(answer, 0):
        before, known = q.encoded, len(reader.text)
        reader.ids(grown)
        new = len(reader.text) - known
        most = max(most, q.encoded - before - 2 * new)  # new text may be encoded by itself once more
    assert len(reader.text) > 2000
    assert 0 < most <= BEHIND + CONTEXT + longest + 1


ALPHABET = st.one_of(
    st.sampled_from(list("ab c\n\t.1é")),
    st.sampled_from(["🙂", "👩‍👩‍👧", "今", "天", "e\u0301", "\u0323", " the", "  ", "\r\n", "ß", "İ", "ﬁ", "\u2028"]),
    st.characters(exclude_categories=["Cs"], exclude_characters="▁" + BROKEN),
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(ALPHABET, max_size=40).map("".join),
    st.sampled_from(FAITHFUL),
    st.sampled_from(FAITHFUL),
    st.integers(0, 2**20),
)
def test_any_text_in_any_steps(text: str, target: str, drafter: str, seed: int) -> None:
    p, q = built(target), built(drafter)
    before, answer = p(PROMPT)["input_ids"], [piece.id for piece in inner(p, text)]
    prompt = q(PROMPT)["input_ids"]
    reader, shown, alone = Retokenizer(p, q, prompt, before), Detokenizer(p, before), Detokenizer(p)
    written = ""
    grown: list[int] = []
    pieces = ""
    for grown in steps(answer, seed):
        ids = reader.ids(grown)
        written += shown.more(grown)
        pieces += alone.more(grown)
        assert decoded(q, ids) == PROMPT + reader.text
        assert text.startswith(written) and reader.text == written
    assert written == text
    assert pieces == decoded(p, grown)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=60), st.integers(0, 2**20), st.sampled_from(FAITHFUL))
def test_any_tokens(answer: list[int], seed: int, drafter: str) -> None:
    """Random tokens are mostly broken characters: shown late, but in the end."""
    p, q = built("byte-level"), built(drafter)
    detokenizer, reader = Detokenizer(p), Retokenizer(p, q, [5])
    written = ""
    for grown in steps(answer, seed):
        written += detokenizer.more(grown)
        assert decoded(p, grown).startswith(written)
        assert len(grown) - detokenizer.pending < LONGEST + 3
        assert reader.ids(grown)[:1] == [5]
    assert decoded(p, answer).rstrip(BROKEN).removeprefix(written).count(BROKEN) < LONGEST


def test_old_and_new_tokens_are_joined_with_no_gap() -> None:
    """Also where the old ones were cut otherwise than the text would be now."""
    text = "0123456789" * 5
    old = [Piece(0, i, i + 5) for i in range(0, 50, 5)]
    found = spliced(built("byte-level, digits"), old, text, "x")
    assert found[0] == old[0] and found[-1].end == 51 and len(found) > len(old) + 1
    assert all(a.end == b.start for a, b in itertools.pairwise(found))


def test_bytes_that_are_no_character_hold_nothing_up_for_long() -> None:
    p = built("byte-level")
    write = surfaces(p)
    answer = [write[b"\x91"]] * 40 + [write[b"o"], write[b"k"]]
    detokenizer, written = Detokenizer(p), ""
    for n in range(len(answer) + 1):
        written += detokenizer.more(answer[:n])
        assert n - len(written) < LONGEST
    assert written == BROKEN * 40 + "ok"


def test_special_tokens_write_nothing_and_hold_nothing_up() -> None:
    p, q = built("byte-level"), built("gemma")
    pieces = [p(text, add_special_tokens=False)["input_ids"] for text in ("one", " two", " 🙂")]
    end, think = p.convert_tokens_to_ids(["</s>", "<think>"])
    answer = [end, *pieces[0], end, end, *pieces[1], think, *pieces[2], end]
    reader = Retokenizer(p, q, q(PROMPT)["input_ids"])
    for n in range(len(answer) + 1):
        ids = reader.ids(answer[:n])
        assert not special_ids(q) & {*ids[1:]}
    assert reader.text == "one two<think> 🙂"
    assert q.convert_tokens_to_ids("<think>") in ids, "an added token of both is one token"
    assert reader.begun(answer) == []


@pytest.mark.parametrize("name", FAITHFUL)
def test_spelt_specials_stay_text(name: str) -> None:
    p, q = built("byte-level"), built(name)
    _, answer = after_prompt(p, TEXTS["spelt"])
    prompt = q(PROMPT)["input_ids"]
    ids = Retokenizer(p, q, prompt).ids(answer)
    assert decoded(q, ids) == PROMPT + TEXTS["spelt"]
    assert not special_ids(q) & {*ids[len(prompt) :]}


def test_no_space_is_put_into_the_middle() -> None:
    """Tokenizers with a dummy space write it at the beginning of a text only; the answer does not begin one."""
    p = built("byte-level")
    for name in ("llama", "metaspace"):
        q = built(name)
        assert decoded(q, q("x")["input_ids"]) == "x", "its decoder hides the dummy space"
        reader = Retokenizer(p, q, q(PROMPT)["input_ids"])
        ids = reader.ids(p("fox")["input_ids"])
        assert decoded(q, ids) == PROMPT + "fox"
        for text in ("fox", " fox", "今天", "🙂 x", "\n\nfox", "  fox", "."):
            found = [piece.id for piece in inner(q, text)]
            assert decoded(q, [*q("x")["input_ids"], *found]) == "x" + text


def test_the_first_space_of_an_answer_is_kept() -> None:
    for name in ("llama", "metaspace"):
        p, q = built(name), built("byte-level")
        prompt, answer = p("the brown")["input_ids"], [p.convert_tokens_to_ids("▁fox")]
        assert decoded(p, answer) == "fox"
        reader = Retokenizer(p, q, q("the brown")["input_ids"], prompt)
        assert decoded(q, reader.ids(answer)) == "the brown fox"


def test_tail_begins_with_a_character_behind_the_last_special_token() -> None:
    p = built("byte-level")
    face = p("🙈", add_special_tokens=False)["input_ids"]
    assert len(face) > 1, "in several tokens"
    end = p.convert_tokens_to_ids("</s>")
    text = p("the end", add_special_tokens=False)["input_ids"]
    assert tail(p, [*text, end, *text]) == text
    assert tail(p, [*face[1:], *text]) == text
    assert tail(p, [*text, end]) == tail(p, []) == []
    assert decoded(p, tail(p, face * 20)).strip("🙈") == ""
