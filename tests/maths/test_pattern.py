"""Patterns: exact zero counts, N:M in every group, impossible pairs refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsedraft.base.errors import UserError
from sparsedraft.maths.masks import keep_mask, obeys
from sparsedraft.maths.pattern import Pattern

NM = st.sampled_from([(1, 4), (2, 4), (4, 8), (3, 8), (7, 8), (8, 16), (1, 2)])


def scores(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).abs()


@given(NM, st.integers(1, 9), st.integers(1, 6), st.integers(0, 99))
def test_nm_keeps_exactly_n_of_every_m_and_the_best_ones(
    nm: tuple[int, int], rows: int, groups: int, seed: int
) -> None:
    n, m = nm
    pattern, s = Pattern(n, m), scores(rows, groups * m, seed)
    keep = keep_mask(pattern, s, pattern.resolve(None))
    grouped, values = keep.view(rows, groups, m), s.view(rows, groups, m)
    assert (grouped.sum(-1) == n).all() and obeys(keep.float(), pattern)
    worst_kept = values.masked_fill(~grouped, torch.inf).amin(-1)
    best_pruned = values.masked_fill(grouped, -torch.inf).amax(-1)
    assert (worst_kept >= best_pruned).all()


@given(st.integers(1, 20), st.integers(1, 30), st.floats(0.01, 0.99), st.integers(0, 99))
def test_unstructured_count_is_exact_also_among_ties(rows: int, columns: int, sparsity: float, seed: int) -> None:
    s = scores(rows, columns, seed).round()  # many ties
    keep = keep_mask(Pattern(), s, sparsity)
    assert int((~keep).sum()) == round(sparsity * (rows * columns))
    if keep.any() and not keep.all():
        assert s[keep].min() >= s[~keep].max()


def test_obeys_sees_one_weight_too_many() -> None:
    weight = torch.tensor([[1.0, 0, 2, 0, 0, 3, 0, 4]])
    assert obeys(weight, Pattern(2, 4))
    weight[0, 1] = 5
    assert not obeys(weight, Pattern(2, 4))
    assert not obeys(torch.zeros(1, 6), Pattern(2, 4)) and obeys(weight, Pattern())


@pytest.mark.parametrize("text", ["", "2-4", "0:4", "4:4", "5:4", "half", "2:4:8"])
def test_unknown_patterns(text: str) -> None:
    with pytest.raises(UserError, match="pattern"):
        Pattern.parse(text)


def test_names_and_sparsity() -> None:
    assert str(Pattern.parse("2:4")) == "2:4" and str(Pattern.parse("unstructured")) == "unstructured"
    assert Pattern(2, 8).resolve(None) == 0.75 and Pattern().resolve(None) == 0.5 and Pattern().resolve(0.7) == 0.7
    for sparsity in (0.75, 1.0, 0.0, -1.0):
        with pytest.raises(UserError, match="sparsity"):
            Pattern(2, 4).resolve(sparsity)
    with pytest.raises(UserError, match="10 inputs"):
        Pattern(2, 4).check_width(10, "q_proj")
