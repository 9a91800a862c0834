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
from sparsedraft.integrations.vllm.drafting import Drafting
from sparsedraft.integrations.vllm.models import pair_of
from sparsedraft.integrations.vllm.settings import Settings
from sparsedraft.models import checkpoint
from sparsedraft.native import extension as native
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Session
from sparsedraft.speculate.drafters.suffixes import SuffixAutomaton
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.speculate.policy.policies import Auto
from tiny import build_llama
from tokens import built

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")
made = packed_folders.made  # fixture
LONGEST = 512


def config(target: Path, *, vocabulary: int = 320, rank: int = 0, rows: int = 3, **settings: object) -> Any:
    """The fields of vLLM's configuration that the proposer reads."""
    return SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=3),
        model_config=SimpleNamespace(
            model=str(target), tokenizer=str(target), get_vocab_size=lambda: vocabulary, max_model_len=LONGEST
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=rows),
        parallel_config=SimpleNamespace(rank=rank, tensor_parallel_size=2),
        device_config=SimpleNamespace(device=torch.device("meta")),  # no CPU: vLLM's sampling is not looked at
        additional_config={"sparsedraft": settings},
    )


def propose(proposer: Proposer, texts: list[list[int]], asleep: tuple[int, ...] = ()) -> list[list[int]]:
    """What vLLM gets for these texts, those `asleep` without a sampled token."""
    whole = np.full((len(texts) + 1, LONGEST), 7, np.int32)  # what lies behind a text is no part of it
    for row, text in enumerate(texts):
        whole[row, : len(text)] = text
    sampled = [[] if row in asleep else [text[-1]] for row, text in enumerate(texts)]
    return proposer.propose(sampled, np.array([*map(len, texts), 0]), whole, slot_mappings=None)


def greedy(folder: Path, text: list[int], count: int = 3) -> list[int]:
    """What a fresh sequence drafts after `text`."""
    return Session(native_model(folder)).draft([count], [text])[0]


def dice_of(seed: int) -> Callable[[int], list[int]]:
    dice = random.Random(seed)
    return lambda count: [dice.randrange(320) for _ in range(count)]


def test_drafts_follow_texts_that_grow_move_and_leave(made: Callable[..., tuple[Path, Path]]) -> None:
    target, drafter = made()
    proposer, dice, ids = Proposer(config(target, drafter=str(drafter))), random.Random(0), dice_of(1)
    batch = [ids(5 + 3 * i) for i in range(3)]
    for step in range(12):
        asleep = tuple(row for row in range(3) if dice.random() < 0.2)
        found = propose(proposer, batch, asleep)
        for row, (text, drafts) in enumerate(zip(batch, found, strict=True)):
            assert drafts == ([] if row in asleep else greedy(drafter, text))
        for text, drafts in zip(batch, found, strict=True):  # some drafts are kept, and a token of the target's
            text += [*drafts[: dice.randrange(4)], *ids(1)]
        if step % 4 == 3:  # a request ends, the last takes its row, and another comes that begins as one does
            batch[0] = batch.pop()
            batch.append(batch[0][:6] + ids(4))


def test_a_text_is_read_once_wherever_vllm_puts_it(made: Callable[..., tuple[Path, Path]]) -> None:
    target, drafter = made()
    proposer, ids = Proposer(config(target, drafter=str(drafter))), dice_of(2)
    assert proposer.drafting is not None
    batch, known = [ids(20), ids(20)], set()
    for _ in range(5):
        for text, drafts in zip(batch, propose(proposer, batch), strict=True):
            text += [*drafts[:1], *ids(1)]
        known |= {text.sequence.index for text in proposer.drafting._open}
        batch.reverse()
    assert len(known) == 2


def test_no_more_requests_than_rows_get_drafts(made: Callable[..., tuple[Path, Path]]) -> None:
    target, drafter = made()
    proposer, ids = Proposer(config(target, drafter=str(drafter), rows=2)), dice_of(3)
    batch = [ids(5), ids(6), ids(7)]
    for _ in range(3):
        assert propose(proposer, batch) == [greedy(drafter, batch[0]), greedy(drafter, batch[1]), []]
        for text in batch:
            text += ids(1)
    assert propose(proposer, batch[1:]) == [greedy(drafter, text) for text in batch[1:]]


def test_nothing_is_drafted_where_the_context_ends(made: Callable[..., tuple[Path, Path]]) -> None:
    target, drafter = made()
    longest = native_model(drafter).handle.max_length
    assert longest and longest <= LONGEST
    proposer = Proposer(config(target, drafter=str(drafter)))
    assert propose(proposer, [[5] * longest]) == [[]]
    assert len(propose(proposer, [[5] * (longest - 2)])[0]) <= 2


def test_a_token_that_the_drafter_does_not_have_ends_no_other_request(made: Callable[..., tuple[Path, Path]]) -> None:
    """A larger target may have some, and clients may send them as ids."""
    target, drafter = made()
    proposer, text = Proposer(config(target, drafter=str(drafter), vocabulary=400)), [5, 7, 9]
    assert propose(proposer, [[5, 399, 7], text])[1] == greedy(drafter, text)


def test_the_drafter_reads_its_window(made: Callable[..., tuple[Path, Path]]) -> None:
    target, drafter = made()
    proposer = Proposer(config(target, drafter=str(drafter), drafter_window=8, drafter_sinks=2))
    text = dice_of(4)(40)
    for _ in range(6):
        (drafts,) = propose(proposer, [text])
        assert drafts == greedy(drafter, Window(8, 2).of(text)) != greedy(drafter, text)
        text += [*drafts[:1], 9]


@pytest.mark.parametrize("beside", [False, True])
def test_look_up_drafts_what_followed_before(made: Callable[..., tuple[Path, Path]], beside: bool) -> None:
    target, drafter = made()
    settings = {"drafter": str(drafter), "lookup": True} if beside else {"drafter": "lookup"}
    proposer, period = Proposer(config(target, **settings)), dice_of(5)(11)
    text, copied = period * 2 + period[:4], 0
    for place in range(len(text), len(text) + 8):
        automaton = SuffixAutomaton()
        automaton.extend(text)
        (drafts,) = propose(proposer, [text])
        copied += drafts == automaton.continuation(3) != greedy(drafter, text)
        assert drafts in ([automaton.continuation(3), greedy(drafter, text)] if beside else [automaton.continuation(3)])
        text += [period[place % 11]]
    assert copied > 4


def test_auto_drafts_as_many_as_pay(made: Callable[..., tuple[Path, Path]]) -> None:
    """With a clock that is told what a step takes: 1 to draft a token, and 10 to verify any number."""
    target, drafter = made()
    settings, k = Settings(drafter=str(drafter)), {}
    for good in (True, False):
        now, ids = [0.0], dice_of(6)

        def clock(now: list[float] = now) -> float:
            return now[0]

        drafting = Drafting(pair_of(config(target), settings), Auto(8), most=8, rows=1, longest=LONGEST, clock=clock)
        model: Any = drafting.drafter.drafters["drafter"]
        whole, text, drafted = model._draft_natively, ids(9), []

        def slowly(counts: list[int], unread: list[list[int]], now: Any = now, whole: Any = whole) -> list[list[int]]:
            now[0] += sum(counts)
            return whole(counts, unread)

        model._draft_natively = slowly
        while len(text) < 100:
            drafts = drafting.drafts({0: np.array(text, np.int32)})[0]
            now[0] += 10
            drafted.append(len(drafts))
            text += [*(drafts if good else []), *ids(1)]
        k[good] = sum(drafted[-6:]) / 6
    assert k[True] > 4 and k[False] < 1


def test_drafts_cross_tokenizers(made: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    target, other = made()[0], built("gemma")
    model = build_llama(3, 1, vocab_size=len(other))
    checkpoint.save(model, other, tmp_path / "other", dtype=torch.float16)
    proposer, text = Proposer(config(target, drafter=str(tmp_path / "other"), uag="realign")), dice_of(7)(12)
    found = 0
    for _ in range(8):
        (drafts,) = propose(proposer, [text])
        found += len(drafts)
        assert all(0 <= token < 320 for token in drafts)
        text += [*drafts[:2], 40]
    assert found
    with pytest.raises(UserError, match=r"drafter .*other beside .*: .* different tokenizers .*: set uag to auto"):
        Proposer(config(target, drafter=str(tmp_path / "other"), uag="off"))


def test_one_of_the_processes_that_share_a_target_drafts(made: Callable[..., tuple[Path, Path]]) -> None:
    target, drafter = made()
    texts = [[5, 7, 9], [4, 4]]
    assert propose(Proposer(config(target, drafter=str(drafter), rank=1)), texts) == [[], []]
    assert propose(Proposer(config(target, drafter=str(drafter), rank=2)), texts) == [greedy(drafter, t) for t in texts]


def test_logits_that_are_not_numbers_end_drafts_alone(
    made: Callable[..., tuple[Path, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    target, drafter = made()
    proposer, text = Proposer(config(target, drafter=str(drafter))), [5, 7, 9]
    assert proposer.drafting is not None
    inner: Any = proposer.drafting.drafter.drafters["drafter"]
    whole = inner._draft_natively

    def broken(*_: object) -> list[list[int]]:
        raise FloatingPointError("the drafter's logits hold NaN")

    inner._draft_natively = broken
    assert propose(proposer, [text]) == [[]] and "hold NaN" in caplog.text
    inner._draft_natively = whole
    text += [11]
    assert propose(proposer, [text]) == [greedy(drafter, text)]


def test_settings_that_are_not_possible_are_named(made: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    target, drafter = made()
    name = str(drafter)
    for settings, sentence in (
        ({"drafter": 3}, r"sparsedraft: drafter 3 is not possible"),
        ({"drafter": str(tmp_path / "none")}, r"model .*none: no such folder"),
        ({"drafter": name, "drafter_windw": 9}, r"drafter_windw is not a known option; did you mean drafter_window"),
        ({"drafter": name, "drafter_window": 3}, r"drafter_window 3 is no more than the 4 tokens of drafter_sinks"),
        ({"drafter": name, "policy": "best"}, r"policy best is not known: choose one of constant, auto"),
        ({"drafter": name, "threads": 0}, r"threads 0 is not possible: give 1 to"),
        ({"drafter": "lookup", "lookup": True}, r"lookup and drafter_window go beside a model"),
    ):
        with pytest.raises(UserError, match=sentence):
            Proposer(config(target, **settings))
    for other in (None, {}, {"sparsedraft": "folder"}, {"sparsedraft_drafter": name}):
        whole = config(target)
        whole.additional_config = other
        with pytest.raises(UserError, match=r"additional_config has sparsedraft .*: give --additional-config"):
            Proposer(whole)
