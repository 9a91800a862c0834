"""Sequences of a native model: their caches, and the logits after more tokens."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Dice, Sampling, probabilities, sound, unsound
from sparsedraft.models.kvcache import check_selected
from sparsedraft.models.sources import locate
from sparsedraft.native.context_head import ContextHead
from sparsedraft.native.extension import extension
from sparsedraft.native.extension import pool as new_pool
from sparsedraft.native.model import NativeModel, native_model


class Session:
    """Several sequences of one model, read in one pass; it implements writers.protocol.backend.TreeBackend.

    `threads` defaults to torch's; `pool` holds the threads of another session, with which this one takes turns. A
    token's logits have the same bits whether it is read alone or beside others, of its own sequence or of another.
    Where memory runs out, calls raise MemoryError, and nothing has changed.
    """

    def __init__(
        self,
        model: NativeModel,
        sequences: int = 1,
        *,
        threads: int | None = None,
        pool: Any = None,
        kernels: str | None = None,
    ) -> None:
        self.model, self.passes = model, 0
        self.pool = pool or new_pool(threads or torch.get_num_threads())
        self._session: Any = extension().Session(model.handle, self.pool, sequences, kernels)
        self._map = None if model.head_ids is None else model.head_ids.numpy()
        self._head: ContextHead | None = None
        self._fresh = False  # whether that was made and is not used yet
        self.max_length: int | None = model.handle.max_length or None

    @property
    def lengths(self) -> list[int]:
        """Tokens in the cache of each sequence."""
        return self._session.lengths

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        """Append ids[b] to sequence b; float32 logits [logits[b], V] after its last tokens (-inf: not in the head).

        Raises ValueError for ids outside of the vocabulary, or more than the context holds; nothing has changed then.
        """
        rows = self._run([list(tokens) for tokens in ids], list(logits), None)
        return list(rows.split(list(logits)))

    def forward_tree(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Logits [n, V] after n more nodes of a tree behind the only sequence (see TreeBackend)."""
        return self._run([list(ids)], [len(ids)], list(parents))

    def _run(self, ids: list[list[int]], logits: list[int], parents: list[int] | None) -> Tensor:
        self.passes += 1
        rows = self._session.forward(ids, logits, parents)
        if self._map is not None:  # by numpy: torch would wake threads that spin on the engine's cores
            whole = np.full((len(rows), self.model.handle.vocabulary), -np.inf, np.float32)
            if self._head is None or len(logits) == 1:
                whole[:, self._map] = rows
            else:
                start = 0
                for text, count in enumerate(logits):
                    if not count:
                        continue
                    own, part = self._head.columns(text), slice(start, start := start + count)
                    whole[part, self._map[own]] = rows[part, own]
            rows = whole
        return torch.from_numpy(rows)

    def know(self, sequence: int, ids: Sequence[int]) -> None:
        """Of a head that follows the text, use the rows of `ids` for this sequence, beside those of frequent tokens.

        Without a call, or after `forget`, the whole head is used; other heads do nothing here.
        """
        if (head := self._following()) is not None and (head.know(sequence, ids) or self._fresh):
            self._use_head()

    def idle(self, sequence: int) -> None:
        """Of a head that follows the text, use no rows for this sequence alone until `know` is called for it again."""
        if (head := self._following()) is not None and (head.idle(sequence) or self._fresh):
            self._use_head()

    def _following(self) -> ContextHead | None:
        """The head in use where it follows the text."""
        order, base = self.model.head_ids, self.model.head_base
        if not base or order is None:
            return None
        if self._head is None:
            self._head = ContextHead(order.numpy(), base, self.model.handle.head_tile, len(self.lengths))
            self._fresh = True
        return self._head

    def forget(self) -> None:
        """Use the whole head again."""
        if self._head is not None:
            self._head = None
            self._use_head()

    def _use_head(self) -> None:
        self._fresh = False
        self._session.use_head(self._head.tiles if self._head else [])
        if self.model.head_ids is not None:
            self._map = self._head.ids if self._head else self.model.head_ids.numpy()

    def keep(self, length: int, nodes: Sequence[int]) -> None:
        """After a tree behind `length` tokens: keep those, and these of its nodes."""
        self._session.keep(length, list(nodes))

    def rollback(self, lengths: Sequence[int]) -> None:
        """Keep only the first lengths[b] tokens of each sequence."""
        self._session.rollback(list(lengths))

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order.

        ValueError where one is not there or named twice; nothing has changed then.
        """
        check_selected(rows, len(self.lengths))
        self._session.select(list(rows))
        if self._head is not None:
            self._head.select(rows)
            self._use_head()

    def draft(self, counts: Sequence[int], ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Append ids[b] to sequence b and draft counts[b] tokens greedily, in passes that all share; all but the last
        draft of each are then cached, too. A sequence without a draft reads nothing.

        Where a head follows texts, each draft is of its own text's rows. FloatingPointError where logits hold NaN or
        infinity, ValueError for ids outside of the vocabulary or more than the context holds; nothing has changed then.
        """
        before = self.lengths
        for held, new, k in zip(before, ids, counts, strict=True):
            if k > 0 and self.max_length and (needed := held + len(new) + k - 1) > self.max_length:
                raise ValueError(f"the context holds {self.max_length} tokens, not {needed}")
        looks = self._looks(counts)
        drafts: list[list[int]] = self._session.draft([list(new) for new in ids], list(counts), self._map, looks)
        self.passes += max(map(len, drafts))
        unsound_at = next((b for b, tokens in enumerate(drafts) if tokens and tokens[-1] < 0), None)
        if unsound_at is not None:
            read = self.lengths[unsound_at]
            self.rollback(before)
            raise FloatingPointError(unsound("drafter", read))
        return drafts

    def _looks(self, counts: Sequence[int]) -> list[np.ndarray]:
        """Which rows of a head that follows several texts each looks at; of one without drafts any will do."""
        if self._head is None or len(counts) == 1 or not any(counts):
            return []
        found = [self._head.columns(text) if k > 0 else None for text, k in enumerate(counts)]
        some = next(rows for rows in found if rows is not None)
        return [some if rows is None else rows for rows in found]


@cache
def shared_pool(threads: int) -> Any:
    """One pool for all sessions that take turns: the threads of two would spin against each other."""
    return new_pool(threads)


class Engine:
    """The native engine of one sequence: a model, and a Session of one sequence.

    `model` is a checkpoint folder (packed or plain), or a NativeModel that several engines share. One thread uses an
    engine at a time; two engines run side by side. Raises UserError where the model cannot run natively.
    """

    def __init__(
        self,
        model: str | Path | NativeModel,
        *,
        threads: int | None = None,
        kernels: str | None = None,
        pool: Any = None,
    ) -> None:
        self.model = model if isinstance(model, NativeModel) else native_model(locate(str(model)))
        self._session = Session(self.model, threads=threads, pool=pool, kernels=kernels)
        self.pool, self.max_length = self._session.pool, self._session.max_length

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._session.lengths[0]

    def forward(self, ids: Sequence[int], logits: int = 1, parents: Sequence[int] | None = None) -> Tensor:
        """Append `ids`; the float32 logits [logits, V] after the last of them (-inf outside of a trimmed head).

        With `parents`, `ids` are the last nodes of a tree behind the sequence, whose parent each is (-1: its end).
        Raises ValueError for ids outside of the vocabulary, or more than the context holds.
        """
        return self._session._run([list(ids)], [logits], None if parents is None else list(parents))

    def rollback(self, n: int) -> None:
        """Keep only the first `n` tokens."""
        self._session.rollback([n])

    def keep(self, length: int, nodes: Sequence[int]) -> None:
        """After a tree behind `length` tokens: keep those, and these of its nodes."""
        self._session.keep(length, nodes)

    def draft(self, k: int, last: int) -> list[int]:
        """The `k` likeliest tokens, one after the other, after the token `last`; all but the last are then cached.

        Raises FloatingPointError where logits hold NaN or infinity, ValueError where the context is too short.
        """
        return self._session.draft([k], [[last]])[0]

    def draft_sampled(self, k: int, last: int, sampling: Sampling, seed: int = 0) -> tuple[list[int], Tensor]:
        """`k` tokens drawn one after the other after `last`, and the distributions [k, V] that they were drawn from.

        All but the last are then cached. These are the drafts of the speculative loop, without a repetition penalty,
        which would need the text: UserError where `sampling` has one. FloatingPointError as in `draft`.
        """
        if sampling.repetition_penalty != 1:
            raise UserError("draft_sampled takes no repetition penalty: it does not know the text; leave it at 1.")
        dice, tokens, q = Dice(seed), [last], []
        for _ in range(k):
            logits = sound(self.forward([tokens[-1]]), "drafter", [self.length])
            q.append(probabilities(logits[0], sampling))
            tokens.append(dice.draw(q[-1]))
        return tokens[1:], torch.stack(q) if q else torch.empty(0, self.model.handle.vocabulary)
