"""How a packed drafter drafts best: its temperature, fitted on distilled data or its checkpoint's, and its window."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.maths.temperature import fit
from sparsedraft.models import checkpoint
from sparsedraft.models.config import drafting
from sparsedraft.models.config.drafting import Drafting
from sparsedraft.models.decoder import context_length, embedding_rows
from sparsedraft.native.loading import load
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.stages.pack.options import PackOptions
from sparsedraft.text import bins, dataset
from sparsedraft.text.logits import accepted
from sparsedraft.text.sample import Sample, held_out


class TemperatureFit:
    """What the temperature is fitted on: the validation prompts of `options.calibrate_temperature`, and the teacher.

    UserError for data of another tokenizer than that of the checkpoint in `folder`, and for data without
    log-probabilities where there is no teacher, or with another model as the teacher.
    """

    def __init__(self, folder: Path, options: PackOptions) -> None:
        assert options.calibrate_temperature is not None
        self.options, self.data = options, dataset.check(options.calibrate_temperature)
        tokenizer = checkpoint.load_tokenizer(folder)
        if not dataset.same_tokenizer(self.data, tokenizer):
            raise UserError(
                f"--calibrate-temperature {self.data} is of another tokenizer than {folder}: distill data of a model "
                "that has it."
            )
        self.teacher = checkpoint.find(options.teacher) if options.teacher else None
        if options.teacher and self.teacher:
            dataset.check_teacher(options.teacher, self.teacher, self.data)
        samples = [*dataset.samples(self.data, tokenizer, soft=self.teacher is None)]
        names = held_out(samples, options.validation_prompts)
        self.samples = [s for s in samples if s.prompt_id in names and (s.soft or self.teacher)]
        if not self.samples:
            raise UserError(
                f"--calibrate-temperature {self.data} holds no log-probabilities: give the target as --teacher, or "
                "distill with --top-k-logprobs."
            )

    def inputs(self) -> dict[str, object]:
        """What the result is made of."""
        o = self.options
        how = {"validation_prompts": o.validation_prompts, "device": o.device, "dtype": o.dtype}
        return {"temperature": {"data": self.data, "teacher": self.teacher, **how}}

    def fitted(self, packed: Path) -> Drafting:
        """The best temperature of the packed folder, which transformers runs; UserError for tokens beyond a model."""
        how: dict[str, Any] = {
            "dtype": checkpoint.dtype_named(self.options.dtype),
            "device": checkpoint.device_named(self.options.device),
        }
        model, teacher = load(packed, **how), load(self.teacher, **how) if self.teacher else None
        readers = {str(packed): model} | ({str(self.teacher): teacher} if teacher else {})
        for name, reader in readers.items():
            dataset.check_ids(self.samples, embedding_rows(reader), name)
        contexts = [length for reader in readers.values() if (length := context_length(reader))]
        rows = [bins.fill([sample]).to(model.device) for sample in _fitting(self.samples, contexts, self.data)]

        def measure(temperatures: Sequence[float]) -> tuple[list[float], int]:
            sums, places = torch.zeros(len(temperatures), dtype=torch.float64), 0
            with track("fitting the temperature", len(rows), "answers") as tracker:
                for row in rows:
                    of_row, n = accepted(model, row, teacher, temperatures)
                    sums, places = sums + of_row, places + n
                    tracker.advance()
            return sums.tolist(), places

        return Drafting(**asdict(fit(measure)), target="top-k" if teacher is None else "whole")


def note(folder: Path, packed: Path, fits: TemperatureFit | None, options: PackOptions) -> dict[str, Any]:
    """Write into the folder `packed` how the drafter drafts best: its temperature, fitted now or known of its
    checkpoint `folder`, and its window, that of `options` or of the checkpoint.

    What the result says of it; nothing where nothing is known.
    """
    known = drafting.of(folder)
    own = known if fits is None else fits.fitted(packed)
    window = Window.of_options(options.drafter_window, options.drafter_sinks, known.reads)
    own = own.model_copy(update={"window": window and window.size, "sinks": window and window.sinks})
    if not own.noted:
        return {}
    drafting.write(packed, own)
    return {"drafting": own.noted}


def _fitting(samples: Sequence[Sample], contexts: Sequence[int], data: Path) -> Sequence[Sample]:
    """The samples cut to the shortest of the `contexts`; UserError where nothing is left."""
    longest = max(len(sample) for sample in samples)
    short, _ = bins.truncate(samples, min([longest, *contexts]))
    if not short:
        raise UserError(f"--calibrate-temperature {data} holds no answer that fits the context: distill others.")
    return short
