"""GGUF's blocks: products, bits and checks, against the gguf package and plain products."""

import numpy as np
import pytest
import torch

from gguf_blocks import KINDS, dequantised, random_blocks
from sparsedraft.base.errors import UserError
from sparsedraft.native import blocks, extension, layout, memory
from sparsedraft.native.packed_format import MatrixEntry, unpack_matrix
from sparsedraft.native.stored_matrix import StoredMatrix

pytestmark = pytest.mark.skipif(not extension.is_built(), reason="not built")
ROWS, COLUMNS = 45, {kind: 768 if blocks.BLOCKS[kind].inputs == 256 else 544 for kind in KINDS}
TOKENS = (1, 2, 4, 5, 12, 13, 40)


def stored(kind: str, seed: int = 0) -> StoredMatrix:
    return StoredMatrix(torch.from_numpy(random_blocks(kind, ROWS, COLUMNS[kind], seed=seed)), blocks=kind)


def matrix(kind: str) -> object:
    return layout.lay_out(stored(kind), "dense")[0]


def exact_inputs(tokens: int, columns: int) -> np.ndarray:
    """Inputs that 8 bits hold: integers up to 127, which each 64 reach."""
    x = np.random.default_rng(1).integers(-127, 128, (tokens, columns)).astype(np.float32)
    x[:, ::64] = 127
    return x


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_weights(kind: str, tokens: int) -> None:
    x = exact_inputs(tokens, COLUMNS[kind])
    (found,) = extension.extension().multiply([matrix(kind)], x, extension.pool(2))
    expected = x.astype(np.float64) @ dequantised(kind, stored(kind).values.numpy()).double().numpy().T
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_set_gives_the_same_bits_alone_and_together(kind: str) -> None:
    multiply, pool, m = extension.extension().multiply, extension.pool(2), matrix(kind)
    x = np.random.default_rng(2).standard_normal((max(TOKENS), COLUMNS[kind])).astype(np.float32)
    alone = np.concatenate([multiply([m], x[t : t + 1], pool, "portable")[0] for t in range(len(x))])
    for name in extension.extension().names():
        for tokens in TOKENS:
            (together,) = multiply([m], x[:tokens].copy(), pool, name)
            assert np.array_equal(together.view(np.uint32), alone[:tokens].view(np.uint32)), (name, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_zeros_are_those_of_the_gguf_package(kind: str) -> None:
    source = stored(kind)
    source.values[7, : blocks.BLOCKS[kind].bytes] = 0  # a block of zeros
    expected = dequantised(kind, source.values.numpy())
    assert torch.equal(source.weight(), expected)
    assert source.shape == tuple(expected.shape) and source.type == kind
    assert source.nonzero == int(torch.count_nonzero(expected)) < expected.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused(kind: str) -> None:
    source, block = stored(kind), blocks.BLOCKS[kind]
    entry = MatrixEntry.describe(source, "dense")
    assert unpack_matrix("w", entry, {"values": source.values}).blocks == kind
    with pytest.raises(UserError, match=r"packed matrix w has values \[45, "):
        unpack_matrix("w", entry, {"values": source.values[:, : -block.bytes]})
    for at in block.halves:
        broken = source.values.clone()
        broken[3, -block.bytes :][at : at + 2] = torch.tensor([0, 0x7C], dtype=torch.uint8)  # infinity
        with pytest.raises(UserError, match="packed matrix w has a scale that is not finite"):
            unpack_matrix("w", entry, {"values": broken})
    fields = {"kind": "dense", "values": kind, "rows": 4, "columns": block.inputs + 8}
    with pytest.raises(UserError, match=f"{kind} is dense, its columns a multiple of {block.inputs}"):
        MatrixEntry.parse("w", fields)
    with pytest.raises(UserError, match=f"{kind} is dense"):
        MatrixEntry.parse("w", fields | {"kind": "bitmask", "columns": block.inputs})
    with pytest.raises(ValueError, match="whole blocks"):
        extension.extension().matrix(source.values.numpy(), kind, "dense", columns=COLUMNS[kind] - block.inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_have_the_bytes_that_are_counted(kind: str) -> None:
    found = extension.extension().parts_of(matrix(kind))["stream"]
    counted = memory.laid_out_bytes(MatrixEntry.describe(stored(kind), "dense"), 0)
    assert 0 <= len(np.asarray(found)) - counted <= 128 * 3  # ends of cache lines, and what may be read behind the end
