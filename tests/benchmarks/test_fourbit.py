"""How the 4-bit benchmark chooses and compares; nothing is timed here."""

from typing import Any

import pytest

import fourbit_answers
import fourbit_rates
import whole_answers
from fourbit_rates import Row
from peers_server import Answer
from record import Table


def row(prompt: int, way: str, tokens: int, seconds: float) -> dict[str, Any]:
    return {"prompt": prompt, "way": way, "tokens": tokens, "seconds": seconds, "drafted": 0, "accepted": 0}


def test_of_each_peer_the_fastest_alone_and_with_a_drafter_unless_far_behind() -> None:
    speed = {
        "llama.cpp Q4_0 alone": 20.0, "llama.cpp Q4_K_M alone": 18.0, "llama.cpp Q4_0 K=2": 10.0,
        "ik_llama.cpp Q4_0 alone": 24.0, "ik_llama.cpp Q4_0 K=2": 22.0, "ik_llama.cpp Q4_0 K=4": 21.0,
    }  # fmt: skip
    assert fourbit_answers.nearest(speed) == [
        "llama.cpp Q4_0 alone", "ik_llama.cpp Q4_0 alone", "ik_llama.cpp Q4_0 K=2"
    ]  # fmt: skip
    assert fourbit_answers.nearest({}) == []


def test_a_ratio_of_whole_answers_is_of_sums() -> None:
    rows = [row(0, "a", 10, 1.0), row(0, "b", 10, 2.0), row(1, "a", 30, 1.0), row(1, "b", 10, 2.0)]
    value, (low, high) = whole_answers.ratio(rows, "a", "b")
    assert value == pytest.approx(20 / 5) and low < value < high


def test_the_pair_and_the_best_k_of_each_drafter_are_chosen() -> None:
    def way(seconds: float) -> whole_answers.Way:
        return lambda ids, tokens: Answer(tokens, seconds)

    seconds = {"int4 alone": 1, "int4, a drafter, K=2": 2, "int4, a drafter, K=3": 4, "int4, b drafter, K=2": 3}
    task = whole_answers.Task([[1]], [[1], [2]], 8, 4)
    kept: list[Any] = []
    pair, each = fourbit_answers.chosen_own({name: way(s) for name, s in seconds.items()}, task, kept.append)
    assert pair == "int4, a drafter, K=2" and each == ["int4, a drafter, K=2", "int4, b drafter, K=2"]
    assert [len(rows) for rows in kept] == [8, 8]  # one list, which grows


def test_a_slow_peer_does_not_read_the_long_prompt_again() -> None:
    asked: dict[str, list[list[int]]] = {"llama.cpp Q4_0": [], "ik_llama.cpp Q4_0": [], "int4": []}

    def turn(name: str, rate: float) -> fourbit_rates.Turn:
        def measure(prompts: list[int]) -> dict[str, float]:
            asked[name].append(list(prompts))
            return {str(count): rate for count in prompts} | {"decode": rate}

        return measure

    speed = {"llama.cpp Q4_0": 10.0, "ik_llama.cpp Q4_0": 20.0, "int4": 5.0}
    rows = {name: Row(turn(name, rate), 100) for name, rate in speed.items()}
    fourbit_rates.take_turns(rows, (4, 8), 2, lambda seen: None)
    assert asked["llama.cpp Q4_0"] == [[4, 8], []] and asked["ik_llama.cpp Q4_0"] == asked["int4"] == [[4, 8], [4, 8]]


def test_rows_of_the_target_alone() -> None:
    rates = {"int4": 30.0, "int8": 20.0, "llama.cpp Q4_0": 25.0, "llama.cpp Q8_0": 40.0}
    seen = {name: {"decode": [rate], "4": [rate * 10], "8": [rate * 9]} for name, rate in rates.items()}
    rows = {name: Row(lambda prompts: {}, 100, seen[name]) for name in rates}
    table = Table("toy")
    fourbit_rates.compare(rows, (4, 8), 4000.0, table)
    found = {each["name"]: each["ratio"] for each in table.rows}
    assert found["decode, int4 target / theirs"] == 1.2  # Q8_0 is no 4-bit file
    assert found["decode, int4 target / own int8 of this build"] == 1.5
    assert found["decode, int4 target: share of the widest row's bandwidth"] == 0.75
    assert found["read 4 tokens, int4 target / theirs"] == 0.75  # of any file
    assert found["read 8 / 4 tokens, int4 target, tokens/s"] == 0.9
