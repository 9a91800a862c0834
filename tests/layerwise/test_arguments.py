"""A walk's arguments are the same for every text, or the model is refused; what a command has written loads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from sparsedraft.base.errors import UserError
from sparsedraft.layerwise import sequential
from sparsedraft.layerwise.arguments import check_model
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.models import checkpoint, shards
from sparsedraft.models.reload import check_loads
from sparsedraft.stages.prune import layer_drop
from stages import drop_layers, pack, prune

SMALL = {"tokens": 512, "sequence_length": 64}
SIZE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
GEMMA4 = {**SIZE, "global_head_dim": 8, "vocab_size_per_layer_input": 320}


def saved(config: PretrainedConfig, tokenizer, folder: Path) -> Path:
    hf.set_seed(0)
    checkpoint.save(AutoModelForCausalLM.from_config(config).eval(), tokenizer, folder)
    return folder


@pytest.mark.parametrize("allocation", ["uniform", "owl"])
def test_per_layer_inputs_are_refused_before_any_work(allocation: str, tokenizer, tmp_path: Path) -> None:
    folder = saved(hf.Gemma4TextConfig(**GEMMA4, hidden_size_per_layer_input=8), tokenizer, tmp_path / "model")
    reason = "per_layer_input of layer 0 depends on the text"
    with pytest.raises(UserError, match=reason):
        prune(str(folder), tmp_path / "out", "demo:train", pattern="2:4", allocation=allocation, **SMALL)
    with pytest.raises(UserError, match=reason):
        drop_layers(str(folder), tmp_path / "out", "demo:train", layers=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_several_states_a_token_are_refused(tokenizer, tmp_path: Path) -> None:
    several = {"hidden_size_per_layer_input": 8, "altup_num_inputs": 2, "laurel_rank": 4, "num_kv_shared_layers": 2}
    config = hf.Gemma3nTextConfig(
        **{k: v for k, v in GEMMA4.items() if k != "global_head_dim"}, **several,
        activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    folder = saved(config, tokenizer, tmp_path / "model")
    with pytest.raises(UserError, match=r"the layers read \[2, 1, 64, 32\], not one state a token"):
        drop_layers(str(folder), tmp_path / "out", "demo:train", layers=1, **SMALL)


def test_states_that_are_kept_but_not_read_are_no_fault(tokenizer, tmp_path: Path) -> None:
    """Gemma 4 without shared layers keeps keys and values for others in a container that all layers get."""
    folder = saved(hf.Gemma4TextConfig(**GEMMA4, hidden_size_per_layer_input=0), tokenizer, tmp_path / "model")
    ids = torch.randint(3, 320, (5, 24), generator=torch.Generator().manual_seed(0))
    streamed = Streamed(folder)
    activations = sequential.Activations(streamed, ids, tmp_path / "hidden")
    states = [torch.cat(list(activations.batches(i))) for i, _ in sequential.walk(streamed, activations)]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder)(ids, output_hidden_states=True).hidden_states
    for mine, right in zip(states, expected[: len(states)], strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("off", "refused"), [(1.5e-4, False), (0.1, True)])
def test_cosines_may_differ_by_rounding_from_pass_to_pass(
    off: float, refused: bool, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's first cosines of a process were seen 1e-4 off; what a text changes is more than that."""
    right, calls = LlamaRotaryEmbedding.forward, 0

    def first_is_off(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        cos, sin = right(self, *args, **kwargs)
        return (cos + off, sin) if calls == 1 else (cos, sin)

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", first_is_off)
    if refused:
        with pytest.raises(UserError, match="position_embeddings of layer 0 depends on the text"):
            check_model(Streamed(tiny_checkpoint))
    else:
        check_model(Streamed(tiny_checkpoint))
    assert calls > 1


def _reads_the_layer_before_last(kept: list[torch.Tensor], forward: Callable) -> Callable:
    def changed(self, hidden_states, *args, **kwargs):
        kept.append(hidden_states)
        return forward(self, hidden_states, *args, **kwargs) + (kept[-2] if len(kept) > 1 else 0)

    return changed


def test_layers_that_read_what_others_left_are_refused(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(LlamaDecoderLayer, "forward", _reads_the_layer_before_last([], LlamaDecoderLayer.forward))
    with pytest.raises(UserError, match="the output of layer 0 depends on what other layers leave"):
        prune(str(tiny_checkpoint), tmp_path / "out", "demo:train", pattern="2:4", **SMALL)


def test_what_changes_states_between_layers_is_refused(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    call = LlamaDecoderLayer.__call__
    monkeypatch.setattr(LlamaDecoderLayer, "__call__", lambda self, h, **kwargs: call(self, 1.5 * h, **kwargs))
    with pytest.raises(UserError, match=r"something changes the hidden states between two layers"):
        prune(str(tiny_checkpoint), tmp_path / "out", "demo:train", pattern="2:4", **SMALL)


def test_a_layer_that_its_number_changes_is_not_moved(tiny_llama) -> None:
    before, after = (tiny_llama(layers=n).model.layers for n in (4, 3))
    layer_drop.check_layers(before, after, [0, 2, 3])
    after[1].self_attn.scaling = 7.0
    with pytest.raises(UserError, match=r"layer 2 would become another as number 1 of 3 \(self_attn\.scaling is"):
        layer_drop.check_layers(before, after, [0, 2, 3])


@pytest.mark.parametrize("damage", ["missing", "misshapen", "config"])
def test_what_does_not_load_is_not_kept(damage: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """As if a stage wrote a wrong folder: the message says what, and no folder of that name is left."""
    write = shards.copy_side_files

    def spoiled(source: Path, folder: Path) -> None:
        write(source, folder)
        if damage == "config":
            (folder / "config.json").write_text((folder / "config.json").read_text().replace('"llama"', '"lama"'))
            return
        state = load_file(folder / "model.safetensors")
        tensor = state.pop("model.norm.weight")
        extra = {"model.norm.weight": tensor[:32].clone()} if damage == "misshapen" else {}
        save_file({**state, **extra}, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(shards, "copy_side_files", spoiled)
    if damage != "config":  # which drop-layers writes itself
        with pytest.raises(UserError, match="what was written cannot be loaded"):
            drop_layers(str(tiny_checkpoint), tmp_path / "out", "demo:train", layers=1, **SMALL)
    with pytest.raises(UserError, match=r"what was written cannot be loaded"):
        pack(str(tiny_checkpoint), tmp_path / "packed")
    assert not (tmp_path / "out").exists() and not (tmp_path / "packed").exists()


def test_whole_folders_load(tiny_llama, tokenizer, tmp_path: Path) -> None:
    for tied in (True, False):
        model: LlamaForCausalLM = tiny_llama(tie_word_embeddings=tied)
        checkpoint.save(model, tokenizer, tmp_path / f"{tied}", dtype=torch.bfloat16)
        check_loads(tmp_path / f"{tied}")
        for weights in ("int8", "bf16"):
            pack(str(tmp_path / f"{tied}"), tmp_path / f"{tied}-{weights}", weights=weights)
            check_loads(tmp_path / f"{tied}-{weights}")
