"""The `race` command: the racers write one after the other, so that each has the whole machine; then all are shown."""

from functools import partial
from typing import Any

from sparsedraft.base.console import Tracker, console, track
from sparsedraft.models.names import split_lookup
from sparsedraft.race import lane, view
from sparsedraft.race.lane import Event, Lane
from sparsedraft.race.options import RaceOptions
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.writers.loaded import LoadedModel

ALONE = "the target alone"


def race(options: RaceOptions) -> dict[str, Any]:
    """Who writes the answer fastest: {"prompt_tokens", "lanes": one for the target alone and one for each drafter}.

    A lane has its figures, `speedup` against the target alone, and whether its text is `equal` to the target's: on the
    native engine it always is, in transformers up to near-ties. UserError as `generate` raises it.
    """
    lanes = _lanes(options)
    if options.replay and console.is_terminal:
        view.replay(lanes, console)
    alone = lanes[0]
    rows = [of.to_dict() for of in lanes]
    for row, of in zip(rows, lanes, strict=True):
        row["speedup"] = row["tokens_per_second"] / rows[0]["tokens_per_second"]
        row["equal"] = of.token_ids == alone.token_ids
    return {"target": options.target, "lanes": rows}


def _lanes(options: RaceOptions) -> list[Lane]:
    loading = {name: getattr(options, name) for name in ("dtype", "device", "runtime", "cache", "template_args")}
    target = LoadedModel.load(options.target, **loading)
    found = []
    for name in (None, *options.drafters):
        label = ALONE if name is None else f"with {name}"
        with track(label, options.max_new_tokens, "tokens") as tracker:
            chosen = _generate_options(options, name)
            found.append(lane.run(label, chosen, target, partial(_advance, tracker)))
    return found


def _advance(tracker: Tracker, event: Event) -> None:
    tracker.advance(event.tokens)


def _generate_options(options: RaceOptions, drafter: str | None) -> GenerateOptions:
    """How `generate` would be told to write so."""
    names = ("target", "max_new_tokens", "dtype", "device", "runtime", "cache", "template_args", "seed")
    how: dict[str, Any] = {name: getattr(options, name) for name in names}
    if drafter is not None:
        how["drafter"], how["lookup"] = split_lookup(drafter)
        how |= {} if options.k is None else {"k": options.k}
    return GenerateOptions(prompt=(options.prompt,), **how)
