"""Distillation without prompts, and by rewriting references; which rows are worth keeping; the page on the data."""

import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from sparsedraft.base.errors import UserError
from sparsedraft.base.journal import Journal, read_lines
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.ends import ends
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.distill import magpie, rewrite, verdict
from sparsedraft.stages.distill.clean import Cleaner, Rules
from sparsedraft.stages.distill.stage import distill
from sparsedraft.stages.report.stage import report
from sparsedraft.text import distilled, packing, prompts
from sparsedraft.text.packing import Sample
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.conversation import Responder
from sparsedraft.writers.protocol.requests import Completion, Request
from sparsedraft.writers.transformers.writer import TransformersWriter
from tiny import TEMPLATE


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"instruction": f"how many apples are left when {i} are eaten?", "output": f"three of {i} apples are left"}
        for i in range(6)
    ]
    said = [("user", "the quick"), ("assistant", "brown fox"), ("user", "and then?"), ("assistant", "a dog")]
    rows.append({"messages": [{"role": role, "content": content} for role, content in said]})
    file = tmp_path_factory.mktemp("prompts") / "alpaca.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


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
def test_verdicts(reference: str, answer: str, reason: str, why: str) -> None:
    assert verdict.verdict(reference, answer, reason) == why


@given(st.integers(-(10**7), 10**7))
def test_final_numbers_are_read_however_they_are_written(n: int) -> None:
    for text in (f"#### {n:,}", f"\\boxed{{{n}}}", f"The answer is: {n}.", f"${n}", f"{n} apples"):
        assert verdict.stated_number(text) == Fraction(n)
    assert verdict.final_number(f"first 5, then {n}") == Fraction(n)


def test_rewriting_keeps_the_reference_where_the_check_fails(
    tiny_checkpoint: Path, alpaca: Path, tmp_path: Path, monkeypatch
) -> None:
    def only_one_fails(reference: str, answer: str, reason: str) -> str:  # the tiny model writes noise
        return "refusal" if "of 1 " in reference else ""

    monkeypatch.setattr(rewrite, "verdict", only_one_fails)
    distill(str(tiny_checkpoint), str(alpaca), tmp_path / "out", mode="rewrite", max_new_tokens=6, top_k_logprobs=3)
    model, tokenizer = checkpoint.load(tiny_checkpoint), checkpoint.load_tokenizer(tiny_checkpoint)
    rows = {row["id"]: row for row in distilled.read(tmp_path / "out")}
    assert len(rows) == 8 and {row["mode"] for row in rows.values()} == {"rewrite"}
    kept = [row for row in rows.values() if row["source"] == "reference"]
    assert [row["messages"][-1]["content"] for row in kept] == ["three of 1 apples are left"]
    assert kept[0]["note"] == "refusal" and kept[0]["answer_ids"][-1] == 2
    assert tokenizer.decode(kept[0]["answer_ids"][:-1]) == "three of 1 apples are left"
    for row in rows.values():  # what is learnt is the task's answer: the reference is in no prompt
        assert row["prompt_ids"] == templates.chat_ids(tokenizer, row["messages"][:-1])
        assert "Reference answer" not in tokenizer.decode(row["prompt_ids"])
        scored = packing.logprobs(model, packing.pack([Sample("", row["prompt_ids"], row["answer_ids"])])).topk(3)
        assert scored.indices.flatten().tolist() == row["topk_ids"]
        assert torch.allclose(scored.values.flatten(), torch.tensor(row["topk_logprobs"]), atol=2e-3)
    second = next(row for row in rows.values() if row["turn"] == 1)
    assert second["messages"][1]["content"] == rows["6/0"]["messages"][-1]["content"]


def test_a_rewritten_turn_that_no_longer_fits_is_dropped(tiny_llama, tokenizer, alpaca: Path) -> None:
    prompt = prompts.read(str(alpaca))[-1]
    longest = len(templates.chat_ids(tokenizer, rewrite.with_reference(prompt).messages()[:1])) + 6
    engine = TransformersWriter(tiny_llama(), tokenizer, frozenset())
    writer = Responder(engine, tokenizer, Sampling(), 6, top_k_logprobs=2, context=longest)
    first, second = rewrite.rewrite(writer, [prompt])
    assert first["dropped"] == "" and first["answer_ids"] and first["source"] in ("rewritten", "reference")
    assert second["dropped"] == "no room in the context" and not second["answer_ids"]


def test_the_target_sees_the_reference_when_it_rewrites(tiny_checkpoint: Path, alpaca: Path, tmp_path: Path) -> None:
    distill(str(tiny_checkpoint), str(alpaca), tmp_path / "out", mode="rewrite", max_new_tokens=6, limit=3)
    model, tokenizer = checkpoint.load(tiny_checkpoint), checkpoint.load_tokenizer(tiny_checkpoint)
    asked = {p.id: p for p in prompts.read(str(alpaca))}
    for row in distilled.read(tmp_path / "out"):
        shown = rewrite.with_reference(asked[row["prompt_id"]])
        ids = templates.chat_ids(tokenizer, shown.messages())
        alone = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :].tolist()
        passed = alone[-1] == 2 and tokenizer.decode(alone[:-1]).strip()
        assert row["source"] == ("rewritten" if passed else "reference")
        assert row["note"] or row["answer_ids"] == alone


def test_magpie_prompts_are_sampled_behind_the_user_header(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    tokenizer = checkpoint.load_tokenizer(tiny_checkpoint)
    text, ids = magpie.header(tokenizer)
    assert text == "<|im_start|>user\n" and tokenizer.decode(ids) == text
    monkeypatch.setattr(magpie, "malformed", lambda said, reason, special: "" if len(said) > 8 else "too short")
    options = {"mode": "magpie", "max_new_tokens": 16, "limit": 12, "batch_size": 4}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        result = distill(str(tiny_checkpoint), None, tmp_path / name, seed=seed, **options)
        assert result["rows"] + sum(result["dropped"].values()) == 12 and result["prompts"] == 12
    a, b, c = (distilled.read(tmp_path / name) for name in "abc")
    asked = [row["messages"][0]["content"] for row in a]
    assert a == b and asked != [row["messages"][0]["content"] for row in c]
    assert len(set(asked)) == len(asked) and all(len(text) > 8 for text in asked)
    for row in a:  # the answer is the target's own to that prompt
        assert row["prompt_ids"] == templates.chat_ids(tokenizer, row["messages"][:-1])


def test_magpie_writes_no_prompt_beyond_what_may_stay(tiny_checkpoint: Path, monkeypatch) -> None:
    monkeypatch.setattr(magpie, "malformed", lambda said, reason, special: "" if reason == "eos" else "cut off")
    tokenizer, model = checkpoint.load_tokenizer(tiny_checkpoint), checkpoint.load(tiny_checkpoint)

    class Kept(TransformersWriter):
        def generate(self, requests: Sequence[Request], *more) -> Iterator[Completion]:
            asked.append(requests)
            return super().generate(requests, *more)

    engine, asked = Kept(model, tokenizer, ends(tiny_checkpoint, tokenizer), 4), list[Sequence[Request]]()

    def rows(longest: int, at_most: int) -> dict[str, list[int]]:
        """The prompts that stay of conversations written with `longest`."""
        writer = Responder(engine, tokenizer, Sampling(), 150)
        made = magpie.magpie(writer, magpie.wanted(24, ["the quick", ""]), Sampling(1.0), longest)
        stay = (row for row in made if not row["dropped"] and len(row["prompt_ids"]) <= at_most)
        return {row["id"]: row["prompt_ids"] for row in stay}

    lengths = sorted(len(ids) for ids in rows(0, 512).values())
    few = lengths[len(lengths) // 4]
    assert lengths[0] < few < 150, "else nothing is cut short"
    assert rows(0, few) == rows(few, few) != {}
    assert all(r.max_new_tokens == 150 for r in asked[0])
    assert all(len(r.prompt_ids) + r.max_new_tokens == few for r in asked[-2]), "the last call but its answers"


def test_every_special_token_counts(tiny_checkpoint: Path) -> None:
    tokenizer = checkpoint.load_tokenizer(tiny_checkpoint)
    tokenizer.add_tokens([AddedToken("<|role|>", special=True), AddedToken("roleless", special=False)])
    found = magpie.special_tokens(tokenizer)
    assert "<|role|>" not in tokenizer.all_special_tokens  # what transformers calls so: those with a role
    assert "<|role|>" in found and "roleless" not in found and found >= set(tokenizer.all_special_tokens)


class Scripted:
    """An engine that writes what it is told to, and keeps what it was asked."""

    name, eos_ids = "scripted", frozenset([2])

    def __init__(self, *, token_ids: list[int], text: str | None = None) -> None:
        self.token_ids, self.text = token_ids, text
        self.asked: list[Request] = []

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k_logprobs: int = 0
    ) -> Iterator[Completion]:
        self.asked += requests
        yield from (Completion(r.id, [*self.token_ids, 2], "eos", text=self.text) for r in requests)


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Words with their space before them, and a decoder that drops a text's first one, as Llama 2's and Mistral's."""
    words = ["<|pad|>", "<|im_start|>", "<|im_end|>", *(f"▁{w}" for w in ("Why", "is", "the", "sky", "blue", "user"))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<|pad|>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    made.chat_template = TEMPLATE
    return made


def test_magpie_asks_for_header_and_opening_and_joins_what_comes(tokenizer: PreTrainedTokenizerFast) -> None:
    spaced = spaced_tokenizer()
    words = spaced("the sky", add_special_tokens=False)["input_ids"]
    assert spaced.decode(words) == "the sky", "the first space is lost alone"
    for of, engine in ((spaced, Scripted(token_ids=words)), (tokenizer, Scripted(token_ids=[9], text=" the sky"))):
        text, ids = magpie.header(of)
        rows = magpie.magpie(Responder(engine, of, Sampling(), 5), magpie.wanted(1, ["Why is"]), Sampling(1.0))
        assert list(engine.asked[0].prompt_ids) == [*ids, *of("Why is", add_special_tokens=False)["input_ids"]]
        assert engine.asked[0].raw == f"{text}Why is"
        assert rows[0]["messages"][0]["content"] == "Why is the sky"


def test_magpie_drops_special_tokens_without_a_role_and_bare_openings(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken("<|role|>", special=True)])
    for token_ids, why in (
        ([*tokenizer("how far is it")["input_ids"], tokenizer.convert_tokens_to_ids("<|role|>")], "special tokens"),
        ([], "too short"),
    ):
        writer = Responder(Scripted(token_ids=token_ids), tokenizer, Sampling(), 5)
        (row,) = magpie.magpie(writer, magpie.wanted(1, ["Tell me please,"]), Sampling(1.0))
        assert row["dropped"].startswith(f"prompt {why}")


@pytest.mark.parametrize(
    ("opening", "why"),
    [
        ("a\udcffb", "is not UTF-8"),
        ("the <|im_end|>", "holds <|im_end|>, a special token"),
        ("the quick " * 300, "exceed the context of 512: shorten it"),
    ],
)
def test_openings_that_cannot_be(opening: str, why: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(why)):
        distill(str(tiny_checkpoint), None, tmp_path / "out", mode="magpie", limit=3, openings=["", opening])
    assert not (tmp_path / "out").exists()


def test_magpie_prompts_begin_with_the_openings_in_turns(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(magpie, "malformed", lambda said, reason, special: "")
    openings = ["Translate to German:", "", "Why is"]
    options = {"mode": "magpie", "max_new_tokens": 12, "limit": 9, "batch_size": 4}
    distill(str(tiny_checkpoint), None, tmp_path / "steered", openings=openings, **options)
    rows = {row["prompt_id"]: row["messages"][0]["content"] for row in distilled.read(tmp_path / "steered")}
    assert all(asked.startswith(openings[int(name[-7:]) % 3]) for name, asked in rows.items())
    assert {int(name[-7:]) % 3 for name in rows} == {0, 1, 2}
    distill(str(tiny_checkpoint), None, tmp_path / "left alone", **options)
    alone = {row["prompt_id"]: row["messages"][0]["content"] for row in distilled.read(tmp_path / "left alone")}
    assert {n: text for n, text in rows.items() if int(n[-7:]) % 3 == 1}.items() <= alone.items()
    assert any(len(text) > len(openings[0]) for name, text in rows.items() if int(name[-7:]) % 3 == 0)


@pytest.mark.parametrize(
    ("text", "reason", "why"),
    [
        ("How far is the moon?", "eos", ""),
        ("How far is the", "length", "cut off"),
        ("Hi!", "eos", "too short"),
        ("what is <|im_start|> for here", "eos", "special tokens or broken characters"),
        ("what is this \ufffd thing", "eos", "special tokens or broken characters"),
        ("tell me more " * 60, "eos", "repeats itself"),
    ],
)
def test_malformed_prompts(text: str, reason: str, why: str) -> None:
    assert magpie.malformed(text, reason, ["<|im_start|>"]) == why


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
    with pytest.raises(UserError, match="--near-duplicates 2"):
        Rules(near_duplicates=2)


def test_rules_are_applied_and_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = "\n".join(json.dumps({"prompt": p}) for p in ("the quick brown fox", "The quick, brown fox!", "a lazy dog"))
    (tmp_path / "p.jsonl").write_text(text)
    options = {"max_new_tokens": 4, "rules": Rules(near_duplicates=0.9)}
    result = distill(str(tiny_checkpoint), str(tmp_path / "p.jsonl"), tmp_path / "out", **options)
    assert result["rows"] == 2 and result["dropped"] == {"near-duplicate": 1} and result["prompts"] == 3
    with pytest.raises(UserError, match=r"not one row is left .*answer length 3"):
        distill(str(tiny_checkpoint), str(tmp_path / "p.jsonl"), tmp_path / "no", rules=Rules(min_answer_tokens=9999))


def test_one_bad_line_in_ten_thousand_is_named_or_skipped(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"question {i}"}) for i in range(10_000)]
    lines[6_543] = '{"prompt": '
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 6544: not JSON"):
        prompts.read(str(tmp_path / "p.jsonl"))
    bad: list[str] = []
    assert len(prompts.read(str(tmp_path / "p.jsonl"), bad)) == 9_999 and "line 6544" in bad[0]
    rows = [{"prompt": "ok"}, {"text": "?"}, {"prompt": "zq " * 400}, {"messages": [{"role": "robot", "content": "x"}]}]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"max_new_tokens": 8, "skip_bad": True}
    result = distill(str(tiny_checkpoint), str(tmp_path / "few.jsonl"), tmp_path / "out", **options)
    assert result["rows"] == 1 and result["skipped"] == 3
    rows = [{"instruction": "ok", "output": "yes"}, {"prompt": "no reference"}, {"instruction": "same", "output": ""}]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = distill(str(tiny_checkpoint), str(tmp_path / "mixed.jsonl"), tmp_path / "re", mode="rewrite", **options)
    assert result["rows"] == 1 and result["skipped"] == 2


def test_impossible_options_are_refused(tiny_checkpoint: Path, alpaca: Path, tmp_path: Path) -> None:
    def refused(message: str, source: str | None = "demo:train", **options: object) -> None:
        with pytest.raises(UserError, match=message):
            distill(str(tiny_checkpoint), source, tmp_path / "no", **{"limit": 4, **options})

    refused("--mode magpie writes the prompts itself", mode="magpie")
    refused("--mode respond needs PROMPTS", source=None)
    refused("needs --limit", source=None, mode="magpie", limit=None)
    refused("--opening 'Why' begins prompts", openings=["Why"])
    refused("--max-prompt-tokens 3 leaves nothing", source=None, mode="magpie", rules=Rules(max_prompt_tokens=3))
    refused("--prompt-temperature 0", source=None, mode="magpie", prompt_temperature=0.0)
    refused("has 0 reference answers to 1 turns", mode="rewrite")
    refused("--engine telepathy", engine="telepathy")
    refused("needs --url", engine="endpoint")
    refused("needs --engine endpoint", url="http://localhost:1/v1")
    for url in ("http://", "http://[::1", "http://localhost:99999/v1"):
        refused("is no http address", engine="endpoint", url=url)
    refused("--retry-wait inf is not possible", engine="endpoint", url="http://localhost:1", retry_wait=float("inf"))
    refused(
        "--top-k-logprobs 321 is more than the vocabulary", source=str(alpaca), mode="rewrite", top_k_logprobs=321,
        max_new_tokens=4,
    )  # fmt: skip
    refused("no http address", engine="endpoint", url="localhost:1")
    refused("cannot be had for rewritten", str(alpaca), engine="endpoint", url="http://localhost:1/v1", mode="rewrite",
            top_k_logprobs=2)  # fmt: skip


def test_end_of_turn_is_what_the_template_puts_there(tokenizer) -> None:
    assert templates.end_of_turn(tokenizer) == [2]
    gemma = copy.deepcopy(tokenizer)  # a turn that ends with something else than EOS
    gemma.add_tokens(["<end_of_turn>"])
    gemma.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<end_of_turn>")
    assert templates.end_of_turn(gemma) == gemma.convert_tokens_to_ids(["<end_of_turn>"])
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert templates.end_of_turn(bare) == [2]


@given(torn=st.binary(max_size=40).filter(lambda b: b"\n" not in b))
def test_a_torn_line_costs_itself_only(torn: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    journal = Journal(path)
    for name in "daf":
        row = {"prompt_id": name, "n": 1}
        journal.append({name: f"key of {name}"}, [row, {**row, "n": 2, "text": "ä\n\u2028"}])
    journal.append({"b": "key of b", "c": "key of c"}, [{"prompt_id": "c", "n": 3}, {"prompt_id": "b", "n": 4}])
    path.write_bytes(path.read_bytes() + torn)
    again = Journal(path)
    assert len(again) == 5 and "key of d" in again and "key of e" not in again and again.count("key of d") == 2
    again.append({"d": "key of d"}, [{"prompt_id": "d", "n": "twice"}])
    again.append({"e": "key of e"}, [{"prompt_id": "e", "n": 5}])
    found = Journal(path).rows(f"key of {name}" for name in "abcdx")
    assert [(r["prompt_id"], r["n"]) for r in found] == [("a", 1), ("a", 2), ("b", 4), ("c", 3), ("d", 1), ("d", 2)]
    assert len(read_lines(path)) == 5


def test_the_page_on_a_data_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    result = distill(str(tiny_checkpoint), "demo:train", out, max_new_tokens=12, limit=20, top_k_logprobs=4)
    before = sorted(p.name for p in out.iterdir())
    written = report(out)
    page, markdown = (Path(written[key]).read_text() for key in ("report", "markdown"))
    assert sorted(p.name for p in out.iterdir()) == sorted([*before, "report"])
    for text in (page, markdown):
        assert f"{result['rows']:,} rows" in text and f"{result['target_tokens']:,} answer tokens" in text
        assert text.count("<h3>" if text is page else "### ") == 10
        assert "4 likeliest tokens" in text
    assert page.count("<svg") == 2 and not re.search(r'(src|href)="http', page)
    assert report(out) == written
    size = sum(f.stat().st_size for f in out.glob("data-*.parquet")) / result["target_tokens"]
    assert f"{size:.0f} bytes on disk" in page


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("data-00000.parquet", lambda file: file.write_bytes(file.read_bytes()[:900])),
        ("result.json", lambda file: file.write_text("{")),
        ("result.json", lambda file: file.write_text("[" * 200_000)),
        ("result.json", lambda file: file.unlink()),
    ],
    ids=["torn", "no-json", "deep", "no-result"],
)
def test_a_damaged_data_folder_has_no_page_but_one_sentence(
    name: str, spoil: Callable[[Path], object], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    distill(str(tiny_checkpoint), "demo:train", tmp_path / "data", max_new_tokens=4, limit=4)
    spoil(tmp_path / "data" / name)
    with pytest.raises(UserError, match=r"distill it again|is no distilled data folder"):
        report(tmp_path / "data")
