"""`auto` on many short and long answers, from nothing and from what it kept, beside the target alone and every K.

One drafter pays and one does not. What `auto` keeps is learned on prompts of their own, as by an earlier run.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.kept import give, state_of
from sparsedraft.speculate.policy.policies import Auto, Constant
from sparsedraft.writers.loaded import LoadedModel
from whole_answers import Own, Way, best, ratio, speeds, take_turns

ANSWERS = 40
SHORT, LONG = 16, 160  # tokens of answers, at most; they take turns
KS = 1, 2, 3, 4
ALONE, FRESH, KEPT = "alone", "auto from nothing", "auto from what it kept"
WORST, NEAR = 1 / 1.02, 1 / 1.04  # goals: of the target alone, and of the best fixed choice


def lengths(count: int) -> Iterator[int]:
    """The most tokens of each of `count` answers."""
    return (SHORT if at % 2 else LONG for at in range(count))


def ways_of(target: LoadedModel, drafter: LoadedModel, earlier: list[list[int]], tokens: int) -> dict[str, Way]:
    """The target alone, each K, `auto` from nothing, and `auto` that has answered the `earlier` prompts."""
    pair, learned = Pair.of(target, drafter, "auto", Sampling()), Auto()
    take_turns({KEPT: Own(pair, learned)}, earlier, tokens, lambda _: None)
    again = Auto()
    give(state_of(learned.meter), again.meter)
    ways: dict[str, Way] = {ALONE: Own(Pair.of(target, None, "auto", Sampling()), Constant(0))}
    ways |= {f"K={k}": Own(pair, Constant(k)) for k in KS}
    return ways | {FRESH: Own(pair, Auto()), KEPT: Own(pair, again)}


def compare(bench: Any, name: str, rows: list[dict[str, Any]]) -> None:
    """Rows against the target alone and against the best fixed choice, which is the fastest of these and the target."""
    speed = speeds(rows)
    fixed = max((ALONE, best(speed, "K=")), key=lambda way: speed[way])
    for way in (FRESH, KEPT):
        for other, goal in ((ALONE, WORST), (fixed, NEAR)):
            value, interval = ratio(rows, way, other)
            label = "the target alone" if goal == WORST else "the best fixed choice"
            figures = {"best": fixed, "interval": [round(end, 3) for end in interval], "answers": len(rows)}
            bench.table.ratio(f"auto with {name}: {way} / {label}", value, goal, **figures)


def auto(bench: Any, drafters: Mapping[str, LoadedModel]) -> None:
    """The rows of each of `drafters`, in int8."""
    target, task = bench.target("int8"), bench.task_of(4 if bench.options.quick else ANSWERS)
    for name, drafter in drafters.items():
        ways = ways_of(target, drafter, task.choosing, task.short)
        tokens = [bench.tokens(most) for most in lengths(len(task.measured))]
        rows = take_turns(ways, task.measured, tokens, partial(bench.keep, f"auto-{name}-turns"))
        compare(bench, name, rows)
