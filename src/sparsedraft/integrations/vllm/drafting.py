"""Drafts for texts that another program verifies: what `serve` does in a step, without the target."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from sparsedraft.integrations.vllm.requests import Requests, Text
from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.loop.sequence import Draft
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.protocol import Outcome, Policy, Trial
from sparsedraft.speculate.routes import open_drafter

DRAFTER = "drafter"


class Drafting:
    """Drafts of `pair`'s drafter, at most `most` tokens each, as many as `policy` says; for `rows` texts at once. Texts
    may have `longest` tokens. `clock` returns seconds.

    What verification took is what passes between two calls.
    """

    def __init__(
        self,
        pair: Pair,
        policy: Policy,
        *,
        most: int,
        rows: int,
        longest: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.drafter = open_drafter({DRAFTER: pair}, rows, lambda _: policy, Sampling(), clock)
        self.policy, self.most, self.rows, self.clock = self.drafter.policy, most, rows, clock
        self.requests = Requests(longest)
        self._open: list[Text] = []  # in the order in which the drafter holds them
        self._began = self._spent = 0.0  # when the last step began, and how long it drafted

    def drafts(self, rows: Mapping[int, np.ndarray], alone: bool = True) -> dict[int, list[int]]:
        """What follows each of these texts, token ids [n], which have all grown since the last call or are new.

        `alone`: the step before read nothing but what was drafted for the texts that go on.
        """
        begin = self.clock()
        going = self.requests.follow(rows)
        new = sorted(rows.keys() - going.keys())[: max(0, self.rows - len(going))]
        self._learn(list(going.values()), begin, alone and not new)
        self._keep([text for text in self._open if text in going.values()])
        texts = going | {row: self._admit(row, rows[row]) for row in new}
        if not texts:
            return {}
        if new:
            begun = [texts[row].sequence for row in new]
            self.policy.begin(max(s.prompt for s in begun), max(s.room for s in begun))
        try:
            self._draft()
        except (FloatingPointError, MemoryError):
            self.forget()
            raise
        self._began, self._spent = begin, self.clock() - begin
        return {row: text.draft.tokens for row, text in texts.items()}

    def forget(self) -> None:
        """Take all texts for new ones in the next step. What was read of them stays, where it can."""
        self._keep([])
        self.requests.forget()

    def _draft(self) -> None:
        k = min(self.policy.next_k(), self.most)
        sequences = [text.sequence for text in self._open]
        limits = [max(0, min(k, sequence.room - 1)) for sequence in sequences]
        drafts = self.drafter.propose(sequences, limits) if any(limits) else [Draft() for _ in sequences]
        for text, draft in zip(self._open, drafts, strict=True):
            text.draft = draft

    def _admit(self, row: int, ids: np.ndarray) -> Text:
        text = self.requests.begin(row, ids, DRAFTER)
        self.drafter.admit(text.sequence)
        self._open.append(text)
        return text

    def _keep(self, going: list[Text]) -> None:
        """Only these go on."""
        if len(going) == len(self._open):
            return
        self.drafter.select([self._open.index(text) for text in going])
        for text in self._open:
            if text not in going:
                self.drafter.leave(text.sequence.index)
        self._open = going

    def _learn(self, going: list[Text], now: float, alone: bool) -> None:
        """Tell the policy what came of the last drafts, as far as their texts go on."""
        trials = [_trial(text) for text in going]
        if not trials:
            return
        self.policy.observe(
            Outcome(
                max(trial.drafted for trial in trials),
                sum(trial.accepted for trial in trials) / len(trials),
                sum(trial.accepted + 1 for trial in trials) / len(trials),
                self._spent,
                now - self._began,
                begins=not alone,
                rows=len(trials),
                room=max(text.sequence.room for text in going),
                trials=tuple(trials),
            )
        )


def _trial(text: Text) -> Trial:
    """What became of a text's draft: the text has grown by what was accepted, and by a token of the target's."""
    drafted = len(text.draft.tokens)
    return Trial(text.sequence.index, text.draft.match, drafted, min(text.grown - 1, drafted))
