"""Pruning a whole model: a layer at a time, the pruned prefix, resume, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sparsedraft.base.errors import UserError
from sparsedraft.layerwise import sequential
from sparsedraft.layerwise.sparsegpt import Hessian
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.maths.masks import obeys
from sparsedraft.maths.pattern import Pattern
from sparsedraft.maths.quantization import group_of
from sparsedraft.models import census, checkpoint, claims, rounded
from sparsedraft.models.decoder import decoder_layers, decoder_linears, linears_of
from sparsedraft.models.macs import macs_of_model
from sparsedraft.stages.prune import stage
from stages import inspect, prune

SMALL = {"tokens": 1024, "sequence_length": 64}


def ids(rows: int = 6, length: int = 32) -> torch.Tensor:
    return torch.randint(3, 320, (rows, length), generator=torch.Generator().manual_seed(0))


def walked(model, tmp_path: Path) -> tuple[Streamed, sequential.Activations]:
    """The model as a checkpoint that is read layer by layer, with the activations of `ids`."""
    model.save_pretrained(tmp_path / "saved")
    streamed = Streamed(tmp_path / "saved")
    return streamed, sequential.Activations(streamed, ids(), tmp_path / "hidden")


def test_hessians_are_those_of_the_pruned_prefix(tiny_llama, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sequential, "BATCH", 64)  # several batches
    model = tiny_llama()
    streamed, activations = walked(model, tmp_path)
    for index, layer in sequential.walk(streamed, activations):
        if index == 2:
            found = {name: h.H for name, h in sequential.hessians(layer, index, activations).items()}
            break
        with torch.no_grad():
            for changed in (layer, decoder_layers(model)[index]):  # as pruning would, before the walk goes on
                changed.mlp.down_proj.weight[:, ::2] = 0
    direct: dict[str, Hessian] = {}
    for name, linear in linears_of(decoder_layers(model)[2]).items():
        direct[name] = Hessian(linear.in_features)
        linear.register_forward_pre_hook(lambda _, args, name=name: direct[name].add(args[0]))
    with torch.no_grad():
        model(ids())
    assert found.keys() == direct.keys()
    for name, hessian in direct.items():
        hessian.finish()
        torch.testing.assert_close(found[name], hessian.H, rtol=1e-4, atol=1e-4)


def test_one_layer_is_in_memory_at_a_time(tiny_llama, tmp_path: Path) -> None:
    streamed, activations = walked(tiny_llama(), tmp_path)
    for index, _ in sequential.walk(streamed, activations):
        real = {name for name, p in streamed.model.named_parameters() if p.device.type != "meta"}
        assert real and all(name.startswith(f"model.layers.{index}.") for name in real)
    assert all(p.device.type == "meta" for p in streamed.model.parameters())
    assert len(list((tmp_path / "hidden").iterdir())) == 1, "only the last layer's outputs are left"


def test_linears_of_one_input_share_one_hessian(tiny_llama, tmp_path: Path) -> None:
    streamed, activations = walked(tiny_llama(), tmp_path)
    found = sequential.hessians(streamed.load(0), 0, activations)
    assert len({id(h) for h in found.values()}) == 4
    assert found["self_attn.q_proj"] is found["self_attn.v_proj"] and found["mlp.gate_proj"] is found["mlp.up_proj"]


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "8:16", "16:32"])
def test_checkpoint_has_its_zeros_and_works_without_us(pattern: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = prune(str(tiny_checkpoint), out, "demo:train", pattern=pattern, **SMALL)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert result["sparsity"] == 0.5 and result["macs_per_token"] == macs_of_model(model) == census.macs(out)
    for linear in decoder_linears(model).values():
        assert int((linear.weight == 0).sum()) == linear.weight.numel() // 2
    dense = checkpoint.load(tiny_checkpoint)
    assert torch.equal(model.get_input_embeddings().weight, dense.get_input_embeddings().weight)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.generate(ids(1), max_new_tokens=4, do_sample=False).shape == (1, 36)
    assert json.loads((out / "provenance.json").read_text())["command"] == "prune"


@pytest.mark.parametrize("allocation", ["uniform", "owl"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_pruning_goes_on_to_the_same_bytes(
    allocation: str, when: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    options = {**SMALL, "allocation": allocation, "pattern": "4:8"}
    prune(str(tiny_checkpoint), tmp_path / "whole", "demo:train", **options)
    calls: list[tuple[str, int]] = []
    prune_layer, advance = stage.prune_layer, sequential.Activations.advance

    def prunes(layer, index, *args):
        calls.append(("prune", index))
        if when == "before" and index == 2 and ("kill", 0) not in calls:
            raise KeyboardInterrupt
        return prune_layer(layer, index, *args)

    def advances(self, layer, index):
        calls.append(("advance", index))
        if when == "after" and index == 2 and ("prune", 2) in calls and ("kill", 0) not in calls:
            raise KeyboardInterrupt
        return advance(self, layer, index)

    monkeypatch.setattr(stage, "prune_layer", prunes)
    monkeypatch.setattr(sequential.Activations, "advance", advances)
    with pytest.raises(KeyboardInterrupt):
        prune(str(tiny_checkpoint), tmp_path / "cut", "demo:train", **options)
    calls.append(("kill", 0))
    prune(str(tiny_checkpoint), tmp_path / "cut", "demo:train", **options)
    again = calls[calls.index(("kill", 0)) + 1 :]
    assert again[0] == (("prune", 2) if when == "before" else ("advance", 2)), "finished layers are not done again"
    assert again[-1] == ("advance", 3) and len(again) == (4 if when == "before" else 3)
    for name in ("model.safetensors", "result.json", "sparsity.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize(("first", "then"), [((None, 0.3), (None, 0.5)), (("6:8", None), ("2:8", None))])
def test_a_pruned_checkpoint_is_pruned_further(
    first, then, refine: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    models = [tiny_checkpoint, tmp_path / "a", tmp_path / "b"]
    for source, out, (pattern, share) in zip(models, models[1:], (first, then), strict=False):
        kind = pattern or "unstructured"
        prune(str(source), out, "demo:train", pattern=kind, sparsity=share, refine=refine, **SMALL)
    a, b = (decoder_linears(checkpoint.load(folder)) for folder in models[1:])
    for name, linear in b.items():
        assert bool((linear.weight[a[name].weight == 0] == 0).all())
        assert int((linear.weight == 0).sum()) == (0.75 if then[0] else 0.5) * linear.weight.numel()


@pytest.mark.parametrize("how", [{"pattern": "2:4"}, {"method": "wanda"}, {"pattern": "2:8", "refine": True}])
def test_a_rounded_checkpoint_says_its_codes(how: dict[str, object], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The weights are those of the codes in the checkpoint's type; the error is little above that of pruning alone."""
    bfloat16 = tmp_path / "bfloat16"
    shutil.copytree(tiny_checkpoint, bfloat16)
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16).save_pretrained(bfloat16)
    exact, result = (
        prune(str(bfloat16), tmp_path / quantize, "demo:train", quantize=quantize, **how, **SMALL)
        for quantize in ("none", "int4")
    )
    pattern = Pattern.parse(str(how.get("pattern", "unstructured")))
    for name, linear in decoder_linears(checkpoint.load(tmp_path / "int4", dtype=torch.bfloat16)).items():
        codes = rounded.codes_of(tmp_path / "int4", name, linear.weight)
        assert codes is not None and codes.group == group_of(pattern) and obeys(codes.codes, pattern)
        assert torch.equal(codes.weight(torch.bfloat16), linear.weight)
        assert int(codes.codes.min()) == -8 and len(codes.codes.unique()) >= 14
        mask = rounded.mask_of(tmp_path / "int4", name, linear.weight, pattern)
        assert mask is not None and bool((mask | (codes.codes == 0)).all())
        kept = {"2:4": 1 / 2, "2:8": 1 / 4, "unstructured": 1 / 2}[str(pattern)]
        assert int(mask.sum()) == round(kept * mask.numel()), "also those whose code is 0"
        assert claims.claim_of(tmp_path / "int4")["linears"][name] == int((~mask).sum())
    assert result["quantize"] == "int4" and "quantize" not in exact
    before, after = exact["mean_relative_error"], result["mean_relative_error"]
    assert abs(after - before) < 0.03
    assert rounded.codes_of(tmp_path / "none", name, linear.weight) is None


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_a_rounded_checkpoint_pruned_again_keeps_its_mask(method: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Not the zeros of its weights, of which those that were kept and rounded to 0 are some."""
    how = {**SMALL, "pattern": "2:4", "quantize": "int4"}
    prune(str(tiny_checkpoint), tmp_path / "a", "demo:train", **how)
    prune(str(tmp_path / "a"), tmp_path / "b", "demo:train", **how, method=method)
    a, b = (decoder_linears(checkpoint.load(tmp_path / name)) for name in "ab")
    rounded_to_0 = 0
    for name, linear in b.items():
        mask = rounded.mask_of(tmp_path / "a", name, a[name].weight, Pattern.parse("2:4"))
        assert mask is not None
        rounded_to_0 += int((mask & (a[name].weight == 0)).sum())
        kept = rounded.mask_of(tmp_path / "b", name, linear.weight, Pattern.parse("2:4"))
        assert kept is not None and bool((kept == mask).all())
    assert rounded_to_0 > 100


def test_refusals(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def refused(message: str, **options: object) -> None:
        with pytest.raises(UserError, match=message):
            prune(str(tiny_checkpoint), tmp_path / "no", "demo:train", **{**SMALL, **options})

    refused("2:4 has sparsity 0.5, not 0.75", pattern="2:4", sparsity=0.75)
    refused("--method obd", method="obd")
    refused("--allocation best", allocation="best")
    refused(r"q_proj has 64 inputs, which 2:5 does not divide", pattern="2:5")
    with pytest.raises(UserError, match="no such file"):
        prune(str(tiny_checkpoint), tmp_path / "no2", str(tmp_path / "none.jsonl"), **SMALL)


@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "magnitude"])
@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("model.layers.1.mlp.gate_proj", "holds NaN or infinity as float32"),
        ("model.layers.1.input_layernorm", "holds NaN or infinity as float32"),
        ("model.norm", "holds NaN or infinity: the checkpoint is damaged"),
        ("model.embed_tokens", "holds NaN or infinity: the checkpoint is damaged"),
    ],
)
def test_nan_names_its_layer_and_writes_nothing(method, where, what, tiny_llama, tokenizer, tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_submodule(where).weight.view(-1)[3] = float("nan")
    checkpoint.save(model, tokenizer, tmp_path / "nan")
    with pytest.raises(UserError, match=f"{where}.weight of model .* {what}"):
        prune(str(tmp_path / "nan"), tmp_path / "out", "demo:train", method=method, **SMALL)
    assert not (tmp_path / "out").exists()


def test_one_bad_calibration_sequence_is_named(tiny_llama, tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sequential, "BATCH", 64)  # two sequences of 32 in a batch
    streamed, activations = walked(tiny_llama(), tmp_path)
    states = torch.cat(list(activations.batches(0)))
    states[5, 7, 3] = float("inf")
    activations._write(0, iter([states]))
    with pytest.raises(UserError, match=r"layer 0, .* in calibration sequence 5"):
        sequential.hessians(streamed.load(0), 0, activations)


def test_a_weight_that_the_stored_type_cannot_hold_is_refused(tiny_llama, tokenizer, tmp_path: Path) -> None:
    model = tiny_llama(initializer_range=0.2)
    with torch.no_grad():
        down = decoder_layers(model)[3].mlp.down_proj
        down.weight.mul_(60000 / down.weight.abs().max())  # finite in float16, but not with the errors carried over
    checkpoint.save(model, tokenizer, tmp_path / "half", dtype=torch.float16)
    with pytest.raises(UserError, match=r"layer 3, mlp\.down_proj: a weight is too large for float16"):
        prune(str(tmp_path / "half"), tmp_path / "out", "demo:train", sparsity=0.9, **SMALL)


def test_what_is_not_changed_stays_as_stored_in_narrow_arithmetic(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {**SMALL, "pattern": "2:4", "method": "wanda", "dtype": "bfloat16"}
    prune(str(tiny_checkpoint), tmp_path / "out", "demo:train", **options)
    before, after = (load_file(f / "model.safetensors") for f in (tiny_checkpoint, tmp_path / "out"))
    for name, tensor in after.items():
        assert torch.equal(tensor, torch.where(tensor != 0, before[name], 0)), name


def test_tokens_outside_the_embedding_are_refused(tiny_llama, tokenizer, tmp_path: Path) -> None:
    checkpoint.save(tiny_llama(vocab_size=200), tokenizer, tmp_path / "small")
    with pytest.raises(UserError, match=r"writes token \d+, but the model's embedding has 200 rows"):
        prune(str(tmp_path / "small"), tmp_path / "out", "demo:train", **SMALL)


@pytest.mark.parametrize("sparsity", [1e-9, 0.9999999])
def test_a_share_that_prunes_nothing_or_all_is_refused(sparsity: float, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prunes (nothing|all) of the \d+ weights of model\.layers\.0"):
        prune(str(tiny_checkpoint), tmp_path / "out", "demo:train", sparsity=sparsity, **SMALL)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_missing_or_misshapen_head_is_refused(tiny_llama, tokenizer, tmp_path: Path) -> None:
    checkpoint.save(tiny_llama(tie_word_embeddings=False), tokenizer, tmp_path / "model")
    state = load_file(tmp_path / "model" / "model.safetensors")
    head = state.pop("lm_head.weight")
    changed = {"lacks the tensor lm_head": {}, "lm_head.weight of .* has shape": {"lm_head.weight": head[:310]}}
    for message, extra in changed.items():
        save_file({**state, **extra}, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message):
            prune(str(tmp_path / "model"), tmp_path / "out", "demo:train", **SMALL)


def test_a_family_whose_arguments_depend_on_the_batch(tokenizer, tmp_path: Path) -> None:
    hf.set_seed(0)
    config = hf.BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0, eos_token_id=2)
    checkpoint.save(hf.BloomForCausalLM(config), tokenizer, tmp_path / "bloom")
    result = prune(str(tmp_path / "bloom"), tmp_path / "out", "demo:train", pattern="2:4", **SMALL)
    assert result["sparsity"] == 0.5 and inspect(str(tmp_path / "out"))["claim_holds"]


def test_one_calibration_token_and_fewer_than_columns_work(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for tokens in (2, 24):  # two is the least that makes a sequence
        out = tmp_path / str(tokens)
        result = prune(str(tiny_checkpoint), out, "demo:train", tokens=tokens, sequence_length=tokens)
        assert result["calibration_tokens"] == tokens and result["sparsity"] == 0.5
        for parameter in AutoModelForCausalLM.from_pretrained(out).parameters():
            assert torch.isfinite(parameter).all()


def test_refinement_lowers_the_error_and_keeps_the_pattern(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for pattern, sparsity in (("2:8", None), ("unstructured", 0.75)):
        options = {**SMALL, "pattern": pattern, "sparsity": sparsity}
        once, better = (
            prune(str(tiny_checkpoint), tmp_path / f"{pattern}{refine}", "demo:train", refine=refine, **options)
            for refine in (False, True)
        )
        assert better["mean_relative_error"] < 0.9 * once["mean_relative_error"]
        assert better["sparsity"] == once["sparsity"] == 0.75


def test_sharded_input_and_other_prefixes_give_the_same_weights(tiny_llama, tokenizer, tmp_path: Path) -> None:
    model = tiny_llama()
    checkpoint.save(model, tokenizer, tmp_path / "one")
    checkpoint.save(model, tokenizer, tmp_path / "many")
    (tmp_path / "many" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    shutil.copytree(tmp_path / "one", tmp_path / "bare")
    state = load_file(tmp_path / "one" / "model.safetensors")
    save_file(
        {name.removeprefix("model."): tensor for name, tensor in state.items()},
        tmp_path / "bare" / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    states = []
    for name in ("one", "many", "bare"):
        prune(str(tmp_path / name), tmp_path / f"{name}-out", "demo:train", **SMALL)
        states.append(AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-out").state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]) and torch.equal(tensor, states[2][name])


def test_bfloat16_checkpoint_is_written_as_it_was_read(tiny_llama, tokenizer, tmp_path: Path) -> None:
    checkpoint.save(tiny_llama(), tokenizer, tmp_path / "b16", dtype=torch.bfloat16)
    for dtype in ("float32", "bfloat16"):
        prune(str(tmp_path / "b16"), tmp_path / dtype, "demo:train", dtype=dtype, pattern="2:4", **SMALL)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / dtype)
        assert model.dtype == torch.bfloat16
        assert claims.check_claims(model, tmp_path / dtype)


def test_a_model_without_plain_linears_says_which_module(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=128,
    )  # fmt: skip
    shutil.copytree(tiny_checkpoint, tmp_path / "moe")
    (tmp_path / "moe" / "model.safetensors").unlink()
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    with pytest.raises(UserError, match=r"module 'model.layers.0.mlp.*experts"):
        prune(str(tmp_path / "moe"), tmp_path / "out", "demo:train", **SMALL)


def test_quantised_weights_say_which_module(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "int8")
    state = load_file(tmp_path / "int8" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    changed = {
        r"is quantised \(I8, by its tensor": {**state, name: state[name].to(torch.int8)},
        "stores no tensor": {k: v for k, v in state.items() if k != name},
        "has shape": {**state, name: state[name][:3].contiguous()},
    }
    for message, tensors in changed.items():
        save_file(tensors, tmp_path / "int8" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message) as raised:
            prune(str(tmp_path / "int8"), tmp_path / "out", "demo:train", **SMALL)
        assert name in str(raised.value) and not (tmp_path / "out").exists()
