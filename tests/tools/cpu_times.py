"""A pytest plugin: CPU seconds of each test, those of the processes that it started included.

    PYTHONPATH=tests/tools pytest -p cpu_times

Wall-clock depends on what else runs on the machine; CPU seconds hardly do. A fixture counts in the test that makes it
first. With CPU_TIMES=FILE each test is also appended to FILE as it ends, one JSON object a line.
"""

import json
import os
import resource
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

SLOWEST = 10
TICKS = os.sysconf("SC_CLK_TCK")
_seconds: dict[str, float] = {}


def cpu_seconds() -> float:
    """User and system seconds of this process and of all below it, at work or ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + sum(map(_of_process, _children(os.getpid())))


def _of_process(pid: int) -> float:
    """Of a process at work, of the processes that it has waited for, and of those that are at work below it."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS + sum(map(_of_process, _children(pid)))
    return 0.0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    start = cpu_seconds()
    result = yield
    _seconds[item.nodeid] = cpu_seconds() - start
    if path := os.environ.get("CPU_TIMES"):
        with open(path, "a") as file:
            file.write(json.dumps({"test": item.nodeid, "seconds": round(_seconds[item.nodeid], 3)}) + "\n")
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    files: defaultdict[str, float] = defaultdict(float)
    for test, seconds in _seconds.items():
        files[test.partition("::")[0]] += seconds
    write = terminalreporter.write_line
    write(f"{sum(files.values()):.1f} CPU seconds in {len(_seconds)} tests, {cpu_seconds():.1f} with the imports")
    for name, table in (("files", files), ("tests", _seconds)):
        write(f"slowest {name}:")
        for key, seconds in sorted(table.items(), key=lambda row: -row[1])[:SLOWEST]:
            write(f"{seconds:8.1f}  {key}")
