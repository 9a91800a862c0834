"""The `finetune` stage: a drafter and distilled data in, a trained drafter with the same mask out."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsedraft.base import artifact, places, processes
from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, claims, quantizers
from sparsedraft.models.config import drafting
from sparsedraft.models.config.parallel import mask_token_of, note_mask_token
from sparsedraft.models.decoder import context_length, count_zeros, embedding_rows
from sparsedraft.models.reload import check_loads
from sparsedraft.models.shards import Shards
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.native.loading import load
from sparsedraft.native.packed_folder import is_packed
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.stages.finetune import checks, features, loop, parallel, state
from sparsedraft.stages.finetune.loop import Task
from sparsedraft.stages.finetune.masks import stored_masks
from sparsedraft.stages.finetune.objective import Objective
from sparsedraft.stages.finetune.options import FinetuneOptions
from sparsedraft.stages.finetune.windowed import windowed
from sparsedraft.text import bins, dataset
from sparsedraft.text.sample import Sample, held_out


@dataclass(frozen=True)
class _Sources:
    """The folders that training reads."""

    drafter: Path
    data: Path
    teacher: Path | None
    feature_teacher: Path | None


@dataclass(frozen=True)
class _Loaded:
    """What training needs in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    claim: dict[str, Any] | None  # of zeros, as in sparsity.json
    training: list[Sample]
    validation: list[Sample]
    teachers: dict[Path, PreTrainedModel]
    hard: int  # rows without the log-probabilities that the loss compares with: they are left out of it
    mask_token: int | None = None  # of a drafter that learns to draft in parallel


def finetune(options: FinetuneOptions) -> dict[str, Any]:
    """Fine-tune the drafter on the distilled data and write the checkpoint `options.out`.

    A drafter whose sparsity.json claims a mask keeps it exactly, or moves it inside its pattern; any other is trained
    whole. With the objective `parallel` it learns to write a whole draft in one pass; its config.json then names the
    mask token. With a window each stretch of an answer follows what the drafter will read before it, and the checkpoint
    says that it is to be read with.
    `validation_prompts` prompts (all their turns) are held out for validation. `teacher` is the target that
    wrote the data, in memory: every loss but nll compares with it, or else with the log-probabilities that `distill`
    stored. `feature_teacher` is the dense drafter, for SquareHead. `dtype` is the arithmetic of forward and backward
    passes (see `processes.arithmetic`), and what the teachers are loaded in; weights and moments are float32, and the
    checkpoint is written in the dtype that the drafter's own is stored in.
    Several processes (see `processes`) train as one; the main one returns the result, the others {}.
    Raises UserError for models that do not belong together, a drafter that lies about
    its mask, data of another kind, or a loss that diverges; then the weights of the last saved state become the
    checkpoint OUT.last-good.
    """
    settings = options.settings
    checkpoint.device_named(options.device)
    options = options.model_copy(update={"dtype": processes.arithmetic(options.dtype, options.device)})
    with processes.open_accelerator(options.device, options.dtype) as accelerator:
        sources = processes.in_turn(accelerator, lambda: _find(options))
        inputs: dict[str, object] = {
            **vars(sources),
            "settings": settings.recorded(),
            "validation_prompts": options.validation_prompts,
            **({"window": [options.drafter_window, options.drafter_sinks]} if options.drafter_window else {}),
            "device": options.device,
            "dtype": options.dtype,
            **templates.inputs(options.template_args),
        }

        def build(work: Path) -> dict[str, Any]:
            loaded = processes.in_turn(accelerator, lambda: _load(sources, accelerator, options))
            model, claim = loaded.model, loaded.claim
            try:
                how = settings.model_copy(update={"mask_token": loaded.mask_token})
                result = loop.train(_task(sources, loaded), how, work, accelerator=accelerator)
            except loop.Diverged as error:
                where = _rescue(work, options.out, sources, loaded, inputs) if accelerator.is_main_process else ""
                raise UserError(f"{error} ({where}).") from None
            weights = accelerator.get_state_dict(model)  # whole, in the main process
            if accelerator.is_main_process:
                if claim and settings.reselect_every:
                    claim = recounted(claim, weights, checkpoint.stored_dtype(model))
                checkpoint.save(model, loaded.tokenizer, work, sparsity=claim, weights=weights)
                check_loads(work)
                if claim:  # what is on disk counts, not what was in memory
                    claims.check_claims(checkpoint.load(work), work)
                _note_drafting(result["drafting"], work, options)
            result |= {"rows_without_logprobs": loaded.hard} if loaded.hard else {}
            result |= {} if loaded.mask_token is None else {"mask_token": loaded.mask_token}
            return {"drafter": options.drafter, "pattern": claim["pattern"] if claim else "dense", **result}

        return processes.make(
            accelerator, options.out, "finetune", inputs, build, seed=options.seed, overwrite=options.overwrite,
            reads=(options.drafter, options.data, options.teacher, options.feature_teacher),
        )  # fmt: skip


def _note_drafting(fitted: dict[str, Any] | None, work: Path, options: FinetuneOptions) -> None:
    """Keep the drafter's own temperature and the window that it was trained with; say where no temperature is known."""
    window = Window.of_options(options.drafter_window, options.drafter_sinks)
    known: dict[str, Any] = {"window": window.size, "sinks": window.sinks} if window else {}
    if fitted is not None:
        known |= {**fitted, "target": "whole" if options.teacher else "top-k"}
    if known:
        drafting.write(work, drafting.Drafting(**known))
    if fitted is not None:
        return
    console.print(
        f"no temperature is fitted for the drafter: data {options.data} holds no log-probabilities of its tokens "
        "(distill --top-k-logprobs)",
        style="dim", markup=False, soft_wrap=True,
    )  # fmt: skip


def _task(sources: _Sources, loaded: _Loaded) -> Task:
    """What the loop trains, from what is loaded."""
    claim = loaded.claim
    masks = stored_masks(sources.drafter, loaded.model, claim) if claim else {}
    return Task(
        loaded.model,
        masks,
        loaded.training,
        loaded.validation,
        teacher=loaded.teachers[sources.teacher] if sources.teacher else None,
        feature_teacher=loaded.teachers[sources.feature_teacher] if sources.feature_teacher else None,
        patterns={name: claims.pattern_of(claim, name) for name in masks} if claim else {},
        eos_ids=end_ids(sources.drafter, loaded.tokenizer),
    )


def _find(options: FinetuneOptions) -> _Sources:
    """Where everything lies; UserError for models and data that do not belong together."""
    drafter, teacher, feature_teacher = options.drafter, options.teacher, options.feature_teacher
    source, folder = dataset.check(options.data), checkpoint.find(drafter)
    if is_packed(folder):
        raise UserError(f"drafter {drafter} is packed, and cannot be trained: give the checkpoint that it came from.")
    quantizers.check_plain(drafter, checkpoint.read_config(folder), Shards(folder), "finetune")
    tokenizer = checkpoint.load_tokenizer(folder)
    templates.check(tokenizer, options.template_args)
    dataset.check_rendered(source, tokenizer, options.template_args)
    checks.check_vocabulary(options.loss, source, tokenizer, drafter)
    teacher_folder = feature_folder = None
    if teacher:
        teacher_folder = checkpoint.find(teacher)
        dataset.check_teacher(teacher, teacher_folder, source)
    if feature_teacher:
        feature_folder = checkpoint.find(feature_teacher)
        checks.check_feature_tokenizer(feature_teacher, feature_folder, tokenizer)
        sizes = checkpoint.read_config(feature_folder), checkpoint.read_config(folder)
        features.check_match(*sizes, feature_teacher)
    if options.reselect_every and claims.claim_of(folder) is None:
        raise UserError(
            f"--reselect-every {options.reselect_every} moves a mask, and drafter {drafter} claims none: prune it "
            "first."
        )
    return _Sources(folder, source, teacher_folder, feature_folder)


def _load(sources: _Sources, accelerator: Accelerator, options: FinetuneOptions) -> _Loaded:
    """Read data and models; UserError for what cannot be used."""
    tokenizer = templates.give(checkpoint.load_tokenizer(sources.drafter), options.template_args)
    soft = options.loss != "nll" and sources.teacher is None
    training, validation = split([*dataset.samples(sources.data, tokenizer, soft)], options.validation_prompts)
    if options.loss == "nll":  # what the target said of them is for the drafter's own temperature
        names = {sample.prompt_id for sample in validation}
        validation = [s for s in dataset.samples(sources.data, tokenizer) if s.prompt_id in names]
    hard = _hard(training, validation, options) if soft else 0
    if hard and not options.nll_weight:  # such rows teach nothing, and would use up the budget
        training = [sample for sample in training if sample.soft]
    model = load(sources.drafter, device="cpu" if accelerator.is_fsdp2 else accelerator.device)
    if window := Window.of_options(options.drafter_window, options.drafter_sinks):
        training, validation = ([*windowed(part, window)] for part in (training, validation))
    longest = min(options.sequence_length, context_length(model) or options.sequence_length)
    training, validation = _fit(training, longest, "training"), _fit(validation, longest, "validation")
    claim = claims.check_claims(model, sources.drafter)
    teachers = {  # a model that is both teachers is in memory once
        folder: load(folder, dtype=checkpoint.dtype_named(options.dtype), device=accelerator.device)
        for folder in {sources.teacher, sources.feature_teacher}
        if folder
    }
    for path, reader in {sources.drafter: model, **teachers}.items():
        dataset.check_ids([*training, *validation], embedding_rows(reader), str(path))
    mask_token = _mask_token(sources, model, tokenizer, [*training, *validation], options)
    return _Loaded(model, tokenizer, claim, training, validation, teachers, hard, mask_token)


def _mask_token(
    sources: _Sources,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    options: FinetuneOptions,
) -> int | None:
    """The mask token of the drafter to be; its config says so from now on, or says nothing of one any more."""
    token = None
    if options.objective == "parallel":
        parallel.check_trains(model, options.settings)
        ends = end_ids(sources.drafter, tokenizer)
        token = parallel.choose_mask_token(model, tokenizer, samples, ends, options.mask_token)
        parallel.note_on_console(token, tokenizer)
    elif mask_token_of(model.config, options.drafter) is not None:
        console.print(
            f"drafter {options.drafter} drafts in parallel; trained by --objective next-token it drafts token by token",
            style="dim", markup=False, soft_wrap=True,
        )  # fmt: skip
    note_mask_token(model.config, token)
    return token


def _hard(training: Sequence[Sample], validation: Sequence[Sample], options: FinetuneOptions) -> int:
    """How many samples have no log-probabilities, said on the console; UserError where one part has none at all."""
    hard = 0
    for kind, part in (("training", training), ("validation", validation)):
        without = sum(not sample.soft for sample in part)
        if without == len(part):
            raise Objective(options.loss).unknown(f"the {kind} data")
        hard += without
    if hard:
        console.print(f"{hard} rows of the data have no log-probabilities, and are left out of the {options.loss} loss")
    return hard


def _rescue(work: Path, out: Path, sources: _Sources, loaded: _Loaded, inputs: dict[str, object]) -> str:
    """Make the weights saved in `work` the checkpoint OUT.last-good, if there are any; a sentence on what was done.

    It deletes the state, so that the same command with a lower rate finds nothing in `work` that it must refuse.
    """
    saved = state.last_saved(work, loaded.model)
    if saved is None:
        state.remove(work)  # the weights of a validation before training, with early stopping
        return "no earlier state was saved"
    place = _free(out, inputs)

    def build(folder: Path) -> dict[str, Any]:
        model = load(sources.drafter)
        note_mask_token(model.config, loaded.mask_token)
        state.load_weights(saved, model)
        checkpoint.save(model, loaded.tokenizer, folder, sparsity=loaded.claim)
        check_loads(folder)
        return {"drafter": str(sources.drafter), "step": saved.step}

    artifact.make(place, "finetune", {**inputs, "step": saved.step}, build, overwrite=True)
    state.remove(work)
    return f"the weights after step {saved.step}, the last good ones saved, are the checkpoint {place}"


def _free(out: Path, inputs: Mapping[str, object]) -> Path:
    """OUT.last-good, or the first of OUT.last-good-2, -3 … that is free or that this training may replace.

    It may replace the last good weights of an earlier training, unless it reads them.
    """
    names = itertools.chain(["last-good"], (f"last-good-{number}" for number in itertools.count(2)))
    for place in (out.with_name(f"{out.name}.{name}") for name in names):
        if not place.exists():
            return place
        try:
            places.check_apart(place, inputs)
            places.check_replaceable(place, "finetune")
        except UserError:
            continue
        if "step" in ((places.read_provenance(place) or {}).get("inputs") or {}):
            return place
    raise AssertionError("there is always another number")


def recounted(claim: dict[str, Any], weights: Mapping[str, Tensor], stored: torch.dtype) -> dict[str, Any]:
    """`claim` with the zeros that each linear will have in the checkpoint, counted after the mask has moved."""
    linears = {name: weights[f"{name}.weight"] for name in claim["linears"]}
    zeros = {name: count_zeros(weight.to(stored)) for name, weight in linears.items()}
    size = sum(weight.numel() for weight in linears.values())
    return {**claim, "linears": zeros, "sparsity": sum(zeros.values()) / size}


def split(samples: Sequence[Sample], validation_prompts: int) -> tuple[list[Sample], list[Sample]]:
    """(training, validation): whole prompts go to validation, those whose id has the smallest SHA-256.

    A prompt of another id but the same tokens as one in validation goes to neither.
    """
    prompts, names = {sample.prompt_id for sample in samples}, held_out(samples, validation_prompts)
    if names == prompts:
        raise UserError(
            f"the data has {len(prompts)} prompts, so {validation_prompts} validation prompts leave none to train on: "
            "distill more, or lower --validation-prompts."
        )
    validation = [s for s in samples if s.prompt_id in names]
    texts = {tuple(s.prompt_ids) for s in validation}
    training = [s for s in samples if s.prompt_id not in names and tuple(s.prompt_ids) not in texts]
    if not training:
        raise UserError("every prompt of the data is also a validation prompt under another id: distill others, too.")
    return list(training), list(validation)


def _fit(samples: list[Sample], length: int, kind: str) -> list[Sample]:
    """The samples cut to `length` tokens; UserError where every prompt alone is longer."""
    short, dropped = bins.truncate(samples, length)
    if dropped:
        console.print(f"{dropped} {kind} samples dropped: their prompt alone fills {length} tokens")
    if not short:
        raise UserError(f"--sequence-length {length} leaves no {kind} sample: every prompt is longer; raise it.")
    return short
