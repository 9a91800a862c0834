"""The drafter's own temperature: found where it is known, and the best of all in its range."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from sparsedraft.maths.sampling import Sampling, probabilities
from sparsedraft.maths.temperature import FINE, RANGE, Fitted, accepted, fit

WARM = Sampling(1.0)


def logits(seed: int, n: int = 40, width: int = 30) -> Tensor:
    return 2 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def fitted(p: Tensor, q_logits: Tensor, ids: Tensor | None = None) -> Fitted:
    def measure(temperatures: Sequence[float]) -> tuple[list[float], int]:
        return accepted(p, q_logits, temperatures, ids).tolist(), len(p)

    return fit(measure)


@pytest.mark.parametrize("own", [0.5, 0.63, 0.85, 1.0, 1.22, 1.5])
def test_a_drafter_that_differs_in_temperature_alone_gets_it_back(own: float) -> None:
    found = fitted(logits(0).softmax(-1), logits(0) * own)
    assert found.temperature == own and found.alpha[1] == pytest.approx(1, abs=1e-5) and found.places == 40
    assert (found.alpha[0] < 0.999) == (own != 1)


@pytest.mark.parametrize("own", [0.3, 1.8])
def test_beyond_the_range_its_end_is_the_best(own: float) -> None:
    assert fitted(logits(0).softmax(-1), logits(0) * own).temperature == (RANGE[0] if own < 1 else RANGE[1])


def test_acceptance_is_that_of_the_loops_distributions() -> None:
    p, q = logits(1), logits(1) + logits(2)
    for factor, found in zip((0.5, 0.77, 1.0, 1.3), accepted(p.softmax(-1), q, (0.5, 0.77, 1.0, 1.3)), strict=True):
        each = torch.minimum(probabilities(p, WARM), probabilities(q, WARM.tempered(factor)))
        assert float(found) == pytest.approx(float(each.sum()), abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("flat", [0.7, 1.0, 1.4])
def test_none_in_the_range_is_better(seed: int, flat: float) -> None:
    """By the precision that it states: all of the range in steps of a fifth of it."""
    p, q = logits(seed).softmax(-1), flat * (logits(seed) + 0.7 * logits(seed + 50))
    found = fitted(p, q)
    every = torch.arange(RANGE[0], RANGE[1] + FINE / 10, FINE / 5).tolist()
    best = every[int(accepted(p, q, every).argmax())]
    assert abs(found.temperature - best) <= FINE
    assert found.alpha[1] >= max(found.alpha[0], float(accepted(p, q, every).max()) / len(p) - 1e-4)


def test_where_all_are_equal_it_stays_1() -> None:
    level = torch.full((5, 8), 1 / 8)
    found = fitted(level, torch.zeros(5, 8))
    assert found == Fitted(1.0, (pytest.approx(1), pytest.approx(1)), 5)


def test_of_several_maxima_the_highest() -> None:
    peaks = {0.6: 3.0, 1.32: 4.0}

    def measure(temperatures: Sequence[float]) -> tuple[list[float], int]:
        return [max(h - 20 * abs(t - at) for at, h in peaks.items()) for t in temperatures], 10

    assert fit(measure).temperature == 1.32


def test_stored_probabilities_bound_the_whole_sum_from_above() -> None:
    p, q, factors = logits(3).softmax(-1), logits(3) + logits(4), (0.6, 1.0, 1.4)
    whole, before = accepted(p, q, factors), None
    for k in (1, 3, 10, 29, 30):
        top = p.topk(k)
        found = accepted(top.values, q, factors, top.indices)
        assert (found >= whole - 1e-3).all() and (before is None or (found <= before + 1e-3).all())
        before = found
    assert torch.allclose(found, whole, atol=1e-3), "all tokens, or all but one, are the whole"


def test_stored_in_16_bits_or_with_padding_no_mass_is_below_0() -> None:
    p = torch.tensor([[0.7, 0.301]])  # sums to more than 1, as rounded values may
    assert float(accepted(p, torch.tensor([[0.7, 0.3, 1e-9]]).log(), [1.0], torch.tensor([[0, 1]]))) <= 1
    q = logits(5, 1, 4)
    beyond = accepted(torch.tensor([[0.5, 0.25]]), q, [1.0], torch.tensor([[0, 9]]))  # token 9 is no token of q
    least = min(0.5, float(q.softmax(-1)[0, 0])) + min(0.5, 1 - float(q.softmax(-1)[0, 0]))
    assert float(beyond) == pytest.approx(least, abs=1e-6)


def test_heads_of_other_widths_and_trimmed_heads() -> None:
    p, q = logits(6, 7, 12), logits(7, 7, 10)
    common = torch.minimum(p.softmax(-1)[:, :10], q.softmax(-1)).sum()
    assert float(accepted(p.softmax(-1), q, [1.0])) == pytest.approx(float(common), abs=1e-5)
    trimmed = p.clone()
    trimmed[:, ::2] = -torch.inf
    found = accepted(p.softmax(-1), trimmed, [0.5, 1.5])
    assert bool(found.isfinite().all()) and 0 < float(found.min()) < 7


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 0.7, 1e308])
def test_a_tempered_sampling_stays_a_sampling(temperature: float) -> None:
    for factor in (1e-3, 0.5, 1.5, 100):
        found = Sampling(temperature, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.2, verification="token")
        other = found.tempered(factor)
        assert 0 < other.temperature < float("inf") and not other.greedy
        assert other.tempered(1) is other and (other.top_k, other.verification) == (3, "token")
    assert Sampling(0.8).tempered(0.5).temperature == 0.4
    assert Sampling().tempered(0.5) == Sampling(), "greedy stays greedy"
