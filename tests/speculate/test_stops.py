"""Stop strings: speculation stops where plain decoding stops, however many tokens came in one step."""

import random

import pytest
import torch

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import Decoder, Generation, generate, generate_all
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.trees.drafter import TreeDrafter
from sparsedraft.stages.generate.texts import TextStream
from tiny import build_tokenizer
from toys import Toy

TOKENIZER = build_tokenizer()
PROMPT = TOKENIZER("the fox jumps over the dog")["input_ids"]
TEXT = "seven apples are left, écru → and the lazy dog jumps over the brown fox. thank you, dog!"
ANSWER = TOKENIZER(TEXT)["input_ids"]
GREEDY = Sampling()
END = 2  # <|im_end|>


def writer(prompts: list[list[int]], wrong_every: int = 0) -> Toy:
    """A model that answers any of the prompts with TEXT and ends; it errs after every so many tokens."""
    eye = 20 * torch.eye(320)
    lengths = sorted({len(prompt) for prompt in prompts}, reverse=True)

    def after(ids: list[int]) -> torch.Tensor:
        written = len(ids) - next(n for n in lengths if n <= len(ids) and ids[n - 1] == PROMPT[-1])
        if wrong_every and written % wrong_every == wrong_every - 1:
            return eye[5]
        return eye[ANSWER[written] if written < len(ANSWER) else END]

    return Toy(after, len(prompts))


def run(stops: Stops, k: int, branching: int = 1, wrong_every: int = 0, room: int = 200) -> Generation:
    drafter = None
    if k:
        model = writer([PROMPT], wrong_every)
        drafter = TreeDrafter(model, GREEDY, branching) if branching > 1 else ModelDrafter(model, GREEDY)
    decoder = Decoder(writer([PROMPT]), drafter, Constant(k), GREEDY, frozenset({END}), stops)
    return generate(decoder, PROMPT, room)


def ends(string: str) -> int:
    """Tokens of ANSWER up to the first after which its text holds `string`."""
    return next(n for n in range(1, len(ANSWER) + 1) if string in TOKENIZER.decode(ANSWER[:n]))


def strings() -> list[str]:
    rng = random.Random(0)
    found = ["seven", "apples are", "é", "→ and", " ", "!", "écru → and the lazy dog jumps over the brown"]
    for length in (1, 2, 3, 5, 9, 20):
        for _ in range(6):
            start = rng.randrange(len(TEXT) - length)
            found.append(TEXT[start : start + length])
    return found


def test_the_strings_fall_where_it_is_hard() -> None:
    """In the middle of tokens and across them, so that the tests below are about something."""
    borders = {len(TOKENIZER.decode(ANSWER[:n])) for n in range(len(ANSWER) + 1)}
    places = [(TEXT.find(s), TEXT.find(s) + len(s)) for s in strings()]
    assert sum(start not in borders for start, _ in places) > 5
    assert sum(end not in borders for _, end in places) > 5
    assert sum(any(start < border < end for border in borders) for start, end in places) > 15


@pytest.mark.parametrize("string", strings())
def test_a_stop_inside_a_draft_ends_where_plain_decoding_ends(string: str) -> None:
    stops = Stops(TOKENIZER, [string])
    plain = run(stops, 0)
    assert plain.tokens == ANSWER[: ends(string)] and plain.finish_reason == "stop"
    cut = 0
    for k in (1, 2, 5, 8, 13):
        for wrong_every in (0, 3):
            made = run(stops, k, wrong_every=wrong_every)
            assert (made.tokens, made.finish_reason) == (plain.tokens, "stop")
            cut += made.steps[-1].accepted == len(made.steps[-1].emitted) < len(made.steps[-1].drafted)
        made = run(stops, k, branching=2)
        assert (made.tokens, made.finish_reason) == (plain.tokens, "stop")
    assert cut, "the stop lay inside an accepted draft at least once"
    assert stops.cut(TOKENIZER.decode(plain.tokens)) == TEXT[: TEXT.find(string)]


def test_the_first_of_several_stops_counts() -> None:
    stops = Stops(TOKENIZER, ["dog", "lazy", "", "never"])
    made = run(stops, 8)
    assert made.tokens == ANSWER[: ends("lazy")]
    assert stops.cut(TEXT) == TEXT[: TEXT.find("lazy")] and stops.cut("nothing") == "nothing"


def test_what_the_prompt_says_does_not_stop() -> None:
    """Neither a stop inside the prompt, nor one that its end begins."""
    assert run(Stops(TOKENIZER, ["fox jumps", "dogseven"]), 5).finish_reason == "eos"


def test_a_stop_that_does_not_come_and_one_beyond_the_room() -> None:
    never = run(Stops(TOKENIZER, ["zebra"]), 4)
    assert never.tokens == [*ANSWER, END] and never.finish_reason == "eos"
    room = ends("left") - 1
    assert run(Stops(TOKENIZER, ["left"]), 4, room=room).finish_reason == "length"
    assert run(Stops(TOKENIZER, ["left"]), 4, room=room + 1).finish_reason == "stop"


def test_a_special_token_stops_though_no_text_shows_it() -> None:
    ids = [*ANSWER[:9], 1, *ANSWER[9:]]
    special = TOKENIZER.convert_ids_to_tokens(1)
    assert special not in TOKENIZER.decode(ids, skip_special_tokens=True)
    stops = Stops(TOKENIZER, [special, "never"])
    for new in range(1, len(ids) + 1):
        at = 9 - (len(ids) - new)
        assert stops.first([*PROMPT, *ids], len(ids), new) == (at if at >= 0 else None)
    assert stops.first([*PROMPT, 1, *ANSWER], len(ANSWER), len(ANSWER)) is None, "the prompt's do not count"


def test_rows_stop_on_their_own() -> None:
    prompts = [PROMPT, PROMPT[:-3] + PROMPT[-1:], [*PROMPT[:4], *PROMPT]]
    stops = Stops(TOKENIZER, ["brown"])
    for k in (0, 1, 4, 9):
        drafter = ModelDrafter(writer(prompts, 4), GREEDY)
        decoder = Decoder(writer(prompts), drafter, Constant(k), GREEDY, frozenset({END}), stops)
        made = generate_all(decoder, prompts, 100, [0] * 3)
        assert {one.finish_reason for one in made} == {"stop"}
        assert all(one.tokens == ANSWER[: ends("brown")] for one in made)


def test_what_is_streamed_is_the_text_up_to_the_stop() -> None:
    """Nothing that a stop string may begin with is written before it is known, also where it is longer than all so
    far."""
    for string in [*strings(), TEXT[:40], TEXT[3:60]]:
        stops = Stops(TOKENIZER, [string])
        for k in (0, 3):
            stream = TextStream(TOKENIZER, stops)
            pieces = [stream.add(step) for step in run(stops, k).steps]
            assert "".join(pieces) + stream.rest() == stream.text == TEXT[: TEXT.find(string)]
