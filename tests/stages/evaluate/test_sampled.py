"""Under sampling the loop realises what the distributions say, each sequence by its own seed; and its times."""

import shutil
from pathlib import Path

import pytest

from evaluated import GREEDY
from sparsedraft.base.places import read_provenance
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.config import drafting
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.stages.evaluate import loop
from sparsedraft.writers.loaded import LoadedModel
from stages import evaluate_to


def test_sampled_realised_acceptance_agrees_with_the_expected(models, tmp_path: Path) -> None:
    """At K = 1 a draft is accepted with probability Σ min(p, q): the two agree within four standard errors."""
    target, drafters = models
    options = {"k": [1], "temperature": 1.0, "max_new_tokens": 24, "limit": 48, "batch_size": 16}
    named = [("target", drafters[1][1])]  # a drafter may be called that
    found = evaluate_to(tmp_path / "out", target, named, "demo:eval", options)["drafters"][0]
    rate, drafted = found["k"]["1"]["acceptance_rate"], found["k"]["1"]["steps"]
    assert 0.1 < found["alpha"] < 0.99
    assert abs(rate - found["alpha"]) < 4 * (found["alpha"] * (1 - found["alpha"]) / drafted) ** 0.5 + 0.05


def test_the_loop_is_timed_and_its_sampled_acceptance_is_as_expected(models, tmp_path: Path) -> None:
    target, drafters = models
    options = {"k": [2, "auto"], "temperature": 0.8, "max_new_tokens": 24, "limit": 40, "batch_size": 16}
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
    asked = pair.prompt_pair(pair.target.tokenizer("the quick brown fox jumps over")["input_ids"])
    fresh = loop.run(pair, asked, Constant(2), Sampling(), 12, 0)[0]
    for _ in range(2):  # the second time from caches that hold an answer
        found = loop.reading(pair, asked)
        assert found.keys() == {"target", "drafter"} and min(found.values()) > 0
        for side in (pair.target, pair.drafter):
            assert side.cached_backend().backend.lengths == [len(asked.target) - 1], (
                "the first step reads the last token"
            )
        assert loop.run(pair, asked, Constant(2), Sampling(), 12, 0)[0] == fresh
    assert loop.reading(Pair.of(pair.target, "lookup", "auto", Sampling()), asked).keys() == {"target"}
    assert loop.reading(pair, pair.prompt_pair([5])).keys() == {"target", "drafter"}, "nothing to read"


def test_answers_of_one_step_have_no_times_and_still_a_result(models, tmp_path: Path) -> None:
    from sparsedraft.stages.report.tables import speed_table

    target, drafters = models
    result = evaluate_to(None, target, drafters, "demo:eval", dict(GREEDY, max_new_tokens=1, limit=2))
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
    options = dict(GREEDY, k=[2], temperature=0.8, limit=3)
    evaluate_to(None, target, drafters[:1], "demo:eval", options)
    assert len(seeds) == 6 and len(set(seeds)) == 3


def test_at_the_drafters_own_temperature_loop_and_simulation_agree(models, tmp_path: Path) -> None:
    """Learned or given, both draft and compare with the same q, which the result names."""
    target, drafters = models
    shutil.copytree(drafters[1][1], tmp_path / "own")
    drafting.write(tmp_path / "own", drafting.Drafting(temperature=0.3))
    warm = {"k": [1, 3], "temperature": 1.2, "max_new_tokens": 24, "limit": 24, "batch_size": 16}
    named = [("own", str(tmp_path / "own")), drafters[1], ("lookup", "lookup")]
    real = evaluate_to(tmp_path / "real", target, named, "demo:eval", warm)["drafters"]
    told = evaluate_to(tmp_path / "told", target, named, "demo:eval", {**warm, "simulate": True})["drafters"]
    given = {**warm, "simulate": True, "drafter_temperature": 0.3}
    once = evaluate_to(tmp_path / "given", target, named, "demo:eval", {**given, "answers": tmp_path / "told"})[
        "drafters"
    ]
    assert (
        [d.get("drafter_temperature") for d in real] == [d.get("drafter_temperature") for d in told] == [0.3, 1, None]
    )
    assert [d.get("drafter_temperature") for d in once] == [0.3, 0.3, None]
    assert told[0]["alpha"] != pytest.approx(told[1]["alpha"], abs=0.01), "it matters"
    for mine, theirs in ((once[0], told[0]), (once[1], told[0]), (once[2], told[2])):
        assert mine["alpha"] == pytest.approx(theirs["alpha"], abs=1e-6)
        assert mine["k"]["3"]["histogram"] == pytest.approx(theirs["k"]["3"]["histogram"], abs=1e-4)
    for mine, theirs in zip(real[:2], told[:2], strict=True):
        assert mine["alpha"] == pytest.approx(theirs["alpha"], abs=1e-5)
        for k in ("1", "3"):
            low, high = mine["k"][k]["measured"]["acceptance"]["difference_interval"]
            assert low < 0 < high or min(abs(low), abs(high)) < 0.02
        assert mine["k"]["3"]["mal"] == pytest.approx(theirs["k"]["3"]["mal"], rel=0.06)
    inputs = [read_provenance(tmp_path / name)["inputs"]["options"] for name in ("told", "given")]
    assert [options.get("drafter_temperature") for options in inputs] == [None, 0.3]


def test_greedy_results_do_not_depend_on_it(models, tmp_path: Path) -> None:
    target, drafters = models
    first = evaluate_to(tmp_path / "out", target, drafters, "demo:eval", dict(GREEDY, limit=2, simulate=True))
    other = dict(GREEDY, limit=2, simulate=True, drafter_temperature=0.5)
    assert evaluate_to(tmp_path / "out", target, drafters, "demo:eval", other) == first, "it is already done"
    assert all("drafter_temperature" not in d for d in first["drafters"])
