"""Which distilled rows are worth keeping."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from sparsedraft.base.errors import UserError
from sparsedraft.stages.distill.cleaner import Cleaner, Rules
from sparsedraft.text.prompts import Prompt
from stages import distill


def row(text: str = "one two three four five six", answer: str = "yes", **more: object) -> dict:
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    plain = {"prompt_id": text, "messages": chat, "answer_ids": [1] * 5, "prompt_ids": [1] * 9, "finish_reason": "eos"}
    return {**plain, **more}


def test_rules_each_drop_what_they_name_and_nothing_else() -> None:
    other = "Wie spät ist es denn jetzt eigentlich, und wo sind die anderen geblieben?"
    near = "the quick brown fox jumps over the lazy dog and then it sleeps the whole day long"
    cases = [
        (Rules(min_answer_tokens=6), row(), "answer length"),
        (Rules(max_answer_tokens=4), row(), "answer length"),
        (Rules(max_prompt_tokens=8), row(), "prompt length"),
        (Rules(drop_cut_off=True), row(finish_reason="length"), "cut off"),
        (Rules(drop_words=("sorry", "C++")), row(answer="So, SORRY."), "dropped word"),
        (Rules(drop_words=("C++",)), row(answer="use c++ here"), "dropped word"),
        (Rules(keep_words=("python",)), row(), "no wanted word"),
        (Rules(languages=("en",)), row(other, other), "language"),
    ]
    for rules, bad, why in cases:
        assert Cleaner(rules).reason(bad) == why
        assert Cleaner(Rules()).reason(bad) == ""
    assert Cleaner(Rules()).reason(row(answer="", answer_ids=[])) == "empty answer", "nothing to learn from"
    assert Cleaner(Rules(drop_words=("or",))).reason(row(answer="for more")) == "", "whole words only"
    cleaner = Cleaner(Rules(near_duplicates=0.7))
    assert [cleaner.reason(row(t)) for t in (near, near + " indeed", "something else entirely is asked here now")] == [
        "", "near-duplicate", "",
    ]  # fmt: skip
    assert cleaner.reason(row(near, answer="another sample of the same prompt")) == ""
    for similarity in (0.01, 0.99, 1.0):
        cleaner = Cleaner(Rules(near_duplicates=similarity))
        assert [cleaner.reason(row(t, a)) for t, a in ((near, "a"), (near.title() + ".", "b"))] == [
            "",
            "near-duplicate",
        ]
    assert cleaner.reason(row(near + " indeed")) == ""
    twice = Cleaner(Rules())
    assert [twice.reason(r) for r in (row(), row(answer="Yes!"), row(answer="no"))] == ["", "exact duplicate", ""]
    held_out = Cleaner(Rules(), [Prompt("e", ("what is the capital of france then",))])
    assert held_out.reason(row("What is the capital of France, then?")) == "evaluation text"
    with pytest.raises(UserError, match="--languages xx"):
        Rules(languages=("xx",))
    with pytest.raises(ValidationError, match="near_duplicates"):
        Rules(near_duplicates=2)


def test_rules_are_applied_and_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = "\n".join(json.dumps({"prompt": p}) for p in ("the quick brown fox", "The quick, brown fox!", "a lazy dog"))
    (tmp_path / "p.jsonl").write_text(text)
    options = {"max_new_tokens": 4, "rules": Rules(near_duplicates=0.9)}
    result = distill(str(tiny_checkpoint), str(tmp_path / "p.jsonl"), tmp_path / "out", **options)
    assert result["rows"] == 2 and result["dropped"] == {"near-duplicate": 1} and result["prompts"] == 3
    with pytest.raises(UserError, match=r"not one row is left .*answer length 3"):
        distill(str(tiny_checkpoint), str(tmp_path / "p.jsonl"), tmp_path / "no", rules=Rules(min_answer_tokens=9999))
