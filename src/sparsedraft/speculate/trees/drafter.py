"""Draft trees: several tokens a place under a budget of nodes, read by the target in one pass.

Each round the drafter reads the `width` likeliest leaves at once, and each of them gets `branching` children: the
likeliest tokens (greedy), or draws without replacement (sampling). How many children a leaf gets is decided before they
are drawn, and none is thrown away, so that `accept_tree_sampled` stays exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling, penalised, probabilities, sound
from sparsedraft.speculate.drafters.window import Window, left_of
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.loop.verify import Verifier
from sparsedraft.speculate.trees.accept import without
from sparsedraft.speculate.trees.draft import TreeDraft, branch
from sparsedraft.speculate.trees.verify import TreeVerifier
from sparsedraft.writers.prefix import shared
from sparsedraft.writers.protocol.backend import TreeBackend


@dataclass
class _Tree:
    """The nodes drafted so far. `reach[i]`: the probability, for the drafter, of the branch down to node i. `read`: the
    nodes in the drafter's cache, in the order in which they lie there."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    reach: list[float] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    read: list[int] = field(default_factory=list)

    def branch(self, node: int) -> list[int]:
        """The tokens from the root to `node`."""
        return branch(self.tokens, self.parents, node)

    def add(self, token: int, parent: int, probability: float, q: Tensor | None) -> None:
        """A node below `parent`, with its probability there."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.reach.append((self.reach[parent] if parent >= 0 else 1.0) * probability)
        if q is not None:
            self.q.append(q)

    def likeliest_leaves(self, width: int, room: int) -> list[int]:
        """The `width` likeliest leaves that were not read yet; of these, those whose children `room` tokens can hold.

        The likeliest spend the budget of nodes first.
        """
        leaves = set(range(len(self.tokens))) - set(self.parents) - set(self.read)
        best = sorted(leaves, key=lambda node: (-self.reach[node], node))[:width]
        return [node for node in best if len(self.branch(node)) < room]


class TreeDrafter:
    """A model that drafts trees for one sequence. The limit of a draft is its number of nodes.

    `sampling` makes q of the drafter's logits, as in ModelDrafter.
    """

    verifier: Verifier = TreeVerifier()

    def __init__(
        self,
        backend: TreeBackend,
        sampling: Sampling,
        branching: int = 2,
        width: int = 2,
        window: Window | None = None,
    ) -> None:
        if branching < 1 or width < 1:
            raise UserError(f"a tree of branching {branching} and width {width} is not possible: give 1 or more.")
        self.backend, self.sampling, self.branching, self.width = backend, sampling, branching, width
        self.window = window
        self._prefix: list[int] = []  # what the cache holds before the nodes
        self._tree = _Tree()

    def select(self, rows: Sequence[int]) -> None:
        """Does nothing: there is one sequence."""

    def propose(self, sequences: Sequence[TokenSequence], limits: Sequence[int]) -> list[Draft]:
        if len(sequences) != 1:
            raise UserError(f"a tree is drafted for one prompt at a time, and there are {len(sequences)}.")
        (sequence,), (budget,) = sequences, limits
        context = left_of(self.window, sequence.tokens)
        if (know := getattr(self.backend, "know", None)) is not None:
            know(0, sequence.tokens)
        self._roll_back(context)
        room = budget if self.backend.max_length is None else self.backend.max_length - len(context)
        tree = self._tree
        if min(budget, room) <= 0:
            return [Draft()]
        logits = self.backend.forward([context[len(self._prefix) :]], [1])[0]
        self._prefix = list(context)
        self._grow(sequence, -1, logits, budget)
        while len(tree.tokens) < budget and (leaves := tree.likeliest_leaves(self.width, room)):
            for leaf, after in zip(leaves, self._read(leaves), strict=True):
                self._grow(sequence, leaf, after[None], budget)
        return [TreeDraft(tree.tokens, None if self.sampling.greedy else tree.q, parents=tree.parents)]

    def _read(self, leaves: list[int]) -> Tensor:
        """The drafter's logits [n, V] after each of n leaves, which its cache then holds."""
        tree = self._tree
        places = {node: place for place, node in enumerate([*tree.read, *leaves])}
        parents = [places[parent] if (parent := tree.parents[node]) >= 0 else -1 for node in places]
        tree.read += leaves
        return self.backend.forward_tree([tree.tokens[node] for node in leaves], parents)

    def _grow(self, sequence: TokenSequence, parent: int, logits: Tensor, budget: int) -> None:
        """Add children of `parent` from the logits [1, V] after it, as many as `branching` and the budget allow."""
        tree = self._tree
        before = tree.branch(parent)
        logits = sound(logits, "drafter", [len(sequence.tokens) + len(before)])
        logits = penalised(logits, self.sampling, [*sequence.tokens, *before])[0]
        count = min(self.branching, budget - len(tree.tokens), logits.shape[-1])
        if self.sampling.greedy:
            best = logits.float().softmax(-1).topk(count)
            for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                tree.add(token, parent, probability, None)
            return
        q = left = probabilities(logits, self.sampling)
        for _ in range(count):
            if not bool(left.sum() > 0):
                return
            token = sequence.dice.draw(left)
            tree.add(token, parent, float(q[token]), left)
            left = without(left, token)

    def _roll_back(self, tokens: list[int]) -> None:
        """Keep in the cache the branch with which `tokens` went on after the prefix, and begin a new tree.

        Where they are no longer behind that prefix, as a window has moved on, what they share with it is kept.
        """
        tree, node, path = self._tree, -1, list[int]()
        if len(tokens) <= len(self._prefix) or tokens[: len(self._prefix)] != self._prefix:
            self._prefix = self._prefix[: min(shared(self._prefix, tokens), len(tokens) - 1)]
            self.backend.rollback([len(self._prefix)])
            self._tree = _Tree()
            return
        for token in tokens[len(self._prefix) : len(tokens) - 1]:
            below = (n for n in tree.read if tree.parents[n] == node and tree.tokens[n] == token)
            if (child := next(below, None)) is None:
                break
            node = child
            path.append(tree.read.index(node))
        self.backend.keep(len(self._prefix), path)
        self._prefix = [*self._prefix, *tokens[len(self._prefix) : len(self._prefix) + len(path)]]
        self._tree = _Tree()
