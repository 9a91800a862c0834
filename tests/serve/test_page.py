"""The page in a headless Chromium: a chat, a race, a stopped answer, a server that dies. Skipped without a browser."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sparsedraft
from browsers import browser, chromium
from sparsedraft.serve.app import PAGE, POLICY
from transformers_server import ASKED

FILES = Path(sparsedraft.__file__).parent / "serve"


def test_the_page_reads_no_text_as_html_and_loads_nothing_from_elsewhere() -> None:
    script = (FILES / "page.js").read_text()
    for risky in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert risky not in script
    for name, _ in PAGE.values():
        assert "http" not in (FILES / name).read_text().replace("http-equiv", "")
    assert POLICY.startswith("default-src 'self'")


@pytest.fixture
def process(talker: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A real server process, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "sparsedraft",
        "serve",
        talker,
        "--drafter",
        talker,
        "--drafter",
        "lookup",
        "--port",
        port,
    ]
    server = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield server, f"http://127.0.0.1:{port}/"
    server.kill()
    server.wait()


@pytest.fixture
def page(process: tuple[subprocess.Popen, str]) -> Iterator[Any]:
    if (program := chromium()) is None:
        pytest.skip("there is no Chromium: `make browser` installs one")
    with browser(program) as running:
        found = running.new_page()
        wrong: list[str] = []
        found.on("pageerror", lambda error: wrong.append(str(error)))
        found.goto(process[1])
        found.wait_for_selector("#drafter option:nth-child(2)", state="attached")
        yield found
    assert wrong == []


def say(page: Any, text: str, button: str = "send") -> None:
    page.fill("#prompt", text)
    page.click(f"#{button}")


def test_a_chat_shows_the_targets_text_with_drafts_in_colour(page: Any, talker: Path) -> None:
    page.evaluate("document.getElementById('k').value = 3")
    for turn, text in enumerate((ASKED[0], "<b>bold</b>")):
        say(page, text)
        page.wait_for_selector(f".turn:nth-of-type({2 * turn + 2}) .told:has-text('tokens/s')")
    expected = sparsedraft.generate(talker, ASKED[0], max_new_tokens=256).text
    assert page.text_content(".turn:nth-of-type(2) > span:first-child") == expected
    assert page.locator(".turn:nth-of-type(2) .draft").count() > 0
    assert page.text_content(".turn:nth-of-type(3)") == "<b>bold</b>", "what is typed is no HTML"


def test_a_race_says_that_the_texts_are_equal(page: Any, talker: Path) -> None:
    say(page, ASKED[1], "race")
    page.wait_for_selector(".turn > .told:has-text('the texts are equal')")
    names = page.locator(".lanes > div > b.told").all_text_contents()
    assert names == [f"with {talker.name}-drafter", "with lookup", "the target alone"]


def test_an_answer_can_be_stopped_and_a_dead_server_is_told(page: Any, process: tuple[subprocess.Popen, str]) -> None:
    page.evaluate("document.getElementById('temperature').value = 2; document.getElementById('tokens').value = 400")
    say(page, ASKED[2])
    page.evaluate("running && running.abort()")  # as the button does, which is enabled for a moment only
    page.wait_for_selector(".wrong:has-text('stopped'), .told:has-text('tokens/s')")
    process[0].send_signal(signal.SIGKILL)
    process[0].wait()
    page.wait_for_selector("#send:not([disabled])")
    say(page, ASKED[3])
    page.wait_for_selector(".turn:last-child .wrong")
    assert page.is_enabled("#send")
