"""From the rows of an evaluation to its figures: acceptance, and its intervals and categories."""

from collections.abc import Callable, Sequence
from typing import Any

from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.stages.evaluate.bootstrap import Row, interval, prompt_count, ratio_interval, resampled, total
from sparsedraft.stages.evaluate.timing import timed

MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}
SPEC_BENCH = {"translation", "summarization", "qa", "math_reasoning", "rag"}


def merge(rows: Sequence[Row], k: int | str) -> Histogram:
    """The histogram of all `rows` together for K = k, or for the policy k."""
    histograms = [row["histograms"][str(k)] for row in rows]
    most = max(len(h["counts"]) for h in histograms) - 1
    total = Histogram(most)
    for h in histograms:
        counts = [*h["counts"], *[0] * (most + 1 - len(h["counts"]))]
        total += Histogram.from_dict(most, {**h, "counts": counts})
    return total


def mean_alpha(rows: Sequence[Row]) -> float:
    """α over all positions: each token weighs the same, whichever sequence it is in."""
    return float(sum(row["alpha"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows))


def mal_interval(rows: Sequence[Row], k: int | str) -> list[float]:
    """95 % bootstrap interval of the MAL at K = k."""
    return interval(
        rows, lambda row: row["histograms"][str(k)]["tokens"], lambda row: sum(row["histograms"][str(k)]["counts"])
    )


def alpha_interval(rows: Sequence[Row]) -> list[float]:
    """95 % bootstrap interval of α."""
    return interval(rows, lambda row: row["alpha"] * row["tokens"], lambda row: row["tokens"])


def by_category(rows: Sequence[Row], ks: Sequence[int | str], name: Callable[[str], str] = str) -> dict[str, Any]:
    """α, answers and MAL of each category, and the speed-up if the loop ran; `name` may merge categories."""
    categories: dict[str, Any] = {}
    for category in sorted({name(row["category"]) for row in rows}):
        of_category = [row for row in rows if name(row["category"]) == category]
        mal = {str(k): merge(of_category, k).mal for k in ks}
        categories[category] = {"alpha": mean_alpha(of_category), "sequences": len(of_category), "mal": mal}
        if all("alone" in row for row in of_category):
            categories[category]["speedup"] = {str(k): timed(of_category, k).get("speedup") for k in ks}
    return categories


def spec_bench_task(category: str) -> str:
    """The task of a Spec-Bench category as in its paper's table (Xia et al. 2024): MT-Bench's eight are one task."""
    return "mt_bench" if category in MT_BENCH else category


def is_spec_bench(rows: Sequence[Row]) -> bool:
    """Whether the rows are of Spec-Bench's categories."""
    return {row["category"] for row in rows} <= MT_BENCH | SPEC_BENCH


def mal_against(rows: Sequence[Row], others: Sequence[Row], k: int | str) -> tuple[float, list[float]]:
    """(MAL / another drafter's MAL on the same prompts, its 95 % interval over the prompts)."""

    def tokens(row: Row) -> float:
        return float(row["histograms"][str(k)]["tokens"])

    def steps(row: Row) -> float:
        return float(sum(row["histograms"][str(k)]["counts"]))

    (a, a_steps), (b, b_steps) = (resampled(of, tokens, steps) for of in (rows, others))  # the same prompts drawn
    ratio = merge(rows, k).mal / merge(others, k).mal
    return ratio, ratio_interval(ratio, (a / a_steps) / (b / b_steps), prompt_count(rows))


def agreement(rows: Sequence[Row], k: int | str) -> dict[str, Any] | None:
    """The share of sampled drafts that was accepted, and the chance of it at the same places, which it must agree with.

    The chance is Σ_v min(p, q) token by token, and w - r in a block (see `accept_block`).

    `difference_interval` is the 95 % interval of their difference. None where no draft had a distribution.
    """
    loops = [{**row["loops"][str(k)], "prompt": row["prompt"]} for row in rows]
    tested = total(loops, "tested")
    if not tested:
        return None
    difference = interval(loops, lambda row: row["kept"] - row["expected"], lambda row: row["tested"])
    return {
        "realised": total(loops, "kept") / tested,
        "expected": total(loops, "expected") / tested,
        "difference_interval": difference,
    }
