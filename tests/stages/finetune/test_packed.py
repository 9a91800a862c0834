"""Attention text by text: that of the whole packed row, gradients too, and only where the mask says so."""

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sparsedraft.stages.finetune import packed
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.stages.finetune.packed import text_by_text, texts_of
from sparsedraft.text import bins
from sparsedraft.text.dropping import Dropping
from sparsedraft.text.parallel import lay_out
from training import samples


def mask(lengths: list[int]) -> torch.Tensor:
    parts = [torch.ones(n, n, dtype=torch.bool).tril() for n in lengths]
    return torch.block_diag(*parts).bool()[None, None]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_texts_of_a_mask_are_those_it_was_made_of(lengths: list[int]) -> None:
    assert texts_of(mask(lengths)) == [*pairwise(accumulate(lengths, initial=0))]


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), data=st.data())
def test_a_mask_that_differs_in_one_entry_is_of_no_texts_or_of_others(lengths: list[int], data: st.DataObject) -> None:
    other, n = mask(lengths), sum(lengths)
    place = data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))
    other[0, 0][place] ^= True
    texts = texts_of(other)
    assert texts is None or torch.equal(mask([end - start for start, end in texts]), other)


def test_masks_of_other_kinds_have_no_texts() -> None:
    causal = mask([8])
    window = causal & ~causal.tril(-4)
    for other in (causal.float(), causal[0], causal.expand(2, 1, 8, 8), causal[:, :, 4:], window, ~causal):
        assert texts_of(other) is None


def gradients(model: nn.Module, row: bins.Bin) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss, _ = Objective()(model.train(), row)
    loss.backward()
    return {"": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_and_gradients_are_those_of_the_whole_row(heads: int, dtype: torch.dtype, tiny_llama) -> None:
    model = tiny_llama(num_attention_heads=4, num_key_value_heads=heads).to(dtype)
    close = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    for count in (1, 5):
        row = bins.fill(samples(count))
        expected = gradients(model, row)
        with text_by_text():
            found = gradients(model, row)
        for name, gradient in expected.items():
            assert float((found[name] - gradient).norm()) <= close * float(gradient.norm()), name


def test_a_row_of_mask_tokens_is_as_before_and_so_is_everything_afterwards(tiny_llama) -> None:
    model, plain = tiny_llama(), ALL_ATTENTION_FUNCTIONS["sdpa"]
    row = lay_out(bins.fill(samples(4)), 319, Dropping(4, 0.7, 0.2), torch.Generator().manual_seed(0))
    expected = gradients(model, row)
    with text_by_text():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not plain
        found = gradients(model, row)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is plain


def test_it_runs_on_packed_rows(tiny_llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the same numbers: no layer of a packed row is given a mask."""
    masks, plain = [], ALL_ATTENTION_FUNCTIONS["sdpa"]

    def seen(module, query, key, value, mask, **how):  # type: ignore[no-untyped-def]
        masks.append(mask)
        return plain(module, query, key, value, mask, **how)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", seen)
    with text_by_text():
        Objective()(tiny_llama(), bins.fill(samples(3)))
    assert len(masks) == 3 * 4 and not any(isinstance(mask, torch.Tensor) for mask in masks)
    assert packed.FLOATS > 30, "the texts here are computed in float32"
