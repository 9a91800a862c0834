"""How much faster a text came than by plain steps, as far as a run can tell that has both."""

from sparsedraft.speculate.policy.means import Recent
from sparsedraft.speculate.policy.protocol import Outcome, Policy, SourcePolicy


class Measured:
    """A policy, and the sums of what its steps took."""

    MOST = 1000  # plain steps

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.begin, self.next_k, self.confident = policy.begin, policy.next_k, policy.confident
        self.most = policy.most
        if isinstance(policy, SourcePolicy):
            self.choose, self.worth = policy.choose, policy.worth
        self.plain_seconds: dict[int, Recent] = {}  # seconds of plain steps, by the bit length of the number of rows
        self.seconds = self.first = 0.0  # of all steps, and of the target in first steps
        self._later: dict[int, float] = {}  # tokens of a row that did not come with a prompt, by the same

    @property
    def plain(self) -> bool:
        return self.policy.plain

    def observe(self, outcome: Outcome) -> None:
        self.policy.observe(outcome)
        rows = outcome.rows.bit_length()
        self.seconds += outcome.step_seconds
        later = outcome.emitted
        if outcome.begins:
            self.first += outcome.step_seconds - outcome.draft_seconds
            later -= 1
        elif not outcome.drafted and not outcome.asked:
            self.plain_seconds.setdefault(rows, Recent(self.MOST)).add(outcome.step_seconds)
        self._later[rows] = self._later.get(rows, 0.0) + later

    @property
    def plain_steps(self) -> int:
        """How many plain steps were measured."""
        return sum(len(recent.last) for recent in self.plain_seconds.values())

    @property
    def estimated_speedup(self) -> float | None:
        """The seconds that these tokens had taken in plain steps / those that they took, prompts' reading included.

        A plain step takes the mean of those that were measured here, without the slowest. None where none was.
        """
        plain = self.first
        for rows, tokens in self._later.items():
            step = self.plain_seconds[rows].value if rows in self.plain_seconds else None
            if step is None and tokens > 0:
                return None
            plain += tokens * (step or 0.0)
        return plain / self.seconds if self.seconds else None
