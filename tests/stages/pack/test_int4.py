"""Packing to int4: codes from calibration text, from a rounded checkpoint, and from the weights alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.layerwise import calibration, sequential
from sparsedraft.layerwise.sparsegpt import Goal, Hessian, prune_and_round, relative_error
from sparsedraft.maths.quantization import Codes, int4_codes
from sparsedraft.models import checkpoint, rounded
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.native.packed_folder import HEADER
from sparsedraft.native.packed_format import MatrixEntry, unpack_matrix
from sparsedraft.stages.pack.calibrated import CalibratedCodes
from sparsedraft.stages.pack.writer import PackedWriter
from stages import pack, prune
from tiny import build_tokenizer

SMALL = {"tokens": 2048, "sequence_length": 64}
CALIBRATED = {"weights": "int4", "calibration": "demo:train", **SMALL}


def codes_in(folder: Path) -> dict[str, Codes]:
    """What a packed folder of one file stores of each linear."""
    tensors = load_file(folder / "model.safetensors")
    found = {}
    for name, raw in json.loads((folder / HEADER).read_text())["linears"].items():
        entry = MatrixEntry.parse(name, raw)
        if entry.values == "int4":
            matrix = unpack_matrix(name, entry, {part: tensors[f"{name}.{part}"] for part in entry.tensor_types()})
            assert matrix.scale is not None
            found[name] = Codes(matrix.values, matrix.scale, matrix.group)
    return found


def divergence(source: Path, codes: dict[str, Codes], ids: Tensor) -> float:
    """KL(model ‖ model with these codes), nats, mean over tokens."""
    model = checkpoint.load(source)
    with torch.no_grad():
        before = model(ids).logits.log_softmax(-1)
        for name, linear in decoder_linears(model).items():
            linear.weight.copy_(codes[name].weight())
        after = model(ids).logits.log_softmax(-1)
    return float(F.kl_div(after, before, log_target=True, reduction="none").sum(-1).mean())


def test_calibration_text_lowers_the_divergence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = pack(str(tiny_checkpoint), tmp_path / "calibrated", **CALIBRATED)
    assert result["calibration_tokens"] == 2048 and 0 < result["mean_relative_error"] < 0.02
    plain = pack(str(tiny_checkpoint), tmp_path / "plain", weights="int4")
    assert plain["bytes"] == result["bytes"] and "mean_relative_error" not in plain
    tokenizer = checkpoint.load_tokenizer(tiny_checkpoint)
    ids = torch.tensor([tokenizer("Why is the sky blue, and what makes it red in the evening?")["input_ids"]])
    found = {name: codes_in(tmp_path / name) for name in ("calibrated", "plain")}
    errors = {name: divergence(tiny_checkpoint, codes, ids) for name, codes in found.items()}
    assert errors["calibrated"] < 0.7 * errors["plain"], errors
    for name, linear in decoder_linears(checkpoint.load(tiny_checkpoint)).items():
        expected = int4_codes(linear.weight.detach())
        assert torch.equal(found["plain"][name].codes, expected.codes)
        assert torch.equal(found["plain"][name].scale, expected.scale)


@pytest.mark.parametrize(("pattern", "group"), [("2:4", 64), ("unstructured", 32)])
def test_calibration_holds_the_mask(pattern: str, group: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    prune(str(tiny_checkpoint), sparse, "demo:train", pattern=pattern, **SMALL)
    pack(str(sparse), tmp_path / "packed", **CALIBRATED)
    found = codes_in(tmp_path / "packed")
    for name, linear in decoder_linears(checkpoint.load(sparse)).items():
        assert found[name].group == group and bool((found[name].codes[linear.weight == 0] == 0).all())
        assert int((found[name].codes != 0).sum()) > 0.4 * linear.weight.numel()


def test_what_was_damped_otherwise_is_not_taken_for_done(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what `prune` rounded in sweeps of their own; one that prunes and rounds at once is damped as before."""
    source, joint = str(tiny_checkpoint), {"pattern": "2:4", "quantize": "int4", **SMALL}
    pack(source, tmp_path / "packed", **CALIBRATED)
    prune(source, tmp_path / "apart", "demo:train", refine=True, **joint)
    prune(source, tmp_path / "joint", "demo:train", **joint)
    monkeypatch.setattr("sparsedraft.stages.pack.stage.ROUNDING_DAMPING", 0.2)
    monkeypatch.setattr("sparsedraft.stages.prune.stage.ROUNDING_DAMPING", 0.2)
    with pytest.raises(UserError, match="damping"):
        pack(source, tmp_path / "packed", **CALIBRATED)
    with pytest.raises(UserError, match="damping"):
        prune(source, tmp_path / "apart", "demo:train", refine=True, **joint)
    prune(source, tmp_path / "joint", "demo:train", **joint)


def test_a_rounded_checkpoint_keeps_its_codes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    prune(str(tiny_checkpoint), sparse, "demo:train", pattern="2:4", quantize="int4", **SMALL)
    pack(str(sparse), tmp_path / "packed", weights="int4")
    found = codes_in(tmp_path / "packed")
    for name, linear in decoder_linears(checkpoint.load(sparse)).items():
        codes = rounded.codes_of(sparse, name, linear.weight.detach())
        assert codes is not None
        assert torch.equal(found[name].codes, codes.codes) and torch.equal(found[name].scale, codes.scale)
    with pytest.raises(UserError, match="rounded to int4 already and keeps its codes: leave out --calibration"):
        pack(str(sparse), tmp_path / "again", **CALIBRATED)
    result = pack(str(sparse), tmp_path / "head", **CALIBRATED, head_weights="int4")
    head = codes_in(tmp_path / "head")
    assert result["mean_relative_error"] is None and "lm_head" in head
    assert all(torch.equal(head[name].codes, codes.codes) for name, codes in found.items())


def test_a_head_is_rounded_for_the_states_that_reach_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its codes are those of GPTQ on the last hidden states of the model whose layers are rounded."""
    out = tmp_path / "packed"
    result = pack(str(tiny_checkpoint), out, **CALIBRATED, head_weights="int4", embedding_weights="int8")
    assert (result["head_weights"], result["embedding_weights"]) == ("int4", "int8")
    assert checkpoint.read_config(out).tie_word_embeddings is False, "the head is stored beside the embedding"
    found, model = codes_in(out), checkpoint.load(tiny_checkpoint)
    tokenizer = checkpoint.load_tokenizer(tiny_checkpoint)
    ids = calibration.sequences("demo:train", tokenizer, SMALL["tokens"], SMALL["sequence_length"], 0)
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        for name, linear in decoder_linears(model).items():
            linear.weight.copy_(found[name].weight())
        states = model.model(ids).last_hidden_state
        hessian = Hessian(states.shape[-1])
        hessian.add(states)
        hessian.finish()
        expected, _ = prune_and_round(head.weight, hessian, Goal(group=32))
    assert float((found["lm_head"].codes != expected.codes).float().mean()) < 0.01, "but for ties: sums differ in order"
    plain = int4_codes(head.weight.detach())
    errors = [relative_error(head.weight.detach(), codes.weight(), hessian.H) for codes in (found["lm_head"], plain)]
    assert errors[0] < 0.8 * errors[1], errors


@pytest.mark.parametrize("options", [{"weights": "int4"}, CALIBRATED], ids=["alone", "calibrated"])
def test_weights_beyond_int4_are_refused(options: dict, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """By packing and pruning, in one sentence; they are not clipped without a word."""
    model = checkpoint.load(tiny_checkpoint)
    with torch.no_grad():
        next(iter(decoder_linears(model).values())).weight[3, 5] = 600_000.0
    checkpoint.save(model, checkpoint.load_tokenizer(tiny_checkpoint), tmp_path / "large")
    with pytest.raises(
        UserError, match=r"a weight of 600000 does not fit int4, which holds up to 524,032: choose bf16"
    ):
        pack(str(tmp_path / "large"), tmp_path / "packed", **options)
    with pytest.raises(UserError, match=r"layer 0, self_attn\.\w_proj: a weight of 600000 does not fit int4"):
        prune(str(tmp_path / "large"), tmp_path / "pruned", "demo:train", quantize="int4", **SMALL)


def test_killed_packing_goes_on_to_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    pack(str(tiny_checkpoint), tmp_path / "whole", **CALIBRATED)
    advance, calls = sequential.Activations.advance, []

    def advances(self, layer, index):
        calls.append(index)
        if calls == [0, 1, 2]:
            raise KeyboardInterrupt
        return advance(self, layer, index)

    monkeypatch.setattr(sequential.Activations, "advance", advances)
    with pytest.raises(KeyboardInterrupt):
        pack(str(tiny_checkpoint), tmp_path / "cut", **CALIBRATED)
    pack(str(tiny_checkpoint), tmp_path / "cut", **CALIBRATED)
    assert calls == [0, 1, 2, 2, 3]
    for name in ("model.safetensors", "result.json", HEADER):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert not any(file.name.startswith(".") for file in (tmp_path / "cut").iterdir())


def test_packing_killed_at_the_head_goes_on_there(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    heads = {**CALIBRATED, "head_weights": "int4"}
    pack(str(tiny_checkpoint), tmp_path / "whole", **heads)
    rounds, walked = CalibratedCodes._round_head, []

    def killed(self, weight):
        raise KeyboardInterrupt

    monkeypatch.setattr(CalibratedCodes, "_round_head", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(str(tiny_checkpoint), tmp_path / "cut", **heads)
    monkeypatch.setattr(CalibratedCodes, "_round_head", rounds)
    monkeypatch.setattr(CalibratedCodes, "_round", lambda *_: walked.append(1))
    pack(str(tiny_checkpoint), tmp_path / "cut", **heads)
    assert not walked
    for name in ("model.safetensors", "result.json", HEADER):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_packing_killed_while_it_writes_does_not_walk_again(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    write = PackedWriter.write

    def killed(*_args, **_codes):
        raise KeyboardInterrupt

    monkeypatch.setattr(PackedWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(str(tiny_checkpoint), tmp_path / "cut", **CALIBRATED, head_weights="int4")
    monkeypatch.setattr(PackedWriter, "write", write)
    monkeypatch.setattr(sequential, "walk", killed)
    pack(str(tiny_checkpoint), tmp_path / "cut", **CALIBRATED, head_weights="int4")
    assert "lm_head" in codes_in(tmp_path / "cut")


def test_heads_that_are_not_known_here_are_left(tmp_path: Path) -> None:
    """GPT-NeoX calls its head embed_out: it is stored as it is, and the linears are rounded on the text."""
    small = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**small, num_attention_heads=2, tie_word_embeddings=False))
    checkpoint.save(model, build_tokenizer(), tmp_path / "neox")
    result = pack(str(tmp_path / "neox"), tmp_path / "packed", **CALIBRATED, head_weights="int4")
    assert result["kinds"] == {"dense": 8} and result["mean_relative_error"] > 0


def test_a_head_of_other_inputs_is_refused_before_any_work(tmp_path: Path) -> None:
    small = {"vocab_size": 512, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = hf.OPTForCausalLM(hf.OPTConfig(**small, word_embed_proj_dim=64))
    checkpoint.save(model, build_tokenizer(), tmp_path / "opt")
    with pytest.raises(UserError, match="a head of other inputs than its final norm gives: give --head-weights int8"):
        pack(str(tmp_path / "opt"), tmp_path / "packed", **CALIBRATED, head_weights="int4")
    pack(str(tmp_path / "opt"), tmp_path / "packed", **CALIBRATED, head_weights="int8")


def test_calibration_is_for_int4(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--calibration is for --weights int4, not int8"):
        pack(str(tiny_checkpoint), tmp_path / "no", calibration="demo:train")
    with pytest.raises(UserError, match="no such file"):
        pack(str(tiny_checkpoint), tmp_path / "no", weights="int4", calibration=str(tmp_path / "none.jsonl"))


def test_inputs_of_8_bits_are_noted_for_int8_that_takes_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pruned = prune(str(tiny_checkpoint), tmp_path / "pruned", pattern="2:4", calibration="demo:train", **SMALL)
    assert pruned
    for weights, activations, of_dense, of_sparse in (
        ("int8", 8, 8, None),
        ("int8", None, None, None),
        ("int4", None, 8, None),
        ("int4", 16, None, None),
    ):
        out = tmp_path / f"{weights}-{activations}"
        pack(str(tmp_path / "pruned"), out, weights=weights, activations=activations)
        header = json.loads((out / HEADER).read_text())
        entries = header["linears"]
        assert entries["model.embed_tokens"].get("activations") == of_dense
        assert {e.get("activations") for e in entries.values() if e["kind"] == "2:4"} == {of_sparse}
        assert header["version"] == (1 if (weights, activations) == ("int8", None) else 2)
    prune(str(tiny_checkpoint), tmp_path / "4:8", pattern="4:8", calibration="demo:train", **SMALL)
    pack(str(tmp_path / "4:8"), tmp_path / "masked", weights="int8", activations=8)
    header = json.loads((tmp_path / "masked" / HEADER).read_text())
    assert {e["activations"] for e in header["linears"].values() if e["kind"] == "4:8"} == {8}
    assert header["version"] == 4, "older programs read no such entry"


def test_activations_of_other_widths_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="activations are of 8 or of 16 bits, not of 12: give one of them"):
        pack(str(tiny_checkpoint), tmp_path / "out", activations=12)


def test_activations_of_8_bits_need_int8(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"activations of 8 bits are for int8, not (--)?weights f16"):
        pack(str(tiny_checkpoint), tmp_path / "out", weights="f16", activations=8)
