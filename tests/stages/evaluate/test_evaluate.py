"""The eval stage: real loop and simulation agree in every figure; a server's text tells the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from evaluated import GREEDY, raw, whole
from renumbered import renumbered_copy
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.macs import macs_of_model
from sparsedraft.stages.evaluate.rows import compared_share
from stages import evaluate_to
from timeless import timeless
from tiny import build_llama
from tokens import byte_level


def test_simulation_equals_the_real_loop_in_every_figure(models, tmp_path: Path) -> None:
    target, drafters = models
    real = evaluate_to(tmp_path / "real", target, drafters, "demo:eval", GREEDY)
    simulated = evaluate_to(tmp_path / "sim", target, drafters, "demo:eval", dict(GREEDY, simulate=True))
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
        options = dict(GREEDY, uag=uag, temperature=temperature, limit=6)
        loop, known = tmp_path / f"loop-{uag}-{temperature}", tmp_path / f"known-{uag}-{temperature}"
        real = evaluate_to(loop, target, named, "demo:eval", options)
        simulated = evaluate_to(known, target, named, "demo:eval", dict(options, simulate=True))
        assert timeless(real["drafters"]) == simulated["drafters"]
        assert raw(loop) == raw(known)
        assert all("loops" not in row for row in whole(known))
        assert [d["route"] for d in simulated["drafters"]] == [uag, uag, "lookup"]
        assert 0.02 < simulated["drafters"][1]["alpha"] < 0.99


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
    options = dict(GREEDY, uag="realign", simulate=True, limit=None, runtime="native", max_new_tokens=24)
    found = []
    for size, read in ((1, rows.READ), (16, rows.READ), (16, 200)):
        monkeypatch.setattr(rows, "READ", read)
        out = tmp_path / f"{size}-{read}"
        evaluate_to(out, str(talker), named, "demo:eval", dict(options, batch_size=size))
        found.append(raw(out))
    assert found[0] == found[1] == found[2]
    alphas = [row["alpha"] for row in found[0]]
    assert len({row["tokens"] for row in found[0]}) > 4 and 0.1 < sum(alphas) / len(alphas) < 0.95


def test_a_target_behind_a_server(served: str, talker: Path, models, tmp_path: Path) -> None:
    """Greedily its text tells all; where that encodes to the tokens it wrote, the rows are those of the target here."""
    named = [("self", str(talker)), models[1][1], ("lookup", "lookup")]
    options = dict(GREEDY, simulate=True, limit=None)
    here = evaluate_to(tmp_path / "here", str(talker), named, "demo:eval", options)
    bare = tmp_path / "bare"
    shutil.copytree(talker, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    there = dict(options, url=served, served_name="tiny/talker", concurrency=3)
    found = evaluate_to(tmp_path / "there", str(bare), named, "demo:eval", there)
    ours = {(row["drafter"], row["id"]): row for row in raw(tmp_path / "here")}
    theirs = {(row["drafter"], row["id"]): row for row in raw(tmp_path / "there")}
    assert theirs.keys() == ours.keys()
    alike = [key for key, row in theirs.items() if row["tokens"] == ours[key]["tokens"]]
    assert len(alike) >= 30 and all(theirs[key] == ours[key] for key in alike)
    assert found["near_ties"] == 0 and found["dense_macs_per_token"] == here["dense_macs_per_token"]
    gone = dict(there, url="http://127.0.0.1:9/v1", concurrency=1)
    for file in talker.glob("*.safetensors"):
        shutil.copy(file, bare)  # weights that come later change nothing of what the server said
    assert evaluate_to(tmp_path / "there", str(bare), named, "demo:eval", gone) == found, "nothing is asked again"


def test_worked_example_is_a_real_generation(models, tmp_path: Path) -> None:
    target, drafters = models
    evaluate_to(tmp_path / "out", target, drafters, "demo:eval", dict(GREEDY, simulate=True))
    example = json.loads((tmp_path / "out" / "example.json").read_text())
    assert example["drafter"] == "self" and example["k"] == 3
    assert all(0 <= s["accepted"] <= len(s["drafted"]) <= 3 for s in example["steps"])


def test_greedy_loop_in_every_way_is_the_target_alone(models, tmp_path: Path) -> None:
    """Policies, trees, look-up, penalty: the stage itself refuses an output that is not the target's."""
    target, drafters = models
    named = [drafters[1], ("lookup", "lookup")]
    for changed in ({"k": ["auto", "confidence", "bandit"]}, {"k": [5], "tree": 2}, {"repetition_penalty": 1.3}):
        options = dict(GREEDY, **{"k": [3], **changed}, limit=4)
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        found = evaluate_to(out, target, named, "demo:eval", options)
        assert all(not k["measured"]["differing"] for d in found["drafters"] for k in d["k"].values())
        loops = [x for row in whole(out) for x in row["loops"].values()]
        assert all(0 <= x["accepted"] <= x["compared"] for x in loops)


def test_look_up_alone_a_drafter_alone_and_both_in_one_table(models, tmp_path: Path) -> None:
    """Both draft by the one source or the other, and the counts of the sources are those of the steps."""
    target, drafters = models
    name, model = drafters[1]
    named = [("lookup", "lookup"), (name, model), ("both", f"{model}+lookup")]
    options = dict(GREEDY, k=[3, "auto"], limit=6)
    found = evaluate_to(tmp_path / "out", target, named, "demo:eval", options)
    lookup, alone, both = found["drafters"]
    assert both["path"] == alone["path"] and both["lookup"] is True and "lookup" not in alone and "lookup" not in lookup
    assert both["macs_per_token"] == alone["macs_per_token"] and both["alpha"] == alone["alpha"]
    assert all("sources" not in d["k"]["3"] for d in (lookup, alone))
    rows = [row for row in whole(tmp_path / "out") if row["drafter"] == "both"]
    for k, figures in both["k"].items():
        assert figures["measured"]["differing"] == 0
        shares = figures["sources"]
        assert sum(source["share_of_steps"] for source in shares.values()) == pytest.approx(1)
        assert set(shares) == {"plain", "lookup", "drafter"}  # how often each drafts follows from measured seconds
        counts = [row["loops"][k]["sources"] for row in rows]
        assert sum(steps for row in counts for steps, _, _ in row.values()) == figures["steps"]
        drafted = sum(n for row in counts for _, n, _ in row.values())
        assert drafted == pytest.approx(figures["drafted_per_step"] * figures["steps"])
        by_model = sum(row["drafter"][1] for row in counts) / figures["steps"]
        assert figures["improvement_factor"] == pytest.approx(figures["mal"] / (1 + by_model * both["c"]))
    assert (
        json.loads((tmp_path / "out" / "provenance.json").read_text())["inputs"]["drafters"]["both"]["lookup"] is True
    )


def test_a_perfect_drafter_has_no_draft_rejected(models, tmp_path: Path) -> None:
    """Where α is that of the loop's own drafts, steps that accepted all, or drafted none, count no rejection."""
    target, drafters = models
    options = dict(GREEDY, k=[1, 4], limit=3)
    evaluate_to(tmp_path / "out", target, [drafters[0]], "demo:eval", options)
    rows = whole(tmp_path / "out")
    assert rows and all(x["compared"] == x["accepted"] > 0 for row in rows for x in row["loops"].values())
    assert all(compared_share(row["loops"]) == 1 == row["alpha"] for row in rows)


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
    options = dict(GREEDY, k=[2, "auto"], limit=None)
    result = evaluate_to(tmp_path / "out", target, drafters[1:], str(tmp_path / "question.jsonl"), options)
    tasks = result["drafters"][0]["by_task"]
    assert {name: task["sequences"] for name, task in tasks.items()} == {"mt_bench": 4, "translation": 1, "rag": 1}
    assert set(result["drafters"][0]["by_category"]) == {"writing", "math", "translation", "rag"}
    assert set(tasks["mt_bench"]["speedup"]) == {"2", "auto"}
    table, speed = spec_bench_table(result), speed_table(result)
    assert table is not None and table.row_count == 2 and speed is not None and speed.row_count == 2
    assert len(raw(tmp_path / "out")) == 6
