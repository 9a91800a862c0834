"""Checkpoints: found, checked, loaded, saved as plain transformers wants them, and proved when they claim zeros."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, claims
from sparsedraft.models.decoder import count_zeros, decoder_layers, decoder_linears


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def half_zero(model) -> dict[str, int]:
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            linear.weight[:, ::2] = 0
    return {name: count_zeros(linear.weight) for name, linear in decoder_linears(model).items()}


def test_saved_checkpoint_is_the_sources_dtype_and_loads_in_plain_transformers(copy: Path, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load(copy), checkpoint.load_tokenizer(copy), tmp_path / "b16", dtype=torch.bfloat16)
    again = checkpoint.load(tmp_path / "b16")
    assert again.dtype == torch.float32 and again.stored_dtype == torch.bfloat16
    zeros = half_zero(again)
    checkpoint.save(again, checkpoint.load_tokenizer(copy), tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert plain.dtype == torch.bfloat16
    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    for name, linear in decoder_linears(plain).items():
        assert count_zeros(linear.weight) == zeros[name] == linear.weight.numel() // 2
        assert torch.equal(linear.weight, decoder_linears(again)[name].weight.bfloat16())


@pytest.mark.parametrize(
    "broken",
    [
        {"num_attention_heads": 3}, {"num_hidden_layers": "four"}, {"hidden_act": "none of these"},
        {"num_hidden_layers": 0}, {"num_hidden_layers": 2**40},
        {"rope_parameters": {"rope_type": "odd", "rope_theta": 1e4}},
    ],
)  # fmt: skip
def test_a_config_that_describes_no_model_is_one_sentence(broken: dict, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **broken}))
    with pytest.raises(UserError, match="config"):
        checkpoint.find(copy)


def test_untied_head_is_saved_too(tiny_llama, tokenizer, tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=False)
    checkpoint.save(model, tokenizer, tmp_path / "out")
    again = checkpoint.load(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_checkpoint_that_lies_is_refused(copy: Path, tmp_path: Path) -> None:
    model, tokenizer = checkpoint.load(copy), checkpoint.load_tokenizer(copy)
    claim = {"pattern": "2:4", "sparsity": 0.5, "linears": half_zero(model)}
    checkpoint.save(model, tokenizer, tmp_path / "honest", sparsity=claim)
    assert claims.check_claims(checkpoint.load(tmp_path / "honest"), tmp_path / "honest") == claim
    name = next(iter(claim["linears"]))
    with torch.no_grad():
        weight = decoder_linears(model)[name].weight
        weight[0, 0], weight[0, 5] = 1.0, 0.0  # as many zeros as before, but three of four are left in a group
    checkpoint.save(model, tokenizer, tmp_path / "liar", sparsity=claim)
    with pytest.raises(UserError, match=f"lies: {name}"):
        claims.check_claims(checkpoint.load(tmp_path / "liar"), tmp_path / "liar")
    count = {**claim, "pattern": "unstructured", "linears": {name: claim["linears"][name] + 1}}
    (tmp_path / "liar" / "sparsity.json").write_text(json.dumps(count))
    with pytest.raises(UserError, match="lies"):
        claims.check_claims(checkpoint.load(tmp_path / "liar"), tmp_path / "liar")


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 16 + file.read_bytes()[16:])


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, "damaged or cut short"),
        (damage_header, "damaged or cut short"),
        (only_a_pickle, r"no \.safetensors file"),
        (no_config, r"no config\.json"),
        (bad_config, r"config\.json cannot be read"),
        (other_shape, "lacks weights"),
    ],
)
def test_damaged_checkpoints_get_one_sentence(copy: Path, harm, message: str) -> None:
    harm(copy)
    with pytest.raises(UserError, match=message) as raised:
        checkpoint.load(copy)
    assert "\n" not in str(raised.value)


def test_what_is_no_decoder_lm_is_refused(tmp_path: Path) -> None:
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 30,
    }
    BertModel(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=30)
    ).save_pretrained(tmp_path / "t5")
    for name in ("bert", "t5"):
        with pytest.raises(UserError, match="not a decoder-only language model"):
            checkpoint.find(tmp_path / name)


@pytest.mark.parametrize(
    "ref",
    [
        "/no/such/folder",
        "nonsense",
        "no-such-owner/no-such-model",
        "/no/such.gguf",
        "./nomodel",
        "../nomodel",
        "a--b/c",
    ],
)
def test_what_does_not_exist(ref: str) -> None:
    with pytest.raises(UserError, match=ref):
        checkpoint.find(ref)


def test_names_of_dtypes_and_devices() -> None:
    assert checkpoint.dtype_named("bfloat16") is torch.bfloat16
    with pytest.raises(UserError, match="int3"):
        checkpoint.dtype_named("int3")
    with pytest.raises(UserError, match="--device warp9"):
        checkpoint.device_named("warp9")


def test_decoder_parts(tiny_llama) -> None:
    model = tiny_llama(layers=3)
    assert len(decoder_layers(model)) == 3
    names = list(decoder_linears(model))
    assert len(names) == 21 and names[0] == "model.layers.0.self_attn.q_proj"
    assert all(f"{name}.weight" in model.state_dict() for name in names)


def test_smollm2_comes_from_its_mirror_as_an_ordinary_checkpoint(smollm2: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(smollm2)
    assert plain.dtype == torch.bfloat16 and plain.config.tie_word_embeddings
    tokenizer = checkpoint.load_tokenizer(smollm2)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(plain.generate(ids, max_new_tokens=3, do_sample=False)[0, 5:]).strip().startswith("Paris")
