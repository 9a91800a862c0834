"""Backends without weights: texts of known distribution, a clock that models move, and dice that try everything."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TypeVar

import torch
import transformers as hf
from torch import Tensor

from sparsedraft.maths.sampling import Sampling

T = TypeVar("T")


class Clock:
    """Seconds that pass only when something says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Toy:
    """A Backend whose logits [V] after a text are `after(text)`; a call with n new tokens a row takes `cost(n)`."""

    def __init__(
        self,
        after: Callable[[list[int]], Tensor],
        rows: int = 1,
        max_length: int | None = None,
        clock: Clock | None = None,
        cost: Callable[[int], float] = lambda n: 0.0,
    ) -> None:
        self.after, self.max_length, self.clock, self.cost = after, max_length, clock, cost
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.passes = self.fed = 0
        self.tree: int | None = None  # where an unfinished tree begins

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    def _count(self, counts: list[int]) -> None:
        self.passes += 1
        self.fed += sum(counts)
        if self.clock is not None:
            self.clock.now += self.cost(max(counts))

    def forward(self, ids: Sequence[Sequence[int]], logits: Sequence[int]) -> list[Tensor]:
        assert self.tree is None, "a tree was left in the cache"
        self._count([len(row) for row in ids])
        found = []
        for own, new, n in zip(self.ids, ids, logits, strict=True):
            assert n <= len(new), "logits of tokens that were not fed"
            own += new
            assert self.max_length is None or len(own) <= self.max_length, "more than the context was fed"
            found.append(self.rows_after(own, n))
        return found

    def rows_after(self, ids: list[int], n: int) -> Tensor:
        """Logits [n, V] after the last n of `ids`."""
        return torch.stack([self.after(ids[:end]) for end in range(len(ids) - n + 1, len(ids) + 1)] or [torch.empty(0)])

    def forward_tree(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        (own,) = self.ids
        self._count([len(ids)])
        start = len(own) - (len(parents) - len(ids))
        assert self.tree in (None, start) and all(parent < i for i, parent in enumerate(parents))
        self.tree = start
        own += ids
        found = []
        for node in range(len(parents) - len(ids), len(parents)):
            path, at = [], node
            while at >= 0:
                path.append(own[start + at])
                at = parents[at]
            found.append(self.after([*own[:start], *reversed(path)]))
        return torch.stack(found)

    def keep(self, length: int, nodes: Sequence[int]) -> None:
        (own,) = self.ids
        self.ids = [own[:length] + [own[length + node] for node in nodes]]
        self.tree = None

    def rollback(self, lengths: Sequence[int]) -> None:
        assert all(0 <= n <= len(own) for own, n in zip(self.ids, lengths, strict=True))
        assert self.tree is None or lengths[0] <= self.tree
        self.ids = [own[:n] for own, n in zip(self.ids, lengths, strict=True)]
        self.tree = None

    def select(self, rows: Sequence[int]) -> None:
        assert 0 < len(rows) < len(self.ids)
        self.ids = [self.ids[b] for b in rows]


def after_all(ids: list[int], width: int) -> Tensor:
    """Logits [width] that depend on each token of the context and on its place."""
    seed = 1
    for token in ids:
        seed = (seed * 31 + token + 7) % 2_147_483_647
    return torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scripted(script: Callable[[int], int], rows: int = 1, width: int = 50, **options: object) -> Toy:
    """A Toy that goes on after any text of n tokens with `script(n)`."""
    eye = 20 * torch.eye(width)
    return Toy(lambda ids: eye[script(len(ids))], rows, **options)  # type: ignore[arg-type]


@cache
def random_table(seed: int, width: int, dtype: torch.dtype) -> Tensor:
    """Logits [width + 1, width + 1, width] after each two tokens, and after fewer. Read only."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(width + 1, width + 1, width, generator=generator, dtype=torch.float64) * 1.5).to(dtype)


class Table(Toy):
    """A Toy whose logits depend on the last two tokens, by a random table [V+1, V+1, V]."""

    def __init__(self, seed: int, width: int, *args: object, dtype: torch.dtype = torch.float32, **options: object):
        self.table = random_table(seed, width, dtype)
        super().__init__(lambda ids: self.rows_after(ids, 1)[0], *args, **options)  # type: ignore[arg-type]

    def rows_after(self, ids: list[int], n: int) -> Tensor:
        width = self.table.shape[-1]
        padded = [width, width, *ids[-n - 1 :]]
        return self.table[padded[len(padded) - n - 1 : -1], padded[len(padded) - n :]]

    def mixed_with(self, other: "Table", share: float) -> "Table":
        """Closer to `other`: a drafter that is accepted more often."""
        self.table = share * other.table + (1 - share) * self.table
        return self


def reference(logits: Tensor, sampling: Sampling, context: Sequence[int]) -> Tensor:
    """The distribution [V] that transformers' own processors make of logits [V] after `context`."""
    steps = hf.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if not sampling.greedy:
        steps.append(hf.TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            steps.append(hf.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            steps.append(hf.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            steps.append(hf.MinPLogitsWarper(sampling.min_p))
    scores = steps(torch.tensor([[*context]]), logits[None].clone())[0]
    if sampling.greedy:
        return torch.nn.functional.one_hot(scores.argmax(), len(scores)).to(scores.dtype)
    return scores.softmax(-1)


def likely(table: Table, prompt: Sequence[int], sampling: Sampling, length: int) -> dict[tuple[int, ...], float]:
    """The probability of every text of `length` tokens after `prompt`, by `reference`."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for text, chance in found.items():
            context = [*prompt, *text]
            after = reference(table.after(context), sampling, context).tolist()
            longer |= {(*text, token): chance * p for token, p in enumerate(after)}
        found = longer
    return found


class Chances:
    """Dice that take one path through all draws; `outcomes` leads them through every path."""

    def __init__(self) -> None:
        self.path: list[tuple[int, list[tuple[int, float]]]] = []  # which of (result, probability) at each throw
        self.rewind()

    def rewind(self) -> None:
        self.at, self.weight = 0, 1.0

    def _throw(self, options: list[tuple[int, float]]) -> int:
        if self.at == len(self.path):
            self.path.append((0, [option for option in options if option[1] > 0]))
        choice, known = self.path[self.at]
        self.at += 1
        result, probability = known[choice]
        self.weight *= probability
        return result

    def draw(self, distribution: Tensor) -> int:
        return self._throw([*enumerate(distribution.tolist())])

    def accepts(self, p: float, q: float) -> bool:
        assert q > 0, "a token was drafted that cannot be drawn"
        return bool(self._throw([(1, min(1.0, p / q)), (0, 1 - min(1.0, p / q))]))

    def advance(self) -> bool:
        """On to the next path; False after the last."""
        while self.path and self.path[-1][0] + 1 == len(self.path[-1][1]):
            self.path.pop()
        if not self.path:
            return False
        choice, options = self.path[-1]
        self.path[-1] = choice + 1, options
        return True


def outcomes(run: Callable[[Chances], T]) -> Iterator[tuple[T, float]]:
    """Every result of `run` with its probability, once for each path through its throws."""
    chances = Chances()
    going = True
    while going:
        chances.rewind()
        result = run(chances)
        assert chances.at == len(chances.path), "a path was left early"
        yield result, chances.weight
        going = chances.advance()


def chi_square(cells: Sequence[tuple[float, float]]) -> tuple[float, int]:
    """(statistic, degrees of freedom) of (seen, expected) counts of one multinomial; cells below 5 expected are one."""
    assert all(seen == 0 for seen, expected in cells if expected == 0), "something impossible was drawn"
    big = [cell for cell in cells if cell[1] >= 5]
    rest = [cell for cell in cells if cell[1] < 5]
    if big and rest and sum(expected for _, expected in rest) < 5:  # too little for a cell of its own
        rest.append(big.pop(min(range(len(big)), key=lambda i: big[i][1])))
    if rest:
        big.append((sum(seen for seen, _ in rest), sum(expected for _, expected in rest)))
    big = [cell for cell in big if cell[1] > 0]
    return sum((seen - expected) ** 2 / expected for seen, expected in big), max(0, len(big) - 1)


def p_value(statistic: float, degrees: int) -> float:
    """The chance that a chi-square of so many degrees of freedom exceeds the statistic."""
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
