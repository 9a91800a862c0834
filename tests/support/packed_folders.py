"""Tiny random checkpoints, pruned and packed, and how their logits are compared."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

import stages
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import count_zeros, decoder_linears
from sparsedraft.native import extension as native
from sparsedraft.native.modules import PackedLinear
from tiny import build_llama, build_tokenizer

BUILT = native.is_built()
IDS = torch.tensor([[5, 250, 17, 301, 99, 4, 4, 120]])
SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def build(family: str, tied: bool, seed: int = 0) -> PreTrainedModel:
    """A random model of two layers in float32."""
    if family == "llama":
        return build_llama(seed, layers=2, tie_word_embeddings=tied)
    kinds = {"qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM), "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM)}
    config, kind = kinds[family]
    torch.manual_seed(seed)
    model = kind(config(**SMALL, tie_word_embeddings=tied)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def kept(weight: Tensor, pattern: str) -> Tensor:
    """What a pattern leaves of a weight."""
    if pattern == "unstructured":
        return weight.abs() >= weight.abs().flatten().kthvalue(weight.numel() * 3 // 5).values
    n, m = (int(part) for part in pattern.split(":"))
    places = weight.abs().view(-1, m).topk(n).indices
    return torch.zeros(weight.numel() // m, m).scatter(1, places, 1).view(weight.shape).bool()


def save(model: PreTrainedModel, folder: Path, pattern: str | None = None, dtype: torch.dtype = torch.float16) -> Path:
    """A checkpoint of `model`, pruned to `pattern`."""
    claim = None
    if pattern is not None:
        with torch.no_grad():
            for linear in decoder_linears(model).values():
                linear.weight *= kept(linear.weight, pattern)
        zeros = {name: count_zeros(linear.weight) for name, linear in decoder_linears(model).items()}
        claim = {"pattern": pattern, "sparsity": 0.5, "linears": zeros}
    checkpoint.save(model, build_tokenizer(), folder, dtype=dtype, sparsity=claim)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """made(family, tied, pattern, weights) -> (the checkpoint, its packed folder). Read only."""
    root, done = tmp_path_factory.mktemp("made"), {}

    def make(family: str = "llama", tied: bool = True, pattern: str | None = "2:4", weights: str = "f16"):
        key = f"{family}-{tied}-{pattern}-{weights}".replace(":", "")
        if key not in done:
            dtype = torch.bfloat16 if weights == "bf16" else torch.float16
            source = save(build(family, tied), root / key, pattern, dtype)
            stages.pack(str(source), root / f"{key}-packed", weights=weights)
            done[key] = source, root / f"{key}-packed"
        return done[key]

    return make


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.skipif(not BUILT, reason="not built")), False])
def natively(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Once with the extension, once without."""
    if not request.param:
        monkeypatch.setattr(native, "_module", lambda: (None, "taken away"))
    return request.param


def logits(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    return model(ids).logits  # with gradients enabled, as a user may have them


# Of the largest logit: how close the native engine comes to transformers. Its keys and values have 16 bits, and models
# of random weights, as tests make them, multiply that error: float16 in their place gives up to 3e-3 in test_engine.py.
ENGINE = 2e-3


def close(found: Tensor, expected: Tensor, share: float) -> None:
    """Equal within `share` of the largest logit."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    finite = torch.isfinite(expected)
    assert torch.equal(torch.isfinite(found), finite) and not expected.isnan().any()
    assert float((found - expected)[finite].abs().max()) <= share * float(expected[finite].abs().max())


def ran(model: PreTrainedModel, natively: bool) -> bool:
    """Whether every matrix was multiplied as it should be: by kernels, or by torch."""
    linears = [m for m in model.modules() if isinstance(m, PackedLinear)]
    ways = {(m._matrix is not None, m._dense is not None or bool(getattr(m, "_tied", None))) for m in linears}
    return bool(linears) and all(way[0] if natively else way == (False, True) for way in ways)
