"""The target's logits over its answers: read once, the same for every drafter, and no more of them than fit."""

from pathlib import Path

import pytest
import torch

from sparsedraft.maths.sampling import Sampling
from sparsedraft.stages.evaluate.memo import TargetLogits
from sparsedraft.stages.evaluate.simulation import acceptance, acceptance_of
from sparsedraft.text.bins import fill
from sparsedraft.text.logits import answer_logits
from sparsedraft.text.sample import Sample
from sparsedraft.writers.loaded import LoadedModel

PAIRS = [([5, 6, 7], [8, 9, 10, 11]), ([12, 13], [14, 15]), ([5, 6, 7, 8], [9])]
WARM = Sampling(1.0)


@pytest.fixture(params=["native", "transformers"])
def side(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> LoadedModel:
    return LoadedModel.load(tiny_checkpoint, runtime=request.param)


def test_is_read_once_and_says_the_same_again(side: LoadedModel, tmp_path: Path, monkeypatch) -> None:
    (ids, answer), n = PAIRS[0], len(PAIRS[0][1])
    tokens = [*ids, *answer][:-1]
    first = TargetLogits(side, tmp_path / "kept").after(tokens, n)
    assert torch.equal(first, side.backend(1).forward([tokens], [n])[0])
    again = TargetLogits(side, tmp_path / "kept")  # as after a kill
    other = again.after(tokens, n - 1)
    assert other.shape[0] == n - 1 and torch.allclose(other, first[1:], atol=1e-4)
    monkeypatch.setattr(side, "cached_backend", lambda: pytest.fail("read twice"))
    assert torch.equal(again.after(tokens, n), first)


def test_sampled_acceptance_with_it_is_that_without(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    side = LoadedModel.load(tiny_checkpoint, runtime="transformers")
    q = LoadedModel.load(tiny_checkpoint, runtime="transformers").model
    with torch.no_grad():
        q.get_input_embeddings().weight += 0.3
    plain = dict(acceptance(q, PAIRS, side.model, WARM))
    kept = TargetLogits(side, tmp_path / "kept")
    for _ in range(2):
        found = dict(acceptance(q, PAIRS, side.model, WARM, reading=kept.packed))
        for i, (shares, stood) in plain.items():
            assert torch.equal(found[i].shares, shares) and torch.equal(found[i].ratios, stood)
            assert float(shares.min()) > 0 and float(shares.max()) < 1
        monkeypatch.setattr("sparsedraft.stages.evaluate.memo.answer_logits", lambda *_: pytest.fail("read twice"))
    alone = acceptance_of(side.backend(1), *PAIRS[0], kept.after, WARM, None, side.embedding_rows)
    assert alone.shares == pytest.approx(torch.ones(4), abs=1e-6), "it accepts what it drafts itself"


def test_keeps_no_more_than_it_may(tiny_checkpoint: Path, tmp_path: Path) -> None:
    side = LoadedModel.load(tiny_checkpoint, runtime="transformers")
    rows = [fill([Sample("", *pair)]) for pair in PAIRS]
    sizes = [len(pair[1]) * side.width * 4 for pair in PAIRS]
    folder = tmp_path / "kept"
    kept = TargetLogits(side, folder, most=sizes[0] + sizes[2])
    for row in rows * 2:
        assert torch.equal(kept.packed(side.model, row), answer_logits(side.model, row))
    files = sorted(file.stat().st_size for file in folder.iterdir())
    assert len(files) == 2 and sum(files) < sum(sizes) - sizes[1] + 2 * 200, "the second would not have fitted"
    more = TargetLogits(side, folder, most=sizes[0] + sizes[2])
    more.packed(side.model, rows[1])
    assert len(list(folder.iterdir())) == 2, "what lies there counts"
