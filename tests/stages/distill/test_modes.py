"""What every mode of distillation asks and refuses, and what it does with bad lines."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsedraft.base.errors import UserError
from sparsedraft.base.journal import Journal, read_lines
from sparsedraft.models.tokenizers.ends import end_of_turn
from sparsedraft.stages.distill.cleaner import Rules
from sparsedraft.text import prompts
from stages import distill


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

    refused("--mode magpie do not go together: magpie writes the prompts itself", mode="magpie", limit=3)
    refused("--mode respond needs PROMPTS", source=None)
    refused("--limit must say how many conversations", source=None, mode="magpie", limit=None)
    refused("--opening 'Why' begins prompts", openings=["Why"])
    refused("--max-prompt-tokens 3 leaves nothing", source=None, mode="magpie", rules=Rules(max_prompt_tokens=3))
    refused("--prompt-temperature 0", source=None, mode="magpie", prompt_temperature=0.0)
    refused("has 0 reference answers to 1 turns", mode="rewrite")
    refused("--engine telepathy", engine="telepathy")
    refused("--engine endpoint and --url belong together", engine="endpoint")
    refused("--engine endpoint and --url belong together", url="http://localhost:1/v1")
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
    assert end_of_turn(tokenizer) == [2]
    gemma = copy.deepcopy(tokenizer)  # a turn that ends with something else than EOS
    gemma.add_tokens(["<end_of_turn>"])
    gemma.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<end_of_turn>")
    assert end_of_turn(gemma) == gemma.convert_tokens_to_ids(["<end_of_turn>"])
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert end_of_turn(bare) == [2]


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
