"""Targets and drafters on a clock that only they move, whose right K the closed formula knows."""

import random
from collections import Counter
from collections.abc import Callable
from functools import cache

import torch

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.parallel import ParallelDrafter
from sparsedraft.speculate.loop.decode import Decoder, Generation
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.speculate.trees.drafter import TreeDrafter
from sparsedraft.stages.evaluate.speedup import expected_length, improvement_factor
from toys import Clock, Toy

GREEDY = Sampling()
RIGHT, WRONG, END = 1, 2, 3
Cost = Callable[[int], float]  # seconds of a pass over n new tokens


def flat(n: int) -> float:
    return 1.0


@cache
def logits(token: int) -> torch.Tensor:
    """Logits [8] that are all but certain of `token`. Read only."""
    return 20.0 * torch.eye(8)[token]


@cache
def coins(a: float, seed: int) -> tuple[bool, ...]:
    """5000 throws of which each is True with probability a."""
    rng = random.Random(seed)
    return tuple(rng.random() < a for _ in range(5000))


class World:
    """A target whose passes take v(n) seconds, a drafter that takes c a pass and is right with probability a.

    Each further token of a pass takes the drafter `read`, and its prompt, of 50 or more, takes `prompt`.
    """

    def __init__(
        self, a: float, c: float, v: Cost = flat, seed: int = 0, prompt: float = 0.0, read: float = 0.0
    ) -> None:
        self.clock, self.hits = Clock(), [*coins(a, seed)]
        self.target = Toy(self.next, clock=self.clock, cost=v)
        self.last = 0  # the place of the token that ends the text, if one does
        self.model = Toy(self.guess, clock=self.clock, cost=lambda n: c + read * (n - 1) + (prompt if n >= 50 else 0))
        self.branching, self.at_once = 1, False
        self.progress: list[tuple[int, float]] = []  # (tokens, seconds) after each step

    def next(self, ids: list[int]) -> torch.Tensor:
        return logits(END if len(ids) == self.last else RIGHT)

    def guess(self, ids: list[int]) -> torch.Tensor:
        return logits(RIGHT if self.hits[len(ids)] else WRONG)

    def write(self, policy: Policy, n: int, prompt: int = 1, seed: int = 0, room: int = 0) -> Generation:
        """An answer of n tokens; `room`: the most that it could have, if that is more."""
        drafter: ModelDrafter | TreeDrafter = ModelDrafter(self.model, GREEDY)
        if self.at_once:
            drafter = ParallelDrafter(self.model, GREEDY, 0)
        elif self.branching > 1:
            drafter = TreeDrafter(self.model, GREEDY, self.branching)
        self.last = prompt + n - 1 if n < room else 0
        decoder = Decoder(self.target, drafter, policy, GREEDY, frozenset({END}), clock=self.clock)
        made = Generation()
        for step in decoder.decode([[0] * prompt], max(n, room), [seed]):
            made.steps.append(step)
            made.tokens += step.emitted
            self.progress.append((len(made.tokens), self.clock.now))
        assert made.tokens == ([RIGHT] * (n - 1) + [END] if self.last else [RIGHT] * n), "lossless"
        return made


def drafted(made: Generation, last: int) -> Counter[int]:
    """Drafts a step, in the last steps, without the very last, which have no room."""
    return Counter(len(step.drafted) for step in made.steps[-last - 10 : -10])


def factor(a: float, k: int, c: float, v: Cost) -> float:
    """Tokens per second."""
    return improvement_factor(expected_length(a, k), k, c, v(k + 1))


class Moody(World):
    """A drafter that says how sure it is: `sure[n]` is its top probability after n tokens."""

    def __init__(self, sure: list[float], right: list[bool], c: float, v: Cost = flat) -> None:
        super().__init__(1.0, c, v)
        self.sure, self.right = sure, right

    def guess(self, ids: list[int]) -> torch.Tensor:
        out = torch.full((8,), (1 - self.sure[len(ids)]) / 7)
        out[RIGHT if self.right[len(ids)] else WRONG] = self.sure[len(ids)]
        return out.log()
