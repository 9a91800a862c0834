"""The decoding loop with drafters whose acceptance is known by construction: every length and count that follows."""

import pytest
import torch

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.loop.decode import Decoder, Generation, generate, generate_all
from sparsedraft.speculate.policy.policies import Constant, policy_named
from sparsedraft.speculate.trees.drafter import TreeDrafter
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.stages.evaluate.simulate import simulate
from sparsedraft.writers.prefix import shared
from toys import Table, Toy, scripted

GREEDY = Sampling()
WRONG = 40


def right(n: int) -> int:
    """The target's token after n tokens."""
    return n % 10 + 1


def sometimes(n: int) -> int:
    """A drafter's that is wrong after every text whose length 4 divides."""
    return WRONG if n % 4 == 0 else right(n)


def decode(
    script, k: int, prompts: list[list[int]], n: int = 20, eos: int | None = None, branching: int = 1,
    context: int | None = None, drafter_context: int | None = None,
) -> tuple[list[Generation], Toy, Toy]:  # fmt: skip
    """What `right` makes of the prompts, with a drafter that goes by `script` (None: without); target and drafter."""
    target = scripted(right, len(prompts), max_length=context)
    drafter, model = None, scripted(script, len(prompts), max_length=drafter_context)
    if script is not None:
        drafter = TreeDrafter(model, GREEDY, branching) if branching > 1 else ModelDrafter(model, GREEDY)
    eos_ids = frozenset() if eos is None else frozenset({eos})
    decoder = Decoder(target, drafter, Constant(k), GREEDY, eos_ids)
    return generate_all(decoder, prompts, n, [0] * len(prompts)), target, model


def run(script, k: int, n: int = 20, **options) -> tuple[Generation, Toy]:
    (made,), target, _ = decode(script, k, [[0, 0, 0]], n, **options)
    return made, target


def text(start: int, n: int = 20) -> list[int]:
    return [right(start + i) for i in range(n)]


def accepted_runs(script, k: int, start: int, n: int) -> list[int]:
    """Drafts accepted, step by step, of a chain of K = k."""
    found, at, end = [], start, start + n
    while at < end:
        length = 0
        while length < min(k, end - at - 1) and script(at + length) == right(at + length):
            length += 1
        found.append(length)
        at += length + 1
    return found


def test_more_branches_than_tokens() -> None:
    """A tree of 20 branches over 8 tokens: every token is a child, so one is always accepted."""
    target = Table(1, 8)
    decoder = Decoder(target, TreeDrafter(Table(2, 8), GREEDY, branching=20), Constant(30), GREEDY)
    made = generate(decoder, [1, 2], 30)
    assert made.tokens == generate(Decoder(Table(1, 8), None, Constant(0), GREEDY), [1, 2], 30).tokens
    assert all(step.accepted for step in made.steps if len(step.drafted) >= 8)


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


# ---- trees


def tree_depth(nodes: int) -> int:
    """Nodes on the likeliest branch of a tree of branching 2, width 2: the first round costs 2 nodes, others 4."""
    return 0 if nodes < 1 else 1 + max(0, -(-(nodes - 2) // 4))


@pytest.mark.parametrize("k", range(1, 15))
def test_tree_always_accepted(k: int) -> None:
    made, target = run(lambda n: right(n), k, branching=2)
    assert made.tokens == text(3)
    expected, left = [], 20
    while left:
        expected.append(tree_depth(min(k, left - 1)))
        left -= expected[-1] + 1
    assert [step.accepted for step in made.steps] == expected
    assert [len(step.emitted) for step in made.steps] == [depth + 1 for depth in expected]
    assert target.passes == len(expected) + 1, "one for the prompt, then one a step"
    assert Histogram.of_steps(made.steps, k).tokens == 20


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_tree_never_accepted(k: int) -> None:
    made, target = run(lambda n: WRONG, k, branching=3)
    histogram = Histogram.of_steps(made.steps, k)
    assert made.tokens == text(3) and histogram.counts == [20] + [0] * k
    assert target.passes == 20 + 1 and histogram.drafted == sum(min(k, r - 1) for r in range(1, 21))


@pytest.mark.parametrize("k", [2, 6, 10])
def test_tree_sometimes_accepted(k: int) -> None:
    made, _ = run(sometimes, k, n=24, branching=2)
    expected, at = [], 3
    while at < 27:
        run_length = 0
        while run_length < tree_depth(min(k, 27 - at - 1)) and (at + run_length) % 4:
            run_length += 1
        expected.append(run_length)
        at += run_length + 1
    assert [step.accepted for step in made.steps] == expected and made.tokens == text(3, 24)


def test_a_tree_takes_the_second_guess_where_a_chain_fails() -> None:
    def second(ids: list[int]) -> torch.Tensor:
        logits = torch.zeros(50)
        logits[WRONG], logits[right(len(ids))] = 20.0, 10.0
        return logits

    for branching, k, accepted in ((1, 2, 0), (2, 2, 1), (2, 6, 2), (3, 3, 1)):
        model = Toy(second)
        drafter = TreeDrafter(model, GREEDY, branching) if branching > 1 else ModelDrafter(model, GREEDY)
        made = generate(Decoder(scripted(right), drafter, Constant(k), GREEDY), [0, 0, 0], 30)
        assert made.tokens == text(3, 30)
        assert {step.accepted for step in made.steps if len(step.drafted) == k} == {accepted}


def test_a_tree_of_branching_1_drafts_the_chain() -> None:
    for script in (right, sometimes):
        target = scripted(right)
        tree = Decoder(target, TreeDrafter(scripted(script), GREEDY, branching=1, width=1), Constant(4), GREEDY)
        chain, _ = run(script, 4)
        assert generate(tree, [0, 0, 0], 20) == chain


# ---- several rows

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


# ---- where texts end


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


# ---- prompt lookup


def test_prompt_lookup_copies_what_followed_the_latest_longest_match() -> None:
    look = PromptLookup(longest=3)._look
    assert look([1, 2, 3, 9, 8, 1, 2, 3], 2) == [9, 8]
    assert look([1, 2, 7, 5, 2, 6, 1, 2], 3) == [7, 5, 2], "two tokens that match go before one that is nearer"
    assert look([2, 7, 2, 6, 2], 1) == [6], "of equal matches the latest"
    assert look([1, 2, 3, 4], 3) == [] and look([5], 3) == [] and look([4, 4], 3) == [4]
    assert look([3, 4, 3], 5) == [4, 3] and look([3, 4, 3], 0) == []


def test_prompt_lookup_is_accepted_on_a_text_that_repeats() -> None:
    """`right` has a period of 10: from the second on, every draft is right."""
    target = scripted(right)
    made = generate(Decoder(target, PromptLookup(), Constant(4), GREEDY), [0, 0, 0], 60)
    assert made.tokens == text(3, 60)
    assert target.passes == len(made.steps) <= 12 + 48 // 5 + 1
    assert all(step.accepted == len(step.drafted) for step in made.steps[12:])


# ---- histograms and bad input


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


def test_a_row_that_the_drafter_reads_nothing_of_is_not_drafted_for() -> None:
    drafter = ModelDrafter(scripted(right, 2), GREEDY, read=lambda row: row.tokens[4 - 4 * row.index :])
    made = generate_all(Decoder(scripted(right, 2), drafter, Constant(2), GREEDY), [[0, 0, 0]] * 2, 9, [0, 0])
    assert [one.tokens for one in made] == [text(3, 9)] * 2
    assert [len(one.steps[0].drafted) for one in made] == [0, 2]


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
