"""Servers that send what a model thinks apart from what it answers: rows hold all that it wrote, in its own tokens."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from scripted import places, said, scripted
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.writers.protocol.requests import Completion, Request
from sparsedraft.writers.server.endpoint import EndpointWriter
from sparsedraft.writers.server.server import Server

# as Qwen3's: thoughts are shown in an assistant's message, with the space that the model writes around its marks
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['reasoning_content'] %}<think>\n{{ m['reasoning_content'].strip('\n') }}\n</think>\n\n"
    "{{ m['content'].lstrip('\n') }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as the later ones': the prompt itself opens the thoughts
OPENED = THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
WRITTEN = "<think>\nten, less three\n</think>\n\nseven apples are left."
MESSAGES = [{"role": "user", "content": "how many apples?"}]


def raw(text: str) -> tuple[str, str]:
    """As vLLM parses: marks go, space stays."""
    thoughts, _, answer = text.removeprefix("<think>").partition("</think>")
    return thoughts, answer


def half(text: str) -> tuple[str, str]:
    """As SGLang parses: one side of each is stripped."""
    thoughts, answer = raw(text)
    return thoughts.lstrip(), answer.strip()


def stripped(text: str) -> tuple[str, str]:
    """As llama-server parses."""
    thoughts, answer = raw(text)
    return thoughts.strip(), answer.strip()


def ask(tokenizer: Any, answer: Callable[[dict[str, Any]], Any], k: int = 0, most: int = 64) -> Completion:
    with scripted(answer) as server:
        engine = EndpointWriter(Server(server.url, retries=0), "m", tokenizer)
        (output,) = engine.generate([Request("a", [1], most, messages=MESSAGES)], Sampling(), k)
    return output


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


@pytest.mark.parametrize("parse", [raw, half, stripped])
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("template", [THINKING, OPENED])
def test_the_row_is_what_the_model_wrote(tokenizer, template: str, parse: Any, field: str) -> None:
    thinking = with_template(tokenizer, template)
    wrote = WRITTEN if template is THINKING else WRITTEN.removeprefix("<think>\n")
    ids = thinking(wrote)["input_ids"]
    thoughts, answer = parse(wrote)
    output = ask(thinking, lambda asked: said(answer, usage={"completion_tokens": len(ids) + 1}, **{field: thoughts}))
    assert output.text == wrote and output.token_ids == [*ids, 2] and output.finish_reason == "eos"
    # what a drafter reads is what the template itself makes of the conversation
    chat = [
        *MESSAGES,
        {"role": "assistant", "content": "seven apples are left.", "reasoning_content": "ten, less three"},
    ]
    whole = str(thinking.apply_chat_template(chat, tokenize=False))
    begun = str(thinking.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True))
    assert whole == begun + wrote + "<|im_end|>\n"


@pytest.mark.parametrize("content", [None, ""])
def test_cut_off_among_the_thoughts(tokenizer, content: str | None) -> None:
    thinking = with_template(tokenizer, THINKING)
    output = ask(thinking, lambda asked: said(content, "length", reasoning_content="ten, less"), most=4)
    assert output.text == "<think>\nten, less" and output.finish_reason == "length"
    assert output.token_ids == thinking(output.text)["input_ids"]


def test_no_thoughts_between_the_marks(tokenizer) -> None:
    thinking = with_template(tokenizer, THINKING)
    output = ask(thinking, lambda asked: said("\n\nyes", reasoning_content="\n\n"))
    assert output.text == "<think>\n\n</think>\n\nyes"


def reported(tokenizer: Any, text: str, k: int) -> Any:
    """As vLLM reports: every token of the answer by id, thoughts and end included."""
    ids = [*tokenizer(text)["input_ids"], 2]
    return places([(f"token_id:{i}", [(f"token_id:{(i + n) % 300}", -1.0 - n) for n in range(k)]) for i in ids])


def test_tokens_tell_where_the_template_does_not(tokenizer) -> None:
    """The plain template shows no thoughts; the tokens of the log-probabilities are all that was written."""
    wrote = WRITTEN.replace("\n\n", " ")  # as no template would have it

    def answer(asked: dict[str, Any]) -> Any:
        thoughts, text = stripped(wrote)
        k = asked.get("top_logprobs", 0)
        return said(text, reasoning=thoughts, logprobs=reported(tokenizer, wrote, k) if k else None)

    ids = [*tokenizer(wrote)["input_ids"], 2]
    for k in (0, 2):
        output = ask(tokenizer, answer, k)
        assert output.text == wrote and output.token_ids == ids and len(output.topk_ids) == (len(ids) if k else 0)


def test_labels_of_the_answer_alone_are_not_taken_for_those_of_the_whole(tokenizer) -> None:
    thinking = with_template(tokenizer, THINKING)

    def answer(asked: dict[str, Any]) -> Any:
        thoughts, text = stripped(WRITTEN)
        found = reported(thinking, text, 2)
        if "Count" in asked["messages"][0]["content"]:
            return said("1, 2", logprobs=found)
        return said(text, reasoning_content=thoughts, logprobs=found)

    output = ask(thinking, answer, 2)
    assert output.text == WRITTEN and output.topk_ids == [] and output.token_ids == [*thinking(WRITTEN)["input_ids"], 2]


STOP = r"(?s)--reasoning-parser.*--reasoning-format none"


@pytest.mark.parametrize(
    ("template", "more"),
    [
        (None, {"reasoning_content": "ten, less three"}),  # the template shows no thoughts, and no tokens come
        (THINKING, {"reasoning": "A sum.", "usage": {"completion_tokens": 400}}),  # a summary of them
        (THINKING, {"usage": {"completion_tokens": 90, "completion_tokens_details": {"reasoning_tokens": 80}}}),  # kept
    ],
)
def test_what_cannot_be_put_back_stops_with_the_servers_option(tokenizer, template: str | None, more: Any) -> None:
    own = with_template(tokenizer, template) if template else tokenizer
    with pytest.raises(UserError, match=STOP) as error:
        ask(own, lambda asked: said("seven", **more))
    assert "\n" not in str(error.value)
