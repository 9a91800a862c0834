"""Servers whose log-probabilities are not the model's, or that take no notice of a temperature, are found out before a
row is asked of them; honest ones never are, however sure their model is."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from faults import edited, proxied
from scripted import places, said, scripted
from sparsedraft.base.errors import UserError
from sparsedraft.base.journal import read_lines
from sparsedraft.text import dataset
from sparsedraft.writers.server import trial
from stages import distill
from transformers_server import ASKED

LEADS = [3.0, 1.0, 0.0, -1.0, -2.0]  # logits of the first five tokens at every place of the model that is played here


def model(asked: dict[str, Any], at: float = 1.0) -> list[tuple[str, float]]:
    """The likeliest tokens by id, at a temperature."""
    logits = torch.tensor(LEADS, dtype=torch.float64) / at
    k = asked.get("top_logprobs", 0)
    return [(f"token_id:{i + 64}", float(p)) for i, p in enumerate(logits.log_softmax(-1))][:k]


def honest(asked: dict[str, Any]) -> Any:
    """Eight tokens, another one for another seed unless it is to be greedy."""
    mark = (
        hashlib.sha256(f"{asked.get('seed')}/{asked['messages']}".encode()).hexdigest() if asked["temperature"] else ""
    )
    n = min(8, asked["max_tokens"])
    found = places([(f"token_id:{64 + (int(mark[i], 16) if mark else 0)}", model(asked)) for i in range(n)])
    text = f"words that are long enough to tell {mark[:6]}"
    return said(text, logprobs=found if asked.get("logprobs") else None)


def drafting(asked: dict[str, Any]) -> Any:
    """llama-server with a drafter: 0 and no alternatives for tokens that were drafted and accepted."""
    body = honest(asked)
    found = body["choices"][0]["logprobs"]
    for n, place in enumerate(found["content"] if found else ()):
        if n % 3:
            place |= {"logprob": 0.0, "top_logprobs": []}
    return body


def sure(asked: dict[str, Any]) -> Any:
    """The same with the drafted token alone as its own alternative, and then some that do not add up."""
    body = honest(asked)
    for place in (body["choices"][0]["logprobs"] or {}).get("content", ()):
        place["top_logprobs"][0]["logprob"] = 0.0
    return body


def few(asked: dict[str, Any]) -> Any:
    return honest({**asked, "top_logprobs": min(2, asked.get("top_logprobs", 0))})


def hot(asked: dict[str, Any]) -> Any:
    """SGLang: what is reported is what is drawn from."""
    body = honest(asked)
    for place in (body["choices"][0]["logprobs"] or {}).get("content", ()):
        found = model(asked, asked["temperature"] or 1.0)
        place["top_logprobs"] = [{"token": token, "logprob": p} for token, p in found]
    return body


def numberless(asked: dict[str, Any]) -> Any:
    body = honest(asked)
    for place in (body["choices"][0]["logprobs"] or {}).get("content", ()):
        place["top_logprobs"][0]["logprob"] = math.nan
    return body


def greedy(asked: dict[str, Any]) -> Any:
    return honest({**asked, "temperature": 0.0})


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"p{n}", "prompt": text}) for n, text in enumerate(ASKED)))
    return str(path)


def run(target: Path, source: str, out: Path, script: Any, **options: Any) -> Any:
    """(the result, the questions of the prompts file that were asked)."""
    with scripted(script) as server:
        given = {"engine": "endpoint", "url": server.url, "served_name": "m", "max_new_tokens": 16, "concurrency": 2}
        try:
            return distill(str(target), source, out, **{**given, **options})
        finally:
            run.asked = [asked for asked in server.asked if asked["messages"][0]["content"] in ASKED]


SOFT = {"top_k_logprobs": 4}
UNFIT = [
    (drafting, SOFT, r"reports no 4 likeliest tokens at 5 of 8 places.*start it without a drafter.*--model-draft"),
    (sure, SOFT, r"probabilities whose sum is above 1: start it without a drafter"),
    (few, SOFT, r"reports 2 of the 4 likeliest tokens: ask for 2, or start it with a higher limit"),
    (numberless, SOFT, r"log-probabilities that are no numbers"),
    (hot, {**SOFT, "temperature": 0.5}, r"after the temperature.*SGLANG_RETURN_ORIGINAL_LOGPROB=1"),
    (hot, {**SOFT, "temperature": 3.0}, r"after the temperature.*SGLANG_RETURN_ORIGINAL_LOGPROB=1"),
    (greedy, {"temperature": 0.8, "samples": 3}, r"same answers whatever the seed.*do_sample.*generation_config"),
    (greedy, {"temperature": 0.8}, r"same answers whatever the seed.*do_sample.*generation_config"),
]


@pytest.mark.parametrize(("script", "options", "words"), UNFIT)
def test_what_is_not_the_models_stops_before_a_row_is_asked(
    tiny_checkpoint: Path, source: str, tmp_path: Path, script: Any, options: Any, words: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=words) as error:
        run(tiny_checkpoint, source, out, script, **options)
    assert "\n" not in str(error.value) and not run.asked and not read_lines(tmp_path / ".out.partial" / ".rows.jsonl")
    # the same command goes on when the server is as it should be, and its labels are the model's own
    result = run(tiny_checkpoint, source, out, honest, **options)
    assert result["rows"] == len(ASKED) * options.get("samples", 1) and len(run.asked) == result["rows"]
    if k := options.get("top_k_logprobs"):
        expected = torch.tensor(LEADS, dtype=torch.float64).log_softmax(-1)[:k].tolist()
        for row in dataset.read(out):
            assert row["topk_ids"][:k] == [64, 65, 66, 67] and row["topk_logprobs"][:k] == pytest.approx(
                expected, abs=2e-3
            )


def test_a_sure_model_is_no_deaf_server(tiny_checkpoint: Path, source: str, tmp_path: Path) -> None:
    """Its samples are equal at any ordinary temperature: the high one tells."""

    def answer(asked: dict[str, Any]) -> Any:
        return honest(asked) if asked["temperature"] > 50 else greedy(asked)

    result = run(tiny_checkpoint, source, tmp_path / "out", answer, temperature=0.7, samples=2)
    assert result["rows"] == len(ASKED) and result["dropped"] == {"exact duplicate": len(ASKED)}


@pytest.mark.parametrize("limit", [2.0, 1.0])
def test_a_server_with_a_highest_temperature_is_asked_at_that_or_not_at_all(
    tiny_checkpoint: Path, source: str, tmp_path: Path, limit: float
) -> None:
    def answer(asked: dict[str, Any]) -> Any:
        return (400, b"too hot") if asked["temperature"] > limit else honest(asked)

    assert run(tiny_checkpoint, source, tmp_path / "out", answer, temperature=0.7)["rows"] == len(ASKED)


def test_short_equal_answers_prove_nothing(tiny_checkpoint: Path, source: str, tmp_path: Path) -> None:
    assert run(tiny_checkpoint, source, tmp_path / "out", lambda asked: said("yes"), temperature=0.7)["rows"] >= 1


def test_the_first_answers_without_a_usable_label_stop_it(tiny_checkpoint: Path, source: str, tmp_path: Path) -> None:
    """The trial passed: what comes afterwards is judged, too; those few rows are finished."""

    def answer(asked: dict[str, Any]) -> Any:
        return honest(asked) if asked["messages"][0]["content"] == trial.FORESEEN else drafting(asked)

    with pytest.raises(UserError, match="without a drafter"):
        run(tiny_checkpoint, source, tmp_path / "out", answer, concurrency=1, **SOFT)
    with pytest.raises(UserError, match=r"not one of 3 rows has log-probabilities"):
        run(tiny_checkpoint, source, tmp_path / "few", answer, limit=3, **SOFT)


def test_rows_without_a_label_are_said(tiny_checkpoint: Path, source: str, tmp_path: Path, capsys: Any) -> None:
    def answer(asked: dict[str, Any]) -> Any:
        return drafting(asked) if asked["messages"][0]["content"] in ASKED[:3] else honest(asked)

    result = run(tiny_checkpoint, source, tmp_path / "out", answer, **SOFT)
    assert result["rows_with_topk"] == 5 and "3 of 8 rows have no log-probabilities" in capsys.readouterr().err


def test_scaled_tells_a_temperature_from_rounding() -> None:
    asked = {"top_logprobs": 5}
    plain = [("x", model(asked))]
    for at in (0.3, 0.7, 1.5, 4.0):
        assert trial.scaled(plain, [("x", model(asked, at))], at)
        rounded = [(token, p + 0.05 * (-1) ** n) for n, (token, p) in enumerate(model(asked))]
        assert not trial.scaled(plain, [("x", rounded)], at)
    assert not trial.scaled([("x", model({"top_logprobs": 1}))], [("x", model(asked))], 0.5), "one token tells nothing"


def test_transformers_serve_without_do_sample(
    tiny_checkpoint: Path, talker: Path, served: str, tmp_path: Path, source: str
) -> None:
    """The real one: a checkpoint's own settings decide whether it heeds a temperature; those of tiny/random do not."""
    with proxied(served) as proxy:
        seen: list[Any] = []
        proxy.always = edited(lambda call, body: seen.append(call.json["messages"][0]["content"]) or body)
        options = {"engine": "endpoint", "url": proxy.url, "max_new_tokens": 16, "temperature": 3.0, "samples": 3}
        options |= {"concurrency": 1, "limit": 2}
        with pytest.raises(UserError, match=r"transformers serve needs that"):
            distill(str(tiny_checkpoint), source, tmp_path / "out", served_name="tiny/random", **options)
        assert len(seen) == 2 * len(trial.OPEN) and not set(seen) & set(ASKED)
        distill(str(talker), source, tmp_path / "heard", served_name="tiny/talker", **options)
    assert len({row["messages"][-1]["content"] for row in dataset.read(tmp_path / "heard")}) > 3
