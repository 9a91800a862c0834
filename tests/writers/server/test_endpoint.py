"""The engine `endpoint` against a real `transformers serve`, through a proxy that spoils its answers on demand."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from faults import Call, Proxy, edited, hung_up, proxied, refused, slow, torn, truncated
from sparsedraft import cli
from sparsedraft.base.errors import UserError
from sparsedraft.base.journal import read_lines
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.text import dataset
from sparsedraft.writers.server.reported import UNKNOWN
from sparsedraft.writers.server.server import Server
from stages import distill
from transformers_server import ASKED, free_port

OPTIONS = {"max_new_tokens": 16, "concurrency": 2, "retry_wait": 0.01}
K = 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight conversations, two of them of two turns."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    turns = [[asked] for asked in ASKED[:6]] + [[ASKED[6], ASKED[1]], [ASKED[7], ASKED[2]]]
    path.write_text("\n".join(json.dumps({"id": f"p{n}", "turns": t}) for n, t in enumerate(turns)))
    return str(path)


@pytest.fixture
def proxy(served: str) -> Iterator[Proxy]:
    with proxied(served) as found:
        yield found


@pytest.fixture
def ask(talker: Path, source: str) -> Callable[..., list[dict[str, Any]]]:
    """Distill from the server at a URL into a folder; the rows."""

    def ask(url: str, out: Path, **options: Any) -> list[dict[str, Any]]:
        given = {"engine": "endpoint", "url": url, "served_name": "tiny/talker", **OPTIONS, **options}
        distill(str(talker), given.pop("source", source), out, **given)
        return dataset.read(out)

    return ask


@pytest.fixture(scope="module")
def own(talker: Path, source: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows that the engine `transformers` makes of the same."""
    out = tmp_path_factory.mktemp("own") / "out"
    distill(str(talker), source, out, max_new_tokens=16, top_k_logprobs=K)
    return dataset.read(out)


def same(rows: list[dict[str, Any]], others: list[dict[str, Any]], *but: str) -> bool:
    """Whether rows are the same, in any order, but for these fields."""

    def plain(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = [{name: value for name, value in row.items() if name not in but} for row in found]
        return sorted(kept, key=lambda row: row["id"])

    return plain(rows) == plain(others)


def test_greedy_rows_are_those_of_the_transformers_engine(ask, own, served: str, tmp_path: Path) -> None:
    rows = ask(served, tmp_path / "out")
    assert {row["engine"] for row in rows} == {"endpoint"}
    assert {row["turn"] for row in rows} == {0, 1} and {row["finish_reason"] for row in rows} == {"eos"}
    assert same(rows, own, "engine", "topk_ids", "topk_logprobs")


def test_of_an_unusual_spelling_the_text_is_the_same(served: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A random model writes tokens that no tokenizer would, and marks that a server leaves out of the text."""
    common = {"max_new_tokens": 8, "limit": 6}
    distill(str(tiny_checkpoint), "demo:train", tmp_path / "own", **common)
    server = {"engine": "endpoint", "url": served, "served_name": "tiny/random"}
    distill(str(tiny_checkpoint), "demo:train", tmp_path / "served", **common, **server)
    tokenizer = checkpoint.load_tokenizer(tiny_checkpoint)
    rows = {row["id"]: row for row in dataset.read(tmp_path / "served")}
    spelt_otherwise = 0
    for row in dataset.read(tmp_path / "own"):
        if row["turn"]:
            continue  # its context may differ by marks that the server left out
        text = str(tokenizer.decode(row["answer_ids"], skip_special_tokens=True))
        served_ids = rows[row["id"]]["answer_ids"]
        assert rows[row["id"]]["messages"][-1]["content"] == text.strip()
        assert [i for i in served_ids if i != 2] == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert rows[row["id"]]["finish_reason"] == row["finish_reason"]
        spelt_otherwise += served_ids != row["answer_ids"]
    assert spelt_otherwise


def test_samples_follow_their_seeds(ask, own, served: str, tmp_path: Path) -> None:
    # transformers serve keeps one random state for all calls: only one after the other do seeds mean the same
    options = {"temperature": 3.0, "samples": 2, "concurrency": 1, "limit": 3}
    a, b, c = (ask(served, tmp_path / name, **options, seed=s) for name, s in (("a", 1), ("b", 1), ("c", 2)))
    assert a == b and len(a) == 6
    said = [[row["messages"][-1]["content"] for row in rows] for rows in (a, c)]
    assert said[0] != said[1] and len(set(said[0])) > 3


def test_magpie_goes_through_raw_completions(ask, talker: Path, proxy: Proxy, tmp_path: Path) -> None:
    counted: list[int] = []
    proxy.always = edited(lambda call, body: counted.append(body["usage"]["prompt_tokens"]) or body)
    out = tmp_path / "out"
    rows = ask(proxy.url, out, source=None, mode="magpie", limit=8, prompt_temperature=0.7, max_new_tokens=24)
    raw = [number for number, call in enumerate(proxy.posts()) if call.path == "/v1/completions"]
    assert len(raw) == 8 and {proxy.posts()[n].json["prompt"] for n in raw} == {"<|im_start|>user\n"}
    assert {proxy.posts()[n].json["temperature"] for n in raw} == {0.7}
    result = json.loads((out / "result.json").read_text())
    assert rows and result["prompts"] == 8 == len(rows) + sum(result["dropped"].values())
    # what the target makes of its own prompts is what it makes of the same prompts in a file
    asked = tmp_path / "asked.jsonl"
    asked.write_text("\n".join(json.dumps({"id": r["prompt_id"], "prompt": r["messages"][0]["content"]}) for r in rows))
    distill(str(talker), str(asked), tmp_path / "again", max_new_tokens=24)
    assert same(rows, dataset.read(tmp_path / "again"), "engine", "mode")


def test_a_raw_prompt_gets_one_bos(served: str, talker: Path, tokenizer, proxy: Proxy) -> None:
    """A server's tokenizer puts BOS in front itself: the text must not bring another."""
    import copy

    from tokenizers.processors import TemplateProcessing

    from sparsedraft.maths.sampling import Sampling
    from sparsedraft.writers.protocol.requests import Request
    from sparsedraft.writers.server.endpoint import EndpointWriter

    with_bos = copy.deepcopy(tokenizer)
    with_bos.bos_token = "<|im_start|>"
    with_bos._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    for own, sent in ((with_bos, "user\n"), (tokenizer, "<|im_start|>user\n")):
        engine = EndpointWriter(Server(proxy.url), "tiny/talker", own)
        list(engine.generate([Request("a", [1], 2, raw="<|im_start|>user\n")], Sampling()))
        assert proxy.posts()[-1].json["prompt"] == sent


def test_the_templates_date_is_not_todays(tokenizer, proxy: Proxy) -> None:
    import copy

    from sparsedraft.maths.sampling import Sampling
    from sparsedraft.writers.protocol.requests import Request
    from sparsedraft.writers.server.endpoint import EndpointWriter

    dated = copy.deepcopy(tokenizer)
    dated.chat_template = "{{ date_string }}" + dated.chat_template
    request = Request("a", [1], 2, messages=[{"role": "user", "content": "x"}])
    for own, sent in ((dated, {"date_string": templates.DATE_STRING}), (tokenizer, None)):
        list(EndpointWriter(Server(proxy.url), "tiny/talker", own).generate([request], Sampling()))
        assert proxy.posts()[-1].json.get("chat_template_kwargs") == sent


def test_a_mistake_of_our_own_is_no_broken_answer(served: str) -> None:
    server = Server(served, retries=3, wait=0)
    with pytest.raises(TypeError, match="not JSON serializable"):
        server.chat("prompt a", {"model": "m", "messages": object()})


def without_choices(call: Call, body: Any) -> Any:
    return {**body, "choices": []}


def without_text(call: Call, body: Any) -> Any:
    del body["choices"][0]["message"]
    return body


SPOILT = {  # fault: what the user reads if it lasts
    hung_up: "cannot be reached",
    torn: "cannot be reached",
    truncated: "sends answers that are not whole",
    edited(without_choices): "sends answers that are not whole",
    edited(without_text): "sends answers that are not whole",
    edited(lambda call, body: [body]): "sends answers that are not whole",
    refused(429, Retry_After="0.01"): "answers 429",
    refused(500, "out of memory"): "answers 500 .*out of memory",
    refused(503): "answers 503",
}


def test_spoilt_answers_are_asked_for_again(ask, own, proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults.extend(SPOILT)
    rows = ask(proxy.url, tmp_path / "out", retries=len(SPOILT))
    assert same(rows, own, "engine", "topk_ids", "topk_logprobs")
    assert len(proxy.posts()) == len(own) + len(SPOILT) and not proxy.faults


def test_lasting_faults_end_in_one_sentence_and_cost_no_finished_row(ask, own, proxy: Proxy, tmp_path: Path) -> None:
    out, kept, single = tmp_path / "out", 0, {"limit": 6, "concurrency": 1}  # prompts of one turn
    for fault, message in SPOILT.items():
        proxy.faults.extend([None] if kept < 5 else [])
        proxy.always = fault
        with pytest.raises(UserError, match=message) as error:
            ask(proxy.url, out, retries=1, **single)
        assert "asked 2 times for prompt p" in str(error.value) and "\n" not in str(error.value)
        kept = min(kept + 1, 5)
        assert len(read_lines(tmp_path / ".out.partial" / ".rows.jsonl")) == kept
    proxy.always = None
    expected = [row for row in own if row["prompt_id"] < "p6"]
    assert same(ask(proxy.url, out, **single), expected, "engine", "topk_ids", "topk_logprobs")
    assert len(proxy.posts()) == 6 + 2 * len(SPOILT), "no finished row was asked for again"


def test_slow_answers(ask, own, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always = slow(1.0)
    with pytest.raises(UserError, match=r"does not answer within 0\.2 s \(--timeout\), asked 3 times"):
        ask(proxy.url, tmp_path / "out", timeout=0.2, retries=2)
    proxy.always, wait = None, 4.0
    proxy.faults.append(slow(wait + 1))
    before = len(proxy.posts())
    rows = ask(proxy.url, tmp_path / "out", timeout=wait)
    assert same(rows, own, "engine", "topk_ids", "topk_logprobs") and len(proxy.posts()) - before == len(own) + 1


def test_waits_grow_and_heed_the_server() -> None:
    server = Server("http://127.0.0.1:9/v1", wait=1.0)
    for attempt, longest in enumerate([1, 2, 4, 8, 16, 16, 16], 1):
        assert 0.75 * longest <= server._pause(attempt, "") <= longest
    assert server._pause(1, "7") == 7 and server._pause(1, "7000") == 120
    assert 100 < server._pause(1, "Wed, 21 Oct 2099 07:28:00 GMT") <= 120
    for nonsense in ("soon", "-3", "nan", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert server._pause(1, nonsense) <= 1


def test_refusals_are_one_sentence(ask, served: str, proxy: Proxy, tmp_path: Path) -> None:
    def refusal(message: str, url: str = served, **options: Any) -> None:
        with pytest.raises(UserError, match=message) as error:
            ask(url, tmp_path / "no", **{"retries": 1, **options}, overwrite=True)
        assert "\n" not in str(error.value) and str(error.value).endswith(".")

    down = f"http://127.0.0.1:{free_port()}/v1"
    refusal(rf"{down} cannot be reached \(.*refused\), asked 2 times for the list of models", down)
    refusal(r"serves tiny/random, tiny/talker, not other: .*--served-name", served_name="other")
    refusal(r"answers 404 .* to the list of models: check --url, which mostly ends in /v1", served.removesuffix("/v1"))
    refusal(r"answers 422 .*top_k.* to prompt p\d", temperature=1.0, top_k=3)
    refusal(r"returns no log-probabilities: leave out --top-k-logprobs", top_k_logprobs=2)
    proxy.always = refused(401, "who are you?")
    refusal(r"answers 401 .*who are you.* to prompt p\d/0: set OPENAI_API_KEY", proxy.url)


def test_a_refused_prompt_is_named_and_the_others_are_kept(ask, own, proxy: Proxy, tmp_path: Path) -> None:
    def picky(call: Call) -> None:
        if ASKED[3].encode() in call.body:
            refused(400, "too long")(call)

    proxy.always = picky
    for _ in range(2):  # neither is it asked for again
        with pytest.raises(UserError, match=r"answers 400 .*too long.* to prompt p3/0: change the prompt"):
            ask(proxy.url, tmp_path / "out", concurrency=8)
    assert len(read_lines(tmp_path / ".out.partial" / ".rows.jsonl")) == 7
    assert len(proxy.posts()) == len(own) + 1


def test_so_many_calls_at_once_and_no_more(ask, proxy: Proxy, tmp_path: Path) -> None:
    together = Barrier(3, timeout=60)  # lets nobody through before three are there
    proxy.always = lambda call: together.wait() and None
    ask(proxy.url, tmp_path / "out", concurrency=3, limit=6)
    assert proxy.most == 3 and len(proxy.posts()) == 6


def test_the_key_goes_out_and_nowhere_else(ask, proxy: Proxy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    ask(proxy.url, tmp_path / "out", limit=1)
    assert {call.headers["authorization"] for call in proxy.seen} == {"Bearer s3cret"}
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files and not any(b"s3cret" in file.read_bytes() for file in files)


class Reporter:
    """Puts the log-probabilities that the server's own model gives into its answers, as other servers do."""

    def __init__(self, folder: Path, ids: bool, end: bool) -> None:
        self.model, self.tokenizer = checkpoint.load(folder), checkpoint.load_tokenizer(folder)
        self.ids, self.end = ids, end  # name tokens by id; report on the end of turn, too

    def name(self, token: int) -> str:
        return f"token_id:{token}" if self.ids else str(self.tokenizer.decode([token]))

    def __call__(self, call: Call, body: Any) -> Any:
        choice, asked = body["choices"][0], call.json
        assert asked["logprobs"] is True and asked["top_logprobs"] == K
        before = templates.chat_ids(self.tokenizer, asked["messages"])
        said = self.tokenizer(choice["message"]["content"])["input_ids"] + ([2] if self.end else [])
        with torch.inference_mode():
            logits = self.model(torch.tensor([[*before, *said]])).logits[0, len(before) - 1 : -1]
        best = logits.log_softmax(-1).topk(K)
        places = []
        for token, ids, values in zip(said, best.indices.tolist(), best.values.tolist(), strict=True):
            top = [{"token": self.name(i), "logprob": v, "bytes": None} for i, v in zip(ids, values, strict=True)]
            places.append({"token": self.name(token), "logprob": 0.0, "bytes": None, "top_logprobs": top[::-1]})
        choice["logprobs"] = {"content": places}
        return body


def test_soft_labels_by_id_are_those_of_the_transformers_engine(
    ask, own, talker: Path, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.hidden = ("return_tokens_as_token_ids",)  # vLLM's own
    proxy.always = edited(Reporter(talker, ids=True, end=True))
    rows = ask(proxy.url, tmp_path / "out", top_k_logprobs=K)
    assert all(call.json["return_tokens_as_token_ids"] is True for call in proxy.posts())
    assert same(rows, own, "engine", "topk_logprobs")
    expected = {row["id"]: row["topk_logprobs"] for row in own}
    for row in rows:
        assert len(row["topk_logprobs"]) == K * len(row["answer_ids"])
        assert row["topk_logprobs"] == pytest.approx(expected[row["id"]], abs=2e-2, rel=2e-3)


def test_soft_labels_by_text_where_the_text_is_one_tokens_alone(
    ask, own, talker: Path, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always = edited(Reporter(talker, ids=False, end=False))  # asked for ids the server answers 422
    rows = ask(proxy.url, tmp_path / "out", top_k_logprobs=K, concurrency=1)
    assert ["return_tokens_as_token_ids" in call.json for call in proxy.posts()][:3] == [True, False, False]
    assert same(rows, own, "engine", "topk_ids", "topk_logprobs")
    tokenizer = checkpoint.load_tokenizer(talker)
    texts = [str(tokenizer.decode([i])) for i in range(len(tokenizer))]
    expected, soft = {row["id"]: row["topk_ids"] for row in own}, 0
    for row in rows:
        ids = expected[row["id"]][:-K]
        if any(texts.count(texts[i]) > 1 for i in ids):
            assert row["topk_ids"] == row["topk_logprobs"] == []
            continue
        soft += 1
        assert row["topk_ids"][:-K] == ids and row["answer_ids"][-1] == 2
        assert row["topk_ids"][-K] == 2 and len(set(row["topk_ids"][-K:])) == K
        assert row["topk_logprobs"][-K:] == [0.0, *[UNKNOWN] * (K - 1)], "of the end of turn the server said nothing"
    assert soft and json.loads((tmp_path / "out" / "result.json").read_text())["rows_with_topk"] == soft


def test_on_the_command_line_a_lost_server_is_exit_code_2(
    talker: Path, source: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    words = ["distill", str(talker), source, "--out", str(tmp_path / "out"), "--engine", "endpoint", "--url", url]
    monkeypatch.setattr("sys.argv", ["sparsedraft", *words, "--retries", "1", "--retry-wait", "0.01"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    shown = capsys.readouterr()
    assert stop.value.code == 2 and shown.out == ""
    assert "cannot be reached" in shown.err and "finished rows are kept" in shown.err and "Traceback" not in shown.err
