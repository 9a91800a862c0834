"""Drafting across tokenizers: lossless whatever the drafter does, and accepted where both would write the same text."""

import itertools
import random
from collections import Counter, defaultdict
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Dice, Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.retokenize import Retokenizer, inner
from sparsedraft.models.tokenizers.vocab import surfaces
from sparsedraft.speculate.loop.decode import Decoder, Generation, generate, generate_all
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.tokenizers import uag
from sparsedraft.speculate.tokenizers.realign import Longer, RealignDrafter, continuation
from sparsedraft.writers.loaded import LoadedModel
from tiny import build_llama, build_tokenizer
from tokens import FAITHFUL, TEXTS, built, byte_level
from toys import Table, Toy, chi_square, outcomes, p_value

GREEDY = Sampling()
PROMPT = "the prompt ends here:"


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@cache
def small(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> LlamaForCausalLM:
    return build_llama(seed, layers=1, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32)


class Scripted(LoadedModel):
    """A side that writes `texts` after the prompts of the same number, at times (`wrong`) something else."""

    takes_masks = True  # scripts need none

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: frozenset[int],
        prompts: tuple[list[int], ...] = (),
        texts: tuple[str, ...] = (),
        wrong: float = 0.0,
    ) -> None:
        super().__init__(model, tokenizer, eos_ids)
        self.prompts, self.texts, self.wrong = prompts, texts, wrong

    def backend(self, rows: int) -> Toy:
        tokenizer, size, end = self.tokenizer, len(self.tokenizer), self.tokenizer.eos_token_id
        answers = [[*(p.id for p in inner(tokenizer, text)), end] if text else [end] for text in self.texts]
        anchor = inner(tokenizer, "x")[0].id

        def after(ids: list[int]) -> torch.Tensor:
            number = next(i for i, prompt in enumerate(self.prompts) if ids[: len(prompt)] == prompt)
            own, answer, text = ids[len(self.prompts[number]) :], answers[number], self.texts[number]
            written = decoded(tokenizer, [anchor, *own])[1:]
            dice = random.Random(repr((written, number)))
            if own == answer[: len(own)]:
                token = answer[len(own)] if len(own) < len(answer) else end
            elif text.startswith(written) and own[-1] != end:
                rest = (
                    inner(tokenizer, text[len(written) :]) if written != text else []
                )  # also where it cannot write it
                token = rest[0].id if rest else end
            else:
                token = dice.randrange(size)
            if dice.random() < self.wrong:
                token = dice.randrange(size)
            return torch.zeros(size).scatter_(0, torch.tensor([token]), 20.0)

        return Toy(after, rows)


class Words(Scripted):
    """Writes nothing but whole tokens of its text at once: behind a token that is not of them it is lost."""

    def backend(self, rows: int) -> Toy:
        t, size = self.tokenizer, len(self.tokenizer)
        (prompt,), (text,) = self.prompts, self.texts
        answer = [*(p.id for p in inner(t, text)), t.eos_token_id]

        def after(ids: list[int]) -> torch.Tensor:
            own = ids[len(prompt) :]
            lost = own != answer[: len(own)] or len(own) == len(answer)
            return torch.zeros(size).scatter_(0, torch.tensor([0 if lost else answer[len(own)]]), 20.0)

        return Toy(after, rows)


def sides(
    target: str, drafter: str, texts: list[str], wrong: float = 0.0, prompts: list[str] | None = None
) -> tuple[Scripted, Scripted, list[PromptPair]]:
    """Both sides writing `texts` after prompts of which none begins another; and these prompts."""
    p, q = built(target), built(drafter)
    spoken = prompts or [f"{PROMPT} {chr(ord('a') + i)}:" for i in range(len(texts))]
    asked = [PromptPair(p(text)["input_ids"], uag.opening(q, text)) for text in spoken]
    eos = (frozenset({p.eos_token_id}), frozenset({q.eos_token_id}))
    return (
        Scripted(small(p), p, eos[0], tuple(x.target for x in asked), tuple(texts)),
        Scripted(small(q), q, eos[1], tuple(x.drafter for x in asked), tuple(texts), wrong),
        asked,
    )


def run(
    pair: Pair, asked: list[PromptPair], k: int, n: int, sampling: Sampling = GREEDY, stops: Stops | None = None
) -> list[Generation]:
    decoder = pair.decoder(asked, Constant(k), sampling, stops=stops)
    return generate_all(decoder, [x.target for x in asked], n, list(range(len(asked))))


# ---- what both would write is accepted


@pytest.mark.parametrize(("target", "drafter"), [*itertools.permutations(FAITHFUL, 2)])
def test_realign_proposes_what_the_drafter_says(target: str, drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafter and target write the same text. Whatever of it is drafted is proposed, K tokens of the target's if it is
    long enough, and accepted but for a last token that the draft's end has cut."""
    k = 5
    texts = [*TEXTS.values()]
    said: list[str] = []
    written = RealignDrafter._written

    def spy(self: RealignDrafter, kept: list[int], end: list[int], drafted: list[int]) -> str:
        said.append(written(self, kept, end, drafted))
        return said[-1]

    monkeypatch.setattr(RealignDrafter, "_written", spy)
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


# ---- lossless


def test_fuzz_scripts() -> None:
    """600 cases: any tokenizers, route, K, rows, wrong drafts, ends and stop strings."""
    dice = random.Random(0)
    kinds = [*FAITHFUL, "unigram", "wordpiece"]
    routes: Counter[str] = Counter()
    accepted = 0
    for case in range(600):
        target, drafter = dice.choice(FAITHFUL), dice.choice(kinds)
        if target == drafter:
            continue
        texts = []
        for _ in range(dice.randint(1, 3)):
            text = dice.choice([*TEXTS.values()])
            start = dice.randrange(len(text))
            texts.append(text[start : start + dice.randint(0, 30)])
        p, q, asked = sides(target, drafter, texts, wrong=dice.choice([0, 0.1, 0.4, 1]))
        if dice.random() < 0.3:  # ends somewhere in the text
            some = dice.choice([i for text in texts for i in p.tokenizer(text or "a")["input_ids"]])
            p = Scripted(p.model, p.tokenizer, p.eos_ids | {some}, p.prompts, p.texts)
        stops = Stops(p.tokenizer, [dice.choice(texts)[-3:-1] or "e"]) if dice.random() < 0.3 else None
        n = dice.randint(1, 40)
        pair = Pair.of(p, q, dice.choice(["auto", "realign", "intersection"]), GREEDY)
        alone = run(Pair.of(p, None, "auto", GREEDY), asked, 0, n, stops=stops)
        made = run(pair, asked, dice.randint(0, 7), n, stops=stops)
        assert [(m.tokens, m.finish_reason) for m in made] == [(a.tokens, a.finish_reason) for a in alone], case
        routes[pair.route] += 1
        accepted += sum(step.accepted for m in made for step in m.steps)
    assert sum(routes.values()) >= 500 and min(routes["realign"], routes["intersection"]) > 100
    assert accepted > 1000, "the drafts must be taken for this to mean anything"


@pytest.mark.parametrize("route", ["realign", "intersection"])
def test_random_models_write_the_targets_own(route: str) -> None:
    """Random weights write mostly broken characters and special tokens; rows of different lengths at once."""
    kinds = {"tiny": build_tokenizer(), **{name: built(name) for name in ("byte-level", "gemma", "llama", "wordpiece")}}
    models_of = {name: LoadedModel(small(t, 1), t, frozenset({2, 7})) for name, t in kinds.items()}
    dice = random.Random(1)
    for target, drafter in itertools.permutations(kinds, 2):
        p, q = models_of[target], models_of[drafter]
        pair, plain = Pair.of(p, q, route, GREEDY), Pair.of(p, None, "auto", GREEDY)
        prompts = [[dice.randrange(3, p.width) for _ in range(dice.randint(1, 20))] for _ in range(2)]
        asked = [pair.prompted(ids) for ids in prompts]
        alone = [run(plain, [PromptPair(ids, ids)], 0, 16)[0].tokens for ids in prompts]
        assert [made.tokens for made in run(pair, asked, dice.choice([1, 3, 6]), 16)] == alone


def test_tokens_beyond_a_models_rows_are_neither_proposed_nor_read() -> None:
    """Both tokenizers have `<think>` as their last token, and a model with one row less."""
    kinds = built("byte-level"), built("gemma")
    p, q, asked = sides("byte-level", "gemma", ["ok <think> so <think>"])
    models_of = [build_llama(1, layers=1, vocab_size=len(t) - 1, hidden_size=32, intermediate_size=32) for t in kinds]
    assert [t.convert_tokens_to_ids("<think>") for t in kinds] == [model.config.vocab_size for model in models_of]
    for target, drafter in (
        (LoadedModel(models_of[0], p.tokenizer, p.eos_ids), q),
        (p, LoadedModel(models_of[1], q.tokenizer, q.eos_ids)),
    ):
        alone = run(Pair.of(target, None, "auto", GREEDY), asked, 0, 30)
        for route in ("realign", "intersection"):
            made = run(Pair.of(target, drafter, route, GREEDY), asked, 4, 30)
            assert made[0].tokens == alone[0].tokens
            assert any(step.drafted for step in made[0].steps)


# ---- distributions


def tiny_vocabulary(tokens: list[str], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core)


P = tiny_vocabulary(["a", "b", "c", "ab", "bc", "d"], [("a", "b"), ("b", "c")])
Q = tiny_vocabulary(["c", "bc", "b", "a", "ca"], [("c", "a"), ("b", "c")])
LENGTH = 3
ASKED = PromptPair([0, 1], [3, 2])


def decoder_of(route: str, sampling: Sampling, k: int, seed: int = 1, **options) -> Decoder:
    target, backend = Table(seed, len(P), dtype=torch.float64), Table(seed + 1, len(Q), dtype=torch.float64)
    readers = uag.Readers(P, Q, [(ASKED.target, ASKED.drafter)], len(Q))
    if route == "realign":
        drafter = RealignDrafter(backend, readers, P, Q, ends=frozenset(), eos=None, width=len(P))
        return Decoder(target, drafter, Constant(k), sampling, **options)
    vocabulary = uag.vocabulary_map(surfaces(P), surfaces(Q), len(P), len(Q), (None, None))
    assert len(vocabulary.target) == 4
    return Decoder(
        target, uag.intersection_drafter(backend, readers, vocabulary, sampling), Constant(k), sampling, **options
    )


def exact(sampling: Sampling, seed: int = 1) -> dict[tuple[int, ...], float]:
    """The target's own probability of every answer."""
    table, found = Table(seed, len(P), dtype=torch.float64), {(): 1.0}
    for _ in range(LENGTH):
        found = {
            (*text, token): chance * p
            for text, chance in found.items()
            for token, p in enumerate((table.after([*ASKED.target, *text]) / sampling.temperature).softmax(-1).tolist())
        }
    return found


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("route", ["realign", "intersection"])
def test_every_outcome_has_the_targets_probability(route: str, k: int) -> None:
    """All paths through the loop's throws, summed: no chance in it."""
    sampling, found = Sampling(temperature=0.9), defaultdict(float)
    accepted = 0.0

    def whole(dice) -> tuple[tuple[int, ...], int]:
        made = generate(decoder_of(route, sampling, k, dice=lambda seed: dice), ASKED.target, LENGTH)
        return tuple(made.tokens), sum(step.accepted for step in made.steps)

    for (text, taken), chance in outcomes(whole):
        found[text] += chance
        accepted += chance * taken
    expected = exact(sampling)
    assert sum(found.values()) == pytest.approx(1)
    assert max(abs(found[text] - p) for text, p in expected.items()) < 1e-6
    assert accepted > 0.1, "drafts are taken"


@pytest.mark.parametrize("route", ["realign", "intersection"])
def test_samples_have_the_targets_distribution(route: str) -> None:
    """With the loop's own dice; a false alarm would have had one chance in 1000, but the seeds are fixed."""
    sampling, n = Sampling(temperature=1.1), 1500
    seen = Counter(tuple(generate(decoder_of(route, sampling, 2), ASKED.target, LENGTH, i).tokens) for i in range(n))
    cells = [(seen[text], n * p) for text, p in exact(sampling).items()]
    assert sum(count for count, _ in cells) == n
    assert p_value(*chi_square(cells)) > 1e-3


# ---- the way that is chosen


def test_errors_in_one_sentence() -> None:
    p, q = built("gemma"), built("byte-level")
    target, drafter = (LoadedModel(small(t), t, frozenset({2})) for t in (p, q))
    with pytest.raises(UserError, match="different tokenizers") as off:
        Pair.of(target, drafter, "off", GREEDY)
    assert "\n" not in str(off.value) and str(off.value).count(".") == 1
    with pytest.raises(UserError, match="not known"):
        Pair.of(target, drafter, "both", GREEDY)
    other = tiny_vocabulary(["ж", "ш"], [])
    strange = LoadedModel(build_llama(vocab_size=2, layers=1), other, frozenset())
    with pytest.raises(UserError, match="no token in common"):
        Pair.of(LoadedModel(build_llama(vocab_size=6, layers=1), P, frozenset()), strange, "intersection", GREEDY)


def test_auto_goes_by_overlap_and_mode_and_says_so() -> None:
    p = build_tokenizer()
    same = LoadedModel(small(p), p, frozenset({2}))
    assert Pair.of(same, same, "auto", GREEDY).route == "same"
    gemma, level, word, digits = (
        LoadedModel(small(built(name)), built(name), frozenset({2}))
        for name in ("gemma", "byte-level", "wordpiece", "byte-level, digits")
    )
    sampled = Sampling(temperature=1.0)
    chosen = {
        "alike": Pair.of(level, digits, "auto", GREEDY),
        "greedy": Pair.of(gemma, level, "auto", GREEDY),
        "sampled": Pair.of(gemma, level, "auto", sampled),
        "strange": Pair.of(LoadedModel(build_llama(vocab_size=6, layers=1), P, frozenset()), word, "auto", sampled),
    }
    assert {name: pair.route for name, pair in chosen.items()} == {
        "alike": "intersection", "greedy": "realign", "sampled": "intersection", "strange": "realign",
    }  # fmt: skip
    assert len({pair.why for pair in chosen.values()}) == 4
    assert all("%" in chosen[name].why for name in ("alike", "sampled", "strange"))


def test_the_drafters_prompt_has_its_own_special_tokens_once() -> None:
    target, gemma, word = (
        LoadedModel(small(built(n)), built(n), frozenset()) for n in ("byte-level", "gemma", "wordpiece")
    )
    start, end = built("byte-level").convert_tokens_to_ids(["<s>", "<|im_end|>"])
    ids = [start, *built("byte-level")("the fox <s>", split_special_tokens=True)["input_ids"], end]
    for drafter in (gemma, word):
        q = drafter.tokenizer
        own = Pair.of(target, drafter, "realign", GREEDY).prompted(ids).drafter
        first, last = q.convert_tokens_to_ids(["<s>", "</s>"])
        assert own[0] == first and own.count(first) == 1 and last not in own
        assert decoded(q, own).startswith("the fox")
        assert Pair.of(target, drafter, "realign", GREEDY).prompted([start]).drafter, "never empty"
    with_template = LoadedModel(target.model, build_tokenizer(), frozenset({2}))
    chat = [{"role": "user", "content": "the fox"}]
    own = Pair.of(gemma, with_template, "realign", GREEDY).prompted([5], chat).drafter
    assert build_tokenizer().decode(own) == "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n"


# ---- surfaces


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
