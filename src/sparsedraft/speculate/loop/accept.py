"""Which drafts the target accepts: the maths of speculative sampling, for chains and trees."""

from collections.abc import Sequence

from torch import Tensor

from sparsedraft.maths.sampling import Dice


def accept_greedy(target_tokens: Tensor, drafted: Tensor) -> int:
    """How many of the n `drafted` tokens are accepted: the run of matches with the target's argmaxes [≥ n]."""
    matches = target_tokens[: len(drafted)] == drafted
    return int(matches.int().cumprod(0).sum())


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(0, p - q)) [V]: what is left of the target's distribution after a rejection."""
    left = (p - q).clamp(min=0)
    total = left.sum()
    return left / total if total > 0 else p  # p = q up to rounding: a rejection that cannot happen in exact arithmetic


def accept_sampled(p: Tensor, q: Tensor | None, drafted: Tensor, dice: Dice) -> tuple[int, int]:
    """(accepted, next token) for target distributions p [n+1, V], drafter distributions q [n, V], drafts [n] from q.

    Leviathan et al. 2023, Algorithm 1: draft x at place i is kept with probability min(1, p_i(x) / q_i(x)); at the
    first rejection the next token comes from the residual, after n acceptances from p_n. The tokens so emitted are
    distributed as the target's own. q None: drafts that were not drawn but certain (q one-hot). That rule is then to
    draw the target's token and to compare.
    """
    for i, x in enumerate(drafted.tolist()):
        if q is None:
            token = dice.draw(p[i])
            if token != x:
                return i, token
            continue
        if not dice.accepts(float(p[i, x]), float(q[i, x])):
            return i, dice.draw(residual(p[i], q[i]))
    return len(drafted), dice.draw(p[len(drafted)])


def children(parents: Sequence[int]) -> dict[int, list[int]]:
    """The nodes below each node (-1: the first ones), in the order in which they were drafted."""
    found: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        found.setdefault(parent, []).append(node)
    return found


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
