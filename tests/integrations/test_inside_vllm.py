"""Packed folders in the real vLLM, as target and drafter: `make test-vllm`. Each start of vLLM takes half a minute."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
import transformers as hf

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

import packed_folders
import sparsedraft
import stages
import vllm_run
import vllm_served
from sparsedraft.stages.pack import stage as pack
from tiny import build_llama
from vllm_server import NotStarted

PROMPTS = [[5, 250, 17, 301, 99, 4, 4, 120], [9, 33, 200, 7], [300, 18, 2, 77, 61, 12]]
GREEDY = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
READ = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": -1}
PROPOSER = "sparsedraft.integrations.vllm.Proposer"
WIDE = {"hidden_size": 128, "intermediate_size": 160}  # heads of 32, the narrowest that vLLM has on a CPU


def checkpoint(folder: Path, pattern: str | None, *, seed: int = 0, tied: bool = True) -> Path:
    return packed_folders.save(build_llama(seed, 2, tie_word_embeddings=tied, **WIDE), folder, pattern, torch.bfloat16)


def family(name: str, folder: Path) -> Path:
    """A checkpoint of another family, pruned to 2:4: biases and a head of its own, or norms of queries and windows."""
    sizes = packed_folders.SMALL | WIDE | {"head_dim": 32}
    torch.manual_seed(0)
    if name == "qwen2":
        model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**sizes, tie_word_embeddings=False))
    else:
        model = hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**sizes, sliding_window=64))
    for weight, parameter in model.named_parameters():
        if weight.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return packed_folders.save(model.eval(), folder, "2:4", torch.bfloat16)


def packed(source: Path, weights: str, **options: Any) -> Path:
    folder = source.with_name(f"{source.name}-{weights}")
    stages.pack(str(source), folder, weights=weights, **options)
    return folder


def proposing(drafter: Path, tokens: int, **settings: object) -> dict[str, Any]:
    """The arguments of drafts by our own engine."""
    return {
        "speculative_config": {"model": PROPOSER, "num_speculative_tokens": tokens},
        "additional_config": {"sparsedraft": {"drafter": str(drafter), **settings}},
    }


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain checkpoint. Read only."""
    return checkpoint(tmp_path_factory.mktemp("target") / "plain", None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """run(sampling, **arguments of vllm.LLM) -> what it wrote to PROMPTS, in float32."""
    root = tmp_path_factory.mktemp("runs")

    def once(sampling: dict[str, Any], prompts: list[list[int]] = PROMPTS, **llm: Any) -> dict[str, Any]:
        file = root / f"{len(list(root.glob('*.json')))}.json"
        return vllm_run.run(file, prompts, sampling, **{"dtype": "float32", **llm})

    return once


@pytest.fixture(scope="module")
def alone(run: Callable[..., dict[str, Any]], target: Path) -> list[list[int]]:
    """What the target writes without a drafter."""
    ids = run(GREEDY, model=str(target))["ids"]
    assert all(len(one) == GREEDY["max_tokens"] for one in ids)
    return ids


@pytest.mark.parametrize(
    ("pattern", "weights", "tied"),
    [
        ("2:4", "int8", True), ("4:8", "int4", False), ("unstructured", "bf16", True), (None, "int4", True),
        ("qwen2", "int8", False), ("gemma3", "bf16", True),
    ],
)  # fmt: skip
def test_vllm_reads_a_packed_target_as_we_do(
    run: Callable[..., dict[str, Any]], tmp_path: Path, pattern: str | None, weights: str, tied: bool
) -> None:
    other = pattern in ("qwen2", "gemma3")
    source = family(str(pattern), tmp_path / "made") if other else checkpoint(tmp_path / "made", pattern, tied=tied)
    folder = packed(source, weights)
    found = run(READ, model=str(folder), max_logprobs=-1)
    model = sparsedraft.load(folder)
    for ids, places in zip(PROMPTS, found["logprobs"], strict=True):
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert len(places) == len(ids) - 1
        for place, logprobs in zip(places, expected, strict=False):
            theirs = torch.empty(len(logprobs))
            for token, value in place:
                theirs[token] = value
            assert len(place) == len(logprobs)
            # vLLM computes its attention and norms otherwise, and int4 rounds inputs to 8 bits
            assert float((theirs - logprobs).abs().max()) < (0.2 if weights == "int4" else 5e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_a_trimmed_head_is_minus_infinity_elsewhere(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    kept = torch.arange(1, 320, 3, dtype=torch.int32)
    monkeypatch.setattr(pack, "frequent_tokens", lambda *_: (kept, 0.0))
    source = checkpoint(tmp_path / "made", "2:4", tied=tied)
    data = str(source / "config.json")  # any file: nothing reads it here
    folder = packed(source, "bf16", head_tokens=len(kept), head_data=data)
    found = run(READ, model=str(folder), max_logprobs=-1)
    place = torch.full((320,), torch.nan)
    for token, value in found["logprobs"][0][2]:
        place[token] = value
    expected = sparsedraft.load(folder)(torch.tensor([PROMPTS[0]])).logits[0, 2].log_softmax(-1)
    finite = torch.isfinite(expected)
    assert finite.nonzero()[:, 0].tolist() == kept.tolist() and bool((place[~finite] == -torch.inf).all())
    assert float((place - expected)[finite].abs().max()) < 5e-3
    drafter = {"model": str(folder), "num_speculative_tokens": 3}
    together = run(GREEDY, model=str(folder), speculative_config=drafter)  # drafts of another graph than the target's
    assert together["accepted"] > 0.9 * together["drafted"] > 0
    assert {token for ids in together["ids"] for token in ids} <= set(kept.tolist())


@pytest.mark.parametrize(("pattern", "weights"), [("2:4", "int8"), ("unstructured", "int4")])
def test_greedy_text_does_not_change_with_a_packed_drafter(
    run: Callable[..., dict[str, Any]],
    target: Path,
    alone: list[list[int]],
    tmp_path: Path,
    pattern: str,
    weights: str,
) -> None:
    source = checkpoint(tmp_path / "drafter", pattern)  # the target, pruned
    drafter = {"model": str(packed(source, weights)), "num_speculative_tokens": 3}
    together = run(GREEDY, model=str(target), speculative_config=drafter)
    assert together["ids"] == alone
    assert 0 < together["accepted"] < together["drafted"]


def test_compiled_text_is_the_text_without_compilation(
    run: Callable[..., dict[str, Any]], target: Path, alone: list[list[int]], tmp_path: Path
) -> None:
    """The first compilation takes two minutes; what it makes is kept in vLLM's cache folder."""
    drafter = {"model": str(packed(checkpoint(tmp_path / "drafter", "2:4"), "int8")), "num_speculative_tokens": 3}
    found = run(GREEDY, model=str(target), speculative_config=drafter, enforce_eager=False)
    assert found["ids"] == alone and found["drafted"] > 0


@pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("int4", 4)])
def test_vllm_reads_the_format_of_its_own(
    run: Callable[..., dict[str, Any]], tmp_path: Path, weights: str, bits: int
) -> None:
    """Without our plugin's method; in bfloat16, as its int4 on CPUs takes no other. Rounding to so many bits shows."""
    source = checkpoint(tmp_path / "made", "2:4")
    folder = packed(source, weights, format="compressed-tensors")
    found = run(READ, model=str(folder), max_logprobs=-1, dtype="bfloat16")
    model, apart = sparsedraft.load(source), []
    for ids, places in zip(PROMPTS, found["logprobs"], strict=True):
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place, logprobs in zip(places, expected, strict=False):
            theirs = torch.empty(len(logprobs))
            for token, value in place:
                theirs[token] = value
            apart.append((theirs.softmax(-1) - logprobs.softmax(-1)).abs().sum() / 2)
    assert float(torch.stack(apart).mean()) < {8: 0.05, 4: 0.3}[bits]


def test_a_drafter_that_is_the_target_is_accepted_always(
    run: Callable[..., dict[str, Any]], target: Path, alone: list[list[int]], tmp_path: Path
) -> None:
    copy = packed(Path(copytree(target, tmp_path / "copy")), "bf16")
    drafter = {"model": str(copy), "num_speculative_tokens": 3}
    found = run(GREEDY, model=str(copy), speculative_config=drafter)
    assert found["ids"] == alone
    assert found["accepted"] > 0.95 * found["drafted"] > 0


def test_the_server_drafts_and_counts_what_is_accepted(target: Path, alone: list[list[int]], tmp_path: Path) -> None:
    drafter = packed(checkpoint(tmp_path / "drafter", "2:4"), "int8")
    speculative = json.dumps({"model": str(drafter), "num_speculative_tokens": 3})
    with vllm_served.serving(target, tmp_path / "log", "--speculative-config", speculative) as server:
        asked = {"temperature": 0, "max_tokens": GREEDY["max_tokens"], "ignore_eos": True, "return_token_ids": True}
        written = [server.complete(ids, **asked)["choices"][0]["token_ids"] for ids in PROMPTS]
        drafted, accepted = server.drafts()
    assert 0 < accepted < drafted
    assert written == alone


def test_a_server_with_a_newer_drafter_does_not_start_and_says_why(target: Path, tmp_path: Path) -> None:
    folder = packed(Path(copytree(target, tmp_path / "copy")), "int8")
    header = json.loads((folder / "packed.json").read_text())
    (folder / "packed.json").write_text(json.dumps({**header, "version": 9}))
    speculative = json.dumps({"model": str(folder), "num_speculative_tokens": 3})
    log = tmp_path / "log"
    with (
        pytest.raises(NotStarted),
        vllm_served.serving(target, log, "--speculative-config", speculative),
    ):
        pass
    sentence = f"packed header {folder / 'packed.json'} is of version 9, and this reads 1 to 4: pack the checkpoint"
    assert sentence in log.read_text()


@pytest.mark.parametrize("settings", [{}, {"lookup": True, "drafter_window": 64}, {"policy": "auto"}])
def test_our_engine_drafts_for_vllms_target(
    run: Callable[..., dict[str, Any]],
    target: Path,
    alone: list[list[int]],
    tmp_path: Path,
    settings: dict[str, object],
) -> None:
    drafter = packed(checkpoint(tmp_path / "drafter", "2:4"), "int8")
    found = run(GREEDY, model=str(target), **proposing(drafter, 3, **settings))
    assert found["ids"] == alone
    if "policy" not in settings:  # auto goes by what steps take here
        assert 0 < found["accepted"] < found["drafted"]


@pytest.mark.parametrize("way", ["vLLM drafts", "our engine drafts"])
def test_samples_with_a_drafter_have_the_targets_distribution(
    run: Callable[..., dict[str, Any]], target: Path, tmp_path: Path, way: str
) -> None:
    from scipy.stats import chisquare

    drafter = packed(checkpoint(tmp_path / "drafter", "2:4"), "int8")
    count, temperature = 4000, 0.7
    sampling = {"temperature": temperature, "max_tokens": 2, "ignore_eos": True, "n": count}
    if way == "vLLM drafts":
        how: dict[str, Any] = {"speculative_config": {"model": str(drafter), "num_speculative_tokens": 1}}
    else:
        how = proposing(drafter, 1)
    found = run(sampling, PROMPTS[:1], model=str(target), max_num_seqs=64, **how)
    assert found["drafted"] > 0 and len(found["ids"]) == count
    model, prompt = sparsedraft.load(target), PROMPTS[0]
    first = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    after = torch.tensor([[*prompt, token] for token in range(len(first))])
    second = first @ (model(after).logits[:, -1] / temperature).softmax(-1)  # whatever the first was
    for place, law in enumerate((first, second)):
        seen = torch.bincount(torch.tensor([ids[place] for ids in found["ids"]]), minlength=len(law)).double()
        often = law * count >= 5
        seen = torch.cat((seen[often], seen[~often].sum()[None]))
        expected = torch.cat((law[often], law[~often].sum()[None])).double()
        assert chisquare(seen.numpy(), (expected / expected.sum() * count).detach().numpy()).pvalue > 1e-4
