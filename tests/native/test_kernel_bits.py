"""What every set of kernels computes beside products and attention: right, with the same bits, whatever the sizes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from packed_folders import ENGINE, close
from sparsedraft.native import extension as native
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")

NAMES = native.extension().names() if native.is_built() else []  # of the sets of kernels that run here


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def same(found: list[np.ndarray]) -> bool:
    return all(np.array_equal(found[0].view(np.int32), other.view(np.int32)) for other in found[1:])


@pytest.mark.parametrize("size", [*range(1, 41), 63, 65, 576, 577])
def test_norms_and_gates_of_every_size(size: int) -> None:
    module, (x, weight) = native.extension(), numbers(2, size, seed=size)
    exact, scales = torch.from_numpy(x).double(), torch.from_numpy(weight).double()
    for one_more in (False, True):
        found = [module.rms_norm(x, weight, 1e-5, one_more, name) for name in NAMES]
        expected = exact / (exact.square().mean() + 1e-5).sqrt() * (scales + one_more)
        torch.testing.assert_close(torch.from_numpy(found[0][0]), expected.float(), rtol=1e-5, atol=1e-6)
        assert same(found)
    for gelu in (False, True):
        found = [module.gated(x, weight, gelu, name) for name in NAMES]
        activation = torch.nn.functional.gelu(exact, approximate="tanh") if gelu else torch.nn.functional.silu(exact)
        torch.testing.assert_close(torch.from_numpy(found[0][0]), (activation * scales).float(), rtol=1e-4, atol=1e-6)
        assert same(found)


@pytest.mark.parametrize("head_dim", [2, 10, 20, 24, 40, 44, 64, 80])
def test_whole_models_have_the_same_bits(head_dim: int, tmp_path: Path) -> None:
    """Rotary embedding, norms of heads, odd hidden sizes: the logits of a text, read at once and token by token."""
    config = hf.Qwen3Config(
        vocab_size=97, hidden_size=44, intermediate_size=75, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=head_dim, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(head_dim)
    model = hf.Qwen3ForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    shared, ids = native_model(tmp_path), [*range(3, 40)]
    found = [Engine(shared, threads=1, kernels=name).forward(ids, len(ids)) for name in NAMES]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    close(found[0], expected, ENGINE)
    for name, other in zip(NAMES, found, strict=True):
        assert torch.equal(other, found[0]), f"{name} gives other bits than {NAMES[0]}"
        engine = Engine(shared, threads=1, kernels=name)
        assert torch.equal(torch.cat([engine.forward([token]) for token in ids]), found[0])


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("objdump"), reason="needs binutils")
def test_loading_needs_no_vectors() -> None:
    """Code that runs when the module is loaded runs on every CPU, also on those without AVX."""
    file = native.extension().__file__

    def lines(*flags: str) -> list[str]:
        return subprocess.run(["objdump", *flags, file], capture_output=True, text=True, check=True).stdout.splitlines()

    sections = [line.split() for line in lines("-h")]
    size, begin = next((int(row[2], 16), int(row[3], 16)) for row in sections if row[1:2] == [".init_array"])
    slots = {f"{slot:016x}" for slot in range(begin, begin + size, 8)}
    starts = [line.split("0x")[1] for line in lines("-R") if line.split(" ")[0] in slots]
    assert len(starts) == len(slots)
    ends = dict(re.findall(r" FDE .*pc=(\w+)\.\.(\w+)", "\n".join(lines("--dwarf=frames"))))
    assert ends.keys() & set(starts)
    for start in sorted(ends.keys() & set(starts)):  # the others are the C runtime's own
        code = lines("-d", "--no-show-raw-insn", f"--start-address=0x{start}", f"--stop-address=0x{ends[start]}")
        vectors = [line for line in code if re.search(r"\tv\w+ +.*%[xyz]mm", line)]
        assert not vectors, f"{file} runs AVX when it is loaded, such as {vectors[0]}"
