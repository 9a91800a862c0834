"""Drafts that the engine writes by itself."""

from pathlib import Path

import pytest
import torch
import transformers as hf

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Dice, Sampling, probabilities
from sparsedraft.native import extension as native
from sparsedraft.native.model import native_model
from sparsedraft.native.session import Engine, Session

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the extension was not built")


def saved(folder: Path) -> hf.LlamaForCausalLM:
    """A small llama, saved in `folder`; its context is 256."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=320, hidden_size=48, intermediate_size=104, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def ids_of(n: int) -> list[int]:
    return torch.randint(3, 320, (n,), generator=torch.Generator().manual_seed(n)).tolist()


def test_drafts_are_greedy(tmp_path: Path) -> None:
    saved(tmp_path)
    engine, text = Engine(tmp_path, threads=1), ids_of(9)
    expected = []
    last = text
    for _ in range(6):
        expected.append(int(engine.forward(last)[0].argmax()))
        last = [expected[-1]]
    engine.rollback(8)
    assert engine.draft(6, text[8]) == expected and engine.length == 14
    assert engine.draft(0, 1) == [] and engine.length == 14
    engine.rollback(0)  # several unread tokens, as after a step whose drafts were all accepted
    assert engine._session.draft([6], [text]) == [expected] and engine.length == 14


def test_drafts_of_several_rows_are_those_of_each_alone(tmp_path: Path) -> None:
    """In the same passes, however many each drafts; a row without a draft reads nothing."""
    saved(tmp_path)
    model, texts, counts = native_model(tmp_path), [ids_of(9), ids_of(5)[::-1], ids_of(7), ids_of(4)], [6, 2, 0, 4]
    together = Session(model, 4, threads=1)
    alone = [Session(model, threads=1) for _ in texts]
    for _ in range(3):
        drafts = together.draft(counts, texts)
        assert drafts == [one.draft([k], [ids])[0] for one, ids, k in zip(alone, texts, counts, strict=True)]
        assert together.lengths == [one.lengths[0] for one in alone] and together.lengths[2] == 0
        texts = [[tokens[-1]] if tokens else [5] for tokens in drafts]
    with pytest.raises(ValueError, match="the context holds 256 tokens, not 260"):
        together.draft([1, 250, 0, 0], texts)
    assert together.lengths == [one.lengths[0] for one in alone]


def test_drafts_are_sampled(tmp_path: Path) -> None:
    """As by hand: each from its own distribution, which is handed back; all of it follows from the seed."""
    saved(tmp_path)
    engine, text, sampling = Engine(tmp_path, threads=1), ids_of(9), Sampling(temperature=0.8, top_k=20, top_p=0.9)
    engine.forward(text[:-1])
    tokens, q = engine.draft_sampled(5, text[-1], sampling, seed=3)
    assert engine.length == 13 and len(set(tokens)) > 1
    engine.rollback(0)
    logits = engine.forward([*text, *tokens[:-1]], 5)
    assert torch.equal(q, probabilities(logits, sampling))
    dice = Dice(3)
    assert tokens == [dice.draw(each) for each in q]
    with pytest.raises(UserError, match="no repetition penalty"):
        engine.draft_sampled(5, 1, Sampling(temperature=1, repetition_penalty=1.1))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_draft_of_unsound_logits_is_refused(tmp_path: Path, poison: float) -> None:
    model = saved(tmp_path)
    model.model.norm.weight.data[3] = poison
    model.save_pretrained(tmp_path)
    with pytest.raises(FloatingPointError, match="the drafter's logits after 1 tokens hold NaN or infinity"):
        Engine(tmp_path, threads=1).draft(4, 7)
    engine = Engine(tmp_path, threads=1)
    for temperature in (0, 1):
        with pytest.raises(FloatingPointError, match="the drafter's logits after 1 tokens hold NaN or infinity"):
            engine.draft_sampled(2, 7, Sampling(temperature=temperature))
        engine.rollback(0)


def test_a_draft_beyond_the_context_changes_nothing(tmp_path: Path) -> None:
    saved(tmp_path)
    engine = Engine(tmp_path, threads=1)
    engine.forward(ids_of(250))
    with pytest.raises(ValueError, match="the context holds 256 tokens, not 257"):
        engine.draft(7, 3)
    assert engine.length == 250 and len(engine.draft(6, 3)) == 6
