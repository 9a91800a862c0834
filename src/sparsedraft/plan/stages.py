"""The stages of a recipe, each as a line of the plan; what is packed: packed.py."""

from typing import Any

from sparsedraft.plan.lines import line
from sparsedraft.plan.model import BYTES, Model
from sparsedraft.plan.packed import running
from sparsedraft.plan.shares import density, kept_layers
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.recipe.sections import Drafter, Eval, Speed
from sparsedraft.stages.evaluate import memo
from sparsedraft.stages.finetune import memory as finetuning
from sparsedraft.stages.prune import memory
from sparsedraft.text import prompts

TEMPLATE_TOKENS = 32  # what a chat template adds to a prompt
CHARACTERS_PER_TOKEN = 4


def conversation(source: str, limit: int | None, samples: int = 1, skip_bad: bool = False) -> tuple[int, int]:
    """(answers to write, prompt tokens), from the prompts' lengths in characters."""
    entries = prompts.read(source, [] if skip_bad else None)[:limit]
    rows = sum(len(p.turns) for p in entries) * samples
    characters = sum(len(turn) for p in entries for turn in p.turns) * samples
    return rows, rows * TEMPLATE_TOKENS + characters // CHARACTERS_PER_TOKEN


def distill_stage(recipe: Recipe, target: Model, rows: int, prompt_tokens: int) -> dict[str, Any]:
    """Weights + KV cache of a full batch, of each worker; every prompt token once, every answer token once, at most.

    What a server spends is its own.
    """
    d, width = recipe.distill, BYTES[recipe.dtype]
    context = prompt_tokens // max(1, rows) + d.max_new_tokens
    needed = target.parameters * width + d.batch_size * context * target.kv_bytes(width)
    needed += d.batch_size * target.config.vocab_size * 4 * 2
    answers = rows * d.max_new_tokens
    flops = 2 * target.macs * answers + 2 * target.linears * prompt_tokens
    here = d.engine != "endpoint"
    disk = 10 * (prompt_tokens + answers)  # ids and text
    return line("distill", "distill", answers, here * needed * d.workers, here * flops, disk)


def drafter_stages(
    recipe: Recipe, entry: Drafter, target: Model, dense: Model, data_tokens: int
) -> list[dict[str, Any]]:
    """The stages of one drafter."""
    width, stages = BYTES[recipe.dtype], []
    stored = dense.parameters * 2  # bytes of a checkpoint in 16 bits
    kept = kept_layers(recipe, entry, dense)
    chain = recipe.prunings(entry)
    for number, how in enumerate(chain, 1):
        name = entry.name if number == len(chain) else f"{entry.name} ({number} of {len(chain)})"
        states = 2 * how.tokens * dense.config.hidden_size * width  # in files, while it lasts
        solve = dense.alps_flops if how.method == "alps" else dense.solve_flops
        flops = 2 * 2 * dense.linears * how.tokens + dense.hessian_flops * how.tokens + solve
        needed = memory.peak(dense.module, width, method=how.method)
        stages.append(line(f"{name}: prune", "prune", how.tokens, needed, flops, 2 * stored + states))
        if number < len(chain):
            stages.append(_finetune_stage(recipe, entry, name, number - 1, target, dense, data_tokens))
    if entry.drop_layers is not None:
        tokens = recipe.prune.tokens
        needed = memory.peak(dense.module, width)  # at most: no Hessian is taken
        flops, disk = 2 * dense.linears * tokens, stored * kept
        stages.append(line(f"{entry.name}: drop-layers", "drop-layers", tokens, needed, flops, disk))
    if entry.trained:
        stages.append(_finetune_stage(recipe, entry, entry.name, -1, target, dense, data_tokens))
    return stages


def _finetune_stage(
    recipe: Recipe, entry: Drafter, name: str, part: int, target: Model, dense: Model, data_tokens: int
) -> dict[str, Any]:
    """One fine-tuning of a drafter: weights, gradients and two moments, logits, activations; a teacher's weights."""
    f, kept = recipe.finetune_of(entry), kept_layers(recipe, entry, dense)
    width = BYTES[f.dtype or recipe.dtype]
    tokens = recipe.budgets(entry, data_tokens)[part] or data_tokens
    size = dense.parameters - (1 - kept) * dense.linears
    macs = dense.macs - (1 - kept) * dense.linears
    teacher = recipe.needs_teacher(entry)
    flops, teachers = 6 * macs * tokens * f.growth, 0  # bytes of the teachers' weights
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
        density=density(recipe, entry),
        halves=width == 2,
        layers=round(kept * dense.config.num_hidden_layers),
        teacher=teachers,
    )
    if f.quantize != "none":
        needed += int(4 * kept * dense.linears)  # the rounded weights, kept for the backward pass
    state = 4 + 8 + (4 if f.patience else 0)  # weights, moments, the best weights
    return line(f"{name}: finetune", "finetune", tokens, needed, int(flops), size * (2 + state))


def eval_stage(recipe: Recipe, e: Eval, name: str, kind: str, target: Model, dense: Model) -> dict[str, Any]:
    """The target writes once; each drafter then reads it once (simulated; what a drafter of another tokenizer drafts is
    not counted) or drafts it for every K."""
    width = BYTES[e.dtype or recipe.dtype]
    rows, prompt_tokens = conversation(e.prompts, e.limit)
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
    return line(name, kind, answers, needed, flops, 100 * answers + kept)


def speed_stage(recipe: Recipe, how: Speed, target: Model, dense: Model) -> dict[str, Any]:
    """One token at a time: the target alone, and with each drafter for every K."""
    rows, prompt_tokens = conversation(recipe.eval.prompts, min(how.limit, recipe.eval.limit or how.limit))
    answers = rows * how.max_new_tokens
    drafters = sum(entry.report for entry in recipe.drafters)
    drafted = sum(k + 1 if isinstance(k, int) else 6 for k in how.k)
    flops = 2 * target.macs * answers * (1 + drafters * (1 + drafted)) + 2 * dense.macs * answers * drafters * drafted
    runs = running(recipe, how, target, dense, prompt_tokens // rows + how.max_new_tokens)
    caches = [(model["cache_bytes"] or {"int16": 0})["int16"] for model in runs]
    drafter = max(model["weights_bytes"] + cache for model, cache in zip(runs[1:], caches[1:], strict=True))
    needed = runs[0]["weights_bytes"] + rows * caches[0] + drafter  # the target writes all answers at once
    return line("speed", "speed", answers, needed, flops, 100 * answers)
