"""Drafting: sparse drafters beside the target alone, the dense drafter, and our own pair of 91ad1f9, in one run.

    python benchmarks/drafting.py [--only int8,int4,long,reading,patterns,auto] [--fine-tuned FOLDER] [--quick]

Drafters have the same aids, dense and sparse: look-up beside them, a head that follows the text, a window, K=auto.
int8, int4: whole answers to short prompts. long: behind prompts of 3,000 tokens. reading: what a drafter reads and
keeps of a prompt of 8,000. patterns: one-shot drafters of several patterns beside the dense one. auto: 40
short and long answers with K = auto, beside every K.

The first run makes the models and builds 91ad1f9, in the cache folder, where those of fourbit.py are used. With that
it is sized to end within two hours on 2 quiet cores. What is measured is also written to drafting/results in the cache
folder as it comes, a file a group, with the parts of each group's answers in GROUP-parts.json.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import drafting_auto
import groups
from answer_parts import Answers, show
from common import IDLE, parser
from drafter_reading import kept_of
from drafting_models import BITS, AidedModels, add_drafting_options
from long_prompts import long_prompts
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.writers.loaded import LoadedModel
from whole_answers import Own, Task, Way, speeds, take_turns

LONG, WHOLE = 3000, 8000  # tokens of prompts
TOKENS = 256  # of an answer, at most
FEW = 64  # tokens of a short answer
K = 4  # tokens drafted a step where it is not measured how fast
PATTERNS, BAD = "2:4,4:8,2:8", "1:8"
ALONE = "alone"
EARLIER = "int8 pair of 91ad1f9"
GOALS = {"int8": {"alone": 1.35, "dense": 1.06}, "int4": {"alone": 1.25, "dense": 1.0}}
EARLIER_GOAL = 1.2
LONG_GOALS = {TOKENS: 1.08, FEW: 1.0}
SHARE = 0.03  # goal: of the target's reading
GROWN = 1.1  # goal: the drafter's memory / that of a text which its window holds
MIB = 2**20


class Bench(groups.Bench):
    """One run: its options, the models as they are first needed, and the rows."""

    name, makes = "drafting", AidedModels
    models: AidedModels

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.best: dict[str, str] = {}  # the best sparse drafter, by bits, once it has been chosen

    @cached_property
    def tokenizer(self) -> Any:
        return checkpoint.load_tokenizer(self.models.target)

    @cached_property
    def task(self) -> Task:
        """The short prompts."""
        return self.task_of(2 if self.options.quick else self.options.limit)

    def task_of(self, count: int) -> Task:
        """So many of them."""
        return Task.of(self.options.prompts, count, self.tokens(TOKENS), self.tokenizer)

    def tokens(self, count: int) -> int:
        """So many tokens of an answer, fewer in a quick check."""
        return min(count, 12) if self.options.quick else count

    @property
    def window(self) -> Window | None:
        """The aids' window; narrow in a quick check, whose prompts are short."""
        return Window.of_options(64 if self.options.quick else self.options.window, self.options.sinks)

    def target(self, bits: str) -> LoadedModel:
        return loaded(self.models.target_in(bits))

    def own(self, target: LoadedModel, drafter: LoadedModel, lookup: bool = True) -> Own:
        """The pair with all aids, or with all but `lookup`, under a policy that has learned nothing yet."""
        pair = replace(Pair.of(target, drafter, "auto", Sampling()), window=self.window)
        return Own(pair.with_lookup() if lookup else pair, policy_named("auto"))

    def sparse(self, bits: str) -> tuple[str, Path]:
        """(name, folder) of the sparse drafter that was chosen, or of the trained one, or of the one-shot one."""
        found = self.models.sparse(bits)
        name = self.best.get(bits, [*found][-1])
        return name, found[name]

    def measured(self, group: str, ways: Mapping[str, Way], asked: Sequence[list[int]], tokens: int) -> Answers:
        """The answers of all `ways`, kept, with the table of their parts."""
        rows = take_turns(ways, asked, tokens, partial(self.keep, f"{group}-turns"))
        found = Answers(group, rows, ALONE, self.table)
        self.keep(f"{group}-parts", found.parts)
        show(f"{group}: by parts; c and v in plain steps of the target", found.parts)
        found.note_speeds()
        return found


def loaded(folder: Path) -> LoadedModel:
    """The packed model on the native engine."""
    return LoadedModel.load(folder, runtime="native")


def loaded_all(folders: Mapping[str, Path]) -> dict[str, LoadedModel]:
    """Each of them, by its name."""
    return {name: loaded(folder) for name, folder in folders.items()}


def alone_of(target: LoadedModel) -> Own:
    """The target alone."""
    return Own(Pair.of(target, None, "auto", Sampling()), Constant(0))


def whole(bits: str, bench: Bench) -> None:
    """Whole answers to short prompts, target and drafters in `bits`.

    The sparse drafter, and whether look-up drafts beside it, are chosen on other prompts, on which all ways learn.
    """
    target, task = bench.target(bits), bench.task
    dense, sparse = loaded(bench.models.dense(bits)), loaded_all(bench.models.sparse(bits))
    ways: dict[str, Way] = {ALONE: alone_of(target), named("dense"): bench.own(target, dense)}
    candidates = {named(name, lookup): name for name in sparse for lookup in (True, False)}
    ways |= {way: bench.own(target, sparse[name], way == named(name)) for way, name in candidates.items()}
    if bits == "int8" and bench.earlier:
        ways[EARLIER] = bench.earlier.answer
    seen = speeds(take_turns(ways, task.choosing, task.short, partial(bench.keep, f"{bits}-chosen")))
    chosen = max(candidates, key=lambda way: seen[way])
    bench.best[bits] = candidates[chosen]
    aided = named(candidates[chosen])  # with all aids, as the dense drafter has them
    kept = {name: way for name, way in ways.items() if name not in candidates or name in (chosen, aided)}
    found = bench.measured(bits, kept, task.measured, task.tokens)
    found.compare("best sparse pair / target alone", chosen, ALONE, GOALS[bits]["alone"])
    if EARLIER in kept:
        found.compare(f"best sparse pair / {EARLIER}", chosen, EARLIER, EARLIER_GOAL)
    found.compare("sparse pair / dense pair, the same aids", aided, named("dense"), GOALS[bits]["dense"])
    found.texts()


def named(drafter: str, lookup: bool = True) -> str:
    """What a way with this drafter is called: with all aids, or with all but look-up."""
    return f"{drafter}, all aids" if lookup else f"{drafter}, no look-up"


def long(bench: Bench) -> None:
    """Answers behind long prompts, in both kinds of bits."""
    length, count = (300, 2) if bench.options.quick else (LONG, bench.options.long_limit)
    first, *asked = long_prompts(bench.tokenizer, length, count + 1)
    for bits in BITS:
        target = bench.target(bits)
        name, folder = bench.sparse(bits)
        ways: dict[str, Way] = {ALONE: alone_of(target), named(name): bench.own(target, loaded(folder))}
        ways[named("dense")] = bench.own(target, loaded(bench.models.dense(bits)))
        take_turns(ways, [first], bench.tokens(FEW), lambda _: None)  # so that `auto` knows this machine
        for tokens, goal in LONG_GOALS.items():
            group = f"long-{bits}-{tokens}"
            found = bench.measured(group, ways, asked, bench.tokens(tokens))
            found.compare(f"sparse pair / target alone behind {length} tokens", named(name), ALONE, goal)
            found.texts()


def reading(bench: Bench) -> None:
    """What the drafter reads and keeps of a very long prompt, in int8."""
    if bench.window is None:
        raise UserError("--window 0 leaves nothing to compare in the group reading: give a window, or leave it out.")
    length = 800 if bench.options.quick else WHOLE
    (ids,) = long_prompts(bench.tokenizer, length, 1)
    name, folder = bench.sparse("int8")
    pair = bench.own(bench.target("int8"), loaded(folder), lookup=False).pair
    own = Own(pair, Constant(K))
    answers = []
    for _ in range(bench.turns):
        time.sleep(IDLE)
        answers.append(own(ids, bench.tokens(FEW)))
    seconds = [(answer.drafter_reading, answer.target_reading) for answer in answers]
    share = statistics.median(drafter / target for drafter, target in seconds)
    figures = {"drafter": name, "window": bench.window.size, "sinks": bench.window.sinks}
    figures["seconds"] = [[round(value, 3) for value in turn] for turn in seconds]
    bench.table.limit(f"reading of {length} tokens, drafter / target", share, SHARE, "", **figures)
    kept = kept_of(pair, ids, K, bench.window.size)
    most = bench.window.most + K
    bench.table.limit(f"tokens that the drafter keeps of {length}", kept.tokens, most, "tokens", drafter=name)
    # the same where only that much is there to read; a pass works in memory, too, and caches grow in pieces
    held = kept_of(replace(pair, window=None), ids[: bench.window.most], K)
    assert pair.drafter and pair.drafter.native
    cache = most * pair.drafter.native.cache_bytes_per_token
    limit = GROWN * max(cache, held.bytes) / MIB
    figures = {"mib_of_window": round(held.bytes / MIB, 2), "mib_of_its_cache": round(cache / MIB, 2), "drafter": name}
    bench.table.limit(f"drafter's memory behind {length} tokens", kept.bytes / MIB, limit, "MiB", **figures)


def patterns(bench: Bench) -> None:
    """One-shot drafters of several patterns beside the dense one, in int8."""
    bits, models = "int8", bench.models
    target = bench.target(bits)
    asked = bench.options.patterns.split(",")
    one_shot = {f"one-shot {pattern}": models.one_shot_of(pattern, bits) for pattern in asked}
    drafters = loaded_all({"dense": models.dense(bits), **models.sparse(bits), **one_shot})
    ways: dict[str, Way] = {ALONE: alone_of(target)}
    ways |= {named(name): bench.own(target, drafter) for name, drafter in drafters.items()}
    tokens = bench.tokens(TOKENS // 2)
    take_turns(ways, bench.task.choosing[:2], tokens, lambda _: None)  # so that `auto` knows the drafters
    few = bench.task.measured[:: 1 if bench.options.quick else 3]
    found = bench.measured("patterns", ways, few, tokens)
    won = {name: found.note_ratio(named(name), named("dense")) for name in drafters if name != "dense"}
    most = max(won, key=lambda name: won[name])
    bench.table.note("patterns: most that a sparse pair has of the dense pair's speed", won[most], drafter=most)


def auto(bench: Bench) -> None:
    """`auto` with the dense drafter and with one that hardly ever guesses."""
    drafters = {"the dense drafter": bench.models.dense("int8"), "a bad drafter": bench.models.one_shot_of(BAD, "int8")}
    drafting_auto.auto(bench, loaded_all(drafters))


GROUPS: dict[str, Callable[[Bench], None]] = {
    "int8": partial(whole, "int8"), "int4": partial(whole, "int4"), "long": long, "reading": reading,
    "patterns": patterns, "auto": auto,
}  # fmt: skip


def main() -> None:
    arguments = parser(__doc__)
    add_drafting_options(arguments)
    groups.add_only(arguments, GROUPS)
    arguments.add_argument("--prompts", default="demo:eval", help="short prompts whose answers are timed")
    arguments.add_argument("--limit", type=int, default=24, help="how many of them")
    arguments.add_argument("--long-limit", type=int, default=5, help="long prompts")
    arguments.add_argument("--patterns", default=PATTERNS, help="of one-shot drafters, separated by commas")
    groups.main(Bench, GROUPS, arguments)


if __name__ == "__main__":
    main()
