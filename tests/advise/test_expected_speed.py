"""Expected speeds against a loop that adds up the seconds step by step; what a kind must keep to pay."""

import random

import pytest

from sparsedraft.advise.costs import Costs
from sparsedraft.advise.expected import Choice, alone, best, choice_of
from sparsedraft.advise.other_kinds import mal_needed

COSTS = Costs({0: 0.05, 1: 0.052, 2: 0.055, 4: 0.06, 8: 0.075}, {1: 0.01, 2: 0.02, 8: 0.08}, 0.002, 0.001)


def row(name: str, accepted: list[int], k: int) -> dict:
    """A row whose steps accepted so many of k drafts; each also writes the target's own token."""
    tokens, counts = sum(accepted) + len(accepted), [accepted.count(a) for a in range(k + 1)]
    histogram = {"counts": counts, "drafted": k * len(accepted), "tokens": tokens}
    return {"id": name, "prompt": name, "tokens": tokens, "histograms": {str(k): histogram}}


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_the_speed_is_that_of_the_steps_one_by_one(k: int) -> None:
    dice = random.Random(k)
    rows = [row(f"p{i}", [dice.randint(0, k) for _ in range(20 + i)], k) for i in range(5)]
    prompts, read = {r["id"]: 100 + 7 * i for i, r in enumerate(rows)}, {r["id"]: 30 for r in rows}
    seconds = tokens = plain = 0.0
    for r in rows:
        seconds += prompts[r["id"]] * COSTS.target_reading + read[r["id"]] * COSTS.drafter_reading
        plain += prompts[r["id"]] * COSTS.target_reading + r["tokens"] * COSTS.verify[0]
        for accepted, count in enumerate(r["histograms"][str(k)]["counts"]):
            for _ in range(count):
                seconds += COSTS.verifying(k) + COSTS.drafting(k)
                tokens += accepted + 1
    found = choice_of("d", k, None, rows, prompts, read, COSTS)
    assert found.speed == pytest.approx(tokens / seconds)
    assert found.speedup == pytest.approx(plain / seconds)
    assert found.speedup == pytest.approx(found.speed / alone(rows, prompts, COSTS))
    assert found.interval[0] < found.speedup < found.interval[1]
    assert found.mal == pytest.approx(tokens / sum(sum(r["histograms"][str(k)]["counts"]) for r in rows))


def test_costs_between_the_measured_ones_lie_on_lines() -> None:
    assert COSTS.verifying(3) == pytest.approx(0.0575) and COSTS.drafting(3) == pytest.approx(0.03)
    assert COSTS.c == pytest.approx(0.2) and COSTS.v(4) == pytest.approx(1.2)


def test_the_best_k_of_each_drafter_is_kept() -> None:
    choices = [Choice(d, k, w, 2.0, 99.0, speed, []) for d, k, w, speed in (
        ("a", 1, None, 10.0), ("a", 2, None, 12.0), ("b", 1, None, 11.0), ("a", 4, 256, 15.0), ("a", 5, 256, 14.0),
    )]  # fmt: skip
    assert [(c.drafter, c.k, c.window) for c in best(choices)] == [("a", 4, 256), ("a", 2, None), ("b", 1, None)]


def test_a_draft_in_one_pass_costs_about_the_same_whatever_its_length() -> None:
    at_once = Costs(COSTS.verify, {1: 0.01, 8: 0.012}, 0.0, 0.0)
    assert at_once.drafting(0) == 0 and at_once.drafting(4.5) == pytest.approx(0.011)
    assert at_once.c == pytest.approx(0.012 / 8 / 0.05)


@pytest.mark.parametrize("price", [0.1, 0.5, 0.99, 2.0])
def test_a_drafter_that_keeps_what_is_needed_is_as_fast(price: float) -> None:
    """Both at their best K: the share of MAL makes up for the drafts' price, and a little more makes it faster."""
    mals = {1: 1.7, 2: 2.2, 4: 2.9, 8: 3.6}
    share = mal_needed(COSTS, mals, price)

    def speed(factor: float, kept: float) -> float:
        return max(kept * mal / (COSTS.verifying(k) + factor * COSTS.drafting(k)) for k, mal in mals.items())

    assert speed(price, share) == pytest.approx(speed(1.0, 1.0))
    assert (share < 1) == (price < 1)
