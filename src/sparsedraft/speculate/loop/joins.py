"""Speculative decoding of texts that come and go: they join between two steps, and leave as they end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.loop.decode import Decoder, new_sequence, room_after
from sparsedraft.speculate.loop.drafter import OpenDrafter
from sparsedraft.speculate.loop.sequence import Step, TokenSequence
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.writers.protocol.backend import OpenBackend


@dataclass
class OpenDecoder(Decoder):
    """A Decoder that texts `join` one by one, each with its own way to draw; `step` adds to all of them. Its backends
    and its drafter are to admit them.

    A step reads at most `piece` tokens of new prompts, so that the texts under way need not wait for all of a long one;
    None: whatever is new.
    """

    piece: int | None = None
    _open: list[TokenSequence] = field(default_factory=list, init=False)  # those that joined and have not ended
    _joined: int = field(default=0, init=False)
    _new: list[TokenSequence] = field(default_factory=list, init=False)  # of those, the ones without a step yet
    _k: int = field(default=1, init=False)  # what the policy said last
    _late: set[int] = field(default_factory=set, init=False)  # the indices of those whose drafter reads in pieces
    _read: TokenSequence | None = field(default=None, init=False)  # whose prompt is read ahead at this moment

    def join(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        seed: int,
        sampling: Sampling | None = None,
        stops: Stops | None = None,
        k: int | None = None,
        drafter: str | None = None,
        read_as: list[int] | None = None,
    ) -> TokenSequence:
        """Continue the prompt `ids`, beside the texts that are under way.

        Its steps have the index of what is returned, which is not to be changed. What is asked for is as in
        TokenSequence: with a constant `k` the text follows from the seed, whatever the policy learns and whatever runs
        beside it.

        UserError for a prompt that is empty or fills the target's context; ValueError where all rows are taken or
        there is no such drafter. Nothing has joined then.
        """
        room = room_after(self.target, ids, max_new_tokens)
        sequence = new_sequence(self._joined, [*ids], room, max_new_tokens, self.dice(seed))
        sequence.sampling, sequence.stops, sequence.k = sampling, stops, k
        sequence.drafter, sequence.read_as = drafter, read_as
        sequence.cached = cast(OpenBackend, self.target).admit(ids)
        if self.drafter is not None:
            try:
                cast(OpenDrafter, self.drafter).admit(sequence)
            except Exception:  # the texts under way are to go on
                self.target.select(range(len(self._open)))
                raise
        self._started, self._joined = True, self._joined + 1
        self._unread[sequence.index] = sequence.prompt if self._drafter_reads else 0
        self._open.append(sequence)
        self._new.append(sequence)
        return sequence

    def step(self) -> list[Step]:
        """One step of each text that has joined and not ended, in the order in which they joined, but for those whose
        prompts are still to be read (see `piece`); [] without any."""
        if not self._open:
            return []
        with self.around():
            if self.piece is not None:
                self._read_on(self.piece)
            new = [sequence for sequence in self._new if not sequence.waits]
            if all(sequence.waits for sequence in self._open):
                return []
            if new:
                self._begin(new, self._open)
            steps = self._step(self._open, new)
            self._new = [sequence for sequence in self._new if sequence.waits]
        self._keep_open([sequence for sequence in self._open if not sequence.finish_reason])
        return steps

    def _read_on(self, piece: int) -> None:
        """Where more than `piece` tokens are new, read so many of the oldest prompts; those that are not through wait.

        Then the drafter does the same for the oldest text that it is behind in and would draft for. A text whose K is
        constant waits for it, since where its drafts begin decides what is drawn.
        """
        room = piece
        for row, (sequence, held) in enumerate(zip(self._open, self.target.lengths, strict=True)):
            unread = len(sequence.tokens) - held
            sequence.waits = unread > max(1, room)
            if sequence.waits and room:
                ids = [sequence.tokens[held : held + room] if at == row else [] for at in range(len(self._open))]
                self._read = sequence
                self.target.forward(ids, [0] * len(ids))
                self._read = None
            room -= min(room, unread if unread > 1 else 0)
        wants = getattr(self.drafter, "wants", lambda _: True)
        slow = [
            (row, sequence)
            for row, sequence in enumerate(self._open)
            if not sequence.waits and self._unread[sequence.index] > piece and wants(sequence)
        ]
        behind = [(row, sequence) for row, sequence in slow if (self._k if sequence.k is None else sequence.k)]
        if behind:
            row, oldest = behind[0]
            self._read = oldest
            self._unread[oldest.index] = cast(OpenDrafter, self.drafter).read_on(oldest, row, piece)
            self._read = None
        for _, sequence in behind:
            constant = sequence.k is not None and len(sequence.tokens) == sequence.prompt
            sequence.waits = constant and self._unread[sequence.index] > piece
        for sequence in self._open:
            sequence.behind = self._unread[sequence.index] > piece
        self._late = {sequence.index for _, sequence in slow if sequence.behind}

    def suspects(self) -> list[int]:
        """After a step that raised: the indices of the texts that are the likely cause.

        That is the one whose prompt was read ahead; else those that began with the step; else all that took part.
        """
        going = [sequence.index for sequence in self._open if not sequence.waits]
        new = [sequence.index for sequence in self._new if not sequence.waits]
        return [self._read.index] if self._read is not None else new or going

    def recover(self) -> None:
        """After a step that raised: let the target forget what it read in it, so that the texts can go on."""
        self._read = None
        self.target.rollback([len(sequence.tokens) - 1 for sequence in self._open])

    def leave(self, index: int) -> None:
        """Give up the text of this index, if it is under way."""
        self._new = [sequence for sequence in self._new if sequence.index != index]
        self._keep_open([sequence for sequence in self._open if sequence.index != index])

    def _keep_open(self, going: list[TokenSequence]) -> None:
        """Only these go on; the rows of the others are free."""
        if len(going) == len(self._open):
            return
        if going:
            self._select(going, self._open)
        else:
            self.target.select([])
            if self.drafter is not None:
                self.drafter.select([])
        left = {sequence.index for sequence in self._open} - {sequence.index for sequence in going}
        self._unread = {index: count for index, count in self._unread.items() if index not in left}
        self._drafter_started -= left
        for index in left if self.drafter is not None else ():
            cast(OpenDrafter, self.drafter).leave(index)
        self._open = going

    def _limit(self, sequence: TokenSequence, k: int) -> int:
        """None while its prompt is read in pieces, or its drafter reads so."""
        self._k = k
        return 0 if sequence.waits or sequence.index in self._late else super()._limit(sequence, k)
