"""The `finetune` stage: a drafter and distilled data in, a trained drafter with the same mask out."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsedraft import artifact, checkpoint, distilled, packing
from sparsedraft.console import console
from sparsedraft.decoder import context_length
from sparsedraft.errors import UserError
from sparsedraft.finetune import loop, losses
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
    validation_prompts: int = 16,
    device: str = "cpu",
    dtype: str = "float32",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fine-tune `drafter` on the distilled `data` folder and write the checkpoint `out`.

    A drafter whose sparsity.json claims a mask keeps it exactly; any other is trained whole. `validation_prompts`
    prompts (all their turns) are held out for validation. `teacher` is the target, wanted by every loss but nll; kl can
    also do with the log-probabilities that `distill` stored.
    Raises UserError for a drafter that lies about its mask, data of another kind, or a loss that diverges.
    """
    if settings.loss not in losses.NAMES:
        raise UserError(f"--loss {settings.loss} is not known: choose one of {', '.join(losses.NAMES)}.")
    folder = checkpoint.find(drafter)
    teacher_folder = checkpoint.find(teacher) if teacher and settings.loss != "nll" else None

    def build(work: Path) -> dict[str, Any]:
        tokenizer = checkpoint.load_tokenizer(folder)
        samples = distilled.samples(Path(data), tokenizer)
        training, validation = split(samples, validation_prompts)
        model = checkpoint.load(folder, dtype=checkpoint.dtype_named(dtype), device=checkpoint.device_named(device))
        longest = min(settings.sequence_length, context_length(model) or settings.sequence_length)
        training, validation = _fit(training, longest, "training"), _fit(validation, longest, "validation")
        claim = checkpoint.check_sparsity(model, folder)
        masks = masks_of(model, list(claim["linears"])) if claim else {}
        p = (
            checkpoint.load(teacher_folder, dtype=checkpoint.dtype_named(dtype), device=device)
            if teacher_folder
            else None
        )
        result = loop.train(model, masks, training, validation, settings, work, teacher=p)
        checkpoint.save(model, tokenizer, work, sparsity=claim)
        if claim:  # what is on disk counts, not what was in memory
            checkpoint.check_sparsity(checkpoint.load(work), work)
        return {"drafter": drafter, "pattern": claim["pattern"] if claim else "dense", **result}

    inputs: dict[str, object] = {
        "drafter": folder,
        "data": distilled.check(Path(data)),
        "teacher": teacher_folder,
        "settings": asdict(settings),
        "validation_prompts": validation_prompts,
        "device": device,
        "dtype": dtype,
    }
    return artifact.make(out, "finetune", inputs, build, seed=settings.seed, overwrite=overwrite)


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
