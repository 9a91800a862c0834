"""Prompts that a server refuses, and files of prompts that grow or shrink: what is finished stands, only the rest is
asked."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripted import Scripted, said, scripted
from sparsedraft.base.errors import UserError
from sparsedraft.base.journal import read_lines
from sparsedraft.base.places import read_provenance
from sparsedraft.models.tokenizers import templates
from sparsedraft.text import dataset
from stages import distill

WORDS = [f"question {n} about {'apples ' * (n % 4)}" for n in range(12)]


def write(path: Path, numbers: Sequence[int], text: Callable[[int], str] = lambda n: WORDS[n]) -> str:
    path.write_text("\n".join(json.dumps({"id": f"p{n}", "prompt": text(n)}) for n in numbers))
    return str(path)


def answer(asked: dict[str, Any]) -> Any:
    return said(f"an answer to {asked['messages'][-1]['content']}")


def picky(*refused: int, status: int = 400) -> Callable[[dict[str, Any]], Any]:
    """Refuses these questions."""

    def script(asked: dict[str, Any]) -> Any:
        if asked["messages"][0]["content"] in [WORDS[n] for n in refused]:
            return status, b"no such question"
        return answer(asked)

    return script


def run(server: Scripted, target: Path, source: str, out: Path, **options: Any) -> tuple[dict[str, Any], list[int]]:
    """(the result, the numbers of the questions that were asked)."""
    before = len(server.asked)
    given = {"engine": "endpoint", "url": server.url, "served_name": "m", "max_new_tokens": 8, "concurrency": 2}
    try:
        result = distill(str(target), source, out, **{**given, "retries": 0, **options})
    finally:
        run.asked = sorted(WORDS.index(asked["messages"][0]["content"]) for asked in server.asked[before:])
    return result, run.asked


def kept(out: Path) -> set[str]:
    lines = read_lines(out.parent / f".{out.name}.partial" / ".rows.jsonl")
    return {row["prompt_id"] for line in lines for row in line["rows"] if not row["dropped"]}


def rows(out: Path) -> list[dict[str, Any]]:
    return dataset.read(out)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_skip_bad_leaves_out_what_is_refused(tiny_checkpoint: Path, tmp_path: Path, status: int) -> None:
    source, out = write(tmp_path / "p.jsonl", range(12)), tmp_path / "out"
    with scripted(picky(3, 7, status=status)) as server:
        words = rf"answers {status} \(no such question\) to prompt p\d/0: .*, or pass --skip-bad to leave out"
        with pytest.raises(UserError, match=words):
            run(server, tiny_checkpoint, source, out)
        finished = kept(out)
        assert finished and not finished & {"p3", "p7"}
        result, asked = run(server, tiny_checkpoint, source, out, skip_bad=True)  # what the sentence advises
    assert result["rows"] == 10 and result["skipped"] == 2 and result["dropped"] == {"refused by the server": 2}
    assert {f"p{n}" for n in asked} == {f"p{n}" for n in range(12)} - finished
    assert {row["prompt_id"] for row in rows(out)} == {f"p{n}" for n in range(12)} - {"p3", "p7"}


def test_of_a_conversation_what_came_before_the_refusal_stays(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    path.write_text(json.dumps({"id": "a", "turns": [WORDS[0], WORDS[1], WORDS[2]]}))
    with scripted(lambda asked: (413, b"long") if len(asked["messages"]) > 1 else answer(asked)) as server:
        result, _ = run(server, tiny_checkpoint, str(path), out, skip_bad=True)
    assert result["rows"] == 1 and result["dropped"] == {"refused by the server": 2} and rows(out)[0]["turn"] == 0


@pytest.mark.parametrize("status", [401, 404])
def test_what_does_not_speak_of_one_prompt_is_never_skipped(tiny_checkpoint: Path, tmp_path: Path, status: int) -> None:
    source = write(tmp_path / "p.jsonl", range(12))
    with scripted(picky(3, status=status)) as server, pytest.raises(UserError, match=f"answers {status}"):
        run(server, tiny_checkpoint, source, tmp_path / "out", skip_bad=True)


def test_an_option_that_is_refused_does_not_skip_all(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source, out = write(tmp_path / "p.jsonl", range(12)), tmp_path / "out"
    with scripted(picky(*range(12))) as server:
        with pytest.raises(UserError, match="answers 400"):
            run(server, tiny_checkpoint, source, out, skip_bad=True)
        assert len(server.asked) <= 10
    with scripted(answer) as server:  # it takes them now: refused ones are asked again
        assert run(server, tiny_checkpoint, source, out, skip_bad=True)[1] == [*range(12)]
    assert len(rows(out)) == 12


def test_an_unfinished_run_goes_on_with_other_prompts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    with scripted(picky(5)) as server:
        with pytest.raises(UserError, match="answers 400"):
            run(server, tiny_checkpoint, write(path, range(8)), out, concurrency=1)
        finished = {int(name[1:]) for name in kept(out)}
        assert finished
        # the refused one taken out, one changed, two more
        changed = min(finished)
        text = lambda n: WORDS[n] if n != changed else WORDS[11]  # noqa: E731
        numbers = [9, *(n for n in range(8) if n != 5), 8]
        result, asked = run(server, tiny_checkpoint, write(path, numbers, text), out)
    assert result["rows"] == 9 and asked == sorted({*numbers, 11} - finished)
    found = {row["prompt_id"]: row["messages"] for row in rows(out)}
    assert set(found) == {f"p{n}" for n in numbers}
    assert all(a["content"] == f"an answer to {q['content']}".strip() for q, a in found.values())
    with scripted(answer) as server:  # and is what it would have been at once
        run(server, tiny_checkpoint, str(path), tmp_path / "whole")
    assert rows(out) == rows(tmp_path / "whole")


def test_a_finished_folder_takes_more_prompts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    with scripted(answer) as server:
        run(server, tiny_checkpoint, write(path, range(6)), out)
        before = read_provenance(out)
        result, asked = run(server, tiny_checkpoint, write(path, [7, *range(6), 6]), out)
        assert asked == [6, 7] and result["rows"] == 8
        run(server, tiny_checkpoint, str(path), tmp_path / "whole")
        assert rows(out) == rows(tmp_path / "whole")
        grown = read_provenance(out)
        assert before and grown and grown["grown_from"]["fingerprint"] == before["fingerprint"]
        assert run(server, tiny_checkpoint, str(path), out)[1] == [], "already done"


def test_growing_is_interrupted_and_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    with scripted(picky(7)) as server:
        run(server, tiny_checkpoint, write(path, range(6)), out)
        with pytest.raises(UserError, match="answers 400"):
            run(server, tiny_checkpoint, write(path, range(8)), out, concurrency=1)
        assert len(rows(out)) == 6, "the finished one still lies there"
        _, asked = run(server, tiny_checkpoint, write(path, [*range(7), 8]), out)
    assert asked in ([8], [6, 8]) and len(rows(out)) == 8


def test_a_finished_folder_loses_no_row_without_a_word(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    with scripted(answer) as server:
        run(server, tiny_checkpoint, write(path, range(6)), out)
        for numbers, options in (([*range(5)], {}), ([*range(7)], {"seed": 1}), ([*range(7)], {"max_new_tokens": 9})):
            with pytest.raises(UserError, match="was made with other inputs"):
                run(server, tiny_checkpoint, write(path, numbers), out, **options)
            assert run.asked == [] and len(rows(out)) == 6
        with pytest.raises(
            UserError, match="was made with other inputs"
        ):  # a prompt of the same id that asks otherwise
            run(server, tiny_checkpoint, write(path, range(7), lambda n: WORDS[n] + "?"), out)


def test_an_unfinished_run_of_other_prompts_or_seeds_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    with scripted(picky(5)) as server:
        with pytest.raises(UserError, match="answers 400"):
            run(server, tiny_checkpoint, write(path, range(6)), out, concurrency=1)
        for numbers, options in (([8, 9, 10], {}), ([*range(5)], {"seed": 1})):
            with pytest.raises(UserError, match="has an unfinished run with other inputs"):
                run(server, tiny_checkpoint, write(path, numbers), out, **options)


def test_in_this_process_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    common = {"max_new_tokens": 6, "batch_size": 1}  # units of four conversations
    distill(str(tiny_checkpoint), write(path, range(6)), out, **common)
    first = {row["id"]: row for row in rows(out)}
    result = distill(str(tiny_checkpoint), write(path, range(9)), out, **common)
    distill(str(tiny_checkpoint), str(path), tmp_path / "whole", **common)
    assert result["rows"] == 9 and all(row == first.get(row["id"], row) for row in rows(out))
    assert rows(out) == rows(tmp_path / "whole"), "rows of one batch are decoded one by one here: the same bits"


def test_the_days_of_all_rows_are_counted_however_often_a_folder_grew(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    with scripted(answer) as server:
        for day in (1, 2, 3, 4):
            monkeypatch.setattr(templates, "day_there", lambda tokenizer, day=day: f"2026-11-0{day}")
            result, _ = run(server, tiny_checkpoint, write(path, range(2 * day)), out)
            assert sum(result["template_dates"].values()) == result["rows"] == 2 * day
            assert {found for days in result["template_dates"] for found in days.split(" or ")} == {
                f"2026-11-0{n}" for n in range(1, day + 1)
            }
