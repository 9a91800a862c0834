"""One model in vLLM, in a process of its own: `python vllm_run.py FILE`, whose JSON says what to run.

{"llm": arguments of vllm.LLM, "prompts": [token ids, ...], "sampling": arguments of SamplingParams}; it writes to
FILE.out {"ids": [...], "logprobs": [[[token, logprob], ...] a position, ...], "drafted", "accepted"}.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SETTINGS = {"enforce_eager": True, "max_model_len": 128, "max_num_seqs": 4, "disable_log_stats": False}
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip


def environment() -> dict[str, str]:
    """That of a process with vLLM: its models come from folders, and it needs little memory for keys and values."""
    return {**os.environ, **ENVIRONMENT}


def run(file: Path, prompts: list[list[int]], sampling: dict[str, Any], **llm: Any) -> dict[str, Any]:
    """What the process wrote; AssertionError, with its output, where it failed."""
    done = start(file, prompts, sampling, **llm)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(file.with_suffix(".out").read_text())


def start(
    file: Path, prompts: list[list[int]], sampling: dict[str, Any], **llm: Any
) -> subprocess.CompletedProcess[str]:
    """The process, ended; `file` is written."""
    file.write_text(json.dumps({"llm": {**SETTINGS, **llm}, "prompts": prompts, "sampling": sampling}))
    command = [sys.executable, __file__, str(file)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)


def main() -> None:
    from vllm import LLM, SamplingParams

    asked = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(**asked["llm"])
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in asked["prompts"]],
        SamplingParams(**asked["sampling"]),
        use_tqdm=False,
    )
    counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    logprobs = [
        [[[token, found.logprob] for token, found in place.items()] for place in (output.prompt_logprobs or [])[1:]]
        for output in outputs
    ]
    found = {
        "ids": [list(choice.token_ids) for output in outputs for choice in output.outputs],
        "logprobs": logprobs,
        "drafted": counters.get("vllm:spec_decode_num_draft_tokens", 0),
        "accepted": counters.get("vllm:spec_decode_num_accepted_tokens", 0),
    }
    Path(sys.argv[1]).with_suffix(".out").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
