"""The form of calls, by the template; the grammar of each; and calls as they are read from a text that grows."""

import asyncio
import json
import random
from typing import Any

import pytest

import callers
from sparsedraft.serve import schemas, tools
from sparsedraft.serve.calls import CallReader
from sparsedraft.serve.grammar import Grammars
from sparsedraft.serve.structure import Function
from sparsedraft.serve.tools import CallForm, Calling
from sparsedraft.speculate.loop.grammar import within
from tiny import TEMPLATE, build_tokenizer

TOKENIZER = build_tokenizer()
GRAMMARS = Grammars(TOKENIZER, 320, frozenset([2]))
TAGGED = CallForm("<tool_call>\n", "arguments", "\n</tool_call>")
BARE, PLAIN = CallForm("", "parameters", ""), CallForm("", "arguments", "")
FORMS = [TAGGED, BARE, PLAIN]


@pytest.mark.parametrize(
    ("template", "form"), [(callers.TAGGED, TAGGED), (callers.BARE, BARE), (callers.PLAIN, PLAIN)], ids=range(3)
)
def test_the_template_says_how_calls_are_written(template: str, form: CallForm) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    assert tools.form_of(tokenizer) == form


@pytest.mark.parametrize(("template", "told"), [(TEMPLATE, "shows no tools"), (callers.OTHER, "not known")])
def test_other_templates_are_refused(template: str, told: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(tools.Unshown, match=told):
        tools.form_of(tokenizer)


def test_calls_that_a_template_would_leave_out_are_refused() -> None:
    tokenizer = build_tokenizer()
    history = [*callers.ASKED, {"role": "assistant", "content": "", "tool_calls": [callers.CALLED]}]
    with pytest.raises(tools.Unshown, match="shows no calls"):
        tools.check_history(tokenizer, history)
    tools.check_history(tokenizer, callers.ASKED)
    tokenizer.chat_template = callers.TAGGED
    tools.check_history(tokenizer, history)


FUNCTIONS = [
    (Function(name="look", parameters=callers.PLACE), schemas.prepared(callers.PLACE, "tools")),
    (Function(name="lo"), schemas.prepared({"type": "object", "additionalProperties": False}, "tools")),
]


def grammar(form: CallForm, forced: bool, parallel: bool = True, answer: Any = None) -> str:
    return tools.grammar(Calling(form, FUNCTIONS, forced, parallel, answer))


def fits(text: str, form: CallForm, forced: bool, parallel: bool = True, answer: Any = None) -> bool | None:
    """Whether the grammar accepts the text; None where it accepts a longer one only."""
    follow, path = asyncio.run(GRAMMARS.make(grammar(form, forced, parallel, answer)))(), TOKENIZER(text)["input_ids"]
    if within(follow, [], path) != path:
        return False
    mask = follow.allowed(path)
    assert mask is not None
    return bool(mask[2]) or None


def written(form: CallForm, arguments: str = '{"place": "fox"}', name: str = "look") -> str:
    return f'{form.begin}{{"name": "{name}", "{form.key}": {arguments}}}{form.end}'


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_call_follows_its_schema(form: CallForm, forced: bool) -> None:
    assert fits(written(form), form, forced) and fits(written(form, "{}", "lo"), form, forced)
    assert fits(written(form, '{"place": "fox", "days": 3}'), form, forced)
    for arguments in ("{}", '{"place": 3}', '{"place": "fox", "days": 0}', '{"place": "fox", "more": 1}', "[]"):
        assert fits(written(form, arguments), form, forced) is False
    assert fits(written(form, "{}", "other"), form, forced) is False
    assert fits(written(form)[:-1], form, forced) is None, "not ended"
    assert fits(f"{written(form)} more", form, forced) is False


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_free_text_only_where_no_call_is_forced(form: CallForm) -> None:
    for text in ("", "hello", "{}", '{"name": 3}', "a <tool", "line\n\nline"):
        assert fits(text, form, False) and not fits(text, form, True)


def test_text_before_a_call_and_several_calls() -> None:
    call = written(TAGGED)
    assert fits(f"a dog\n{call}", TAGGED, False) and not fits(f"a dog\n{call}", TAGGED, True)
    assert fits("a dog <tool_call>", TAGGED, False) is None, "what has begun a call has to end it"
    assert fits("a dog <tool_call>\nfoo", TAGGED, False) is False
    for forced in (True, False):
        assert fits(f"{call}\n{call}", TAGGED, forced) and not fits(f"{call}\n{call}", TAGGED, forced, parallel=False)
        assert not fits(f"{written(BARE)}\n{written(BARE)}", BARE, forced)


def read(
    form: CallForm, forced: bool, text: str, dice: random.Random, answer: Any = None
) -> tuple[str, list[dict[str, Any]], CallReader]:
    """(what is said, the calls put together from the deltas, the reader), the text coming in random pieces."""
    calling = Calling(form, FUNCTIONS, forced, answer=answer)
    reader, said, calls = CallReader(calling), "", list[dict[str, Any]]()
    at = 0
    while at < len(text):
        size = dice.choice([1, 1, 2, 3, 7, 50])
        more, deltas = reader.more(text[at : at + size], last=at + size >= len(text))
        said, at = said + more, at + size
        for delta in deltas:
            if "id" in delta:
                assert delta["index"] == len(calls) and delta["function"]["arguments"] == ""
                calls.append(json.loads(json.dumps(delta)))
            else:
                calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return said, calls, reader


HARD = [
    '{"place": "}\\"{"}',
    "{}",
    '{ "place" :\n"fox" , "more": {"a": {}}}',
    '{"place": "</tool_call>"}',
    '{"p": "\\\\"}',
]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("arguments", HARD)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_calls_are_read_from_pieces(form: CallForm, arguments: str, seed: int) -> None:
    dice = random.Random(seed)
    for forced in (True, False):
        said, calls, reader = read(form, forced, written(form, arguments), dice)
        assert said == "" and reader.called and len(calls) == 1
        assert calls[0]["function"] == {"name": "look", "arguments": arguments}
        assert reader.calls == [{name: value for name, value in calls[0].items() if name != "index"}]


@pytest.mark.parametrize("seed", range(6))
def test_text_and_several_calls_are_read_from_pieces(seed: int) -> None:
    dice, other = random.Random(seed), written(TAGGED, "{}", "lo")
    said, calls, reader = read(TAGGED, False, f"  a < dog\n <tool_\n\n{written(TAGGED)}\n{other}", dice)
    assert said == "  a < dog\n <tool_" and [call["function"]["name"] for call in calls] == ["look", "lo"]
    assert len({call["id"] for call in calls}) == 2 and reader.called
    for form, text in ((TAGGED, "no call <tool_"), (BARE, '{"name'), (BARE, "no"), (TAGGED, " spaces \n")):
        assert read(form, False, text, dice)[:2] == (text, [])


def test_a_call_that_is_cut_is_not_whole() -> None:
    for cut in (12, 20, len(written(TAGGED)) - 16):
        said, _, reader = read(TAGGED, False, written(TAGGED)[:cut], random.Random(0))
        assert said == "" and not reader.called
