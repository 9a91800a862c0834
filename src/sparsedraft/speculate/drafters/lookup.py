"""Drafts copied from the text so far."""

from collections.abc import Sequence

from sparsedraft.speculate.loop.sequence import Draft, TokenSequence


class PromptLookup:
    """Drafting without a model: what followed the last time the newest `longest`..1 tokens occurred (Saxena 2023)."""

    def __init__(self, longest: int = 3) -> None:
        self.longest = longest

    def select(self, rows: Sequence[int]) -> None:
        """Nothing is held per row."""

    def propose(self, rows: Sequence[TokenSequence], wanted: Sequence[int]) -> list[Draft]:
        return [Draft(self._look(row.tokens, n)) for row, n in zip(rows, wanted, strict=True)]

    def _look(self, tokens: list[int], n: int) -> list[int]:
        if n <= 0:
            return []
        for size in range(min(self.longest, len(tokens) - 1), 0, -1):
            tail, last = tokens[-size:], tokens[-1]
            for end in range(len(tokens) - 2, size - 2, -1):  # `end`: where an earlier occurrence ends
                if tokens[end] == last and tokens[end - size + 1 : end + 1] == tail:
                    return tokens[end + 1 : end + 1 + n]
        return []
