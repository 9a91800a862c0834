"""How the drafting benchmark chooses, splits answers into parts, and compares; no model is timed here."""

import json
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import answer_parts
import drafting
import groups
import long_prompts
import whole_answers
from drafter_reading import kept_of
from peers import Missing
from record import Table
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.native import extension as native
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.policy.protocol import Outcome, Trial
from sparsedraft.writers.loaded import LoadedModel
from whole_answers import Own, OwnAnswer

PLAIN = OwnAnswer(10, 11.0, text="a", steps=10, target_reading=2.0, later=9, verifying=9.0)
PAIR = OwnAnswer(
    10, 7.0, 6, 5, "a", steps=5, looked_up=1, target_reading=2.0, drafter_reading=0.5, later=4, verifying=4.8,
    drafts=4, drafting=2.0,
)  # fmt: skip


def rows(*answers: tuple[str, whole_answers.Answer]) -> list[dict[str, Any]]:
    """Rows of these answers of ways, each way's to the prompts 0, 1, ..."""
    count: dict[str, int] = {}
    found = []
    for way, answer in answers:
        number = count[way] = count.get(way, -1) + 1
        found += whole_answers.take_turns({way: lambda ids, tokens, a=answer: a}, [[1]], 8, lambda _: None)
        found[-1]["prompt"] = number
    return found


@pytest.fixture(autouse=True)
def _awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_answers, "IDLE", 0)


def test_parts_of_an_answer_leave_the_prompt_to_reading() -> None:
    """A draft's price is that of later steps, looked-up steps count as such, and the sums are the answer's seconds."""
    outcomes = [
        Outcome(2, 1, 2, 3.0, 8.0, asked=True, begins=True, prompt=True, trials=(Trial(0, None, 2, 1),)),
        Outcome(4, 2, 3, 2.0, 3.5, asked=True, trials=(Trial(0, None, 4, 2),)),
        Outcome(3, 3, 4, 0.0, 1.0, trials=(Trial(0, 5, 3, 3),)),
        Outcome(0, 0, 1, 0.0, 1.0, trials=(Trial(0, None, 0, 0),)),
    ]
    found = whole_answers.parts_of(outcomes)
    assert found == {
        "steps": 4, "looked_up": 1, "target_reading": 5.0, "drafter_reading": 2.0, "later": 3, "verifying": 3.5,
        "drafts": 4, "drafting": 2.0,
    }  # fmt: skip
    first_drafts = 2 * found["drafting"] / found["drafts"]
    seconds = sum(found[key] for key in ("target_reading", "drafter_reading", "verifying", "drafting")) + first_drafts
    assert seconds == pytest.approx(sum(outcome.step_seconds for outcome in outcomes))


def test_parts_are_in_plain_steps_of_the_target() -> None:
    found = rows(("alone", PLAIN), ("alone", PLAIN), ("pair", PAIR), ("pair", PAIR))
    found += rows(("another build", whole_answers.Answer(10, 8.0)))
    parts = answer_parts.by_parts(found, "alone")
    assert [*parts] == ["alone", "pair"] and [*parts["pair"]] == [*answer_parts.PARTS]
    assert parts["pair"] == pytest.approx(
        {
            "tokens_per_second": 10 / 7, "mal": 2, "drafted": 1.2, "looked_up": 0.2, "c": 0.5, "v": 1.2,
            "drafter_reading": 0.5, "target_reading": 2,
        }
    )  # fmt: skip
    assert parts["alone"]["v"] == 1 and parts["alone"]["c"] == 0
    ratios = answer_parts.part_ratios(parts, "pair", "alone")
    assert ratios["mal"] == 2 and ratios["v"] == 1.2 and "c" not in ratios


def test_rows_compare_sums_and_texts() -> None:
    other = OwnAnswer(**{**vars(PAIR), "text": "b"})
    table = Table("toy")
    found = rows(("alone", PLAIN), ("alone", PLAIN), ("pair", PAIR), ("pair", other))
    answers = answer_parts.Answers("int8", found, "alone", table)
    answers.compare("pair / alone", "pair", "alone", 1.5)
    answers.texts()
    assert table.rows[0] == {"name": "int8: pair / alone", "ratio": round(11 / 7, 3), "goal": 1.5}
    assert table.rows[1]["ratio"] == 0.5 and table.rows[1]["goal"] == 1.0
    assert table.figures["int8: pair / alone"]["parts"]["mal"] == 2
    assert answers.note_ratio("alone", "pair") == pytest.approx(7 / 11)


def bench(monkeypatch: pytest.MonkeyPatch, speed: dict[tuple[str, bool], float]) -> Any:
    """A Bench of toy ways: `speed` is tokens a second by (drafter, look-up); the target alone has 1."""

    def way(rate: float, text: str = "a") -> Callable[[list[int], int], OwnAnswer]:
        return lambda ids, tokens: OwnAnswer(tokens, tokens / rate, text=text, steps=tokens, later=tokens, verifying=1)

    found = drafting.Bench(Namespace(quick=True, threads=1, limit=2), Table("toy"), ExitStack())
    models = SimpleNamespace(
        dense=lambda bits: "dense", sparse=lambda bits: {n: n for n, _ in speed if n != "dense"}, target_in=str
    )
    found.__dict__ |= {"models": models, "task": whole_answers.Task([[1], [2]], [[3]], 8, 4), "earlier": None}
    monkeypatch.setattr(drafting, "loaded", lambda folder: folder)
    monkeypatch.setattr(drafting, "alone_of", lambda target: way(1))
    monkeypatch.setattr(
        drafting.Bench, "own", lambda self, target, drafter, lookup=True: way(speed.get((drafter, lookup), 0.1))
    )
    monkeypatch.setattr(drafting.Bench, "keep", lambda self, name, value: None)
    return found


@pytest.mark.parametrize(
    ("speed", "expected"),
    [
        ({("one", True): 1.2, ("one", False): 1.4, ("two", True): 1.1, ("dense", True): 1.0}, ("one", 1.4, 1.2)),
        ({("one", True): 1.2, ("two", True): 1.5, ("dense", True): 2.0}, ("two", 1.5, 0.75)),
    ],
)
def test_the_best_sparse_pair_is_chosen_and_the_dense_has_the_same_aids(
    monkeypatch: pytest.MonkeyPatch, speed: dict[tuple[str, bool], float], expected: tuple[str, float, float]
) -> None:
    found = bench(monkeypatch, speed)
    drafting.whole("int8", found)
    name, alone, dense = expected
    ratios = {row["name"]: (row["ratio"], row["goal"]) for row in found.table.rows}
    assert found.best == {"int8": name}
    assert ratios["int8: best sparse pair / target alone"] == (alone, 1.35)
    assert ratios["int8: sparse pair / dense pair, the same aids"] == (dense, 1.06)
    assert ratios["int8: answers that are the target's own text"] == (1.0, 1.0)


class Words:
    """A tokenizer of words, whose chat template adds two."""

    chat_template, name_or_path = "toy", "toy"

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.ids.setdefault(word, len(self.ids)) for word in text.split()]}

    def decode(self, ids: list[int]) -> str:
        words = [*self.ids]
        return " ".join(words[i] for i in ids)


def test_long_prompts_have_their_length_and_a_task_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words()
    chat = lambda tokenizer, text: [-1, *tokenizer(text)["input_ids"], -2]  # noqa: E731
    monkeypatch.setattr(long_prompts, "_chat", chat)
    found = long_prompts.long_prompts(words, 500, 4)
    assert found == long_prompts.long_prompts(Words(), 500, 4), "the same each time"
    assert [len(ids) for ids in found] == [500] * 4
    for number, ids in enumerate(found):
        assert words.decode(ids[1:-1]).endswith(long_prompts.TASKS[number % 3])
    assert len({tuple(ids[1:50]) for ids in found}) == 4
    with pytest.raises(UserError, match="too short for 1 prompts of 9000000"):
        long_prompts.long_prompts(words, 9_000_000, 1)
    with pytest.raises(UserError, match="leave no room"):
        long_prompts.long_prompts(words, 5, 1)


def test_a_group_that_lacks_a_peer_is_left_out_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "CACHE", tmp_path)

    class Toy(groups.Bench):
        name = "toy"

    def lacks(found: groups.Bench) -> None:
        raise Missing("no compiler")

    table = Table("toy")
    each: groups.Groups = {
        "one": lambda b: b.table.ratio("a", 2, 1),
        "lacks": lacks,
        "two": lambda b: b.table.note("b", 1),
    }
    groups.work(Toy, each, Namespace(only="lacks,one,two", quick=True, threads=1), table)
    kept = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "toy/results").iterdir()}
    assert kept["lacks"] == {"rows": [], "figures": {}} and kept["one"]["rows"] == table.rows
    assert kept["two"] == {"rows": [], "figures": {"b": {"value": 1}}}


@pytest.mark.skipif(not native.is_built(), reason="the extension was not built")
def test_an_own_way_answers_as_the_target_alone_and_its_parts_add_up(tiny_checkpoint: Path) -> None:
    target = LoadedModel.load(tiny_checkpoint, runtime="native")
    pair = Pair.of(target, target, "auto", Sampling()).with_lookup()
    alone = Own(Pair.of(target, None, "auto", Sampling()), Constant(0))
    for way in (Own(pair, policy_named("auto")), Own(pair, Constant(3))):
        for ids in ([5, 6, 7, 5, 6, 7], [9, 8]):
            own, plain = way(ids, 40), alone(ids, 40)
            assert own.text == plain.text and own.tokens == plain.tokens == plain.steps
            assert own.steps == own.tokens - own.accepted
            parts = own.target_reading + own.drafter_reading + own.verifying + own.drafting
            assert 0 < parts <= own.seconds and plain.drafting == plain.drafter_reading == 0


@pytest.mark.skipif(not native.is_built(), reason="the extension was not built")
def test_a_drafter_keeps_what_its_window_holds(tiny_checkpoint: Path) -> None:
    target, k = LoadedModel.load(tiny_checkpoint, runtime="native"), 3
    pair, window = Pair.of(target, target, "auto", Sampling()), Window(16, 2)
    whole = kept_of(pair, [5] * 100, k)
    windowed = [kept_of(pair.reading(16, 2), [5] * 100, k, written) for written in (0, 40)]
    assert whole.tokens == 100 + k - 1
    assert all(kept.tokens <= window.most + k for kept in windowed) and windowed[1].tokens > window.size
