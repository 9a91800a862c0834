"""Intervals of an evaluation's figures: right where they are known, and as wide as the prompts differ."""

import numpy as np
import pytest

from sparsedraft.measure.summary import interval, speedup_interval, timed

PARTS = ("draft", "verify", "rollback", "sampling", "rest")


def rows(factors: list[float]) -> list[dict]:
    """One row a prompt, at K = 2 so many times as fast as alone; their lengths differ."""
    found = []
    for i, factor in enumerate(factors):
        tokens = 20 + 7 * (i % 5)
        alone = {"tokens": tokens, "seconds": tokens * 0.1 * (1 + i % 3), "steps": tokens}
        loop = {
            "tokens": tokens, "seconds": alone["seconds"] / factor, "steps": tokens // 2, "drafted": tokens,
            **dict.fromkeys(PARTS, 0.1),
        }  # fmt: skip
        found.append({"prompt": str(i), "alone": alone, "loops": {"2": loop}, "tokens": tokens})
    return found


def test_a_speed_up_that_all_prompts_share_has_no_width() -> None:
    found = timed(rows([1.5] * 8), 2)
    assert found["speedup"] == pytest.approx(1.5) and found["speedup_interval"] == pytest.approx([1.5, 1.5])


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Over 300 samples of 24 prompts the 95 % interval misses in 1 to 13 % (a bootstrap of few is a little narrow);
    were it exact, chance alone would leave that range less than once in ten thousand."""
    rng = np.random.default_rng(0)
    everyone = rows(list(np.exp(rng.normal(0.3, 0.4, 4000))))
    truth = timed(everyone, 2)["speedup"]
    missed = 0
    for _ in range(300):
        chosen = [{**everyone[i], "prompt": str(j)} for j, i in enumerate(rng.integers(0, 4000, 24))]
        low, high = speedup_interval(chosen, 2)
        assert low <= timed(chosen, 2)["speedup"] <= high
        missed += not low <= truth <= high
    assert 3 <= missed <= 39


def test_turns_of_one_prompt_are_drawn_together() -> None:
    """Doubling every row under its prompt adds no knowledge."""
    once = rows([1.0, 1.5, 2.0, 0.8, 1.2])
    twice = [row for row in once for _ in range(2)]
    assert speedup_interval(twice, 2) == pytest.approx(speedup_interval(once, 2))
    spread = [{**row, "prompt": str(i)} for i, row in enumerate(twice)]
    whole = interval(once, lambda row: row["tokens"], lambda row: 1)
    narrow = interval(spread, lambda row: row["tokens"], lambda row: 1)
    assert narrow[1] - narrow[0] < whole[1] - whole[0]
