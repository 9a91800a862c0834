"""The forms in which people bring conversations: each reads as the same prompt, and every message keeps its place."""

import json
import shutil
from pathlib import Path

import pytest

from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.text import dataset, prompts, records
from sparsedraft.text.prompts import Aside, Prompt
from stages import distill, evaluate_to

SYSTEM, ASKED, SAID = "be brief", "how many?", "seven"


def openai(*said: str) -> list[dict]:
    return [{"role": role, "content": text} for role, _, text in (one.partition(" ") for one in said)]


def sharegpt(*said: str) -> list[dict]:
    return [{"from": role, "value": text} for role, _, text in (one.partition(" ") for one in said)]


ALL = (f"system {SYSTEM}", f"user {ASKED}", f"assistant {SAID}")
PARTS = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in openai(*ALL)]
FORMS = {
    "messages": {"messages": openai(*ALL)},
    "parts": {"messages": PARTS},
    "parts as a table has them": {
        "messages": [{**m, "content": [{**m["content"][0], "image_url": None}]} for m in PARTS]
    },
    "developer": {"messages": openai(f"developer {SYSTEM}", *ALL[1:])},
    "sharegpt": {"conversations": sharegpt(f"system {SYSTEM}", f"human {ASKED}", f"gpt {SAID}")},
    "sharegpt, system beside": {"system": SYSTEM, "conversations": sharegpt(f"human {ASKED}", f"gpt {SAID}")},
    "wildchat": {"conversation": openai(*ALL)},
    "prompt of messages": {"prompt": openai(*ALL[:2]), "completion": openai(ALL[2])},
    "prompt and completion": {"system": SYSTEM, "prompt": ASKED, "completion": SAID},
    "preference": {"prompt": openai(*ALL[:2]), "chosen": openai(ALL[2]), "rejected": openai("assistant eight")},
    "preference, whole": {
        "prompt": openai(*ALL[:2]),
        "chosen": openai(*ALL),
        "rejected": openai(*ALL[:2], "assistant 8"),
    },
    "implicit prompt": {"chosen": openai(*ALL), "rejected": openai(*ALL[:2], "assistant eight")},
    "alpaca": {"system": SYSTEM, "instruction": ASKED, "input": "", "output": SAID},
}


def file(tmp_path: Path, *rows: object) -> str:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "p.jsonl")


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_the_same_prompt(form: str, tmp_path: Path) -> None:
    assert prompts.read(file(tmp_path, {"id": 1, **FORMS[form]})) == [Prompt("1", (ASKED,), "", SYSTEM, (SAID,))]


def test_what_counts_of_an_ordinary_prompt_is_as_ever() -> None:
    """Else every finished data folder and evaluation would be made again."""
    for prompt in prompts.read("demo"):
        assert prompt.content == [prompt.id, prompt.category, prompt.system, *prompt.turns]


def test_turns_of_earlier_answers_and_bad_ones(tmp_path: Path) -> None:
    history = {"instruction": "and now?", "history": [[ASKED, SAID]], "output": "none"}
    multi = {"prompt": openai("user one", "assistant 1", "user two"), "completion": "2"}
    bad = {"prompt": ASKED, "completion": "a bad one", "label": False}
    found = prompts.read(file(tmp_path, history, multi, bad))
    assert [p.turns for p in found] == [(ASKED, "and now?"), ("one", "two"), (ASKED,)]
    assert [p.references for p in found] == [(SAID, "none"), ("1", "2"), ()]


@pytest.mark.parametrize(
    ("said", "asides"),
    [
        (["system a", "system b", "user one"], [Aside("system", "b", 0)]),
        (["user one", "assistant 1", "system b", "user two"], [Aside("system", "b", 1)]),
        (["user one", "system b", "assistant 1", "user two"], [Aside("system", "b", 0, True)]),
        (["user one", "system b"], [Aside("system", "b", 0, True)]),
        (["assistant welcome", "user one", "assistant 1"], [Aside("assistant", "welcome", 0)]),
        (["system a", "user one", "user two", "system b", "assistant 2"], [Aside("system", "b", 1, True)]),
    ],
)
def test_every_message_keeps_its_place(said: list[str], asides: list[Aside], tmp_path: Path, tokenizer) -> None:
    """What the target reads are the row's own messages, with its answers in the assistant's place."""
    row = {"messages": openai(*said)}
    (found,) = prompts.read(file(tmp_path, row))
    assert list(found.asides) == asides
    whole = found.messages([f"answer {n}" for n in range(len(found.turns))])
    kept = [m for m in row["messages"] if m["role"] != "assistant" or m["content"] == "welcome"]
    assert [m for m in whole if not m["content"].startswith("answer")] == kept
    turn = [n for n, m in enumerate(whole) if m["role"] == "user"]
    for n, message in enumerate(whole):
        if message["content"].startswith("answer"):
            assert max(t for t in turn if t < n) == turn[int(message["content"][7:])]
    assert Prompt.of(json.loads(json.dumps({**vars(found), "asides": [vars(a) for a in found.asides]}))) == found


def test_both_system_messages_reach_the_target(tiny_checkpoint: Path, tmp_path: Path) -> None:
    said = openai("system a", "user one", "assistant 1", "system b", "user two")
    source = file(tmp_path, {"messages": said})
    tokenizer = checkpoint.load_tokenizer(tiny_checkpoint)
    distill(str(tiny_checkpoint), source, tmp_path / "out", max_new_tokens=4)
    second = next(row for row in dataset.read(tmp_path / "out") if row["turn"] == 1)
    own = second["messages"]
    assert [m["role"] for m in own] == ["system", "user", "assistant", "system", "user", "assistant"]
    assert second["prompt_ids"] == tokenizer.apply_chat_template(
        own[:-1], add_generation_prompt=True, return_dict=False
    )


def test_what_a_template_refuses_is_one_row(tiny_checkpoint: Path, tmp_path: Path) -> None:
    target = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (target / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('one system!') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    source = file(tmp_path, {"id": "bad", "messages": openai("system a", "system b", "user one")}, {"prompt": "hi"})
    with pytest.raises(UserError, match=r"prompt bad: .* refuses a conversation of system, system, user .*--skip-bad"):
        distill(str(target), source, tmp_path / "out", max_new_tokens=4)
    result = distill(str(target), source, tmp_path / "out", max_new_tokens=4, skip_bad=True)
    assert (result["rows"], result["skipped"]) == (1, 1)
    with pytest.raises(UserError, match=r"prompt bad: .* refuses"):
        evaluate_to(None, str(target), [("a", str(target))], source, {"k": (1,), "max_new_tokens": 4})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "type 'image_url'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]},
            "type 'image'",
        ),
        ({"messages": openai("user a", "tool b")}, "role 'tool' with tools is not supported"),
        ({"conversations": sharegpt("human a", "function_call b")}, "role 'function_call' with tools"),
        ({"messages": [*openai("user a"), {"role": "assistant", "tool_calls": [1]}]}, "with tools is not supported"),
        ({"conversations": sharegpt("robot a")}, "role 'robot' is not system, user or assistant"),
        ({"prompt": "a", "tools": [{"name": "f"}]}, "has 'tools' of its own"),
        ({"prompt": "a", "chat_template_kwargs": {"enable_thinking": False}}, "give --template-arg"),
        ({"prompt": {"text": "a"}}, "a turn is dict, not text"),
        ({"chosen": "Human: a"}, "'chosen' is str, not a list"),
        ({"messages": [{"role": "user", "content": 3}]}, "the user message is int, not text"),
        ({"messages": openai("assistant a")}, "a turn is empty"),
        ({"history": [["a"]], "instruction": "b"}, "pairs of instruction and answer"),
    ],
)
def test_what_is_not_read_is_named(row: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"line 1: .*{message}"):
        prompts.read(file(tmp_path, row))
    bad: list[str] = []
    assert len(prompts.read(file(tmp_path, row, {"prompt": "hi"}), bad)) == 1 and len(bad) == 1


def test_fields_that_say_nothing_are_no_tools(tmp_path: Path) -> None:
    empty = {"tools": None, "functions": [], "chat_template_kwargs": {"tools": None}, "system": ""}
    assert prompts.read(file(tmp_path, {"prompt": "a", **empty}))[0] == Prompt("0", ("a",))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_an_array_reads_as_lines_do(indent: int | None, chunk: int, tmp_path: Path, monkeypatch) -> None:
    rows = [*FORMS.values(), {"prompt": '[{\u2028é"]'}]
    expected = prompts.read(file(tmp_path, *rows))
    monkeypatch.setattr(records, "CHUNK", chunk)
    for name in ("p.json", "p.jsonl"):
        whole = "\ufeff\n " + json.dumps(rows, indent=indent, ensure_ascii=False)
        (tmp_path / name).write_text(whole, encoding="utf-8")
        assert prompts.read(str(tmp_path / name)) == expected
    (tmp_path / "p.jsonl").write_text("[1]\n" + json.dumps({"prompt": "lines"}))
    bad: list[str] = []
    assert [p.turns for p in prompts.read(str(tmp_path / "p.jsonl"), bad)] == [("lines",)] and "line 1" in bad[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "a"}, {"prompt": ]', "item 2: not JSON"),
        ('[{"prompt": "a"}', "item 2: not JSON .*no end"),
        ('[{"prompt": "a"} {"prompt": "b"}]', "item 2: not JSON .*no comma"),
        ("[" * 200_000, "item 1: not JSON"),
        ("[]", "is empty"),
        ('[{"prompt": "a"}] {"prompt": "b"}', "more stands behind the end of its array"),
        ('[\n{"prompt": "a"}\n]\n[{"prompt": "b"}]', "more stands behind the end of its array"),
        ('["a"]', "item 1: not an object"),
    ],
)
def test_a_damaged_array_is_refused_whole(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=message):
        prompts.read(str(tmp_path / "p.json"), [])


def test_a_line_without_an_end_is_one_bad_row(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "LONGEST", 1000)
    source = file(tmp_path, {"prompt": "a" * 5000}, {"prompt": "b"}, {"prompt": "c" * 970})
    with pytest.raises(UserError, match="line 1: has more than 1,000 bytes"):
        prompts.read(source)
    bad: list[str] = []
    assert [p.turns[0][0] for p in prompts.read(source, bad)] == ["b", "c"] and len(bad) == 1
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": "a" * 5000}]))
    monkeypatch.setattr(records, "CHUNK", 100)
    with pytest.raises(UserError, match=r"item 1: not JSON .*more than 1,000 characters"):
        prompts.read(str(tmp_path / "p.json"))
