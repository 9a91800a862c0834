"""Distillation without prompts: the target writes them, too."""

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.stages.distill import magpie
from sparsedraft.text import dataset
from sparsedraft.writers.conversation import Responder
from sparsedraft.writers.protocol.requests import Completion, Request
from sparsedraft.writers.transformers.writer import TransformersWriter
from stages import distill
from tiny import TEMPLATE


def test_magpie_prompts_are_sampled_behind_the_user_header(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    tokenizer = checkpoint.load_tokenizer(tiny_checkpoint)
    text, ids = magpie.header(tokenizer)
    assert text == "<|im_start|>user\n" and tokenizer.decode(ids) == text
    monkeypatch.setattr(magpie, "malformed", lambda said, reason, special: "" if len(said) > 8 else "too short")
    options = {"mode": "magpie", "max_new_tokens": 16, "limit": 12, "batch_size": 4}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        result = distill(str(tiny_checkpoint), None, tmp_path / name, seed=seed, **options)
        assert result["rows"] + sum(result["dropped"].values()) == 12 and result["prompts"] == 12
    a, b, c = (dataset.read(tmp_path / name) for name in "abc")
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

    engine, asked = Kept(model, tokenizer, end_ids(tiny_checkpoint, tokenizer), 4), list[Sequence[Request]]()

    def rows(longest: int, at_most: int) -> dict[str, list[int]]:
        """The prompts that stay of conversations written with `longest`."""
        writer = Responder(engine, tokenizer, Sampling(), 150)
        made = magpie.magpie(writer, magpie.blanks(24, ["the quick", ""]), Sampling(1.0), longest)
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
        rows = magpie.magpie(Responder(engine, of, Sampling(), 5), magpie.blanks(1, ["Why is"]), Sampling(1.0))
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
        (row,) = magpie.magpie(writer, magpie.blanks(1, ["Tell me please,"]), Sampling(1.0))
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
    rows = {row["prompt_id"]: row["messages"][0]["content"] for row in dataset.read(tmp_path / "steered")}
    assert all(asked.startswith(openings[int(name[-7:]) % 3]) for name, asked in rows.items())
    assert {int(name[-7:]) % 3 for name in rows} == {0, 1, 2}
    distill(str(tiny_checkpoint), None, tmp_path / "left alone", **options)
    alone = {row["prompt_id"]: row["messages"][0]["content"] for row in dataset.read(tmp_path / "left alone")}
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
