"""Allocation: budgets held exactly, the least sum of errors, OWL's order."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsedraft.maths.pattern import Pattern
from sparsedraft.stages.inspect import stage as inspection
from sparsedraft.stages.prune.allocation import choices, least_error, spread, whole
from sparsedraft.stages.prune.stage import prune

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


@given(st.sampled_from([4, 8, 16, 32]), st.data())
def test_choices_of_nm_are_whole_and_hold_the_uniform_one(m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m - 1))
    densities = choices(Pattern(n, m), n / m)
    assert densities == sorted(set(densities)) and n / m in densities and densities[-1] == 1
    assert all((d * m).is_integer() and d >= 1 / m for d in densities) and len(densities) <= 9


@given(st.floats(0.001, 0.999))
def test_choices_without_a_pattern_leave_room_below_the_mean(density: float) -> None:
    densities = choices(Pattern(), density)
    assert densities == sorted(set(densities)) and density in densities and densities[-1] == 1
    assert densities[0] < density


def convex(draw: st.DrawFn, steps: int) -> list[float]:
    """An error curve that falls ever less, to 0."""
    falls = sorted(draw(st.lists(st.floats(0.001, 1), min_size=steps, max_size=steps)))
    return [sum(falls[: steps - i]) for i in range(steps + 1)]


@settings(max_examples=60)
@given(st.data())
def test_least_error_is_the_least_for_what_it_keeps(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    densities = choices(Pattern(2, 4), 0.5)
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    errors = [convex(data.draw, 3) for _ in range(count)]
    budget = data.draw(st.floats(0.25, 1)) * sum(sizes)

    def kept(choice: tuple[int, ...] | list[int]) -> float:
        return sum(densities[j] * size for j, size in zip(choice, sizes, strict=True))

    def total(choice: tuple[int, ...] | list[int]) -> float:
        return sum(curve[j] for j, curve in zip(choice, errors, strict=True))

    chosen = least_error(sizes, densities, errors, budget)
    assert kept(chosen) <= budget * (1 + 1e-5)
    every = list(itertools.product(range(4), repeat=count))
    best = min(total(c) for c in every if kept(c) <= budget + 1e-9)
    step = max(max(a - b for a, b in itertools.pairwise(curve)) for curve in errors)
    assert total(chosen) <= best + step + 1e-9, "short of the best by less than one step of one linear"


def test_equal_sizes_are_dealt_out_to_the_last() -> None:
    errors = [[9.0, 4.0, 1.0, 0.0], [0.9, 0.4, 0.1, 0.0], [3.0, 1.0, 0.5, 0.0]]
    assert least_error([8, 8, 8], choices(Pattern(2, 4), 0.5), errors, 12) == [2, 0, 1]
    not_convex = [[1.0, 1.0, 0.0, 0.0]]  # the hull is followed, not the first step
    assert least_error([4], choices(Pattern(2, 4), 0.5), not_convex, 3) == [2]


@pytest.mark.parametrize(
    ("allocation", "pattern", "sparsity"),
    [
        ("auto", "4:8", None), ("auto", "unstructured", 0.5), ("auto", "unstructured", 0.95), ("auto", "6:16", None),
        ("owl", "4:8", None), ("owl", "unstructured", 0.95), ("owl", "2:32", None),
    ],
)  # fmt: skip
def test_allocated_drafters_hold_their_budget(
    allocation: str, pattern: str, sparsity: float | None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = {"pattern": pattern, "sparsity": sparsity, **SMALL}
    even = prune(str(tiny_checkpoint), tmp_path / "even", "demo:train", **options)
    varied = prune(str(tiny_checkpoint), tmp_path / "varied", "demo:train", allocation=allocation, **options)
    assert varied["macs_per_token"] == pytest.approx(even["macs_per_token"], rel=0.01)
    assert len(set(varied["linear_sparsity"].values())) > 1 and even["linear_sparsity"] is None
    if allocation == "auto":
        assert sum(varied["relative_errors"].values()) < sum(even["relative_errors"].values())
    found = inspection.inspect(str(tmp_path / "varied"))
    assert found["claim_holds"]
    if pattern == "4:8":
        shares = list(varied["linear_sparsity"].values())
        assert [row["sparsity"] for row in found["linears"]] == pytest.approx(shares)
        assert all(
            row["pattern"] in ("dense", "2:4", "1:4", "3:4", *(f"{n}:8" for n in range(1, 8)))
            for row in found["linears"]
        )
