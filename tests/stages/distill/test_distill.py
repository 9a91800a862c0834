"""Distillation: the target's answers on disk, turn by turn, the same after a kill."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.distill import datafolder
from sparsedraft.text import dataset, prompts
from sparsedraft.writers import conversation
from sparsedraft.writers.transformers import writer as engine
from stages import distill

OPTIONS = {"max_new_tokens": 12, "batch_size": 2, "limit": 20}


@pytest.fixture(scope="module")
def data(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "out"
    distill(str(tiny_checkpoint), "demo:train", out, top_k_logprobs=4, **OPTIONS)
    return out


def test_rows_are_the_targets_own_greedy_answers(data: Path, tiny_checkpoint: Path) -> None:
    model, tokenizer = checkpoint.load(tiny_checkpoint), checkpoint.load_tokenizer(tiny_checkpoint)
    rows, chosen = dataset.read(data), prompts.read("demo:train")[:20]
    assert sorted(row["id"] for row in rows) == sorted(f"{p.id}/{t}" for p in chosen for t in range(len(p.turns)))
    for row in rows[:6]:
        assert row["prompt_ids"] == templates.chat_ids(tokenizer, row["messages"][:-1])
        alone = model.generate(torch.tensor([row["prompt_ids"]]), max_new_tokens=12, do_sample=False)
        assert alone[0, len(row["prompt_ids"]) :].tolist() == row["answer_ids"]
        assert row["finish_reason"] == ("eos" if row["answer_ids"][-1] == 2 else "length")
        assert len(row["topk_ids"]) == len(row["topk_logprobs"]) == 4 * len(row["answer_ids"])
        assert row["topk_ids"][::4] == row["answer_ids"], "greedy: the likeliest token is the written one"


def test_a_second_turn_has_the_first_answer_in_context(data: Path) -> None:
    rows = {row["id"]: row for row in dataset.read(data)}
    two = [row for row in rows.values() if row["turn"] == 1]
    assert two, "the demo has two-turn prompts"
    for row in two:
        assert row["messages"][:-2] == rows[f"{row['prompt_id']}/0"]["messages"]
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * 2


def test_result_counts_what_is_there(data: Path) -> None:
    result, rows = json.loads((data / "result.json").read_text()), dataset.read(data)
    assert result["rows"] == len(rows) and sum(result["finish_reasons"].values()) == len(rows)
    assert result["target_tokens"] == sum(len(row["answer_ids"]) for row in rows)
    assert parquet.read_schema(data / "data-00000.parquet").names == dataset.SCHEMA.names


def test_killed_distillation_ends_with_the_same_bytes(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    finished, calls = conversation._complete, []

    def dies(*args):
        calls.append(1)
        if len(calls) in (11, 20):  # in the second group, and there again
            raise KeyboardInterrupt
        finished(*args)

    monkeypatch.setattr(conversation, "_complete", dies)
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill(str(tiny_checkpoint), "demo:train", out, top_k_logprobs=4, **OPTIONS)
        journal = tmp_path / ".out.partial" / ".rows.jsonl"
        journal.write_bytes(
            journal.read_bytes() + b'{"unit": 9, "rows": [{"id": "torn'
        )  # a kill in the middle of a write
    distill(str(tiny_checkpoint), "demo:train", out, top_k_logprobs=4, **OPTIONS)
    rows = len(dataset.read(data))
    assert len(calls) < rows + 25, "finished groups are not written again"
    for name in ("data-00000.parquet", "result.json"):
        assert (out / name).read_bytes() == (data / name).read_bytes()


def test_samples_are_several_and_seeded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"max_new_tokens": 8, "limit": 6, "samples": 2, "temperature": 1.0}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        distill(str(tiny_checkpoint), "demo:train", tmp_path / name, seed=seed, **options)
    a, b, c = (dataset.read(tmp_path / name) for name in "abc")
    assert a == b and [r["answer_ids"] for r in a] != [r["answer_ids"] for r in c]
    first = [r for r in a if r["prompt_id"] == a[0]["prompt_id"] and r["turn"] == 0]
    assert [r["sample"] for r in first] == [0, 1] and first[0]["answer_ids"] != first[1]["answer_ids"]


def test_samples_in_the_ids_of_another_tokenizer(data: Path, tokenizer) -> None:
    own = [*dataset.samples(data, tokenizer)]
    assert own[0].topk_ids is not None and own[0].topk_ids.shape == (len(own[0].answer_ids), 4)
    import copy

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["question"])
    again = [*dataset.samples(data, other)]
    row = dataset.read(data)[0]
    assert again[0].topk_ids is None and again[0].prompt_ids == templates.chat_ids(other, row["messages"][:-1])
    assert other.decode(again[0].answer_ids, skip_special_tokens=True).strip() == row["messages"][-1]["content"]


def test_refusals(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def refused(message: str, source: str = "demo:train", **options: object) -> None:
        with pytest.raises(UserError, match=message):
            distill(str(tiny_checkpoint), source, tmp_path / "no", **{**OPTIONS, **options})

    refused("evaluation prompt", source="demo", limit=None, evaluation=["demo:eval"])
    refused("--mode dream is not known", mode="dream")
    refused("--samples 2", samples=2)
    refused("--top-k-logprobs 321 is more than the vocabulary of 320", top_k_logprobs=321)
    (tmp_path / "empty.jsonl").write_text("")
    refused("is empty", source=str(tmp_path / "empty.jsonl"))
    refused("exceed the context of 512", max_new_tokens=600)
    with pytest.raises(UserError, match="no distilled data folder"):
        dataset.check(tmp_path)


def test_a_target_without_a_chat_template_is_refused(tiny_llama, tokenizer, tmp_path: Path) -> None:
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    checkpoint.save(tiny_llama(), plain, tmp_path / "base")
    with pytest.raises(UserError, match="no chat template"):
        distill(str(tmp_path / "base"), "demo:train", tmp_path / "no", **OPTIONS)


def test_too_long_a_prompt_is_refused_before_any_is_answered(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch
) -> None:
    rows = [{"id": f"p{i}", "prompt": "the quick brown fox"} for i in range(6)]
    rows.append({"id": "long", "prompt": "zq " * 400})
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked: list[int] = []
    monkeypatch.setattr(engine, "complete_all", lambda *_, **__: asked.append(1) or iter(()))
    with pytest.raises(UserError, match=r"prompt long has .* exceed the context of 512"):
        distill(str(tiny_checkpoint), str(tmp_path / "prompts.jsonl"), tmp_path / "out", max_new_tokens=8, batch_size=2)
    assert not asked


def test_turns_that_no_longer_fit_are_dropped_and_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What earlier answers take of the context is known only when they are written."""
    rows = [{"turns": ["the fox", "the dog", "why", "and?"]}, {"prompt": "the apples"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = distill(
        str(tiny_checkpoint), str(tmp_path / "p.jsonl"), tmp_path / "out", max_new_tokens=180, seed=1,
        temperature=1.0, samples=2, top_k_logprobs=2,
    )  # fmt: skip
    assert result["rows"] + sum(result["dropped"].values()) == 10, "every turn is accounted for"
    assert result["dropped"]["no room in the context"] > 0, "the case is one that overflows"
    for row in dataset.read(tmp_path / "out"):
        assert len(row["prompt_ids"]) + 180 <= 512 and row["answer_ids"]


def test_a_shard_is_closed_before_it_is_too_large_for_memory(
    data: Path, tokenizer, tmp_path: Path, monkeypatch
) -> None:
    rows = dataset.read(data)
    most = max(len(r["prompt_ids"]) + len(r["answer_ids"]) + 2 * len(r["topk_ids"]) for r in rows)
    monkeypatch.setattr(datafolder, "NUMBERS", 3 * most)
    datafolder.write(tmp_path, rows, lambda row: "", len(rows), 4)
    shutil.copytree(data / "tokenizer", tmp_path / "tokenizer")
    shutil.copy(data / "result.json", tmp_path)
    sizes = [parquet.read_metadata(file).num_rows for file in sorted(tmp_path.glob("data-*.parquet"))]
    assert len(sizes) > 2 and min(sizes[:-1]) >= 3 and sum(sizes) == len(rows)
    for one, other in zip(dataset.samples(tmp_path, tokenizer), dataset.samples(data, tokenizer), strict=True):
        assert (one.id, one.prompt_ids, one.answer_ids) == (other.id, other.prompt_ids, other.answer_ids)
        assert one.topk_ids.shape == (len(one.answer_ids), 4) and (one.topk_ids == other.topk_ids).all()
        assert (one.topk_logprobs == other.topk_logprobs).all()
    assert all(s.topk_ids is None for s in dataset.samples(data, tokenizer, soft=False))


def test_shards_that_are_not_what_was_written_are_refused(data: Path, tokenizer, tmp_path: Path) -> None:
    table = parquet.read_table(data / "data-00000.parquet")
    without = table.to_pylist()
    without[3]["answer_ids"] = None
    spoilt = {
        r"has no column answer_ids": table.drop_columns(["answer_ids"]),
        rf"holds 5 rows of the {len(table)} that were written": table.slice(0, 5),
        r"row 4 .*: answer_ids is null": pa.Table.from_pylist(without, schema=table.schema),
    }
    for number, (message, changed) in enumerate(spoilt.items()):
        folder = tmp_path / str(number)
        shutil.copytree(data, folder)
        parquet.write_table(changed, folder / "data-00000.parquet")
        with pytest.raises(UserError, match=message):
            list(dataset.samples(folder, tokenizer))


def test_an_answer_of_no_tokens_is_read(data: Path, tokenizer, tmp_path: Path) -> None:
    rows = parquet.read_table(data / "data-00000.parquet").to_pylist()
    rows[3] |= {"answer_ids": [], "topk_ids": [], "topk_logprobs": []}
    shutil.copytree(data, tmp_path / "data")
    parquet.write_table(pa.Table.from_pylist(rows, schema=dataset.SCHEMA), tmp_path / "data" / "data-00000.parquet")
    assert len([*dataset.samples(tmp_path / "data", tokenizer)][3].answer_ids) == 0
