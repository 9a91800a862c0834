"""The decoding loop with drafters whose acceptance is known by construction: every length and count that follows."""

import pytest
import torch

from known_drafters import GREEDY, WRONG, accepted_runs, decode, right, run, sometimes, text
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Dice, Sampling
from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.loop.decode import Decoder, generate, generate_all
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.trees.drafter import TreeDrafter
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.stages.evaluate.simulation import simulate
from sparsedraft.writers.prefix import shared
from toys import Table, Toy, scripted


@pytest.mark.parametrize("k", range(1, 9))
def test_always_accepted(k: int) -> None:
    made, target = run(right, k)
    steps = -(-20 // (k + 1))
    assert made.tokens == text(3)
    assert target.passes == len(made.steps) == steps
    histogram = Histogram.of_steps(made.steps, k)
    assert histogram.mal == 20 / steps and histogram.acceptance_rate == 1
    assert histogram.counts[k] == 20 // (k + 1) and histogram.steps == steps
    assert target.fed == 3 + 20 - 1, "every token is fed once: nothing is recomputed"


@pytest.mark.parametrize("k", range(1, 9))
def test_never_accepted(k: int) -> None:
    made, target = run(lambda n: WRONG, k)
    assert made.tokens == text(3)
    histogram = Histogram.of_steps(made.steps, k)
    assert target.passes == 20 and histogram.mal == 1 and histogram.acceptance_rate == 0
    assert histogram.counts == [20] + [0] * k
    assert histogram.drafted == sum(min(k, r - 1) for r in range(1, 21)), "never drafts what it could not emit"


@pytest.mark.parametrize("k", range(1, 9))
def test_sometimes_accepted_has_the_lengths_that_follow(k: int) -> None:
    made, target = run(sometimes, k, n=24)
    expected = accepted_runs(sometimes, k, 3, 24)
    assert [step.accepted for step in made.steps] == expected
    assert Histogram.of_steps(made.steps, k).counts == [expected.count(a) for a in range(k + 1)]
    assert made.tokens == text(3, 24) and target.passes == len(expected)


def test_a_drafter_reads_every_token_once() -> None:
    """But for the last accepted draft, which it has not read when the target's own token comes."""
    for script in (right, sometimes, lambda n: WRONG):
        model = scripted(script)
        decoder = Decoder(scripted(right), ModelDrafter(model, GREEDY), Constant(3), GREEDY)
        made = generate(decoder, [0, 0, 0], 24)
        drafted = sum(len(step.drafted) for step in made.steps)
        emitted = sum(len(step.emitted) for step in made.steps if step.drafted)
        accepted = sum(min(step.accepted, len(step.drafted) - 1) for step in made.steps if step.drafted)
        last = next(step for step in reversed(made.steps) if step.drafted)
        unread = len(last.emitted) - min(last.accepted, len(last.drafted) - 1)  # of the last step, never asked for
        steps = sum(bool(step.drafted) for step in made.steps)
        assert model.fed == 3 + (drafted - steps) + (emitted - accepted) - unread


WARPED = [GREEDY, Sampling(repetition_penalty=1.6), Sampling(0.9, 6, 0.9, 0.02, 1.5)]


@pytest.mark.parametrize("sampling", WARPED, ids=str)
@pytest.mark.parametrize("kind", ["chain", "tree", "vocabulary"])
def test_the_target_itself_as_drafter_is_always_accepted(kind: str, sampling: Sampling) -> None:
    """Warpers and penalties are the target's own at every draft; so are they over a vocabulary in another order."""
    model, order = Table(1, 9), torch.tensor([3, 0, 8, 5, 1, 7, 2, 6, 4])
    drafter = ModelDrafter(model, sampling) if kind == "chain" else TreeDrafter(model, sampling, 1, 1)
    if kind == "vocabulary":  # the target's token i is the drafter's order[i]
        by_drafter = torch.cat([torch.argsort(order), torch.tensor([9])])
        model.table = model.table[by_drafter][:, by_drafter][..., torch.argsort(order)]
        vocabulary = VocabularyMap(torch.arange(9), order, 9)
        own = order.tolist()
        drafter = ModelDrafter(
            model, sampling, read=lambda row: [own[token] for token in row.tokens], vocabulary=vocabulary
        )
    made = generate(Decoder(Table(1, 9), drafter, Constant(4), sampling), [1, 2, 3], 60)
    assert [step.accepted for step in made.steps] == [4] * 12


def test_no_drafter_and_k_0_are_plain_decoding() -> None:
    for script, k in ((None, 0), (None, 5), (right, 0)):
        made, target = run(script, k)
        assert target.passes == 20 and all(step.emitted and not step.drafted for step in made.steps)


@pytest.mark.parametrize("branching", [1, 2])
def test_end_of_sequence_inside_a_draft_cuts_the_step(branching: int) -> None:
    made, _ = run(right, 8 if branching == 1 else 14, eos=7, branching=branching)  # 4 5 6 7: the end is the last draft
    assert made.tokens == [4, 5, 6, 7] and made.finish_reason == "eos"
    assert made.steps[-1].accepted == 4 and len(made.steps[-1].drafted) == (8 if branching == 1 else 14)
    made, _ = run(lambda n: WRONG, 8, eos=7, branching=branching)
    assert made.tokens == [4, 5, 6, 7] and len(made.steps) == 4


@pytest.mark.parametrize("branching", [1, 2])
def test_a_draft_of_eos_that_is_rejected_does_not_stop(branching: int) -> None:
    made, _ = run(lambda n: 45, 3, eos=45, branching=branching)
    assert len(made.tokens) == 20 and made.finish_reason == "length"


@pytest.mark.parametrize("branching", [1, 2])
def test_full_context_of_the_target_ends_the_text(branching: int) -> None:
    made, target = run(right, 4, context=10, branching=branching)
    assert len(made.tokens) == 7 and made.finish_reason == "context" and target.lengths[0] <= 10
    with pytest.raises(UserError, match="3 tokens, which fill the target's context of 3"):
        run(None, 0, context=3)


def test_a_drafter_shorter_in_context_stops_drafting_and_nothing_else() -> None:
    made, _ = run(right, 4, drafter_context=9)
    assert made.tokens == text(3)
    lengths = [len(step.drafted) for step in made.steps]
    assert lengths[:2] == [4, 1] and not any(lengths[2:])
    for branching in (1, 2):
        made, _ = run(right, 4, drafter_context=2, branching=branching)  # the prompt alone does not fit
        assert made.tokens == text(3) and not any(step.drafted for step in made.steps)


def test_simulation_knows_a_drafter_shorter_in_context() -> None:
    for context in (0, 3, 9):
        made, _ = run(right, 4, drafter_context=3 + context)
        matches = torch.ones(20, dtype=torch.bool)
        assert simulate(matches, 4, 20, context) == Histogram.of_steps(made.steps, 4)


def test_prompt_lookup_copies_what_followed_the_latest_longest_match() -> None:
    def look(tokens: list[int], limit: int) -> list[int]:
        (draft,) = PromptLookup().propose([TokenSequence(0, tokens, len(tokens), 99, Dice(0))], [limit])
        return draft.tokens

    assert look([1, 2, 3, 9, 8, 1, 2, 3], 2) == [9, 8]
    assert look([1, 2, 7, 5, 2, 6, 1, 2], 3) == [7, 5, 2], "two tokens that match go before one that is nearer"
    assert look([2, 7, 2, 6, 2], 1) == [6], "of equal matches the latest"
    assert look([1, 2, 3, 4], 3) == [] and look([5], 3) == [] and look([4, 4], 1) == [4]
    assert look([3, 4, 3], 0) == [] and look([3, 4, 3], 2) == [4, 3]
    assert look([3, 4, 3], 5) == [4, 3, 4, 3, 4], "where the text ends, the copy goes on with itself"
    assert look([9, 5, 5, 5], 3) == [5, 5, 5]


def test_prompt_lookup_is_accepted_on_a_text_that_repeats() -> None:
    """`right` has a period of 10: from the second on, every draft is right."""
    target = scripted(right)
    made = generate(Decoder(target, PromptLookup(), Constant(4), GREEDY), [0, 0, 0], 60)
    assert made.tokens == text(3, 60)
    assert target.passes == len(made.steps) <= 12 + 48 // 5 + 1
    assert all(step.accepted == len(step.drafted) for step in made.steps[12:])


def test_histograms_add_up_and_come_back_from_disk() -> None:
    a, b = Histogram(2, [1, 2, 3], 11, 14), Histogram(2, [0, 0, 1], 2, 3)
    both = a + b
    assert (both.steps, both.accepted, both.drafted, both.tokens) == (7, 10, 13, 17)
    assert both.mal == 17 / 7 and both.acceptance_rate == 10 / 13
    assert Histogram.from_dict(2, both.to_dict()) == both


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("branching", [1, 2])
@pytest.mark.parametrize("who", ["drafter", "target"])
def test_broken_logits_name_the_model_and_the_place(value: float, branching: int, who: str) -> None:
    """Whatever the step in which it comes: after 7 tokens, the prompt's included."""

    def model(broken: bool) -> Toy:
        logits = scripted(right).after

        def after(ids: list[int]) -> torch.Tensor:
            return logits(ids) * (value if broken and len(ids) == 7 else 1)

        return Toy(after)

    for k in (1, 3, 6):
        q, p = model(who == "drafter"), model(who == "target")
        drafter = TreeDrafter(q, GREEDY, branching) if branching > 1 else ModelDrafter(q, GREEDY)
        with pytest.raises(FloatingPointError, match=f"the {who}'s logits after 7 tokens hold NaN or infinity"):
            generate(Decoder(p, drafter, Constant(k), GREEDY), [0, 0, 0], 20)


def test_bad_input_gets_one_clear_sentence() -> None:
    with pytest.raises(UserError, match=r"^the prompt is empty: give at least one token.$"):
        decode(None, 0, [[]])
    with pytest.raises(UserError, match=r"^the prompt is empty"):
        decode(right, 2, [[1], []])
    with pytest.raises(UserError, match="the prompt has 12 tokens, which fill the target's context of 11: shorten it"):
        decode(right, 2, [[1], [1] * 12], context=11)
    with pytest.raises(UserError, match=r"--k -1 is not possible: give 0 \(no drafts\) or more"):
        Constant(-1)
    with pytest.raises(UserError, match=r"--policy oracle is not known: choose one of constant, auto, "):
        policy_named("oracle", 3)
    for name in ("auto", "confidence", "bandit"):
        for k in (0, -2):
            with pytest.raises(UserError, match=f"--k {k} leaves --policy {name} nothing to choose from"):
                policy_named(name, k)
    for branching, width in ((0, 2), (-1, 2), (2, 0)):
        with pytest.raises(UserError, match=r"a tree of branching .* is not possible: give 1 or more"):
            TreeDrafter(scripted(right), GREEDY, branching, width)
    with pytest.raises(UserError, match="a tree is drafted for one prompt at a time, and there are 2"):
        decode(right, 4, [[1], [1, 2]], branching=2)


def test_the_longest_common_prefix() -> None:
    assert [shared([1, 2, 3], other) for other in ([], [1, 2], [1, 2, 3, 4], [1, 9, 3], [4])] == [0, 2, 3, 1, 0]


def test_a_decoder_decodes_once_and_as_many_prompts_as_it_has_rows() -> None:
    """Its caches hold the first prompt: a second one would be continued wrongly without a word."""
    decoder = Decoder(scripted(right), ModelDrafter(scripted(right), GREEDY), Constant(2), GREEDY)
    generate(decoder, [0, 0, 0], 5)
    with pytest.raises(ValueError, match="has decoded before"):
        generate(decoder, [0, 0, 0], 5)
    with pytest.raises(ValueError, match="2 prompts for 1 rows"):
        generate_all(Decoder(scripted(right), None, Constant(0), GREEDY), [[0], [0]], 5, [0, 0])
