"""The command that is advised says what was measured: typer reads it back as the same options."""

import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from sparsedraft import cli
from sparsedraft.advise.checked import Seen, seen
from sparsedraft.advise.options import AdviseOptions
from sparsedraft.advise.stage import advice_of
from sparsedraft.advise.ways import Way, beside
from sparsedraft.base.errors import UserError
from sparsedraft.speculate.policy.policies import Auto, Constant
from sparsedraft.speculate.policy.sources import WithLookup
from sparsedraft.stages.generate.options import GenerateOptions

WAYS = [
    Way(None), Way("lookup", 4), Way("my drafter", 3), Way("d", None), Way("d", None, 256), Way("d", None, None, True),
]  # fmt: skip
OPTIONS = [
    AdviseOptions(target="a target"),
    AdviseOptions(target="t", temperature=0.7, top_k=5, cache="int8", template_args={"enable_thinking": False}),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_command_is_read_back_as_the_way(way: Way, options: AdviseOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[GenerateOptions] = []
    monkeypatch.setattr("sparsedraft.stages.generate.stage.generate", lambda given: read.append(given) or {})
    monkeypatch.setattr(GenerateOptions, "check_names", lambda self: None)
    program, *words = shlex.split(way.command(options))
    done = CliRunner().invoke(cli.app, words)
    assert program == "sparsedraft" and done.exit_code == 0, done.output
    (given,) = read
    expected = way.generate_options(options)
    assert given == expected.model_copy(update={"prompt": ("...",)})
    # generate chooses the policy that was measured
    policy = way.policy()
    learner = policy.policy if isinstance(policy, WithLookup) else policy
    assert given.lookup == isinstance(policy, WithLookup)
    if way.drafter is not None:
        assert given.chosen_policy == {Auto: "auto", Constant: "constant"}[type(learner)]
    assert given.k == way.k


def test_auto_and_lookup_are_run_beside_a_choice() -> None:
    way = Way("d", 3, 256)
    assert beside(way) == [way, replace(way, k=None), replace(way, k=None, lookup=True)]
    assert beside(Way("lookup", 3)) == [Way("lookup", 3), Way("lookup", None)]


@pytest.mark.parametrize(
    ("fixed", "auto", "advised"),
    [
        (Seen(20, 1.3, [1.1, 1.5]), Seen(19, 1.2, [1.1, 1.3]), "fixed"),
        (Seen(20, 1.1, [0.9, 1.3]), Seen(19, 1.0, [0.9, 1.1]), "auto"),  # not proven: what stops where it loses
        (Seen(15, 0.9, [0.8, 0.99]), Seen(16, 0.98, [0.9, 1.1]), "alone"),
        (Seen(20, 1.2, []), Seen(19, 1.1, []), "auto"),  # of one prompt there is no interval
    ],
)
def test_what_is_advised(fixed: Seen, auto: Seen, advised: str) -> None:
    ways = {"alone": Way(None), "fixed": Way("d", 3), "auto": Way("d", None)}
    figures = {ways["alone"]: Seen(16, 1.0, []), ways["fixed"]: fixed, ways["auto"]: auto}
    found = advice_of(figures, OPTIONS[0])
    assert found["way"] == str(ways[advised]) and found["command"] == ways[advised].command(OPTIONS[0])
    assert found["tokens_per_second"] == figures[ways[advised]].tokens_per_second


def test_a_way_is_compared_on_the_same_prompts() -> None:
    """Where each prompt is faster by the same factor, the interval has no width, however prompts differ."""
    alone = [{"prompt": str(i), "tokens": 10 * i, "seconds": float(i * i)} for i in range(1, 6)]
    faster = [{**row, "seconds": row["seconds"] / 1.25} for row in alone]
    of = seen(faster, alone)
    assert of.speedup == pytest.approx(1.25) and of.speedup_interval == pytest.approx([1.25, 1.25])
    assert seen(alone, alone).speedup == 1 and seen(alone, alone).speedup_interval == []


@pytest.mark.parametrize(
    ("drafters", "sentence"),
    [
        (("a", "a"), r"DRAFTERS name a twice: leave one of them out\."),
        (("a", "lookup"), r"DRAFTERS name lookup, which is tried in any case: leave it out\."),
    ],
)
def test_drafters_that_make_no_sense(drafters: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        AdviseOptions(target="t", drafters=drafters)
