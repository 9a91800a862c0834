"""What servers call the end of an answer: ended, cut off, not the model's own, broken off, or not known."""

import json
from pathlib import Path
from typing import Any

import pytest

from faults import edited, proxied
from scripted import said, scripted
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.text import dataset
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.conversation import Responder, answer_all
from sparsedraft.writers.protocol.requests import Request
from sparsedraft.writers.server.endpoint import EndpointWriter
from sparsedraft.writers.server.server import Server
from stages import distill
from transformers_server import ASKED

MESSAGES = [{"role": "user", "content": "x"}]


def outputs(tokenizer: Any, url: str, count: int = 1, most: int = 16) -> list[Any]:
    engine = EndpointWriter(Server(url, retries=1, wait=0), "m", tokenizer)
    return list(engine.generate([Request(f"a{n}", [1], most, messages=MESSAGES) for n in range(count)], Sampling()))


@pytest.mark.parametrize(
    ("word", "means"),
    [("stop", "eos"), ("eos_token", "eos"), ("stop_sequence", "eos"), ("STOP", "eos"), ("length", "length"),
     ("MAX_TOKENS", "length"), ("model_length", "length")],
)  # fmt: skip
def test_an_end_is_learnt_and_a_cut_is_not(tokenizer, word: str, means: str) -> None:
    text = "the quick brown fox"
    ids = tokenizer(text)["input_ids"]
    with scripted(lambda asked: said(text, word, usage={"completion_tokens": 9})) as server:
        (output,) = outputs(tokenizer, server.url)
    assert output.finish_reason == means and output.token_ids == ([*ids, 2] if means == "eos" else ids)


@pytest.mark.parametrize("word", ["content_filter", "tool_calls", "function_call"])
def test_what_is_not_the_models_own_is_left_out_and_counted(talker: Path, tmp_path: Path, word: str) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("\n".join(json.dumps({"id": f"p{n}", "prompt": text}) for n, text in enumerate(ASKED[:4])))

    def answer(asked: dict[str, Any]) -> Any:
        cut = asked["messages"][0]["content"] == ASKED[2]
        return said("half of" if cut else f"yes, {asked['seed']}", word if cut else "stop")

    with scripted(answer) as server:
        options = {"engine": "endpoint", "url": server.url, "served_name": "m", "max_new_tokens": 16}
        result = distill(str(talker), str(source), tmp_path / "out", **options)
        assert result["rows"] == 3 and result["dropped"] == {f"finish reason {word}": 1}
        assert {row["prompt_id"] for row in dataset.read(tmp_path / "out")} == {"p0", "p1", "p3"}
        assert {row["finish_reason"] for row in dataset.read(tmp_path / "out")} == {"eos"}


@pytest.mark.parametrize("word", ["abort", "error", None])
def test_what_is_broken_off_is_asked_for_again(tokenizer, word: str | None) -> None:
    answers = [said("half", word), said("whole")]
    with scripted(lambda asked: answers.pop(0)) as server:
        (output,) = outputs(tokenizer, server.url)
    assert output.text == "whole" and not answers
    with (
        scripted(lambda asked: said("half", word)) as server,
        pytest.raises(
            UserError, match=rf"breaks its answers off \(finish reason {word}\), asked 2 times for prompt a0"
        ),
    ):
        outputs(tokenizer, server.url)


def test_a_word_that_is_not_known_is_named(tokenizer) -> None:
    with (
        scripted(lambda asked: said("x", "exhausted")) as server,
        pytest.raises(UserError, match=r"finish reason 'exhausted', which may mean an end or a cut"),
    ):
        outputs(tokenizer, server.url)


def test_an_end_with_the_last_allowed_token(talker: Path, served: str, tmp_path: Path) -> None:
    """`transformers serve` calls it cut off: the rows are those of the transformers engine all the same."""
    source = tmp_path / "prompts.jsonl"
    source.write_text("\n".join(json.dumps({"id": f"p{n}", "prompt": text}) for n, text in enumerate(ASKED)))
    server = {"engine": "endpoint", "url": served, "served_name": "tiny/talker", "concurrency": 1}
    distill(str(talker), str(source), tmp_path / "long", max_new_tokens=32)
    lengths = {len(row["answer_ids"]) for row in dataset.read(tmp_path / "long")}
    most = sorted(lengths)[len(lengths) // 2]  # some are longer, some shorter, some exactly so long
    distill(str(talker), str(source), tmp_path / "own", max_new_tokens=most)
    with proxied(served) as proxy:
        said_there: list[str] = []
        proxy.always = edited(lambda call, body: said_there.append(body["choices"][0]["finish_reason"]) or body)
        distill(str(talker), str(source), tmp_path / "served", max_new_tokens=most, **{**server, "url": proxy.url})
    own, rows = (sorted(dataset.read(tmp_path / n), key=lambda row: row["id"]) for n in ("own", "served"))
    reasons = [row["finish_reason"] for row in own]
    exactly = [row["id"] for row in own if row["finish_reason"] == "eos" and len(row["answer_ids"]) == most]
    assert exactly and said_there.count("length") > reasons.count("length"), "the server calls some ends cuts"
    assert [row["finish_reason"] for row in rows] == reasons
    assert [row["answer_ids"] for row in rows] == [row["answer_ids"] for row in own]


def test_an_evaluation_says_what_the_server_left_out(tokenizer, tmp_path: Path, capsys) -> None:
    answers = {"one": said("yes"), "two": said(None, "content_filter")}
    with scripted(lambda asked: answers[asked["messages"][0]["content"]]) as server:
        engine = EndpointWriter(Server(server.url), "m", tokenizer)
        found = answer_all(
            Responder(engine, tokenizer, Sampling(), 8), [Prompt("a", ("one",)), Prompt("b", ("two",))],
            journal=tmp_path / "j", description="target answers", batch_size=1, concurrency=2,
        )  # fmt: skip
    assert [answer.prompt_id for answer in found] == ["a"]
    assert "target answers: left out: 1 (finish reason content_filter)" in capsys.readouterr().err
