"""The `advise` command: acceptance on the target's own text, costs in the real loop, the best choices side by side.

Acceptance is simulated for every K at once from one pass over what the target wrote; what a step takes is measured.
Both together say which choices can be the best. Those are then run whole, in turns with the target alone: the speed
that is told is the one that was seen.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparsedraft.advise.checked import Seen, take_turns
from sparsedraft.advise.costs import PROMPTS, Costs, measure
from sparsedraft.advise.evaluated import KS, answers_of, evaluated
from sparsedraft.advise.expected import Choice, alone, best, choice_of
from sparsedraft.advise.options import AdviseOptions
from sparsedraft.advise.other_kinds import other_kinds
from sparsedraft.advise.ways import ALONE, Way, beside
from sparsedraft.base.console import console, track
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.names import LOOKUP
from sparsedraft.native.extension import fastest, is_built
from sparsedraft.native.random_layers import streaming_read
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Auto
from sparsedraft.speculate.policy.sources import WithLookup
from sparsedraft.stages.evaluate.bootstrap import Row
from sparsedraft.stages.generate.kept import KeptFile, cpu_name
from sparsedraft.writers.conversation import Answer
from sparsedraft.writers.loaded import LoadedModel

WINDOWS = (256, 1024)  # tried where a prompt is twice as long
RUN = 2  # choices that are run whole


def advise(options: AdviseOptions) -> dict[str, Any]:
    """What to run on this machine for `options.target`: the choices with their expected and their measured speed.

    docs/method.md describes the result. What the policy auto learned on the way is kept, so that `generate` starts from
    it. `options.out` gets the evaluations, each an artifact of its own, and advice.json last. UserError as `evaluate`
    and LoadedModel.load raise it.
    """
    if options.out is None:
        with tempfile.TemporaryDirectory() as scratch:
            return _advise(options, Path(scratch))
    result = _advise(options, options.out)
    write_json(options.out / "advice.json", result)
    return result


def _advise(options: AdviseOptions, folder: Path) -> dict[str, Any]:
    rows = evaluated(options, folder / "eval", (*options.drafters, LOOKUP))
    answers = answers_of(folder / "eval")
    if not answers:
        raise UserError(f"--prompts {options.prompts} holds none that the target can answer: give others.")
    bench = _Bench(options, answers)
    costs: dict[tuple[str, int | None], Costs] = {}
    choices: list[Choice] = []
    for name, of_drafter in rows.items():
        choices += bench.choices(name, None, of_drafter, costs)
    top = best(choices)[0]
    for window in bench.windows(top):
        of_window = evaluated(options, folder / f"eval-window-{window}", (top.drafter,), window, folder / "eval")
        choices += bench.choices(top.drafter, window, of_window[top.drafter], costs)
    ranked = best(choices)
    seen = bench.run(ranked[:RUN])
    plain = alone(rows[LOOKUP], bench.prompt_tokens, costs[LOOKUP, None])
    return {
        "target": options.target,
        "machine": _machine(),
        "prompts": len({answer.prompt_id for answer in answers}),
        "target_tokens_per_second": plain,
        "costs": [_told(name, window, of) for (name, window), of in costs.items()],
        "expected": [choice.to_dict() for choice in ranked],
        "measured": [{"way": str(way), "command": way.command(options), **of.to_dict()} for way, of in seen.items()],
        "advice": advice_of(seen, options),
        "other_kinds": bench.other_kinds(choices, costs),
    }


class _Bench:
    """The target, loaded, its `answers`, and what is measured on them. A drafter is loaded when it is needed, once."""

    def __init__(self, options: AdviseOptions, answers: Sequence[Answer]) -> None:
        o = options
        self.options, self.answers = options, answers
        self.sampling = Sampling(o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty)
        self.prompt_tokens = {answer.id: len(answer.prompt_ids) for answer in answers}
        self._drafters: dict[str, LoadedModel] = {}
        self.target = self._load(o.target)

    def _load(self, ref: str) -> LoadedModel:
        names = ("dtype", "device", "runtime", "cache", "template_args")
        return LoadedModel.load(ref, **{name: getattr(self.options, name) for name in names})

    def _drafter(self, ref: str) -> LoadedModel:
        if ref not in self._drafters:
            self._drafters[ref] = self._load(ref)
        return self._drafters[ref]

    def pair(self, drafter: str | None, window: int | None) -> Pair:
        other = LOOKUP if drafter == LOOKUP else None if drafter is None else self._drafter(drafter)
        return Pair.of(self.target, other, "auto", self.sampling).reading(window, None)

    def choices(
        self, drafter: str, window: int | None, rows: Sequence[Row], costs: dict[tuple[str, int | None], Costs]
    ) -> list[Choice]:
        """What each K is expected to bring with this drafter; its measured costs are added to `costs`."""
        pair = self.pair(drafter, window)
        with track(f"costs of {drafter}", min(PROMPTS, len(self.answers)), "prompts") as tracker:
            of_pair = costs[drafter, window] = measure(pair, self.answers, self.sampling, on_answer=tracker.advance)
        prompts = {a.id: pair.prompt_pair(list(a.prompt_ids), a.messages[:-1]) for a in self.answers}
        read = {name: len(pair.read(prompt)) for name, prompt in prompts.items()}
        return [choice_of(drafter, k, window, rows, self.prompt_tokens, read, of_pair) for k in KS]

    def windows(self, top: Choice) -> list[int]:
        """The windows to try with the best drafter."""
        longest = max(self.prompt_tokens.values())
        return [] if top.drafter == LOOKUP else [size for size in WINDOWS if longest >= 2 * size]

    def run(self, choices: Sequence[Choice]) -> dict[Way, Seen]:
        """These choices in the real loop, also with K = auto, and the first one with look-up beside that; auto keeps
        what it learned."""
        first, *others = [Way(choice.drafter, choice.k, choice.window) for choice in choices]
        ways = [Way(None), *beside(first), *(way for other in others for way in beside(other)[:2])]
        runners = {way: (self._pair_of(way), way.policy()) for way in ways}
        with track("side by side", len(ways) * len(self.answers), "answers") as tracker:
            by_name = {str(way): runner for way, runner in runners.items()}
            seen = take_turns(by_name, ALONE, self.answers, self.sampling, tracker.advance)
        for way, (pair, policy) in runners.items():
            learner = policy.policy if isinstance(policy, WithLookup) else policy
            if isinstance(learner, Auto):
                KeptFile(pair, way.generate_options(self.options)).write(learner.meter)
        return {way: seen[str(way)] for way in ways}

    def _pair_of(self, way: Way) -> Pair:
        pair = self.pair(way.drafter, way.window)
        return pair.with_lookup() if way.lookup else pair

    def other_kinds(
        self, choices: Sequence[Choice], costs: Mapping[tuple[str, int | None], Costs]
    ) -> dict[str, Any] | None:
        """What other bits and patterns would cost; None where the native engine does not run the target."""
        if not self.target.native:
            return None
        models = [choice for choice in best(choices) if choice.drafter != LOOKUP]
        name, window = (models[0].drafter, models[0].window) if models else (LOOKUP, None)
        mals = {c.k: c.mal for c in choices if (c.drafter, c.window) == (name, window)}
        model = self.pair(name, None).drafter
        drafter = (name, checkpoint.find(name)) if model is not None and model.native else None
        target = (self.options.target, checkpoint.find(self.options.target))
        console.print("timing other bits and patterns", style="dim")
        return other_kinds(target, drafter, costs[name, window], mals, torch.get_num_threads())


def advice_of(seen: Mapping[Way, Seen], options: AdviseOptions) -> dict[str, Any]:
    """The way to take, its command, and why.

    The fastest, where all of its interval is above 1. Where only its ratio is, the same with auto, which stops drafting
    where that does not pay. Else the target alone.
    """
    drafting = {way: of for way, of in seen.items() if way.drafter is not None}
    way = max(drafting, key=lambda way: drafting[way].speedup)
    of = drafting[way]
    if of.speedup <= 1:
        way, why = Way(None), f"no way of drafting was faster on these prompts; the best had {of.speedup:.2f}x"
    elif of.speedup_interval and of.speedup_interval[0] > 1:
        low, high = of.speedup_interval
        why = f"{of.speedup:.2f} times as fast as the target alone ({low:.2f} to {high:.2f}), prompts included"
    else:
        auto = replace(way, k=None)
        way = auto if auto in seen else way
        why = (
            f"{of.speedup:.2f} times as fast as the target alone, which so few prompts do not prove: auto stops "
            "drafting where it does not pay; a larger --limit says more"
        )
    return {"way": str(way), "command": way.command(options), "why": why, **seen[way].to_dict()}


def _machine() -> dict[str, Any]:
    threads = torch.get_num_threads()
    read = streaming_read(threads) if is_built() else None
    return {"cpu": cpu_name(), "threads": threads, "kernels": fastest(), "bytes_per_second": read}


def _told(name: str, window: int | None, of: Costs) -> dict[str, Any]:
    ks = sorted(of.verify)
    return {
        "drafter": name, "drafter_window": window, "plain_seconds": of.verify[0],
        "draft_seconds": {str(k): seconds for k, seconds in of.draft.items()},
        "c": of.c, "v": {str(k): of.v(k) for k in ks if k}, "target_reading_seconds": of.target_reading,
        "drafter_reading_seconds": of.drafter_reading,
    }  # fmt: skip
