"""An evaluation killed at any point and resumed counts what an undisturbed one counts; only times may differ."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from clockless import clockless
from commands import units_so_far
from sparsedraft.native import extension as native
from sparsedraft.speculate.loop.decode import Decoder
from sparsedraft.speculate.policy import learned
from sparsedraft.stages.evaluate import rows
from sparsedraft.writers import conversation
from stages import evaluate_to

FILES = ("result.json", "rows.jsonl", "answers.jsonl", "example.json")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "apples")
REAL = {"simulate": False}
WARM = {"temperature": 1.0}
CASES = [
    REAL | {"tree": 2},
    REAL | WARM | {"k": [2, "auto", "bandit"]},
    REAL | {"k": [1, "confidence"]},
    REAL | WARM | {"k": [2, "auto"], "both": True},
    {"simulate": True} | WARM,
]
KILLED = [(case, "transformers") for case in CASES]
if native.available():  # policies under sampling, and a simulation: what a row keeps does not depend on who writes
    KILLED += [(CASES[1], "native"), (CASES[4], "native")]


class Killed(BaseException):
    """At once, as SIGKILL would: nothing may be tidied up that a kill would leave."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_llama, tokenizer) -> tuple[Path, Path, Path]:
    """(a target, a drafter like it, prompts of several lengths, some with two turns)."""
    folder, model = tmp_path_factory.mktemp("models"), tiny_llama(layers=2)
    generator = torch.Generator().manual_seed(3)
    for name in ("target", "drafter"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        for parameter in model.parameters():
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    chance, prompts = random.Random(0), folder / "prompts.jsonl"
    texts = [[" ".join(chance.choices(WORDS, k=chance.randint(2, 20))) for _ in range(1 + i % 2)] for i in range(2)]
    prompts.write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in texts))
    return folder / "target", folder / "drafter", prompts


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves on by 1/1024 s whenever it is asked: policies see the same times wherever they start."""
    ticks = itertools.count()
    monkeypatch.setattr(Decoder, "clock", staticmethod(lambda: next(ticks) / 1024))
    init = Decoder.__init__
    monkeypatch.setattr(Decoder, "__init__", lambda self, *a, **k: init(self, *a, **{"clock": Decoder.clock} | k))


def evaluated(out: Path, models: tuple[Path, Path, Path], options: dict[str, Any], drafters: int = 1) -> None:
    target, drafter, prompts = models
    beside = "+lookup" * options.pop("both", False)
    named = [("one", f"{drafter}{beside}"), ("lookup", "lookup")][:drafters]
    evaluate_to(out, str(target), named, str(prompts), options)


def counted(folder: Path) -> dict[str, Any]:
    return {name: clockless(folder / name) for name in FILES}


@pytest.mark.parametrize(("case", "runtime"), KILLED, ids=str)
def test_killed_after_any_row(
    case: dict[str, Any], runtime: str, models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"k": [2], "max_new_tokens": 6, "batch_size": 2, "runtime": runtime, **case}
    drafters = 1 if "tree" in case else 2
    evaluated(tmp_path / "whole", models, dict(case), drafters)
    wanted, real = counted(tmp_path / "whole"), rows.Measurement.rows
    for row in range(len(wanted["rows.jsonl"])):  # of one evaluation, which each time has one row more to go on from
        left = iter(range(min(row, 1)))

        def dying(self: rows.Measurement, *args: Any, left=left):
            for found in real(self, *args):
                if next(left, None) is None:
                    raise Killed  # the row's work is done, and it is not written
                yield found

        with monkeypatch.context() as patch:
            patch.setattr(rows.Measurement, "rows", dying)
            with pytest.raises(Killed):
                evaluated(tmp_path / "cut", models, dict(case), drafters)
        assert units_so_far(tmp_path / "cut") == row
    evaluated(tmp_path / "cut", models, dict(case), drafters)
    assert counted(tmp_path / "cut") == wanted


def test_policies_go_on_where_they_were(tmp_path: Path) -> None:
    """A policy that is told again what it has seen is the one that has seen it."""
    from sparsedraft.speculate.policy.protocol import Outcome

    def lived(folder: Path, breaks: bool) -> list[int]:
        chance, found = random.Random(1), []
        folder.mkdir()
        mine = learned.Learned(folder, "one", ["auto", "bandit", 3])
        for number in range(12):
            if breaks:
                mine = learned.Learned(folder, "one", ["auto", "bandit", 3], [f"a{i}" for i in range(number)])
            with mine.answer(f"a{number}") as policies:
                for step in range(9):
                    wanted = {k: policy.next_k() for k, policy in policies.items()}
                    for k, policy in policies.items():
                        took = 0.01 + 0.002 * wanted[k] * (1 + chance.random())
                        accepted = chance.randint(0, wanted[k])
                        policy.observe(
                            Outcome(
                                wanted[k], accepted, accepted + 1, took / 2, took, wanted[k] > 0, step == 0, step == 0
                            )
                        )
                    found += wanted.values()
        return found

    whole = lived(tmp_path / "whole", False)
    assert lived(tmp_path / "cut", True) == whole and len(set(whole)) > 2


def test_answers_that_an_earlier_version_wrote_stand(
    models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, drafter, prompts = models
    options = {"k": [2], "max_new_tokens": 6, "simulate": True}
    named = [("one", str(drafter)), ("lookup", "lookup")]
    for out, count in (("old", 1), ("whole", 2)):
        evaluate_to(tmp_path / out, str(target), named[:count], str(prompts), options)
    file = tmp_path / "old" / "answers.jsonl"
    units = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({"unit": n, "rows": unit["rows"]}) + "\n" for n, unit in enumerate(units)))

    def ask(self: object, unit: object) -> None:
        raise AssertionError("the target is asked again")

    monkeypatch.setattr(conversation, "respond", ask)
    grown = evaluate_to(tmp_path / "old", str(target), named, str(prompts), options)
    assert grown == json.loads((tmp_path / "whole" / "result.json").read_text())
