"""`sparsedraft plan`: what a recipe will cost, from configs and prompt files alone. No weights are read.

Every figure is an estimate from the formulas below; `plan` prints the speed that it assumes.
"""

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from rich.table import Table
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from sparsedraft.base.errors import UserError
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_layers, linears_of
from sparsedraft.models.macs import dense_weights, macs_of_model
from sparsedraft.models.skeleton import skeleton
from sparsedraft.models.sources import locate
from sparsedraft.native.packed_format import expected_bytes
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.recipe.sections import Drafter, Eval, Speed
from sparsedraft.stages.evaluate import memo
from sparsedraft.stages.finetune import memory as finetuning
from sparsedraft.stages.prune import memory
from sparsedraft.text import prompts

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TEMPLATE_TOKENS = 32  # what a chat template adds to a prompt
CHARACTERS_PER_TOKEN = 4
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


@dataclass(frozen=True)
class Model:
    """The sizes of a model that costs follow from; weights in counts, not bytes."""

    config: PretrainedConfig
    macs: int  # per token, dense; where a layer holds more than matrices, at most
    parameters: int
    linears: int  # weights of the decoder's matrices that a token meets
    module: PreTrainedModel  # its modules, without memory behind them

    @cached_property
    def _inputs(self) -> list[int]:
        return memory.distinct_inputs(decoder_layers(self.module)[0], self.config.hidden_size)

    @cached_property
    def hessian_flops(self) -> int:
        """Per calibration token, all layers. UserError for a model that is not made of plain linears."""
        return len(decoder_layers(self.module)) * sum(n * n for n in self._inputs)

    @cached_property
    def solve_flops(self) -> int:
        """All layers. UserError as for the Hessians."""
        layers = decoder_layers(self.module)
        first: list[nn.Linear] = list(linears_of(layers[0]).values())
        rows = sum(5 * linear.out_features * linear.in_features**2 for linear in first)
        return len(layers) * (sum(2 * n**3 for n in self._inputs) + rows)

    def kv_bytes(self, width: int) -> int:
        """Bytes of KV cache per token and row at `width` bytes a number."""
        c = self.config
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return 2 * c.num_hidden_layers * heads * dim * width


def size_up(ref: str) -> Model:
    """The sizes of the model `ref`, from its config."""
    config = checkpoint.read_config(locate(ref, weights=False))
    model = skeleton(config)
    parameters = sum(p.numel() for p in model.parameters())
    macs = macs_of_model(model, 0.0)
    known = parameters if macs is None else macs  # no token meets more than all there is
    return Model(config.get_text_config(), known, parameters, known - dense_weights(model), model)


def measured_gflops(device: str) -> float:
    """Gflop/s of a float32 product of 1024 x 2048 by 2048 x 2048 on `device`, best of five."""
    a, b = torch.ones(1024, 2048, device=device), torch.ones(2048, 2048, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # item waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * 1024 * 2048 * 2048 / best / 1e9


def plan_recipe(recipe: Recipe, *, gflops: float | None = None) -> dict[str, Any]:
    """{"gflops", "stages": [{"stage", "tokens", "memory_bytes", "device_hours", "disk_bytes"}], totals}.

    Memory is the peak of the stage, disk what it writes. Device-hours are floating-point operations divided by
    `gflops` (default: measured on the recipe's device) times the stage's share of it in EFFICIENCY.
    """
    if gflops is not None and not math.isfinite(gflops):
        raise UserError(f"--gflops {gflops} is no speed: give the device's Gflop/s, or leave it out to measure it.")
    speed = gflops or measured_gflops(recipe.device)
    target = size_up(recipe.target)
    dense = size_up(recipe.drafter) if recipe.drafter else target
    d = recipe.distill
    if d.prompts is None:  # magpie: the target writes a prompt as it writes an answer
        rows = (d.limit or 0) * d.samples
        prompt_tokens = rows * (TEMPLATE_TOKENS + d.max_new_tokens)
    else:
        rows, prompt_tokens = _conversation(d.prompts, d.limit, d.samples, d.skip_bad)
    stages = [_distill(recipe, target, rows, prompt_tokens)]
    answer_tokens = rows * recipe.distill.max_new_tokens
    for entry in recipe.drafters:
        stages += _drafter(recipe, entry, target, dense, prompt_tokens + answer_tokens)
    stages.append(_eval(recipe, recipe.eval, "eval", "eval", target, dense))
    if recipe.sampled is not None:
        stages.append(_eval(recipe, recipe.sampled, "sampled", "sampled", target, dense))
    if recipe.speed is not None:
        if recipe.speed.acceptance:
            here = recipe.eval.model_copy(update={"url": None, "dtype": "float32"})  # as run does it
            stages.append(_eval(recipe, here, "packed eval", "eval", target, dense))
        stages.append(_pack(recipe, recipe.speed, target, dense))
        stages.append(_speed(recipe, recipe.speed, target, dense))
    for stage in stages:
        stage["device_hours"] = stage.pop("flops") / (speed * 1e9 * EFFICIENCY[stage.pop("kind")]) / 3600
    return {
        "gflops": round(speed, 1),
        "stages": stages,
        "device_hours": sum(s["device_hours"] for s in stages),
        "memory_bytes": max(s["memory_bytes"] for s in stages),
        "disk_bytes": sum(s["disk_bytes"] for s in stages),
    }


def _conversation(source: str, limit: int | None, samples: int = 1, skip_bad: bool = False) -> tuple[int, int]:
    """(answers to write, prompt tokens), from the prompts' lengths in characters."""
    entries = prompts.read(source, [] if skip_bad else None)[:limit]
    rows = sum(len(p.turns) for p in entries) * samples
    characters = sum(len(turn) for p in entries for turn in p.turns) * samples
    return rows, rows * TEMPLATE_TOKENS + characters // CHARACTERS_PER_TOKEN


def _stage(name: str, kind: str, tokens: int, memory: float, flops: float, disk: float) -> dict[str, Any]:
    """A line of the plan, called `name`; its work is of a `kind` in EFFICIENCY."""
    sizes = {"memory_bytes": int(memory), "flops": flops, "disk_bytes": int(disk)}
    return {"stage": name, "kind": kind, "tokens": tokens, **sizes}


def _distill(recipe: Recipe, target: Model, rows: int, prompt_tokens: int) -> dict[str, Any]:
    """Weights + KV cache of a full batch, of each worker; every prompt token once, every answer token once, at most.

    What a server spends is its own.
    """
    d, width = recipe.distill, BYTES[recipe.dtype]
    context = prompt_tokens // rows + d.max_new_tokens
    needed = target.parameters * width + d.batch_size * context * target.kv_bytes(width)
    needed += d.batch_size * target.config.vocab_size * 4 * 2
    answers = rows * d.max_new_tokens
    flops = 2 * target.macs * answers + 2 * target.linears * prompt_tokens
    here = d.engine != "endpoint"
    disk = 10 * (prompt_tokens + answers)  # ids and text
    return _stage("distill", "distill", answers, here * needed * d.workers, here * flops, disk)


def _drafter(recipe: Recipe, entry: Drafter, target: Model, dense: Model, data_tokens: int) -> list[dict[str, Any]]:
    """The stages of one drafter."""
    width, stages = BYTES[recipe.dtype], []
    stored = dense.parameters * 2  # bytes of a checkpoint in 16 bits
    kept = _kept_layers(recipe, entry, dense)
    chain = recipe.prunings(entry)
    for number, how in enumerate(chain, 1):
        name = entry.name if number == len(chain) else f"{entry.name} ({number} of {len(chain)})"
        states = 2 * how.tokens * dense.config.hidden_size * width  # in files, while it lasts
        flops = 2 * 2 * dense.linears * how.tokens + dense.hessian_flops * how.tokens + dense.solve_flops
        stages.append(
            _stage(f"{name}: prune", "prune", how.tokens, memory.peak(dense.module, width), flops, 2 * stored + states)
        )
        if number < len(chain):
            stages.append(_finetune(recipe, entry, name, number - 1, target, dense, data_tokens))
    if entry.drop_layers is not None:
        tokens = recipe.prune.tokens
        needed = memory.peak(dense.module, width)  # at most: no Hessian is taken
        flops, disk = 2 * dense.linears * tokens, stored * kept
        stages.append(_stage(f"{entry.name}: drop-layers", "drop-layers", tokens, needed, flops, disk))
    if entry.trained:
        stages.append(_finetune(recipe, entry, entry.name, -1, target, dense, data_tokens))
    return stages


def _finetune(
    recipe: Recipe, entry: Drafter, name: str, part: int, target: Model, dense: Model, data_tokens: int
) -> dict[str, Any]:
    """One fine-tuning of a drafter: weights, gradients and two moments, logits, activations; a teacher's weights."""
    f, kept = recipe.finetune_of(entry), _kept_layers(recipe, entry, dense)
    width = BYTES[f.dtype or recipe.dtype]
    tokens = recipe.budgets(entry, data_tokens)[part] or data_tokens
    size = dense.parameters - (1 - kept) * dense.linears
    macs = dense.macs - (1 - kept) * dense.linears
    teacher = recipe.needs_teacher(entry)
    flops, teachers = 6 * macs * tokens, 0  # bytes of the teachers' weights
    if teacher:
        teachers += target.parameters * width
        flops += 2 * target.macs * tokens
    if f.feature_weight and not (teacher and recipe.dense == recipe.target):  # one model that is both runs once
        teachers += dense.parameters * width
        flops += 2 * dense.macs * tokens
    flops += 2 * macs * tokens * f.on_policy  # written token by token, at most as many as were there
    needed = finetuning.peak(
        dense.module,
        f,
        density=_density(recipe, entry),
        halves=width == 2,
        layers=round(kept * dense.config.num_hidden_layers),
        teacher=teachers,
    )
    if f.quantize != "none":
        needed += int(4 * kept * dense.linears)  # the rounded weights, kept for the backward pass
    state = 4 + 8 + (4 if f.patience else 0)  # weights, moments, the best weights
    return _stage(f"{name}: finetune", "finetune", tokens, needed, int(flops), size * (2 + state))


def _kept_layers(recipe: Recipe, entry: Drafter, dense: Model) -> float:
    """Share of the dense drafter's layers that `entry` has; half of them where MACs are to be matched."""
    if entry.drop_layers is not None:
        count = dense.config.num_hidden_layers
        return 1 - (entry.drop_layers.layers or count / 2) / count
    start = next((other for other in recipe.drafters if other.name == entry.start), None)
    return _kept_layers(recipe, start, dense) if start else 1.0


def _density(recipe: Recipe, entry: Drafter) -> float | None:
    """Share of the linears' weights that `entry` is left with after pruning; None where it is not pruned."""
    if entry.prune is not None:
        how = recipe.prune_of(entry)
        return 1 - Pattern.parse(how.pattern).resolve(how.sparsity)
    start = next((other for other in recipe.drafters if other.name == entry.start), None)
    return _density(recipe, start) if start and entry.drop_layers is None else None


def _eval(recipe: Recipe, e: Eval, name: str, kind: str, target: Model, dense: Model) -> dict[str, Any]:
    """The target writes once; each drafter then reads it once (simulated; what a drafter of another tokenizer drafts is
    not counted) or drafts it for every K."""
    width = BYTES[e.dtype or recipe.dtype]
    rows, prompt_tokens = _conversation(e.prompts, e.limit)
    answers = rows * e.max_new_tokens
    drafters = sum(entry.report for entry in recipe.drafters)
    drafted = 0 if e.simulate else sum(k + 1 if isinstance(k, int) else 6 for k in e.k)
    verified = 0 if e.simulate else drafters * (1 + drafted)  # each drafter's loops, and the target alone beside them
    flops = 0 if e.url else 2 * target.macs * (prompt_tokens + answers * (1 + verified))  # a server's are its own
    flops += 2 * dense.macs * drafters * (1 + drafted) * (prompt_tokens + answers)
    parameters = dense.parameters + (0 if e.url else target.parameters)
    needed = parameters * width + e.batch_size * target.config.vocab_size * 4 * 4
    kept = 0
    if e.temperature and not e.url:  # it is read once more, and what it thinks of its answers is kept for the others
        flops += 2 * target.macs * (prompt_tokens + answers)
        kept = min(memo.MOST, answers * target.config.vocab_size * width) if drafters > 1 else 0
    return _stage(name, kind, answers, needed, flops, 100 * answers + kept)


def _pack(recipe: Recipe, how: Speed, target: Model, dense: Model) -> dict[str, Any]:
    """Every drafter that is evaluated, and the target if it is packed, too: bytes by the weights' type, the pattern's
    places and int4's scales. Rounding on calibration text walks through the layers as pruning does; else a matrix is in
    memory at a time."""
    packed, width = [(dense, entry) for entry in recipe.drafters if entry.report], BYTES[recipe.dtype]
    disk = sum(_packed_bytes(recipe, how, *which) for which in packed)
    models = [dense for _ in packed]
    if how.pack_target:
        disk += _packed_bytes(recipe, how, target, None)
        models.append(target)
    tokens = how.calibration_tokens or 0
    if not tokens:
        largest = max(model.config.vocab_size * model.config.hidden_size for model in models)
        return _stage("pack", "prune", 0, 4 * 4 * largest, 0, disk)
    flops = sum(2 * 2 * m.linears * tokens + m.hessian_flops * tokens + m.solve_flops for m in models)
    needed = max(memory.peak(model.module, width) for model in models)
    return _stage("pack", "prune", tokens * len(models), needed, flops, disk)


def _packed_bytes(recipe: Recipe, how: Speed, model: Model, entry: Drafter | None) -> float:
    """Bytes of a packed folder of `model`, as the drafter `entry` has it (None: as it is)."""
    density, kept = (_density(recipe, entry) or 1.0, _kept_layers(recipe, entry, model)) if entry else (1.0, 1.0)
    kind = "dense" if entry is None else _kind(recipe, entry)
    return kept * model.linears * expected_bytes(kind, how.weights, density) + _embedding_bytes(
        how, model, how.head_tokens if entry else None
    )


def _embedding_bytes(how: Speed, model: Model, head_tokens: int | None) -> float:
    """Bytes of a packed model's embedding and head, of which a tied one is stored apart where its codes differ."""
    head = how.head_weights or ("int8" if how.weights == "int4" else how.weights)
    embedding = how.embedding_weights or head
    size, tied = model.config.vocab_size * model.config.hidden_size, model.config.tie_word_embeddings
    apart = not tied or head != embedding or (head == "int4" and how.calibration_tokens is not None)
    others = model.parameters - model.linears - size * (1 if tied else 2)  # norms and biases
    rows = min(head_tokens or model.config.vocab_size, model.config.vocab_size) if apart else 0
    heads = rows * model.config.hidden_size * expected_bytes("dense", head)
    return size * expected_bytes("dense", embedding) + heads + max(0, others) * 2.0


def _kind(recipe: Recipe, entry: Drafter) -> str:
    """What the linears of `entry` are packed as."""
    line = [recipe.prune_of(other) for other in recipe.lineage(entry) if other.prune is not None]
    if not line:
        return "dense"
    return line[0].pattern if Pattern.parse(line[0].pattern).m else "bitmask"


def _speed(recipe: Recipe, how: Speed, target: Model, dense: Model) -> dict[str, Any]:
    """One token at a time: the target alone, and with each drafter for every K."""
    rows, _ = _conversation(recipe.eval.prompts, min(how.limit, recipe.eval.limit or how.limit))
    answers = rows * how.max_new_tokens
    drafters = sum(entry.report for entry in recipe.drafters)
    drafted = sum(k + 1 if isinstance(k, int) else 6 for k in how.k)
    flops = 2 * target.macs * answers * (1 + drafters * (1 + drafted)) + 2 * dense.macs * answers * drafters * drafted
    return _stage("speed", "speed", answers, 4 * (target.parameters + dense.parameters), flops, 100 * answers)


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
