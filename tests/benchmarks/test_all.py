"""All benchmarks one after the other: those after a failed one still run. Toy scripts stand for the benchmarks."""

import importlib
import json
import sys
from pathlib import Path

import pytest

every = importlib.import_module("all")
GOOD = 'import json; print("words"); print(json.dumps({"rows": [{"name": "fast", "ratio": 2.0, "goal": 1}]}))'


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str], *options: str) -> int:
    """The exit status of `all.py OPTIONS` where these scripts are all benchmarks."""
    for name, text in scripts.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(every, "__file__", str(folder / "all.py"))
    monkeypatch.setattr(every, "NAMES", tuple(scripts))
    monkeypatch.setattr(sys, "argv", ["all.py", "--only", ",".join(scripts), *options])
    with pytest.raises(SystemExit) as end:
        every.main()
    return int(end.value.code or 0)


def test_the_others_go_on_after_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, {"one": GOOD, "broken": "raise SystemExit(3)", "two": GOOD}) == 1
    *lines, last = capfd.readouterr().out.splitlines()
    assert [row["name"] for row in json.loads(last)["rows"]] == ["one: fast", "two: fast"]
    assert "failed: broken" in lines and lines.count("words") == 2


def test_all_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    options = 'import sys; assert sys.argv[1:] == ["--quick", "--threads", "1"]\n'
    assert run(tmp_path, monkeypatch, {"one": options + GOOD}, "--quick", "--threads", "1") == 0
    assert "failed" not in capfd.readouterr().out


def test_no_benchmark_of_that_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["all.py", "--only", "demo,prunning"])
    with pytest.raises(SystemExit, match="2"):
        every.main()
    assert "--only 'prunning': there are generation, " in capsys.readouterr().err
