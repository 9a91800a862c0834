"""Seconds of the real loop against the target alone: speed-ups, their parts and their intervals."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsedraft.stages.evaluate.bootstrap import Row, prompt_count, ratio_interval, resampled, total


def timed(rows: Sequence[Row], k: int | str) -> dict[str, Any]:
    """The seconds of the real loop at K = k against those of the target alone, measured just before on each answer.

    Only `end_to_end` includes reading the prompt (older rows have no such seconds). `c` and `v` are the measured costs
    of a drafted token and of verifying a step, in plain target steps. `speedup` is the ratio of tokens per second, with
    its 95 % bootstrap interval over the prompts if there are several. That interval covers how prompts differ, and
    noise, but not a machine whose speed drifts.
    """
    loops = [row["loops"][str(k)] for row in rows]
    plain = [row["alone"] for row in rows]
    seconds, tokens, steps, drafted = (total(loops, key) for key in ("seconds", "tokens", "steps", "drafted"))
    step = total(plain, "seconds") / max(1, total(plain, "steps"))
    if not seconds or not step:  # every answer ended with its first step
        return {}
    rate, plain_rate = tokens / seconds, total(plain, "tokens") / total(plain, "seconds")
    parts = {key: total(loops, key) for key in ("draft", "verify", "rollback", "sampling", "rest")}
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
    """Tokens per second and speed-up of whole answers, from the prompt's first token on."""
    n, s, plain_n, plain_s = (sum(map(part, rows)) for part in _whole(k))
    speedup, draws = _whole_speedups(rows, k)
    interval_of_prompts = ratio_interval(speedup, draws, prompt_count(rows))
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
    drawn_n, drawn_s, drawn_plain_n, drawn_plain_s = resampled(rows, *_whole(k))
    return (n / s) / (plain_n / plain_s), (drawn_n * drawn_plain_s) / (drawn_s * drawn_plain_n)


def speedup_interval(rows: Sequence[Row], k: int | str) -> list[float]:
    """The 95 % interval of `timed`'s speed-up; [] of a single prompt."""
    draws = _speedups(rows, k)
    return ratio_interval(_speedup(rows, k), draws[draws > 0], prompt_count(rows))


def speedup_against(
    rows: Sequence[Row], k: int | str, others: Sequence[Row], other_k: int | str
) -> tuple[float, list[float]]:
    """(speed-up / another drafter's speed-up on the same prompts, its 95 % interval over the prompts)."""
    draws, other_draws = _speedups(rows, k), _speedups(others, other_k)  # of the same prompts
    ratio, sound = _speedup(rows, k) / _speedup(others, other_k), (draws > 0) & (other_draws > 0)
    return ratio, ratio_interval(ratio, draws[sound] / other_draws[sound], prompt_count(rows))


def end_to_end_against(
    rows: Sequence[Row], k: int | str, others: Sequence[Row], other_k: int | str
) -> tuple[float, list[float]]:
    """`speedup_against` for whole answers, with the reading of the prompts."""
    (ratio, draws), (other, other_draws) = _whole_speedups(rows, k), _whole_speedups(others, other_k)
    return ratio / other, ratio_interval(ratio / other, draws / other_draws, prompt_count(rows))


def _speedup(rows: Sequence[Row], k: int | str) -> float:
    loops, plain = [row["loops"][str(k)] for row in rows], [row["alone"] for row in rows]
    return (total(loops, "tokens") / total(loops, "seconds")) / (total(plain, "tokens") / total(plain, "seconds"))


def _speedups(rows: Sequence[Row], k: int | str) -> np.ndarray:
    """Speed-ups over prompts drawn with replacement; 0 where all that were drawn ended with their first step."""
    at = str(k)
    tokens, seconds, plain_tokens, plain_seconds = resampled(
        rows,
        lambda row: row["loops"][at]["tokens"],
        lambda row: row["loops"][at]["seconds"],
        lambda row: row["alone"]["tokens"],
        lambda row: row["alone"]["seconds"],
    )
    below = seconds * plain_tokens
    return np.divide(tokens * plain_seconds, below, out=np.zeros_like(below), where=below > 0)
