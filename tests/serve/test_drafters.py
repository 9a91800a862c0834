"""A server with several drafters: requests choose, answers stay the target's, and the counters tell who drafted."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sparsedraft
from served import Served, serving
from sparsedraft.base.errors import UserError
from sparsedraft.serve.counters import Counters
from sparsedraft.serve.options import ServeOptions
from sparsedraft.speculate.loop.sequence import Step
from transformers_server import ASKED

NAMES = ["talker-drafter", "tiny", "lookup"]


@pytest.fixture(scope="module")
def served(talker: Path, tiny_checkpoint: Path) -> Iterator[Served]:
    drafters = (str(talker), str(tiny_checkpoint), "lookup")
    yield from serving(ServeOptions(target=str(talker), drafter=drafters, parallel=4, served_name="talker"))


def test_answers_are_the_targets_whoever_drafts(served: Served, talker: Path) -> None:
    """Greedy ones, side by side in shared steps; the first drafter drafts for those that do not choose."""

    def ask(job: tuple[str, str | None]) -> str:
        text, drafter = job
        more = {"draft_model": drafter} if drafter else {}
        answer = served.client.chat.completions.create(
            model="talker",
            messages=[{"role": "user", "content": text}],
            temperature=0,
            max_tokens=12,
            extra_body=more | {"num_draft_tokens": 0 if drafter == "none" else 3},
        )
        return str(answer.choices[0].message.content)

    jobs = [(text, drafter) for text in ASKED[:4] for drafter in (None, "none", *NAMES)]
    before = drafted(served)
    with ThreadPoolExecutor(len(jobs)) as pool:
        answers = [*pool.map(ask, jobs)]
    assert answers == [sparsedraft.generate(talker, text, max_new_tokens=12).text for text, _ in jobs]
    after = drafted(served)
    assert {*after} == {*NAMES} and all(after[name] > before.get(name, 0) for name in NAMES[:2])
    assert sum(after.values()) == total(served), "the totals are of all drafters"
    rates = {name: drafted(served, "accepted_tokens")[name] / after[name] for name in NAMES[:2]}
    assert rates["talker-drafter"] > rates["tiny"], "each is counted by itself"


def drafted(served: Served, what: str = "draft_tokens") -> dict[str, int]:
    """The counter of each drafter."""
    pattern = rf'^sparsedraft:spec_decode_num_{what}_by_drafter_total{{draft_model="(.*)"}} (\d+)$'
    return {name: int(count) for name, count in re.findall(pattern, served.get("/metrics"), re.M)}


def total(served: Served) -> int:
    (count,) = re.findall(r"^sparsedraft:spec_decode_num_draft_tokens_total (\d+)$", served.get("/metrics"), re.M)
    return int(count)


def test_sampled_answers_follow_their_seed_and_their_drafter(served: Served) -> None:
    def ask(drafter: str) -> str:
        how = {"temperature": 1.2, "seed": 5, "max_tokens": 10, "draft_model": drafter}
        status, answer = served.post("/v1/completions", {"model": "talker", "prompt": "the quick", **how})
        assert status == 200
        return str(answer["choices"][0]["text"])

    jobs = [name for name in ("none", *NAMES) for _ in range(3)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = [*pool.map(ask, jobs)]
    assert together == [ask(name) for name in jobs]


def test_what_is_loaded_is_listed(served: Served) -> None:
    (model,) = served.client.models.list()
    assert model.draft_models == ["none", *NAMES]
    status, answer = served.post("/v1/completions", {"model": "talker", "prompt": "x", "draft_model": "other"})
    assert status == 400 and "choose one of none, talker-drafter, tiny, lookup" in answer["error"]["message"]


def test_two_folders_of_one_name_are_two_drafters(tiny_checkpoint: Path, tmp_path: Path) -> None:
    again = tmp_path / "tiny"
    again.symlink_to(tiny_checkpoint)
    copy = tmp_path / "copy" / "tiny"
    copy.parent.mkdir()
    for file in tiny_checkpoint.iterdir():
        copy.mkdir(exist_ok=True)
        (copy / file.name).write_bytes(file.read_bytes())
    options = ServeOptions(target=str(tiny_checkpoint), drafter=(str(again), str(copy)), parallel=1, served_name="t")
    for found in serving(options):
        assert found.service.names.drafters == ["none", "tiny", "tiny-2"]


@pytest.mark.parametrize(("given", "told"), [
    ({"drafter": ("lookup", "lookup")}, "lookup is given twice"),
    ({"drafter": ("lookup",), "lookup": True}, "goes beside a model"),
    ({"drafter": (), "drafter_window": 64}, "no model drafts"),
])  # fmt: skip
def test_drafters_that_cannot_be(tiny_checkpoint: Path, given: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        ServeOptions(target=str(tiny_checkpoint), **given)


def test_one_drafter_may_be_given_by_itself(tiny_checkpoint: Path) -> None:
    assert ServeOptions(target=str(tiny_checkpoint), drafter="lookup").drafter == ("lookup",)
    assert ServeOptions(target=str(tiny_checkpoint), drafter=None).drafter == ()


def test_a_label_is_escaped_as_prometheus_reads_it() -> None:
    counters = Counters()
    counters.count(Step([1], 1, [1, 2]), 'a"b\\c\nd')
    assert 'draft_tokens_by_drafter_total{draft_model="a\\"b\\\\c\\nd"} 1' in counters.text()
    assert "num_drafts_by_drafter_total{" not in Counters().text(), "nobody is named who did not draft"
