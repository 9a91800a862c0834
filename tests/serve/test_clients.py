"""Programs that talk to servers, against this one: lm-eval, and our own `distill` and `eval`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sparsedraft
from served import Served, serving
from sparsedraft.models.tokenizers import templates
from sparsedraft.serve.options import ServeOptions
from sparsedraft.text import dataset
from stages import distill, evaluate_to
from transformers_server import ASKED

TOKENS, K = 16, 3


@pytest.fixture(scope="module")
def served(talker: Path) -> Iterator[Served]:
    yield from serving(ServeOptions(target=str(talker), drafter=str(talker), parallel=3, served_name="talker"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight conversations, two of them of two turns."""
    path = tmp_path_factory.mktemp("asked") / "prompts.jsonl"
    turns = [[text] for text in ASKED[:6]] + [[ASKED[6], ASKED[1]], [ASKED[7], ASKED[2]]]
    path.write_text("\n".join(json.dumps({"id": f"p{n}", "turns": of}) for n, of in enumerate(turns)))
    return str(path)


def rows(target: Path, source: str | None, out: Path, **options: Any) -> list[dict[str, Any]]:
    """What `distill` writes, by the rows' ids."""
    distill(str(target), source, out, max_new_tokens=TOKENS, **options)
    return sorted(dataset.read(out), key=lambda row: row["id"])


def at(served: Served) -> dict[str, Any]:
    return {"engine": "endpoint", "url": f"{served.url}/v1", "served_name": "talker", "concurrency": 4}


def test_distilled_rows_are_those_of_the_target_here(served: Served, talker: Path, asked: str, tmp_path: Path) -> None:
    """Text, tokens, why it ended, and the likeliest tokens of each place."""
    own = rows(talker, asked, tmp_path / "own", top_k_logprobs=K)
    found = rows(talker, asked, tmp_path / "served", top_k_logprobs=K, **at(served))
    assert len(found) == len(own) == 10
    for row, other in zip(found, own, strict=True):
        assert row.pop("engine") == "endpoint" != other.pop("engine")
        mine, theirs = likeliest(row), likeliest(other)
        assert row == other
        assert mine == [pytest.approx(place, rel=2**-7, abs=2e-3) for place in theirs], (
            "two engines, which round to 16 bits"
        )


def likeliest(row: dict[str, Any]) -> list[dict[int, float]]:
    """The likeliest tokens of each place of a row, which loses them, with their log-probabilities."""
    pairs = [*zip(row.pop("topk_ids"), row.pop("topk_logprobs"), strict=True)]
    return [dict(pairs[i : i + K]) for i in range(0, len(pairs), K)]


def test_usage_counts_the_tokens_that_distill_writes(served: Served, talker: Path, asked: str, tmp_path: Path) -> None:
    for row in rows(talker, asked, tmp_path / "out", **at(served)):
        *chat, answer = row["messages"]
        whole = served.client.chat.completions.create(model="talker", messages=chat, temperature=0, max_tokens=TOKENS)
        assert whole.choices[0].message.content == answer["content"]
        assert whole.usage.completion_tokens == len(row["answer_ids"])
        assert whole.usage.prompt_tokens == len(row["prompt_ids"])


def test_samples_follow_their_seeds_whatever_runs_beside_them(
    served: Served, talker: Path, asked: str, tmp_path: Path
) -> None:
    how = {"temperature": 1.5, "samples": 2, **at(served)}
    found = [rows(talker, asked, tmp_path / f"{n}", seed=seed, **how) for n, seed in enumerate((1, 1, 2))]
    said = [[row["messages"][-1]["content"] for row in of] for of in found]
    assert found[0] == found[1] and said[0] != said[2]


def test_magpie_takes_raw_completions(served: Served, talker: Path, tmp_path: Path) -> None:
    found = rows(talker, None, tmp_path / "out", mode="magpie", limit=6, **at(served))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found and result["prompts"] == 6 == len(found) + sum(result["dropped"].values())


def test_an_evaluation_of_the_served_target_is_that_of_the_target_here(
    served: Served, talker: Path, asked: str, tmp_path: Path
) -> None:
    named = [("self", str(talker)), ("lookup", "lookup")]
    how = {"simulate": True, "max_new_tokens": TOKENS, "k": (1, 3)}
    here = evaluate_to(tmp_path / "here", str(talker), named, asked, how)
    server = {"url": f"{served.url}/v1", "served_name": "talker", "concurrency": 3}
    there = evaluate_to(tmp_path / "there", str(talker), named, asked, how | server)
    assert [entry["alpha"] for entry in there["drafters"]] == [entry["alpha"] for entry in here["drafters"]]


TASK = """
task: says
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["zzz"]
  max_gen_toks: 16
  do_sample: false
  temperature: 0.0
metric_list:
  - metric: exact_match
"""


def test_lm_eval_scores_what_the_target_says(served: Served, talker: Path, tmp_path: Path) -> None:
    """By its local-chat-completions: each answer is the target's, and half of the expected ones are spoilt."""
    lm_eval = pytest.importorskip("lm_eval")
    yaml = pytest.importorskip("yaml")
    said = [sparsedraft.generate(talker, text, max_new_tokens=16).text for text in ASKED]
    docs = [
        {"question": text, "answer": answer + " not" * (number % 2)}
        for number, (text, answer) in enumerate(zip(ASKED, said, strict=True))
    ]
    data = tmp_path / "says.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    result = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args={
            "model": "talker",
            "base_url": f"{served.url}/v1/chat/completions",
            "num_concurrent": 3,
            "max_retries": 1,
            "tokenized_requests": False,
        },
        tasks=[yaml.safe_load(TASK.format(data=data))],
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    answers = {one["doc"]["question"]: one["resps"][0][0] for one in result["samples"]["says"]}
    assert answers == dict(zip(ASKED, said, strict=True))
    assert result["results"]["says"]["exact_match,none"] == 0.5


def test_what_distill_tells_a_template_is_taken_where_it_is_so_anyway(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day, which `distill` sends to servers whose template asks for it; another one is refused, not ignored."""
    tokenizer = served.service.pair.target.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", f"{tokenizer.chat_template}{{# date_string #}}")
    body = {"model": "talker", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert served.post("/v1/chat/completions", body | templates.for_server(tokenizer))[0] == 200
    for other in ({"date_string": "1 Apr 1976"}, {"enable_thinking": False}):
        status, answer = served.post("/v1/chat/completions", body | {"chat_template_kwargs": other})
        assert status == 400 and answer["error"]["param"] == "chat_template_kwargs"
