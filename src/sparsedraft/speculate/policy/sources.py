"""Which of two sources drafts, look-up or a model: the one that is expected to bring more tokens per second."""

import math
from collections.abc import Collection

from sparsedraft.speculate.policy.estimates import Estimates
from sparsedraft.speculate.policy.means import Mean
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.policy.protocol import Choice, Outcome, Place, Policy, Trial
from sparsedraft.speculate.policy.reading import Reading


class Acceptances:
    """How often a drafted token is accepted: a model's; and a looked-up one, by the length of the match before it.

    Each sequence has evidence of its own, beside what is left of the answers before. Within a looked-up draft the match
    grows with each accepted token.
    """

    # Of a model's drafts, then of looked-up ones behind a match of 1, 2, 3-4, 5-8, 9-16 and more tokens; they count as
    # so many drafted tokens.
    PRIOR = 0.8, 0.25, 0.45, 0.6, 0.75, 0.85, 0.92
    PRIOR_WEIGHT = 5
    # The next answer may be of another kind: all that is known from those before counts as so many drafted tokens.
    CARRIED = 10
    # What is known from the answers before is forgotten by so much with each.
    FORGET_BETWEEN_ANSWERS = 0.1
    # A source that is not used is forgotten by so much a step, so that it is tried again in a long answer.
    FORGET_UNUSED = 0.01

    def __init__(self) -> None:
        self._past = [Mean() for _ in self.PRIOR]
        self._rows: dict[int, list[Mean]] = {}  # by the sequence's index

    def begin(self, going: Collection[int] = ()) -> None:
        """The next answers begin, while those of these indices go on."""
        ended = [means for row, means in self._rows.items() if row not in going]
        for number, past in enumerate(self._past):
            past.sum += sum(means[number].sum for means in ended)
            past.weight += sum(means[number].weight for means in ended)
            past.forget(self.FORGET_BETWEEN_ANSWERS)
        self._rows = {row: means for row, means in self._rows.items() if row in going}

    def add(self, trial: Trial, asked: bool = True) -> None:
        """Learn from a draft: its accepted tokens, and the first rejected one; `asked`: whether a model was asked."""
        found: dict[int, list[bool]] = {}
        for i in range(min(trial.accepted + 1, trial.drafted)):
            number = 0 if trial.match is None else _bucket(trial.match + i)
            found.setdefault(number, []).append(i < trial.accepted)
        if asked and trial.match is None and not trial.drafted:
            found[0] = [False]  # it drafted nothing
        for number, mean in enumerate(self._of(trial.row)):
            if results := found.get(number):
                mean.add(sum(results) / len(results), len(results))
            else:
                mean.forget(self.FORGET_UNUSED)

    def tokens(self, row: int, match: int | None, n: int) -> list[float]:
        """The tokens that a step is expected to write with 0, 1, ..., n drafts after this match (None: a model's)."""
        expected, reach, rates = [1.0], 1.0, self._rates(row)
        for i in range(n):
            reach *= rates[0 if match is None else _bucket(match + i)]
            expected.append(expected[-1] + reach)
        return expected

    def _rates(self, row: int) -> list[float]:
        known = [
            (prior * self.PRIOR_WEIGHT + past.sum) / (self.PRIOR_WEIGHT + past.weight)
            for prior, past in zip(self.PRIOR, self._past, strict=True)
        ]
        return [
            (rate * self.CARRIED + mean.sum) / (self.CARRIED + mean.weight)
            for rate, mean in zip(known, self._of(row), strict=True)
        ]

    def _of(self, row: int) -> list[Mean]:
        return self._rows.setdefault(row, [Mean() for _ in self.PRIOR])


def _bucket(match: int) -> int:
    """The place in Acceptances.PRIOR of a match of `match` tokens."""
    return min(1 + (match - 1).bit_length(), len(Acceptances.PRIOR) - 1)


class WithLookup:
    """A policy for a model, beside which look-up drafts where that is expected to bring more tokens per second.

    How many tokens the model may draft is up to `policy`; what it learns is the model's, but for the time that
    verification takes. Look-up drafts as many as pay best. The model reads a prompt only where what it is expected to
    save in the rest of the answer is worth that time.

    `joins`: an answer may begin while others go on, and no two have the same index.
    """

    # Looked-up drafts cost verification alone, and long matches go on: they may be so many times longer than a model's.
    LONGER = 2

    def __init__(self, policy: Policy, joins: bool = False) -> None:
        self.policy, self.most, self.joins = policy, self.LONGER * policy.most, joins
        self.confident = policy.confident
        self.estimates, self.acceptances, self.reading = Estimates(), Acceptances(), Reading()
        self._own = 0  # tokens that the model may draft in this step
        # A constant K does not ask whether the model pays at all; the others do, and what they try is to be tried.
        self._judges = isinstance(policy, Constant)
        self._begun = False  # whether this step is an answer's first, and that was seen
        self._rows: set[int] = set()  # the answers of the last step
        self._drafted = Mean(fade=0.8)  # tokens that the model drafts where it is asked

    @property
    def plain(self) -> bool:
        return self.policy.plain

    def begin(self, prompt: int, room: int) -> None:
        self.policy.begin(prompt, room)

    def next_k(self) -> int:
        self._own = self.policy.next_k()
        return 0 if self.policy.plain else max(self._own, self.most)

    def choose(self, place: Place) -> Choice:
        if not place.written:
            self._begin()
        own = min(self._own, place.limit)
        longest = min(place.limit, max(own, 2 * self.estimates.most_drafts + 1)) if place.match else 0
        verifying = self._verifying(max(own, longest))
        tokens = self.acceptances.tokens(place.row, place.match, longest)
        best = max(range(longest + 1), key=lambda n: tokens[n] / verifying[n])  # 0: the target alone
        pace, model = verifying[best] / tokens[best], self._pace_of_model(place.row, own, verifying)
        asked = own > 0 and (model < pace or (not best and not self._judges))
        written = self.acceptances.tokens(place.row, None, own)[own] if asked else tokens[best]
        self.reading.note(place.row, max(0.0, pace - model) if asked else 0.0, written)
        if asked and not place.behind and self.worth(place):
            return Choice(None, own)
        return Choice(place.match if best else 0, best)

    def worth(self, place: Place) -> bool:
        """Whether the model has read the prompt there, or what it saves is expected to be worth its reading."""
        return self.reading.pays(place, self.estimates)

    def _pace_of_model(self, row: int, most: int, verifying: list[float]) -> float:
        """Seconds a token with a model's drafts, `most` or, where it stops at doubtful ones, as many as usual."""
        usual = self._drafted.value
        n = most if usual is None else min(most, math.ceil(usual))
        return (verifying[n] + self.estimates.drafting(n)) / self.acceptances.tokens(row, None, n)[n]

    def _verifying(self, n: int) -> list[float]:
        """Seconds of verifying 0, 1, ..., n drafts; all equal as long as nothing was measured."""
        seconds = self.estimates.verifying(range(n + 1)) if self.estimates.knows_verification else [0.0]
        return seconds if min(seconds) > 0 else [1.0] * (n + 1)

    def observe(self, outcome: Outcome) -> None:
        if outcome.begins and not self._begun:
            self._begin()
        self._begun = False
        self.policy.observe(outcome)
        self.estimates.observe(outcome)
        self._rows = {trial.row for trial in outcome.trials}
        for trial in outcome.trials:
            self.acceptances.add(trial, outcome.asked)
            by_model = outcome.asked and trial.match is None
            self.reading.add(trial.row, trial.accepted + 1, by_model)
            if by_model:
                self._drafted.add(trial.drafted)

    def _begin(self) -> None:
        """Another answer, or several at once."""
        if not self._begun:
            going = self._rows if self.joins else ()
            self.acceptances.begin(going)
            self.reading.begin(going)
            self._begun = True
