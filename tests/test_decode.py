"""The decoding loop: lossless, with drafters whose acceptance is known by construction, and caches that roll back."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsedraft import checkpoint
from sparsedraft.decoder import decoder_linears
from sparsedraft.errors import UserError
from sparsedraft.measure.acceptance import Histogram
from sparsedraft.measure.simulate import acceptance, simulate
from sparsedraft.speculate.backend import TransformersBackend
from sparsedraft.speculate.decode import generate
from sparsedraft.speculate.sampling import Sampling
from sparsedraft.speculate.vocab import check_same_tokenizer

GREEDY = Sampling()
V = 50


class Scripted:
    """A Backend that continues any text of length n with `script(n)`."""

    def __init__(self, script, max_length: int | None = None) -> None:
        self.script, self.max_length = script, max_length
        self.ids: list[int] = []
        self.passes, self.fed = 0, 0

    @property
    def length(self) -> int:
        return len(self.ids)

    def forward(self, ids: list[int], logits: int) -> torch.Tensor:
        self.passes += 1
        self.fed += len(ids)
        self.ids += ids
        assert self.max_length is None or len(self.ids) <= self.max_length, "more than the context was fed"
        out = torch.zeros(logits, V)
        for row, end in enumerate(range(len(self.ids) - logits + 1, len(self.ids) + 1)):
            out[row, self.script(end)] = 1
        return out

    def rollback(self, length: int) -> None:
        assert length <= len(self.ids)
        self.ids = self.ids[:length]


def target_script(n: int) -> int:
    return n % 10 + 1


def run(drafter, k: int, n: int = 20, eos: int | None = None, target: Scripted | None = None):
    target = target or Scripted(target_script)
    eos_ids = frozenset() if eos is None else frozenset({eos})
    made = generate(target, drafter, [0, 0, 0], k=k, max_new_tokens=n, sampling=GREEDY, eos_ids=eos_ids)
    return made, target


@pytest.mark.parametrize("k", range(1, 9))
def test_always_accepted(k: int) -> None:
    made, target = run(Scripted(target_script), k)
    steps = -(-20 // (k + 1))
    assert made.tokens == [target_script(3 + i) for i in range(20)]
    assert target.passes == len(made.steps) == steps
    histogram = Histogram.of_steps(made.steps, k)
    assert histogram.mal == 20 / steps and histogram.acceptance_rate == 1
    assert target.fed == 3 + 20 - 1, "every token is fed once: nothing is recomputed"


@pytest.mark.parametrize("k", range(1, 9))
def test_never_accepted(k: int) -> None:
    drafter = Scripted(lambda n: 40)
    made, target = run(drafter, k)
    assert made.tokens == [target_script(3 + i) for i in range(20)]
    histogram = Histogram.of_steps(made.steps, k)
    assert target.passes == 20 and histogram.mal == 1 and histogram.acceptance_rate == 0
    assert histogram.counts == [20] + [0] * k
    assert histogram.drafted == sum(min(k, r - 1) for r in range(1, 21)), "never drafts what it could not emit"


@pytest.mark.parametrize("k", range(1, 9))
def test_sometimes_accepted_has_the_lengths_that_follow(k: int) -> None:
    """The drafter is wrong at every text length that 4 divides."""
    made, _ = run(Scripted(lambda n: 40 if n % 4 == 0 else target_script(n)), k, n=24)
    expected, at, end = [], 3, 27
    while at < end:
        run_length = 0
        while run_length < min(k, end - at - 1) and (at + run_length) % 4:
            run_length += 1
        expected.append(run_length)
        at += run_length + 1
    assert [step.accepted for step in made.steps] == expected
    assert made.tokens == [target_script(3 + i) for i in range(24)]


def test_no_drafter_and_k_0_are_plain_decoding() -> None:
    for drafter, k in ((None, 0), (None, 5), (Scripted(target_script), 0)):
        made, target = run(drafter, k)
        assert target.passes == 20 and all(step.emitted and not step.drafted for step in made.steps)


def test_end_of_sequence_inside_a_draft_cuts_the_step() -> None:
    made, _ = run(Scripted(target_script), 8, eos=7)  # tokens 4 5 6 7: the end is the fourth draft
    assert made.tokens == [4, 5, 6, 7] and made.finish_reason == "eos"
    assert made.steps[-1].accepted == 4 and len(made.steps[-1].drafted) == 8
    made, _ = run(Scripted(lambda n: 40), 8, eos=7)
    assert made.tokens == [4, 5, 6, 7] and len(made.steps) == 4


def test_a_draft_of_eos_that_is_rejected_does_not_stop() -> None:
    made, _ = run(Scripted(lambda n: 45), 3, eos=45)
    assert len(made.tokens) == 20 and made.finish_reason == "length"


def test_full_context_of_the_target_ends_the_text() -> None:
    made, target = run(Scripted(target_script), 4, target=Scripted(target_script, max_length=10))
    assert len(made.tokens) == 7 and made.finish_reason == "context" and target.length <= 10
    with pytest.raises(UserError, match="3 tokens, which fill the target's context of 3"):
        run(None, 0, target=Scripted(target_script, max_length=3))


def test_a_drafter_shorter_in_context_stops_drafting_and_nothing_else() -> None:
    made, _ = run(Scripted(target_script, max_length=9), 4)
    assert made.tokens == [target_script(3 + i) for i in range(20)]
    lengths = [len(step.drafted) for step in made.steps]
    assert lengths[:2] == [4, 1] and not any(lengths[2:])


def test_nan_logits_name_the_model() -> None:
    class Broken(Scripted):
        def forward(self, ids, logits):
            return super().forward(ids, logits) * torch.nan

    with pytest.raises(FloatingPointError, match="drafter"):
        run(Broken(target_script), 2)
    with pytest.raises(FloatingPointError, match="target"):
        run(None, 0, target=Broken(target_script))


def test_empty_prompt() -> None:
    with pytest.raises(UserError, match="empty"):
        generate(Scripted(target_script), None, [], k=0, max_new_tokens=1, sampling=GREEDY, eos_ids=frozenset())


# ---- real models


def noisy(model, share: float, seed: int = 0):
    """Add Gaussian noise of `share` of each decoder linear's own deviation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            noise = torch.randn(linear.weight.shape, generator=generator)
            linear.weight += share * linear.weight.std() * noise
    return model


def test_rolled_back_cache_equals_a_fresh_one(tiny_llama) -> None:
    model = tiny_llama()
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, 320, (700,), generator=generator).tolist()
    backend, held = TransformersBackend(model), []
    for _ in range(40):  # random appends and roll-backs
        n = int(torch.randint(1, 9, (1,), generator=generator))
        new = text[len(held) : len(held) + n] if torch.rand((), generator=generator) < 0.7 else [5] * n
        held += new
        logits = backend.forward(new, len(new))
        with torch.no_grad():
            fresh = model(torch.tensor([held])).logits[0, -len(new) :]
        torch.testing.assert_close(logits, fresh, rtol=1e-3, atol=1e-3)
        keep = len(held) - int(torch.randint(0, min(6, len(held)), (1,), generator=generator))
        backend.rollback(keep)
        held = held[:keep]
        assert backend.length == keep


@pytest.mark.parametrize("eos", [frozenset(), frozenset(range(3, 40))])
def test_greedy_equals_the_target_alone_and_simulation_the_loop(tiny_llama, eos: frozenset[int]) -> None:
    target = tiny_llama()
    drafters = [
        noisy(tiny_llama(), 0.1),
        noisy(tiny_llama(), 0.4),
        tiny_llama(seed=5),
        tiny_llama(max_position_embeddings=40),
    ]
    partial = 0
    for p in range(3):
        prompt = torch.randint(3, 320, (4 + 6 * p,), generator=torch.Generator().manual_seed(p)).tolist()
        options = {"max_new_tokens": 40, "sampling": GREEDY, "eos_ids": eos}
        alone = generate(TransformersBackend(target), None, prompt, k=0, **options).tokens
        for model in drafters:
            context = model.config.max_position_embeddings - len(prompt)
            ((_, matches),) = (
                acceptance(model, [(prompt, alone)], None, GREEDY) if context > len(alone) else ((0, None),)
            )
            for k in range(1, 9):
                made = generate(TransformersBackend(target), TransformersBackend(model), prompt, k=k, **options)
                assert made.tokens == alone
                if matches is not None:
                    assert simulate(matches > 0.5, k, 40) == Histogram.of_steps(made.steps, k)
                    partial += 0 < sum(step.accepted for step in made.steps) < sum(len(s.drafted) for s in made.steps)
    assert partial > 25, "most of the drafters are accepted in part"


def test_simulation_knows_a_drafter_shorter_in_context() -> None:
    for context in (0, 3, 9):
        made, _ = run(Scripted(target_script, max_length=3 + context), 4)
        matches = torch.ones(20, dtype=torch.bool)
        assert simulate(matches, 4, 20, context) == Histogram.of_steps(made.steps, 4)


def test_histograms_add_up_and_come_back_from_disk() -> None:
    a, b = Histogram(2, [1, 2, 3], 11, 14), Histogram(2, [0, 0, 1], 2, 3)
    both = a + b
    assert (both.steps, both.accepted, both.drafted, both.tokens) == (7, 10, 13, 17)
    assert both.mal == 17 / 7 and both.acceptance_rate == 10 / 13
    assert Histogram.from_dict(2, both.to_dict()) == both


def test_sampled_acceptance_is_the_overlap(tiny_llama) -> None:
    p, q, sampling = tiny_llama(), noisy(tiny_llama(), 0.3), Sampling(0.8, top_k=20)
    prompt, output = list(range(5, 12)), list(range(30, 36))
    ((_, shares),) = acceptance(q, [(prompt, output)], p, sampling)
    from sparsedraft.speculate.sampling import probabilities

    with torch.no_grad():
        logits = [model(torch.tensor([prompt + output])).logits[0, 6:-1] for model in (p, q)]
    expected = torch.minimum(*(probabilities(x, sampling) for x in logits)).sum(-1)
    torch.testing.assert_close(shares, expected, rtol=1e-3, atol=1e-4)
    assert 0 < float(shares.mean()) < 1


def test_tokenizers_that_differ_are_named(tokenizer) -> None:
    import copy

    check_same_tokenizer(tokenizer, copy.deepcopy(tokenizer), "p", "q")
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["extra"])
    with pytest.raises(UserError, match="target p and drafter q have different tokenizers"):
        check_same_tokenizer(tokenizer, other, "p", "q")


def test_heads_of_unequal_width_are_refused(tiny_llama) -> None:
    from sparsedraft.speculate.vocab import check_same_head

    check_same_head(tiny_llama(), tiny_llama(), "q")
    with pytest.raises(UserError, match="head of 384 rows and the target one of 320"):
        check_same_head(tiny_llama(), tiny_llama(vocab_size=384), "q")


def test_smollm2_real_loop_equals_simulation_and_transformers(smollm2) -> None:
    """On the real model: the same histograms, and greedy text that is that of transformers' own generate."""
    target, drafter = checkpoint.load(smollm2), noisy(checkpoint.load(smollm2), 0.15)
    tokenizer = checkpoint.load_tokenizer(smollm2)
    plain = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    eos_ids = checkpoint.eos_ids(target, tokenizer)
    from sparsedraft.prompts import chat_ids

    for text, n, ks in (
        ("Name three colours.", 20, (1, 3, 5, 8)),
        ("What is 2 + 2? Answer with a number only.", 24, (2,)),
    ):
        prompt = chat_ids(tokenizer, [{"role": "user", "content": text}])
        theirs = plain.generate(torch.tensor([prompt]), max_new_tokens=n, do_sample=False)[0, len(prompt) :].tolist()
        ((_, matches),) = acceptance(drafter, [(prompt, theirs)], None, GREEDY)
        assert 0.2 < float(matches.mean()) < 1, "the drafter is accepted in part"
        for k in ks:
            made = generate(
                TransformersBackend(target), TransformersBackend(drafter), prompt, k=k, max_new_tokens=n,
                sampling=GREEDY, eos_ids=eos_ids,
            )  # fmt: skip
            assert made.tokens == theirs
            assert Histogram.of_steps(made.steps, k) == simulate(matches > 0.5, k, n)
