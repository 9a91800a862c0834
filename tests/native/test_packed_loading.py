"""Loading packed folders: what is refused, what can be done with the model, and how transformers learns of them."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.quantizers import auto
from transformers.quantizers.auto import AutoHfQuantizer

import packed_folders
import sparsedraft
import stages
from forks import Fork
from packed_folders import BUILT, IDS, close, logits
from sparsedraft import cli
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.native import quantizer
from sparsedraft.native.model import native_model
from sparsedraft.native.modules import PackedEmbedding, PackedModule, _pool
from sparsedraft.native.packed_folder import HEAD_IDS, HEADER
from sparsedraft.stages.pack import writer

made = packed_folders.made  # fixture


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    """For from_pretrained below; not by importing this file, as a process does that must find nothing registered."""
    sparsedraft.register()


def change(edit: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Harm the tensors of a folder."""

    def harm(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return harm


def rewrite(name: str, edit: Callable[[dict], object]) -> Callable[[Path], None]:
    """Harm a json of a folder."""

    def harm(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))

    return harm


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


Q, UP = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (change(lambda t: t[f"{Q}.values"].view(-1)[0:1].fill_(torch.nan)), f"{Q} has a value that is not finite"),
        (change(lambda t: t[f"{Q}.index"].fill_(0)), f"{Q} has places"),
        (change(lambda t: t.pop(f"{UP}.index")), f"{UP} holds values and not index, values"),
        (change(lambda t: t.pop(f"{UP}.values")), f"lacks the values of {UP}"),
        (change(lambda t: t.update({f"{Q}.values": t[f"{Q}.values"][1:].clone()})), f"{Q} has values"),
        (change(lambda t: t.update({f"{Q}.values": t[f"{Q}.values"].float()})), f"{Q} has values of torch.float32"),
        (change(lambda t: t.update({HEAD_IDS: torch.arange(7, dtype=torch.int32)})), "lm_head of 320 rows"),
        (truncate, "damaged or cut short"),
        (lambda folder: (folder / "packed.json").unlink(), r"no packed\.json"),
        (lambda folder: (folder / "packed.json").write_text("[" * 200_000), r"packed\.json cannot be read"),
        (rewrite("packed.json", lambda j: j["linears"].pop(Q)), f"does not pack {Q}"),
        (rewrite("packed.json", lambda j: j["linears"][Q].update(rows=32)), f"{Q} of 32 rows"),
        (rewrite("packed.json", lambda j: j["linears"].update(other=j["linears"][Q])), "lacks the values of other"),
        (rewrite("packed.json", lambda j: j.update(version=5)), "version 5"),
        (rewrite("config.json", lambda j: j.update(num_hidden_layers=1)), f"packs {Q[:15]}.*config.json lacks"),
        (rewrite("config.json", lambda j: j.update(intermediate_size=64)), "128 columns.*needs 64 and 64"),
        (rewrite("config.json", lambda j: j["quantization_config"].update(weights="int3")), "weights is 'int3'"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_one_sentence(harm, message: str, made, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in made(tied=False)[1].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    harm(folder)
    with pytest.raises(UserError, match=message) as raised:
        AutoModelForCausalLM.from_pretrained(folder)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=message):
        sparsedraft.load(folder)


@pytest.mark.skipif(not BUILT, reason="not built")
def test_the_engine_reads_no_embedding_that_is_not_dense(made, tmp_path: Path) -> None:
    """It reads the rows where they lie: the values of 2:4 with twice the columns have the size of dense ones."""
    folder = shutil.copytree(made(tied=False)[1], tmp_path / "copy")
    rewrite(HEADER, lambda j: j["linears"]["model.embed_tokens"].update(kind="2:4", columns=128))(folder)
    with pytest.raises(UserError, match=r"has model\.embed_tokens of kind 2:4, and an embedding is dense: pack"):
        native_model(folder)


@pytest.mark.skipif(not BUILT, reason="not built")
@pytest.mark.parametrize("packed", [True, False])
def test_the_embedding_is_no_head_where_the_config_ties_nothing(packed: bool, made, tmp_path: Path) -> None:
    folder = shutil.copytree(made(tied=True)[packed], tmp_path / "copy")
    assert native_model(folder).other_parameters > 0
    rewrite("config.json", lambda j: j.update(tie_word_embeddings=False))(folder)
    message = r"copy has no lm_head and tie_word_embeddings false in its config\.json: copy both again\.$"
    with pytest.raises(UserError, match=message):
        native_model(folder)
    with pytest.raises(UserError, match=r"lacks weights that its config asks for \(first: lm_head"):
        sparsedraft.load(folder)


def test_packed_models_are_not_saved_but_dequantised(made, tmp_path: Path) -> None:
    for family, tied, weights in (("llama", True, "int8"), ("qwen2", False, "f16"), ("gemma3", True, "f16")):
        _, folder = made(family, tied, "2:4", weights)
        model = sparsedraft.load(folder)
        expected = logits(model)
        with pytest.raises(UserError, match="cannot be saved"):
            model.save_pretrained(tmp_path / "saved")
        plain = model.dequantize()
        assert not any(isinstance(m, PackedModule) for m in plain.modules())
        assert all(p.requires_grad and not p.is_meta for p in plain.parameters())
        same = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
        assert same == tied and len(decoder_linears(plain)) == 14
        close(logits(plain).detach(), expected, 1e-3 if weights == "int8" else 2e-6)
        plain.save_pretrained(tmp_path / family)
        again, info = AutoModelForCausalLM.from_pretrained(tmp_path / family, output_loading_info=True)
        assert not any(info.values()) and torch.equal(logits(again), logits(plain))


def test_gradients_pass_through_but_reach_no_weight(made) -> None:
    model = sparsedraft.load(made("qwen2", False, "4:8", "f16")[1])
    assert not any(p.requires_grad for p in model.parameters()) and not model.hf_quantizer.is_trainable
    up = model.model.layers[0].mlp.up_proj
    x = torch.randn(3, 64, requires_grad=True)
    up(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, up.weight.sum(0).expand(3, 64))
    torch.testing.assert_close(up(x), up(x.detach()), rtol=1e-4, atol=1e-5)
    assert up(x[:0].detach()).shape == (0, 96) and up(x.detach().half()).dtype == torch.float16


@pytest.mark.skipif(not BUILT, reason="not built")
def test_copies_are_whole_and_threads_shared(made) -> None:
    model = sparsedraft.load(made()[1])
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), logits(model))
    head, embedding = copied.get_output_embeddings(), copied.get_input_embeddings()
    assert isinstance(embedding, PackedEmbedding) and head._tied[0] is embedding
    assert "lm_head.values" not in model.state_dict() and head.weight.shape == (320, 64)
    assert _pool.cache_info().currsize == 1


def test_several_files_and_the_base_model(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = made(tied=False)
    monkeypatch.setattr(writer, "SHARD", 1 << 14)
    stages.pack(str(source), tmp_path / "out", weights="f16")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    plain = checkpoint.load(source)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    close(logits(whole), logits(plain).detach(), 2e-6)
    base = hf.AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    close(base(IDS).last_hidden_state, plain.model(IDS).last_hidden_state.detach(), 2e-6)


def test_load_and_engine_are_at_the_top(made) -> None:
    source, folder = made()
    assert not any(isinstance(m, PackedModule) for m in sparsedraft.load(source).modules())
    model = sparsedraft.load(str(folder), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and not model.training
    with pytest.raises(UserError, match="no such folder"):
        sparsedraft.load("/no/such/folder")
    from sparsedraft.native.session import Engine

    assert sparsedraft.Engine is Engine and {"Engine", "load", "register"} <= {*sparsedraft.__all__}
    with pytest.raises(AttributeError, match="nothing_here"):
        sparsedraft.nothing_here  # noqa: B018


def test_a_plain_checkpoint_is_not_quantised_on_the_way(made) -> None:
    with pytest.raises(ValueError, match="sparsedraft does require the model to be pre-quantized"):
        AutoModelForCausalLM.from_pretrained(made()[0], quantization_config=quantizer.SparsedraftConfig())


def test_registering_twice_is_registering_once() -> None:
    for _ in range(2):
        sparsedraft.register()
    assert AutoHfQuantizer.supports_quant_method({"quant_method": "sparsedraft"})
    assert auto.AUTO_QUANTIZER_MAPPING["sparsedraft"] is quantizer.SparsedraftQuantizer


def test_an_import_brings_no_large_library_and_no_hook() -> None:
    program = (
        "import sys; before = list(sys.meta_path)\n"
        "import sparsedraft\n"
        "assert sys.meta_path == before and not {'torch', 'transformers'} & {*sys.modules}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def unregistered() -> None:
    """The command line in a process that has imported it: nothing is registered by that."""
    assert "sparsedraft" not in auto.AUTO_QUANTIZER_MAPPING
    assert not any(type(finder).__module__.startswith("sparsedraft") for finder in sys.meta_path)
    cli.main()


def test_a_command_registers_and_an_import_does_not(made, tmp_path: Path) -> None:
    """`generate` by transformers loads a packed folder all the same, and writes what the model here writes."""
    _, folder = made()
    out, err = tmp_path / "stdout", tmp_path / "stderr"
    options = ("--raw", "--prompt", "the fox", "--max-new-tokens", "5", "--runtime", "transformers")
    assert Fork("generate", folder, *options, stdout=out, stderr=err, main=unregistered).wait(300) == 0, err.read_text()
    ids = checkpoint.load_tokenizer(folder)("the fox", return_tensors="pt")["input_ids"]
    written = sparsedraft.load(folder).generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    expected = text_of(checkpoint.load_tokenizer(folder), written.tolist())
    assert json.loads(out.read_text().splitlines()[-1])["text"] == expected
