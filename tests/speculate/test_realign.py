"""Drafting across tokenizers: what both sides would write is proposed and accepted."""

import itertools

import pytest
import torch

from across import GREEDY, PROMPT, Scripted, Words, decoded, run, sides, small, tiny_vocabulary
from sparsedraft.maths.sampling import Dice
from sparsedraft.models.tokenizers.retokenizer import Retokenizer, inner
from sparsedraft.models.tokenizers.vocab import surfaces
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.tokenizers import uag
from sparsedraft.speculate.tokenizers.realign import Longer, RealignDrafter, continuation
from tokens import FAITHFUL, TEXTS, built
from toys import Toy


@pytest.mark.parametrize(("target", "drafter"), [*itertools.permutations(FAITHFUL, 2)])
def test_realign_proposes_what_the_drafter_says(target: str, drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafter and target write the same text. Whatever of it is drafted is proposed, K tokens of the target's if it is
    long enough, and accepted but for a last token that the draft's end has cut."""
    k = 5
    texts = [*TEXTS.values()]
    said: list[str] = []
    written = RealignDrafter._text_in_place_of

    def spy(self: RealignDrafter, kept: list[int], end: list[int], drafted: list[int]) -> str:
        said.append(written(self, kept, end, drafted))
        return said[-1]

    monkeypatch.setattr(RealignDrafter, "_text_in_place_of", spy)
    drafted = accepted = ends = 0
    for text in texts:
        p, q, asked = sides(target, drafter, [text])
        pair = Pair.of(p, q, "realign", GREEDY)
        decoder = pair.decoder(asked, Constant(k), GREEDY)
        done: list[int] = []
        for step in decoder.decode([asked[0].target], 300, [0]):
            if len(step.drafted) < k and step.drafted and step.drafted[-1] != p.tokenizer.eos_token_id:
                proposed = decoded(p.tokenizer, [*asked[0].target, *done, *step.drafted])
                assert proposed.rstrip("\ufffd").endswith(said[-1]), "text was drafted and not proposed"
            cut = bool(step.drafted) and len(step.drafted) - step.accepted == 1
            drafted, accepted = drafted + len(step.drafted) - cut, accepted + step.accepted
            done += step.emitted
            ends += step.accepted == len(step.emitted)  # nothing of the target's own follows its end of turn
        assert decoded(p.tokenizer, [*asked[0].target, *done]).endswith(text)
    assert accepted >= 0.9 * drafted > 250, f"{accepted} of {drafted}"
    assert ends > len(texts) / 3, "the drafter's end of turn is the target's"


def test_intersection_of_like_vocabularies_accepts() -> None:
    for target, drafter in (("gemma", "llama"), ("llama", "metaspace"), ("metaspace", "gemma")):
        drafted = accepted = 0
        for text in TEXTS.values():
            p, q, asked = sides(target, drafter, [text])
            (made,) = run(Pair.of(p, q, "intersection", GREEDY), asked, 5, 300)
            drafted += sum(len(step.drafted) for step in made.steps)
            accepted += sum(step.accepted for step in made.steps)
        assert accepted > 0.6 * drafted > 60, f"{target}, {drafter}: {accepted} of {drafted}"


@pytest.mark.parametrize("drafter", ["unigram", "wordpiece"])
def test_a_drafter_that_cannot_write_all_still_helps(drafter: str) -> None:
    """Lower-case text of known characters is accepted, the rest is the target's own."""
    for text, share in (("the quick brown fox and the lazy dog sleeps in the sun", 0.5), (TEXTS["emoji"], 0.0)):
        p, q, asked = sides("byte-level", drafter, [text])
        (made,) = run(Pair.of(p, q, "realign", GREEDY), asked, 4, 300)
        assert decoded(p.tokenizer, made.tokens) == text
        assert sum(step.accepted for step in made.steps) >= share * len(made.tokens)


def test_a_broken_off_word_is_taken_up_again() -> None:
    """The target stops in the middle of a word of the drafter's: what begins like it and is likelier comes first."""
    q = built("gemma")
    jumps, ju = q.convert_tokens_to_ids("▁jumps"), [p.id for p in inner(q, " ju")]
    longer, context = Longer(q), [*q("the fox")["input_ids"], *ju]
    written = {written: number for number, written in longer.by_id.items()}
    assert {*longer.than(b" ju").tolist()} == {
        number for text, number in written.items() if text.startswith(b" ju") and text != b" ju"
    }
    logits = torch.zeros(len(ju) + 1, len(q))
    logits[0, jumps] = 9
    (n, token, odds), *_ = longer.instead(context, logits)
    assert (n, token) == (len(ju), jumps) and odds > 100
    logits[0, ju[0]] = 20
    for i, token in enumerate(ju[1:], 1):
        logits[i, token] = 20
    assert longer.instead(context, logits) == [], "what is there is likelier"


def test_words_that_the_targets_tokens_break_are_drafted_to_their_end() -> None:
    """A target that writes letter by letter ends every token in a word; the drafter knows whole words only."""
    letters = sorted({letter for text in TEXTS.values() for letter in text})
    p = tiny_vocabulary(["<end>", *letters], [])
    p.add_special_tokens({"eos_token": "<end>"})
    text, q = TEXTS["prose"].lower(), built("gemma")
    asked = PromptPair(p("the fox:")["input_ids"], q("the fox:")["input_ids"])
    ends = p.convert_tokens_to_ids("<end>"), q.eos_token_id
    target = Scripted(small(p), p, frozenset({ends[0]}), (asked.target,), (text,))
    words = Words(small(q), q, frozenset({ends[1]}), (asked.drafter,), (text,))
    (made,) = run(Pair.of(target, words, "realign", GREEDY), [asked], 3, 300)
    assert decoded(p, made.tokens) == text
    assert all(len(step.drafted) == 3 == step.accepted for step in made.steps[:-3])


@pytest.mark.parametrize(("written", "draft"), [(" th", " the"), (" ju", "mps")])
def test_no_word_is_ended_that_the_target_would_have_written_at_once(written: str, draft: str) -> None:
    """The drafter always finds " the" and " jumps" likeliest, also in the place of what begins like them.

    The target has a token " the": after " th" it is about to write something else.
    """
    p, q = built("byte-level"), built("gemma")
    assert b" the" in surfaces(p) and b" jumps" not in surfaces(p)
    likely = torch.zeros(len(q)).scatter_(0, torch.tensor(q.convert_tokens_to_ids(["▁the", "▁jumps"])), 9)
    prompt, answer = p(PROMPT)["input_ids"], [i for letter in written for i in p(letter)["input_ids"]]
    readers = uag.Readers(p, q, [(prompt, q(PROMPT)["input_ids"])], len(q))
    drafter = RealignDrafter(Toy(lambda ids: likely), readers, p, q, ends=frozenset(), eos=None, width=len(p))
    (made,) = drafter.propose([TokenSequence(0, [*prompt, *answer], len(prompt), 200, Dice(0))], [3])
    assert decoded(p, made.tokens).startswith(draft)


@pytest.mark.parametrize(("special", "last"), [("<s>", []), ("<|im_end|>", [9])])
def test_nothing_behind_a_special_token_is_proposed(special: str, last: list[int]) -> None:
    p, q = built("byte-level"), built("gemma")
    prompt, own = p(PROMPT)["input_ids"], q(PROMPT)["input_ids"]
    said = q.convert_tokens_to_ids(["▁the", special, "▁the", "▁the"])
    after = Toy(lambda ids: torch.zeros(len(q)).scatter_(0, torch.tensor(said[len(ids) - len(own)]), 9))
    readers = uag.Readers(p, q, [(prompt, own)], len(q))
    ends = frozenset({q.eos_token_id})
    drafter = RealignDrafter(after, readers, p, q, ends=ends, eos=9, width=len(p))
    (made,) = drafter.propose([TokenSequence(0, prompt, len(prompt), 200, Dice(0))], [4])
    assert made.tokens == [*p(" the")["input_ids"], *last]


def test_what_the_target_has_begun_is_gone_on_with() -> None:
    """Its answer need not be cut as its tokenizer would: what follows is cut from there on, in a character, too."""
    p, q = built("byte-level"), built("gemma")
    prompt = p(PROMPT)["input_ids"]
    for begun, text in ((" qu", "ick brown fox"), (" th", "e"), ("\n", " x"), ("", "the end"), (" ", " ")):
        answer = [i for letter in begun for i in p(letter)["input_ids"]]
        reader = Retokenizer(p, q, q(PROMPT)["input_ids"], prompt)
        reader.ids(answer)
        tokens = continuation(p, answer, reader, text)
        assert decoded(p, [*prompt, *answer, *tokens]) == PROMPT + begun + text
    face = p("🙈", add_special_tokens=False)["input_ids"]
    reader = Retokenizer(p, q, q(PROMPT)["input_ids"], prompt)
    reader.ids(face[:1])
    assert continuation(p, face[:1], reader, "🙈 ok")[: len(face) - 1] == face[1:]
    assert continuation(p, face[:1], reader, "ok") == [], "not what has been begun"
