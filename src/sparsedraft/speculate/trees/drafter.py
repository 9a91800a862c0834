"""Draft trees: several tokens a place under a budget of nodes, read by the target in one pass.

Each round the drafter reads the `width` likeliest leaves at once, and every one of them gets `branching` children: the
likeliest tokens (greedy), or draws without replacement (sampling). How many children a leaf gets is settled before they
are drawn, and none is thrown away, so that `accept_tree_sampled` stays exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling, penalised, probabilities, sound
from sparsedraft.speculate.loop.accept import without
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.writers.protocol.backend import TreeBackend


@dataclass
class _Tree:
    """Nodes drafted so far; `read` of them, by number, are in the drafter's cache in this order."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    reach: list[float] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    read: list[int] = field(default_factory=list)

    def branch(self, node: int) -> list[int]:
        """The tokens from the root to `node`, itself included."""
        found: list[int] = []
        while node >= 0:
            found.append(self.tokens[node])
            node = self.parents[node]
        return found[::-1]


class TreeDrafter:
    """A model that drafts trees for one row. `wanted` is the budget of nodes."""

    def __init__(self, backend: TreeBackend, sampling: Sampling, branching: int = 2, width: int = 2) -> None:
        if branching < 1 or width < 1:
            raise UserError(f"a tree of branching {branching} and width {width} is not possible: give 1 or more.")
        self.backend, self.sampling, self.branching, self.width = backend, sampling, branching, width
        self._prefix: list[int] = []  # what the cache holds before the nodes
        self._tree = _Tree()

    def select(self, rows: Sequence[int]) -> None:
        """One row: nothing to choose."""

    def propose(self, rows: Sequence[TokenSequence], wanted: Sequence[int]) -> list[Draft]:
        if len(rows) != 1:
            raise UserError(f"a tree is drafted for one prompt at a time, and there are {len(rows)}.")
        (row,), (budget,) = rows, wanted
        self._back_to(row.tokens)
        room = budget if self.backend.max_length is None else self.backend.max_length - len(row.tokens)
        tree = self._tree
        if min(budget, room) <= 0:
            return [Draft()]
        logits = self.backend.forward([row.tokens[len(self._prefix) :]], [1])[0]
        self._prefix = list(row.tokens)
        self._grow(tree, row, -1, logits, budget)
        while len(tree.tokens) < budget:
            leaves = set(range(len(tree.tokens))) - set(tree.parents) - set(tree.read)
            chosen = sorted(leaves, key=lambda node: (-tree.reach[node], node))[: self.width]
            chosen = [node for node in chosen if len(tree.branch(node)) < room]  # the likeliest spends the budget first
            if not chosen:
                break
            place = {node: i for i, node in enumerate([*tree.read, *chosen])}
            parents = [place[p] if (p := tree.parents[node]) >= 0 else -1 for node in place]
            found = self.backend.forward_tree([tree.tokens[node] for node in chosen], parents)
            tree.read += chosen
            for node, after in zip(chosen, found, strict=True):
                self._grow(tree, row, node, after[None], budget)
        return [Draft(tree.tokens, None if self.sampling.greedy else tree.q, tree.parents)]

    def _grow(self, tree: _Tree, row: TokenSequence, parent: int, logits: Tensor, budget: int) -> None:
        """Children of `parent` from the logits [1, V] after it, as many as `branching` and the budget allow."""
        before = tree.branch(parent)
        logits = sound(logits, "drafter", [len(row.tokens) + len(before)])
        logits = penalised(logits, self.sampling, [*row.tokens, *before])[0]
        count = min(self.branching, budget - len(tree.tokens), logits.shape[-1])
        above = tree.reach[parent] if parent >= 0 else 1.0
        if self.sampling.greedy:
            best = logits.float().softmax(-1).topk(count)
            for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                self._add(tree, token, parent, above * probability, None)
            return
        whole = left = probabilities(logits, self.sampling)
        for _ in range(count):
            if not bool(left.sum() > 0):
                return
            token = row.dice.draw(left)
            self._add(tree, token, parent, above * float(whole[token]), left)
            left = without(left, token)

    def _add(self, tree: _Tree, token: int, parent: int, reach: float, q: Tensor | None) -> None:
        tree.tokens.append(token)
        tree.parents.append(parent)
        tree.reach.append(reach)
        if q is not None:
            tree.q.append(q)

    def _back_to(self, tokens: list[int]) -> None:
        """Keep of the cache what `tokens`, which begin with the prefix, went on with; start a new tree."""
        tree, at, path = self._tree, -1, []
        for token in tokens[len(self._prefix) : len(tokens) - 1]:
            at = next((n for n in tree.read if tree.parents[n] == at and tree.tokens[n] == token), len(tree.tokens))
            if at == len(tree.tokens):
                break
            path.append(tree.read.index(at))
        self.backend.keep(len(self._prefix), path)
        self._prefix = [*self._prefix, *tokens[len(self._prefix) : len(self._prefix) + len(path)]]
        self._tree = _Tree()
