"""Training with a window: every token of an answer once, behind what a drafter would read before it."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsedraft.base.jsonfiles import read_object
from sparsedraft.models import checkpoint
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.stages.finetune.options import Settings
from sparsedraft.stages.finetune.windowed import windowed
from sparsedraft.text.sample import Sample
from stages import distill, finetune, prune


@given(st.integers(2, 30), st.integers(0, 1), st.integers(1, 60), st.integers(1, 60))
def test_each_place_follows_its_context(size: int, sinks: int, prompt: int, answer: int) -> None:
    window, ids = Window(size, sinks), list(range(prompt + answer))
    soft = np.arange(answer)[:, None]
    sample = Sample("a", ids[:prompt], ids[prompt:], soft, -soft, prompt_id="p")
    found, at = [*windowed([sample], window)], prompt
    assert len({piece.id for piece in found}) == len(found) and {piece.prompt_id for piece in found} == {"p"}
    for piece in found:
        for i, token in enumerate(piece.answer_ids):
            assert token == at
            assert [*piece.prompt_ids, *piece.answer_ids[:i]] == window.of(ids[:at])
            assert piece.topk_ids[i] == at - prompt == -piece.topk_logprobs[i]
            at += 1
        assert len(piece.topk_ids) == len(piece.answer_ids)
    assert at == prompt + answer


def test_trains(tiny_llama, tokenizer, tmp_path: Path) -> None:
    checkpoint.save(tiny_llama(), tokenizer, tmp_path / "dense")
    dense = str(tmp_path / "dense")
    distill(dense, "demo:train", tmp_path / "data", max_new_tokens=24, limit=12, batch_size=6)
    prune(dense, tmp_path / "half", "demo:train", tokens=512, sequence_length=64)
    weights = {}
    for size in (0, 16):
        out = tmp_path / f"tuned-{size}"
        options = {"validation_prompts": 4, "drafter_window": size}
        finetune(
            str(tmp_path / "half"),
            str(tmp_path / "data"),
            out,
            settings=Settings(sequence_length=128, tokens=800),
            **options,
        )
        weights[size] = checkpoint.load(out).state_dict()
        assert ("window" in read_object(out / "provenance.json")["inputs"]) == bool(size)
    assert any(not torch.equal(weight, weights[16][name]) for name, weight in weights[0].items())
