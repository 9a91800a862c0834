"""The training loop: AdamW on the surviving weights, cosine schedule with warm-up, exact resume."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsedraft import packing
from sparsedraft.artifact import write_atomic, write_json
from sparsedraft.console import track
from sparsedraft.decoder import embedding_rows
from sparsedraft.errors import UserError
from sparsedraft.finetune import quantize
from sparsedraft.finetune.masks import broken, hold
from sparsedraft.finetune.objective import Objective
from sparsedraft.finetune.on_policy import rewrite
from sparsedraft.finetune.reselect import Schedule, reselect
from sparsedraft.packing import PackedRow, Sample
from sparsedraft.pattern import Pattern


@dataclass(frozen=True)
class Settings:
    """How to train. Lengths and budgets are in tokens, prompt and answer together."""

    loss: str = "nll"
    tokens: int | None = None  # how many to train on in all; None: each sample once
    learning_rate: float = 1e-4
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # largest norm of a step's gradient
    sequence_length: int = 512
    rows_per_step: int = 2  # packed rows whose gradients are added up before an optimizer step
    train_embeddings: bool = True  # the embedding and the head, too
    validate_every: int = 25  # steps
    save_every: int = 25  # steps
    seed: int = 0
    nll_weight: float = 0.0  # w of (1 - w) · distillation + w · NLL
    on_policy: float = 0.0  # share of the rows that the drafter writes itself
    feature_weight: float = 0.0  # of SquareHead's term
    quantize: str = "none"  # int8, int4: what the decoder linears compute with
    reselect_every: int = 0  # steps between moves of the mask; 0: it stays
    reselect_share: float = 0.1  # of the surviving weights, at the first move


def cosine(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate at `step` (from 0) of `steps`: linear warm-up to 1, then half a cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def count_steps(samples: Sequence[Sample], settings: Settings, packable: bool = True) -> int:
    """Optimizer steps that use up the token budget."""
    rows = len(packing.groups(samples, settings.sequence_length, packable))
    epoch = sum(len(s) for s in samples)
    return max(1, round((settings.tokens or epoch) / epoch * rows / settings.rows_per_step))


@torch.no_grad()
def validate(model: PreTrainedModel, objective: Objective, rows: Sequence[PackedRow]) -> dict[str, float]:
    """Mean loss and α over the answer tokens of `rows`.

    α here is the share of the target's tokens that are the drafter's argmax, given the target's own prefix: the
    greedy acceptance where the target wrote greedily.
    """
    model.eval()
    loss, agree, count = 0.0, 0, 0
    for row in rows:
        row = row.to(model.device)
        mean, matches = objective(model, row)
        loss += float(mean) * len(row.tokens)
        agree += int(matches)
        count += len(row.tokens)
    return {"val_loss": loss / count, "val_alpha": agree / count}


class _State:
    """What must survive a kill: weights, AdamW's moments, the step, and the log so far. Safetensors, no pickle."""

    def __init__(
        self, folder: Path, model: PreTrainedModel, optimizer: torch.optim.AdamW, masks: Mapping[str, Tensor]
    ) -> None:
        self.tensors, self.log_file = folder / ".state.safetensors", folder / "log.jsonl"
        self.named = dict(model.named_parameters())
        self.optimizer = optimizer
        self.masks = masks  # those that move
        self.log: list[dict[str, float]] = []

    def save(self, step: int) -> None:
        tensors: dict[str, Tensor] = {f"mask.{name}": mask for name, mask in self.masks.items()}
        for name, parameter in self.named.items():
            tensors[f"weight.{name}"] = parameter.detach()
            if moments := self.optimizer.state.get(parameter):
                tensors[f"first.{name}"], tensors[f"second.{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
        with write_atomic(self.tensors) as temporary:  # one file, so that weights and log cannot disagree
            save_file(tensors, temporary, metadata={"step": str(step), "log": json.dumps(self.log)})

    def restore(self) -> int:
        """Load what was saved, if anything; return the steps that are done."""
        if not self.tensors.exists():
            return 0
        from safetensors import safe_open

        with safe_open(self.tensors, "pt") as file:
            meta = file.metadata()
        step, self.log = int(meta["step"]), json.loads(meta["log"])
        tensors = load_file(self.tensors)
        for name, mask in self.masks.items():
            mask.copy_(tensors[f"mask.{name}"])
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"weight.{name}"])
                if f"first.{name}" in tensors:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(step)),
                        "exp_avg": tensors[f"first.{name}"].to(parameter.device),
                        "exp_avg_sq": tensors[f"second.{name}"].to(parameter.device),
                    }
        return step

    def write_log(self) -> None:
        with write_atomic(self.log_file) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self.log))


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
    after_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train `model` in place with `masks` held; keep the state to resume from, and log.jsonl, in `folder`.

    `masks` are bool keep-masks by linear name; re-selection moves them in place, by the `patterns` of the linears
    (default: unstructured). `eos_ids` end what the drafter writes itself.
    Returns steps, tokens and the first and last validation figures; with `quantize` those of the float weights, too.
    Raises UserError where the loss stops being finite (the last saved state stays), RuntimeError if a mask breaks.
    """
    objective = Objective(settings.loss, teacher, settings.nll_weight, feature_teacher, settings.feature_weight)
    frozen = set() if settings.train_embeddings else {id(p) for p in _embeddings(model)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
    quantize.install(model, settings.quantize)
    share = 0.0  # of the mask that moves in the step under way
    hold(model, masks, unless=lambda: share > 0)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    packable = packing.packable(model)
    steps = count_steps(training, settings, packable)
    schedule = Schedule(settings.reselect_every, settings.reselect_share, steps)
    state = _State(folder, model, optimizer, masks if settings.reselect_every else {})
    done = state.restore()
    rows_held_out = packing.groups(validation, settings.sequence_length, packable)
    held_out = [packing.pack([validation[i] for i in group]) for group in rows_held_out]
    if not done:
        state.log.append({"step": 0, "tokens": 0, **validate(model, objective, held_out)})
    seen = int(state.log[-1]["tokens"])
    batches = packing.steps(training, settings.sequence_length, settings.rows_per_step, settings.seed, packable)
    with track("fine-tuning", steps, "steps") as tracker:
        tracker.advance(done)
        for step, rows in enumerate(islice(batches, done, steps), done + 1):
            factor = cosine(step - 1, steps, settings.warmup)
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
            share = schedule.at(step)
            move = partial(reselect, model, masks, patterns or {}, optimizer, share) if share else None
            loss = _step(model, objective, rows, optimizer, settings, factor, move)
            if not math.isfinite(loss):
                raise UserError(
                    f"--learning-rate {settings.learning_rate:g} makes the loss diverge at step {step}; lower it "
                    f"(the state of the last saved step stays in {folder})."
                )
            seen += sum(row.ids.numel() for row in rows)
            state.log.append({"step": step, "tokens": seen, "loss": loss, "lr": factor * settings.learning_rate})
            if step % settings.validate_every == 0 or step == steps:
                state.log.append({"step": step, "tokens": seen, **validate(model, objective, held_out)})
            if step % settings.save_every == 0 or step == steps:
                state.save(step)
            tracker.advance()
            tracker.note(f"loss {loss:.3f}")
            after_step(step)
    if bad := broken(model, masks):
        raise RuntimeError(f"the mask broke in {bad[0]}: a pruned weight is not 0 after training")
    state.write_log()
    write_json(folder / "settings.json", asdict(settings))
    checks = [entry for entry in state.log if "val_alpha" in entry]
    extra = {}
    if settings.quantize != "none":
        stored = getattr(model, "stored_dtype", model.dtype)
        measured = quantize.compare(model, settings.quantize, stored, lambda: validate(model, objective, held_out))
        extra["quantization"] = measured
    return {
        "steps": steps,
        "tokens": seen,
        "answer_tokens_per_epoch": sum(len(s.answer_ids) for s in training),
        "val_loss": [checks[0]["val_loss"], checks[-1]["val_loss"]],
        "val_alpha": [checks[0]["val_alpha"], checks[-1]["val_alpha"]],
        **extra,
    }


def _step(
    model: PreTrainedModel,
    objective: Objective,
    rows: Sequence[PackedRow],
    optimizer: torch.optim.AdamW,
    settings: Settings,
    factor: float,
    move: Callable[[], int] | None = None,
) -> float:
    """One optimizer step over `rows`; every answer token of the step weighs the same. Returns the mean loss.

    `move` changes the masks once the gradients are there; they must be dense until then.
    """
    model.train()
    answer_tokens = sum(len(row.tokens) for row in rows)
    total = 0.0
    for row in rows:
        loss, _ = objective(model, row.to(model.device))
        share = loss * (len(row.tokens) / answer_tokens)
        share.backward()
        total += float(share.detach())
    if move is not None and math.isfinite(total):
        move()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor
    if math.isfinite(total):
        optimizer.step()
    optimizer.zero_grad()
    return total


def _embeddings(model: PreTrainedModel) -> list[nn.Parameter]:
    return [*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()]
