"""The whole command on tiny models: what it measures, what it keeps, and what auto starts from afterwards."""

import json
from pathlib import Path

import pytest

from sparsedraft.advise import costs, evaluated, stage
from sparsedraft.advise.kinds import Kind, Products, instead, kind_of, others, products
from sparsedraft.advise.options import AdviseOptions
from sparsedraft.advise.stage import advise
from sparsedraft.advise.ways import ALONE, Way
from sparsedraft.base.errors import UserError
from sparsedraft.native.extension import is_built
from sparsedraft.stages.generate import kept
from sparsedraft.stages.generate.texts import TextGenerator, load_pair
from stages import pack

needs_native = pytest.mark.skipif(not is_built(), reason="the native engine was not built")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer K's and tokens; the memory's speed is not measured."""
    monkeypatch.setattr(stage, "streaming_read", lambda threads: 1e9)
    monkeypatch.setattr(stage, "KS", (1, 3))
    monkeypatch.setattr(evaluated, "KS", (1, 3))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def options(target: Path, *drafters: Path, **more: object) -> AdviseOptions:
    small = {"limit": 3, "max_new_tokens": 12}
    return AdviseOptions(target=str(target), drafters=tuple(map(str, drafters)), **{**small, **more})


def test_it_says_what_was_measured_and_auto_starts_from_it(tiny_checkpoint: Path, tmp_path: Path, cache: Path) -> None:
    chosen = options(tiny_checkpoint, tiny_checkpoint, out=tmp_path / "advice")
    result = advise(chosen)
    assert json.loads((tmp_path / "advice" / "advice.json").read_text()) == result
    name = str(tiny_checkpoint)
    assert {choice["drafter"] for choice in result["expected"]} == {name, "lookup"}
    ways = {row["way"]: row for row in result["measured"]}
    assert ways[ALONE]["speedup"] == 1 and result["advice"]["way"] in ways
    assert result["advice"]["command"] == ways[result["advice"]["way"]]["command"]
    own = next(choice for choice in result["expected"] if choice["drafter"] == name)
    # a target that drafts for itself: all accepted, but for an answer's last steps
    assert own["k"] + 1 >= own["mal"] > 0.6 * (own["k"] + 1)
    # what `generate` reads for this pair is there
    auto = [way for way in ways if way.endswith("K=auto")]
    assert auto and any((cache / "policy").iterdir())
    drafter = name if auto[0].startswith(name) else "lookup"
    given = Way(drafter).generate_options(chosen).model_copy(update={"prompt": ("hello",), "max_new_tokens": 4})
    pair = load_pair(given)
    TextGenerator(pair, given)
    assert kept.KeptFile(pair, given).path.is_file()


def test_a_finished_evaluation_is_read_again(
    tiny_checkpoint: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(tiny_checkpoint, out=tmp_path / "advice")
    first = advise(chosen)

    def never(*_: object) -> None:
        raise AssertionError("the target answers again")

    monkeypatch.setattr("sparsedraft.stages.evaluate.evaluation.Evaluation._target_answers", never)
    again = advise(chosen)
    assert [c["mal"] for c in again["expected"]] == [c["mal"] for c in first["expected"]]


def test_windows_are_tried_where_prompts_are_long(
    tiny_checkpoint: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "WINDOWS", (8, 4096))
    prompts = tmp_path / "prompts.jsonl"
    texts = [" ".join(["the quick brown fox"] * n) for n in (6, 8)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    chosen = options(tiny_checkpoint, tiny_checkpoint, prompts=str(prompts), limit=2)
    # a drafter is the best choice whatever look-up does
    monkeypatch.setattr(
        stage,
        "best",
        lambda choices: sorted(
            {(c.drafter, c.window): c for c in choices}.values(), key=lambda c: (c.drafter == "lookup", c.window or 0)
        ),
    )
    result = advise(chosen)
    windows = {(c["drafter"], c["drafter_window"]) for c in result["expected"]}
    assert windows == {("lookup", None), (str(tiny_checkpoint), None), (str(tiny_checkpoint), 8)}
    assert {c["drafter_window"] for c in result["costs"]} == {None, 8}


def test_no_drafter_is_needed(tiny_checkpoint: Path, cache: Path) -> None:
    result = advise(options(tiny_checkpoint))
    assert [choice["drafter"] for choice in result["expected"]] == ["lookup"]
    assert result["measured"][0]["way"] == ALONE


def test_answers_of_a_single_step_tell_no_cost(
    tiny_checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "TOKENS", 1)
    with pytest.raises(UserError, match="end with their first step, which tells no cost: give --prompts with longer"):
        advise(options(tiny_checkpoint))


@needs_native
def test_other_kinds_are_timed_in_the_models_shapes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    pack(str(tiny_checkpoint), packed, weights="int8")
    own = kind_of(packed)
    assert own == Kind("dense", "int8") and kind_of(tiny_checkpoint).pattern == "dense"
    found = others(own)
    assert found[0] == own and len(set(found)) == len(found) == 8
    timed = products(packed, found[:3], 5, 1)
    assert [*timed] == found[:3] and all(of.one > 0 and of.several > 0 for of in timed.values())


def test_all_but_the_products_stays() -> None:
    own, other = Products(0.006, 0.01), Products(0.002, 0.005)
    assert instead(0.01, own, other) == pytest.approx(0.006)
    assert instead(0.02, own, other, 5) == pytest.approx(0.015)
    assert instead(0.003, own, other) == other.one  # never less than the products themselves
