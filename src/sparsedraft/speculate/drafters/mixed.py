"""Look-up and a model in one drafter: each draft comes from one of them."""

from collections.abc import Callable, Sequence
from typing import cast

from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.loop.drafter import Drafter, OpenDrafter
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.loop.verify import ChainVerifier, Verifier
from sparsedraft.speculate.policy.protocol import Choice, Place


class MixedDrafter:
    """Drafts from the text so far, or from the chains of `model`: for each sequence as `choose` says.

    `choose` knows nothing of what either would draft, so it cannot bias what is drawn. The model reads what it missed
    when it is asked again; ahead of that only where its reading is `worth` it.
    """

    verifier: Verifier = ChainVerifier()

    def __init__(
        self, model: Drafter, choose: Callable[[Place], Choice], worth: Callable[[Place], bool] = lambda _: True
    ) -> None:
        self.lookup, self.model, self.choose, self.worth = PromptLookup(), model, choose, worth
        self.at_once: bool = getattr(model, "at_once", False)

    def select(self, rows: Sequence[int]) -> None:
        self.lookup.select(rows)
        self.model.select(rows)

    def admit(self, sequence: TokenSequence) -> None:
        cast(OpenDrafter, self.model).admit(sequence)

    def leave(self, index: int) -> None:
        self.lookup.leave(index)
        cast(OpenDrafter, self.model).leave(index)

    def wants(self, sequence: TokenSequence) -> bool:
        return sequence.k is not None or self.worth(_place(sequence, 0, 0))

    def read_on(self, sequence: TokenSequence, row: int, most: int) -> int:
        return cast(OpenDrafter, self.model).read_on(sequence, row, most)

    def propose(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> list[Draft]:
        texts = [self.lookup.read(sequence) for sequence in sequences]
        choices = [
            self._choice(sequence, text.match, limit)
            for sequence, text, limit in zip(sequences, texts, limits, strict=True)
        ]
        own = [choice.n if choice.match is None else 0 for choice in choices]
        drafts = self.model.propose(sequences, own) if any(own) else [Draft() for _ in sequences]
        return [
            draft if choice.match is None else Draft(text.continuation(choice.n), match=choice.match)
            for choice, text, draft in zip(choices, texts, drafts, strict=True)
        ]

    def _choice(self, sequence: TokenSequence, match: int, limit: int) -> Choice:
        if limit <= 0:
            return Choice(0, 0)
        if sequence.k is not None:  # its text is to follow from its seed, and `choose` goes by measured seconds
            return Choice(None, limit)
        return self.choose(_place(sequence, match, limit))


def _place(sequence: TokenSequence, match: int, limit: int) -> Place:
    written = len(sequence.tokens) - sequence.prompt
    return Place(sequence.index, match, limit, sequence.prompt, written, sequence.room, sequence.behind)
