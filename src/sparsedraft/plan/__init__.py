"""`sparsedraft plan`: what a recipe will cost, from configs and prompt files alone. No weights are read.

Every figure is an estimate from the formulas below; `plan` prints the speed that it assumes.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from sparsedraft.base.errors import UserError
from sparsedraft.native.cache_size import CACHES, CONTEXT
from sparsedraft.plan.model import size_up
from sparsedraft.plan.packed import pack_stage, running
from sparsedraft.plan.stages import (
    TEMPLATE_TOKENS,
    conversation,
    distill_stage,
    drafter_stages,
    eval_stage,
    speed_stage,
)
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.text import dataset

# Assumed share of the matrix-product speed that each stage reaches, not fitted to measurements: decoding reads
# every weight for a few rows and is bound by memory, training is nearly all large products.
EFFICIENCY = {
    "distill": 0.3,
    "prune": 0.4,
    "drop-layers": 0.6,
    "finetune": 0.7,
    "eval": 0.4,
    "sampled": 0.4,
    "speed": 0.05,
}


def measured_gflops(device: str) -> float:
    """Gflop/s of a float32 product of 1024 x 2048 by 2048 x 2048 on `device`, best of five."""
    a, b = torch.ones(1024, 2048, device=device), torch.ones(2048, 2048, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # item waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * 1024 * 2048 * 2048 / best / 1e9


def plan_recipe(recipe: Recipe, *, gflops: float | None = None, context_length: int = CONTEXT) -> dict[str, Any]:
    """{"gflops", "stages": [{"stage", "tokens", "memory_bytes", "device_hours", "disk_bytes"}], totals, "running"}.

    Memory is the peak of the stage, disk what it writes. Device-hours are floating-point operations divided by
    `gflops` (default: measured on the recipe's device) times the stage's share of it in EFFICIENCY. `running`: what the
    packed models take behind a text of `context_length` tokens (packed.running), where the recipe packs.
    """
    if gflops is not None and not math.isfinite(gflops):
        raise UserError(f"--gflops {gflops} is no speed: give the device's Gflop/s, or leave it out to measure it.")
    speed = gflops or measured_gflops(recipe.device)
    target = size_up(recipe.target)
    dense = size_up(recipe.drafter) if recipe.drafter else target
    d = recipe.distill
    if d.stored is not None:  # a few of its answers are written again
        known = dataset.read_result(Path(d.stored))  # older ones do not say how many tokens there are
        rows, stored_tokens = min(d.again, known["rows"]), known.get("prompt_tokens", 0)
        prompt_tokens = rows * (stored_tokens // max(1, known["rows"]))
    elif d.prompts is None:  # magpie: the target writes a prompt as it writes an answer
        rows = (d.limit or 0) * d.samples
        prompt_tokens = rows * (TEMPLATE_TOKENS + d.max_new_tokens)
    else:
        rows, prompt_tokens = conversation(d.prompts, d.limit, d.samples, d.skip_bad)
    stages = [distill_stage(recipe, target, rows, prompt_tokens)]
    data_tokens = prompt_tokens + rows * d.max_new_tokens
    if d.stored is not None:
        data_tokens = stored_tokens + known.get("target_tokens", 0)
    for entry in recipe.drafters:
        stages += drafter_stages(recipe, entry, target, dense, data_tokens)
    stages.append(eval_stage(recipe, recipe.eval, "eval", "eval", target, dense))
    if recipe.sampled is not None:
        stages.append(eval_stage(recipe, recipe.sampled, "sampled", "sampled", target, dense))
    if recipe.speed is not None:
        if recipe.speed.acceptance:
            here = recipe.eval.model_copy(update={"url": None, "dtype": "float32"})  # as run does it
            stages.append(eval_stage(recipe, here, "packed eval", "eval", target, dense))
        stages.append(pack_stage(recipe, recipe.speed, target, dense))
        stages.append(speed_stage(recipe, recipe.speed, target, dense))
    runs = running(recipe, recipe.speed, target, dense, context_length) if recipe.speed else []
    for stage in stages:
        stage["device_hours"] = stage.pop("flops") / (speed * 1e9 * EFFICIENCY[stage.pop("kind")]) / 3600
    return {
        "gflops": round(speed, 1),
        "stages": stages,
        "device_hours": sum(s["device_hours"] for s in stages),
        "memory_bytes": max(s["memory_bytes"] for s in stages),
        "disk_bytes": sum(s["disk_bytes"] for s in stages),
        "context_length": context_length,
        "running": runs,
    }


def table(plan: dict[str, Any]) -> Table:
    """The plan as a table for people."""
    shown = Table(title=f"plan at {plan['gflops']} Gflop/s (answers at their longest)")
    shown.add_column("stage")
    for name in ("tokens", "memory, GiB", "device-hours", "disk, GiB"):
        shown.add_column(name, justify="right")
    rows = [*plan["stages"], {**plan, "stage": "all", "tokens": sum(s["tokens"] for s in plan["stages"])}]
    for s in rows:
        gib = [s[key] / 2**30 for key in ("memory_bytes", "disk_bytes")]
        shown.add_row(s["stage"], f"{s['tokens']:,}", f"{gib[0]:.2f}", f"{s['device_hours']:.3f}", f"{gib[1]:.2f}")
    return shown


def running_table(plan: dict[str, Any]) -> Table:
    """The memory of what the recipe packs, for people."""
    shown = Table(title=f"memory of the models in MiB; keys and values of {plan['context_length']:,} tokens")
    shown.add_column("model")
    for name in ("weights", *(f"cache {cache}" for cache in CACHES)):
        shown.add_column(name, justify="right")
    for row in plan["running"]:
        sizes = [row["weights_bytes"], *(row["cache_bytes"] or dict.fromkeys(CACHES)).values()]
        shown.add_row(row["model"], *("" if size is None else f"{size / 2**20:,.0f}" for size in sizes))
    return shown
