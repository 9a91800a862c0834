"""What could be had instead: the same target and drafter in other bits and patterns, and what they must keep to pay."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsedraft.advise.costs import Costs
from sparsedraft.advise.kinds import Kind, Products, instead, kind_of, known, others, products

SEVERAL = 5  # tokens of a pass that verifies 4 drafts


@dataclass(frozen=True)
class OtherTarget:
    """The target in other bits: tokens per second alone, estimated; and the command that makes it."""

    kind: str
    tokens_per_second: float
    command: str


@dataclass(frozen=True)
class OtherDrafter:
    """The drafter in other bits or pattern. `draft_seconds` of a token, estimated.

    `mal_needed`: the share of the given drafter's MAL with which it is as fast as that.
    """

    kind: str
    draft_seconds: float
    mal_needed: float
    command: str


def other_kinds(
    target: tuple[str, Path], drafter: tuple[str, Path] | None, costs: Costs, mals: Mapping[int, float], threads: int
) -> dict[str, Any]:
    """Of target and drafter, each a name and a folder: what their other kinds would cost. `mals` by K.

    Nothing of one whose own kind cannot be timed.
    """
    found: dict[str, Any] = {"target": [], "drafter": []}
    own = kind_of(target[1])
    if known(own):
        timed = products(target[1], others(own, {"dense": 1.0}), SEVERAL, threads)
        found["target"] = [asdict(row) for row in targets(target[0], own, timed, costs)]
    if drafter is not None and known(own := kind_of(drafter[1])):
        timed = products(drafter[1], others(own), SEVERAL, threads)
        found["drafter"] = [asdict(row) for row in drafters(drafter[0], own, timed, costs, mals)]
    return found


def targets(name: str, own: Kind, timed: Mapping[Kind, Products], costs: Costs) -> list[OtherTarget]:
    """The kinds that would decode faster than the target's `own`, the fastest first."""
    rows = [
        OtherTarget(str(kind), 1 / instead(costs.verify[0], timed[own], of), _pack_command(name, kind))
        for kind, of in timed.items()
        if kind != own
    ]
    faster = [row for row in rows if row.tokens_per_second > 1 / costs.verify[0]]
    return sorted(faster, key=lambda row: -row.tokens_per_second)


def drafters(
    name: str, own: Kind, timed: Mapping[Kind, Products], costs: Costs, mals: Mapping[int, float]
) -> list[OtherDrafter]:
    """The kinds that would draft faster than the drafter's `own`, the fastest first."""
    rows, one = [], costs.c * costs.verify[0]
    for kind, of in timed.items():
        draft = instead(one, timed[own], of)
        if kind != own and draft < one:
            needed = mal_needed(costs, mals, draft / one)
            rows.append(OtherDrafter(str(kind), draft, needed, _make_command(name, own, kind)))
    return sorted(rows, key=lambda row: row.draft_seconds)


def mal_needed(costs: Costs, mals: Mapping[int, float], price: float) -> float:
    """The least share of `mals`, at its best K, with which a drafter of `price` times the seconds is as fast as that of
    `costs` with the whole: the ratio of the seconds a token."""

    def pace(k: int, factor: float) -> float:
        return (costs.verifying(k) + factor * costs.drafting(k)) / mals[k]

    return min(pace(k, price) for k in mals) / min(pace(k, 1.0) for k in mals)


def _pack_command(name: str, kind: Kind) -> str:
    words = ["sparsedraft", "pack", name, "--weights", kind.values, "--out", f"{Path(name).name}-{kind.values}"]
    return shlex.join(words + (["--calibration", "demo:train"] if kind.values == "int4" else []))


def _make_command(name: str, own: Kind, kind: Kind) -> str:
    if kind.pattern == own.pattern:
        return _pack_command(name, kind)
    sparse = f"{Path(name).name}-{kind.pattern.replace(':', 'of')}"
    words = ["sparsedraft", "prune", name, "--pattern", kind.pattern, "--calibration", "demo:train", "--out", sparse]
    return f"{shlex.join(words)} && {_pack_command(sparse, kind)}"
