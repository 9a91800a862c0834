"""The `finetune` stage: a drafter and distilled data in, a trained drafter with the same mask out."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparsedraft import artifact, checkpoint, distilled, packing
from sparsedraft.console import console
from sparsedraft.decoder import context_length, count_zeros, decoder_linears, embedding_rows
from sparsedraft.errors import UserError
from sparsedraft.finetune import checks, features, loop
from sparsedraft.finetune.loop import Settings
from sparsedraft.finetune.masks import masks_of
from sparsedraft.packing import Sample


def finetune(
    drafter: str,
    data: str,
    out: Path,
    *,
    settings: Settings,
    teacher: str | None = None,
    feature_teacher: str | None = None,
    validation_prompts: int = 16,
    device: str = "cpu",
    dtype: str = "float32",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fine-tune `drafter` on the distilled `data` folder and write the checkpoint `out`.

    A drafter whose sparsity.json claims a mask keeps it exactly, or moves it inside its pattern; any other is trained
    whole. `validation_prompts` prompts (all their turns) are held out for validation. `teacher` is the target that
    wrote the data, in memory: every loss but nll compares with it, or else with the log-probabilities that `distill`
    stored. `feature_teacher` is the dense drafter, for SquareHead.
    Raises UserError for options that do not go together, models that do not belong together, a drafter that lies about
    its mask, data of another kind, or a loss that diverges.
    """
    checks.check_settings(settings, teacher, feature_teacher)
    source = distilled.check(Path(data))
    folder = checkpoint.find(drafter)
    teacher_folder = checkpoint.find(teacher) if teacher and settings.loss != "nll" else None
    feature_folder = checkpoint.find(feature_teacher) if feature_teacher else None
    tokenizer = checkpoint.load_tokenizer(folder)
    checks.check_vocabulary(settings.loss, source, tokenizer, drafter)
    if teacher and teacher_folder:
        checks.check_teacher(teacher, teacher_folder, source)
    if feature_teacher and feature_folder:
        checks.check_feature_tokenizer(feature_teacher, feature_folder, tokenizer)
        sizes = checkpoint.read_config(feature_folder), checkpoint.read_config(folder)
        features.check_match(*sizes, feature_teacher)
    if settings.reselect_every and checkpoint.claimed_sparsity(folder) is None:
        raise UserError(
            f"--reselect-every {settings.reselect_every} moves a mask, and drafter {drafter} claims none: prune it "
            "first."
        )

    def build(work: Path) -> dict[str, Any]:
        samples = distilled.samples(source, tokenizer)
        training, validation = split(samples, validation_prompts)
        load = partial(checkpoint.load, dtype=checkpoint.dtype_named(dtype), device=checkpoint.device_named(device))
        model = load(folder)
        longest = min(settings.sequence_length, context_length(model) or settings.sequence_length)
        training, validation = _fit(training, longest, "training"), _fit(validation, longest, "validation")
        # a model that is both teachers is in memory once
        teachers = {path: load(path) for path in {teacher_folder, feature_folder} if path}
        for path, reader in {folder: model, **teachers}.items():
            checks.check_ids([*training, *validation], embedding_rows(reader), str(path))
        claim = checkpoint.check_sparsity(model, folder)
        masks = masks_of(model, list(claim["linears"])) if claim else {}
        result = loop.train(
            model,
            masks,
            training,
            validation,
            settings,
            work,
            teacher=teachers[teacher_folder] if teacher_folder else None,
            feature_teacher=teachers[feature_folder] if feature_folder else None,
            patterns={name: checkpoint.claimed_pattern(claim, name) for name in masks} if claim else {},
            eos_ids=checkpoint.eos_ids(model, tokenizer),
        )
        if claim and settings.reselect_every:
            claim = recounted(claim, model)
        checkpoint.save(model, tokenizer, work, sparsity=claim)
        if claim:  # what is on disk counts, not what was in memory
            checkpoint.check_sparsity(checkpoint.load(work), work)
        return {"drafter": drafter, "pattern": claim["pattern"] if claim else "dense", **result}

    inputs: dict[str, object] = {
        "drafter": folder,
        "data": source,
        "teacher": teacher_folder,
        "feature_teacher": feature_folder,
        "settings": asdict(settings),
        "validation_prompts": validation_prompts,
        "device": device,
        "dtype": dtype,
    }
    return artifact.make(out, "finetune", inputs, build, seed=settings.seed, overwrite=overwrite)


def recounted(claim: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """`claim` with the zeros that each linear has as it will be stored: after the mask has moved, they are counted."""
    linears = decoder_linears(model)
    stored = getattr(model, "stored_dtype", model.dtype)
    zeros = {name: count_zeros(linears[name].weight.detach().to(stored)) for name in claim["linears"]}
    size = sum(linears[name].weight.numel() for name in zeros)
    return {**claim, "linears": zeros, "sparsity": sum(zeros.values()) / size}


def split(samples: Sequence[distilled.Sourced], validation_prompts: int) -> tuple[list[Sample], list[Sample]]:
    """(training, validation): whole prompts go to validation, those whose id has the smallest SHA-256."""
    prompts = sorted({s.prompt_id for s in samples}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(prompts) <= validation_prompts:
        raise UserError(
            f"the data has {len(prompts)} prompts, so {validation_prompts} validation prompts leave none to train on: "
            "distill more, or lower --validation-prompts."
        )
    held = set(prompts[:validation_prompts])

    def of(inside: bool) -> list[Sample]:
        return [s for s in samples if (s.prompt_id in held) == inside]

    return of(False), of(True)


def _fit(samples: list[Sample], length: int, kind: str) -> list[Sample]:
    kept, dropped = packing.fit(samples, length)
    if dropped:
        console.print(f"{dropped} {kind} samples dropped: their prompt alone fills {length} tokens")
    if not kept:
        raise UserError(f"--sequence-length {length} leaves no {kind} sample: every prompt is longer; raise it.")
    return kept
