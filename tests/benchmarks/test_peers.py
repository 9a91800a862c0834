"""What the benchmarks read from peers' output, and what they say where a program fails; no peer is built here."""

import sys
from pathlib import Path

import pytest

import peers
from common import measured
from sparsedraft.base.errors import UserError

PRINTED = """
encoded   12 tokens in    0.345 seconds, speed:   34.8 t/s
decoded   17 tokens in    1.250 seconds, speed:   13.6 t/s

n_draft   = 4
n_predict = 17
n_drafted = 20
n_accept  = 9
"""


def llama(folder: Path, text: str) -> peers.Llama:
    """llama.cpp, but for programs that print `text`."""
    for name in peers.PROGRAMS:
        (folder / name).write_text(f"#!{sys.executable}\nprint({text!r})\n")
        (folder / name).chmod(0o755)
    return peers.Llama(folder, folder / "target", folder / "drafter", folder / "small")


def test_llama_cpp_figures(tmp_path: Path) -> None:
    rate, mal = llama(tmp_path, PRINTED).speculation(["a", "b"], k=4, tokens=16, threads=1)
    assert rate == pytest.approx(17 / 1.595) and mal == pytest.approx(17 / 8)
    assert llama(tmp_path, '[{"avg_ts": 12.5}]').rate(tmp_path, threads=1, tokens=4) == 12.5


def test_a_peer_of_other_words_is_missing(tmp_path: Path) -> None:
    changed = llama(tmp_path, "none of what is looked for")
    with pytest.raises(peers.Missing, match="llama-speculative-simple printed no figures"):
        changed.speculation(["a"], k=4, tokens=16, threads=1)
    with pytest.raises(peers.Missing, match="llama-bench printed no figures"):
        changed.rate(tmp_path, threads=1, tokens=4)


def test_a_peer_that_fails_says_its_last_line() -> None:
    code = "import sys; print('first\\nthe cause', file=sys.stderr); sys.exit(4)"
    with pytest.raises(peers.Missing, match=r"ended with 4 \(the cause\)"):
        peers._run([sys.executable, "-c", code])


def test_a_command_that_fails_ends_the_benchmark_in_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="sparsedraft inspect failed: its sentence stands above"):
        measured("inspect", "no/such/folder")
    assert "no/such/folder" in capfd.readouterr().err
