"""Allocation: budgets held exactly, OWL's order."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsedraft.maths.pattern import Pattern
from sparsedraft.stages.prune.allocation import spread, whole
from stages import inspect, prune

SMALL = {"tokens": 1024, "sequence_length": 64}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.02, 0.98))
def test_spread_keeps_the_mean_and_stays_possible(ratios: list[float], sparsity: float) -> None:
    shares = spread(torch.tensor(ratios, dtype=torch.float64), sparsity)
    assert sum(shares) / len(shares) == pytest.approx(sparsity)
    assert all(0 < share < 1 for share in shares) and max(shares) - min(shares) <= 0.16 + 1e-9
    for (a, x), (b, y) in itertools.pairwise(sorted(zip(ratios, shares, strict=True))):
        assert x >= y - 1e-9 or a == b, "more outliers, less pruned"


NM = st.sampled_from([(2, 4), (4, 8), (2, 8), (16, 32), (1, 8), (1, 16), (2, 32), (1, 32)])


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=30), NM)
def test_whole_n_have_the_patterns_mean(ratios: list[float], nm: tuple[int, int]) -> None:
    pattern = Pattern(*nm)
    shares = spread(torch.tensor(ratios, dtype=torch.float64), pattern.resolve(None))
    kept = [(1 - share) * pattern.m for share in whole(shares, pattern)]
    assert all(k == pytest.approx(round(k)) and 1 <= round(k) <= pattern.m for k in kept)
    assert sum(kept) == pytest.approx(pattern.n * len(kept))
    wanted = [(1 - share) * pattern.m for share in shares]
    assert min(wanted) < 1 or all(abs(a - b) <= 1 + 1e-9 for a, b in zip(wanted, kept, strict=True))


@pytest.mark.parametrize(("pattern", "sparsity"), [("4:8", None), ("unstructured", 0.95), ("2:32", None)])
def test_allocated_drafters_hold_their_budget(
    pattern: str, sparsity: float | None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = {"pattern": pattern, "sparsity": sparsity, **SMALL}
    even = prune(str(tiny_checkpoint), tmp_path / "even", "demo:train", **options)
    varied = prune(str(tiny_checkpoint), tmp_path / "varied", "demo:train", allocation="owl", **options)
    assert varied["macs_per_token"] == pytest.approx(even["macs_per_token"], rel=0.01)
    assert len(set(varied["linear_sparsity"].values())) > 1 and even["linear_sparsity"] is None
    found = inspect(str(tmp_path / "varied"))
    assert found["claim_holds"]
    if pattern == "4:8":
        shares = list(varied["linear_sparsity"].values())
        assert [row["sparsity"] for row in found["linears"]] == pytest.approx(shares)
        assert all(
            row["pattern"] in ("dense", "2:4", "1:4", "3:4", *(f"{n}:8" for n in range(1, 8)))
            for row in found["linears"]
        )
