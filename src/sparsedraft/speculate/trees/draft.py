"""A draft that is a tree."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsedraft.speculate.loop.sequence import Draft


@dataclass(frozen=True)
class TreeDraft(Draft):
    """Drafted tokens as the nodes of a tree: `parents[i]` < i is the node above node i, -1 for one that follows the
    sequence itself."""

    parents: list[int] = field(default_factory=list)


def branch(tokens: Sequence[int], parents: Sequence[int], node: int) -> list[int]:
    """The tokens of a tree from its root down to `node`; none for -1."""
    path: list[int] = []
    while node >= 0:
        path.append(tokens[node])
        node = parents[node]
    return path[::-1]
