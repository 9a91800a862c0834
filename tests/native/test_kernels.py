"""Native kernels against float64 products of the weights as stored; vectors against plain C++, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_weights import sparse
from sparsedraft.maths.quantization import int8_codes
from sparsedraft.native import extension as native

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")

LAYOUTS = [("dense", 0), ("2:4", 2), *(("N:8", n) for n in range(1, 8)), ("bitmask", 0), ("window", 0)]
NAMES = native.extension().names() if native.is_built() else []  # of the sets of kernels that run here
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i8": torch.int8}


def stored(weight: torch.Tensor, kind: str) -> tuple[np.ndarray, torch.Tensor, np.ndarray | None]:
    """(what the extension takes, what that stands for in float64, the scale of int8)."""
    if kind == "i8":
        q, scale = int8_codes(weight)
        return q.numpy(), q * scale[:, None].double(), scale.numpy()
    typed = weight.to(TYPES[kind])
    return (typed.view(torch.int16) if typed.element_size() == 2 else typed).numpy(), typed.double(), None


def product(matrix: object, x: torch.Tensor, kernels: str | None = None) -> torch.Tensor:
    module = native.extension()
    return torch.from_numpy(module.multiply([matrix], x.numpy(), module.Pool(1), kernels)[0])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("layout", "n"), LAYOUTS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 90),
    tokens=st.integers(1, 17),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_the_stored_weights(
    layout: str, n: int, kind: str, rows: int, groups: int, tokens: int, density: float, seed: int
) -> None:
    if kind == "f32" and layout != "dense":
        return  # sparse layouts hold 16 bits or fewer
    generator = torch.Generator().manual_seed(seed)
    columns = groups * 8 if layout in ("2:4", "N:8") else max(1, groups * 8 - seed % 8)  # odd widths where they may be
    weight = sparse(torch.randn(rows, columns, generator=generator), layout, n, density, generator)
    raw, exact, scale = stored(weight, kind)
    matrix = native.extension().matrix(raw, kind, layout, n, scale)
    assert (matrix.rows, matrix.columns) == (rows, columns)
    x = torch.randn(tokens, columns, generator=generator) * 10 ** (seed % 5 - 2)
    got = product(matrix, x)
    expected = x.double() @ exact.T
    # float32 sums; with int8 the inputs are rounded to 15 bits of the largest of each 512
    step = x.abs().max() / 32767 / 2 if kind == "i8" else 0
    bound = 3e-6 * (x.abs().double() @ exact.abs().T) + step * exact.abs().sum(1) + 1e-30
    assert bool(((got - expected).abs() <= bound).all())
    for other in NAMES:
        assert torch.equal(product(matrix, x, other), got), f"{other} gives the same bits"
    alone = torch.cat([product(matrix, x[t : t + 1]) for t in range(tokens)])
    assert torch.equal(alone, got), "a token's result does not depend on its neighbours"


@pytest.mark.parametrize(("layout", "density"), [("dense", 1.0), ("bitmask", 0.5), ("bitmask", 0.02), ("2:4", 0.5)])
@pytest.mark.parametrize("tokens", [5, 16, 31, 33, 48, 70, 150])
def test_many_tokens_and_wide_matrices(layout: str, density: float, tokens: int) -> None:
    """What takes tokens 16 or 48 at a time, or two tiles of rows, or 512 inputs, gives the bits of what does not."""
    generator = torch.Generator().manual_seed(tokens)
    rows, columns = 8 * 7 + 3, 2 * 512 + 76
    weight = sparse(torch.randn(rows, columns, generator=generator), layout, 2, density, generator)
    raw, exact, scale = stored(weight, "i8")
    matrix = native.extension().matrix(raw, "i8", layout, 2, scale)
    x = torch.randn(tokens, columns, generator=generator)
    x[0] *= 1e4
    found = [product(matrix, x, name) for name in NAMES]
    assert all(torch.equal(found[0], other) for other in found[1:])
    torch.testing.assert_close(
        found[0], (x.double() @ exact.T).float(), rtol=1e-3, atol=1e-4 * float(found[0].abs().max())
    )


def test_threads_change_no_bit() -> None:
    module = native.extension()
    weight = torch.randn(300, 256, generator=torch.Generator().manual_seed(0))
    matrix = module.matrix(weight.numpy(), "f32", "dense")
    x = torch.randn(5, 256).numpy()
    one, three = (module.multiply([matrix], x, module.Pool(n))[0] for n in (1, 3))
    assert np.array_equal(one, three)


def test_integers_hold_the_largest_sums() -> None:
    """127 · 32767 · 512 is just within 31 bits; one more input would not be."""
    module = native.extension()
    weight = np.full((8, 1024), 127, dtype=np.int8)
    x = torch.full((1, 1024), 3.0)
    for layout in ("dense", "bitmask"):
        matrix = module.matrix(weight, "i8", layout, 0, np.ones(8, dtype=np.float32))
        torch.testing.assert_close(product(matrix, x), torch.full((1, 8), 127 * 3.0 * 1024), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(value: float) -> None:
    """It must reach the logits, where the loop looks for it; in int8, too."""
    module = native.extension()
    x = torch.zeros(1, 64)
    x[0, 3] = value
    for kind in ("f32", "i8"):
        raw, _, scale = stored(torch.ones(8, 64), kind)
        assert not torch.isfinite(product(module.matrix(raw, kind, "dense", 0, scale), x)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((8, 8), np.float32), "f32", "2:4"), "16-bit, int8 or int4"),
        ((np.ones((8, 8), np.int16), "bf16", "2:4"), "more than 2 values"),
        ((np.ones((8, 8), np.int16), "bf16", "N:8", 9), "from 1 to 7"),
        ((np.ones((8, 8), np.int8), "i8", "dense"), "a scale for each row"),
        ((np.ones((8, 8), np.int8), "i8", "dense", 0, np.ones(7, np.float32)), "one scale for each row"),
        ((np.ones((8, 8), np.int8), "bf16", "dense"), "of the type that is named"),
        ((np.ones(8, np.float32), "f32", "dense"), "a matrix"),
        ((np.ones((8, 8), np.float32), "f64", "dense"), "f32, f16, bf16, i8, i4 or a type of GGUF files"),
        ((np.ones((8, 8), np.float32), "f32", "coo"), "no layout is named coo"),
        ((np.ones((0, 8), np.float32), "f32", "dense"), "impossible size"),
    ],
)
def test_what_cannot_be_laid_out(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.extension().matrix(*arguments)


def test_sizes_that_do_not_fit() -> None:
    module = native.extension()
    matrix = module.matrix(np.ones((8, 16), np.float32), "f32", "dense")
    with pytest.raises(ValueError, match="as many columns"):
        product(matrix, torch.ones(1, 15))
    with pytest.raises(ValueError, match="no kernels named avx1024"):
        product(matrix, torch.ones(1, 16), "avx1024")
    with pytest.raises(ValueError, match="from 1 to 256"):
        module.Pool(0)
