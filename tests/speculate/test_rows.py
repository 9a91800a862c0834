"""Several rows in the decoding loop: each is what it is alone."""

import pytest

from known_drafters import GREEDY, WRONG, accepted_runs, decode, right, sometimes, text
from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import Decoder, generate_all
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.stages.evaluate.acceptance import Histogram
from toys import Table, scripted

PROMPTS = [[0], [0, 0, 0], [0] * 6, [0] * 11, [0, 0]]


@pytest.mark.parametrize("script", [right, sometimes, lambda n: WRONG], ids=["always", "sometimes", "never"])
@pytest.mark.parametrize("k", [0, 1, 3, 8])
@pytest.mark.parametrize("ends", [{}, {"eos": 7}, {"context": 22, "n": 30}, {"drafter_context": 12}], ids=str)
def test_each_row_is_as_if_it_were_alone(script, k: int, ends: dict[str, int]) -> None:
    """Rows of different lengths that end at different times, by eos, length or context."""
    together, target, model = decode(script, k, PROMPTS, **ends)
    alone = [decode(script, k, [prompt], **ends) for prompt in PROMPTS]
    for i, (mine, ((single,), *_)) in enumerate(zip(together, alone, strict=True)):
        assert (mine.tokens, mine.finish_reason) == (single.tokens, single.finish_reason)
        assert [(s.drafted, s.accepted, s.emitted, s.row) for s in mine.steps] == [
            (s.drafted, s.accepted, s.emitted, i) for s in single.steps
        ]
        assert Histogram.of_steps(mine.steps, k) == Histogram.of_steps(single.steps, k)
    assert target.passes == max(len(made.steps) for made in together), "one pass a step for all rows"
    assert target.fed == sum(one.fed for _, one, _ in alone), "nothing is read twice"
    assert model.fed == sum(one.fed for _, _, one in alone)
    if not ends:
        expected = [accepted_runs(script, k, len(prompt), 20) for prompt in PROMPTS]
        assert [[step.accepted for step in made.steps] for made in together] == expected
    if "eos" in ends or "context" in ends:
        assert len({len(made.tokens) for made in together}) > 2


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0), Sampling(0.8, 6, 0.9, 0.02, 1.3)], ids=str)
@pytest.mark.parametrize("k", [1, 4])
def test_a_rows_draws_do_not_depend_on_the_others(sampling: Sampling, k: int) -> None:
    prompts, seeds = [[1, 2, 3], [4], [5, 6], [1, 2, 3]], [5, 6, 7, 8]

    def made(rows: list[int]) -> list[list[int]]:
        drafter = ModelDrafter(Table(2, 9, len(rows)), sampling)
        decoder = Decoder(Table(1, 9, len(rows)), drafter, Constant(k), sampling, frozenset({8}))
        return [one.tokens for one in generate_all(decoder, [prompts[b] for b in rows], 25, [seeds[b] for b in rows])]

    alone = [made([b])[0] for b in range(4)]
    assert made([0, 1, 2, 3]) == alone and made([2, 0]) == [alone[2], alone[0]]
    assert (alone[0] == alone[3]) == sampling.greedy, "other seeds, other texts"


@pytest.mark.parametrize("share", [0.0, 0.4, 0.6])
def test_drafts_are_what_the_drafter_says_after_the_text(share: float) -> None:
    """Whatever was rejected before: its cache holds the text and nothing else."""
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 0]]
    model = Table(2, 9, 3).mixed_with(Table(1, 9), share)
    fresh = Table(2, 9).mixed_with(Table(1, 9), share)
    decoder = Decoder(Table(1, 9, 3), ModelDrafter(model, GREEDY), Constant(4), GREEDY)
    rejected = 0
    for prompt, made in zip(prompts, generate_all(decoder, prompts, 40, [0] * 3), strict=True):
        at = list(prompt)
        for step in made.steps:
            said = list(at)
            for _ in step.drafted:
                said.append(int(fresh.after(said).argmax()))
            assert step.drafted == said[len(at) :]
            rejected += len(step.drafted) - step.accepted
            at += step.emitted
    assert rejected > 5


def test_rows_with_nothing_to_write() -> None:
    decoder = Decoder(scripted(right, 2), ModelDrafter(scripted(right, 2), GREEDY), Constant(3), GREEDY)
    made = generate_all(decoder, [[0], [0, 0]], 0, [0, 0])
    assert [one.tokens for one in made] == [[], []] and decoder.target.passes == 0  # type: ignore[attr-defined]


def test_a_row_that_the_drafter_reads_nothing_of_is_not_drafted_for() -> None:
    drafter = ModelDrafter(scripted(right, 2), GREEDY, read=lambda row: row.tokens[4 - 4 * row.index :])
    made = generate_all(Decoder(scripted(right, 2), drafter, Constant(2), GREEDY), [[0, 0, 0]] * 2, 9, [0, 0])
    assert [one.tokens for one in made] == [text(3, 9)] * 2
    assert [len(one.steps[0].drafted) for one in made] == [0, 2]
