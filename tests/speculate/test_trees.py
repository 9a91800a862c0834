"""Draft trees in the decoding loop: their lengths and counts by construction."""

import pytest
import torch

from known_drafters import GREEDY, WRONG, right, run, sometimes, text
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import Decoder, generate
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.trees.drafter import TreeDrafter
from sparsedraft.stages.evaluate.acceptance import Histogram
from toys import Table, Toy, scripted


def test_more_branches_than_tokens() -> None:
    """A tree of 20 branches over 8 tokens: every token is a child, so one is always accepted."""
    target = Table(1, 8)
    decoder = Decoder(target, TreeDrafter(Table(2, 8), GREEDY, branching=20), Constant(30), GREEDY)
    made = generate(decoder, [1, 2], 30)
    assert made.tokens == generate(Decoder(Table(1, 8), None, Constant(0), GREEDY), [1, 2], 30).tokens
    assert all(step.accepted for step in made.steps if len(step.drafted) >= 8)


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
