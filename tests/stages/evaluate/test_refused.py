"""What an evaluation refuses: liars, broken weights, pairs that do not fit; and what it leaves out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf

from evaluated import GREEDY
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.speculate.pair import Pair
from sparsedraft.stages.evaluate import loop
from sparsedraft.writers.loaded import LoadedModel
from stages import evaluate_to
from timeless import timeless
from tiny import build_llama, build_tokenizer


def test_turns_without_room_in_the_context_are_left_out(models, tmp_path: Path, capsys) -> None:
    """They were refused before, after all of the target's work; so would the same command have been again."""
    target, drafters = models
    turns = [["the fox", "the dog", "why", "and?"], ["the apples"]]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"turns": asked}) for asked in turns))
    options = {"k": [2], "max_new_tokens": 180, "temperature": 1.0, "simulate": True, "seed": 1}
    found = evaluate_to(None, target, drafters[:1], str(tmp_path / "p.jsonl"), options)
    assert found["prompts"] == 2 and 2 <= found["sequences"] < 5
    assert f"{5 - found['sequences']} later turns have no room in the context of 512" in capsys.readouterr().err


def test_refusals(models, tmp_path: Path) -> None:
    target, drafters = models

    def refused(message: str, named: list[tuple[str, str]], options: dict = GREEDY) -> None:
        with pytest.raises(UserError, match=message):
            evaluate_to(None, target, named, "demo:eval", options)

    refused("two drafters are called 'self'", [drafters[0], drafters[0]])
    refused("temperature -1 is not possible", drafters, dict(GREEDY, temperature=-1))
    liar = shutil.copytree(drafters[1][1], tmp_path / "liar")
    name = next(iter(decoder_linears(checkpoint.load(liar))))
    claim = {"pattern": "2:4", "sparsity": 0.5, "linears": {name: 1}}
    (Path(liar) / "sparsity.json").write_text(json.dumps(claim))
    refused("lies", [("liar", str(liar))])
    other = shutil.copytree(drafters[1][1], tmp_path / "other")
    tokenizer = checkpoint.load_tokenizer(other)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(other)
    refused("another tokenizer than target", [("other", str(other))], dict(GREEDY, uag="off"))
    refused("--k auto needs the real loop", drafters, dict(GREEDY, k=[1, "auto"], simulate=True))
    url = "http://localhost:8000/v1"
    refused("tells of greedy drafting alone", drafters, dict(GREEDY, url=url))
    warm = dict(GREEDY, url=url, simulate=True, temperature=1.0)
    refused("tells of greedy drafting alone", drafters, warm)
    refused("is no http address", drafters, dict(GREEDY, url="localhost:8000", simulate=True))
    refused("--tree 2 needs the real loop", drafters, dict(GREEDY, tree=2, simulate=True))
    refused("--uag best is not known", [("l", "lookup")], dict(GREEDY, uag="best"))
    refused("--tree 2 needs .* one tokenizer", [("other", str(other))], dict(GREEDY, tree=2))
    refused("--tree 3 needs a model that drafts", [("l", "lookup")], dict(GREEDY, tree=3))
    both = [("both", f"{drafters[0][1]}+lookup")]
    refused(
        "\\+lookup chooses by measured seconds, which need .*: turn --simulate off", both, dict(GREEDY, simulate=True)
    )
    refused("\\+lookup drafts chains, and --tree 2 none: leave one of them out", both, dict(GREEDY, tree=2))
    refused("model lookup: no such folder", [("l", "lookup+lookup")])
    refused("the policy confidence ends chains", drafters, dict(GREEDY, k=["confidence"], tree=2))
    refused("--k best is not possible: k is a whole number", drafters, dict(GREEDY, k=["best"]))


@pytest.mark.parametrize("kind", ["fewer rows", "learned positions", "short context"])
def test_drafters_that_cannot_read_all_that_the_target_writes(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """α and the simulation read the target's text as the loop does: unknown tokens as 0, nothing beyond the context."""
    target, drafter = build_llama(vocab_size=384), build_llama(vocab_size=384)
    if kind == "fewer rows":
        drafter.resize_token_embeddings(320)
    elif kind == "short context":
        drafter = build_llama(vocab_size=384, max_position_embeddings=48)
    else:
        drafter = hf.OPTForCausalLM(
            hf.OPTConfig(
                vocab_size=384, hidden_size=32, word_embed_proj_dim=32, ffn_dim=32, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=48, init_std=0.2,
            )
        ).eval()  # fmt: skip
    folders = {"target": target, "drafter": drafter}
    for name, model in folders.items():
        model.save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)
    named = [("drafter", str(tmp_path / "drafter"))]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": "the fox " * n}) + "\n" for n in (1, 3, 12)))
    options = dict(GREEDY, k=[3], max_new_tokens=40)
    found = [
        evaluate_to(
            tmp_path / f"out-{simulate}", str(tmp_path / "target"), named, str(tmp_path / "p.jsonl"),
            dict(options, simulate=simulate),
        )
        for simulate in (False, True)
    ]  # fmt: skip
    assert timeless(found[0]["drafters"]) == found[1]["drafters"]
    rows = [json.loads(line) for line in (tmp_path / "out-True" / "rows.jsonl").read_text().splitlines()]
    if kind != "fewer rows":
        assert rows[-1]["alpha"] == 0, "the third prompt alone fills the drafter's context"
        said = " ".join(capsys.readouterr().err.split())
        assert "drafter: 1 of 3 prompts fill the drafter's context of 48 tokens" in said
    if kind == "short context":
        assert 0 < rows[0]["alpha"] < 1, "the rest of its answers lies beyond"
    if kind == "fewer rows":
        pair = Pair.of(
            LoadedModel.load(tmp_path / "target"), LoadedModel.load(tmp_path / "drafter"), "auto", Sampling()
        )
        strange = [5, pair.target.embedding_rows - 1, 6]
        assert strange[1] >= pair.drafter.embedding_rows
        assert loop.reading(pair, pair.prompt_pair(strange)).keys() == {"target", "drafter"}
    if kind == "fewer rows":  # which no tree can do: said before the target works
        with pytest.raises(UserError, match="--tree 2 needs"):
            trees = dict(options, tree=2)
            evaluate_to(tmp_path / "trees", str(tmp_path / "target"), named, str(tmp_path / "p.jsonl"), trees)
        assert not list(tmp_path.glob(".trees.partial/.answers.jsonl"))


def test_broken_weights_of_a_drafter_are_found_by_the_simulation(models, tmp_path: Path) -> None:
    """Before an argmax of NaN is counted as a guess."""
    target, drafters = models
    model = checkpoint.load(drafters[1][1])
    with torch.no_grad():
        next(iter(decoder_linears(model).values())).weight[0, 0] = torch.nan
    checkpoint.save(model, checkpoint.load_tokenizer(target), tmp_path / "broken")
    named = [drafters[0], ("broken", str(tmp_path / "broken"))]  # the worked example is the first one's
    with pytest.raises(FloatingPointError, match=r"the drafter.s logits after .* tokens hold NaN"):
        evaluate_to(None, target, named, "demo:eval", dict(GREEDY, simulate=True, limit=1))
