"""A GGUF file holds the checkpoint's own weights: floats rounded once, codes bit for bit, zeros as zeros."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import sparsedraft
from ggufs import as_in_file, read_back, rounded, same
from packed_folders import SMALL, build, kept, made, save  # noqa: F401  (a fixture)
from sparsedraft.maths.masks import pack_mask
from sparsedraft.maths.quantization import int4_codes
from sparsedraft.models.decoder import count_zeros, decoder_linears
from sparsedraft.models.gguf import convert_gguf
from sparsedraft.models.rounded import write_beside
from sparsedraft.native.packed_folder import PackedReader
from stages import export, pack
from tiny import build_llama

KINDS = ("q4_0", "q8_0", "bf16")
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
Made = Callable[..., tuple[Path, Path]]


def qwen3() -> PreTrainedModel:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**SMALL | {"head_dim": 24}, tie_word_embeddings=False))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: build("llama", True),
    "llama3": lambda: build_llama(layers=2, rope_parameters=dict(LLAMA3)),
    "biased": lambda: build_llama(layers=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "wider-heads": lambda: build_llama(layers=2, head_dim=24, rope_parameters=dict(YARN)),
    "qwen2": lambda: build("qwen2", False),
    "qwen3": qwen3,
}


def weights(folder: Path) -> dict[str, Tensor]:
    """The unpacked weights of a checkpoint, plain or packed, in float32."""
    model = sparsedraft.load(folder)
    return (model.dequantize(torch.float32) if (folder / "packed.json").is_file() else model).state_dict()


def entries(path: Path) -> dict[str, str]:
    """The type of each tensor of a file."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", MODELS)
def test_bf16_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = rounded(MODELS[name]())
    save(model, tmp_path / "a", dtype=torch.bfloat16)
    result = export(tmp_path / "a", tmp_path / "a.gguf", "bf16")
    assert result["bytes"] == (tmp_path / "a.gguf").stat().st_size and result["kept_as_floats"] == []
    found = same(model, convert_gguf(tmp_path / "a.gguf", cache=tmp_path))
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.state_dict().items())
    assert ("output.weight" in entries(tmp_path / "a.gguf")) != model.config.tie_word_embeddings
    assert {p.name for p in tmp_path.iterdir()} == {"a", "a.gguf", found.config.name_or_path.rsplit("/", 1)[-1]}


@pytest.mark.parametrize("pattern", [None, "2:4", "4:8", "2:8", "unstructured"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_packed_int4_is_not_rounded_again(tmp_path: Path, made: Made, family: str, pattern: str | None) -> None:  # noqa: F811
    _, folder = made(family, False, pattern, "int4")
    model = sparsedraft.load(folder).dequantize(torch.float32)
    exact = as_in_file(model)
    for kind in ("q4_0", "q8_0"):
        result = export(folder, tmp_path / f"{kind}.gguf", kind)
        found, types = read_back(tmp_path / f"{kind}.gguf"), entries(tmp_path / f"{kind}.gguf")
        layers = [name for name in found if name.startswith("blk.") and found[name].dim() == 2]
        assert {types[name] for name in layers} == {kind.upper()} and len(layers) == 14
        assert all(torch.equal(found[name], exact[name]) for name in layers), "the same weights to the last bit"
        assert types["output.weight"] == types["token_embd.weight"] == "Q8_0", "packed as int8"
        assert result["zeros"] >= {None: 0.0, "unstructured": 0.6, "2:8": 0.75}.get(pattern, 0.5) - 1e-3
    back = AutoModelForCausalLM.from_pretrained(convert_gguf(tmp_path / "q4_0.gguf", cache=tmp_path)).state_dict()
    linears = [f"{name}.weight" for name in decoder_linears(model)]
    assert all(torch.equal(back[name], model.state_dict()[name].bfloat16()) for name in linears)


def test_the_halves_of_q4_0(tmp_path: Path, made: Made) -> None:  # noqa: F811
    """The bytes themselves: scale, then codes 0 and 16, 1 and 17, ... in one byte each."""
    _, folder = made("qwen2", False, "2:4", "int4")
    export(folder, tmp_path / "a.gguf", "q4_0")
    stored, _ = PackedReader(folder).matrix("model.layers.1.mlp.up_proj.weight")
    assert stored.group == 64 and stored.scale is not None
    data = next(t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors if t.name == "blk.1.ffn_up.weight").data
    blocks = torch.from_numpy(data.copy()).view(96, 2, 18)
    assert torch.equal(blocks[..., :2].contiguous().view(torch.float16)[..., 0], stored.scale.expand(-1, 2))
    codes = stored.values.view(96, 2, 32) + 8
    assert torch.equal((blocks[..., 2:] & 15).to(torch.int8), codes[..., :16])
    assert torch.equal((blocks[..., 2:] >> 4).to(torch.int8), codes[..., 16:])


def test_an_int4_head_stays_int4(tmp_path: Path, tiny_checkpoint: Path) -> None:
    pack(str(tiny_checkpoint), tmp_path / "both", weights="int4", head_weights="int4")
    pack(str(tiny_checkpoint), tmp_path / "head", weights="int4", head_weights="int4", embedding_weights="int8")
    export(tmp_path / "both", tmp_path / "both.gguf", "q4_0")
    export(tmp_path / "head", tmp_path / "head.gguf", "q4_0")
    both, head = entries(tmp_path / "both.gguf"), entries(tmp_path / "head.gguf")
    assert both["token_embd.weight"] == "Q4_0" and "output.weight" not in both, "tied"
    assert (head["token_embd.weight"], head["output.weight"]) == ("Q8_0", "Q4_0")
    exact = weights(tmp_path / "head")
    assert torch.equal(read_back(tmp_path / "head.gguf")["output.weight"], exact["lm_head.weight"])


def test_packed_int8_keeps_its_codes(tmp_path: Path, made: Made) -> None:  # noqa: F811
    _, folder = made("qwen2", False, "2:4", "int8")
    result = export(folder, tmp_path / "a.gguf", "q8_0")
    assert 0 < result["scale_change"] <= 2**-11
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    for name, place in (("model.layers.0.mlp.down_proj", "blk.0.ffn_down"), ("lm_head", "output")):
        stored, _ = PackedReader(folder).matrix(f"{name}.weight")
        assert stored.scale is not None
        blocks = torch.from_numpy(tensors[f"{place}.weight"].copy()).view(len(stored.values), -1, 34)
        assert torch.equal(blocks[..., 2:].flatten(1).view(torch.int8), stored.values)
        scale = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
        assert torch.equal(scale, stored.scale.half()[:, None].expand(scale.shape))


def rounded_checkpoint(folder: Path) -> PreTrainedModel:
    """What `prune --quantize int4 --pattern 2:4` leaves: weights in bfloat16, scales and masks beside them."""
    model = build("llama", True)
    scales, masks = {}, {}
    for name, linear in decoder_linears(model).items():
        mask = kept(linear.weight, "2:4")
        codes = int4_codes(linear.weight * mask, 64)
        linear.weight.data, scales[name], masks[name] = codes.weight(), codes.scale, pack_mask(mask)
    save(model, folder, dtype=torch.bfloat16)
    write_beside(folder, scales, masks)
    zeros = {name: count_zeros(linear.weight.bfloat16()) for name, linear in decoder_linears(model).items()}
    quantization = {"scheme": "int4", "groups": dict.fromkeys(scales, 64)}
    claim = {"pattern": "2:4", "sparsity": 0.5, "linears": zeros, "quantization": quantization}
    (folder / "sparsity.json").write_text(json.dumps(claim))
    return model


def test_a_rounded_checkpoint_keeps_its_codes(tmp_path: Path) -> None:
    model = rounded_checkpoint(tmp_path / "a")
    exact = as_in_file(model)  # code · scale, which bfloat16 does not hold
    for kind in ("q4_0", "q8_0"):
        export(tmp_path / "a", tmp_path / f"{kind}.gguf", kind)
        found = read_back(tmp_path / f"{kind}.gguf")
        assert all(torch.equal(found[name], exact[name]) for name in exact if name.startswith("blk."))
    export(tmp_path / "a", tmp_path / "bf16.gguf", "bf16")
    found = read_back(tmp_path / "bf16.gguf")
    assert all(torch.equal(found[name], exact[name].bfloat16().float()) for name in exact if found[name].dim() == 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, "f16", "bf16", "int8", "int4"])
def test_zeros_stay_zeros(tmp_path: Path, made: Made, kind: str, weights: str | None) -> None:  # noqa: F811
    source, packed = made("llama", True, "4:8", weights or "f16")
    result = export(packed if weights else source, tmp_path / "a.gguf", kind)
    found = read_back(tmp_path / "a.gguf")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    zeros = total = 0
    for name, tensor in as_in_file(model).items():
        if tensor.dim() == 2:
            assert not bool(found[name][tensor == 0].any()), name
            assert int(torch.count_nonzero(found[name])) <= int(torch.count_nonzero(tensor))
            assert float((found[name] - tensor).abs().max()) < (0.2 if kind == "q4_0" or weights == "int4" else 0.02)
        if name.startswith("blk.") and tensor.dim() == 2:
            zeros, total = zeros + count_zeros(found[name]), total + tensor.numel()
    assert result["zeros"] == zeros / total >= 0.5


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_a_file_that_was_packed_as_it_is_goes_back(tmp_path: Path, kind: str) -> None:
    """Exported, packed as stored, exported: the same bytes of every tensor."""
    save(MODELS["biased"](), tmp_path / "a", dtype=torch.bfloat16)
    export(tmp_path / "a", tmp_path / "a.gguf", kind)
    pack(str(tmp_path / "a.gguf"), tmp_path / "packed", weights="stored")
    export(tmp_path / "packed", tmp_path / "again.gguf", kind)
    first, again = (
        {t.name: t.data.tobytes() for t in gguf.GGUFReader(tmp_path / f).tensors} for f in ("a.gguf", "again.gguf")
    )
    assert first == again and entries(tmp_path / "a.gguf") == entries(tmp_path / "again.gguf")


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_rows_that_are_no_whole_blocks_keep_16_bits(tmp_path: Path, kind: str) -> None:
    model = build_llama(layers=1, intermediate_size=100)
    save(model, tmp_path / "a", dtype=torch.bfloat16)
    result = export(tmp_path / "a", tmp_path / "a.gguf", kind)
    assert result["kept_as_floats"] == ["model.layers.0.mlp.down_proj.weight"]
    assert entries(tmp_path / "a.gguf")["blk.0.ffn_down.weight"] == "BF16" and result["tensors"]["BF16"] == 1
    assert torch.equal(
        read_back(tmp_path / "a.gguf")["blk.0.ffn_down.weight"],
        model.model.layers[0].mlp.down_proj.weight.bfloat16().float(),
    )
    pack(str(tmp_path / "a"), tmp_path / "packed", weights="int4")
    export(tmp_path / "packed", tmp_path / "packed.gguf", kind)
    assert entries(tmp_path / "packed.gguf")["blk.0.ffn_down.weight"] == "F16"


def test_norms_and_biases_are_float32_and_the_embedding_is_finer(tmp_path: Path) -> None:
    save(MODELS["biased"](), tmp_path / "a")
    export(tmp_path / "a", tmp_path / "a.gguf", "q4_0")
    types = entries(tmp_path / "a.gguf")
    assert {types[name] for name in types if "norm" in name or name.endswith("bias")} == {"F32"}
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert {
        types[name] for name in types if name.startswith("blk.") and name.endswith("weight") and "norm" not in name
    } == {"Q4_0"}


def test_the_keys(tmp_path: Path, tokenizer: Any) -> None:
    save(build_llama(layers=1, vocab_size=325, head_dim=24, rope_parameters=dict(LLAMA3)), tmp_path / "a")
    result = export(tmp_path / "a", tmp_path / "a.gguf", "q8_0")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert result["architecture"] == keys["general.architecture"] == "llama"
    assert keys["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0 and keys["general.name"] == "a"
    assert keys["llama.attention.key_length"] == keys["llama.rope.dimension_count"] == 24
    assert keys["llama.vocab_size"] == 325 == len(keys["tokenizer.ggml.tokens"])
    assert keys["tokenizer.ggml.tokens"][320:] == [f"[PAD{n}]" for n in range(320, 325)]
    assert keys["tokenizer.ggml.token_type"] == [3] * 3 + [1] * 317 + [5] * 5
    assert keys["tokenizer.ggml.tokens"][:320] == tokenizer.convert_ids_to_tokens(range(320))
    assert keys["tokenizer.ggml.eos_token_id"] == 2 and keys["tokenizer.ggml.padding_token_id"] == 0
    assert not keys["tokenizer.ggml.add_bos_token"] and not keys["tokenizer.ggml.add_eos_token"]
    assert keys["tokenizer.chat_template"] == tokenizer.chat_template
    factors = read_back(tmp_path / "a.gguf")["rope_freqs.weight"]
    assert factors[0] == 1 and factors[-1] == 8 and len(factors) == 12
