"""Drafts copied from the text so far."""

from collections.abc import Sequence

from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.loop.verify import ChainVerifier, Verifier


class PromptLookup:
    """Drafts what followed the newest `longest`..1 tokens the last time they occurred (Saxena 2023); runs no model."""

    verifier: Verifier = ChainVerifier()
    reads = False  # see Decoder

    def __init__(self, longest: int = 3) -> None:
        self.longest = longest

    def select(self, rows: Sequence[int]) -> None:
        """Does nothing: no state is held for a sequence."""

    def propose(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> list[Draft]:
        return [Draft(self._look_up(s.tokens, limit)) for s, limit in zip(sequences, limits, strict=True)]

    def _look_up(self, tokens: list[int], limit: int) -> list[int]:
        if limit <= 0:
            return []
        for size in range(min(self.longest, len(tokens) - 1), 0, -1):
            tail, last = tokens[-size:], tokens[-1]
            for end in range(len(tokens) - 2, size - 2, -1):  # `end`: where an earlier occurrence ends
                if tokens[end] == last and tokens[end - size + 1 : end + 1] == tail:
                    return tokens[end + 1 : end + 1 + limit]
        return []
