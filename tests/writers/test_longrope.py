"""Rotary frequencies that change at a length: what we write is what transformers writes, on both sides and across."""

import json
import random
from pathlib import Path

import pytest
import torch
import transformers as hf

from families import GROUPED
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.speculate.loop.decode import generate_all
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.protocol.requests import Request
from sparsedraft.writers.transformers.completions import complete_all
from stages import evaluate_to
from timeless import timeless
from tiny import build_tokenizer

AT, NEW, GREEDY = 32, 16, Sampling()
LENGTHS = (3, 24, 31, 32, 33, 40)  # prompts that stay below, cross, and begin beyond
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": AT,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 3.0, 9.0, 30.0],
}  # fmt: skip
KINDS = {
    # reads everything again beyond the length
    "phi3": hf.Phi3Config(**GROUPED, original_max_position_embeddings=AT, rope_parameters=dict(LONGROPE)),
    # keeps the keys that it has
    "llama": hf.LlamaConfig(**GROUPED, rope_parameters=dict(LONGROPE)),
}


def build(kind: str, seed: int = 0) -> hf.PreTrainedModel:
    hf.set_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(KINDS[kind]).eval()
    model.generation_config.eos_token_id = None
    return model


def prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, 320) for _ in range(n)] for n in LENGTHS]


def written(model: hf.PreTrainedModel, ids: list[int], new: int = NEW) -> list[int]:
    """By transformers' own generate."""
    asked = torch.tensor([ids])
    made = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=new, do_sample=False)
    return made[0, len(ids) :].tolist()


def side(model: hf.PreTrainedModel) -> LoadedModel:
    return LoadedModel(model, build_tokenizer(), frozenset())


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_matters(kind: str) -> None:
    """Else the tests below would be about nothing: one pass over a whole text is not what transformers reads."""
    model, ids = build(kind), prompts()[1]
    text = [*ids, *written(model, ids)]
    with torch.no_grad():
        once = model(torch.tensor([text])).logits[0, len(ids) - 1 : -1].argmax(-1).tolist()
    assert once != text[len(ids) :]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_transformers(kind: str, batch_size: int) -> None:
    model, new = build(kind), {str(i): NEW if i else 5 for i in range(len(LENGTHS))}
    requests = [Request(str(i), ids, new[str(i)]) for i, ids in enumerate(prompts())]
    made = complete_all(model, requests, batch_size=batch_size, sampling=GREEDY, eos_ids=frozenset())
    texts = {output.id: output.token_ids for output in made}
    assert texts == {r.id: written(model, list(r.prompt_ids), r.max_new_tokens) for r in requests}


@pytest.mark.parametrize("drafts", ["none", "itself", "another", "lookup"])
@pytest.mark.parametrize("kind", KINDS)
def test_drafts_across_the_length_are_verified_as_transformers_reads(kind: str, drafts: str) -> None:
    p = side(build(kind))
    drafter = {"none": None, "itself": p, "another": side(build(kind, seed=1)), "lookup": "lookup"}[drafts]
    texts = [written(p.model, ids) for ids in prompts()]
    for rows in (1, len(LENGTHS)):
        for start in range(0, len(LENGTHS), rows):
            asked = prompts()[start : start + rows]
            pair = Pair.of(p, drafter, "auto", GREEDY)
            decoder = pair.decoder([pair.prompt_pair(ids) for ids in asked], Constant(3), GREEDY)
            made = generate_all(decoder, asked, NEW, [0] * rows)
            assert [one.tokens for one in made] == texts[start : start + rows]
            if drafts == "itself":
                drafted = sum(len(step.drafted) for one in made for step in one.steps)
                assert sum(step.accepted for one in made for step in one.steps) >= 0.9 * drafted


def test_trees_are_refused() -> None:
    p = side(build("phi3"))
    pair = Pair.of(p, p, "auto", GREEDY)
    with pytest.raises(UserError, match=r"--tree 2 needs .* rotary frequencies the same at every length"):
        pair.decoder([pair.prompt_pair([5])], Constant(3), GREEDY, branching=2)


def test_the_simulation_counts_what_the_loop_does(tmp_path: Path) -> None:
    """Where a text crosses the length, one pass over it says something else; answers are transformers' own."""
    folders = {}
    for name, seed in (("target", 0), ("drafter", 1)):
        folders[name] = tmp_path / name
        model = build("phi3")
        if seed:
            with torch.no_grad():
                model.model.layers[2].mlp.down_proj.weight *= 0.5
        checkpoint.save(model, build_tokenizer(), folders[name])
    drafters = [("other", str(folders["drafter"])), ("self", str(folders["target"]))]
    words = ["the fox", "seven apples", "the lazy dog jumps"]  # 20 to 27 tokens with the template
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in words))
    options = {"k": [1, 4], "max_new_tokens": 20, "batch_size": 3}
    results = {}
    for name, simulate in (("real", False), ("simulated", True)):
        results[name] = evaluate_to(
            tmp_path / name,
            str(folders["target"]),
            drafters,
            str(tmp_path / "prompts.jsonl"),
            dict(**options, simulate=simulate),
        )
    assert timeless(results["real"]["drafters"]) == results["simulated"]["drafters"]
    assert results["real"]["drafters"][0]["k"]["4"]["acceptance_rate"] > 0.1
    assert results["real"]["drafters"][1]["alpha"] == 1


def test_dynamic_frequencies_change_beyond_the_context_only() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    hf.set_seed(0)
    config = hf.LlamaConfig(**{**GROUPED, "max_position_embeddings": 40}, rope_parameters=rope)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    p, other = side(model), side(build("llama", seed=3))
    asked = [ids for ids in prompts() if len(ids) < 40]
    pair = Pair.of(p, other, "auto", GREEDY)
    decoder = pair.decoder([pair.prompt_pair(ids) for ids in asked], Constant(3), GREEDY)
    made = generate_all(decoder, asked, 100, [0] * len(asked))
    assert [one.tokens for one in made] == [written(model, ids, 40 - len(ids)) for ids in asked]
    assert {one.finish_reason for one in made} == {"context"}
