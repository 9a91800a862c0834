"""When to begin with a drafter that must read first, where the length of the answer is not known."""

import math
import random

import pytest

from sparsedraft.speculate.policy.lengths import Lengths

GAIN = 0.4  # seconds a token


def lengths(*past: int, prompt: int = 100, room: int = 1024) -> Lengths:
    """A new answer after many of these lengths, so that the prior counts little."""
    found = Lengths()
    for _ in range(found.MOST // max(1, len(past))):
        for tokens in past:
            found.begin(prompt, 1 << 20)
            found.wrote(tokens, True, False)
    found.begin(prompt, room)
    return found


def begins_at(found: Lengths, gain: float, reading: float, per_token: float) -> float:
    """The token before which it begins, in an answer that never ends."""
    while found.written < found.room:
        if found.pays_now(gain, reading + per_token * found.written, per_token):
            return found.written
        found.wrote(1, False, False)
    return math.inf


def test_what_an_answer_may_still_save_decides() -> None:
    """200 tokens of 0.4 seconds pay for 60 seconds of reading, 20 do not, and none do without a gain."""
    assert begins_at(lengths(200), GAIN, 60.0, 0.02) == 0
    assert begins_at(lengths(20), GAIN, 60.0, 0.02) > 20
    assert begins_at(lengths(200), 0.0, 1e-9, 0.0) == begins_at(lengths(200), -GAIN, 1e-9, 0.0) == math.inf


def test_short_answers_are_waited_for_where_there_are_many() -> None:
    """Where three of four end after 10 tokens, 10 seconds of reading are saved by waiting for 10; where one does, the
    others lose more by waiting."""
    assert begins_at(lengths(10, 10, 10, 200), GAIN, 10.0, 0.02) == 10
    assert begins_at(lengths(10, 200, 200, 200), GAIN, 10.0, 0.02) == 0


def test_an_answer_longer_than_any_goes_on_as_long_again() -> None:
    """As far as there is room: 50 seconds of reading are 125 tokens' savings."""
    found = lengths(*[2] * 32, room=1 << 20)
    found.PRIOR = ()  # type: ignore[assignment]
    assert begins_at(found, GAIN, 50.0, 0.0) == 126
    short = lengths(*[2] * 32, room=240)
    short.PRIOR = ()  # type: ignore[assignment]
    assert begins_at(short, GAIN, 50.0, 0.0) == math.inf, "after 126 tokens 114 are left"


def test_an_answer_that_was_cut_would_have_been_longer() -> None:
    found = Lengths()
    for full in (True, False):
        found.begin(5, 64)
        found.wrote(60, False, False)
        found.wrote(4, True, full)
    assert [past.tokens for past in found.past] == [128, 64]
    found.begin(5, 64)
    found.wrote(3, False, False)
    found.begin(5, 64)
    assert len(found.past) == 2, "one that was left says nothing"


def test_answers_to_prompts_of_about_the_same_length_count_more() -> None:
    """Long ones behind short prompts, short ones behind long prompts."""
    found = Lengths()
    for _ in range(10):
        for prompt, tokens in ((40, 400), (3000, 12)):
            found.begin(prompt, 1024)
            found.wrote(tokens, True, False)
    found.begin(50, 1024)
    assert found.pays_now(GAIN, 60.0, 0.02)
    found.begin(2500, 1024)
    assert not found.pays_now(GAIN, 60.0, 0.02)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_moment_is_better_on_the_lengths_that_were_seen(seed: int) -> None:
    """The sum of savings less readings over the past lengths, for every moment, by brute force."""
    rng = random.Random(seed)
    past = [rng.choice((5, 20, 50, 300)) + rng.randrange(4) for _ in range(Lengths.MOST)]
    gain, reading, per_token = rng.uniform(0.1, 0.6), rng.uniform(1, 80), rng.uniform(0, 0.05)
    found = Lengths()
    found.PRIOR = ()  # type: ignore[assignment]
    for tokens in past:
        found.begin(7, 1024)
        found.wrote(tokens, True, False)
    found.begin(7, 1024)

    def worth(at: float) -> float:
        return sum(gain * (n - at) - reading - per_token * at for n in past if n > at)

    at = begins_at(found, gain, reading, per_token)
    best = max(0.0, *(worth(t) for t in range(400)))
    assert worth(at) == pytest.approx(best) if best else at > max(past)
