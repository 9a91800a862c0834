"""Drafts copied from the text so far."""

from collections.abc import Sequence

from sparsedraft.speculate.drafters.suffixes import SuffixAutomaton
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.loop.verify import ChainVerifier, Verifier


class PromptLookup:
    """Drafts what followed the longest suffix of a text that occurred before, where it did so last; runs no model.

    Saxena 2023 searches the last three tokens; with a suffix automaton, as in Hu et al. 2024 (SAM decoding), a match of
    any length takes microseconds.
    """

    verifier: Verifier = ChainVerifier()
    reads = False  # see Decoder

    def __init__(self) -> None:
        self._texts: dict[int, SuffixAutomaton] = {}  # by the sequence's index

    def select(self, rows: Sequence[int]) -> None:
        """Does nothing: the texts are kept by the sequences' indices."""

    def admit(self, sequence: TokenSequence) -> None:
        """The same."""

    def leave(self, index: int) -> None:
        self._texts.pop(index, None)

    def propose(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> list[Draft]:
        return [Draft(self.read(s).continuation(limit)) for s, limit in zip(sequences, limits, strict=True)]

    def read(self, sequence: TokenSequence) -> SuffixAutomaton:
        """The automaton of the sequence's text, which may only have grown since the last call."""
        text = self._texts.setdefault(sequence.index, SuffixAutomaton())
        text.extend(sequence.tokens[len(text.text) :])
        return text
