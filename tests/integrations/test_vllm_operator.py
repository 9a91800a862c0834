"""The operator that vLLM's layers call, which needs no vLLM: its products, its fake, and whose threads it runs on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import packed_folders
from sparsedraft.integrations.vllm import threads
from sparsedraft.integrations.vllm.multiply import keep, multiply
from sparsedraft.native import extension as native
from sparsedraft.native.layout import lay_out
from sparsedraft.native.stored_matrix import StoredMatrix

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights(*rows: int, columns: int = 72) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(rows))
    return [torch.randn(count, columns, generator=generator) for count in rows]


def kept(*parts: torch.Tensor) -> torch.Tensor:
    return keep([lay_out(StoredMatrix(part), "dense")[0] for part in parts])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (0,)])
def test_a_product_of_matrices_side_by_side_is_that_of_each(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    parts = weights(24, 7, 13)
    x = torch.randn(*shape, 72).to(dtype)
    y = multiply(x, kept(*parts), 44)
    assert y.dtype == dtype and y.shape == (*shape, 44)
    exact = x.double() @ torch.cat(parts).double().T
    bound = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert bool(((y.double() - exact).abs() <= bound * (1 + exact.abs())).all())


def test_matrices_side_by_side_have_the_bits_of_each_alone() -> None:
    parts, x = weights(24, 7), torch.randn(3, 72)
    together = multiply(x, kept(*parts), 31)
    assert torch.equal(together, torch.cat([multiply(x, kept(part), len(part)) for part in parts], 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_torch_finds_nothing_wrong_with_the_operator(tokens: int, dtype: torch.dtype) -> None:
    arguments = (torch.randn(tokens, 72).to(dtype), kept(*weights(24, 8)), 32)
    torch.library.opcheck(torch.ops.sparsedraft.multiply.default, arguments)


def test_one_graph_serves_layers_of_one_shape() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    layer = torch.compile(lambda x, matrices: multiply(x, matrices, 16) * 2, backend=count, fullgraph=True)
    x = torch.randn(2, 72)
    for part in weights(16, 16):
        number = kept(part)
        assert torch.equal(layer(x, number), multiply(x, number, 16) * 2)
    assert len(graphs) == 1


@pytest.mark.parametrize(("columns", "rows"), [(71, 24), (72, 23), (72, 25)])
def test_shapes_that_do_not_fit_are_refused_before_memory_is_read(columns: int, rows: int) -> None:
    number = kept(*weights(24))
    with pytest.raises(ValueError, match="do not fit"):
        multiply(torch.randn(2, columns), number, rows)


def test_the_threads_of_openmp_give_the_bits_of_our_own() -> None:
    if not (address := threads.team()):
        pytest.skip("no library of OpenMP here")
    module, x = native.extension(), torch.randn(5, 72)
    matrix = lay_out(StoredMatrix(weights(900)[0]), "dense")[0]
    theirs = module.Pool(2, address)
    assert theirs.threads == 2
    expected = module.multiply([matrix], x.numpy(), module.Pool(2))[0]
    for _ in range(50):
        assert (module.multiply([matrix], x.numpy(), theirs)[0] == expected).all()


def test_no_thread_is_started_beside_those_of_openmp() -> None:
    if not (address := threads.team()) or not Path("/proc/self/task").is_dir():
        pytest.skip("no library of OpenMP here")

    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = count()
    pool = native.extension().Pool(64, address)
    assert count() == before and pool.threads == 64


def test_every_kind_of_packed_matrix_is_multiplied(made: Callable[..., tuple[Path, Path]]) -> None:
    from sparsedraft.integrations.vllm.folder import PackedFolder
    from sparsedraft.native.packed_format import unpack_matrix

    for pattern, bits in (("2:4", "int4"), ("2:8", "int8"), ("unstructured", "bf16"), (None, "f16")):
        folder = PackedFolder(made("llama", True, pattern, bits)[1])
        for name, entry in folder.entries.items():
            stored = unpack_matrix(name, entry, folder.reader.tensors(name))
            matrix, _ = lay_out(stored, entry.kind)
            x = torch.randn(3, entry.columns)
            exact = x.double() @ stored.weight().double().T
            y = multiply(x, keep([matrix]), entry.rows)
            # int4 takes inputs of 8 bits, int8 of 16
            bound = {"int4": 0.02, "int8": 1e-3}.get(bits, 1e-5)
            assert float((y - exact).norm()) <= bound * float(exact.norm()), (pattern, name)


made = packed_folders.made  # fixture
