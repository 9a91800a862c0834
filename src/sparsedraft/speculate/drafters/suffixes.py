"""An online suffix automaton: where the end of a text occurred in it before."""

from collections.abc import Iterable


class SuffixAutomaton:
    """All substrings of a text that grows token by token (Blumer et al. 1985).

    A state stands for the substrings that end at the same places. The state above that of the whole text stands for
    the longest suffix that occurred before, so finding it is no search. A token takes amortised constant time, and at
    most two states. Nothing can be taken back.
    """

    # A token updates the latest place of so many of its suffixes at most, the longest ones. Only a text that repeats
    # itself within a few tokens has more of them.
    UPDATED = 32

    def __init__(self) -> None:
        self.text: list[int] = []
        self._next: list[dict[int, int]] = [{}]  # by the token that follows
        self._link = [-1]  # the state of the longest suffix with more places
        self._length = [0]  # of the longest substring
        self._end = [-1]  # the latest place where the state's substrings end
        self._before = -1  # where the longest suffix that occurred before ended then
        self._whole = 0  # the state of the whole text

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            self._append(token)

    @property
    def match(self) -> int:
        """The length of the longest suffix that occurred before, in tokens; 0 where not even the last one did."""
        link = self._link[self._whole]
        return self._length[link] if link > 0 else 0

    def continuation(self, n: int) -> list[int]:
        """The `n` tokens that followed the latest earlier place of that suffix; [] without a match.

        Where the text ends before, they go on with themselves: the text then repeats what lies since that place.
        """
        if n <= 0 or not self.match:
            return []
        start = self._before + 1
        found = self.text[start : start + n]
        period = len(found)
        return found + [found[i % period] for i in range(n - period)]

    def _append(self, token: int) -> None:
        nexts, links, lengths, ends = self._next, self._link, self._length, self._end
        place, new = len(self.text), len(nexts)
        self.text.append(token)
        nexts.append({})
        links.append(0)
        lengths.append(place + 1)
        ends.append(place)
        state, self._whole = self._whole, new
        while state >= 0 and token not in nexts[state]:
            nexts[state][token] = new
            state = links[state]
        if state >= 0:
            links[new] = self._split(state, token)
        state = links[new]
        self._before = ends[state]
        for _ in range(self.UPDATED):
            if state <= 0:
                break
            ends[state] = place
            state = links[state]

    def _split(self, state: int, token: int) -> int:
        """The state that `token` leads to from `state`, apart from longer substrings that do not end here."""
        nexts, links, lengths = self._next, self._link, self._length
        after = nexts[state][token]
        if lengths[after] == lengths[state] + 1:
            return after
        clone = len(nexts)
        nexts.append(dict(nexts[after]))
        links.append(links[after])
        lengths.append(lengths[state] + 1)
        self._end.append(self._end[after])
        links[after] = clone
        while state >= 0 and nexts[state].get(token) == after:
            nexts[state][token] = clone
            state = links[state]
        return clone
