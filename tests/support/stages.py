"""The stages' functions with their options as keywords, for tests that call them often."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsedraft.stages.distill import stage as distill_stage
from sparsedraft.stages.distill.options import DistillOptions
from sparsedraft.stages.evaluate import stage as evaluate_stage
from sparsedraft.stages.evaluate.options import EvaluateOptions
from sparsedraft.stages.export import stage as export_stage
from sparsedraft.stages.export.options import ExportOptions
from sparsedraft.stages.finetune import stage as finetune_stage
from sparsedraft.stages.finetune.options import FinetuneOptions, Settings
from sparsedraft.stages.generate import stage as generate_stage
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.stages.inspect import stage as inspect_stage
from sparsedraft.stages.inspect.options import InspectOptions
from sparsedraft.stages.pack import stage as pack_stage
from sparsedraft.stages.pack.options import PackOptions
from sparsedraft.stages.prune import drop_layers as drop_layers_stage
from sparsedraft.stages.prune import stage as prune_stage
from sparsedraft.stages.prune.options import DropLayersOptions, PruneOptions
from sparsedraft.stages.report import stage as report_stage
from sparsedraft.stages.report.options import ReportOptions

Result = dict[str, Any]
Evaluation = dict[str, Any]  # options of an evaluation, which are checked as soon as it is made


def distill(target: str, prompts: str | None, out: Path, **options: Any) -> Result:
    return distill_stage.distill(DistillOptions(target=target, prompts=prompts, out=out, **options))


def prune(model: str, out: Path, calibration: str, **options: Any) -> Result:
    return prune_stage.prune(PruneOptions(model=model, out=out, calibration=calibration, **options))


def drop_layers(model: str, out: Path, calibration: str, **options: Any) -> Result:
    return drop_layers_stage.drop_layers(DropLayersOptions(model=model, out=out, calibration=calibration, **options))


def finetune(drafter: str, data: str, out: Path, *, settings: Settings, **options: Any) -> Result:
    how = {name: value for name, value in settings if name != "betas"}
    rate = how.pop("learning_rate")  # tests of divergence want more than is allowed
    options.setdefault("dtype", "float32")  # the same on every machine
    made = FinetuneOptions(drafter=drafter, data=Path(data), out=out, **how, **options)
    return finetune_stage.finetune(made.model_copy(update={"learning_rate": rate}))


def evaluate_to(
    out: Path | None,
    target: str,
    drafters: Sequence[tuple[str, str]],
    prompts: str,
    options: Evaluation,
    *,
    overwrite: bool = False,
) -> Result:
    models = {"target": target, "drafters": drafters, "prompts": prompts}
    return evaluate_stage.evaluate(EvaluateOptions(**models, out=out, overwrite=overwrite, **options))


def run_tasks(target: str, drafters: Sequence[tuple[str, str]], tasks: Sequence[str]) -> Result:
    return evaluate_stage.evaluate(EvaluateOptions(target=target, drafters=drafters, tasks=tasks))


def pack(model: str, out: Path, **options: Any) -> Result:
    return pack_stage.pack(PackOptions(model=model, out=out, **options))


def export(checkpoint: Path, out: Path, kind: str, *, overwrite: bool = False) -> Result:
    return export_stage.export(ExportOptions(checkpoint=checkpoint, gguf=kind, out=out, overwrite=overwrite))


def inspect(checkpoint: str) -> Result:
    return inspect_stage.inspect(InspectOptions(checkpoint=checkpoint))


def report(folder: Path, *, overwrite: bool = False) -> Result:
    return report_stage.report(ReportOptions(folder=folder, overwrite=overwrite))


def generate(target: str, prompt: Sequence[str], **options: Any) -> Result:
    return generate_stage.generate(GenerateOptions(target=target, prompt=prompt, **options))
