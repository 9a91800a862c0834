"""The loss in chunks of places is the loss of all places at once, and so are its gradients: every loss, in float64."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sparsedraft.models.miniature import build, shrunk
from sparsedraft.stages.finetune import chunks, losses
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.text import bins
from sparsedraft.text.dropping import Dropping
from sparsedraft.text.logits import answer_logits
from sparsedraft.text.parallel import lay_out
from sparsedraft.text.sample import Sample
from sparsedraft.writers.transformers.abilities import abilities
from training import samples

TOP = 5


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 7 places in parts of 3: the rows here have several, and the last one is not full."""
    monkeypatch.setattr(chunks, "PLACES", 7)
    monkeypatch.setattr(chunks, "ENTRIES", 3 * 320)


def rows(model: nn.Module, hard: bool = False) -> Iterator[bins.Bin]:
    """A row with stored log-probabilities (with `hard`, one answer without), and the same with mask tokens behind."""
    soft = []
    for sample in samples(4):
        with torch.no_grad():
            logprobs, ids = answer_logits(model, bins.fill([sample])).log_softmax(-1).topk(TOP)
        known = {"topk_ids": ids.numpy().astype(np.int32), "topk_logprobs": logprobs.numpy()}
        soft.append(replace(sample, **known))
    row = bins.fill([*soft, *samples(1, 9)] if hard else soft)
    yield row
    yield lay_out(row, 319, Dropping(4, 0.7, 0.2), torch.Generator().manual_seed(0))


def gradients(objective: Objective, model: nn.Module, row: bins.Bin, share: float) -> tuple[Any, ...]:
    """(loss, argmax hits, gradient by parameter) of twice the objective, so that the scale is not 1."""
    model.zero_grad()
    loss, _ = objective(model.train(), row, share)
    (2 * loss).backward()
    with torch.no_grad():
        _, agree = objective(model.eval(), row, share)
    return loss.detach(), int(agree), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


CASES = [("nll", "", 0.0), *product(losses.DIVERGENCES, ("stored", "some stored", "live"), (0.0, 0.3))]


@pytest.mark.parametrize(("name", "target", "weight"), CASES)
@pytest.mark.parametrize("trained", [True, False], ids=["head trained", "head frozen"])
def test_chunks_give_the_loss_and_gradients_of_all_places(
    name: str, target: str, weight: float, trained: bool, tiny_llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, teacher = tiny_llama(tie_word_embeddings=False).double(), tiny_llama(1).double()
    model.get_output_embeddings().weight.requires_grad_(trained)
    objective = Objective(name, teacher if target == "live" else None, weight)
    for row in rows(teacher, hard=target == "some stored"):
        share = objective.share([row])
        in_chunks = gradients(objective, model, row, share)
        with monkeypatch.context() as patch:
            patch.setattr(type(abilities(model)), "shows_head", False)  # so that logits are whole
            whole = gradients(objective, model, row, share)
        torch.testing.assert_close(in_chunks[0], whole[0], rtol=1e-12, atol=0)
        assert in_chunks[1] == whole[1] and in_chunks[2].keys() == whole[2].keys()
        for parameter, gradient in whole[2].items():
            torch.testing.assert_close(in_chunks[2][parameter], gradient, rtol=1e-9, atol=1e-12, msg=parameter)
        assert ("lm_head.weight" in whole[2]) == trained


@pytest.mark.parametrize("bias", [True, False])
def test_a_sum_of_chunks_has_the_gradients_that_finite_differences_have(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    tokens = torch.randint(0, 11, (9,), generator=generator)
    inputs = (random(9, 5), random(11, 5), random(11) if bias else None)

    def loss(*given: Any) -> torch.Tensor:
        return chunks.summed(*given, lambda logits, part: losses.nll(logits, tokens[part]) * len(tokens[part]), 4)

    assert torch.autograd.gradcheck(loss, inputs)


def test_logits_of_a_whole_row_are_never_there(tiny_llama) -> None:
    """No tensor of a training pass with a frozen head and a teacher has more rows of logits than a chunk."""
    row, largest = bins.fill(samples(30)), 0
    model, teacher = (tiny_llama(seed, vocab_size=4000, tie_word_embeddings=False) for seed in (0, 1))
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        end.weight.requires_grad_(False)
    assert len(row.tokens) > 100

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (4000,) and out.shape[0] != 64:  # not the head
                largest = max(largest, out.numel())
            return out

    with Largest():
        Objective("kl", teacher, 0.5)(model.train(), row)[0].backward()
    assert 0 < largest <= 7 * 4000


@pytest.mark.parametrize(("kind", "shows"), [("qwen2", True), ("gemma2", False), ("granite", False)])
def test_logits_that_are_capped_or_scaled_are_made_by_the_model_itself(kind: str, shows: bool) -> None:
    config = AutoConfig.for_model(kind, **({"logits_scaling": 8.0} if kind == "granite" else {}))
    model = build(AutoModelForCausalLM._model_mapping[type(config)], shrunk(config))
    assert abilities(model).shows_head == shows
    several = [Sample(str(n), [5, 6, 7 + n], list(range(8, 14 + n))) for n in range(3)]
    row = bins.fill(several)
    plain = losses.nll(answer_logits(model, row), row.tokens)
    torch.testing.assert_close(Objective()(model.train(), row)[0], plain)
    logits, _ = chunks.logits_in_chunks(model, row)
    torch.testing.assert_close(logits(slice(2, 9)), answer_logits(model, row)[2:9].detach())
