"""Random pairs, policies, trees, stops, warpers, ends, rows, contexts and seeds: speculation keeps its promises."""

import random
from dataclasses import dataclass, field

import pytest
import torch

from sparsedraft.maths.sampling import Sampling, penalised
from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.drafters.mixed import MixedDrafter
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.loop.decode import Decoder, Generation, generate_all
from sparsedraft.speculate.loop.drafter import Drafter
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.policy.policies import NAMES, Constant, policy_named
from sparsedraft.speculate.policy.protocol import Policy, SourcePolicy
from sparsedraft.speculate.policy.sources import WithLookup
from sparsedraft.speculate.trees.drafter import TreeDrafter
from sparsedraft.writers.transformers.backend import TransformersBackend
from tiny import build_llama, build_tokenizer
from toys import Clock, Table

TOKENIZER = build_tokenizer()
NEAR = 1e-4  # two best logits this close may change places where rows or trees are computed together


@dataclass
class Case:
    """What one decode is asked to do; everything follows from `seed`."""

    seed: int
    width: int
    prompts: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        rows = rng.choice([1, 1, 2, 3, 5])
        self.kind = rng.choice(["model", "model", "tree", "lookup", "map", "certain", "mixed"])
        if self.kind == "tree":
            rows = 1
        self.prompts = [[rng.randrange(self.width) for _ in range(rng.choice([1, 2, 5, 11]))] for _ in range(rows)]
        self.seeds = [rng.randrange(1000) for _ in range(rows)]
        self.n = rng.choice([1, 2, 7, 12, 20])
        self.eos = frozenset(rng.randrange(self.width) for _ in range(rng.choice([0, 0, 1, self.width // 8])))
        self.context = rng.choice([None, None, 14, 20])
        self.drafter_context = rng.choice([None, None, 3, 12, 17])
        self.name = rng.choice(NAMES)
        self.k = rng.choice([1, 2, 3, 5, 9])
        self.branching, self.tree_width = rng.choice([1, 2, 3]), rng.choice([1, 2, 3])
        letters = "abcdefghijklmnopqrstuvwxyz"
        strings = [rng.choice(letters) for _ in range(rng.choice([0, 0, 1, 2]))]
        self.stops = Stops(TOKENIZER, strings) if strings else None
        greedy = rng.random() < 0.6
        self.sampling = Sampling(
            0.0 if greedy else rng.choice([0.3, 1.0, 1.7]),
            rng.choice([0, 0, 1, 4]),
            rng.choice([1.0, 1.0, 0.8, 0.1]),
            rng.choice([0.0, 0.0, 0.1, 0.9]),
            rng.choice([1.0, 1.0, 1.3, 0.8]),
        )
        self.share = rng.choice([0.0, 0.6, 0.9, 1.0])  # how much of the target the drafter is

    def policy(self) -> Policy:
        policy = policy_named(self.name, self.k)
        return WithLookup(policy) if self.kind == "mixed" else policy

    def mapped(self) -> VocabularyMap:
        rng = random.Random(self.seed)
        common = sorted(rng.sample(range(self.width), self.width * 2 // 3))
        own = rng.sample(range(self.width), len(common))
        return VocabularyMap(torch.tensor(common), torch.tensor(own), self.width)

    def drafter(self, backend, policy: Policy) -> Drafter:
        if self.kind == "lookup":
            return PromptLookup()
        if self.kind == "tree":
            return TreeDrafter(backend, self.sampling, self.branching, self.tree_width)
        if self.kind == "map":
            both = self.mapped()
            own = both.inverse()
            return ModelDrafter(
                backend, self.sampling, read=lambda row: [own.get(token, 0) for token in row.tokens], vocabulary=both
            )
        certain = self.kind == "certain"
        model = ModelDrafter(backend, self.sampling, confident=policy.confident, certain=certain)
        return MixedDrafter(model, policy.choose) if isinstance(policy, SourcePolicy) else model


class Tables:
    """Pairs of tables, whose logits do not depend on the company: there are no near-ties."""

    width = 40

    def target(self, case: Case, rows: int, clock: Clock | None = None) -> Table:
        table = Table(case.seed % 40, self.width, rows, max_length=case.context, clock=clock)
        table.cost = lambda n: 1 + case.seed % 3 * 0.1 * n
        return table

    def drafter(self, case: Case, rows: int, clock: Clock) -> Table:
        table = Table(1000 + case.seed % 40, self.width, rows, max_length=case.drafter_context, clock=clock)
        table.cost = lambda n: (0.02, 0.3, 1.0)[case.seed % 3]
        return table.mixed_with(Table(case.seed % 40, self.width), case.share)

    def gap(self, case: Case, ids: list[int]) -> float:
        return float("inf")


class Llamas:
    """Random llamas of width 16 with one or two layers."""

    width = 320

    def __init__(self) -> None:
        size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
        self.models = {
            (seed, layers, context): build_llama(seed, layers, max_position_embeddings=context or 512, **size)
            for seed in (0, 1)
            for layers in (1, 2)
            for context in (None, 3, 12, 14, 17, 20)
        }

    def target(self, case: Case, rows: int, clock: Clock | None = None) -> TransformersBackend:
        return TransformersBackend(self.models[0, 2, case.context], rows)

    def drafter(self, case: Case, rows: int, clock: Clock) -> TransformersBackend:
        seed, layers = (0, 2) if case.share > 0.7 else (0, 1) if case.share > 0.5 else (1, 1)
        return TransformersBackend(self.models[seed, layers, case.drafter_context], rows)

    def gap(self, case: Case, ids: list[int]) -> float:
        """Between the target's two best logits after `ids`, penalties aside."""
        logits = TransformersBackend(self.models[0, 2, None]).forward([ids], [1])[0]
        best = penalised(logits, case.sampling, ids)[0].topk(2).values
        return float(best[0] - best[1])


def decoded(world, case: Case, rows: list[int], policy: Policy | None) -> list[Generation]:
    """The rows of the case together; `policy` None: by the target alone."""
    clock = Clock()
    drafter = case.drafter(world.drafter(case, len(rows), clock), policy) if policy is not None else None
    decoder = Decoder(
        world.target(case, len(rows), clock), drafter, policy or Constant(0), case.sampling, case.eos, case.stops, clock
    )
    if isinstance(world, Llamas):
        decoder.clock = lambda: float(next(ticks))
        ticks = iter(range(10**6))
    return generate_all(decoder, [case.prompts[b] for b in rows], case.n, [case.seeds[b] for b in rows])


def check_form(case: Case, row: int, made: Generation) -> None:
    """What holds of any text, whatever was drawn."""
    prompt, tokens = case.prompts[row], made.tokens
    room = case.n if case.context is None else min(case.n, case.context - len(prompt))
    assert tokens == [token for step in made.steps for token in step.emitted]
    assert 1 <= len(tokens) <= room
    left = room
    for step in made.steps:
        most = case.k * (WithLookup.LONGER if case.kind == "mixed" else 1)
        assert step.row == row and len(step.drafted) <= min(most, left - 1)
        assert step.accepted <= len(step.drafted) and len(step.emitted) - 1 <= step.accepted <= len(step.emitted)
        if case.kind != "tree":
            assert step.emitted[: step.accepted] == step.drafted[: step.accepted]
        left -= len(step.emitted)
    assert not set(tokens[:-1]) & case.eos, "nothing comes after the end"
    ended = tokens[-1] in case.eos
    stopped = case.stops is not None and case.stops.first([*prompt, *tokens], len(tokens), 1) is not None
    if case.stops is not None:
        assert case.stops.first([*prompt, *tokens[:-1]], len(tokens) - 1, len(tokens) - 1) is None
    expected = "eos" if ended else "stop" if stopped else "length" if len(tokens) == case.n else "context"
    assert made.finish_reason == expected and (ended or stopped or len(tokens) == room)


def run(world, seeds: range) -> tuple[int, int, int]:
    """(near-ties that changed a text, drafts accepted, drafts rejected)"""
    ties = accepted = rejected = 0
    for seed in seeds:
        case = Case(seed, world.width)
        if case.context is not None:
            case.prompts = [prompt[: case.context - 1] for prompt in case.prompts]
        rows = list(range(len(case.prompts)))
        together = decoded(world, case, rows, case.policy())
        for b, made in zip(rows, together, strict=True):
            check_form(case, b, made)
            accepted += sum(step.accepted for step in made.steps)
            rejected += sum(len(step.drafted) - step.accepted for step in made.steps)
        if case.sampling.greedy:
            alone = [decoded(world, case, [b], None)[0] for b in rows]
        elif case.name == "constant" and case.kind != "mixed":
            alone = [decoded(world, case, [b], case.policy())[0] for b in rows]
        else:
            alone = decoded(world, case, rows, case.policy())  # the seed decides everything
        for prompt, made, own in zip(case.prompts, together, alone, strict=True):
            if (made.tokens, made.finish_reason) == (own.tokens, own.finish_reason):
                continue
            assert isinstance(world, Llamas), f"seed {seed}"
            if case.sampling.greedy:
                at = next(i for i, (a, b) in enumerate(zip(made.tokens, own.tokens, strict=False)) if a != b)
                assert world.gap(case, [*prompt, *own.tokens[:at]]) < NEAR, f"seed {seed}"
            ties += 1
    return ties, accepted, rejected


@pytest.mark.parametrize("part", range(4))
def test_tables(part: int) -> None:
    ties, accepted, rejected = run(Tables(), range(part * 225, (part + 1) * 225))
    assert ties == 0 and accepted > 150 and rejected > 150


def test_llamas() -> None:
    """Sampled texts may differ where a float is a hair off; that is as rare as a near-tie."""
    ties, accepted, rejected = run(Llamas(), range(10_000, 10_125))
    assert ties <= 1 and accepted > 50 and rejected > 50
