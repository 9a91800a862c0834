"""ALPS beside every support that there is, and beside SparseGPT."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.layerwise.sparsegpt import DAMPING, Hessian, prune, relative_error
from sparsedraft.maths.masks import keep_mask, obeys
from sparsedraft.maths.pattern import Pattern
from sparsedraft.stages.prune import alps as alps_module
from sparsedraft.stages.prune.alps import alps
from sparsedraft.stages.prune.refine import refine


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Hessian]:
    """A random weight and the Hessian of inputs that are strongly correlated and of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(10 * columns, columns, generator=generator) @ mix * (torch.rand(columns, generator=generator) + 0.1)
    hessian = Hessian(columns)
    hessian.add(x)
    hessian.finish()
    return torch.randn(rows, columns, generator=generator), hessian


def least_error(weight: Tensor, H: Tensor, keep: int) -> float:
    """The least relative error of one row [columns] on any support of `keep` inputs, each of them solved directly."""
    G, w = H.double(), weight.double()
    G = G + DAMPING * G.diagonal().mean() * torch.eye(len(w), dtype=torch.float64)
    errors = []
    for support in combinations(range(len(w)), keep):
        s = list(support)
        best = torch.zeros_like(w)
        best[s] = torch.linalg.solve(G[s][:, s], (G @ w)[s])
        errors.append(relative_error(weight[None], best[None].float(), H))
    return min(errors)


def test_it_comes_nearer_to_the_best_support_than_sparsegpt() -> None:
    over: dict[str, list[float]] = {"alps": [], "sparsegpt": []}
    for seed in range(20):
        weight, hessian = problem(1, 10, seed)
        least = least_error(weight[0], hessian.H, 5)
        once, keep = prune(weight, hessian, Pattern(), 0.5)
        for name, found in (
            ("alps", alps(weight, hessian, Pattern(), 0.5)[0]),
            ("sparsegpt", refine(weight, once, keep, hessian.H)),
        ):
            over[name].append(relative_error(weight, found, hessian.H) / least)
    assert min(over["alps"]) > 0.98, "damping alone may be better than the best"
    means = {name: sum(values) / len(values) for name, values in over.items()}
    assert means["alps"] - 1 < 0.6 * (means["sparsegpt"] - 1)


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("unstructured", 0.5), ("unstructured", 0.75), ("2:4", 0.5), ("2:8", 0.75), ("8:16", 0.5)]
)
def test_its_error_is_below_that_of_sparsegpt_refined(pattern: str, sparsity: float) -> None:
    weight, hessian = problem(48, 128)
    wanted = Pattern.parse(pattern)
    once, keep = prune(weight, hessian, wanted, sparsity)
    refined = relative_error(weight, refine(weight, once, keep, hessian.H), hessian.H)
    got, mask = alps(weight, hessian, wanted, sparsity)
    assert obeys(got, wanted) and int((~mask).sum()) == int((got == 0).sum()) == round(sparsity * weight.numel())
    assert relative_error(weight, got, hessian.H) < 0.95 * refined


def test_a_sample_of_the_entries_serves_as_well_as_all(monkeypatch) -> None:
    weight, hessian = problem(64, 128)
    errors = []
    for sample in (weight.numel(), 1024):
        monkeypatch.setattr(alps_module, "SAMPLE", sample)
        got, mask = alps(weight, hessian, Pattern(), 0.6)
        assert int((~mask).sum()) == round(0.6 * weight.numel()), "the last choice is exact"
        errors.append(relative_error(weight, got, hessian.H))
    assert errors[1] < 1.03 * errors[0]


def test_of_inputs_without_correlation_the_largest_products_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, diagonal = torch.randn(12, 64, generator=generator), torch.rand(64, generator=generator) + 0.5
    got, keep = alps(weight, Hessian.of(torch.diag(diagonal)), Pattern(), 0.5)
    damped = diagonal + DAMPING * diagonal.mean()
    assert torch.equal(keep, keep_mask(Pattern(), weight**2 * damped, 0.5))
    torch.testing.assert_close(got, weight * keep, rtol=1e-4, atol=1e-5)


def test_dead_inputs_zero_rows_and_few_tokens_work() -> None:
    weight, hessian = problem(6, 32)
    weight[2] = 0
    hessian.H[5] = hessian.H[:, 5] = 0
    got, keep = alps(weight, hessian, Pattern(2, 4), 0.5)
    assert torch.isfinite(got).all() and (got[2] == 0).all() and (got[~keep] == 0).all()
    one = torch.randn(32, generator=torch.Generator().manual_seed(1))
    got, keep = alps(weight, Hessian.of(torch.outer(one, one)), Pattern(), 0.5)  # of a single token
    assert torch.isfinite(got).all() and int((~keep).sum()) == 96


def test_a_hessian_that_is_not_a_number_is_refused() -> None:
    weight, hessian = problem(6, 32)
    hessian.H[3, 4] = hessian.H[4, 3] = torch.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        alps(weight, hessian, Pattern(), 0.5)
