"""The eval stage: real loop and simulation agree, sampled acceptance is what it should be, liars are refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.macs import macs_of_model
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.stages.evaluate import loop
from sparsedraft.stages.evaluate.options import Options
from sparsedraft.stages.evaluate.rows import realised
from sparsedraft.stages.evaluate.stage import evaluate_to
from sparsedraft.writers.loaded import LoadedModel
from timeless import timeless
from tiny import build_llama, build_tokenizer
from tokens import byte_level

GREEDY = Options(k=[1, 3, 8], max_new_tokens=16, limit=10, batch_size=4)


@pytest.fixture(scope="module")
def models(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[str, str]]]:
    """The tiny target, itself, and a copy with noise."""
    model = checkpoint.load(tiny_checkpoint)
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            linear.weight += (
                0.2 * linear.weight.std() * torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(1))
            )
    folder = tmp_path_factory.mktemp("noisy") / "noisy"
    checkpoint.save(model, checkpoint.load_tokenizer(tiny_checkpoint), folder)
    return str(tiny_checkpoint), [("self", str(tiny_checkpoint)), ("noisy", str(folder))]


def renumbered(tokenizer: hf.PreTrainedTokenizerFast, order: list[int]) -> hf.PreTrainedTokenizerFast:
    """The tokenizer with the ids order[i] for i."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data["model"]["vocab"] = {token: order[i] for token, i in data["model"]["vocab"].items()}
    names = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    made = hf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), **names)
    made.chat_template = tokenizer.chat_template
    return made


def renumbered_copy(checkpoint_folder: str | Path, out: Path) -> Path:
    """One that says what that checkpoint says, in words of its own: its ids in another order."""
    model, ours = checkpoint.load(checkpoint_folder), checkpoint.load_tokenizer(checkpoint_folder)
    order = [0, 1, 2, *(3 + torch.randperm(len(ours) - 3, generator=torch.Generator().manual_seed(0))).tolist()]
    weight = model.get_input_embeddings().weight  # the head's, too
    with torch.no_grad():
        weight[order] = weight[: len(order)].clone()
    checkpoint.save(model, renumbered(ours, order), out)
    return out


def whole(folder: Path) -> list[dict]:
    """The rows of the drafters."""
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def raw(folder: Path) -> list[dict]:
    """The same, without times."""
    return [{k: v for k, v in row.items() if k not in ("loops", "alone", "reading")} for row in whole(folder)]


def test_simulation_equals_the_real_loop_in_every_figure(models, tmp_path: Path) -> None:
    target, drafters = models
    real = evaluate_to(tmp_path / "real", target, drafters, "demo:eval", GREEDY)
    simulated = evaluate_to(tmp_path / "sim", target, drafters, "demo:eval", dataclasses.replace(GREEDY, simulate=True))
    assert timeless(real["drafters"]) == simulated["drafters"]
    assert raw(tmp_path / "real") == raw(tmp_path / "sim")
    itself, noisy = real["drafters"]
    assert itself["alpha"] == 1 and itself["c"] == 1 and itself["k"]["3"]["acceptance_rate"] == 1
    assert 0.05 < noisy["alpha"] < 0.95
    dense = macs_of_model(checkpoint.load(target))
    assert itself["macs_per_token"] == dense == real["dense_macs_per_token"]
    for drafter in real["drafters"]:
        for k, found in drafter["k"].items():
            assert (
                found["mal"] == pytest.approx(found["tokens"] / found["steps"])
                and sum(found["histogram"]) == found["steps"]
            )
            assert found["improvement_factor"] == pytest.approx(found["mal"] / (1 + int(k) * drafter["c"]))
        tokens = sum(c["sequences"] for c in drafter["by_category"].values())
        assert tokens == real["sequences"] and len(drafter["by_category"]) > 1


def test_across_tokenizers_and_for_lookup_too(models, tmp_path: Path) -> None:
    """Both ways between tokenizers; under sampling, too, where drafts are not drawn: they follow from the text then."""
    target, drafters = models
    folder = tmp_path / "stranger"
    theirs = byte_level()
    checkpoint.save(build_llama(seed=3, vocab_size=len(theirs)), theirs, folder)
    shuffled = renumbered_copy(drafters[1][1], tmp_path / "shuffled")
    named = [("stranger", str(folder)), ("shuffled", str(shuffled)), ("lookup", "lookup")]
    for uag, temperature in (("realign", 0.0), ("intersection", 0.0), ("realign", 0.7)):
        options = dataclasses.replace(GREEDY, uag=uag, temperature=temperature, limit=6)
        loop, known = tmp_path / f"loop-{uag}-{temperature}", tmp_path / f"known-{uag}-{temperature}"
        real = evaluate_to(loop, target, named, "demo:eval", options)
        simulated = evaluate_to(known, target, named, "demo:eval", dataclasses.replace(options, simulate=True))
        assert timeless(real["drafters"]) == simulated["drafters"]
        assert raw(loop) == raw(known)
        assert all("loops" not in row for row in whole(known))
        assert [d["route"] for d in simulated["drafters"]] == [uag, uag, "lookup"]
        assert 0.05 < simulated["drafters"][1]["alpha"] < 0.99


def test_answers_decoded_at_once_count_as_one_after_the_other(talker: Path, tmp_path: Path, monkeypatch) -> None:
    """The answers end at different places, so that any one of a batch may be the last that goes on."""
    from sparsedraft.stages.evaluate import rows

    noisy = checkpoint.load(talker)
    with torch.no_grad():
        for linear in decoder_linears(noisy).values():
            linear.weight += (
                0.3 * linear.weight.std() * torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(2))
            )
    checkpoint.save(noisy, checkpoint.load_tokenizer(talker), tmp_path / "noisy")
    named = [("shuffled", str(renumbered_copy(tmp_path / "noisy", tmp_path / "shuffled")))]
    options = dataclasses.replace(GREEDY, uag="realign", simulate=True, limit=None, runtime="native", max_new_tokens=24)
    found = []
    for size, read in ((1, rows.READ), (16, rows.READ), (16, 200)):
        monkeypatch.setattr(rows, "READ", read)
        out = tmp_path / f"{size}-{read}"
        evaluate_to(out, str(talker), named, "demo:eval", dataclasses.replace(options, batch_size=size))
        found.append(raw(out))
    assert found[0] == found[1] == found[2]
    alphas = [row["alpha"] for row in found[0]]
    assert len({row["tokens"] for row in found[0]}) > 4 and 0.1 < sum(alphas) / len(alphas) < 0.95


def test_a_target_behind_a_server(served: str, talker: Path, models, tmp_path: Path) -> None:
    """Greedily its text tells all; where that encodes to the tokens it wrote, the rows are those of the target here."""
    named = [("self", str(talker)), models[1][1], ("lookup", "lookup")]
    options = dataclasses.replace(GREEDY, simulate=True, limit=None)
    here = evaluate_to(tmp_path / "here", str(talker), named, "demo:eval", options)
    bare = tmp_path / "bare"
    shutil.copytree(talker, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    there = dataclasses.replace(options, url=served, served_name="tiny/talker", concurrency=3)
    found = evaluate_to(tmp_path / "there", str(bare), named, "demo:eval", there)
    ours = {(row["drafter"], row["id"]): row for row in raw(tmp_path / "here")}
    theirs = {(row["drafter"], row["id"]): row for row in raw(tmp_path / "there")}
    assert theirs.keys() == ours.keys()
    alike = [key for key, row in theirs.items() if row["tokens"] == ours[key]["tokens"]]
    assert len(alike) >= 30 and all(theirs[key] == ours[key] for key in alike)
    assert found["near_ties"] == 0 and found["dense_macs_per_token"] == here["dense_macs_per_token"]
    gone = dataclasses.replace(there, url="http://127.0.0.1:9/v1", concurrency=1)
    for file in talker.glob("*.safetensors"):
        shutil.copy(file, bare)  # weights that come later change nothing of what the server said
    assert evaluate_to(tmp_path / "there", str(bare), named, "demo:eval", gone) == found, "nothing is asked again"


def test_turns_without_room_in_the_context_are_left_out(models, tmp_path: Path, capsys) -> None:
    """They were refused before, after all of the target's work; so would the same command have been again."""
    target, drafters = models
    turns = [["the fox", "the dog", "why", "and?"], ["the apples"]]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"turns": asked}) for asked in turns))
    options = Options(k=[2], max_new_tokens=180, temperature=1.0, simulate=True, seed=1)
    found = evaluate_to(None, target, drafters[:1], str(tmp_path / "p.jsonl"), options)
    assert found["prompts"] == 2 and 2 <= found["sequences"] < 5
    assert f"{5 - found['sequences']} later turns have no room in the context of 512" in capsys.readouterr().err


def test_worked_example_is_a_real_generation(models, tmp_path: Path) -> None:
    target, drafters = models
    evaluate_to(tmp_path / "out", target, drafters, "demo:eval", dataclasses.replace(GREEDY, simulate=True))
    example = json.loads((tmp_path / "out" / "example.json").read_text())
    assert example["drafter"] == "self" and example["k"] == 3
    assert all(0 <= s["accepted"] <= len(s["drafted"]) <= 3 for s in example["steps"])


def test_sampled_realised_acceptance_agrees_with_the_expected(models, tmp_path: Path) -> None:
    """At K = 1 a draft is accepted with probability Σ min(p, q): the two agree within four standard errors."""
    target, drafters = models
    options = Options(k=[1], temperature=1.0, max_new_tokens=24, limit=48, batch_size=16)
    named = [("target", drafters[1][1])]  # a drafter may be called that
    found = evaluate_to(tmp_path / "out", target, named, "demo:eval", options)["drafters"][0]
    rate, drafted = found["k"]["1"]["acceptance_rate"], found["k"]["1"]["steps"]
    assert 0.1 < found["alpha"] < 0.99
    assert abs(rate - found["alpha"]) < 4 * (found["alpha"] * (1 - found["alpha"]) / drafted) ** 0.5 + 0.05


def test_interrupted_evaluation_goes_on(models, tmp_path: Path, monkeypatch) -> None:
    from sparsedraft.stages.evaluate import rows

    target, drafters = models
    whole = evaluate_to(tmp_path / "whole", target, drafters, "demo:eval", GREEDY)
    original, calls = rows.Reader._loops, []

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(rows.Reader, "_loops", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate_to(tmp_path / "cut", target, drafters, "demo:eval", GREEDY)
    again = evaluate_to(tmp_path / "cut", target, drafters, "demo:eval", GREEDY)
    assert timeless(again["drafters"]) == timeless(whole["drafters"])
    assert len(calls) == 1 + 4 * whole["sequences"], (
        "no finished sequence is decoded again: two drafters, the target beside"
    )
    assert raw(tmp_path / "cut") == raw(tmp_path / "whole")


@pytest.mark.parametrize("changed", [{"simulate": True}, {}, {"simulate": True, "temperature": 1.0}], ids=str)
def test_a_finished_evaluation_takes_more_drafters(models, tmp_path: Path, monkeypatch, changed: dict) -> None:
    from sparsedraft.stages.evaluate import rows

    target, drafters = models
    options = dataclasses.replace(GREEDY, limit=4, **changed)
    whole = evaluate_to(tmp_path / "whole", target, drafters, "demo:eval", options)
    evaluate_to(tmp_path / "grown", target, drafters[1:], "demo:eval", options)
    before = {file.name: file.read_bytes() for file in (tmp_path / "grown").iterdir()}
    broken = tmp_path / "broken"
    shutil.copytree(drafters[0][1], broken)
    name = next(iter(decoder_linears(checkpoint.load(broken))))
    (broken / "sparsity.json").write_text(json.dumps({"pattern": "2:4", "sparsity": 0.5, "linears": {name: 1}}))
    for named, message in (
        ([*drafters[1:], ("broken", str(broken))], "lies"),
        ([("noisy", target)], r"changed: drafters\.noisy"),
        ([("self", target)], "changed: drafters"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_to(tmp_path / "grown", target, named, "demo:eval", options)
        assert {file.name: file.read_bytes() for file in (tmp_path / "grown").iterdir()} == before
        assert [*tmp_path.glob(".grown*")] == [], "a refused one leaves nothing in the way"

    asked, original = [], rows.Reader.rows

    def noted(self, answers, done):
        asked.append((self.name, len(answers) - len(done)))
        return original(self, answers, done)

    monkeypatch.setattr(rows.Reader, "rows", noted)
    monkeypatch.setattr("sparsedraft.writers.conversation.Writer.write", None)  # the target is not asked again
    grown = evaluate_to(tmp_path / "grown", target, drafters, "demo:eval", options)
    assert asked == [("self", whole["sequences"]), ("noisy", 0)]
    assert timeless(grown["drafters"]) == timeless(whole["drafters"])
    assert raw(tmp_path / "grown") == raw(tmp_path / "whole")
    monkeypatch.undo()
    asked.clear()
    monkeypatch.setattr(rows.Reader, "rows", noted)
    evaluate_to(tmp_path / "grown", target, drafters, "demo:eval", options, overwrite=True)
    assert asked == [("self", whole["sequences"]), ("noisy", whole["sequences"])], "--overwrite takes nothing up"


def test_refusals(models, tmp_path: Path) -> None:
    target, drafters = models

    def refused(message: str, named: list[tuple[str, str]], options: Options = GREEDY) -> None:
        with pytest.raises(UserError, match=message):
            evaluate_to(None, target, named, "demo:eval", options)

    refused("two drafters are called 'self'", [drafters[0], drafters[0]])
    refused("temperature -1 is not possible", drafters, dataclasses.replace(GREEDY, temperature=-1))
    liar = shutil.copytree(drafters[1][1], tmp_path / "liar")
    name = next(iter(decoder_linears(checkpoint.load(liar))))
    claim = {"pattern": "2:4", "sparsity": 0.5, "linears": {name: 1}}
    (Path(liar) / "sparsity.json").write_text(json.dumps(claim))
    refused("lies", [("liar", str(liar))])
    other = shutil.copytree(drafters[1][1], tmp_path / "other")
    tokenizer = checkpoint.load_tokenizer(other)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(other)
    refused("another tokenizer than target", [("other", str(other))], dataclasses.replace(GREEDY, uag="off"))
    refused("--k auto needs the real loop", drafters, dataclasses.replace(GREEDY, k=[1, "auto"], simulate=True))
    url = "http://localhost:8000/v1"
    refused("tells of greedy drafting alone", drafters, dataclasses.replace(GREEDY, url=url))
    warm = dataclasses.replace(GREEDY, url=url, simulate=True, temperature=1.0)
    refused("tells of greedy drafting alone", drafters, warm)
    refused("is no http address", drafters, dataclasses.replace(GREEDY, url="localhost:8000", simulate=True))
    refused("--tree 2 needs the real loop", drafters, dataclasses.replace(GREEDY, tree=2, simulate=True))
    refused("--uag best is not known", [("l", "lookup")], dataclasses.replace(GREEDY, uag="best"))
    refused("--tree 2 needs .* one tokenizer", [("other", str(other))], dataclasses.replace(GREEDY, tree=2))
    refused("--tree 3 needs a model that drafts", [("l", "lookup")], dataclasses.replace(GREEDY, tree=3))
    refused("the policy confidence ends chains", drafters, dataclasses.replace(GREEDY, k=["confidence"], tree=2))
    refused("--policy best is not known", drafters, dataclasses.replace(GREEDY, k=["best"]))


def test_the_loop_is_timed_and_its_sampled_acceptance_is_as_expected(models, tmp_path: Path) -> None:
    target, drafters = models
    options = Options(k=[2, "auto"], temperature=0.8, max_new_tokens=24, limit=40, batch_size=16)
    found = evaluate_to(tmp_path / "out", target, [drafters[1], ("lookup", "lookup")], "demo:eval", options)
    noisy, lookup = found["drafters"]
    for k in ("2", "auto"):
        measured = noisy["k"][k]["measured"]
        parts = measured["seconds"]
        assert set(parts) == {"draft", "verify", "rollback", "sampling", "rest"} and min(parts.values()) >= 0
        assert measured["speedup"] == pytest.approx(
            measured["tokens_per_second"] / measured["target_tokens_per_second"]
        )
    low, high = noisy["k"]["2"]["measured"]["acceptance"]["difference_interval"]
    assert low < 0 < high or min(abs(low), abs(high)) < 0.02, "realised - expected: 0 within its 95 % interval, or near"
    mal, (low, high) = noisy["k"]["2"]["mal"], noisy["k"]["2"]["mal_interval"]
    assert 1 <= low < mal < high <= 3
    assert noisy["k"]["2"]["measured"]["c"] > 0.2, "a drafter of the target's size costs about as much"
    assert lookup["macs_per_token"] == 0 and lookup["route"] == "lookup" and lookup["k"]["2"]["mal"] >= 1


def test_what_reading_takes_is_timed_and_the_loop_goes_on_from_there(models, tmp_path: Path) -> None:
    target, drafters = models
    pair = Pair.of(LoadedModel.load(target), LoadedModel.load(drafters[1][1]), "auto", Sampling())
    asked = pair.prompted(pair.target.tokenizer("the quick brown fox jumps over")["input_ids"])
    fresh = loop.run(pair, asked, Constant(2), Sampling(), 12, 0)[0]
    for _ in range(2):  # the second time from caches that hold an answer
        found = loop.reading(pair, asked)
        assert found.keys() == {"target", "drafter"} and min(found.values()) > 0
        for side in (pair.target, pair.drafter):
            assert side.remembering().backend.lengths == [len(asked.target) - 1], "the first step reads the last token"
        assert loop.run(pair, asked, Constant(2), Sampling(), 12, 0)[0] == fresh
    assert loop.reading(Pair.of(pair.target, "lookup", "auto", Sampling()), asked).keys() == {"target"}
    assert loop.reading(pair, pair.prompted([5])).keys() == {"target", "drafter"}, "nothing to read"


def test_greedy_loop_in_every_way_is_the_target_alone(models, tmp_path: Path) -> None:
    """Policies, trees, look-up, penalty: the stage itself refuses an output that is not the target's."""
    target, drafters = models
    named = [drafters[1], ("lookup", "lookup")]
    for changed in ({"k": ["auto", "confidence", "bandit"]}, {"k": [5], "tree": 2}, {"repetition_penalty": 1.3}):
        options = dataclasses.replace(GREEDY, **{"k": [3], **changed}, limit=4)
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        found = evaluate_to(out, target, named, "demo:eval", options)
        assert all(not k["measured"]["differing"] for d in found["drafters"] for k in d["k"].values())
        loops = [x for row in whole(out) for x in row["loops"].values()]
        assert all(0 <= x["accepted"] <= x["compared"] for x in loops)


def test_a_perfect_drafter_has_no_draft_rejected(models, tmp_path: Path) -> None:
    """Where α is that of the loop's own drafts, steps that accepted all, or drafted none, count no rejection."""
    target, drafters = models
    options = dataclasses.replace(GREEDY, k=[1, 4], limit=3)
    evaluate_to(tmp_path / "out", target, [drafters[0]], "demo:eval", options)
    rows = whole(tmp_path / "out")
    assert rows and all(x["compared"] == x["accepted"] > 0 for row in rows for x in row["loops"].values())
    assert all(realised(row["loops"]) == 1 == row["alpha"] for row in rows)


def test_spec_bench_prompts_get_its_table(models, tmp_path: Path) -> None:
    """Turns are answered one after the other, MT-Bench's categories count as one task, and raw rows are kept."""
    from sparsedraft.stages.report.tables import spec_bench_table, speed_table

    target, drafters = models
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["write a poem", "and another"]},
        {"question_id": 101, "category": "math", "turns": ["add one and two", "and three"]},
        {"question_id": 160, "category": "translation", "turns": ["translate: danke"]},
        {"question_id": 400, "category": "rag", "turns": ["read this, then answer"]},
    ]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    options = dataclasses.replace(GREEDY, k=[2, "auto"], limit=None)
    result = evaluate_to(tmp_path / "out", target, drafters[1:], str(tmp_path / "question.jsonl"), options)
    tasks = result["drafters"][0]["by_task"]
    assert {name: task["sequences"] for name, task in tasks.items()} == {"mt_bench": 4, "translation": 1, "rag": 1}
    assert set(result["drafters"][0]["by_category"]) == {"writing", "math", "translation", "rag"}
    assert set(tasks["mt_bench"]["speedup"]) == {"2", "auto"}
    table, speed = spec_bench_table(result), speed_table(result)
    assert table is not None and table.row_count == 2 and speed is not None and speed.row_count == 2
    assert len(raw(tmp_path / "out")) == 6


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
    options = dataclasses.replace(GREEDY, k=[3], max_new_tokens=40)
    found = [
        evaluate_to(
            tmp_path / f"out-{simulate}", str(tmp_path / "target"), named, str(tmp_path / "p.jsonl"),
            dataclasses.replace(options, simulate=simulate),
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
        strange = [5, pair.target.known - 1, 6]
        assert strange[1] >= pair.drafter.known
        assert loop.reading(pair, pair.prompted(strange)).keys() == {"target", "drafter"}
    if kind == "fewer rows":  # which no tree can do: said before the target works
        with pytest.raises(UserError, match="--tree 2 needs"):
            trees = dataclasses.replace(options, tree=2)
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
        evaluate_to(None, target, named, "demo:eval", dataclasses.replace(GREEDY, simulate=True, limit=1))


def test_answers_of_one_step_have_no_times_and_still_a_result(models, tmp_path: Path) -> None:
    from sparsedraft.stages.report.tables import speed_table

    target, drafters = models
    result = evaluate_to(None, target, drafters, "demo:eval", dataclasses.replace(GREEDY, max_new_tokens=1, limit=2))
    assert speed_table(result) is None
    assert all(k["mal"] == 1 and "speedup" not in k["measured"] for d in result["drafters"] for k in d["k"].values())


def test_each_sequence_is_sampled_by_its_own_seed(models, monkeypatch) -> None:
    """The intervals are a bootstrap over prompts, which may not share their chances."""
    target, drafters = models
    seeds, run = [], loop.run

    def heard(pair, asked, policy, sampling, new_tokens, seed, *rest):
        seeds.append(seed)
        return run(pair, asked, policy, sampling, new_tokens, seed, *rest)

    monkeypatch.setattr(loop, "run", heard)
    options = dataclasses.replace(GREEDY, k=[2], temperature=0.8, limit=3)
    evaluate_to(None, target, drafters[:1], "demo:eval", options)
    assert len(seeds) == 6 and len(set(seeds)) == 3
