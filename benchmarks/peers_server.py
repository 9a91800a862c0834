"""llama-server of llama.cpp or ik_llama.cpp: greedy answers, alone or with a drafter, as the server times them."""

import json
import os
import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peers import Missing, figure
from peers_llama import Llama
from processes import free_port, started, stop

CONTEXT = 4096  # tokens of a server, which its slots share
SLOT = 1024  # tokens of a slot at least
START, ANSWER, END = 180, 600, 20  # seconds at most until a server is ready, for one answer, and until it has ended
LOGGED = 1.0  # seconds at most until the log says of an answer what was drafted


@dataclass(frozen=True)
class Answer:
    """One answer: its tokens, seconds with the prompt's reading, and how many tokens were drafted and accepted."""

    tokens: int
    seconds: float
    drafted: int = 0
    accepted: int = 0


def timed(reply: Mapping[str, Any]) -> Answer:
    """The answer in a reply of /completion. KeyError where its timings are not those that this reads."""
    timings = reply["timings"]
    seconds = (timings["prompt_ms"] + timings["predicted_ms"]) / 1000
    counts = (int(timings.get(key, 0)) for key in ("draft_n", "draft_n_accepted"))
    return Answer(int(timings["predicted_n"]), seconds, *counts)


def logged_drafts(log: str) -> list[tuple[int, int]]:
    """(accepted, drafted) tokens of each answer that a server's log counts."""
    found = re.findall(r"draft acceptance rate = [\d.]+ \(\s*(\d+) accepted /\s*(\d+) generated\)", log)
    return [(int(accepted), int(drafted)) for accepted, drafted in found]


class Server:
    """A running server with so many `slots`; `close` ends it. Missing where it does not start."""

    def __init__(
        self, llama: Llama, model: Path, threads: int, drafter: Path | None = None, k: int = 0, slots: int = 1
    ) -> None:
        port = free_port()
        command: list[str | Path] = [llama.programs / "llama-server", "-m", model, "-t", str(threads), *llama.serving]
        command += ["-c", str(max(CONTEXT, SLOT * slots)), "-np", str(slots)]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        if drafter:
            command += ["-md", drafter, *(str(k) if word == "K" else word for word in llama.drafting)]
        self.name, self.drafts, self.address = llama.name, drafter is not None, f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (the server's for as long as it runs)
        self._logged = 0  # answers whose drafts the log has counted
        # ik_llama.cpp writes a log of its own into the folder that it runs in
        self._process = subprocess.Popen(
            [*map(str, command)], stdout=self._log, stderr=subprocess.STDOUT, cwd=llama.programs
        )
        if not started(self._process, self.address, START):
            self.close()
            raise Missing(f"{self.name}'s llama-server did not start ({self._last_line()})")

    def answer(self, ids: Sequence[int], tokens: int) -> Answer:
        """The greedy answer to the prompt `ids`, at most `tokens` long. Missing where a drafter drafts nothing."""
        # of the samplers only the one that decides: the others' sorting would count as decoding
        body = {"prompt": list(ids), "n_predict": tokens, "temperature": 0, "top_k": 1, "samplers": ["top_k"]}
        data = json.dumps({**body, "cache_prompt": False}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/completion", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER) as reply:
                found = figure(f"{self.name}'s llama-server", lambda: timed(json.load(reply)))
        except OSError as error:
            raise Missing(f"{self.name}'s llama-server did not answer ({error}; {self._last_line()})") from None
        if self.drafts and not found.drafted:
            found = self._with_logged_drafts(found)
        if self.drafts and found.tokens > 8 and not found.drafted:
            raise Missing(f"{self.name}'s llama-server drafted nothing: its options do not reach the drafter")
        return found

    def _with_logged_drafts(self, answer: Answer) -> Answer:
        """With the drafts that the log alone counts: ik_llama.cpp's replies have none."""
        end = time.monotonic() + LOGGED
        while len(counts := logged_drafts(self._written())) == self._logged and time.monotonic() < end:
            time.sleep(0.02)  # the line may come after the reply
        self._logged, new = len(counts), counts[self._logged :]
        return replace(answer, drafted=sum(n for _, n in new), accepted=sum(n for n, _ in new))

    def _written(self) -> str:
        # not read: the server writes at the file's position
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    def _last_line(self) -> str:
        lines = self._written().strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    @property
    def pid(self) -> int:
        return self._process.pid

    def why_gone(self) -> str:
        """What its log says of its end: the failed assertion if there is one, else its last line."""
        failed = [line for line in self._written().splitlines() if "ASSERT" in line]
        return failed[-1][:200] if failed else self._last_line()

    def close(self) -> None:
        """End the process."""
        stop(self._process, END)
