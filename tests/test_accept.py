"""The accept/residual rule is exact: emitted tokens have the target's distribution, whatever the drafter's."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsedraft.errors import UserError
from sparsedraft.speculate import accept, decode
from sparsedraft.speculate.accept import accept_greedy, accept_sampled, residual
from sparsedraft.speculate.decode import Step, speculate
from sparsedraft.speculate.sampling import Sampling, probabilities

V = 4


def test_greedy_accepts_the_run_of_matches() -> None:
    target = torch.tensor([5, 6, 7, 8])
    for drafted, expected in (([5, 6, 7], 3), ([5, 9, 7], 1), ([4, 6, 7], 0), ([], 0)):
        assert accept_greedy(target, torch.tensor(drafted, dtype=torch.long)) == expected


@given(st.integers(0, 10**6))
def test_one_draft_gives_exactly_p(seed: int) -> None:
    """Summed over the draft and over accept/reject, the emitted token's distribution is p: 1e-9."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.rand(V, generator=generator, dtype=torch.float64).softmax(-1) ** 2 for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    emitted = torch.zeros(V, dtype=torch.float64)
    for x in range(V):
        kept = min(1.0, float(p[x] / q[x]))
        emitted[x] += q[x] * kept
        emitted += q[x] * (1 - kept) * residual(p, q)
    torch.testing.assert_close(emitted, p, rtol=0, atol=1e-9)


def test_the_rule_in_code_is_the_rule_above(monkeypatch) -> None:
    """`accept_sampled` accepts exactly when u < p/q, at every place, and draws from the residual or from p_n."""
    p = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], dtype=torch.float64)
    q = torch.tensor([[0.4, 0.4, 0.2], [0.25, 0.5, 0.25]], dtype=torch.float64)
    drawn_from: list[torch.Tensor] = []
    monkeypatch.setattr(accept, "draw", lambda distribution, generator: drawn_from.append(distribution) or 0)
    for u in (0.0, 0.2, 0.249, 0.26, 0.49, 0.51, 0.9):
        for drafted in itertools.product(range(3), repeat=2):
            monkeypatch.setattr(torch, "rand", lambda *_, u=u, **__: torch.tensor(u, dtype=torch.float64))
            expected = 0
            while expected < 2 and u < float(p[expected, drafted[expected]] / q[expected, drafted[expected]]):
                expected += 1
            accepted, _ = accept_sampled(p, q, torch.tensor(drafted), torch.Generator())
            assert accepted == expected
            wanted = p[2] if expected == 2 else residual(p[expected], q[expected])
            torch.testing.assert_close(drawn_from.pop(), wanted)


def test_residual_of_equal_distributions_is_no_nan() -> None:
    p = torch.tensor([0.5, 0.5])
    assert torch.equal(residual(p, p), p)


class Toy:
    """A Backend whose next-token logits depend on the last two tokens, from a fixed random table."""

    max_length = None

    def __init__(self, seed: int) -> None:
        self.table = torch.randn(V + 1, V + 1, V, generator=torch.Generator().manual_seed(seed)) * 1.5
        self.ids: list[int] = []
        self.passes = 0

    @property
    def length(self) -> int:
        return len(self.ids)

    def forward(self, ids: list[int], logits: int) -> torch.Tensor:
        self.passes += 1
        self.ids += ids
        ends = range(len(self.ids) - logits + 1, len(self.ids) + 1)
        return torch.stack([self.after(self.ids[:end]) for end in ends])

    def after(self, ids: list[int]) -> torch.Tensor:
        first, second = ([V, V, *ids])[-2:]
        return self.table[first, second]

    def rollback(self, length: int) -> None:
        self.ids = self.ids[:length]


WARPERS = [Sampling(1.0), Sampling(0.6), Sampling(1.3, top_k=3), Sampling(1.0, top_p=0.8)]


@pytest.mark.parametrize("sampling", WARPERS, ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_sampled_loop_has_the_targets_distribution(sampling: Sampling, k: int) -> None:
    """Chi-square over all sequences of 3 tokens, 4,000 draws of the real loop; false alarm below 1 in 10,000."""
    target, length, draws = Toy(1), 3, 4000
    exact = {}
    for sequence in itertools.product(range(V), repeat=length):
        chance = 1.0
        for i, token in enumerate(sequence):
            chance *= float(probabilities(target.after([0, *sequence[:i]]), sampling)[token])
        exact[sequence] = chance
    seen = dict.fromkeys(exact, 0)
    for seed in range(draws):
        steps = speculate(
            Toy(1), Toy(2), [0], k=k, max_new_tokens=length, sampling=sampling, eos_ids=frozenset(), seed=seed
        )
        seen[tuple(token for step in steps for token in step.emitted)] += 1
    assert sum(exact.values()) == pytest.approx(1)
    assert all(seen[s] == 0 for s, chance in exact.items() if chance == 0), "a warper forbids these"
    rare = sum(chance for chance in exact.values() if chance * draws < 5)
    cells = [(seen[s], chance * draws) for s, chance in exact.items() if chance * draws >= 5]
    cells.append((draws - sum(n for n, _ in cells), max(rare * draws, 1e-9)))
    statistic = sum((n - expected) ** 2 / expected for n, expected in cells if expected > 1e-6)
    # chance that a chi-square with d degrees of freedom exceeds it
    d = torch.tensor((len(cells) - 1) / 2.0)
    assert float(torch.special.gammaincc(d, torch.tensor(statistic / 2))) > 1e-4


def test_warpers_by_hand() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert probabilities(logits, Sampling(0.0)).tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(probabilities(logits, Sampling(1.0)), logits.exp())
    torch.testing.assert_close(probabilities(logits, Sampling(1.0, top_k=2)), torch.tensor([4 / 7, 3 / 7, 0, 0]))
    torch.testing.assert_close(probabilities(logits, Sampling(1.0, top_p=0.65)), torch.tensor([4 / 7, 3 / 7, 0, 0]))
    torch.testing.assert_close(probabilities(logits, Sampling(1.0, top_p=1e-6)), torch.tensor([1.0, 0, 0, 0]))
    squared = logits.exp() ** 2
    torch.testing.assert_close(probabilities(logits, Sampling(0.5)), squared / squared.sum())


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_sampling(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="is not possible"):
        Sampling(**options)  # type: ignore[arg-type]


def test_module_is_what_the_loop_uses() -> None:
    assert decode.accept_sampled is accept_sampled and Step([], 0, []).drafted == []
