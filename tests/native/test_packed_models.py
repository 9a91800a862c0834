"""Packed folders in transformers: the same logits, and what generate makes of them."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import packed_folders
import sparsedraft
import stages
from packed_folders import IDS, build, close, logits, ran, save
from sparsedraft.base.errors import UserError
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import group_of, snap
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.native import extension as native
from sparsedraft.native.model import native_model
from sparsedraft.native.modules import PackedHead
from sparsedraft.native.session import Engine
from sparsedraft.stages.pack import stage as pack
from tiny import build_llama

made, natively = packed_folders.made, packed_folders.natively  # fixtures
sparsedraft.register()  # for from_pretrained below


@pytest.mark.parametrize(
    ("family", "tied", "pattern", "weights"),
    [
        ("llama", True, "2:4", "f16"), ("llama", False, "4:8", "bf16"), ("qwen2", True, "unstructured", "bf16"),
        ("qwen2", False, "2:4", "f16"), ("gemma3", True, None, "f16"), ("llama", True, "8:16", "f16"),
    ],
)  # fmt: skip
def test_logits_are_those_of_the_checkpoint(family, tied, pattern, weights, made, natively: bool) -> None:
    source, folder = made(family, tied, pattern, weights)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    assert all(not isinstance(m, torch.nn.Linear | torch.nn.Embedding) for m in model.modules())
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    close(logits(model), logits(plain).detach(), 2e-6)
    assert ran(model, natively)


@pytest.mark.parametrize(
    ("family", "tied", "pattern"),
    [("llama", True, "2:4"), ("qwen2", False, "unstructured"), ("gemma3", True, None), ("llama", False, "3:8")],
)
def test_int4_is_the_checkpoint_rounded(family: str, tied: bool, pattern: str | None, natively: bool, tmp_path) -> None:
    """Embedding and head, too. The native kernels round inputs to 8 bits: that shows, but less than int4 does."""
    source = save(build(family, tied), tmp_path / "plain", pattern)
    stages.pack(str(source), tmp_path / "packed", weights="int4", head_weights="int4")
    rounded = checkpoint.load(source)
    exact = logits(rounded).detach()
    with torch.no_grad():
        for name, module in rounded.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and (
                not tied or module is not rounded.get_output_embeddings()
            ):
                own = Pattern.parse(pattern) if pattern and "layers" in name else Pattern()
                module.weight.copy_(snap(module.weight, "int4", group_of(own)))
    expected = logits(rounded).detach()
    packed = sparsedraft.load(tmp_path / "packed")
    found = logits(packed)
    assert ran(packed, natively)
    error = (expected - exact).abs().mean()
    assert (found - expected).abs().mean() < (0.35 * error if natively else 1e-4 * error)
    state, stored = packed.state_dict(), load_file(tmp_path / "packed" / "model.safetensors")
    assert all(torch.equal(state[name], stored[name]) for name in stored if name.endswith((".values", ".scale")))
    if native.is_built():
        engine = Engine(tmp_path / "packed", threads=1).forward(IDS[0].tolist(), IDS.shape[1])
        assert (engine - expected[0]).abs().mean() < 0.35 * error


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_tied_head_that_is_rounded_apart(family: str, natively: bool, tmp_path: Path) -> None:
    """It is stored beside the embedding, and neither transformers nor the engine ties them again."""
    source = save(build(family, True), tmp_path / "plain")
    types = {"weights": "bf16", "head_weights": "f16", "embedding_weights": "int8"}
    result = stages.pack(str(source), tmp_path / "packed", **types)
    assert {"head_weights": "f16", "embedding_weights": "int8"}.items() <= result.items()
    rounded = checkpoint.load(source)
    head = rounded.get_output_embeddings()
    with torch.no_grad():
        head.weight = torch.nn.Parameter(head.weight.half().float().clone())
        embedding = rounded.get_input_embeddings()
        embedding.weight.copy_(snap(embedding.weight, "int8"))
        for linear in decoder_linears(rounded).values():
            linear.weight.copy_(linear.weight.bfloat16())
    packed = sparsedraft.load(tmp_path / "packed")
    close(logits(packed), logits(rounded).detach(), 2e-6)
    assert ran(packed, natively)
    if native.is_built():
        engine = Engine(tmp_path / "packed", threads=1).forward(IDS[0].tolist(), IDS.shape[1])
        close(engine, logits(rounded).detach()[0], 5e-3)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False), ("gemma3", True)])
def test_int8_is_the_checkpoint_rounded(family: str, tied: bool, made, natively: bool) -> None:
    source, folder = made(family, tied, "4:8", "int8")
    rounded = checkpoint.load(source)
    exact = logits(rounded).detach()
    with torch.no_grad():
        for module in rounded.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and (
                not tied or module is not rounded.get_output_embeddings()
            ):
                module.weight.copy_(snap(module.weight, "int8"))
    model = sparsedraft.load(folder)
    close(logits(model), logits(rounded).detach(), 1e-3)
    assert ran(model, natively)
    with pytest.raises(AssertionError):  # the rounding is large enough to be seen
        close(exact, logits(rounded).detach(), 1e-3)


def test_what_is_stored_keeps_its_bits_in_a_model_of_any_dtype(made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf.LlamaForCausalLM, "_keep_in_fp32_modules_strict", {"mlp"})  # asks for casts while loading
    for weights in ("int8", "f16"):
        _, folder = made(weights=weights)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert model.dtype == torch.bfloat16 and logits(model).dtype == torch.bfloat16
        for cast in (model, model.to(torch.float32)):
            state, stored = cast.state_dict(), load_file(folder / "model.safetensors")
            for name in (name for name in stored if name.endswith((".values", ".index", ".scale"))):
                assert state[name].dtype == stored[name].dtype and torch.equal(state[name], stored[name]), name
        assert logits(model).dtype == torch.float32
        close(logits(model), logits(sparsedraft.load(folder)), 0.02)  # norms went through bfloat16


def test_a_packed_assistant_leaves_the_target_its_text(made, natively: bool) -> None:
    target = build_llama(layers=2).half().float()  # as the drafter was before it was pruned
    drafter = AutoModelForCausalLM.from_pretrained(made(weights="int8")[1])
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    drafter.generation_config.num_assistant_tokens = 3
    calls: list[int] = []
    drafter.register_forward_hook(lambda *_: calls.append(1))
    alone = target.generate(IDS, **options)
    assert torch.equal(target.generate(IDS, assistant_model=drafter, **options), alone)
    assert calls and ran(drafter, natively) and alone.shape[1] == IDS.shape[1] + 12
    source, folder = made(weights="f16")
    expected = checkpoint.load(source).generate(IDS, **options)
    assert torch.equal(sparsedraft.load(folder).generate(IDS, **options), expected)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False)])
def test_a_trimmed_head_is_minus_infinity_elsewhere(
    family: str, tied: bool, made, natively: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(2, 320, 3, dtype=torch.int32)
    monkeypatch.setattr(pack, "frequent_tokens", lambda *_: (ids, 0.0))
    source, _ = made(family, tied)
    data = source / "config.json"  # any file: nothing reads it here
    stages.pack(str(source), tmp_path / "out", weights="f16", head_tokens=len(ids), head_data=str(data))
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()) and isinstance(model.get_output_embeddings(), PackedHead)
    expected = torch.full((1, IDS.shape[1], 320), -torch.inf)
    expected[..., ids.long()] = logits(checkpoint.load(source)).detach()[..., ids.long()]
    close(logits(model), expected, 2e-6)
    assert model.get_output_embeddings().weight.shape == (320, 64)
    if natively:
        assert stages.inspect(str(tmp_path / "out"))["macs_per_token"] == native_model(tmp_path / "out").macs_per_token
    drawn = model.generate(IDS, max_new_tokens=12, do_sample=True, eos_token_id=None, pad_token_id=0)[0, IDS.shape[1] :]
    assert len(drawn) == 12 and set(drawn.tolist()) <= set(ids.tolist())
    with pytest.raises(UserError, match="trimmed head cannot be dequantised"):
        model.dequantize()
