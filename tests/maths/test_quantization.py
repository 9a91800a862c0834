"""Rounding to int8 and int4: against the exhaustive search, and what holds for every weight."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import (
    LARGEST,
    Codes,
    group_of,
    int4_codes,
    int8_codes,
    least_squares_scale,
    nearest_codes,
    snap,
)


def matrix(rows: int, columns: int, seed: int, share: float = 0.5) -> Tensor:
    """Random weights, rows of unequal size, a `share` of them 0."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator) ** 4
    return weight * (torch.rand(rows, columns, generator=generator) > share)


@given(st.floats(1e3, 1e7), st.sampled_from([-1.0, 1.0]), st.integers(0, 63))
def test_weights_beyond_int4_are_refused_and_never_clipped(largest: float, sign: float, place: int) -> None:
    """Up to 8 times the largest float16 every weight is within one scale; above it one sentence says so."""
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(place))
    weight[0, place] = sign * largest
    if float(weight.abs().max()) > LARGEST:
        with pytest.raises(UserError, match="does not fit int4, which holds up to 524,032: choose bf16"):
            int4_codes(weight)
        return
    found = int4_codes(weight)
    assert bool(torch.isfinite(found.scale).all())
    assert abs(float(found.weight()[0, place]) - sign * largest) <= abs(float(found.scale[0, place // 32]))


def test_int8_is_the_nearest_of_127_levels_and_clips_nothing() -> None:
    weight = matrix(7, 100, 0)
    weight[3] = 0
    codes, scale = int8_codes(weight)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float32
    for row in range(7):
        largest = weight[row].abs().max()
        assert scale[row] == (largest / 127 if largest > 0 else 1)
        assert torch.equal(codes[row].float(), (weight[row] / scale[row]).round())
        assert int(codes[row].abs().max()) == (127 if largest > 0 else 0)
    assert torch.equal(snap(weight, "int8"), codes * scale[:, None])


def errors(weight: Tensor, scales: Tensor, importance: Tensor) -> Tensor:
    """Σ importance · (w - s q)² of one group [size] for each of `scales` [n]."""
    codes = (weight / scales[:, None]).round().clamp(-8, 7)
    return ((weight - scales[:, None] * codes) ** 2 * importance).sum(1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [32, 128])
def test_the_scale_is_nearly_the_best_there_is(weighted: bool, size: int) -> None:
    """Over many groups within 2 % (weighted 5 %) of 4000 scales tried one by one, and never worse than the largest
    weight's own."""
    generator = torch.Generator().manual_seed(size)
    W = torch.randn(size, 200, generator=generator) * (torch.rand(size, 200, generator=generator) > 0.2)
    importance = torch.randn(size, 1, generator=generator).exp() ** 2 if weighted else torch.ones(size, 1)
    scale = least_squares_scale(W, importance if weighted else None)
    assert torch.equal(scale, scale.half().float())
    found, best = 0.0, 0.0
    for i in range(200):
        largest = W[:, i][W[:, i].abs().argmax()]
        tried = largest / torch.cat([torch.linspace(-16, -4, 2000), torch.linspace(4, 16, 2000)])
        mine = float(errors(W[:, i], scale[i : i + 1], importance[:, 0]))
        plain = errors(W[:, i], torch.stack([largest / -8, largest / 7]).half().float(), importance[:, 0])
        assert mine <= float(plain.min()) * 1.005
        found, best = found + mine, best + float(errors(W[:, i], tried, importance[:, 0]).min())
    assert found < best * (1.05 if weighted else 1.02)


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 100),
    group=st.sampled_from([32, 64]),
    seed=st.integers(0, 999),
    share=st.sampled_from([0, 0.5, 1]),
    size=st.sampled_from([1e-38, 1e-9, 1e-5, 1.0, 1e4]),
)
def test_any_weight_is_rounded_to_the_nearest_code_and_zeros_stay(
    rows: int, columns: int, group: int, seed: int, share: float, size: float
) -> None:
    weight = matrix(rows, columns, seed, share) * size
    found = int4_codes(weight, group)
    assert found.codes.shape == weight.shape and found.codes.dtype == torch.int8
    assert found.scale.shape == (rows, -(-columns // group)) and found.scale.dtype == torch.float16
    assert bool(torch.isfinite(found.scale).all()) and bool((found.scale != 0).all())
    assert bool((found.codes[weight == 0] == 0).all())
    for row in range(rows):  # each group for itself, and in float32
        for i, part in enumerate(weight[row].split(group)):
            nearest = (part / found.scale[row, i].float()).round().clamp(-8, 7)
            codes = found.codes[row, i * group : (i + 1) * group]
            assert torch.equal(codes.float(), nearest)
            alone = int4_codes(part[None], group)
            assert torch.equal(alone.codes[0], codes) and torch.equal(alone.scale[0, 0], found.scale[row, i])
            assert torch.equal(found.weight()[row, i * group : (i + 1) * group], codes * found.scale[row, i].float())


def test_rows_are_rounded_in_pieces_as_in_one(monkeypatch) -> None:
    weight, importance = matrix(37, 90, 5), torch.rand(90)
    whole = int4_codes(weight, 64, importance)
    monkeypatch.setattr("sparsedraft.maths.quantization.CHUNK", 500)
    pieces = int4_codes(weight, 64, importance)
    assert torch.equal(pieces.codes, whole.codes) and torch.equal(pieces.scale, whole.scale)


def test_important_inputs_are_rounded_finer() -> None:
    weight, importance = matrix(200, 32, 1, 0), torch.ones(32)
    importance[:4] = 100
    even, weighted = (int4_codes(weight, 32, h).weight() for h in (None, importance))

    def error(rounded: Tensor, columns: slice) -> float:
        return float((rounded - weight)[:, columns].square().sum())

    assert error(weighted, slice(0, 4)) < 0.5 * error(even, slice(0, 4))
    assert error(weighted, slice(4, 32)) > error(even, slice(4, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_rounded_once_stays(dtype: torch.dtype) -> None:
    """Also where the dtype does not hold code · scale exactly."""
    once = int4_codes(matrix(64, 96, 3))
    again = int4_codes(once.weight(dtype))
    exact = torch.float32 if dtype == torch.float16 else dtype
    tolerance = 2.0**-10 if dtype == torch.float32 else 2.0**-7
    torch.testing.assert_close(again.weight(exact), once.weight(exact), rtol=tolerance, atol=0)
    if dtype != torch.float16:  # whose subnormals lose digits
        scale = once.scale.float().repeat_interleave(32, 1)
        assert torch.equal((once.weight(dtype).float() / scale).round(), once.codes.float())


def test_codes_of_a_column_layout_are_the_nearest() -> None:
    W = torch.tensor([[0.9, -3.0], [-0.26, 8.0], [0.24, 0.0]])
    assert nearest_codes(W, torch.tensor([0.5, -1.0])).tolist() == [[2, 3], [-1, -8], [0, 0]]


def test_a_group_holds_32_stored_values() -> None:
    groups = {
        "unstructured": 32,
        "2:4": 64,
        "4:8": 64,
        "2:8": 128,
        "1:4": 128,
        "16:32": 64,
        "1:8": 256,
        "1:16": 32,
        "3:8": 32,
    }
    assert {name: group_of(Pattern.parse(name)) for name in groups} == groups


def test_a_matrix_of_codes_has_its_weight_in_any_dtype() -> None:
    codes = Codes(torch.tensor([[1, -8, 7]], dtype=torch.int8), torch.tensor([[0.5, -0.25]], dtype=torch.float16), 2)
    assert codes.weight().tolist() == [[0.5, -4.0, -1.75]] and codes.weight(torch.bfloat16).dtype == torch.bfloat16
