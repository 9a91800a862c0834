"""The training loop: AdamW on the surviving weights, cosine schedule with warm-up, exact resume, early stopping.

Where several processes train (see `processes`), each takes its share of a step's rows, and all take every decision on
numbers that are summed over them, so that they stop, save and give up together.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from sparsedraft.maths.pattern import Pattern
from sparsedraft.models.checkpoint import stored_dtype
from sparsedraft.models.decoder import decoder_linears, embedding_rows
from sparsedraft.stages.finetune import halves, quantize
from sparsedraft.stages.finetune.adamw import MaskedAdamW
from sparsedraft.stages.finetune.masks import broken
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.stages.finetune.on_policy import rewrite
from sparsedraft.stages.finetune.options import Settings
from sparsedraft.stages.finetune.parallel import Layout
from sparsedraft.stages.finetune.passes import add_gradients, alone, validate
from sparsedraft.stages.finetune.reselect import Schedule, reselect
from sparsedraft.stages.finetune.sharding import part, reshard, value
from sparsedraft.stages.finetune.state import State
from sparsedraft.stages.finetune.temperature import fitted
from sparsedraft.text import bins
from sparsedraft.text.bins import Bin
from sparsedraft.text.sample import Sample
from sparsedraft.writers.transformers.abilities import abilities


@dataclass(frozen=True)
class Task:
    """What to train, on which text, and with whose help.

    `masks` are bool keep-masks by linear name; re-selection moves them by the `patterns` of the linears (default:
    unstructured), which also say what shares a scale of int4. `eos_ids` end what the drafter writes itself.
    """

    model: PreTrainedModel
    masks: Mapping[str, Tensor]
    training: Sequence[Sample]
    validation: Sequence[Sample]
    teacher: PreTrainedModel | None = None  # the target
    feature_teacher: PreTrainedModel | None = None  # the dense drafter
    patterns: Mapping[str, Pattern] = field(default_factory=dict)
    eos_ids: frozenset[int] = frozenset()


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


def train(
    task: Task,
    settings: Settings,
    folder: Path,
    *,
    accelerator: Accelerator | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Train `task.model` in place with its masks held; keep the state to resume from, and log.jsonl, in `folder`.

    With `settings.patience` the weights of the best validation are what remains in the model, else those of the last
    step. Returns the steps made, the step whose weights remain, tokens, and the validation figures before training and
    of the weights that remain; with `settings.quantize` those of the float weights, too. `drafting` is the temperature
    fitted on the validation (see maths.temperature), None where the target's distributions are not known there.
    Raises Diverged (the last saved state stays), UserError where the model cannot do what the settings ask, and
    RuntimeError if a mask breaks.
    """
    run = _Run(task, settings, folder, accelerator or alone(task.model))
    done = run.resume()
    with track("fine-tuning", run.steps, "steps") as tracker:
        tracker.advance(done)
        for step, rows in run.batches():
            if run.is_patience_over():
                break
            loss = run.step(step, rows)
            tracker.advance()
            tracker.note(f"loss {loss:.3f}")
            after_step(step)
    return run.finish()


class _Run:
    """One training from its first step, or the one where it stopped, to the weights that remain."""

    def __init__(self, task: Task, settings: Settings, folder: Path, accelerator: Accelerator) -> None:
        self.task, self.settings, self.folder, self.accelerator = task, settings, folder, accelerator
        self.model = task.model
        self.objective = Objective(
            settings.loss, task.teacher, settings.nll_weight, task.feature_teacher, settings.feature_weight
        )
        quantize.install(self.model, settings.quantize, task.patterns)
        readers = [reader for reader in (self.model, task.teacher, task.feature_teacher) if reader is not None]
        self.packable = all(abilities(reader).packs for reader in readers)
        self.wrapped, self.optimizer = _prepare(self.model, task.masks, settings, accelerator)
        if not accelerator.is_fsdp2:
            mixed = accelerator.mixed_precision != "no"
            halves.install(self.model, mixed=mixed, adds=accelerator.num_processes == 1)
        self.steps = count_steps(task.training, settings, self.packable)
        self.moves = Schedule(settings.reselect_every, settings.reselect_share, self.steps)
        self.state = State(
            folder,
            self.model,
            self.optimizer,
            writes=accelerator.is_main_process,
            keeps_best=bool(settings.patience),
        )
        groups = bins.assign(task.validation, settings.sequence_length, self.packable)
        self.laid_out = Layout(self.model, settings)
        self.validation = self.laid_out([bins.fill([task.validation[i] for i in group]) for group in groups], 0)
        self.done = 0  # steps that an earlier, interrupted run made
        self.tokens = 0  # trained on so far

    def resume(self) -> int:
        """Take up the last saved state, or validate the untrained weights; the number of steps that are done."""
        self.done = self.state.restore()
        if not self.done:
            self._validate(0)
        self.tokens = int(self.state.log[-1]["tokens"])
        return self.done

    def batches(self) -> Iterator[tuple[int, list[Bin]]]:
        """(step from 1, its rows) of the steps that are left."""
        s = self.settings
        rows = bins.steps(self.task.training, s.sequence_length, s.rows_per_step, s.seed, self.packable)
        return enumerate(islice(rows, self.done, self.steps), self.done + 1)

    def is_patience_over(self) -> bool:
        """Whether `settings.patience` validations have passed without a better one."""
        return bool(self.settings.patience) and self.state.waited() >= self.settings.patience

    def step(self, step: int, rows: list[Bin]) -> float:
        """One optimizer step on `rows`, validated and saved where it is time to; its loss."""
        torch.manual_seed(self.settings.seed + step)  # dropout, where a model has it, is the same after a resume
        text = self._with_text_of_drafter(step, rows)
        rows = self.laid_out(text, step)
        loss = add_gradients(self.wrapped, self.objective, rows, self.accelerator)
        self._save_before(step, loss)
        if share := self.moves.at(step):
            reselect(self.model, self.task.patterns, self.optimizer, share)
        norm = self._clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _diverged(self.settings, step)
        rate = self._set_learning_rate(step)
        self.optimizer.step()  # writes to surviving weights alone
        self._clear_gradients()
        self.tokens += sum(row.ids.numel() for row in text)
        self.state.log.append({"step": step, "tokens": self.tokens, "loss": loss, "lr": rate})
        if step % self.settings.validate_every == 0 or step == self.steps:
            self._validate(step)
        if step == self.steps:
            self._save(step)
        return loss

    def finish(self) -> dict[str, Any]:
        """Leave the weights that count in the model, prove the mask, write the log; what `train` returns."""
        validations = [entry for entry in self.state.log if "val_alpha" in entry]
        first, last = validations[0], validations[-1]
        if self.settings.patience:
            self.state.restore_best()
            last = next(entry for entry in validations if entry["step"] == self.state.best_step)
        self._check_masks()
        own = fitted(self.model, self.validation, self.task.teacher, self.accelerator)
        self.state.write_log()
        if self.accelerator.is_main_process:
            write_json(self.folder / "settings.json", self.settings.recorded())
        return {
            "steps": int(self.state.log[-1]["step"]),
            "kept_step": int(last["step"]),
            "tokens": self.tokens,
            "answer_tokens_per_epoch": sum(len(sample.answer_ids) for sample in self.task.training),
            "val_loss": [first["val_loss"], last["val_loss"]],
            "val_alpha": [first["val_alpha"], last["val_alpha"]],
            "drafting": None if own is None else asdict(own),
            **self._without_quantization(),
        }

    def _with_text_of_drafter(self, step: int, rows: list[Bin]) -> list[Bin]:
        """`rows`, some of them with answers that the drafter writes now (on-policy training)."""
        if not self.settings.on_policy or self.task.teacher is None:  # one without the other is refused before
            return rows
        rows = rewrite(
            self.model,
            rows,
            share=self.settings.on_policy,
            seed=self.settings.seed,
            step=step,
            eos_ids=self.task.eos_ids,
            vocabulary=embedding_rows(self.task.teacher),
        )
        reshard(self.model)
        return rows

    def _save_before(self, step: int, loss: float) -> None:
        """Save the state after the last step where it is time to: the loss of this one shows whether it is good."""
        last = step - 1
        if math.isfinite(loss) and last % self.settings.save_every == 0 and last > self.done:
            self._save(last)

    def _save(self, step: int) -> None:
        """Save the state after `step`, which takes memory of its own."""
        halves.release(self.model)
        self.state.save(step)

    def _clear_gradients(self) -> None:
        """Forget the gradients of the step; their memory stays where a later row of a step needs it in any case."""
        if self.settings.rows_per_step > 1:
            for parameter in self.model.parameters():
                halves.put_by(parameter)
        self.optimizer.zero_grad()

    def _clip(self) -> float:
        """The norm of the gradient of what is trained, which is then at most that of the settings."""
        if self.accelerator.num_processes == 1 and self.optimizer.can_clip:
            return self.optimizer.clip(self.settings.clip)
        self.optimizer.mask_gradients()
        return value(self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip))

    def _set_learning_rate(self, step: int) -> float:
        rate = self.settings.learning_rate * cosine(step - 1, self.steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _validate(self, step: int) -> None:
        """Log the validation after `step`, and keep its weights if they are the best so far; 0: before training."""
        figures = validate(self.model, self.objective, self.validation, self.accelerator)
        if not math.isfinite(figures["val_loss"]):
            if step:
                raise _diverged(self.settings, step)
            raise UserError(
                "the drafter's loss is not finite before any training: its weights are damaged, make it again."
            )
        self.state.log.append({"step": step, "tokens": self.tokens, **figures})
        if self.settings.patience:
            self.state.keep_best()

    def _check_masks(self) -> None:
        """RuntimeError where a weight that the mask prunes is not 0."""
        linears = decoder_linears(self.model).items() if self.task.masks else ()  # a dense model may have other layers
        keep = self.optimizer.keep
        masks = {name: keep[linear.weight] for name, linear in linears if linear.weight in keep}
        if bad := broken(self.model, masks):
            raise RuntimeError(f"the mask broke in {bad[0]}: a pruned weight is not 0 after training")

    def _without_quantization(self) -> dict[str, Any]:
        """With quantisation-aware training, the validation of the float weights beside that of the rounded ones."""
        if self.settings.quantize == "none":
            return {}
        measure = partial(validate, self.model, self.objective, self.validation, self.accelerator)
        stored, patterns = stored_dtype(self.model), self.task.patterns
        return {"quantization": quantize.compare(self.model, self.settings.quantize, stored, measure, patterns)}


def _prepare(
    model: PreTrainedModel, masks: Mapping[str, Tensor], settings: Settings, accelerator: Accelerator
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


def _embeddings(model: PreTrainedModel) -> list[nn.Parameter]:
    return [*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()]


def _diverged(settings: Settings, step: int) -> Diverged:
    return Diverged(f"--learning-rate {settings.learning_rate:g} makes the loss diverge at step {step}: lower it")
