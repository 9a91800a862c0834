"""A model's caches: after any appends, roll-backs, selections and trees, logits are those of a fresh forward pass."""

import random

import pytest
import torch
import transformers as hf

from families import FAMILIES, GROUPED
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.transformers import masks
from sparsedraft.writers.transformers.abilities import Abilities, abilities
from sparsedraft.writers.transformers.backend import RAGGED, TransformersBackend
from tiny import build_llama, build_tokenizer

SLIDING_QWEN2 = hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=8, max_window_layers=1)
CONFIGS = {**FAMILIES, "qwen2 with sliding layers": SLIDING_QWEN2}
CONFIGS["gpt2"] = hf.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2)
CONFIGS["bloom"] = hf.BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
CONFIGS["mpt"] = hf.MptConfig(vocab_size=320, d_model=32, n_layers=2, n_heads=4, initializer_range=0.2)
UNMASKED = {"bloom", "mpt"}  # ALiBi: their positions come from a mask of 0 and 1, or from the slots
GREEDY = Sampling()


def build(family: str, attention: str | None = None) -> hf.PreTrainedModel:
    hf.set_seed(0)
    return hf.AutoModelForCausalLM.from_config(CONFIGS[family], attn_implementation=attention).eval()


@torch.no_grad()
def fresh(model, ids: list[int], n: int) -> torch.Tensor:
    """Logits after the last n of `ids`, from one pass over all of them."""
    return model(torch.tensor([ids])).logits[0, len(ids) - n :]


def close(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std()))


def words(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(3, 320) for _ in range(n)]


@pytest.mark.parametrize("family", CONFIGS)
def test_who_takes_masks(family: str) -> None:
    able = abilities(build(family))
    assert able.takes_back and able.pads and able.takes_masks == (family not in UNMASKED)


@pytest.mark.parametrize("family", CONFIGS)
def test_one_row_on_every_family(family: str) -> None:
    """Also beyond the window, and back before its beginning."""
    model, rng = build(family), random.Random(0)
    backend, held = TransformersBackend(model), []
    for _ in range(20):
        new = words(rng, rng.choice([1, 1, 2, 5, 20]))
        held += new
        n = rng.randint(1, len(new))
        (found,) = backend.forward([new], [n])
        close(found, fresh(model, held, n))
        kept = len(held) - rng.choice([0, 0, 1, 3, 18])
        backend.rollback([max(0, kept)])
        held = held[: max(0, kept)]
        assert backend.lengths == [len(held)]
    assert backend.passes == 20


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", [family for family in CONFIGS if family not in UNMASKED])
def test_rows_of_different_lengths(family: str, attention: str | None) -> None:
    """Appends of unequal numbers of tokens, none for some rows; roll-backs; rows that leave."""
    model, rng = build(family, attention), random.Random(1)
    backend, held = TransformersBackend(model, 5), [[] for _ in range(5)]
    for turn in range(14):
        new = [words(rng, 0 if turn and rng.random() < 0.2 else rng.choice([1, 1, 2, 6, 17])) for _ in held]
        if not any(new):
            continue
        held = [ids + more for ids, more in zip(held, new, strict=True)]
        counts = [rng.randint(1, len(more)) if more else 0 for more in new]
        for ids, n, found in zip(held, counts, backend.forward(new, counts), strict=True):
            assert len(found) == n
            if n:
                close(found, fresh(model, ids, n))
        held = [ids[: max(0, len(ids) - rng.choice([0, 0, 1, 4, 12]))] for ids in held]
        backend.rollback([len(ids) for ids in held])
        if turn % 4 == 3 and len(held) > 1:
            rows = sorted(rng.sample(range(len(held)), len(held) - 1))
            backend.select(rows)
            held = [held[b] for b in rows]
        assert backend.lengths == [len(ids) for ids in held]


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", [family for family in CONFIGS if family not in UNMASKED])
def test_trees_of_random_shapes(family: str, attention: str | None) -> None:
    """Grown in several passes; each node's logits are those of its branch; a path is kept, or none of it."""
    model, rng = build(family, attention), random.Random(2)
    backend, held = TransformersBackend(model), words(rng, 9)
    backend.forward([held], [1])
    for turn in range(8):
        tokens: list[int] = []
        parents: list[int] = []
        for _ in range(rng.randint(1, 3)):
            n = rng.randint(1, 5)
            for _ in range(n):
                parents.append(rng.randint(-1, len(parents) - 1))
                tokens.append(rng.randrange(3, 320))
            found = backend.forward_tree(tokens[-n:], parents)
            for node, logits in zip(range(len(tokens) - n, len(tokens)), found, strict=True):
                close(logits[None], fresh(model, held + branch(tokens, parents, node), 1))
        path: list[int] = []
        while turn % 4 != 3 and (below := [i for i, p in enumerate(parents) if p == (path[-1] if path else -1)]):
            path.append(rng.choice(below))
            if rng.random() < 0.2:
                break
        start = len(held)
        backend.keep(start, path)
        held += [tokens[node] for node in path]
        assert backend.lengths == [len(held)]
        if turn % 3 == 2:
            held = held[:-2]
            backend.rollback([len(held)])
        new = words(rng, rng.choice([1, 7]))
        held += new
        close(backend.forward([new], [len(new)])[0], fresh(model, held, len(new)))


def branch(tokens: list[int], parents: list[int], node: int) -> list[int]:
    return [] if node < 0 else [*branch(tokens, parents, parents[node]), tokens[node]]


def test_rows_of_very_different_lengths_take_two_passes() -> None:
    model, rng = build_llama(layers=2), random.Random(3)
    for lengths, passes in (((150, 3, 90), 2), ((RAGGED + 3, 3), 1), ((RAGGED + 6, 3), 2), ((200, 201), 1)):
        backend = TransformersBackend(model, len(lengths))
        ids = [words(rng, n) for n in lengths]
        counts = [1, 2, 1][: len(ids)]
        for row, n, found in zip(ids, counts, backend.forward(ids, counts), strict=True):
            close(found, fresh(model, row, n))
        assert backend.passes == passes


def test_what_is_read_ahead_is_there_though_no_logit_is_wanted() -> None:
    """Of one row while the others wait, and of rows of very different lengths."""
    model, rng = build_llama(layers=2), random.Random(4)
    held: list[list[int]] = [[], [], []]
    backend = TransformersBackend(model, 3)
    for lengths in ((RAGGED + 9, 0, 0), (0, 3, 0), (2, RAGGED + 20, 1)):
        new = [words(rng, n) for n in lengths]
        assert [len(found) for found in backend.forward(new, [0, 0, 0])] == [0, 0, 0]
        held = [[*before, *more] for before, more in zip(held, new, strict=True)]
        assert backend.lengths == [*map(len, held)]
    last = [words(rng, 1) for _ in held]
    for before, more, found in zip(held, last, backend.forward(last, [1, 1, 1]), strict=True):
        close(found, fresh(model, [*before, *more], 1))


def test_masks_by_hand() -> None:
    """Two rows: one token after three, and two after none; then a tree a(b c), d with a window."""
    mask = masks.ragged([3, 0], [1, 2])[:, 0].int().tolist()
    assert mask == [[[1, 1, 1, 1], [1, 1, 1, 1]], [[1, 0, 0, 0], [1, 1, 0, 0]]]
    assert masks.ragged([3], [2], window=2)[0, 0].int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert masks.tree(1, [-1, 0, 0, -1], 4)[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 0, 0, 1],
    ]  # fmt: skip
    assert masks.tree(2, [-1, 0, 0, -1], 2, window=2)[0, 0].int().tolist() == [[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 1]]
    assert masks.depths([-1, 0, 0, 1, -1]) == [0, 1, 1, 2, 0]


def test_a_model_that_takes_no_masks_decodes_one_prompt_and_no_tree() -> None:
    side = LoadedModel(build("bloom"), build_tokenizer(), frozenset({2}))
    pair = Pair.of(side, side, "auto", GREEDY)
    assert not pair.batches
    asked = pair.prompt_pair([5, 6, 7])
    made = generate(pair.decoder([asked], Constant(3), GREEDY), asked.target, 20)
    plain = Pair.of(side, None, "auto", GREEDY)
    assert made.tokens == generate(plain.decoder([asked], Constant(0), GREEDY), asked.target, 20).tokens
    assert all(step.accepted == len(step.drafted) for step in made.steps)
    with pytest.raises(UserError, match=r"--tree 2 needs one prompt at a time, .* attention that takes masks"):
        pair.decoder([asked], Constant(3), GREEDY, branching=2)
    with pytest.raises(UserError, match="takes no attention masks"):
        pair.decoder([asked, asked], Constant(3), GREEDY)


def test_a_tree_is_for_one_prompt() -> None:
    side = LoadedModel(build_llama(layers=1), build_tokenizer(), frozenset({2}))
    pair = Pair.of(side, side, "auto", GREEDY)
    assert pair.batches
    with pytest.raises(UserError, match="--tree 2 needs one prompt at a time"):
        pair.decoder([pair.prompt_pair([5])] * 2, Constant(3), GREEDY, branching=2)


def test_nan_weights_are_not_taken_for_a_model_that_takes_no_masks() -> None:
    """A tree of such a drafter is to fail by the model's name and the place, not for want of masks."""
    model = build("llama")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    assert abilities(model).takes_masks and Abilities(model).takes_masks
