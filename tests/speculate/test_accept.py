"""Which drafts the target accepts: the rules by hand and by their algebra, for chains and for trees."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsedraft.maths.sampling import Dice
from sparsedraft.speculate.loop.accept import accept_block, accept_greedy, accept_sampled, residual
from sparsedraft.speculate.trees.accept import accept_tree_greedy, accept_tree_sampled, children, without
from sparsedraft.stages.evaluate.simulation import kept
from toys import Chances, outcomes

V = 4


class Fixed(Dice):
    """Dice whose uniform number is always `u`; they remember what was drawn from."""

    def __init__(self, u: float) -> None:
        self.u, self.drawn_from = u, []

    def accepts(self, p: float, q: float) -> bool:
        return self.u * q < p

    def draw(self, distribution: torch.Tensor) -> int:
        self.drawn_from.append(distribution)
        return 0


def two(seed: int, n: int = V) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.rand(n, generator=generator, dtype=torch.float64).softmax(-1) ** 2 for _ in range(2))
    return p / p.sum(), q / q.sum()


def test_greedy_accepts_the_run_of_matches() -> None:
    target = torch.tensor([5, 6, 7, 8])
    for drafted, expected in (([5, 6, 7], 3), ([5, 9, 7], 1), ([4, 6, 7], 0), ([], 0)):
        assert accept_greedy(target, torch.tensor(drafted, dtype=torch.long)) == expected


@given(st.integers(0, 10**6))
def test_one_draft_gives_exactly_p(seed: int) -> None:
    """Summed over the draft and over accept/reject, the emitted token's distribution is p: 1e-9."""
    p, q = two(seed)
    emitted = torch.zeros(V, dtype=torch.float64)
    for x in range(V):
        kept = min(1.0, float(p[x] / q[x]))
        emitted[x] += q[x] * kept
        emitted += q[x] * (1 - kept) * residual(p, q)
    torch.testing.assert_close(emitted, p, rtol=0, atol=1e-9)


def tables(seed: int, n: int) -> tuple[dict[tuple[int, ...], torch.Tensor], dict[tuple[int, ...], torch.Tensor]]:
    """Distributions p and q after every text of up to n tokens."""
    texts = [text for length in range(n + 1) for text in itertools.product(range(V), repeat=length)]
    both = {text: two(seed + 1000 * i) for i, text in enumerate(texts)}
    return {text: p for text, (p, _) in both.items()}, {text: q for text, (_, q) in both.items()}


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_a_block_is_accepted_as_often_as_it_says_and_never_less_than_token_by_token(seed: int) -> None:
    """Summed over all drafts of 2 tokens and over all throws: what is emitted has the target's distribution (1e-9)."""
    n = 2
    p, q = tables(seed, n)
    by_rule, emitted = {"block": 0.0, "said": 0.0, "token": 0.0}, torch.zeros(V, V, dtype=torch.float64)
    for x in itertools.product(range(V), repeat=n):
        rows_p = torch.stack([p[x[:i]] for i in range(n + 1)])
        rows_q = torch.stack([q[x[:i]] for i in range(n)])
        chance = float(q[()][x[0]] * q[x[:1]][x[1]])
        drafted = torch.tensor(x)
        for (accepted, token, said), probability in outcomes(lambda dice: accept_block(rows_p, rows_q, drafted, dice)):  # noqa: B023
            by_rule["block"] += chance * probability * accepted
            by_rule["said"] += chance * probability * said
            first_two = [*x[:accepted], token][:2]
            if len(first_two) == 2:
                emitted[first_two[0], first_two[1]] += chance * probability
            else:  # the target goes on alone
                emitted[first_two[0]] += chance * probability * p[(first_two[0],)]
        for (accepted, _), probability in outcomes(lambda dice: accept_sampled(rows_p, rows_q, drafted, dice)):  # noqa: B023
            by_rule["token"] += chance * probability * accepted
    expected = torch.stack([p[()][a] * p[(a,)] for a in range(V)])
    torch.testing.assert_close(emitted, expected, rtol=0, atol=1e-9)
    assert by_rule["said"] == pytest.approx(by_rule["block"], abs=1e-9)
    assert by_rule["block"] >= by_rule["token"] - 1e-12


def test_a_block_never_holds_what_the_target_cannot_write() -> None:
    """Not where q is so small that a ratio overflows, nor where both are 0."""
    p = torch.tensor([[0, 1], [0.9, 0.1], [0.5, 0.5]])
    for q in ([[0.5, 0.5], [1e-40, 1]], [[0, 1], [0.9, 0.1]]):
        for (accepted, *_), _ in outcomes(lambda dice: accept_block(p, torch.tensor(q), torch.tensor([0, 0]), dice)):  # noqa: B023
            assert accepted == 0
    assert kept([float("inf"), 0.0, 0.3], "block") == [1, 0, 0]


def test_a_block_makes_up_for_an_unlikely_token() -> None:
    """The paper's example, p = (1/3, 2/3) and q = (2/3, 1/3) at both places: 10/9 token by token, 11/9 as a block."""
    p, q = torch.tensor([[1, 2]] * 3, dtype=torch.float64) / 3, torch.tensor([[2, 1]] * 2, dtype=torch.float64) / 3
    mean = {accept_block: 0.0, accept_sampled: 0.0}
    for x in itertools.product(range(2), repeat=2):
        for rule in mean:
            for found, probability in outcomes(lambda dice: rule(p, q, torch.tensor(x), dice)):  # noqa: B023
                mean[rule] += float(q[0, x[0]] * q[1, x[1]]) * probability * found[0]
    assert mean[accept_sampled] == pytest.approx(10 / 9, abs=1e-12)
    assert mean[accept_block] == pytest.approx(11 / 9, abs=1e-12)


def test_the_rule_in_code_is_the_rule_above() -> None:
    """`accept_sampled` accepts exactly when u < p/q, at every place, and draws from the residual or from p_n."""
    p = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], dtype=torch.float64)
    q = torch.tensor([[0.4, 0.4, 0.2], [0.25, 0.5, 0.25]], dtype=torch.float64)
    for u in (0.0, 0.2, 0.249, 0.26, 0.49, 0.51, 0.9):
        for drafted in itertools.product(range(3), repeat=2):
            expected = 0
            while expected < 2 and u < float(p[expected, drafted[expected]] / q[expected, drafted[expected]]):
                expected += 1
            dice = Fixed(u)
            accepted, _ = accept_sampled(p, q, torch.tensor(drafted), dice)
            assert accepted == expected
            wanted = p[2] if expected == 2 else residual(p[expected], q[expected])
            (drawn_from,) = dice.drawn_from
            torch.testing.assert_close(drawn_from, wanted)


def test_certain_drafts_are_compared_with_the_targets_own_draw() -> None:
    p = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], dtype=torch.float64)
    found: dict[tuple[int, int], float] = {}
    for result, chance in outcomes(lambda dice: accept_sampled(p, None, torch.tensor([1, 0]), dice)):
        found[result] = found.get(result, 0) + chance
    expected = {(0, 0): 0.1, (0, 2): 0.3, (1, 1): 0.6 * 0.25, (1, 2): 0.6 * 0.25}
    expected |= {(2, token): 0.3 * float(p[2, token]) for token in range(3)}
    assert found == pytest.approx(expected, abs=1e-12)


def test_residual_of_equal_distributions_is_no_nan() -> None:
    p = torch.tensor([0.5, 0.5])
    assert torch.equal(residual(p, p), p)


def test_real_dice_keep_a_draft_with_probability_p_over_q() -> None:
    dice, n = Dice(7), 20_000
    for p, q in ((0.3, 0.4), (0.1, 0.8), (0.05, 0.5)):
        share = sum(dice.accepts(p, q) for _ in range(n)) / n
        assert abs(share - p / q) < 5 * (p / q * (1 - p / q) / n) ** 0.5  # five standard deviations: 6e-7
    assert all(dice.accepts(0.4, 0.4) and dice.accepts(0.5, 0.4) for _ in range(1000))
    assert not any(dice.accepts(0.0, 0.4) for _ in range(1000))


# ---- trees


def test_children_are_in_the_order_in_which_they_were_drafted() -> None:
    assert children([-1, -1, 0, 1, 0]) == {-1: [0, 1], 0: [2, 4], 1: [3]}


def test_greedy_walks_down_the_targets_own_choices() -> None:
    """Tokens 5 6 below the root; 7 8 below 5; 9 below 6."""
    drafted, parents = [5, 6, 7, 8, 9], [-1, -1, 0, 0, 1]
    for choices, path, token in (
        ([5, 8, 0, 0, 3, 0], [0, 3], 3),  # root says 5, after 5 comes 8, after 8 comes 3
        ([6, 0, 9, 0, 0, 2], [1, 4], 2),
        ([6, 0, 1, 0, 0, 2], [1], 1),
        ([4, 7, 9, 1, 1, 1], [], 4),
    ):
        assert accept_tree_greedy(torch.tensor(choices), drafted, parents) == (path, token)


def test_without_renormalises_what_is_left() -> None:
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    torch.testing.assert_close(without(q, 0), torch.tensor([0, 0.6, 0.4], dtype=torch.float64))
    assert without(torch.tensor([0.0, 1.0]), 1).tolist() == [0, 0]
    assert q.tolist() == [0.5, 0.3, 0.2], "the argument stays as it was"


@given(st.integers(0, 10**6), st.integers(1, V))
def test_siblings_without_replacement_give_exactly_p(seed: int, siblings: int) -> None:
    """Up to all V tokens as siblings of one place: the emitted token's distribution is p, to 1e-9."""
    p, q = two(seed)
    emitted = torch.zeros(V, dtype=torch.float64)

    def one(dice: Chances) -> int:
        drafted: list[int] = []
        distributions, left = [], q
        for _ in range(siblings):
            distributions.append(left)
            drafted.append(dice.draw(left))
            left = without(left, drafted[-1])
        after = torch.stack([p, *[torch.eye(V, dtype=torch.float64)[0]] * siblings])
        path, token = accept_tree_sampled(after, distributions, drafted, [-1] * siblings, dice)
        assert len(path) <= 1 and len(set(drafted)) == siblings
        return drafted[path[0]] if path else token

    for token, chance in outcomes(one):
        emitted[token] += chance
    torch.testing.assert_close(emitted, p, rtol=0, atol=1e-9)


def test_a_tree_of_one_branch_is_a_chain() -> None:
    for seed in range(30):
        rows = [two(seed * 10 + i) for i in range(4)]
        p, q = torch.stack([p for p, _ in rows]), [q for _, q in rows[:3]]
        drafted = [seed % V, (seed + 1) % V, (seed + 3) % V]
        for u in (0.1, 0.5, 0.8, 0.95):
            chain, tree = Fixed(u), Fixed(u)
            accepted, _ = accept_sampled(p, torch.stack(q), torch.tensor(drafted), chain)
            path, _ = accept_tree_sampled(p, q, drafted, [-1, 0, 1], tree)
            assert path == list(range(accepted))
            assert torch.equal(chain.drawn_from[0], tree.drawn_from[0])
