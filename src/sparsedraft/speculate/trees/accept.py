"""Which nodes of a draft tree the target accepts."""

from collections.abc import Sequence

from torch import Tensor

from sparsedraft.maths.sampling import Dice
from sparsedraft.speculate.loop.accept import residual


def children(parents: Sequence[int]) -> dict[int, list[int]]:
    """The nodes below each node (-1: the first ones), in the order in which they were drafted."""
    below: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        below.setdefault(parent, []).append(node)
    return below


def accept_tree_greedy(target_tokens: Tensor, drafted: Sequence[int], parents: Sequence[int]) -> tuple[list[int], int]:
    """(accepted nodes from the root down, next token): target_tokens[i + 1] is the target's argmax after node i,
    target_tokens[0] that after the prefix."""
    below, choices = children(parents), target_tokens.tolist()
    path: list[int] = []
    while True:
        at = path[-1] if path else -1
        token = choices[at + 1]
        match = next((node for node in below.get(at, ()) if drafted[node] == token), None)
        if match is None:
            return path, token
        path.append(match)


def without(q: Tensor, token: int) -> Tensor:
    """q [V] given that it is not `token`; all zeros where nothing else is possible."""
    left = q.clone()
    left[token] = 0
    total = left.sum()
    return left / total if total > 0 else left


def accept_tree_sampled(
    p: Tensor, q: Sequence[Tensor], drafted: Sequence[int], parents: Sequence[int], dice: Dice
) -> tuple[list[int], int]:
    """(accepted nodes from the root down, next token), p [n + 1, V] as in `accept_tree_greedy`.

    q[i] [V] is the distribution that node i was drawn from: that of its place, without the siblings drawn before it
    (sampling without replacement). Each sibling is tried in turn against what the rejections before it have left of
    the target's distribution (SpecInfer, Miao et al. 2024; without replacement: Sequoia, Chen et al. 2024), so every
    node is Leviathan's step with p and q conditional on the past, and the emitted token is the target's.
    """
    below = children(parents)
    path: list[int] = []
    while True:
        at = path[-1] if path else -1
        left = p[at + 1]
        for node in below.get(at, ()):
            x = drafted[node]
            if dice.accepts(float(left[x]), float(q[node][x])):
                path.append(node)
                break
            left = residual(left, q[node])
        else:
            return path, dice.draw(left)
