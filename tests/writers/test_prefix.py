"""A backend that remembers gives the logits of a fresh one, and reads a prompt once."""

import random

import torch

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import Decoder, generate
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.trees.drafter import TreeDrafter
from sparsedraft.writers.prefix import PrefixCache
from toys import Toy


def after(ids: list[int]) -> torch.Tensor:
    """Logits that depend on the whole text."""
    return torch.randn(8, generator=torch.Generator().manual_seed(hash(tuple(ids)) % 2**31))


class Drafting(Toy):
    """With a greedy draft in one call, as the native engine has it."""

    def draft(self, counts: list[int], ids: list[list[int]]) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in counts]
        unread = [new if k else [] for new, k in zip(ids, counts, strict=True)]
        while any(unread):
            logits = self.forward(unread, [int(bool(new)) for new in unread])
            for b, new in enumerate(unread):
                if new:
                    drafts[b].append(int(logits[b][0].argmax()))
                unread[b] = drafts[b][-1:] if new and len(drafts[b]) < counts[b] else []
        return drafts


def test_anything_in_any_order_equals_a_fresh_backend() -> None:
    rng, reused = random.Random(0), 0
    for _ in range(80):
        inside = Drafting(after)
        remembering = PrefixCache(inside)
        fed = 0
        for _ in range(6):
            remembering.begin()
            fresh = Drafting(after)
            for _ in range(rng.randrange(1, 8)):
                assert remembering.lengths == fresh.lengths
                length = fresh.lengths[0]
                what = rng.randrange(5) if length else 0
                if what == 0:
                    new = [rng.randrange(2) for _ in range(rng.randrange(1, 6))]
                    wanted = rng.randrange(1, len(new) + 1)
                    mine, theirs = (b.forward([new], [wanted])[0] for b in (remembering, fresh))
                    assert torch.equal(mine, theirs)
                elif what == 1:
                    to = rng.randrange(length + 1)
                    remembering.rollback([to]), fresh.rollback([to])
                elif what == 2:
                    new, k = [rng.randrange(2) for _ in range(rng.randrange(1, 4))], rng.randrange(1, 4)
                    assert remembering.draft([k], [new]) == fresh.draft([k], [new])
                else:
                    new, parents = [rng.randrange(2) for _ in range(4)], [-1, -1, 0, 2]
                    assert torch.equal(*(b.forward_tree(new, parents) for b in (remembering, fresh)))
                    nodes = rng.choice([[], [0], [1], [0, 2], [0, 2, 3]])
                    remembering.keep(length, nodes), fresh.keep(length, nodes)
            fed += fresh.fed
        reused += fed - inside.fed
    assert reused > 100, "some of it was taken up again"
    assert PrefixCache(Toy(after)).draft is None


def test_several_rows_of_which_some_are_forgotten_meanwhile() -> None:
    rng, reused = random.Random(1), 0
    for _ in range(80):
        n = rng.randrange(1, 5)
        inside = Drafting(after, n)
        remembering, fed = PrefixCache(inside), 0
        for _ in range(5):
            remembering.begin()
            fresh = Drafting(after, n)
            for _ in range(rng.randrange(1, 8)):
                lengths = fresh.lengths
                assert remembering.lengths == lengths
                what = rng.randrange(5)
                if what == 0 and any(lengths):
                    to = [rng.randrange(length + 1) for length in lengths]
                    remembering.rollback(to), fresh.rollback(to)
                elif what == 1 and len(lengths) > 1:
                    stay = sorted(rng.sample(range(len(lengths)), rng.randrange(1, len(lengths))))
                    remembering.select(stay), fresh.select(stay)
                elif what == 2:
                    new = [[rng.randrange(2) for _ in range(rng.randrange(1, 4))] for _ in lengths]
                    counts = [rng.randrange(4) for _ in lengths]
                    assert remembering.draft(counts, new) == fresh.draft(counts, new)
                else:
                    new = [[rng.randrange(2) for _ in range(rng.randrange(5))] for _ in lengths]
                    new[0] = new[0] or [1]
                    wanted = [rng.randrange(1, len(ids) + 1) if ids else 0 for ids in new]
                    pairs = zip(*(b.forward(new, wanted) for b in (remembering, fresh)), strict=True)
                    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
            fed += fresh.fed
        reused += fed - inside.fed
    assert reused > 100, "some of it was taken up again"


def test_cleared_it_reads_everything_again() -> None:
    model = Toy(after)
    cache = PrefixCache(model)
    cache.forward([[1, 2, 3, 4]], [1])
    cache.begin()
    before = model.fed
    cache.forward([[1, 2, 3, 5]], [1])
    assert model.fed - before == 1
    cache.clear()
    assert cache.lengths == model.lengths == [0]
    before = model.fed
    assert torch.equal(cache.forward([[1, 2, 3, 5]], [1])[0], Toy(after).forward([[1, 2, 3, 5]], [1])[0])
    assert model.fed - before == 4


def test_a_prompt_is_read_once_whatever_decodes_it() -> None:
    prompt = [i % 7 for i in range(50)]
    target, drafter = Toy(after), Toy(after)
    models, texts = (PrefixCache(target), PrefixCache(drafter)), []
    for k in (0, 1, 3, 5, 5):
        for model in models:
            model.begin()
        p, q = models
        proposes = TreeDrafter(q, Sampling(), 2) if texts and k == 5 else ModelDrafter(q, Sampling())
        decoder = Decoder(p, proposes if k else None, Constant(k), Sampling())
        texts.append(generate(decoder, prompt, 12).tokens)
        assert p.lengths == [50 + 12 - 1]
    assert all(text == texts[0] for text in texts)
    assert target.fed < 50 + 5 * 2 * 12 * 6 / 2 and drafter.fed < 50 + 4 * 12 * 6, "50 tokens each, and not 250"


def test_what_rows_have_room_for_is_told_before_texts_are_admitted() -> None:
    """The most that the rows held which they then get, though these may hold less by now."""
    rng, told = random.Random(2), 0
    inside = Toy(after, 3)
    cache, most = PrefixCache(inside), [0, 0, 0]
    for _ in range(60):
        cache.vacate()
        texts = [[rng.randrange(2) for _ in range(rng.randrange(1, 9))] for _ in range(rng.randrange(1, 6))]
        held = cache.held(texts)
        for ids in texts[:3]:
            cache.admit(ids)
        assert held == [most[row] for row in cache._selected] + [0] * (len(texts) - 3)
        cache.forward([ids[n:] for ids, n in zip(texts, cache.lengths, strict=False)], [1] * len(texts[:3]))
        most = [max(pair) for pair in zip(most, inside.lengths, strict=True)]
        cache.rollback([rng.randrange(length + 1) for length in cache.lengths])
        told += sum(map(bool, held))
    assert told > 100
