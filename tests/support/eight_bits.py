"""Products with inputs of 8 bits: what the kernels round, and what they give."""

import torch

from sparsedraft.native import extension as native

BLOCK = 64  # inputs that share an activation scale


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Inputs [tokens, columns] as the kernels round them: 8 bits of the largest of each 64."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    largest = padded.abs().amax(-1, keepdim=True)
    factor = torch.where(largest > 0, torch.tensor(127.0) / largest, 0)  # 127 / largest would be 127 * (1 / largest)
    q = (padded * factor).round().clamp(-127, 127).double() * (largest / 127).double()
    return q.flatten(1)[:, : x.shape[1]]


def product(matrix: object, x: torch.Tensor, kernels: str | None = None, threads: int = 1) -> torch.Tensor:
    module = native.extension()
    return torch.from_numpy(module.multiply([matrix], x.numpy(), module.Pool(threads), kernels)[0])


def check_product(matrix: object, x: torch.Tensor, weight: torch.Tensor) -> None:
    """The product is the exact one of `weight` (float64) and the rounded inputs, and has the same bits by each set of
    kernels and for each token alone."""
    found = product(matrix, x)
    inputs = rounded(x)
    error = (found - inputs @ weight.T).abs()
    assert bool((error <= 1e-5 * (inputs.abs() @ weight.abs().T) + 1e-30).all())
    for name in native.extension().names():
        assert torch.equal(product(matrix, x, name), found), f"{name} gives the same bits"
    alone = torch.cat([product(matrix, token[None]) for token in x])
    assert torch.equal(alone, found), "a token's result does not depend on its neighbours"
