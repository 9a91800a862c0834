"""Rows with mask tokens: what is kept, and that one pass over all starts gives what drafting at each of them does."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from sparsedraft.maths.sampling import Dice, Sampling
from sparsedraft.speculate.drafters.parallel import ParallelDrafter
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.text.bins import Bin, fill
from sparsedraft.text.dropping import Dropping
from sparsedraft.text.logits import answer_logits, outputs_of_text
from sparsedraft.text.parallel import ParallelBin, lay_out
from sparsedraft.writers.transformers.backend import TransformersBackend
from tiny import build_llama
from training import samples

MASK = 319


def laid_out(row: Bin, dropping: Dropping, seed: int = 0, additive: torch.dtype | None = None) -> ParallelBin:
    return lay_out(row, MASK, dropping, torch.Generator().manual_seed(seed), additive)


def drafts(row: ParallelBin) -> list[tuple[int, int]]:
    """(the place that it starts from, depth) of each mask token, by how many mask tokens it sees."""
    seen = row.visible[0, 0, row.length :, row.length :]
    depths = (seen if seen.dtype == torch.bool else seen == 0).sum(1).tolist()
    return [(int(row.source[row.places + i]) - depth, depth) for i, depth in enumerate(depths)]


def small_qwen() -> Qwen2ForCausalLM:
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=320, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, attn_implementation="eager",
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("build", [build_llama, small_qwen])
@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_one_pass_is_what_each_draft_reads_alone(build, keep: float) -> None:
    """Packed rows of several samples: no mask token sees another draft's, another sample, or text behind its start."""
    model, row = build(), fill(samples(4))
    additive = torch.float32 if model.config._attn_implementation == "eager" else None
    masked = laid_out(row, Dropping(5, keep, 0.3), additive=additive)
    with torch.no_grad():
        found = answer_logits(model, masked)
        begins = [*(row.positions[0] == 0).nonzero()[:, 0].tolist(), row.ids.shape[1]]
        for i in range(len(found)):
            source = int(masked.source[i])
            depth = 0 if i < masked.places else drafts(masked)[i - masked.places][1]
            last = int(row.predict[source - depth])
            begin = max(begin for begin in begins if begin <= last)
            naive = torch.tensor([[*row.ids[0, begin : last + 1].tolist(), *[MASK] * depth]])
            torch.testing.assert_close(found[i], model(naive).logits[0, -1], atol=1e-4, rtol=1e-4)
            assert int(masked.tokens[i]) == int(row.tokens[source])


def test_drafting_reads_what_training_did() -> None:
    model, k = build_llama(seed=5), 4
    (sample,) = samples(1, seed=4)
    masked = laid_out(fill([sample]), Dropping(k, 1.0))
    with torch.no_grad():
        trained = answer_logits(model, masked)
    by_start = {(start, depth): trained[masked.places + i] for i, (start, depth) in enumerate(drafts(masked))}
    by_start |= {(start, 0): trained[start] for start in range(masked.places)}
    drafter = ParallelDrafter(TransformersBackend(model), Sampling(1.0), MASK)
    text = [*sample.prompt_ids, *sample.answer_ids]
    for start in range(len(sample.answer_ids)):
        n = min(k, len(sample.answer_ids) - start)
        at = len(sample.prompt_ids) + start
        row = TokenSequence(0, text[:at], len(sample.prompt_ids), len(text), Dice(0))
        q = drafter.distributions(row, text[at : at + n - 1])
        expected = torch.stack([by_start[start, depth] for depth in range(n)]).softmax(-1)
        torch.testing.assert_close(q, expected, atol=1e-5, rtol=1e-4)


@given(st.integers(1, 5), st.integers(2, 9), st.floats(0.3, 1.0), st.floats(0, 0.5), st.integers(0, 5))
def test_what_is_kept(count: int, k: int, rate: float, least: float, seed: int) -> None:
    row, dropping = fill(samples(count, seed)), Dropping(k, rate, least)
    masked, n = laid_out(row, dropping, seed), len(row.predict)
    kept = drafts(masked)
    assert len(set(kept)) == len(kept)
    assert all(depth == 1 or (start, depth - 1) in kept for start, depth in kept), "what it sees is whole"
    for depth, number in Counter(depth for _, depth in kept).items():
        assert number <= max(1, n * dropping.share(depth))
    sample = (row.positions[0] == 0).cumsum(0)[row.predict].tolist()
    assert all(sample[start] == sample[start + depth] for start, depth in kept), "drafts end with their answer"
    if rate == 1:
        assert len(kept) == sum(
            start + depth < n and sample[start] == sample[start + depth] for start in range(n) for depth in range(1, k)
        )
    assert masked.ids.shape[1] - row.ids.shape[1] <= n * (dropping.growth - 1) + k
    assert (masked.ids[0, masked.length :] == MASK).all()


def test_shares_are_those_of_the_paper() -> None:
    assert [round(Dropping(8).share(d), 3) for d in range(1, 8)] == [0.7, 0.49, 0.343, 0.24, 0.2, 0.2, 0.2]
    row = fill([s for s in samples(40) if len(s.answer_ids) > 20])
    counts = Counter(depth for _, depth in drafts(laid_out(row, Dropping(4, 0.5, 0.0))))
    n = len(row.predict)
    assert counts == {1: int(n * 0.5), 2: int(n * 0.25), 3: int(n * 0.125)}


def test_the_text_of_a_row_and_what_a_target_says_of_it() -> None:
    row = fill(samples(3))
    masked = laid_out(row, Dropping(4))
    for name, value in vars(row).items():
        same = getattr(masked.plain(), name)
        assert torch.equal(same, value) if isinstance(value, torch.Tensor) else same == value
    model = build_llama(seed=2)
    with torch.no_grad():
        plain, behind = answer_logits(model, row), outputs_of_text(model, masked)[0]
    assert torch.equal(behind, plain[masked.source])
    assert torch.equal(outputs_of_text(model, row)[0], plain)
