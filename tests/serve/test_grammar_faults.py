"""A grammar that fails in the middle of a text: the text ends and says why, and a draft that was rejected does not."""

from collections.abc import Sequence

import torch

from sparsedraft.serve.grammar import TextGrammar

WIDTH, END = 12, 1


class Fragile:
    """A matcher that takes every token, and fails behind the token 7."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def try_consume_tokens(self, tokens: Sequence[int]) -> int:
        self.read += tokens
        return len(tokens)

    def rollback(self, count: int) -> bool:
        failed = self.is_error()
        if not failed:
            del self.read[len(self.read) - count :]
        return not failed

    def compute_bitmask(self) -> bytes:
        return bytes(2) if self.is_error() else b"\xff\xff"

    def is_accepting(self) -> bool:
        return False

    def is_error(self) -> bool:
        return 7 in self.read

    def get_error(self) -> str:
        return "it grew too complex"


def test_a_text_that_cannot_go_on_says_why() -> None:
    follow = TextGrammar(Fragile, WIDTH, frozenset([END]))
    for written in ([3], [3, 7]):
        mask = follow.allowed(written)
    assert mask is not None and mask.nonzero().flatten().tolist() == [END]
    assert follow.fault([3, 7, END]) == "it grew too complex"
    assert follow.fault([3]) == follow.fault([3, 7]) == "", "it has not ended there"


def test_a_draft_that_was_rejected_is_no_fault() -> None:
    follow = TextGrammar(Fragile, WIDTH, frozenset([END]))
    for written in ([3], [3, 4], [3, 4, 7]):  # as drafts are verified
        assert follow.allowed(written) is not None
    mask = follow.allowed([3, 4, 5])
    assert mask is not None and int(mask.sum()) == WIDTH - 1
    assert torch.equal(mask.nonzero().flatten(), torch.tensor([n for n in range(WIDTH) if n != END]))
    assert follow.fault([3, 4, 5, END]) == "", "the answer is whole"
