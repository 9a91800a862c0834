"""SIGKILL at random moments in every stage of a run; the same command goes on and ends with the same artifacts."""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from clockless import clockless
from forks import Fork

pytestmark = pytest.mark.slow

STAGES = {  # stage: (its folder, about how many seconds it takes on the tiny model)
    "distill": ("distilled", 1.0),
    "prune": ("drafters/half/pruned", 0.5),
    "drop-layers": ("drafters/cut/layer-dropped", 0.2),
    "finetune": ("drafters/sd2/finetuned", 1.5),
    "eval": ("eval", 1.0),
    "report": ("report", 1.0),
}
KILLS = 2
RECIPE = """
target: {target}
distill: {{limit: 120, max_new_tokens: 16, batch_size: 8, top_k_logprobs: 2}}
prune: {{tokens: 4096, sequence_length: 64}}
finetune: {{loss: kl, sequence_length: 128, rows_per_step: 1, save_every: 3, validate_every: 10, validation_prompts: 4}}
drafters:
  - {{name: half, prune: {{pattern: unstructured}}}}
  - {{name: cut, drop_layers: {{match_macs: half}}}}
  - {{name: sd2, start: half, finetune: true}}
eval: {{k: [1, 3], max_new_tokens: 12, simulate: false, batch_size: 8, limit: 12}}
"""


def start(folder: Path) -> Fork:
    log = folder / "log"
    return Fork("run", "../recipe.yaml", "--out", "out", stdout=log, stderr=log, cwd=folder)


def artifacts(out: Path) -> dict[str, Any]:
    """Every file of the run but the report (which shows times) and the provenance; of the evaluation all but times."""
    files = [p for p in out.rglob("*") if p.is_file() and "report" not in p.parts and p.name != "provenance.json"]
    return {str(p.relative_to(out)): clockless(p) if "eval" in p.parts else p.read_bytes() for p in files}


def test_killed_run_ends_with_the_same_artifacts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(target=tiny_checkpoint))
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = start(tmp_path / "whole")
    chance = random.Random(0)
    kills = dict.fromkeys(STAGES, 0)
    for stage, (name, seconds) in STAGES.items():
        final = tmp_path / "cut" / "out" / name
        partial = final.parent / f".{final.name}.partial"
        for attempt in range(12):
            if kills[stage] == KILLS:
                break
            process = start(tmp_path / "cut")
            while not (partial.exists() and process.poll() is None):
                assert process.poll() in (None, 0), (tmp_path / "cut" / "log").read_text()[-3000:]
                if process.poll() == 0 or final.exists():
                    break
                time.sleep(0.002)
            time.sleep(chance.random() * seconds / (1 + attempt))
            under_way = partial.exists()
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills[stage] += under_way
            if final.exists():  # it was faster than the kill: make the stage again
                shutil.rmtree(final)
    assert kills == dict.fromkeys(STAGES, KILLS), "every stage was killed while at work"
    last = start(tmp_path / "cut")
    assert last.wait(timeout=300) == 0, (tmp_path / "cut" / "log").read_text()[-3000:]
    assert whole.wait(timeout=300) == 0, (tmp_path / "whole" / "log").read_text()[-3000:]
    expected, got = artifacts(tmp_path / "whole" / "out"), artifacts(tmp_path / "cut" / "out")
    assert sorted(got) == sorted(expected), "nothing is missing and no scratch is left"
    assert [name for name in expected if got[name] != expected[name]] == []
    assert (tmp_path / "cut" / "out" / "report" / "report.html").exists()
