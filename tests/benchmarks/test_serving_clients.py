"""How the benchmark of the server asks and counts: events of both kinds, prompts that begin alike nowhere, names."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import serving_many
import serving_public
import sparsedraft
from serving_clients import Gathered, beginnings, dealt, distinct, read_metrics, together, total
from serving_load import BAD, Load, Seen, taken
from serving_own import Served
from sparsedraft.base.errors import UserError
from tiny import build_tokenizer
from transformers_server import ASKED

BEGIN = range(40, 240)
METRICS = """# HELP a:requests_total Requests.
# TYPE a:requests_total counter
a:requests_total{reason="stop"} 3
a:requests_total{reason="a b"} 2
a:running 1.5
"""


def test_events_of_both_kinds_add_up_to_the_same() -> None:
    openai, chat, llama = Gathered(), Gathered(), Gathered()
    for seconds, piece in ((1.0, ""), (2.0, "one"), (3.0, " two")):
        openai.add({"choices": [{"text": piece}]}, seconds)
        chat.add({"choices": [{"delta": {"content": piece} if piece else {"role": "assistant"}}]}, seconds)
        llama.add({"content": piece}, seconds)
    usage = {"choices": [], "usage": {"completion_tokens": 5}}
    drafted = {"metrics": {"speculative_decoding": [{"num_draft_tokens": 4}, {"num_draft_tokens": 3}]}}
    openai.add(usage | drafted, 4.0)
    chat.add(usage | drafted, 4.0)
    llama.add({"content": "", "timings": {"predicted_n": 5, "draft_n": 7}}, 4.0)
    assert openai == chat == llama == Gathered("one two", 5, 7, 2.0)
    with pytest.raises(ValueError, match="not enough memory"):
        openai.add({"error": {"message": "there is not enough memory"}}, 5.0)


@pytest.mark.parametrize(("clients", "each"), [(1, 4), (4, 2), (16, 2)])
def test_no_prompt_of_a_run_begins_like_another(clients: int, each: int) -> None:
    """Neither in the rounds nor in the warm-up before them; every client gets its share of each round."""
    prompts = [[7, n] for n in range(5)]
    turns = [dealt(BEGIN, prompts, clients, each, turn) for turn in (serving_many.WARM_UP, 0, 1, 2)]
    seen = [ids for lists in turns for own in lists for ids in own]
    assert len({ids[0] for ids in seen}) == len(seen) == 4 * clients * each
    assert {tuple(ids[1:]) for ids in seen} == {(7, n) for n in range(5)}
    assert [len(own) for own in dealt(BEGIN, prompts, clients, each, 1)] == [each] * clients
    assert distinct(BEGIN, 3, [1, 2])[1:] == [1, 2]


def test_prompts_begin_with_text() -> None:
    """Of letters alone: no special token, and no byte that is only a part of a letter."""
    tokenizer = build_tokenizer()
    found = beginnings(tokenizer)
    assert len(found) == len(set(found)) > 40
    assert all(tokenizer.decode([id]).isalpha() and tokenizer.decode([id]).isascii() for id in found)


def test_metrics_are_read_by_name_and_summed_over_labels() -> None:
    found = read_metrics(METRICS)
    assert found['a:requests_total{reason="a b"}'] == 2 and found["a:running"] == 1.5
    assert total(found, "a:requests_total") == 5 and total(found, "a:requests") == 0


def test_names_of_ways_are_read_back() -> None:
    for peer, kind, k in (("llama.cpp", "Q4_0", 0), ("ik_llama.cpp", "Q4_K_M", 8)):
        assert serving_many.parts_of_name(serving_many.peer_name(peer, kind, k)) == (peer, kind, k)
    for drafter, k in (("dense", "auto"), ("one-shot 2:4", 4)):
        assert serving_many.parts_of_own(serving_many.own_name(drafter, k)) == (drafter, k)


def test_the_share_of_equal_texts() -> None:
    rows = [
        {"way": way, "prompt": turn, "texts": [f"{turn} same", text]}
        for turn in (0, 1)
        for way, text in (("a", "x"), ("b", "x" if turn else "y"), ("c", "z"))
    ]
    assert serving_many.equal_texts(rows, "a", "b") == 0.75


def test_memory_is_compared_tenth_by_tenth() -> None:
    seen = Seen(memory=[(number, number // 100) for number in range(0, 1000, 20)])
    assert [seen.tenth(which, 1000) for which in (1, 9)] == [1, 9]
    with pytest.raises(UserError, match="--requests 10 is too few"):
        Seen(memory=[(0, 5)]).tenth(9, 10)


def test_figures_of_the_public_tool() -> None:
    report = {name: {"unit": "ms", "avg": 2.0, "p99": 3.0, "std": 1.0} for name in serving_public.FIGURES}
    del report["request_throughput"]["p99"]
    found = serving_public.read(json.dumps({**report, "input_config": {}}))
    assert found["first token"] == {"unit": "ms", "avg": 2.0, "p99": 3.0}
    assert found["requests/s"] == {"unit": "ms", "avg": 2.0} and "std" not in str(found)
    with pytest.raises(LookupError):
        serving_public.read("{}")


@pytest.fixture(scope="module")
def process(talker: Path) -> Iterator[Served]:
    with closing(Served(talker, 1, 16, "--drafter", talker)) as served:
        yield served


@pytest.mark.slow
def test_a_load_on_a_real_server_loses_no_place_and_no_text(process: Served, talker: Path) -> None:
    texts = [(text, sparsedraft.generate(talker, text, max_new_tokens=16).text) for text in ASKED[:4]]
    load = Load(process, texts, 120)
    asyncio.run(load.run())
    seen = load.seen
    assert seen.wrong == [] and seen.refused == 12 >= len(BAD)
    assert seen.texts == seen.equal and seen.texts + seen.cancelled == 108 and seen.cancelled > 0
    assert seen.memory[0][1] > 1 << 20 and seen.tenth(9, 120) > 0
    left, most = asyncio.run(load.places())
    assert left == 0 and most <= 16  # the tiny model may have ended between two looks
    assert taken({"sparsedraft:num_requests_running": 1.0, "sparsedraft:num_requests_waiting": 2.0}) == 3


@pytest.mark.slow
def test_clients_get_the_same_texts_with_and_without_drafts(process: Served) -> None:
    lists = [[distinct(BEGIN, 2 * client + number, [20, 30, 40]) for number in (0, 1)] for client in range(3)]
    (seconds, drafted), (_, plain) = (
        together(endpoint, lists, 8) for endpoint in (process.endpoint(num_draft_tokens=3), process.alone())
    )
    assert [reply.text for reply in drafted] == [reply.text for reply in plain]
    assert all(0 < reply.first <= reply.seconds <= seconds and reply.tokens <= 8 for reply in drafted)
    assert sum(reply.drafted for reply in drafted) > 0 == sum(reply.drafted for reply in plain)
    with pytest.raises(UserError, match=r"sparsedraft serve refused: .*token 99999"):
        together(process.endpoint(), [[[99999]]], 4)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did not start \(.*no/such"):
        Served(tmp_path / "no/such", 1, 1)
