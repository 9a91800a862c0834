"""The speed that each choice is expected to bring, from acceptance on the target's own text and measured costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsedraft.advise.costs import Costs
from sparsedraft.stages.evaluate.bootstrap import Row, prompt_count, ratio_interval, resampled


@dataclass(frozen=True)
class Choice:
    """A drafter, how many tokens it drafts a step, and its window (None: it reads all of a text).

    `mal`: tokens of a step. `speed`: tokens per second of whole answers, prompts included; `speedup`: against the
    target alone, with its 95 % interval over the prompts (empty of one prompt).
    """

    drafter: str
    k: int
    window: int | None
    mal: float
    speed: float
    speedup: float
    interval: list[float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "drafter": self.drafter, "k": self.k, "drafter_window": self.window, "mal": self.mal,
            "tokens_per_second": self.speed, "speedup": self.speedup, "speedup_interval": self.interval,
        }  # fmt: skip


def alone(rows: Sequence[Row], prompt_tokens: Mapping[str, int], costs: Costs) -> float:
    """Tokens per second of the target alone on whole answers; `prompt_tokens` by the id of the row."""
    seconds = sum(_alone_seconds(row, prompt_tokens, costs) for row in rows)
    return float(sum(row["tokens"] for row in rows) / seconds)


def choice_of(
    drafter: str, k: int, window: int | None, rows: Sequence[Row], prompt_tokens: Mapping[str, int],
    read_tokens: Mapping[str, int], costs: Costs,
) -> Choice:  # fmt: skip
    """What drafting K = k tokens with this drafter is expected to bring.

    `rows` are those of an evaluation, with a histogram of each K. `prompt_tokens`, `read_tokens`: of the prompts, and
    what the drafter reads of them, by the id of the row.
    """

    def steps(row: Row) -> float:
        return float(sum(row["histograms"][str(k)]["counts"]))

    def seconds(row: Row) -> float:
        drafted = row["histograms"][str(k)]["drafted"] / steps(row)  # tokens a step: fewer than k at the end
        of_steps = steps(row) * (costs.verifying(k) + costs.drafting(drafted))
        reading = prompt_tokens[row["id"]] * costs.target_reading + read_tokens[row["id"]] * costs.drafter_reading
        return float(of_steps + reading)

    def tokens(row: Row) -> float:
        return float(row["histograms"][str(k)]["tokens"])

    def alone_seconds(row: Row) -> float:
        return _alone_seconds(row, prompt_tokens, costs)

    total = {of.__name__: sum(map(of, rows)) for of in (tokens, seconds, steps, alone_seconds)}
    speedup = total["alone_seconds"] / total["seconds"]
    drawn, drawn_alone = resampled(rows, seconds, alone_seconds)
    interval = ratio_interval(speedup, drawn_alone / drawn, prompt_count(rows))
    speed = total["tokens"] / total["seconds"]
    return Choice(drafter, k, window, total["tokens"] / total["steps"], speed, speedup, interval)


def _alone_seconds(row: Row, prompt_tokens: Mapping[str, int], costs: Costs) -> float:
    return float(prompt_tokens[row["id"]] * costs.target_reading + row["tokens"] * costs.verify[0])


def best(choices: Iterable[Choice]) -> list[Choice]:
    """The best K of each drafter and window, the fastest first.

    By speed-ups: the costs of each were measured in minutes of its own, and with them those of the target alone.
    """
    found: dict[tuple[str, int | None], Choice] = {}
    for choice in choices:
        known = found.get((choice.drafter, choice.window))
        if known is None or choice.speedup > known.speedup:
            found[choice.drafter, choice.window] = choice
    return sorted(found.values(), key=lambda choice: -choice.speedup)
