"""Several drafters in one: each sequence is drafted by its own."""

import time
from collections.abc import Callable, Mapping, Sequence

from sparsedraft.speculate.loop.drafter import OpenDrafter
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.loop.verify import ChainVerifier, Verifier
from sparsedraft.speculate.policy.each import PolicyOfEach


class RoutedDrafter:
    """Drafts with the one of `drafters` that a sequence names, and not at all for one that names none.

    A drafter sees its own sequences alone, in their order, and has a cache of its own. The drafters draft one after the
    other, and the target verifies all drafts in one pass; so all of them draft chains. How much each drafts is up to
    its policy in `policy`, which learns here whom a step asked, and how long that took by `clock`.
    """

    verifier: Verifier = ChainVerifier()

    def __init__(
        self,
        drafters: Mapping[str, OpenDrafter],
        policy: PolicyOfEach,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.drafters, self.policy, self.clock = dict(drafters), policy, clock
        self.reads = any(map(reads, self.drafters.values()))
        self._places: list[str | None] = []  # the drafter of each sequence, in their order
        self._names: dict[int, str] = {}  # the same by the sequence's index, where it has one

    def admit(self, sequence: TokenSequence) -> None:
        """See OpenDrafter. ValueError where there is no drafter of the name that the sequence has."""
        name = sequence.drafter
        if name is not None:
            if name not in self.drafters:
                raise ValueError(f"there is no drafter {name}: name one of {', '.join(self.drafters)}.")
            self.drafters[name].admit(sequence)
            unread = sequence.prompt if reads(self.drafters[name]) else 0
            self.policy.join(sequence.index, name, unread, lambda: sequence.k is None and not sequence.waits)
            self._names[sequence.index] = name
        self._places.append(name)

    def leave(self, index: int) -> None:
        if name := self._names.pop(index, None):
            self.drafters[name].leave(index)
            self.policy.leave(index)

    def select(self, rows: Sequence[int]) -> None:
        for name, drafter in self.drafters.items():
            drafter.select([self._place(row) for row in rows if self._places[row] == name])
        self._places = [self._places[row] for row in rows]

    def wants(self, sequence: TokenSequence) -> bool:
        return bool(getattr(self.drafters.get(sequence.drafter or ""), "wants", lambda _: True)(sequence))

    def read_on(self, sequence: TokenSequence, row: int, most: int) -> int:
        name = self._places[row]
        if name is None or not reads(self.drafters[name]):
            return 0
        left = self.drafters[name].read_on(sequence, self._place(row), most)
        self.policy.read(sequence.index, left)
        return left

    def propose(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> list[Draft]:
        drafts = [Draft(match=0) for _ in sequences]  # as of no model: nobody was asked yet
        for name, drafter in self.drafters.items():
            rows = [row for row, place in enumerate(self._places) if place == name]
            own = [self._limit(sequences[row], limits[row], name) for row in rows]
            if not any(own):
                continue
            begin = self.clock()
            found = drafter.propose([sequences[row] for row in rows], own)
            asked = [(row, draft) for row, limit, draft in zip(rows, own, found, strict=True) if limit > 0]
            indices = [sequences[row].index for row, _ in asked]
            self.policy.asked(name, indices, self.clock() - begin, getattr(drafter, "at_once", False))
            for row, draft in asked:
                drafts[row] = draft
        return drafts

    def _limit(self, sequence: TokenSequence, limit: int, name: str) -> int:
        """The most tokens to draft for a sequence: its own K, or what the policy of its drafter says."""
        return max(0, limit if sequence.k is not None else min(limit, self.policy.limit(name)))

    def _place(self, row: int) -> int:
        """The place of a sequence among those of its drafter."""
        return self._places[:row].count(self._places[row])


def reads(drafter: OpenDrafter) -> bool:
    """Whether a drafter reads texts by a model, which takes time."""
    return bool(getattr(drafter, "reads", True))
