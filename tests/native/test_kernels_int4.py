"""Kernels of int4 against exact products of the codes with the rounded inputs, and all sets bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eight_bits import check_product, product, rounded
from sparse_weights import sparse
from sparsedraft.maths.quantization import Codes, int4_codes
from sparsedraft.native import extension as native

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")

LAYOUTS = [("dense", 0), ("2:4", 2), ("N:8", 4), ("N:8", 2), ("bitmask", 0)]
NAMES = native.extension().names() if native.is_built() else []


def codes_of(rows: int, columns: int, layout: str, n: int, group: int, density: float, seed: int) -> Codes:
    """A random matrix that the layout can hold: full groups, groups with fewer weights, rows of nothing."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 10 ** (seed % 5 - 3)
    return int4_codes(sparse(weight, layout, n, density, generator), group)


def matrix_of(codes: Codes, layout: str, n: int) -> object:
    scales = codes.scale.view(torch.uint16).numpy()
    return native.extension().matrix(codes.codes.numpy(), "i4", layout, n, None, scales, codes.group)


@pytest.mark.parametrize("group", [32, 64, 128, 256])
@pytest.mark.parametrize(("layout", "n"), LAYOUTS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 50),
    groups=st.integers(1, 90),
    tokens=st.integers(1, 30),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_codes_and_rounded_inputs(
    layout: str, n: int, group: int, rows: int, groups: int, tokens: int, density: float, seed: int
) -> None:
    columns = groups * 8 if layout in ("2:4", "N:8") else max(1, groups * 8 - seed % 8)
    codes = codes_of(rows, columns, layout, n, group, density, seed)
    matrix = matrix_of(codes, layout, n)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 4 - 2)
    x[0, :: seed % 3 + 1] *= 1e3
    check_product(matrix, x, codes.weight(torch.float64))


@pytest.mark.parametrize("tokens", [9, 13, 24, 61, 400])
@pytest.mark.parametrize(("layout", "n"), LAYOUTS)
def test_many_tokens_and_wide_matrices(layout: str, n: int, tokens: int) -> None:
    """More than one slab, more tokens than share one, any number of threads."""
    codes = codes_of(16 * 3 + 5, 512 * 2 + 72, layout, n, 64, 0.4, tokens)
    matrix = matrix_of(codes, layout, n)
    x = torch.randn(tokens, 512 * 2 + 72, generator=torch.Generator().manual_seed(tokens))
    found = [product(matrix, x, name) for name in NAMES]
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert torch.equal(product(matrix, x, threads=3), found[0])
    assert torch.equal(product(matrix, x[-1:]), found[0][-1:])
    torch.testing.assert_close(found[0].double(), rounded(x) @ codes.weight(torch.float64).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [5, 16 * 3, 16 * 5 - 3])
@pytest.mark.parametrize("group", [32, 256])
def test_each_number_of_few_tokens(group: int, rows: int) -> None:
    """One tile, and odd numbers of them that two threads share: neighbours may be multiplied together or one alone."""
    codes = codes_of(rows, 64 * 5 + 24, "dense", 0, group, 1, rows)
    matrix = matrix_of(codes, "dense", 0)
    x = torch.randn(13, 64 * 5 + 24, generator=torch.Generator().manual_seed(group))
    alone = torch.cat([product(matrix, token[None], "portable") for token in x])
    torch.testing.assert_close(alone.double(), rounded(x) @ codes.weight(torch.float64).T, rtol=1e-4, atol=1e-4)
    for tokens in range(1, 14):
        for name in NAMES:
            assert torch.equal(product(matrix, x[:tokens], name, threads=2), alone[:tokens]), f"{tokens} tokens, {name}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("layout", "n"), LAYOUTS)
def test_what_is_not_finite_shows(layout: str, n: int, value: float) -> None:
    codes = codes_of(16, 64, layout, n, 32, 0.5, 1)
    x = torch.zeros(12, 64)
    x[11, 3] = value
    for tokens in (slice(11, 12), slice(0, 12)):
        assert not torch.isfinite(product(matrix_of(codes, layout, n), x[tokens])[-1]).any()


def test_largest_sums() -> None:
    """Every code -8 and every input at the end of its range."""
    codes = Codes(torch.full((16, 256), -8, dtype=torch.int8), torch.ones(16, 4, dtype=torch.float16), 64)
    for name in NAMES:
        assert torch.equal(
            product(matrix_of(codes, "dense", 0), torch.full((1, 256), -127.0), name),
            torch.full((1, 16), 8 * 127.0 * 256),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "window"}, "int4 is laid out dense, as 2:4, 4:8, 2:8 or bitmask"),
        ({"layout": "N:8", "n": 3}, "int4 is laid out dense, as 2:4, 4:8, 2:8 or bitmask"),
        ({"group": 96}, "there must be one scale for each group"),
        ({"group": 48}, "a scale for each group of 32, 64, 128 or 256 inputs"),
        ({"groups": None}, "a scale for each group of 32, 64, 128 or 256 inputs"),
        ({"values": np.full((16, 64), 8, np.int8)}, "a code of int4 that is not from -8 to 7"),
        ({"layout": "2:4", "n": 2}, "more than 2 values"),
    ],
)
def test_what_cannot_be_laid_out(change: dict, message: str) -> None:
    arguments = {
        "values": np.ones((16, 64), np.int8), "type": "i4", "layout": "dense", "n": 0,
        "groups": np.ones((16, 2), np.float16).view(np.uint16), "group": 32,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        native.extension().matrix(**(arguments | change))
