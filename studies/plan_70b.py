"""What recipes/llama-3.1-70b.yaml costs, from the models' published shapes: their configs need a licence to be fetched.

    python studies/plan_70b.py --evaluation spec_bench.jsonl [--gflops 400000] [--into docs/RESULTS.md]

`sparsedraft plan` on folders that hold nothing but a config. Alpaca, the recipe's prompts, counts as so many prompts
that the target writes itself. --gflops is an assumption: 400,000 is two fifths of an H100's dense bfloat16.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from results import put
from sparsedraft.plan import plan_recipe
from sparsedraft.recipe import reading as recipes
from sparsedraft.stages.report.tables import markdown
from study import ROOT, setup

ALPACA = 52_002  # prompts
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# as in the config.json of Llama-3.1-70B-Instruct, Llama-3.2-1B-Instruct and Llama-3.2-3B-Instruct
SHAPES: dict[str, dict[str, Any]] = {
    "70B": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "head_dim": 128, "tie_word_embeddings": False, "rope_parameters": {**ROPE, "factor": 8.0},
    },
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "head_dim": 64, "tie_word_embeddings": True, "rope_parameters": {**ROPE, "factor": 32.0},
    },
    "3B": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "head_dim": 128, "tie_word_embeddings": True, "rope_parameters": {**ROPE, "factor": 32.0},
    },
}  # fmt: skip


def planned(drafter: str, evaluation: str, gflops: float, folder: Path) -> str:
    """The plan with this drafter, in Markdown."""
    overrides = [f"target={folder / '70B'}", f"drafter={folder / drafter}", f"eval.prompts={evaluation}"]
    overrides += ["distill.prompts=null", "distill.mode=magpie", f"distill.limit={ALPACA}"]
    plan = plan_recipe(recipes.read(ROOT / "recipes/llama-3.1-70b.yaml", overrides), gflops=gflops)
    stages = [*plan["stages"], {**plan, "stage": "all", "tokens": sum(s["tokens"] for s in plan["stages"])}]
    rows = []
    for s in stages:
        memory, disk = (f"{s[key] / 2**30:.1f}" for key in ("memory_bytes", "disk_bytes"))
        rows.append([s["stage"], f"{s['tokens']:,}", memory, f"{s['device_hours']:.2f}", disk])
    return markdown(["stage", "tokens", "peak memory, GiB", "device-hours", "disk, GiB"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", default="demo:eval", help="the prompts of eval, as a recipe names them")
    parser.add_argument("--gflops", type=float, default=400_000)
    parser.add_argument("--into", type=Path, help="a Markdown file that gets the tables")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            config = LlamaConfig(
                vocab_size=128256, num_key_value_heads=8, max_position_embeddings=131072, dtype="bfloat16",
                architectures=["LlamaForCausalLM"], **shape,
            )  # fmt: skip
            config.save_pretrained(Path(folder) / name)
        parts = [
            f"Drafter Llama-3.2-{drafter}, at {options.gflops:,.0f} Gflop/s a device (assumed), answers at their "
            f"longest:\n\n{planned(drafter, options.evaluation, options.gflops, Path(folder))}"
            for drafter in ("1B", "3B")
        ]
    text = "\n\n".join(parts) + "\n"
    if options.into:
        put(text, "the plan of llama-3.1-70b", options.into)
    sys.stdout.write(text)


if __name__ == "__main__":
    setup()
    main()
