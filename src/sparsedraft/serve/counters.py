"""What the server counts, and how Prometheus reads it. The names of speculation are vLLM's behind our prefix."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping

from sparsedraft.base.bounds import DRAFTED
from sparsedraft.speculate.loop.sequence import Step

PREFIX = "sparsedraft:"
HELP = {
    "prompt_tokens_total": "Tokens of prompts.",
    "prefix_cache_queries_total": "Tokens of prompts that were looked for in what had been read before.",
    "prefix_cache_hits_total": "Those that were found there.",
    "generation_tokens_total": "Tokens written.",
    "spec_decode_num_drafts_total": "Steps with drafts.",
    "spec_decode_num_draft_tokens_total": "Drafted tokens.",
    "spec_decode_num_accepted_tokens_total": "Accepted ones.",
    "spec_decode_num_accepted_tokens_per_pos_total": "Accepted ones by their place in the draft.",
    "spec_decode_num_drafts_by_drafter_total": "Steps with drafts, by who drafted.",
    "spec_decode_num_draft_tokens_by_drafter_total": "Drafted tokens, by who drafted.",
    "spec_decode_num_accepted_tokens_by_drafter_total": "Accepted ones, by who drafted.",
    "request_success_total": "Requests that ended, by why.",
}
BY_DRAFTER = [name for name in HELP if "_by_drafter_" in name]  # each with a label
GAUGES = {"num_requests_running": "Answers being written.", "num_requests_waiting": "Requests that wait for a place."}


class Counters:
    """Sums since the start; any thread may count and read."""

    def __init__(self) -> None:
        self._lock, self._sums = threading.Lock(), Counter[tuple[str, str]]()

    def _add(self, name: str, count: int, label: str = "") -> None:
        self._sums[name, label] += count

    def began(self, prompt: int, cached: int) -> None:
        """A prompt of so many tokens is read, of which `cached` were known."""
        with self._lock:
            self._add("prompt_tokens_total", prompt)
            self._add("prefix_cache_queries_total", prompt)
            self._add("prefix_cache_hits_total", cached)

    def count(self, step: Step, drafter: str | None) -> None:
        """A step of one answer, which is drafted by `drafter`."""
        with self._lock:
            self._add("generation_tokens_total", len(step.emitted))
            if not step.drafted:
                return
            by = f'draft_model="{_escaped(drafter or "")}"'
            for name, count in (("drafts", 1), ("draft_tokens", len(step.drafted)), ("accepted_tokens", step.accepted)):
                self._add(f"spec_decode_num_{name}_total", count)
                self._add(f"spec_decode_num_{name}_by_drafter_total", count, by)
            for place in range(min(step.accepted, DRAFTED)):
                self._add("spec_decode_num_accepted_tokens_per_pos_total", 1, f'position="{place}"')

    def finished(self, reason: str) -> None:
        """An answer ended."""
        with self._lock:
            self._add("request_success_total", 1, f'finished_reason="{reason}"')

    @property
    def requests(self) -> int:
        """Answers that ended."""
        with self._lock:
            return sum(value for (name, _), value in self._sums.items() if name == "request_success_total")

    def text(self, **gauges: int) -> str:
        """All of it in Prometheus' text format; `gauges` by their names in GAUGES."""
        with self._lock:
            sums = dict(self._sums)
        return "".join(line + "\n" for line in self._lines(sums, gauges))

    @staticmethod
    def _lines(sums: Mapping[tuple[str, str], int], gauges: Mapping[str, int]) -> Iterator[str]:
        for name, value in gauges.items():
            yield from (f"# HELP {PREFIX}{name} {GAUGES[name]}", f"# TYPE {PREFIX}{name} gauge")
            yield f"{PREFIX}{name} {value}"
        for name, told in HELP.items():
            yield from (f"# HELP {PREFIX}{name} {told}", f"# TYPE {PREFIX}{name} counter")
            of_name = {label: value for (at, label), value in sums.items() if at == name}
            if not (of_name or name in BY_DRAFTER):
                of_name = {"": 0}
            for label, value in sorted(of_name.items()):
                yield f"{PREFIX}{name}{f'{{{label}}}' if label else ''} {value}"


def _escaped(value: str) -> str:
    """A label's value as Prometheus reads it."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
