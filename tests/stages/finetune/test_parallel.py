"""`finetune --objective parallel`: what it writes, what drafts with it, and what it refuses."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import (
    AutoConfig,
    BloomConfig,
    BloomForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object, write_json
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint, claims
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.native.extension import available
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.stages.finetune import losses, masks, parallel
from sparsedraft.stages.finetune.loop import Task, train
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.stages.finetune.options import FinetuneOptions, Settings
from sparsedraft.stages.finetune.parallel import Layout
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.stages.inspect.stage import table
from sparsedraft.text.bins import fill
from sparsedraft.text.logits import answer_logits
from sparsedraft.text.sample import Sample
from sparsedraft.writers.loaded import LoadedModel
from stages import distill, evaluate_to, finetune, generate, inspect, pack, prune
from tiny import build_llama
from training import samples, sparse

MASK = 320  # the first row of the embedding that the tokenizer does not use
SMALL: dict[str, Any] = {"sequence_length": 128, "rows_per_step": 2, "objective": "parallel", "parallel_tokens": 4}
RUNTIMES = ["transformers", pytest.param("native", marks=pytest.mark.skipif(not available(), reason="not built"))]


def counting() -> LlamaForCausalLM:
    """A tiny llama that has learnt to count on from any token, in a circle of 40: what follows can be foreseen."""
    model = build_llama(vocab_size=328, layers=2, initializer_range=0.05, tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        begin = torch.randint(3, MASK, (8, 8), generator=generator)
        start = torch.randint(40, (8, 1), generator=generator)
        ids = torch.cat([begin, 100 + (start + torch.arange(32)) % 40], 1)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target, its data, a 2:4 drafter of it that is trained so (`tuned`), the target itself trained so
    (`near`), and that packed. Read only."""
    root = tmp_path_factory.mktemp("parallel")
    checkpoint.save(counting(), tokenizer, root / "target")
    distill(str(root / "target"), "demo:train", root / "data", max_new_tokens=24, limit=24, batch_size=12)
    prune(str(root / "target"), root / "half", "demo:train", tokens=512, sequence_length=64, pattern="2:4")
    for source, out, rate in (("half", "tuned", 2e-3), ("target", "near", 1e-3)):
        settings = Settings(tokens=12000, learning_rate=rate, **SMALL)
        finetune(str(root / source), str(root / "data"), root / out, settings=settings, validation_prompts=4)
    pack(str(root / "near"), root / "packed")
    return root


def test_what_the_checkpoint_says(made: Path) -> None:
    """vLLM's `parallel_drafting` takes the mask token of the draft's hf_config.pard_token."""
    assert read_object(made / "tuned" / "config.json")["pard_token"] == MASK
    assert AutoConfig.from_pretrained(made / "tuned").pard_token == MASK
    assert read_object(made / "packed" / "config.json")["pard_token"] == MASK
    assert "pard_token" not in read_object(made / "half" / "config.json")
    for folder, token in (("tuned", MASK), ("packed", MASK), ("half", None), ("target", None)):
        assert inspect(str(made / folder))["mask_token"] == token
    assert f"at mask token {MASK}" in str(table(inspect(str(made / "packed"))).title)
    settings = read_object(made / "tuned" / "settings.json")
    assert (settings["objective"], settings["mask_token"], settings["parallel_tokens"]) == ("parallel", MASK, 4)


def test_the_mask_is_held_and_the_token_learned(made: Path) -> None:
    before, after = checkpoint.load(made / "half"), checkpoint.load(made / "tuned")
    claim = claims.check_claims(after, made / "tuned")
    assert claim is not None
    assert masks.broken(after, masks.masks_of(before, list(claim["linears"]))) == []
    linears = decoder_linears(before)
    assert all(not torch.equal(linear.weight, linears[n].weight) for n, linear in decoder_linears(after).items())
    rows = [model.get_input_embeddings().weight for model in (before, after)]
    assert not torch.equal(rows[0][MASK], rows[1][MASK]) and torch.equal(rows[0][MASK + 1 :], rows[1][MASK + 1 :])


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("folder", ["near", "packed"])
def test_the_text_is_the_targets(made: Path, folder: str, runtime: str) -> None:
    target, prompt = str(made / "target"), ["why is the sky blue?"]
    options: dict[str, Any] = {"max_new_tokens": 24, "runtime": runtime}
    plain = generate(target, prompt, **options)["text"]
    several = {**options, "drafter": str(made / folder), "policy": "constant", "k": 4}
    for more in ({}, {"drafting": "parallel", "drafter_window": 16}, {"lookup": True}, {"k": 8, "policy": "auto"}):
        found = generate(target, prompt, **{**several, **more})
        assert found["text"] == plain and found["drafting"] == "parallel"
    for more in ({"drafting": "chain"}, {"tree": 2, "k": 5}):
        found = generate(target, prompt, **{**several, **more})
        assert found["text"] == plain and "drafting" not in found
    both = generate(target, [*prompt, "and then?"], **several)
    assert both["answers"][0]["text"] == plain


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_draft_is_one_pass(made: Path, runtime: str) -> None:
    models = [LoadedModel.load(made / name, runtime=runtime) for name in ("target", "packed")]
    pair = Pair.of(*models, "auto", Sampling())
    prompt = pair.prompt_pair(pair.target.tokenizer("how many apples are left")["input_ids"])
    decoder = pair.decoder([prompt], Constant(4), Sampling())
    steps = [*decoder.decode([prompt.target], 24, [0])]
    drafting = sum(bool(step.drafted) for step in steps)
    assert decoder.drafter.backend.passes == drafting and max(len(step.drafted) for step in steps) == 4


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_simulated_is_the_real_loop(made: Path, tmp_path: Path, runtime: str) -> None:
    """Greedy: step for step, where drafts of K tokens are those of K. A window and look-up change nothing of that."""
    for name, more in (("whole", {}), ("window", {"drafter_window": 24})):
        found = []
        for simulate in (True, False):
            options = {
                "k": [1, 3, 5], "max_new_tokens": 24, "limit": 6, "simulate": simulate, "runtime": runtime,
                "batch_size": 3, **more,
            }  # fmt: skip
            drafters = [("packed", str(made / "packed"))]
            out = tmp_path / f"{name}-{simulate}"
            found.append(evaluate_to(out, str(made / "target"), drafters, "demo:eval", options)["drafters"][0])
        for k in ("1", "3", "5"):
            assert found[0]["k"][k]["histogram"] == found[1]["k"][k]["histogram"]
            assert found[0]["k"][k]["mal"] == found[1]["k"][k]["mal"]
        assert found[0]["drafting"] == found[1]["drafting"] == "parallel"
        assert found[0]["k"]["3"]["mal"] > found[0]["k"]["1"]["mal"] + 0.2 > 1.5, "mask tokens, too, were learned from"
        of_k = found[0]["k"]["5"]
        assert of_k["improvement_factor"] == pytest.approx(of_k["mal"] / (1 + found[0]["c"])), "its weights once"


def test_of_one_token_both_ways_are_the_same(made: Path, tmp_path: Path) -> None:
    found = {}
    for way in ("parallel", "chain"):
        taken = {} if way == "parallel" else {"answers": tmp_path / "parallel"}
        options = {"k": [1, 4], "max_new_tokens": 24, "limit": 6, "simulate": True, "drafting": way, **taken}
        drafters = [("near", str(made / "near"))]
        found[way] = evaluate_to(tmp_path / way, str(made / "target"), drafters, "demo:eval", options)
        assert found[way]["drafting"] == way
    one, other = (found[way]["drafters"][0]["k"] for way in ("parallel", "chain"))
    assert one["1"]["histogram"] == other["1"]["histogram"] and one["4"]["histogram"] != other["4"]["histogram"]


def test_sampled_expectation_and_loop_agree(made: Path, tmp_path: Path) -> None:
    found = []
    for simulate in (True, False):
        options = {
            "k": [3], "max_new_tokens": 24, "limit": 24, "simulate": simulate, "temperature": 1.0, "runtime": "auto",
        }  # fmt: skip
        drafters = [("near", str(made / "near"))]
        found.append(evaluate_to(None, str(made / "target"), drafters, "demo:eval", options)["drafters"][0])
    low, high = found[1]["k"]["3"]["mal_interval"]
    assert low - 0.05 < found[0]["k"]["3"]["mal"] < high + 0.05
    assert found[0]["alpha_of"] == "the target's text" and 0 < found[0]["alpha"] < 1


# ---- training


def test_it_learns_and_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    """On one text again and again, until it knows what follows behind mask tokens."""
    (sample,) = [s for s in samples(40, 7) if len(s.answer_ids) > 25][:1]
    settings = Settings(tokens=4000, learning_rate=3e-3, mask_token=319, save_every=3, validate_every=10, **SMALL)
    curves = {}
    for name, stop in (("whole", 0), ("stopped", 8)):
        folder, model = tmp_path / name, build_llama()
        folder.mkdir()
        keep = sparse(model)

        def kill(step: int, stop: int = stop) -> None:
            if step == stop:
                raise KeyboardInterrupt

        task = Task(model, keep, [sample] * 4, [sample])
        if stop:
            with pytest.raises(KeyboardInterrupt):
                train(task, settings, folder, after_step=kill)
            model = build_llama()
            sparse(model)
            task = Task(model, keep, [sample] * 4, [sample])
        result = train(task, settings, folder)
        curves[name] = [value.clone() for value in model.state_dict().values()]
        assert result["val_alpha"][1] > 0.9 > result["val_alpha"][0] and masks.broken(model, keep) == []
        assert result["tokens"] >= settings.tokens - 400, "text is counted, not mask tokens"
    assert all(torch.equal(a, b) for a, b in zip(*curves.values(), strict=True))


def test_against_the_target_and_the_dense_drafter(made: Path, tmp_path: Path) -> None:
    """Divergences behind mask tokens are from what the target says where they stand; on-policy and SquareHead, too."""
    target = str(made / "target")
    settings = Settings(
        tokens=1500, loss="kl", nll_weight=0.1, on_policy=0.5, feature_weight=0.5, learning_rate=1e-3, **SMALL
    )
    result = finetune(
        str(made / "half"), str(made / "data"), tmp_path / "out", settings=settings, teacher=target,
        feature_teacher=target, validation_prompts=4,
    )  # fmt: skip
    assert result["val_loss"][1] < result["val_loss"][0] and result["drafting"]["temperature"] > 0


def test_the_divergence_behind_a_mask_token_is_from_the_target_there() -> None:
    target, drafter = build_llama(1), build_llama(2)
    settings = Settings(mask_token=319, **SMALL)
    (row,) = Layout(drafter, settings)([fill(samples(3))], 1)
    with torch.no_grad():
        loss, agree = Objective("kl", target)(drafter, row)
        p, q = answer_logits(target, row.plain())[row.source], answer_logits(drafter, row)
    assert len(q) > row.places and float(loss) == pytest.approx(float(losses.kl(*losses.whole(p, q))), rel=1e-5)
    assert int(agree) == int((q.argmax(-1) == row.tokens).sum())


def test_trained_on_by_the_next_token_it_drafts_in_parallel_no_more(made: Path, tmp_path: Path, capfd) -> None:
    settings = Settings(tokens=400, sequence_length=128)
    finetune(str(made / "tuned"), str(made / "data"), tmp_path / "out", settings=settings, validation_prompts=4)
    assert "drafts token by token" in " ".join(capfd.readouterr().err.split())
    assert inspect(str(tmp_path / "out"))["mask_token"] is None
    assert {"objective", "mask_token", "parallel_tokens"}.isdisjoint(read_object(tmp_path / "out" / "settings.json"))


# ---- the mask token, and what is refused


def test_which_token_it_is(tokenizer) -> None:
    ends, text = [2], [Sample("a", [5, 6], [7, 2])]
    wide, narrow = build_llama(vocab_size=328), build_llama()
    choose = parallel.choose_mask_token
    assert choose(wide, tokenizer, text, ends, None) == MASK
    assert choose(wide, tokenizer, [Sample("a", [MASK], [7])], ends, None) == MASK + 1
    assert choose(narrow, tokenizer, text, ends, 319) == 319
    assert choose(narrow, tokenizer, [Sample("a", [5], [7])], ends, None) == 1, "a special token that no text has"
    wide.config.ptd_token_id = 323
    assert choose(wide, tokenizer, text, ends, None) == 323, "that which it was trained with"
    refused = {
        (narrow, 320): "--mask-token 320 is no token of the drafter, whose embedding has 320 rows",
        (narrow, 7): "--mask-token 7 is a token of the text",
        (narrow, 2): "--mask-token 2 is a token of the text",
    }
    for (model, wanted), message in refused.items():
        with pytest.raises(UserError, match=message):
            choose(model, tokenizer, text, ends, wanted)
    with pytest.raises(UserError, match="needs a token that no text has"):
        choose(narrow, tokenizer, [Sample("a", [1], [7])], ends, None)


def test_models_that_cannot_be_trained_so() -> None:
    small: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    windowed = MistralForCausalLM(MistralConfig(**small, sliding_window=64))
    with pytest.raises(UserError, match=r"has a window of 64 tokens, less than --sequence-length 128: lower that"):
        parallel.check_trains(windowed, Settings(**SMALL))
    parallel.check_trains(MistralForCausalLM(MistralConfig(**small, sliding_window=None)), Settings(**SMALL))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=64, n_layer=2, n_head=4))
    with pytest.raises(UserError, match=r"needs attention that takes masks, .* and BloomForCausalLM has none"):
        parallel.check_trains(bloom, Settings(**SMALL))


@pytest.mark.parametrize("token", [-1, 328, "mask", True, 3.0])
def test_a_mask_token_that_is_none(made: Path, tmp_path: Path, token: object) -> None:
    copytree(made / "packed", folder := tmp_path / "packed")
    write_json(folder / "config.json", read_object(folder / "config.json") | {"pard_token": token})
    for use in (inspect, lambda ref: generate(str(made / "target"), ["x"], drafter=ref, max_new_tokens=4)):
        with pytest.raises(UserError, match=r"has pard_token .* in config.json, which is no token of its vocabulary"):
            use(str(folder))


def test_a_packed_folder_of_before_drafts_token_by_token(made: Path, tmp_path: Path) -> None:
    copytree(made / "packed", folder := tmp_path / "packed")
    config = read_object(folder / "config.json")
    del config["pard_token"]
    write_json(folder / "config.json", config)
    found = generate(str(made / "target"), ["x"], drafter=str(folder), max_new_tokens=12, k=3)
    assert "drafting" not in found and LoadedModel.load(folder).mask_token is None


def test_across_tokenizers_and_in_trees(made: Path) -> None:
    """As text no draft can be written in one pass; with common tokens it can (test_exact.py), and trees never are."""
    target, drafter = (LoadedModel.load(made / name) for name in ("target", "near"))
    pairs = {route: Pair(target, drafter, route, "") for route in ("same", "intersection", "realign")}
    drafts = {route: pair.drafting_by("auto").mask_token for route, pair in pairs.items()}
    assert drafts == {"same": MASK, "intersection": MASK, "realign": None}
    with pytest.raises(UserError, match=r"--drafting parallel cannot pass drafts as text"):
        pairs["realign"].drafting_by("parallel")
    with pytest.raises(UserError, match=r"drafts in parallel drafts chains, and --tree 2 none"):
        pairs["same"].drafting_by("auto").check_tree(2, Constant(3))
    for way in ("auto", "chain"):
        assert Pair(target, None, "none", "").drafting_by(way).mask_token is None


def test_drafters_and_options_that_cannot(made: Path) -> None:
    target, prompt = str(made / "target"), ["x"]
    with pytest.raises(UserError, match=r"--drafting parallel needs a drafter that was trained for it"):
        generate(target, prompt, drafter=str(made / "half"), drafting="parallel")
    with pytest.raises(UserError, match=r"--drafting parallel needs a drafter that was trained for it"):
        evaluate_to(None, target, [("half", str(made / "half"))], "demo:eval", {"drafting": "parallel"})
    with pytest.raises((ValidationError, UserError), match=r"drafting.* parallel needs a model that drafts"):
        evaluate_to(None, target, [("lookup", "lookup")], "demo:eval", {"drafting": "parallel"})
    refused = {
        r"drafting.* parallel drafts chains, and .*tree.* 2 none": {"drafter": "d", "drafting": "parallel", "tree": 2},
        r"drafting.* parallel is a drafter's, and no model drafts": {"drafting": "parallel"},
    }
    for message, options in refused.items():
        with pytest.raises((ValidationError, UserError), match=message):
            GenerateOptions(**{"target": target, "prompt": prompt, **options})
    with pytest.raises((ValidationError, UserError), match=r"parallel.tokens.* 5 does nothing under .*next-token"):
        FinetuneOptions(drafter=target, data=made / "data", out=made / "x", parallel_tokens=5)
