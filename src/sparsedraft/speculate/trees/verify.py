"""How the target verifies draft trees."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from sparsedraft.maths.sampling import Sampling, likeliest, penalised, probabilities, sound
from sparsedraft.speculate.loop.sequence import Draft, TokenSequence
from sparsedraft.speculate.loop.verify import ChainVerifier, Verdict
from sparsedraft.speculate.trees.accept import accept_tree_greedy, accept_tree_sampled
from sparsedraft.speculate.trees.draft import TreeDraft, branch
from sparsedraft.writers.protocol.backend import Backend, TreeBackend
from sparsedraft.writers.transformers import masks


class TreeVerifier(ChainVerifier):
    """Verifies a tree behind one sequence. The target is a TreeBackend (see `Pair.check_tree`).

    A step without drafts is a chain of none.
    """

    def read(self, target: Backend, sequences: Sequence[TokenSequence], drafts: Sequence[Draft]) -> list[Tensor]:
        draft = drafts[0]
        if not isinstance(draft, TreeDraft):
            return super().read(target, sequences, drafts)
        tree_target, tokens, read = cast(TreeBackend, target), sequences[0].tokens, target.lengths[0]
        if read == len(tokens) - 1:  # the last token of the sequence becomes the root of the tree
            parents = [-1, *(parent + 1 for parent in draft.parents)]
            return [tree_target.forward_tree([tokens[-1], *draft.tokens], parents)]
        after_sequence = target.forward([tokens[read:]], [1])[0]
        return [torch.cat([after_sequence, tree_target.forward_tree(draft.tokens, draft.parents)])]

    def accept(self, sequence: TokenSequence, draft: Draft, logits: Tensor, sampling: Sampling) -> Verdict:
        if not isinstance(draft, TreeDraft):
            return super().accept(sequence, draft, logits, sampling)
        written = len(sequence.tokens)
        logits = sound(logits, "target", [written, *(written + depth + 1 for depth in masks.depths(draft.parents))])
        if sampling.repetition_penalty != 1:
            branches = [branch(draft.tokens, draft.parents, node) for node in range(-1, len(draft.tokens))]
            logits = torch.cat(
                [
                    penalised(x[None], sampling, [*sequence.tokens, *path])
                    for x, path in zip(logits, branches, strict=True)
                ]
            )
        if sampling.greedy:
            return Verdict(*accept_tree_greedy(likeliest(logits), draft.tokens, draft.parents))
        assert draft.q is not None, "a tree that is sampled from comes with its distributions"
        p = probabilities(logits, sampling)
        return Verdict(*accept_tree_sampled(p, draft.q, draft.tokens, draft.parents, sequence.dice))

    def keep(
        self,
        target: Backend,
        sequences: Sequence[TokenSequence],
        drafts: Sequence[Draft],
        accepted: Sequence[Sequence[int]],
    ) -> None:
        if isinstance(drafts[0], TreeDraft):
            before = target.lengths[0] - len(drafts[0].tokens)
            cast(TreeBackend, target).keep(before, accepted[0])
        super().keep(target, sequences, drafts, accepted)
