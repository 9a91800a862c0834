"""A head that follows the text: the logits of what it looks at are those of the whole head, and it is lossless."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.native import extension
from sparsedraft.native.context_head import ContextHead
from sparsedraft.native.model import native_model
from sparsedraft.native.packed_folder import HEAD_BASE
from sparsedraft.native.session import Session
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.speculate.loop.decode import generate_all
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.writers.loaded import LoadedModel
from stages import distill, evaluate_to, pack
from timeless import timeless
from tiny import build_llama, build_tokenizer
from tokens import built

pytestmark = pytest.mark.skipif(not extension.is_built(), reason="the extension was not built")

BASE = 40  # tokens that are always looked at
HOW = [("bf16", True), ("int8", False), ("int4", True)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packed with the head as it is, and following the text, tied and not."""
    root = tmp_path_factory.mktemp("heads")
    found = {}
    checkpoint.save(build_llama(layers=2), build_tokenizer(), root / "source")
    distill(str(root / "source"), "demo:train", root / "data", limit=6, max_new_tokens=12)
    for weights, tied in HOW:
        model = build_llama(layers=2, tie_word_embeddings=tied)
        checkpoint.save(model, build_tokenizer(), root / f"{weights}-source")
        for follows in (False, True):
            out = found[f"{weights}-{follows}"] = root / f"{weights}-{follows}"
            how = {"head_tokens": BASE, "head_data": str(root / "data"), "head_follows": True} if follows else {}
            pack(str(root / f"{weights}-source"), out, weights=weights, **how)
    return found


def rows_of(folder: Path) -> set[int]:
    return {*load_file(folder / "model.safetensors")[HEAD_BASE].tolist()}


@pytest.mark.parametrize(("weights", "tied"), HOW)
def test_logits_of_what_it_looks_at(folders: dict[str, Path], weights: str, tied: bool) -> None:
    whole = Session(native_model(folders[f"{weights}-False"]), 2)
    model = native_model(folders[f"{weights}-True"])
    mine, texts = Session(model, 2), [[5, 250, 17, 301], [9, 8]]
    expected, found = whole.forward(texts, [3, 1]), mine.forward(texts, [3, 1])
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), "the whole head until a text is known"
    for b, ids in enumerate(texts):
        mine.know(b, ids)
    base, tile = rows_of(folders[f"{weights}-True"]), model.handle.head_tile
    assert len(base) == BASE
    for b, (a, logits) in enumerate(
        zip(whole.forward([[7], [6]], [1, 1]), mine.forward([[7], [6]], [1, 1]), strict=True)
    ):
        seen = torch.isfinite(logits)
        assert torch.equal(logits[seen], a[seen])
        tokens = {*seen[0].nonzero()[:, 0].tolist()}
        assert base | {*texts[b]} <= tokens and len(tokens) <= BASE + tile + len(texts[b]) * tile
        assert not {*texts[1 - b]} <= tokens, "the other text's rows are not its own"
    mine.select([1])
    whole.select([1])
    best = mine.forward([[3]], [1])[0]
    assert {*torch.isfinite(best)[0].nonzero()[:, 0].tolist()} == tokens
    mine.forget()
    assert torch.equal(mine.forward([[2]], [1])[0], whole.forward([[3, 2]], [1])[0])


def test_what_nothing_is_known_of_uses_the_whole_head(folders: dict[str, Path]) -> None:
    """Alone and beside a text that was told."""
    both, alone = (Session(native_model(folders["int8-True"]), rows) for rows in (2, 1))
    both.know(0, [5, 250])
    beside = both.forward([[5, 250], [9, 8]], [1, 1])[1]
    assert torch.isfinite(beside).all() and torch.equal(beside, alone.forward([[9, 8]], [1])[0])


def test_whole_drafts(folders: dict[str, Path]) -> None:
    """The engine's own drafts are the likeliest tokens that the text's head has."""
    model = native_model(folders["int8-True"])
    drafting, stepping = Session(model), Session(model)
    for session in (drafting, stepping):
        session.know(0, [5, 250, 300])
    tokens, ids = [], [5, 250, 300]
    for _ in range(6):
        tokens.append(int(stepping.forward([ids], [1])[0].argmax()))
        ids = tokens[-1:]
    assert drafting.draft([6], [[5, 250, 300]]) == [tokens]
    several = Session(model, 3)  # beside texts that look at other rows
    for row, known in enumerate(([319, 9], [5, 250, 300], [260])):
        several.know(row, known)
    assert several.draft([2, 6, 0], [[9], [5, 250, 300], [1]])[1] == tokens


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, top_k=50)], ids=str)
def test_texts_are_the_targets_own_whoever_else_is_decoded(folders: dict[str, Path], sampling: Sampling) -> None:
    target = LoadedModel.load(folders["int8-False"])
    plain = Pair.of(target, None, "auto", sampling)
    pair = Pair.of(target, LoadedModel.load(folders["int8-True"]), "auto", sampling)
    prompts = [[5, 250, 17], [9, 8, 301, 44, 200], [33]]
    asked = [pair.prompt_pair(ids) for ids in prompts]
    made = generate_all(pair.decoder(asked, Constant(3), sampling), prompts, 30, [1, 2, 3])
    for i, ids in enumerate(prompts):
        (alone,) = generate_all(pair.decoder([asked[i]], Constant(3), sampling), [ids], 30, [1 + i])
        assert alone.tokens == made[i].tokens
        if sampling.greedy:
            decoder = plain.decoder([plain.prompt_pair(ids)], Constant(0), sampling)
            assert generate_all(decoder, [ids], 30, [0])[0].tokens == made[i].tokens
    assert sum(step.accepted for one in made for step in one.steps) > 3


def test_the_simulation_has_the_loops_numbers(folders: dict[str, Path], tmp_path: Path) -> None:
    options = {"k": [1, 4], "max_new_tokens": 24, "limit": 4, "batch_size": 4}
    drafters = [("follows", str(folders["int8-True"]))]
    real, simulated = (
        evaluate_to(
            tmp_path / str(simulate),
            str(folders["int8-False"]),
            drafters,
            "demo:eval",
            options | {"simulate": simulate},
        )
        for simulate in (False, True)
    )
    assert timeless(real["drafters"]) == simulated["drafters"]


def test_transformers_reads_the_whole_head(folders: dict[str, Path]) -> None:
    models = [LoadedModel.load(folders[f"int8-{follows}"], runtime="transformers").model for follows in (True, False)]
    a, b = (model(torch.tensor([[5, 250, 17]])).logits for model in models)
    assert torch.equal(a, b)


@pytest.mark.parametrize("ids", [[5, 4], [3, 5000]])
def test_damaged(folders: dict[str, Path], tmp_path: Path, ids: list[int]) -> None:
    for file in folders["int8-True"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {HEAD_BASE: torch.tensor(ids, dtype=torch.int32)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"pack (it|the checkpoint) again"):
        native_model(tmp_path)


@pytest.mark.parametrize("route", ["same", "realign", "intersection", "tree"])
@pytest.mark.parametrize("window", [None, Window(12, 2)], ids=str)
def test_each_draft_looks_at_all_that_the_drafter_reads(
    folders: dict[str, Path], route: str, window: Window | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it drafts, the rows of every token of its context are in use."""
    target, drafter = LoadedModel.load(folders["int8-False"]), LoadedModel.load(folders["int8-True"])
    lacking, passes = [], []
    forward, draft = Session.forward, Session.draft

    def check(session: Session, ids: list[int]) -> None:
        if session.model is drafter.native:
            passes.append(len(ids))
            used = {*session._map.tolist()}
            lacking.extend(token for token in ids if token not in used)

    def watched(self, ids, logits):
        for text, wanted in zip(ids, logits, strict=True):
            if wanted:
                check(self, [*text])
        return forward(self, ids, logits)

    def watched_draft(self, counts, ids):
        for text, k in zip(ids, counts, strict=True):
            if k:
                check(self, [*text])
        return draft(self, counts, ids)

    monkeypatch.setattr(Session, "forward", watched)
    monkeypatch.setattr(Session, "draft", watched_draft)
    other = route in ("realign", "intersection")
    if other:
        target = LoadedModel(
            build_llama(layers=2, vocab_size=len(built("byte-level"))), built("byte-level"), frozenset()
        )
    pair = replace(Pair.of(target, drafter, route if other else "auto", Sampling()), window=window)
    prompt = target.tokenizer("the quick brown fox jumps over the lazy dog, and then?")["input_ids"]
    asked = pair.prompt_pair(prompt)
    decoder = pair.decoder([asked], Constant(4), Sampling(), branching=2 if route == "tree" else 1)
    generate_all(decoder, [prompt], 24, [0])
    assert sum(passes) > 20
    assert not lacking


def test_an_idle_text_looks_at_nothing_of_its_own(folders: dict[str, Path]) -> None:
    """Rows that wait for a text leave the others' head small; what a row was told is forgotten with its text."""
    session = Session(native_model(folders["int8-True"]), 2)
    whole = session.forward([[5], [6]], [1, 1])
    for row in (0, 1):
        session.idle(row)
        session.rollback([0, 0])
    base = session.forward([[5], [6]], [1, 1])
    seen = [int(logits.isfinite().sum()) for logits in base]
    assert max(seen) < whole[0].shape[1] and min(seen) >= BASE
    session.rollback([0, 0])
    session.know(0, [319])
    mine, other = session.forward([[5], [6]], [1, 1])
    assert torch.equal(mine[0, 319], whole[0][0, 319]) and int(other.isfinite().sum()) == seen[1]
    session.idle(0)
    session.rollback([0, 0])
    again = session.forward([[5], [6]], [1, 1])
    assert [int(logits.isfinite().sum()) for logits in again] == seen


def test_a_row_that_has_nothing_to_do_costs_nothing(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a text looks at is made for the rows that are asked for logits or drafts, and for no others."""
    session, made, own = Session(native_model(folders["int8-True"]), 3), list[int](), ContextHead.columns
    for row in range(3):
        session.know(row, [300 + row])
    session.forward([[5], [6], [7]], [0, 0, 0])
    alone = session.draft([0, 2, 0], [[], [9], []])
    session.rollback([1, 1, 1])
    monkeypatch.setattr(ContextHead, "columns", lambda self, text: made.append(text) or own(self, text))
    assert session.draft([0, 2, 0], [[], [9], []]) == alone and made == [1]
    session.forward([[3], [], [4]], [1, 0, 0])
    assert made == [1, 0]
