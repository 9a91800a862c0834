"""A policy for each of several drafters, whose sequences share the target's passes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from sparsedraft.speculate.policy.protocol import Outcome, Policy, Trial, always


class PolicyOfEach:
    """Lets each drafter's policy decide for its own sequences, and tells it of each step what was its part.

    A drafter's step is its own drafting and the pass of all: the pass is longer for the drafts of the others, by as
    much for one drafter as for another. Where a policy measures the target alone, nobody drafts, so that what it
    measures is that.

    Sequences `join` and `leave`; what a drafter has yet to read of them is counted here.
    """

    confident = staticmethod(always)  # each drafter asks its own policy

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        self.policies = dict(policies)
        self.most = max(policy.most for policy in self.policies.values())
        self._drafter: dict[int, str] = {}  # by the sequence's index, as in all that follows
        self._decides: dict[int, Callable[[], bool]] = {}  # whether its drafter's policy decides for it now
        self._unread: dict[int, int] = {}  # tokens that its drafter has not read, because it was not asked
        self._reading: set[int] = set()  # those whose drafter reads at all
        self._started: set[int] = set()  # those whose drafter was asked
        self._new: set[int] = set()  # those whose policy does not know of them
        self._k: dict[str, int] = {}  # what each policy says of this step
        self._asked: dict[int, bool] = {}  # in this step; whether the drafter writes all of a draft in one pass
        self._seconds: dict[str, float] = {}  # of drafting in this step

    def join(self, row: int, drafter: str, unread: int, decides: Callable[[], bool] = lambda: True) -> None:
        """The sequence of index `row` is `drafter`'s, which has `unread` tokens to read before it drafts for it; 0: it
        never reads. `decides`: whether the policy decides for it in the step that comes: not while its prompt is read,
        nor where its K is constant."""
        self._drafter[row], self._unread[row], self._decides[row] = drafter, unread, decides
        self._new.add(row)
        if unread:
            self._reading.add(row)

    def read(self, row: int, unread: int) -> None:
        """Its drafter has read ahead, and so many tokens are left."""
        self._unread[row] = unread

    def leave(self, row: int) -> None:
        """The sequence is not seen again."""
        del self._drafter[row], self._unread[row], self._decides[row]
        for rows in (self._reading, self._started, self._new):
            rows.discard(row)

    def limit(self, drafter: str) -> int:
        """The most tokens that a drafter is to draft in this step."""
        return self._k.get(drafter, 0)

    def asked(self, drafter: str, rows: Iterable[int], seconds: float, at_once: bool) -> None:
        """A drafter was asked in this step for these sequences, which took `seconds`."""
        self._asked |= dict.fromkeys(rows, at_once)
        self._seconds[drafter] = seconds

    @property
    def _present(self) -> list[str]:
        """The drafters that have sequences for which their policies decide."""
        return sorted({name for row, name in self._drafter.items() if self._decides[row]()})

    @property
    def plain(self) -> bool:
        return any(self.policies[name].plain for name in self._present)

    def begin(self, prompt: int, room: int) -> None:
        begun = {row for row in self._new if self._decides[row]()}
        for name in self._present:
            if unread := [self._unread[row] for row in begun if self._drafter[row] == name]:
                self.policies[name].begin(max(unread), room)
        self._new -= begun

    def next_k(self) -> int:
        self._asked, self._seconds = {}, {}
        plain = self.plain
        self._k = {name: self.policies[name].next_k() for name in self._present}
        if plain:
            self._k = dict.fromkeys(self._k, 0)
        return max(self._k.values(), default=0)

    def observe(self, outcome: Outcome) -> None:
        for name in sorted(set(self._drafter.values())):
            if trials := tuple(trial for trial in outcome.trials if self._drafter.get(trial.row) == name):
                self.policies[name].observe(self._part(name, outcome, trials))

    def _part(self, name: str, outcome: Outcome, trials: Sequence[Trial]) -> Outcome:
        """What a step was for one drafter, whose `trials` these are."""
        may = [trial for trial in trials if trial.row in self._asked] or trials
        asked = [trial.row for trial in trials if trial.row in self._asked and trial.match is None]
        late, known = max((self._unread[row] for row in asked), default=0), self._started.issuperset(asked)
        self._started.update(asked)
        for trial in trials:
            behind = trial.row in self._reading and trial.row not in asked
            self._unread[trial.row] = self._unread[trial.row] + trial.accepted + 1 if behind else 0
        seconds = self._seconds.get(name, 0.0)
        return replace(
            outcome,
            drafted=max(trial.drafted for trial in trials),
            accepted=sum(trial.accepted for trial in may) / len(may),
            emitted=sum(trial.accepted + 1 for trial in trials) / len(trials),
            draft_seconds=seconds,
            step_seconds=outcome.step_seconds - outcome.draft_seconds + seconds,
            asked=bool(asked),
            prompt=outcome.begins or not known,
            late=late,
            behind=max(self._unread[trial.row] for trial in trials),
            at_once=any(self._asked[row] for row in asked),
            trials=tuple(trials),
        )
