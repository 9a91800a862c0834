"""The policies of one drafter in an evaluation: they learn from answer to answer, across interruptions.

Their observations are kept beside the rows and observed again, so that a resumed evaluation decides as an
uninterrupted one would have.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from sparsedraft.base.journal import read_lines
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.policy.protocol import Outcome, Policy, SourcePolicy
from sparsedraft.speculate.policy.sources import WithLookup

OUTCOMES = ".outcomes.jsonl"


def policies(ks: Sequence[int | str], lookup: bool = False) -> dict[Any, Policy]:
    """New policies, by K or by their names: they learn. `lookup`: for a model beside which look-up drafts."""
    found: dict[Any, Policy] = {k: Constant(k) if isinstance(k, int) else policy_named(k) for k in ks}
    return {k: WithLookup(policy) for k, policy in found.items()} if lookup else found


class _Recorder:
    """A policy, and the outcomes that it observes."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.outcomes: list[Outcome] = []
        self.begun = 0, 0
        self.next_k, self.confident, self.most = policy.next_k, policy.confident, policy.most

    @property
    def plain(self) -> bool:
        return self.policy.plain

    def begin(self, prompt: int, room: int) -> None:
        self.begun = prompt, room
        self.policy.begin(prompt, room)

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.policy.observe(outcome)


class _SourceRecorder(_Recorder):
    """The same of a policy that decides which of two sources drafts."""

    def __init__(self, policy: SourcePolicy) -> None:
        super().__init__(policy)
        self.choose, self.worth = policy.choose, policy.worth


def _recorder(policy: Policy) -> _Recorder:
    return _SourceRecorder(policy) if isinstance(policy, SourcePolicy) else _Recorder(policy)


class Learned:
    """A policy for each of `ks`, in its state after the answers `done` of the drafter `name`. `folder` holds what the
    policies observed in them. `lookup`: look-up drafts, too."""

    def __init__(
        self, folder: Path, name: str, ks: Sequence[int | str], done: Iterable[str] = (), lookup: bool = False
    ) -> None:
        self.file, self.name = folder / OUTCOMES, name
        self.policies = policies(ks, lookup)
        learning = [k for k, policy in self.policies.items() if not isinstance(policy, Constant)]
        if not learning:
            return
        finished = {*done}
        seen = {
            line["id"]: line for line in read_lines(self.file, ("drafter", "id", "outcomes")) if line["drafter"] == name
        }
        for line in (line for answer, line in seen.items() if answer in finished):
            for k in learning:
                self.policies[k].begin(*line.get("begun", {}).get(str(k), (0, 0)))  # older versions noted none
                for values in line["outcomes"][str(k)]:
                    self.policies[k].next_k()
                    self.policies[k].observe(Outcome.of(values))

    @contextmanager
    def answer(self, name: str) -> Iterator[dict[Any, Policy]]:
        """The policies, for the answer `name`. At the end of the block its observations are written to the folder."""
        recorders = {k: _recorder(policy) for k, policy in self.policies.items() if not isinstance(policy, Constant)}
        yield {**self.policies, **recorders}
        if recorders:
            outcomes = {str(k): [astuple(outcome) for outcome in policy.outcomes] for k, policy in recorders.items()}
            with open(self.file, "a", encoding="utf-8") as file:
                begun = {str(k): policy.begun for k, policy in recorders.items()}
                line = {"drafter": self.name, "id": name, "begun": begun, "outcomes": outcomes}
                file.write(json.dumps(line) + "\n")
