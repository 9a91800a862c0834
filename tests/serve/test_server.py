"""The server as clients see it: the openai package, plain HTTP, and what must be refused."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

import sparsedraft
from served import Served, serving
from sparsedraft.models.tokenizers import templates
from sparsedraft.native import model as native_models
from sparsedraft.native.extension import is_built
from sparsedraft.serve import guard
from sparsedraft.serve.options import ServeOptions
from transformers_server import ASKED

CHAT = [{"role": "user", "content": ASKED[0]}]


@pytest.fixture(scope="module")
def served(talker: Path) -> Iterator[Served]:
    yield from serving(
        ServeOptions(target=str(talker), drafter=str(talker), parallel=3, queue=4, served_name="talker", prompt_piece=4)
    )


def own(talker: Path, text: str, **options: Any) -> Any:
    return sparsedraft.generate(talker, text, max_new_tokens=24, **options)


def test_a_chat_is_the_targets_own_text(served: Served, talker: Path) -> None:
    answer = served.client.chat.completions.create(model="talker", messages=CHAT, temperature=0, max_tokens=24)
    expected = own(talker, ASKED[0])
    (choice,) = answer.choices
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == {"eos": "stop", "length": "length"}[expected.finish_reason]
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens == expected.prompt_tokens


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_adds_up_to_the_same(served: Served, talker: Path, usage: bool) -> None:
    more = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = [*served.client.chat.completions.create(
        model="talker", messages=CHAT, temperature=0, max_tokens=24, stream=True, **more)]  # fmt: skip
    expected = own(talker, ASKED[0])
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == expected.text
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert (chunks[-1].usage is not None) == usage
    if usage:
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(expected.token_ids)


def test_many_at_once_are_each_as_alone(served: Served, talker: Path) -> None:
    """Greedy, and sampled with a seed: whatever runs beside it, and again."""

    def ask(which: int, seed: int | None) -> str:
        how = {"temperature": 0} if seed is None else {"temperature": 1.2, "seed": seed}
        answer = served.client.chat.completions.create(
            model="talker", messages=[{"role": "user", "content": ASKED[which]}], max_tokens=12, **how
        )
        return str(answer.choices[0].message.content)

    jobs = [(which, seed) for which in range(len(ASKED)) for seed in (None, 7)][:7]  # as many as may run and wait
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = [*pool.map(lambda job: ask(*job), jobs)]
    assert together == [ask(*job) for job in jobs]
    greedy = [
        sparsedraft.generate(talker, ASKED[which], max_new_tokens=12).text for which, seed in jobs if seed is None
    ]
    assert [text for text, (_, seed) in zip(together, jobs, strict=True) if seed is None] == greedy


def test_completions_of_texts_and_of_ids(served: Served, talker: Path) -> None:
    ids = served.service.pair.target.tokenizer("the quick")["input_ids"]
    how = {"model": "talker", "temperature": 0, "max_tokens": 6}
    texts = [choice.text for choice in served.client.completions.create(prompt=["the quick", "a draft"], **how).choices]
    expected = [
        sparsedraft.generate(talker, text, raw=True, max_new_tokens=6).text for text in ("the quick", "a draft")
    ]
    assert texts == expected
    assert served.client.completions.create(prompt=ids, **how).choices[0].text == expected[0]
    assert len(served.client.completions.create(prompt=ids, n=3, **how).choices) == 3


def test_a_stop_string_is_not_part_of_the_text(served: Served, talker: Path) -> None:
    whole = own(talker, ASKED[0]).text
    word = whole.split()[1]
    answer = served.client.chat.completions.create(
        model="talker", messages=CHAT, temperature=0, max_tokens=24, stop=[word]
    )
    assert answer.choices[0].message.content == whole[: whole.index(word)]
    assert answer.choices[0].finish_reason == "stop"


def test_the_next_turn_reads_what_is_new(served: Served) -> None:
    """Tokens of the earlier turn count as cached, and the metrics say so."""
    how = {"model": "talker", "temperature": 0, "max_tokens": 8}
    first = served.client.chat.completions.create(messages=CHAT, **how)
    chat = [*CHAT, {"role": "assistant", "content": first.choices[0].message.content},
            {"role": "user", "content": ASKED[3]}]  # fmt: skip
    second = served.client.chat.completions.create(messages=chat, **how)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens - 4 <= cached < second.usage.prompt_tokens
    assert "sparsedraft:prefix_cache_hits_total" in served.get("/metrics")


def test_a_request_says_how_it_is_drafted_and_is_told_how_that_went(served: Served) -> None:
    body = {"model": "talker", "messages": CHAT, "temperature": 0, "max_tokens": 12, "include_metrics": True}
    texts = set()
    for more, drafted in (({"num_draft_tokens": 3}, True), ({"draft_model": "none"}, False), ({}, None)):
        status, answer = served.post("/v1/chat/completions", body | more)
        assert status == 200
        (told,) = answer["metrics"]["speculative_decoding"]
        assert drafted is None or bool(told["num_drafts"]) == drafted
        assert told["num_accepted_tokens"] == sum(told["accepted_per_position"])
        assert told["mean_acceptance_length"] >= 1
        texts.add(answer["choices"][0]["message"]["content"])
    assert len(texts) == 1
    metrics = served.get("/metrics")
    for name in ("drafts", "draft_tokens", "accepted_tokens"):
        assert f"sparsedraft:spec_decode_num_{name}_total" in metrics
    assert 'accepted_tokens_per_pos_total{position="0"}' in metrics


def test_models_and_health(served: Served) -> None:
    (model,) = served.client.models.list()
    assert model.id == "talker" and model.draft_models == ["none", *served.service.names.loaded]
    assert json.loads(served.get("/health")) == {"status": "ok"}


@pytest.mark.parametrize("more", [
    {"top_p": 1e-50}, {"repetition_penalty": 0.01, "top_k": 3}, {"repetition_penalty": 100, "min_p": 1.0}, {"seed": -1},
    {"n": None, "temperature": None, "stream": None, "tools": None, "logit_bias": {}, "store": False, "user": "me"},
])  # fmt: skip
def test_extreme_and_empty_fields_have_an_answer(served: Served, more: dict[str, Any]) -> None:
    status, answer = served.post("/v1/chat/completions", {**GOOD, "temperature": 1.0, **more})
    assert status == 200 and answer["usage"]["completion_tokens"] > 0, answer


def test_no_reply_names_a_place_on_this_machine(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = served.service.pair.target.tokenizer
    assert "/" in str(tokenizer.name_or_path)
    monkeypatch.setattr(tokenizer, "chat_template", None)
    status, answer = served.post("/v1/chat/completions", GOOD)
    assert status == 400 and answer["error"]["message"].startswith("model talker has no chat template"), answer


def test_a_prompt_counts_as_cached_once(served: Served) -> None:
    for _ in range(2):
        usage = served.post("/v1/completions", {"model": "talker", "prompt": [5] * 20, "n": 3, "max_tokens": 2})[1][
            "usage"
        ]
    assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"] == 20
    many = served.client.completions.create(model="talker", prompt=[[5, 6], [7]], max_tokens=2)
    assert len(many.choices) == 2 and served.client.models.retrieve("talker").id == "talker"


GOOD = {"model": "talker", "messages": CHAT, "max_tokens": 4}
BAD: list[tuple[dict[str, Any] | bytes, int, str, str | None]] = [
    (b"{", 400, "the body is no JSON", None),
    (b"[1]", 400, "the body is no JSON object", None),
    ({**GOOD, "echo": True}, 400, "echo is not supported", "echo"),
    ({**GOOD, "tools": [{"type": "function"}]}, 400, "function is missing", "tools.0.function"),
    ({**GOOD, "n": 16}, 400, "can run and wait here", "n"),
    ({**GOOD, "top_logprobs": 2}, 400, "belong to logprobs true", ""),
    ({**GOOD, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs cannot be so", "top_logprobs"),
    ({**GOOD, "response_format": {"type": "xml"}}, 400, "response_format", "response_format"),
    ({"model": "talker"}, 400, "messages is missing", "messages"),
    ({**GOOD, "messages": []}, 400, "messages cannot be so", "messages"),
    (b"", 400, "the body is missing", None),
    (
        {**GOOD, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "type cannot be so (input should be 'text')",
        "messages.0.content.0.type",
    ),
    ({**GOOD, "stop": [*"abcdefghi"]}, 400, "at most 8 items", "stop"),
    ({**GOOD, "tool_choice": "any"}, 400, "'none', 'auto' or 'required'", "tool_choice"),
    ({**GOOD, "tool_choice": {"type": "function"}}, 400, "is missing", "tool_choice.function"),
    ({**GOOD, "frequency_penalty": 0.5}, 400, "is not supported by this server", "frequency_penalty"),
    ({**GOOD, "temperature": -1}, 400, "temperature cannot be so", "temperature"),
    (
        b'{"model": "talker", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        400,
        "temperature",
        "temperature",
    ),
    ({**GOOD, "constrained_decoding": 1}, 400, "constrained_decoding is not supported", "constrained_decoding"),
    ({**GOOD, "max_tokens": 0}, 400, "max_tokens cannot be so", "max_tokens"),
    ({**GOOD, "model": "/etc/passwd"}, 404, "is not served here", "model"),
    ({**GOOD, "draft_model": "other"}, 400, "is not loaded", "draft_model"),
    ({**GOOD, "stream_options": {"include_usage": True}}, 400, "belong to stream", ""),
    ({**GOOD, "messages": [{"role": "user", "content": "word " * 4000}]}, 400, "fill the context", "messages"),
]


@pytest.mark.parametrize(("body", "status", "told", "field"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_answered_is_told_in_one_sentence(
    served: Served, body: dict[str, Any] | bytes, status: int, told: str, field: str | None
) -> None:
    found, answer = served.post("/v1/chat/completions", body)
    assert found == status and told in answer["error"]["message"], answer
    assert answer["error"]["message"].endswith(".") and "\n" not in answer["error"]["message"]
    assert field is None or (answer["error"]["param"] or "") == field
    assert served.post("/v1/chat/completions", GOOD)[0] == 200, "the next request goes on"


def test_bodies_hosts_and_paths(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LARGEST", 1000)
    assert served.post("/v1/chat/completions", {**GOOD, "user": "x" * 2000})[0] == 413
    assert served.post("/v1/chat/completions", GOOD, Host="evil.example:80")[0] == 400
    assert served.post("/v1/chat/completions", GOOD, Host="localhost")[0] == 200
    assert served.post("/v1/nothing", GOOD)[0] == 404


def test_a_client_that_goes_away_frees_its_place(served: Served) -> None:
    stream = served.client.chat.completions.create(
        model="talker", messages=CHAT, max_tokens=400, temperature=2.0, stop=["\0never"], stream=True
    )
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 20
    while served.service.engine.running and time.monotonic() < end:
        time.sleep(0.05)
    assert served.service.engine.running == 0


def test_a_key_is_asked_for(tiny_checkpoint: Path) -> None:
    (found,) = [*_with_key(tiny_checkpoint)]
    assert found == [401, 401, 200]


def _with_key(model: Path) -> Iterator[list[int]]:
    for served in serving(ServeOptions(target=str(model), served_name="talker", parallel=1), key="secret"):
        yield [
            served.post("/v1/chat/completions", GOOD, **headers)[0]
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer secret"})
        ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 1.5, "seed": 3, "top_k": 5}])
def test_logprobs_are_the_targets_own_for_accepted_drafts_too(
    served: Served, stream: bool, drafts: int, how: dict[str, Any]
) -> None:
    """Those of a pass of transformers over prompt and answer, whatever the temperature."""
    extra = {"num_draft_tokens": drafts, "top_k": how.get("top_k", 0)}
    how = {name: value for name, value in how.items() if name != "top_k"}
    answer = served.client.chat.completions.create(
        model="talker", messages=CHAT, max_tokens=10, logprobs=True, top_logprobs=3, stream=stream, extra_body=extra,
        **how,
    )  # fmt: skip
    choices = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
    told = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
    model = served.service.pair.target
    prompt = templates.chat_ids(model.tokenizer, CHAT)
    by_text = {model.tokenizer.decode([number]): number for number in range(320)}
    ids = [by_text[one.token] for one in told]
    with torch.no_grad():
        logits = model.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1)
    for row, token, one in zip(expected, ids, told, strict=True):
        assert one.logprob == pytest.approx(float(row[token]), abs=2e-3)
        values = row.topk(3).values.tolist()
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(values, abs=2e-3)
        assert bytes(one.bytes).decode() == one.token or one.token.startswith("<")
    assert len(told) > 2


def test_logprobs_of_completions(served: Served) -> None:
    answer = served.client.completions.create(
        model="talker", prompt="the quick", temperature=0, max_tokens=6, logprobs=2
    ).choices[0]
    told = answer.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
    assert told.text_offset[0] == 0 and all(len(top) == 2 for top in told.top_logprobs)
    likeliest = [max(top.values()) for top in told.top_logprobs]
    assert likeliest == pytest.approx(told.token_logprobs)


@pytest.mark.skipif(not is_built(), reason="keys and values of transformers' models are not counted")
def test_an_answer_that_memory_does_not_hold_is_refused(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is begun, so that the answers under way do not end with it: those of target and drafter count, and what
    the rows hold of texts before does not."""

    def free(size: int) -> None:
        monkeypatch.setattr(native_models, "available_memory", lambda: size)

    options = ServeOptions(target=str(talker), drafter=str(talker), parallel=3, queue=4, served_name="talker", k=1)
    for served in serving(options):
        each = 2 * served.service.pair.target.native.cache_bytes_per_token
        ask = {"model": "talker", "prompt": [5, 6, 7, 8], "temperature": 0}
        free(each * (4 + 8))
        assert served.client.completions.create(**ask, max_tokens=8).usage.prompt_tokens == 4
        with pytest.raises(openai.InternalServerError, match="keys and values of 104 tokens need") as refused:
            served.client.completions.create(**ask | {"prompt": [9] * 4}, max_tokens=100)
        assert refused.value.status_code == 503 and refused.value.body["code"] == "insufficient_memory"
        free(each * 3 * (4 + 100))
        many = served.client.completions.create(**ask | {"n": 7}, max_tokens=100)
        assert len(many.choices) == 7, "three are written at once, and the others in their rows"
        long = ask | {"prompt": [9] * 60}
        assert served.client.completions.create(**long, max_tokens=4).choices
        free(0)
        assert served.client.completions.create(**ask | {"prompt": [9] * 50}, max_tokens=4).choices, "its row has it"
        with pytest.raises(openai.InternalServerError, match="tokens need"):
            served.client.completions.create(**long, max_tokens=100)
