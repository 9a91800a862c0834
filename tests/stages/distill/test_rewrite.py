"""Distillation by rewriting references: an answer that does not pass the check gives way to the reference."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.distill import rewrite, rewriting_faults
from sparsedraft.text import bins, dataset, logits, prompts
from sparsedraft.text.sample import Sample
from sparsedraft.writers.conversation import Responder
from sparsedraft.writers.transformers.writer import TransformersWriter
from stages import distill


@pytest.mark.parametrize(
    ("reference", "answer", "reason", "why"),
    [
        ("It is 12. #### 12", "So we get 12 apples.", "eos", ""),
        ("It is 12. #### 12", "So we get 13 apples.", "eos", "other final answer"),
        ("#### 1,200", "The answer is 1200.0", "eos", ""),
        (r"so \boxed{3/4}", "0.75", "eos", ""),
        ("42", "It was 40 and then 42.", "eos", ""),
        ("The answer is 7.", "I do not know", "eos", "other final answer"),
        ("Paris has 2 airports and many rivers.", "It has three.", "eos", ""),  # no final number is stated
        ("Paris.", "   ", "eos", "empty"),
        ("Paris.", "Paris is", "length", "cut off"),
        ("Paris.", "I'm sorry, but I can't help with that.", "eos", "refusal"),
        ("I cannot do that.", "I cannot do that, sorry.", "eos", ""),
        ("Paris.", "I can say that it is Paris.", "eos", ""),
        ("Paris.", "As the reference answer says, Paris.", "eos", "speaks of the reference"),
        ("See the reference manual.", "The reference manual has it.", "eos", ""),
    ],
)
def test_faults(reference: str, answer: str, reason: str, why: str) -> None:
    assert rewriting_faults.rewriting_fault(reference, answer, reason) == why


@given(st.integers(-(10**7), 10**7))
def test_final_numbers_are_read_however_they_are_written(n: int) -> None:
    for text in (f"#### {n:,}", f"\\boxed{{{n}}}", f"The answer is: {n}.", f"${n}", f"{n} apples"):
        assert rewriting_faults.stated_number(text) == Fraction(n)
    assert rewriting_faults.final_number(f"first 5, then {n}") == Fraction(n)


def test_rewriting_keeps_the_reference_where_the_check_fails(
    tiny_checkpoint: Path, alpaca: Path, tmp_path: Path, monkeypatch
) -> None:
    def only_one_fails(reference: str, answer: str, reason: str) -> str:  # the tiny model writes noise
        return "refusal" if "of 1 " in reference else ""

    monkeypatch.setattr(rewrite, "rewriting_fault", only_one_fails)
    distill(str(tiny_checkpoint), str(alpaca), tmp_path / "out", mode="rewrite", max_new_tokens=6, top_k_logprobs=3)
    model, tokenizer = checkpoint.load(tiny_checkpoint), checkpoint.load_tokenizer(tiny_checkpoint)
    rows = {row["id"]: row for row in dataset.read(tmp_path / "out")}
    assert len(rows) == 8 and {row["mode"] for row in rows.values()} == {"rewrite"}
    kept = [row for row in rows.values() if row["source"] == "reference"]
    assert [row["messages"][-1]["content"] for row in kept] == ["three of 1 apples are left"]
    assert kept[0]["note"] == "refusal" and kept[0]["answer_ids"][-1] == 2
    assert tokenizer.decode(kept[0]["answer_ids"][:-1]) == "three of 1 apples are left"
    for row in rows.values():  # what is learnt is the task's answer: the reference is in no prompt
        assert row["prompt_ids"] == templates.chat_ids(tokenizer, row["messages"][:-1])
        assert "Reference answer" not in tokenizer.decode(row["prompt_ids"])
        scored = logits.logprobs(model, bins.fill([Sample("", row["prompt_ids"], row["answer_ids"])])).topk(3)
        assert scored.indices.flatten().tolist() == row["topk_ids"]
        assert torch.allclose(scored.values.flatten(), torch.tensor(row["topk_logprobs"]), atol=2e-3)
    second = next(row for row in rows.values() if row["turn"] == 1)
    assert second["messages"][1]["content"] == rows["6/0"]["messages"][-1]["content"]


def test_a_rewritten_turn_that_no_longer_fits_is_dropped(tiny_llama, tokenizer, alpaca: Path) -> None:
    prompt = prompts.read(str(alpaca))[-1]
    longest = len(templates.chat_ids(tokenizer, rewrite.as_asked(prompt).messages()[:1])) + 6
    engine = TransformersWriter(tiny_llama(), tokenizer, frozenset())
    writer = Responder(engine, tokenizer, Sampling(), 6, top_k_logprobs=2, context=longest)
    first, second = rewrite.rewrite(writer, [prompt])
    assert first["dropped"] == "" and first["answer_ids"] and first["source"] in ("rewritten", "reference")
    assert second["dropped"] == "no room in the context" and not second["answer_ids"]


def test_the_target_sees_the_reference_when_it_rewrites(tiny_checkpoint: Path, alpaca: Path, tmp_path: Path) -> None:
    distill(str(tiny_checkpoint), str(alpaca), tmp_path / "out", mode="rewrite", max_new_tokens=6, limit=3)
    model, tokenizer = checkpoint.load(tiny_checkpoint), checkpoint.load_tokenizer(tiny_checkpoint)
    asked = {p.id: p for p in prompts.read(str(alpaca))}
    for row in dataset.read(tmp_path / "out"):
        shown = rewrite.as_asked(asked[row["prompt_id"]])
        ids = templates.chat_ids(tokenizer, shown.messages())
        alone = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :].tolist()
        passed = alone[-1] == 2 and tokenizer.decode(alone[:-1]).strip()
        assert row["source"] == ("rewritten" if passed else "reference")
        assert row["note"] or row["answer_ids"] == alone
