"""A drafter that reads only the beginning and the end of a long text.

The first few tokens stay, because attention rests on them (sinks: Xiao et al. 2024, arXiv 2309.17453); what lies
between them and the last tokens is left out as if it had never been written, so positions follow one another. The end
begins at one place until it is full and then half of it is left behind: the drafter's cache stays valid in between, and
each token is read about twice in all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import SINKS


@dataclass(frozen=True)
class Window:
    """The first `sinks` tokens of a text and its last `size`, half of them at least.

    UserError for a window that is not larger than its sinks.
    """

    size: int
    sinks: int

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.size <= max(1, self.sinks):
            raise UserError(
                f"a window of {self.size} tokens behind {self.sinks} sinks is not possible: give one of 2 or more, and "
                "of more than there are sinks."
            )

    @classmethod
    def of_options(cls, size: int | None, sinks: int | None, own: tuple[int, int] | None = None) -> "Window | None":
        """The window of --drafter-window and --drafter-sinks, None where the whole text is read (a size of 0).

        What is None is that of `own`, (size, sinks): the drafter's, None where it reads all.
        """
        if size is None:
            if own is None:
                return None
            return cls(own[0], own[1] if sinks is None else sinks)
        return cls(size, SINKS if sinks is None else sinks) if size else None

    @property
    def most(self) -> int:
        """Tokens of a context, at most."""
        return self.sinks + self.size

    def begin(self, length: int) -> int:
        """Where the end of a text of `length` tokens begins; its tokens from `sinks` on to there are left out."""
        hop, beyond = (self.size + 1) // 2, max(0, length - self.most)
        return self.sinks + -(-beyond // hop) * hop

    def of(self, tokens: list[int]) -> list[int]:
        """What the drafter reads of `tokens`."""
        begin = self.begin(len(tokens))
        return tokens if begin == self.sinks else tokens[: self.sinks] + tokens[begin:]

    def stretches(self, prompt: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(begin, from, to): the places from `from` to `to` of a text follow contexts whose end begins at `begin`.

        Together they are the places from `prompt`, which is the length of the first context, to `end`.
        """
        at = prompt
        while at < end:
            begin = self.begin(at)
            to = min(end, begin + self.size + 1)  # the longest context with this beginning has begin + size tokens
            yield begin, at, to
            at = to


def left_of(window: Window | None, tokens: list[int]) -> list[int]:
    """What `window` leaves of `tokens`; without one all of them."""
    return tokens if window is None else window.of(tokens)
