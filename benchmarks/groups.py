"""Benchmarks whose rows come in groups: --only, the models, our earlier build, and results that are kept as they come.

What is measured is written to NAME/results in the cache folder, a file a group, before the next group begins.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from common import CACHE, run
from fourbit_models import Models
from peers import Missing
from peers_earlier import Earlier
from peers_llama import Llama, available, gguf, ik_llama_cpp, llama_cpp
from record import Table
from sparsedraft.base.console import console
from sparsedraft.base.jsonfiles import write_json


class Bench:
    """One run of the benchmark `name`: its options, the models as they are first needed, and the rows."""

    name: str
    makes: type[Models] = Models

    def __init__(self, options: argparse.Namespace, table: Table, ends: ExitStack) -> None:
        self.options, self.table, self.ends = options, table, ends
        self.threads, self.turns = options.threads, 1 if options.quick else 3

    @cached_property
    def models(self) -> Models:
        return self.makes(self.options)

    @cached_property
    def earlier(self) -> Earlier | None:
        """Our build of 91ad1f9, None where it cannot be had."""
        try:
            found = Earlier(self.models.target, self.models.drafter, self.threads)
        except Missing as why:
            console.print(f"left out: our int8 of 91ad1f9: {why}", soft_wrap=True, markup=False)
            return None
        self.ends.callback(found.close)
        return found

    @cached_property
    def peers(self) -> dict[str, Llama]:
        """llama.cpp and ik_llama.cpp, as far as they can be had."""
        found, missing = available({"llama.cpp": llama_cpp, "ik_llama.cpp": ik_llama_cpp})
        for sentence in missing:
            console.print(sentence, soft_wrap=True, markup=False)
        return found

    def files(self, model: str, *kinds: str) -> dict[str, Path]:
        """GGUF files by kind: none where llama.cpp, which makes them, is not there."""
        if "llama.cpp" not in self.peers:
            return {}
        return {kind: gguf(self.peers["llama.cpp"], model, kind) for kind in kinds}

    def keep(self, name: str, value: Any) -> None:
        """Write what has been measured so far."""
        folder = CACHE / self.name / "results"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", value)


Groups = Mapping[str, Callable[[Any], None]]  # what measures each group's rows, on a Bench


def add_only(parser: argparse.ArgumentParser, groups: Groups) -> None:
    """The option that says which groups are measured."""
    parser.add_argument("--only", default=",".join(groups), help="groups of rows, separated by commas")


def work(bench_type: type[Bench], groups: Groups, options: argparse.Namespace, table: Table) -> None:
    """Measure the groups of --only, one after the other; one that lacks a peer is left out."""
    with ExitStack() as ends:
        bench = bench_type(options, table, ends)
        for name in options.only.split(","):
            before = len(table.rows), set(table.figures)
            try:
                groups[name](bench)
            except Missing as why:
                console.print(f"left out: {name}: {why}", soft_wrap=True, markup=False)
            finally:
                figures = {key: value for key, value in table.figures.items() if key not in before[1]}
                bench.keep(name, {"rows": table.rows[before[0] :], "figures": figures})


def main(bench_type: type[Bench], groups: Groups, arguments: argparse.ArgumentParser) -> None:
    """Run the benchmark as the command line says."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the peers' processes end, too
    options = arguments.parse_args()
    if unknown := [name for name in options.only.split(",") if name not in groups]:
        arguments.error(f"--only {unknown[0]!r}: there are {', '.join(groups)}")
    run(bench_type.name, options, partial(work, bench_type, groups))
