"""int8 times inputs of 8 bits, dense and by a mask: exact products of the rounded inputs, the same bits in all sets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eight_bits import check_product, product
from sparsedraft.maths.quantization import int8_codes
from sparsedraft.native import extension as native

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")

NAMES = native.extension().names() if native.is_built() else []


def matrix_of(codes: torch.Tensor, scale: torch.Tensor, layout: str = "dense") -> object:
    return native.extension().matrix(codes.numpy(), "i8", layout, 0, scale.numpy(), activations=8)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 50), columns=st.integers(1, 700), tokens=st.integers(1, 30), seed=st.integers(0, 99))
def test_products_are_those_of_codes_and_rounded_inputs(rows: int, columns: int, tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes, scale = int8_codes(torch.randn(rows, columns, generator=generator) * 10 ** (seed % 5 - 3))
    matrix = matrix_of(codes, scale)
    x = torch.randn(tokens, columns, generator=generator) * 10 ** (seed % 4 - 2)
    x[0, :: seed % 3 + 1] *= 1e3
    check_product(matrix, x, codes.double() * scale.double()[:, None])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 50),
    columns=st.integers(1, 1200),
    tokens=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_mask_gives_the_bits_of_the_dense_matrix(
    rows: int, columns: int, tokens: int, density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes, scale = int8_codes(torch.randn(rows, columns, generator=generator))
    codes *= torch.rand(rows, columns, generator=generator) < density
    masked, dense = matrix_of(codes, scale, "bitmask"), matrix_of(codes, scale)
    x = torch.randn(tokens, columns, generator=generator) * 10 ** (seed % 4 - 2)
    check_product(masked, x, codes.double() * scale.double()[:, None])
    assert torch.equal(product(masked, x), product(dense, x))


@pytest.mark.parametrize("rows", [5, 16 * 3, 16 * 5 - 3])
def test_each_number_of_few_tokens(rows: int) -> None:
    """One tile, and odd numbers of them that two threads share: neighbours may be multiplied together or one alone."""
    generator = torch.Generator().manual_seed(rows)
    matrix = matrix_of(*int8_codes(torch.randn(rows, 64 * 5 + 24, generator=generator)))
    x = torch.randn(13, 64 * 5 + 24, generator=generator)
    alone = torch.cat([product(matrix, token[None], "portable") for token in x])
    for tokens in range(1, 14):
        for name in NAMES:
            assert torch.equal(product(matrix, x[:tokens], name, threads=2), alone[:tokens]), f"{tokens} tokens, {name}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["dense", "bitmask"])
def test_the_largest_codes_and_inputs_do_not_overflow(name: str, layout: str) -> None:
    """127 times 127 in all places: pairs of products nearly fill 16 bits."""
    codes = torch.full((17, 4096), 127, dtype=torch.int8)
    codes[1::2] = -127
    x = torch.ones(13, 4096)
    x[1::2] = -1
    found = product(matrix_of(codes, torch.ones(17), layout), x, name)
    assert torch.allclose(found.double(), x.double() @ codes.double().T, rtol=1e-6)


@pytest.mark.parametrize(("type_", "layout", "n"), [("i8", "N:8", 2), ("i8", "2:4", 2), ("bf16", "dense", 0)])
def test_only_dense_and_masked_int8_take_8_bits(type_: str, layout: str, n: int) -> None:
    values = np.zeros((8, 64), np.int8 if type_ == "i8" else np.int16)
    scale = np.ones(8, np.float32) if type_ == "i8" else None
    with pytest.raises(
        ValueError, match="only int8 values that lie dense or by a bitmask are multiplied with inputs of 8 bits"
    ):
        native.extension().matrix(values, type_, layout, n, scale, activations=8)


@pytest.mark.parametrize("layout", ["dense", "bitmask"])
def test_parts_make_the_same_matrix_and_wrong_ones_are_refused(layout: str) -> None:
    codes, scale = int8_codes(torch.randn(35, 200, generator=torch.Generator().manual_seed(1)))
    codes[:, ::3] = 0
    matrix = matrix_of(codes, scale, layout)
    parts = native.extension().parts_of(matrix)
    stream = np.copy(parts.pop("stream"))
    aligned = np.zeros(len(stream) + 64, np.uint8)
    start = -aligned.ctypes.data % 64
    aligned[start : start + len(stream)] = stream
    again = native.extension().matrix_of(parts, aligned[start : start + len(stream)])
    x = torch.randn(3, 200)
    assert torch.equal(product(again, x), product(matrix, x))
    for wrong in ({"activations": 16}, {"activations": 4}, {"rows": 64}):
        with pytest.raises(ValueError, match="kept parts that are no matrix"):
            native.extension().matrix_of(parts | wrong, aligned[start : start + len(stream)])


@pytest.mark.parametrize("activations", [8, 16])
def test_no_tokens_give_no_rows(activations: int) -> None:
    module = native.extension()
    matrix = module.matrix(np.ones((8, 64), np.int8), "i8", "dense", 0, np.ones(8, np.float32), activations=activations)
    (found,) = module.multiply([matrix], np.zeros((0, 64), np.float32), module.Pool(1))
    assert found.shape == (0, 8)
