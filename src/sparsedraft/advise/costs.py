"""What a pair's steps take on this machine: measured in the real loop, on a few prompts, K by K in turns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.means import Recent, interpolate
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.stages.evaluate import loop
from sparsedraft.writers.conversation import Answer

PROMPTS, TOKENS = 2, 32  # on which costs are measured: enough steps of each K, and soon done
DRAFTED = 0, 1, 2, 4, 8  # K's that are timed; between them costs lie on lines


@dataclass(frozen=True)
class Costs:
    """Seconds. `verify`: of a step's verification and what is done beside it, by the drafts verified; 0 is plain.

    `draft`: of drafting, by the number of tokens; a drafter may write all of them in one pass. `target_reading`,
    `drafter_reading`: of one token of a prompt.
    """

    verify: Mapping[int, float]
    draft: Mapping[int, float]
    target_reading: float
    drafter_reading: float

    def verifying(self, k: int) -> float:
        """Seconds of verifying `k` drafts."""
        return interpolate(dict(self.verify), k)

    def drafting(self, k: float) -> float:
        """Seconds of drafting `k` tokens, which may be a mean over steps."""
        return interpolate({0: 0.0, **self.draft}, k)

    @property
    def c(self) -> float:
        """The cost of a drafted token where as many are drafted as were measured at most, in plain steps."""
        most = max(self.draft, default=0)
        return self.drafting(most) / most / self.verify[0] if most else 0.0

    def v(self, k: int) -> float:
        """The cost of verifying `k` drafts, in plain steps."""
        return self.verifying(k) / self.verify[0]


class _Sums:
    """Seconds, and of how many."""

    def __init__(self) -> None:
        self.seconds = self.count = 0.0

    def add(self, seconds: float, count: float) -> None:
        self.seconds, self.count = self.seconds + seconds, self.count + count

    @property
    def mean(self) -> float:
        return self.seconds / self.count if self.count else 0.0


def measure(
    pair: Pair, answers: Sequence[Answer], sampling: Sampling, ks: Sequence[int] = DRAFTED,
    on_answer: Callable[[], object] = lambda: None,
) -> Costs:  # fmt: skip
    """The costs of the pair on the first PROMPTS of `answers`; `on_answer` is called after each.

    UserError where these answers are too short to tell.
    """
    reading = {"target": _Sums(), "drafter": _Sums()}
    verify: dict[int, Recent] = {k: Recent() for k in ks}
    draft = {k: _Sums() for k in ks if k}
    plain = Pair.of(pair.target, None, "auto", sampling)
    for answer in answers[:PROMPTS]:
        prompt = pair.prompt_pair(list(answer.prompt_ids), answer.messages[:-1])
        sizes = {"target": len(prompt.target), "drafter": len(pair.read(prompt))}
        for name, seconds in loop.reading(pair, prompt).items():
            reading[name].add(seconds, max(1, sizes[name] - 1))
        for k in ks:
            _, _, took = loop.run(pair if k else plain, prompt, Constant(k), sampling, TOKENS, answer.seed)
            if steps := took["steps"]:
                verify[k].add((took["seconds"] - took["draft"]) / steps)
            if k and took["drafted"]:  # the last steps of a text draft fewer
                draft[k].add(took["draft"] * k, took["drafted"])
        on_answer()
    known = {k: value for k, recent in verify.items() if (value := recent.value) is not None}
    if 0 not in known:
        raise UserError(
            f"the answers to the first {PROMPTS} prompts end with their first step, which tells no cost: give "
            "--prompts with longer answers."
        )
    drafting = {k: sums.mean for k, sums in draft.items() if sums.count}
    return Costs(known, drafting, reading["target"].mean, reading["drafter"].mean)
