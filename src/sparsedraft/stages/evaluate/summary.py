"""From the raw rows of an evaluation to its figures: means, intervals, categories, times."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsedraft.stages.evaluate.acceptance import Histogram

DRAWS = 2000  # of the bootstrap
LEVEL = 0.95
MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}
SPEC_BENCH = {"translation", "summarization", "qa", "math_reasoning", "rag"}

Row = dict[str, Any]


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


def interval(rows: Sequence[Row], over: Callable[[Row], float], under: Callable[[Row], float]) -> list[float]:
    """95 % bootstrap interval of Σ over / Σ under, prompts drawn with replacement (all turns of one together)."""
    over_sums, under_sums = _resampled(rows, over, under)
    return _middle(over_sums[under_sums > 0] / under_sums[under_sums > 0])


def _resampled(rows: Sequence[Row], *of: Callable[[Row], float]) -> np.ndarray:
    """Σ of each of `of`, [len(of), DRAWS], over prompts drawn with replacement; the same draws for all."""
    names = sorted({row["prompt"] for row in rows})
    place = {name: i for i, name in enumerate(names)}
    sums = np.zeros((len(of), len(names)))
    for row in rows:
        sums[:, place[row["prompt"]]] += [value(row) for value in of]
    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    return np.stack([drawn @ each for each in sums])


def _middle(values: np.ndarray) -> list[float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def _wider(ratio: float, values: np.ndarray, prompts: int) -> list[float]:
    """The interval of a ratio from its draws over few prompts: a bootstrap of n is too narrow by √((n-1)/n), and by
    what Student's t is wider than the normal distribution; both on the logarithm's scale. [] of one prompt."""
    from scipy.stats import norm, t  # a second to import

    if prompts < 2:
        return []
    student, normal = t.ppf((1 + LEVEL) / 2, prompts - 1), norm.ppf((1 + LEVEL) / 2)
    factor = student / normal * np.sqrt(prompts / (prompts - 1))
    return [float(ratio * (end / ratio) ** factor) for end in _middle(values)]


def _count(rows: Sequence[Row]) -> int:
    return len({row["prompt"] for row in rows})


def mal_interval(rows: Sequence[Row], k: int | str) -> list[float]:
    """95 % bootstrap interval of the MAL at K = k."""
    return interval(
        rows, lambda row: row["histograms"][str(k)]["tokens"], lambda row: sum(row["histograms"][str(k)]["counts"])
    )


def alpha_interval(rows: Sequence[Row]) -> list[float]:
    """95 % bootstrap interval of α."""
    return interval(rows, lambda row: row["alpha"] * row["tokens"], lambda row: row["tokens"])


def by_category(rows: Sequence[Row], ks: Sequence[int | str], name: Callable[[str], str] = str) -> dict[str, Any]:
    """α, sequences and MAL of each category, and where the loop was timed the speed-up; `name` may join categories."""
    categories: dict[str, Any] = {}
    for category in sorted({name(row["category"]) for row in rows}):
        of_category = [row for row in rows if name(row["category"]) == category]
        mal = {str(k): merge(of_category, k).mal for k in ks}
        categories[category] = {"alpha": mean_alpha(of_category), "sequences": len(of_category), "mal": mal}
        if all("alone" in row for row in of_category):
            categories[category]["speedup"] = {str(k): timed(of_category, k).get("speedup") for k in ks}
    return categories


def spec_bench_task(category: str) -> str:
    """The task of a Spec-Bench category, as its paper's table has them: MT-Bench's eight are one (Xia et al. 2024)."""
    return "mt_bench" if category in MT_BENCH else category


def is_spec_bench(rows: Sequence[Row]) -> bool:
    """Whether the rows are of Spec-Bench's categories."""
    return {row["category"] for row in rows} <= MT_BENCH | SPEC_BENCH


def timed(rows: Sequence[Row], k: int | str) -> dict[str, Any]:
    """What the real loop took at K = k against the target alone, which wrote each sequence just before.

    Prompts' reading is left out but from `end_to_end`, which counts all seconds of both models and all tokens (older
    rows know nothing of it). `c` and `v` are the measured costs of a drafted token and of verifying a step, in
    plain target steps; `speedup` is the ratio of the tokens per second, with its 95 % bootstrap interval over prompts,
    if these are several (it knows how they differ and the noise of each, not a host that drifts meanwhile).
    """
    loops = [row["loops"][str(k)] for row in rows]
    plain = [row["alone"] for row in rows]
    seconds, tokens, steps, drafted = (_sum(loops, key) for key in ("seconds", "tokens", "steps", "drafted"))
    step = _sum(plain, "seconds") / max(1, _sum(plain, "steps"))
    if not seconds or not step:  # every answer ended with its first step
        return {}
    rate, plain_rate = tokens / seconds, _sum(plain, "tokens") / _sum(plain, "seconds")
    parts = {key: _sum(loops, key) for key in ("draft", "verify", "rollback", "sampling", "rest")}
    whole = {"end_to_end": _end_to_end(rows, k)} if all("reading" in row for row in rows) else {}
    return {
        "tokens_per_second": rate,
        "target_tokens_per_second": plain_rate,
        "speedup": rate / plain_rate,
        **({"speedup_interval": interval_of_prompts} if (interval_of_prompts := speedup_interval(rows, k)) else {}),
        **whole,
        "c": parts["draft"] / drafted / step if drafted else 0.0,
        "v": parts["verify"] / max(1, steps) / step,
        "seconds": {key: round(value, 4) for key, value in parts.items()},
        "overhead": (parts["rollback"] + parts["sampling"] + parts["rest"]) / sum(parts.values()),
    }


def _end_to_end(rows: Sequence[Row], k: int | str) -> dict[str, Any]:
    """Tokens per second and speed-up of whole answers, from the prompt's first token on; sampled, each its own."""
    n, s, plain_n, plain_s = (sum(map(part, rows)) for part in _whole(k))
    speedup, draws = _whole_speedups(rows, k)
    interval_of_prompts = _wider(speedup, draws, _count(rows))
    return {
        "tokens_per_second": n / s,
        "target_tokens_per_second": plain_n / plain_s,
        "speedup": speedup,
        **({"speedup_interval": interval_of_prompts} if interval_of_prompts else {}),
    }


def _whole(k: int | str) -> list[Callable[[Row], float]]:
    """Tokens and seconds of a whole answer at K = k, then those of the target alone."""

    def seconds(row: Row) -> float:
        loop = row["loops"][str(k)]
        return float(sum(row["reading"].values()) + loop["first"] + loop["seconds"])

    def plain_seconds(row: Row) -> float:
        return float(row["reading"]["target"] + row["alone"]["first"] + row["alone"]["seconds"])

    return [
        lambda row: float(row["histograms"][str(k)]["tokens"]),
        seconds,
        lambda row: float(row["alone"]["tokens"] + 1),
        plain_seconds,
    ]


def _whole_speedups(rows: Sequence[Row], k: int | str) -> tuple[float, np.ndarray]:
    """The speed-up of whole answers, and its draws."""
    n, s, plain_n, plain_s = (sum(map(part, rows)) for part in _whole(k))
    drawn_n, drawn_s, drawn_plain_n, drawn_plain_s = _resampled(rows, *_whole(k))
    return (n / s) / (plain_n / plain_s), (drawn_n * drawn_plain_s) / (drawn_s * drawn_plain_n)


def speedup_interval(rows: Sequence[Row], k: int | str) -> list[float]:
    """The 95 % interval of `timed`'s speed-up; [] of a single prompt."""
    draws = _speedups(rows, k)
    return _wider(_speedup(rows, k), draws[draws > 0], _count(rows))


def speedup_against(
    rows: Sequence[Row], k: int | str, others: Sequence[Row], other_k: int | str
) -> tuple[float, list[float]]:
    """How many times the speed-up of another drafter, on the same prompts, with the 95 % interval over these."""
    draws, other_draws = _speedups(rows, k), _speedups(others, other_k)  # of the same prompts
    ratio, sound = _speedup(rows, k) / _speedup(others, other_k), (draws > 0) & (other_draws > 0)
    return ratio, _wider(ratio, draws[sound] / other_draws[sound], _count(rows))


def end_to_end_against(
    rows: Sequence[Row], k: int | str, others: Sequence[Row], other_k: int | str
) -> tuple[float, list[float]]:
    """The same of whole answers, their prompts' reading included."""
    (ratio, draws), (other, other_draws) = _whole_speedups(rows, k), _whole_speedups(others, other_k)
    return ratio / other, _wider(ratio / other, draws / other_draws, _count(rows))


def mal_against(rows: Sequence[Row], others: Sequence[Row], k: int | str) -> tuple[float, list[float]]:
    """How many times the MAL of another drafter, on the same prompts, with the 95 % interval over these."""

    def tokens(row: Row) -> float:
        return float(row["histograms"][str(k)]["tokens"])

    def steps(row: Row) -> float:
        return float(sum(row["histograms"][str(k)]["counts"]))

    (a, a_steps), (b, b_steps) = (_resampled(of, tokens, steps) for of in (rows, others))  # the same prompts drawn
    ratio = merge(rows, k).mal / merge(others, k).mal
    return ratio, _wider(ratio, (a / a_steps) / (b / b_steps), _count(rows))


def _speedup(rows: Sequence[Row], k: int | str) -> float:
    loops, plain = [row["loops"][str(k)] for row in rows], [row["alone"] for row in rows]
    return (_sum(loops, "tokens") / _sum(loops, "seconds")) / (_sum(plain, "tokens") / _sum(plain, "seconds"))


def _speedups(rows: Sequence[Row], k: int | str) -> np.ndarray:
    """Speed-ups over prompts drawn with replacement; 0 where all that were drawn ended with their first step."""
    at = str(k)
    tokens, seconds, plain_tokens, plain_seconds = _resampled(
        rows,
        lambda row: row["loops"][at]["tokens"],
        lambda row: row["loops"][at]["seconds"],
        lambda row: row["alone"]["tokens"],
        lambda row: row["alone"]["seconds"],
    )
    below = seconds * plain_tokens
    return np.divide(tokens * plain_seconds, below, out=np.zeros_like(below), where=below > 0)


def agreement(rows: Sequence[Row], k: int | str) -> dict[str, Any] | None:
    """Of sampled drafts: the share accepted, and what Σ min(p, q) at the same places says of it, with the interval of
    their difference. None where no draft had a distribution."""
    loops = [{**row["loops"][str(k)], "prompt": row["prompt"]} for row in rows]
    tested = _sum(loops, "tested")
    if not tested:
        return None
    difference = interval(loops, lambda row: row["kept"] - row["expected"], lambda row: row["tested"])
    return {
        "realised": _sum(loops, "kept") / tested,
        "expected": _sum(loops, "expected") / tested,
        "difference_interval": difference,
    }


def _sum(rows: Sequence[Row], key: str) -> float:
    return float(sum(row[key] for row in rows))
