"""What the benchmarks read from peers' output, and what they say where a program fails; no peer is built here."""

import json
import sys
from pathlib import Path

import pytest

import peers
import peers_server
from common import measured
from peers_llama import Llama, bench_rates
from peers_server import Answer, Server
from sparsedraft.base.errors import UserError

BENCH = '[{"n_prompt": 32, "avg_ts": 9.0}, {"n_prompt": 512, "avg_ts": 80.5}, {"n_prompt": 0, "avg_ts": 12}]'
TIMINGS = {"prompt_n": 9, "prompt_ms": 250.0, "predicted_n": 17, "predicted_ms": 1250.0}
SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self): self.reply({})
    def do_POST(self): self.reply({"timings": json.loads('TIMINGS')})
    def reply(self, value):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(value).encode())

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def llama(folder: Path, program: str, code: str) -> Llama:
    """llama.cpp, but for one program, which is this Python code."""
    (folder / program).write_text(f"#!{sys.executable}\n{code}")
    (folder / program).chmod(0o755)
    return Llama("llama.cpp", folder, folder, (), (), ("--draft", "K"))


def test_rates_of_llama_bench(tmp_path: Path) -> None:
    assert bench_rates(BENCH) == {"32": 9.0, "512": 80.5, "decode": 12.0}
    found = llama(tmp_path, "llama-bench", f"print({BENCH!r})").rates(tmp_path, 1, (512,), 4)
    assert found == {"512": 80.5, "decode": 12.0}  # without what warms up


def test_seconds_of_an_answer_count_the_prompt() -> None:
    assert peers_server.timed({"timings": TIMINGS}) == Answer(17, 1.5)
    drafted = {**TIMINGS, "draft_n": 20, "draft_n_accepted": 9}
    assert peers_server.timed({"timings": drafted}) == Answer(17, 1.5, drafted=20, accepted=9)


def test_a_drafter_that_is_never_asked_is_missing(tmp_path: Path) -> None:
    program = llama(tmp_path, "llama-server", SERVER.replace("TIMINGS", json.dumps(TIMINGS)))
    alone = Server(program, tmp_path / "target", 1)
    assert alone.answer([1, 2], 17) == Answer(17, 1.5)
    alone.close()
    pair = Server(program, tmp_path / "target", 1, tmp_path / "drafter", 4)
    with pytest.raises(peers.Missing, match="drafted nothing"):
        pair.answer([1, 2], 17)
    pair.close()


def test_a_peer_of_other_words_is_missing(tmp_path: Path) -> None:
    for words in ("none of what is looked for", '{"n_prompt": 1}', '[{"n_prompt": 1}]'):
        with pytest.raises(peers.Missing, match="llama-bench printed no figures"):
            llama(tmp_path, "llama-bench", f"print({words!r})").rates(tmp_path, 1, (512,), 4)
    other = llama(tmp_path, "llama-server", SERVER.replace("TIMINGS", '{"milliseconds": 3}'))
    server = Server(other, tmp_path / "target", 1)
    with pytest.raises(peers.Missing, match="llama-server printed no figures"):
        server.answer([1], 4)
    server.close()


def test_a_server_that_does_not_start_says_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(peers.Missing, match=r"did not start \(no such file\)"):
        Server(llama(tmp_path, "llama-server", "print('first\\nno such file'); exit(1)"), tmp_path, 1)


def test_a_peer_that_fails_says_its_last_line() -> None:
    code = "import sys; print('first\\nthe cause', file=sys.stderr); sys.exit(4)"
    with pytest.raises(peers.Missing, match=r"ended with 4 \(the cause\)"):
        peers.finished([sys.executable, "-c", code])


def test_a_command_that_fails_ends_the_benchmark_in_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="sparsedraft inspect failed: its sentence stands above"):
        measured("inspect", "no/such/folder")
    assert "no/such/folder" in capfd.readouterr().err


def test_drafts_that_only_the_log_counts() -> None:
    """As ik_llama.cpp writes them, one line an answer."""
    log = "draft acceptance rate = 0.42424 (   14 accepted /    33 generated)\nslot print_timing\n"
    log += "draft acceptance rate = 1.00000 (   18 accepted /    18 generated)\n"
    assert peers_server.logged_drafts(log) == [(14, 33), (18, 18)]
    assert peers_server.logged_drafts("statistics draft: #calls(b,g,a) = 1 9 8") == []
