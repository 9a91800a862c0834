"""Keys and passwords of servers go to the server, and are shown and stored nowhere, however odd they are."""

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from scripted import said, scripted
from sparsedraft import cli
from sparsedraft.base.errors import UserError
from sparsedraft.recipe import reading as recipes
from sparsedraft.writers.server.calls import TOLD
from sparsedraft.writers.server.secret import Secrets, shown
from sparsedraft.writers.server.server import Server
from stages import distill

ASK = {"model": "m", "messages": [], "max_tokens": 4}
KEYS = [
    "sk-s3cret", "two words  and more", "per%cent%41", "quo'te\"d", "back\\slash<&>", "a" * 5000, "{}[](.*)", "Ke1",
    "  padded with space\n",
]  # fmt: skip


def echo(headers: dict[str, str]) -> list[str]:
    """Ways in which a server may repeat a key: as it is, escaped, quoted, in another case."""
    key = headers["authorization"].removeprefix("Bearer ")
    return [key, json.dumps({"key": key}), quote(key), quote(key, safe=""), repr(key), key.upper(), f"Bearer {key}"]


@pytest.mark.parametrize("key", KEYS)
def test_a_server_that_repeats_the_key_is_not_repeated(key: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    answers: list[tuple[int, bytes]] = []
    with scripted(lambda asked: answers.pop()) as server:
        asked = Server(server.url, retries=0)
        asked.models()
        assert server.headers[-1]["authorization"] == f"Bearer {key.strip()}"
        for n, way in enumerate(echo(server.headers[-1])):
            status = (401, 400, 500)[n % 3]
            answers.append((status, f"way {n} {way}".encode()))
            with pytest.raises(UserError) as error:
                asked.chat("prompt a", ASK)
            told = str(error.value)
            assert f"answers {status} (way {n}" in told
            for part in (key.strip(), json.dumps(key.strip())[1:-1], quote(key.strip())):
                assert part.lower() not in told.lower()


def test_a_key_that_is_cut_off_is_hidden_too(monkeypatch: Any) -> None:
    """Behind so many blanks that what is read of the body ends in the middle of it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-s3cret" * 10)
    for blanks in (TOLD - 200, TOLD - 60, TOLD - 5):
        body = b"no" + b" " * blanks + b"sk-s3cret" * 10
        with scripted(lambda asked, body=body: (400, body)) as server, pytest.raises(UserError, match="no") as error:
            Server(server.url).chat("prompt a", ASK)
        assert "sk-" not in str(error.value) and "s3c" not in str(error.value)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-\rone", "schl\u00fcssel-sk", "sk-\u2028one"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(
    key: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with scripted(lambda asked: said("x")) as server:
        words = ["distill", str(tiny_checkpoint), "demo:train", "--out", str(tmp_path / "out"), "--limit", "1"]
        words += ["--max-new-tokens", "8"]
        monkeypatch.setattr(
            "sys.argv", ["sparsedraft", *words, "--engine", "endpoint", "--url", server.url, "--served-name", "m"]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not server.headers
    told = capsys.readouterr()
    assert stop.value.code == 2 and "OPENAI_API_KEY holds a line break or another character" in " ".join(
        told.err.split()
    )
    assert "sk-" not in told.err + told.out and "Traceback" not in told.err and "schl" not in told.err


URLS = [
    ("http://user:pa55word@host:1/v1?api-key=topsecret#frag", "http://host:1/v1"),
    ("https://user:pa55word@[::1]:8000/v1", "https://[::1]:8000/v1"),
    ("htp://user:pa55word@host/v1", "htp://host/v1"),
    ("user:pa55word@host/v1", "host/v1"),
    ("http://user:pa55/wo@rd@host/v1", "http://…"),
    ("http://user:pa?55word@host", "http://…"),
    ("http://host/v1?mail=me@topsecret", "http://…"),
    ("http://localhost:8000/v1", "http://localhost:8000/v1"),
]


@pytest.mark.parametrize(("url", "left"), URLS)
def test_what_is_shown_of_an_address(url: str, left: str) -> None:
    assert shown(url) == left


def test_password_and_query_go_out_and_nowhere_else(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Through a whole distillation that first fails, and in words that quote the address."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-s3cret")
    refuses = [True]

    def answer(asked: dict[str, Any]) -> Any:
        if refuses:
            return 400, b"POST /v1/chat/completions?code=t0psecret by user:pa55%2Fword, pa55/word, sk-s3cret"
        return said(f"yes, {asked['seed']}")

    with scripted(answer) as server:
        url = server.url.replace("http://", "http://user:pa55%2Fword@") + "?code=t0psecret&version=2"
        options = {"engine": "endpoint", "url": url, "served_name": "m", "max_new_tokens": 16, "limit": 4}
        with pytest.raises(UserError, match=r"http://127\.0\.0\.1:\d+/v1 answers 400 .*code=… by …:…, …, …") as error:
            distill(str(tiny_checkpoint), "demo:train", tmp_path / "out", **options)
        refuses.clear()
        distill(str(tiny_checkpoint), "demo:train", tmp_path / "out", **options)
        assert set(server.paths) == {f"/v1/{p}?code=t0psecret&version=2" for p in ("models", "chat/completions")}
        basic = base64.b64encode(b"user:pa55/word").decode()
        assert {headers["authorization"] for headers in server.headers} == {f"Basic {basic}"}
    told = capsys.readouterr()
    everything = [str(error.value).encode(), told.out.encode(), told.err.encode()]
    everything += [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    for secret in (b"pa55", b"t0psecret", b"s3cret", basic.encode()):
        assert not any(secret in text for text in everything)


def test_a_recipe_that_is_kept_with_its_results_holds_no_password(tmp_path: Path) -> None:
    url = "http://user:pa55word@host:1/v1?code=t0psecret"
    text = f"target: x\ndistill: {{engine: endpoint, url: '{url}'}}\neval: {{url: '{url}'}}\n"
    (tmp_path / "recipe.yaml").write_text(text + "drafters: [{name: cut, drop_layers: {layers: 1}}]\n")
    kept = recipes.dump(recipes.read(tmp_path / "recipe.yaml"))
    assert kept.count("url: http://host:1/v1") == 2 and "pa55" not in kept and "t0psecret" not in kept


def test_a_client_that_cannot_connect_says_nothing_of_it(monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-s3cret")
    for url in ("http://user:pa55word@127.0.0.1:9/v1?code=t0psecret", "http://user:pa55word@no.such.host.invalid/v1"):
        with pytest.raises(UserError, match="cannot be reached") as error:
            Server(url, retries=0).models()
        assert not any(secret in str(error.value) for secret in ("pa55", "t0psecret", "s3cret", "user"))


def test_a_proxys_password_is_a_secret_too(monkeypatch: Any) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "ftp://proxy:pa55word@host:1")
    with pytest.raises(UserError, match=r"HTTP_PROXY or HTTPS_PROXY names cannot be used") as error:
        Server("http://127.0.0.1:9/v1")
    assert "pa55" not in str(error.value)


def test_names_of_models_are_told_in_one_plain_line(tokenizer) -> None:
    from sparsedraft.writers.server.endpoint import EndpointWriter

    with (
        scripted(lambda asked: said("x"), {"data": [{"id": "\x1b[31mred\n" + "x" * 500}]}) as server,
        pytest.raises(UserError, match=r"serves \[31mred x{60,80}, not m: give one of its names") as error,
    ):
        EndpointWriter(Server(server.url), "m", tokenizer)
    assert str(error.value).isprintable()


def test_words_that_are_no_secrets_stay() -> None:
    assert Secrets(["a", "bc"]).hide("a bcd abc, a") == "… bcd abc, …"
    assert Secrets([]).line("plain\n text") == "plain text"
