"""A config.json that says tied beside a file that holds another head: as transformers does, the head counts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import packed_folders
from packed_folders import ENGINE, IDS, close
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.macs import macs_of_model
from sparsedraft.native.session import Engine
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.protocol.requests import Request
from stages import drop_layers, inspect, pack, prune
from tiny import build_llama, build_tokenizer

SMALL = {"tokens": 256, "sequence_length": 64}
needs_extension = pytest.mark.skipif(not packed_folders.BUILT, reason="the extension was not built")


@pytest.fixture(scope="module", params=["another", "the same"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says tied and holds a head: another one, or the embedding once more. Read only."""
    folder = tmp_path_factory.mktemp("heads") / "model"
    build_llama(layers=2).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    head = build_llama(seed=9).lm_head.weight.detach() if request.param == "another" else None
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone() if head is None else head.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    return folder


def expected(folder: Path) -> torch.Tensor:
    """Logits [n, V] of transformers alone, which must be those of the head that the file holds."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        logits = model(IDS).logits[0]
        assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    return logits


@needs_extension
def test_the_native_engine_reads_the_head_that_transformers_reads(folder: Path, tmp_path: Path) -> None:
    wanted = expected(folder)
    close(Engine(folder).forward(IDS[0].tolist(), IDS.shape[1]), wanted, ENGINE)
    pack(str(folder), tmp_path / "packed", weights="bf16")
    close(Engine(tmp_path / "packed").forward(IDS[0].tolist(), IDS.shape[1]), wanted, 2e-2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    with torch.no_grad():
        close(model(IDS).logits[0], wanted, 2e-2)


@needs_extension
def test_both_runtimes_write_the_same_text_and_count_the_same(folder: Path) -> None:
    texts, costs = [], []
    for runtime in ("native", "transformers"):
        side = LoadedModel.load(folder, runtime=runtime)
        request = Request("a", IDS[0].tolist(), 12)
        texts.append([output.token_ids for output in side.writer(1).generate([request], Sampling())])
        costs.append(side.weights())
    model = AutoModelForCausalLM.from_pretrained(folder)
    plain = model.generate(IDS, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0)
    assert texts[0] == texts[1] == [plain[0, IDS.shape[1] :].tolist()]
    assert costs[0] == pytest.approx(costs[1])
    assert costs[0]["macs_per_token"] == macs_of_model(model)
    assert costs[0]["nonzero_params"] == sum(p.count_nonzero().item() for p in model.parameters())


def test_what_is_written_of_it_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    """For readers, too, that believe config.json."""
    wanted, stored = expected(folder), load_file(folder / "model.safetensors")
    tied = torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    prune(str(folder), tmp_path / "pruned", "demo:train", sparsity=0.02, **SMALL)
    drop_layers(str(folder), tmp_path / "cut", "demo:train", layers=1, **SMALL)
    checkpoint.save(checkpoint.load(folder), build_tokenizer(), tmp_path / "saved")
    pack(str(folder), tmp_path / "packed")
    for name in ("pruned", "cut", "saved", "packed"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["tie_word_embeddings"] is tied, name
    with torch.no_grad():
        close(checkpoint.load(tmp_path / "saved")(IDS).logits[0], wanted, 1e-6)
    for name in ("pruned", "cut"):
        assert torch.equal(checkpoint.load(tmp_path / name).lm_head.weight, stored["lm_head.weight"])


def test_inspect_counts_the_head_once(folder: Path) -> None:
    found, model = inspect(str(folder)), checkpoint.load(folder)
    assert found["macs_per_token"] == macs_of_model(model)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
