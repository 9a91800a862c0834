"""The training loop: AdamW on the surviving weights, cosine schedule with warm-up, exact resume, early stopping.

Where several processes train (see `processes`), each takes its share of a step's rows, and all take every decision on
numbers that are summed over them, so that they stop, save and give up together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.base.processes import share_of, sum_over_processes
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models.checkpoint import stored_dtype
from sparsedraft.models.decoder import decoder_linears, embedding_rows
from sparsedraft.stages.finetune import quantize
from sparsedraft.stages.finetune.adamw import MaskedAdamW
from sparsedraft.stages.finetune.masks import broken
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.stages.finetune.on_policy import rewrite
from sparsedraft.stages.finetune.options import Settings
from sparsedraft.stages.finetune.reselect import Schedule, reselect
from sparsedraft.stages.finetune.sharding import part, reshard, value
from sparsedraft.stages.finetune.state import State
from sparsedraft.text import bins
from sparsedraft.text.bins import Bin
from sparsedraft.text.sample import Sample
from sparsedraft.writers.transformers.abilities import abilities


def cosine(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate at `step` (from 0) of `steps`: linear warm-up to 1, then half a cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def count_steps(samples: Sequence[Sample], settings: Settings, packable: bool = True) -> int:
    """Optimizer steps that use up the token budget."""
    rows = len(bins.assign(samples, settings.sequence_length, packable))
    epoch = sum(len(s) for s in samples)
    return max(1, round((settings.tokens or epoch) / epoch * rows / settings.rows_per_step))


class Diverged(UserError):
    """The loss or its gradient is no longer finite."""


@torch.no_grad()
def validate(
    model: PreTrainedModel, objective: Objective, rows: Sequence[Bin], accelerator: Accelerator | None = None
) -> dict[str, float]:
    """Mean loss and α over the answer tokens of `rows`, which the processes of `accelerator` divide among them.

    α here is the share of the target's tokens that are the drafter's argmax, given the target's own prefix: the
    greedy acceptance where the target wrote greedily.
    """
    accelerator = accelerator or _alone(model)
    model.eval()
    loss, agree, count = 0.0, 0.0, 0.0
    if (share := objective.share(rows)) == 0:
        raise objective.unknown("the validation data")
    for row, counts in share_of(rows, accelerator):
        mean, matches = objective(model, row.to(accelerator.device), share)
        if counts:
            loss += float(mean) * len(row.tokens)
            agree += int(matches)
            count += len(row.tokens)
    reshard(model)
    loss, agree, count = sum_over_processes(accelerator, loss, agree, count)
    return {"val_loss": loss / count, "val_alpha": agree / count}


def train(
    model: PreTrainedModel,
    masks: dict[str, Tensor],
    training: Sequence[Sample],
    validation: Sequence[Sample],
    settings: Settings,
    folder: Path,
    *,
    teacher: PreTrainedModel | None = None,
    feature_teacher: PreTrainedModel | None = None,
    patterns: Mapping[str, Pattern] | None = None,
    eos_ids: frozenset[int] = frozenset(),
    accelerator: Accelerator | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train `model` in place with `masks` held; keep the state to resume from, and log.jsonl, in `folder`.

    `masks` are bool keep-masks by linear name; re-selection moves them by the `patterns` of the linears (default:
    unstructured). `eos_ids` end what the drafter writes itself. With `settings.patience` the weights of the best
    validation are what remains in the model, else those of the last step. Returns the steps made, the step whose
    weights remain, tokens, and the validation figures before training and of the weights that remain; with
    `settings.quantize` those of the float weights, too.
    Raises Diverged (the last saved state stays), UserError where the model cannot do what the settings ask, and
    RuntimeError if a mask breaks.
    """
    accelerator = accelerator or _alone(model)
    objective = Objective(settings.loss, teacher, settings.nll_weight, feature_teacher, settings.feature_weight)
    quantize.install(model, settings.quantize)
    packable = all(abilities(reader).packs for reader in (model, teacher, feature_teacher) if reader is not None)
    wrapped, optimizer = _prepare(model, masks, settings, accelerator)
    steps = count_steps(training, settings, packable)
    schedule = Schedule(settings.reselect_every, settings.reselect_share, steps)
    keeps_best = bool(settings.patience)
    state = State(folder, model, optimizer, writes=accelerator.is_main_process, keeps_best=keeps_best)
    rows_held_out = bins.assign(validation, settings.sequence_length, packable)
    held_out = [bins.fill([validation[i] for i in group]) for group in rows_held_out]

    def check(step: int, tokens: int) -> None:
        figures = validate(model, objective, held_out, accelerator)
        if not math.isfinite(figures["val_loss"]):
            raise (
                _diverged(settings, step)
                if step
                else UserError(
                    "the drafter's loss is not finite before any training: its weights are damaged, make it again."
                )
            )
        state.log.append({"step": step, "tokens": tokens, **figures})
        if settings.patience:
            state.keep_best()

    done = state.restore()
    if not done:
        check(0, 0)
    seen = int(state.log[-1]["tokens"])
    batches = bins.steps(training, settings.sequence_length, settings.rows_per_step, settings.seed, packable)
    with track("fine-tuning", steps, "steps") as tracker:
        tracker.advance(done)
        for step, rows in enumerate(islice(batches, done, steps), done + 1):
            if settings.patience and state.waited() >= settings.patience:
                break
            torch.manual_seed(settings.seed + step)  # dropout, where a model has it, is the same after a resume
            if settings.on_policy and teacher is not None:  # one without the other is refused by `checks`
                rows = rewrite(
                    model,
                    rows,
                    share=settings.on_policy,
                    seed=settings.seed,
                    step=step,
                    eos_ids=eos_ids,
                    vocabulary=embedding_rows(teacher),
                )
                reshard(model)
            loss = _gradients(wrapped, objective, rows, accelerator)
            if math.isfinite(loss) and (step - 1) % settings.save_every == 0 and step - 1 > done:
                state.save(step - 1)  # only now: this step's loss has shown that the weights after the last are good
            if share := schedule.at(step):
                reselect(model, patterns or {}, optimizer, share)
            optimizer.mask_gradients()  # so that the norm is that of what is trained
            norm = value(accelerator.clip_grad_norm_(model.parameters(), settings.clip))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise _diverged(settings, step)
            factor = cosine(step - 1, steps, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad()
            seen += sum(row.ids.numel() for row in rows)
            state.log.append({"step": step, "tokens": seen, "loss": loss, "lr": factor * settings.learning_rate})
            if step % settings.validate_every == 0 or step == steps:
                check(step, seen)
            if step == steps:
                state.save(step)
            tracker.advance()
            tracker.note(f"loss {loss:.3f}")
            after_step(step)
    checks = [entry for entry in state.log if "val_alpha" in entry]
    kept = checks[-1]
    if settings.patience:
        state.restore_best()
        kept = next(entry for entry in checks if entry["step"] == state.best_step)
    linears = decoder_linears(model).items() if masks else ()  # a dense model may hold something else
    held = {name: optimizer.keep[linear.weight] for name, linear in linears if linear.weight in optimizer.keep}
    if bad := broken(model, held):
        raise RuntimeError(f"the mask broke in {bad[0]}: a pruned weight is not 0 after training")
    state.write_log()
    if accelerator.is_main_process:
        write_json(folder / "settings.json", settings.recorded())
    extra = {}
    if settings.quantize != "none":
        measure = partial(validate, model, objective, held_out, accelerator)
        extra["quantization"] = quantize.compare(model, settings.quantize, stored_dtype(model), measure)
    return {
        "steps": int(state.log[-1]["step"]),
        "kept_step": int(kept["step"]),
        "tokens": seen,
        "answer_tokens_per_epoch": sum(len(s.answer_ids) for s in training),
        "val_loss": [checks[0]["val_loss"], kept["val_loss"]],
        "val_alpha": [checks[0]["val_alpha"], kept["val_alpha"]],
        **extra,
    }


def _prepare(
    model: PreTrainedModel, masks: dict[str, Tensor], settings: Settings, accelerator: Accelerator
) -> tuple[nn.Module, MaskedAdamW]:
    """(the model as accelerate wraps it, its optimizer with the masks): what trains and what does not is settled."""
    if settings.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(f"--gradient-checkpointing is not known to {type(model).__name__}: leave it out.")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    frozen = set() if settings.train_embeddings else {id(p) for p in _embeddings(model)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
    optimizer = MaskedAdamW(
        (p for p in model.parameters() if p.requires_grad),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )
    wrapped, _ = accelerator.prepare(model, optimizer)  # where it shards, the optimizer's parameters are new ones
    linears = decoder_linears(model) if masks else {}
    for name, mask in masks.items():
        optimizer.hold(linears[name].weight, part(mask, linears[name].weight))
    return wrapped, optimizer


def _gradients(model: nn.Module, objective: Objective, rows: Sequence[Bin], accelerator: Accelerator) -> float:
    """Add up the gradients of one step over `rows`, dense; every answer token of the step weighs the same (in a
    divergence, every one whose distribution is known).

    Returns the mean loss, the same in every process.
    """
    model.train()
    answer_tokens = sum(len(row.tokens) for row in rows)
    known = objective.share(rows)  # 0: the NLL alone
    mine = list(share_of(rows, accelerator))
    total = 0.0
    for index, (row, counts) in enumerate(mine):
        waits = index < len(mine) - 1 and not accelerator.is_fsdp2  # FSDP would keep whole gradients meanwhile
        with accelerator.no_sync(model) if waits else nullcontext():
            loss, _ = objective(model, row.to(accelerator.device), known)
            share = loss * (counts * len(row.tokens) / answer_tokens)
            (share * accelerator.num_processes).backward()  # accelerate's wrappers take the mean over processes
        total += float(share.detach())
    return sum_over_processes(accelerator, total)[0]


def _diverged(settings: Settings, step: int) -> Diverged:
    return Diverged(f"--learning-rate {settings.learning_rate:g} makes the loss diverge at step {step}: lower it")


def _alone(model: PreTrainedModel) -> Accelerator:
    return Accelerator(cpu=model.device.type == "cpu")


def _embeddings(model: PreTrainedModel) -> list[nn.Parameter]:
    return [*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()]
