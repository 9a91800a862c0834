"""The suffix automaton against a search of the whole text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sparsedraft.speculate.drafters.suffixes import SuffixAutomaton


def searched(text: list[int]) -> tuple[int, int]:
    """(length of the longest suffix that occurs before, where it does so last: the place behind it); (0, 0): none."""
    for size in range(len(text) - 1, 0, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                return size, end
    return 0, 0


def followed(text: list[int], end: int, n: int) -> list[int]:
    """The `n` tokens that follow the place `end`, of a text that goes on as it went on there."""
    longer = list(text)
    for i in range(n):
        longer.append(longer[end + i])
    return longer[len(text) :]


texts = st.integers(1, 5).flatmap(lambda width: st.lists(st.integers(0, width - 1), max_size=70))


@settings(max_examples=300, deadline=None)
@given(texts)
def test_every_prefix_has_the_match_that_a_search_finds(text: list[int]) -> None:
    grown = SuffixAutomaton()
    for n, token in enumerate(text, 1):
        grown.extend([token])
        size, end = searched(text[:n])
        assert grown.match == size
        for limit in (0, 1, 3, 9):
            assert grown.continuation(limit) == (followed(text[:n], end, limit) if size else [])


@settings(max_examples=100, deadline=None)
@given(texts, st.lists(st.integers(0, 30), max_size=4))
def test_however_many_tokens_come_at_once(text: list[int], cuts: list[int]) -> None:
    whole, pieces, start = SuffixAutomaton(), SuffixAutomaton(), 0
    whole.extend(text)
    for end in [*sorted(cuts), len(text)]:
        pieces.extend(text[start:end])
        start = max(start, end)
    assert (pieces.text, pieces.match, pieces.continuation(5)) == (whole.text, whole.match, whole.continuation(5))


@settings(max_examples=100, deadline=None)
@given(texts)
def test_it_grows_with_the_text_and_no_faster(text: list[int]) -> None:
    grown = SuffixAutomaton()
    grown.extend(text)
    assert len(grown._next) <= 2 * len(text) + 1
    assert sum(map(len, grown._next)) <= 3 * len(text) + 1


def test_a_long_text_of_one_token_takes_no_longer_per_token() -> None:
    """All of its suffixes occurred before, and only the longest ones are brought up to date."""
    grown = SuffixAutomaton()
    grown.extend([7] * 3000)
    assert grown.match == 2999 and grown.continuation(4) == [7] * 4
    grown.extend([8, 7])
    assert grown.match == 1
    grown.extend([7] * 100)
    assert grown.match == 101 and grown.continuation(3) == [7, 7, 7]
