"""Drafts of our engine for vLLM, without vLLM: they are the drafter's greedy text, however vLLM moves its requests."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import packed_folders
from sparsedraft.base.errors import UserError
from sparsedraft.integrations.vllm import Proposer
from sparsedraft.integrations.vllm.proposer import SETTING, Texts, own_pool
from sparsedraft.native import extension as native
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Session

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")
made = packed_folders.made  # fixture


def greedy(model: Any, text: list[int], count: int) -> list[int]:
    """What a fresh sequence drafts after `text`."""
    return Session(model).draft([count], [text])[0]


def test_drafts_follow_texts_that_grow_move_and_leave(made: Callable[..., tuple[Path, Path]]) -> None:
    model = native_model(made()[1])
    texts, dice = Texts(model, 3, own_pool()), random.Random(0)
    batch = [[dice.randrange(320) for _ in range(5 + 3 * i)] for i in range(3)]
    for step in range(12):
        asked = [None if dice.random() < 0.2 else text for text in batch]
        found = texts.draft(asked, 3)
        for text, drafts in zip(asked, found, strict=True):
            assert drafts == ([] if text is None else greedy(model, text, 3))
        for text, drafts in zip(batch, found, strict=True):  # some drafts are kept, and a token of the target's
            text += [*drafts[: dice.randrange(4)], dice.randrange(320)]
        if step % 4 == 3:  # a request ends, the last takes its row, and another comes
            batch[0] = batch.pop()
            batch.append([dice.randrange(320) for _ in range(4)])


def test_nothing_is_drafted_where_the_context_ends(made: Callable[..., tuple[Path, Path]]) -> None:
    model = native_model(made()[1])
    longest = Session(model).max_length
    assert longest
    texts = Texts(model, 1, own_pool())
    assert texts.draft([[5] * longest], 3) == [[]]
    assert len(texts.draft([[5] * (longest - 2)], 3)[0]) == 2


def test_a_token_that_the_drafter_does_not_have_ends_no_other_request(made: Callable[..., tuple[Path, Path]]) -> None:
    """A larger target may have some, and clients may send them as ids."""
    model = native_model(made()[1])
    texts, text = Texts(model, 2, own_pool()), [5, 7, 9]
    for ids in ([5, 320, 7], [1 << 20]):
        assert texts.draft([ids, text], 3) == [[], greedy(model, text, 3)]


def config(target: Path, settings: object) -> Any:
    """The fields of vLLM's configuration that the proposer reads."""
    return SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=3),
        model_config=SimpleNamespace(model=str(target), tokenizer=str(target), get_vocab_size=lambda: 320),
        scheduler_config=SimpleNamespace(max_num_seqs=2),
        device_config=SimpleNamespace(device=torch.device("meta")),  # no CPU: vLLM's sampling is not looked at
        additional_config=settings,
    )


def test_vllm_gets_drafts_for_rows_that_have_sampled(made: Callable[..., tuple[Path, Path]]) -> None:
    target, drafter = made()
    proposer = Proposer(config(target, {SETTING: str(drafter)}))
    whole = np.array([[5, 7, 9, 11, 0, 0], [3, 250, 0, 0, 0, 0]], np.int32)
    found = proposer.propose([[11], []], np.array([4, 2]), whole, slot_mappings=None)
    assert found == [greedy(native_model(drafter), [5, 7, 9, 11], 3), []]


def test_a_drafter_that_is_not_there_is_named(made: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    for settings in ({}, {SETTING: 3}, {SETTING: str(tmp_path / "none")}, None):
        with pytest.raises(UserError, match=r"additional_config has sparsedraft_drafter .*: give --additional-config"):
            Proposer(config(made()[0], settings))
