"""The figures of one drafter, from its rows: acceptance, costs, and what the loop took."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsedraft.models.claims import claim_of
from sparsedraft.models.names import LOOKUP
from sparsedraft.native.packed_folder import is_packed, pattern_of
from sparsedraft.speculate.loop.shares import SOURCES, shares
from sparsedraft.speculate.pair import Pair
from sparsedraft.stages.evaluate import summary, timing
from sparsedraft.stages.evaluate.options import EvaluateOptions
from sparsedraft.stages.evaluate.rows import alpha_of
from sparsedraft.stages.evaluate.speedup import break_even, improvement_factor

VERIFY_COST = 1.0  # v: one target pass verifies K+1 tokens at the cost of one, as long as memory binds


def drafter_figures(
    name: str,
    folder: Path | None,
    pair: Pair,
    rows: Sequence[dict[str, Any]],
    options: EvaluateOptions,
    dense: int | None,
) -> dict[str, Any]:
    """What the result says of the drafter in `folder` (None: look-up).

    `dense` is the target's MACs per token. Where these or the drafter's are not known, c and what follows from it are
    None.
    """
    ks: list[int | str] = [*options.numbers, *options.policies]
    weights = pair.drafter.weights() if pair.drafter else {"macs_per_token": 0}
    macs = weights["macs_per_token"]
    c = None if macs is None or not dense else macs / dense
    at_once = pair.mask_token is not None
    by_k = {str(k): _figures_at(rows, k, c, options, at_once) for k in ks}
    factors = {} if c is None else {k: by_k[str(k)]["improvement_factor"] for k in options.numbers}
    best = max(factors, key=lambda k: factors[k]) if factors else None
    return {
        "name": name,
        "path": str(folder or LOOKUP),
        "route": pair.route,
        **({"drafter_temperature": pair.drafter_temperature} if pair.draws(options.sampling) else {}),
        **({"window": [pair.window.size, pair.window.sinks]} if pair.window and not options.windowed else {}),
        **({LOOKUP: True} if pair.lookup else {}),
        **({"drafting": "parallel"} if at_once else {}),
        "k": by_k,
        "alpha": summary.mean_alpha(rows),
        "alpha_interval": summary.alpha_interval(rows),
        "alpha_of": alpha_of(pair, options),
        **weights,
        "macs_vs_dense": c,
        "pattern": _pattern(folder),
        "c": c,
        "v": VERIFY_COST,
        "break_even": {str(k): None if c is None else _break_even(k, c, at_once) for k in options.numbers},
        "best_k": best if options.numbers else ks[0],
        "by_category": summary.by_category(rows, ks),
        **_by_task(rows, ks),
    }


def _break_even(k: int, c: float, at_once: bool) -> float | None:
    return break_even(k, c / k if at_once else c, VERIFY_COST)


def _figures_at(
    rows: Sequence[dict[str, Any]], k: int | str, c: float | None, options: EvaluateOptions, at_once: bool
) -> dict[str, Any]:
    """The figures of one K or policy. `at_once`: a draft takes one pass, which reads the weights once."""
    histogram = summary.merge(rows, k)
    drafted = histogram.drafted / histogram.steps  # fewer than K at the ends, and whatever a policy chose
    at = k if isinstance(k, int) else drafted
    sources = _sources(rows, k)
    if sources is not None:  # looked-up drafts cost no pass of a drafter
        at = sources["drafter"][1] / histogram.steps
    if at_once:
        at = 1 if sources is None else sources["drafter"][0] / histogram.steps
    figures: dict[str, Any] = {
        "mal": histogram.mal,
        "mal_interval": summary.mal_interval(rows, k),
        "acceptance_rate": histogram.acceptance_rate,
        "histogram": histogram.counts,
        "steps": histogram.steps,
        "tokens": histogram.tokens,
        "drafted_per_step": drafted,
        "improvement_factor": None if c is None else improvement_factor(histogram.mal, at, c, VERIFY_COST),
    }
    if sources is not None:
        figures["sources"] = shares(sources)
    if not options.simulate:
        figures["measured"] = _measured(rows, k, options)
    return figures


def _sources(rows: Sequence[dict[str, Any]], k: int | str) -> dict[str, list[int]] | None:
    """[steps, drafted, accepted] of look-up, drafter and target alone; None where one source drafts."""
    found = [counts for row in rows if (counts := row.get("loops", {}).get(str(k), {}).get("sources"))]
    if not found:
        return None
    return {name: [sum(parts) for parts in zip(*(counts[name] for counts in found), strict=True)] for name in SOURCES}


def _measured(rows: Sequence[dict[str, Any]], k: int | str, options: EvaluateOptions) -> dict[str, Any]:
    """What the real loop took and did at one K or policy."""
    measured = timing.timed(rows, k)
    if measured and isinstance(k, int):
        measured["break_even"] = break_even(k, measured["c"], measured["v"])
    if (sampled := summary.agreement(rows, k)) is not None:
        measured["acceptance"] = sampled
    if options.temperature == 0:
        measured["differing"] = sum(not row["loops"][str(k)]["same"] for row in rows)
    return measured


def _by_task(rows: Sequence[dict[str, Any]], ks: Sequence[int | str]) -> dict[str, Any]:
    """Spec-Bench's own table, where the rows are of its categories."""
    if not summary.is_spec_bench(rows):
        return {}
    return {"by_task": summary.by_category(rows, ks, summary.spec_bench_task)}


def _pattern(folder: Path | None) -> str:
    """How the drafter is sparse, as its checkpoint says; "none" where no model drafts."""
    if folder is None:
        return "none"
    if is_packed(folder):
        return pattern_of(folder)
    claim = claim_of(folder)
    return claim["pattern"] if claim else "dense"
