"""Prompt files in every form, the demo's split, and the leak check."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from sparsedraft.base.errors import UserError
from sparsedraft.models.tokenizers import templates
from sparsedraft.text import prompts
from sparsedraft.text.overlap import check_no_overlap
from sparsedraft.text.prompts import Prompt

ROWS = {
    "prompt": {"id": "a", "prompt": "hello"},
    "turns": {"question_id": 7, "category": "math", "turns": ["one", "two"]},
    "messages": {
        "id": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hey"},
        ],
    },
    "alpaca": {"instruction": "translate", "input": "hund", "output": "dog"},
}


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_form_is_read(tmp_path: Path) -> None:
    found = prompts.read(write(tmp_path / "p.jsonl", list(ROWS.values())))
    assert [p.turns for p in found] == [("hello",), ("one", "two"), ("hi",), ("translate\n\nhund",)]
    assert [p.id for p in found] == ["a", "7", "m", "3"]
    assert found[1].category == "math" and found[2].system == "be brief"
    assert [p.references for p in found] == [(), (), ("hey",), ("dog",)]


@pytest.mark.parametrize(
    ("roles", "references"),
    [
        (["user one", "assistant 1", "user two", "assistant 2"], ("1", "2")),
        (["assistant welcome", "user one", "assistant 1"], ("1",)),
        (["user one", "assistant 1", "assistant more", "user two", "assistant 2"], ("1", "2")),
        (["user one", "user two", "assistant 2"], ()),
        (["user one", "assistant", "user two", "assistant 2"], ()),
    ],
)
def test_a_reference_is_what_follows_its_own_turn(roles: list[str], references: tuple, tmp_path: Path) -> None:
    chat = [{"role": role, "content": text or None} for role, _, text in (said.partition(" ") for said in roles)]
    assert prompts.read(write(tmp_path / "p.jsonl", [{"messages": chat}]))[0].references == references


def test_parquet_reads_as_json_lines_do(tmp_path: Path) -> None:
    rows = [{"id": "x", "category": "c", "turns": ["one", "two"]}, {"id": "y", "category": "c", "turns": ["three"]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert prompts.read(str(tmp_path / "p.parquet")) == prompts.read(write(tmp_path / "p.jsonl", list(rows)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ('{"prompt": "  "}\n', "line 1: a turn is empty"),
        ('{"text": "a"}\n', "line 1: has none of 'prompt'"),
        ("[1]\n", "item 1: not an object"),
        ('{"messages": [{"role": "robot", "content": "a"}]}\n', "role 'robot'"),
        ('{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}\n', "'1' occurs twice"),
        ('{"turns": [3]}\n', "a turn is int, not text"),
        ('{"turns": "hello"}\n', "'turns' is str, not a list"),
        ('{"messages": ["hello"]}\n', "a message is not an object"),
        (
            '{"messages": [{"role": "system", "content": [1]}, {"role": "user", "content": "a"}]}\n',
            "the system message has a part that is int",
        ),
        ('{"prompt": "a", "id": ' + "1" * 5000 + "}\n", "line 1: not JSON"),
        ('{"prompt": "a", "x": ' + "[" * 200_000 + "\n", "line 1: not JSON"),
        *(
            (text + "\n", "line 1: half of a surrogate pair stands alone")
            for text in (
                '{"prompt": "a \\ud83d"}',
                '{"prompt": "a", "id": "\\ud83d"}',
                '{"prompt": "a", "category": "\\ud83d"}',
                '{"instruction": "a", "output": "\\ud83d"}',
                '{"messages": [{"role": "system", "content": "\\ud83d"}, {"role": "user", "content": "a"}]}',
            )
        ),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        prompts.read(str(path))


def test_byte_order_mark_windows_lines_and_odd_separators(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes('\ufeff{"prompt": "one\u2028more"}\r\n\r\n{"prompt": "two"}'.encode())
    assert [p.turns for p in prompts.read(str(path))] == [("one\u2028more",), ("two",)]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        prompts.read(str(tmp_path / "none.jsonl"))


def test_demo_prompts_are_split_by_a_fixed_rule() -> None:
    everything, train, held_out = prompts.read("demo"), prompts.read("demo:train"), prompts.read("demo:eval")
    assert (len(everything), len(train), len(held_out)) == (400, 352, 48)
    assert set(Counter(p.category for p in held_out).values()) == {6}
    assert not {p.id for p in train} & {p.id for p in held_out}
    assert sum(len(p.turns) == 2 for p in everything) >= 30
    assert sorted(p.id for p in held_out)[:2] == SPLIT, "the rule has changed: earlier results no longer compare"
    assert len({p.category for p in train[:40]}) == 8, "the first prompts are of every category"
    check_no_overlap(train, held_out)


SPLIT = ["advice-06", "advice-10"]


def test_overlap_is_found_across_case_and_punctuation() -> None:
    long = "Please tell me, in your own words, how the old mill by the river came to be painted green."
    train = [Prompt("t1", ("What is the time?",)), Prompt("t2", ("Now then. " + long.upper() + " Thanks!",))]
    for leaked in (Prompt("e", (long,)), Prompt("e", ("what is the TIME",)), Prompt("e", ("Hi", "So: " + long))):
        with pytest.raises(UserError, match=r"1 evaluation prompt\(s\) occur.*first: 'e' in 't"):
            check_no_overlap(train, [leaked])
    check_no_overlap(train, [Prompt("e", ("How is the time in Rome?",)), Prompt("f", ("other", "What is the time?"))])


def test_overlap_sees_signs_in_short_prompts_and_scripts_without_spaces() -> None:
    check_no_overlap([Prompt("t", ("What is 7 + 8?",))], [Prompt("e", ("What is 7 * 8?",))])
    with pytest.raises(UserError, match="1 evaluation"):
        check_no_overlap([Prompt("t", ("what is 7*8",))], [Prompt("e", ("What is 7 * 8?",))])
    for alike in (
        "- What is the capital of France?",
        "**what is the capital of France?**",
        "What is the capital - of France",
    ):
        with pytest.raises(UserError, match="1 evaluation"):
            check_no_overlap([Prompt("t", (alike,))], [Prompt("e", ("What is the capital of France?",))])
    common = "请根据以下文章回答下面的问题"  # 14 characters, that many prompts begin with
    asked = "春天来了村子旁边的小河又开始流动孩子们都跑到桥上去看水里的鱼"
    check_no_overlap([Prompt("t", (common + "今天天气怎么样",))], [Prompt("e", (common + asked,))])
    task = "用Python写一个函数计算两个数的最"
    check_no_overlap([Prompt("t", (task + "小公倍数",))], [Prompt("e", (task + "大公约数并返回结果",))])
    for text in (asked, f"{asked}。谢谢", f"Translate: {asked}"):
        with pytest.raises(UserError, match="1 evaluation"):
            check_no_overlap([Prompt("t", (text,))], [Prompt("e", (common + "，" + asked,))])


def test_chat_ids_need_a_template(tokenizer) -> None:
    ids = templates.chat_ids(tokenizer, Prompt("a", ("hi", "more"), system="s").messages(["yo"]))
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
        "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )
    import copy

    dated = copy.deepcopy(tokenizer)
    dated.chat_template = (
        "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + dated.chat_template
    )
    assert "26 Jul 2024" in dated.decode(templates.chat_ids(dated, [{"role": "user", "content": "hi"}]))
    plain = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="no chat template"):
        templates.chat_ids(plain, [{"role": "user", "content": "hi"}])
