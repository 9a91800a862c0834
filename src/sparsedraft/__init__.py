"""sparsedraft: sparse, self-distilled drafters for speculative decoding (SD²).

Throughout, p is the target model and q the drafter; K is the number of tokens drafted a step.

The public names are those in `__all__`. Importing this costs little: torch and transformers come with the first call
that needs them.
"""

from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from sparsedraft.advise.options import AdviseOptions
    from sparsedraft.native.session import Engine
    from sparsedraft.stages.distill.options import DistillOptions
    from sparsedraft.stages.evaluate.options import EvaluateOptions
    from sparsedraft.stages.export.options import ExportOptions
    from sparsedraft.stages.finetune.options import FinetuneOptions
    from sparsedraft.stages.generate.api import Model
    from sparsedraft.stages.generate.texts import GeneratedText, TextPiece
    from sparsedraft.stages.inspect.options import InspectOptions
    from sparsedraft.stages.pack.options import PackOptions
    from sparsedraft.stages.prune.options import DropLayersOptions, PruneOptions
    from sparsedraft.stages.report.options import ReportOptions
    from sparsedraft.writers.loaded import LoadedModel

__version__ = "0.1.0"
__all__ = [
    "AdviseOptions", "DistillOptions", "DropLayersOptions", "Engine", "EvaluateOptions", "ExportOptions",
    "FinetuneOptions", "GeneratedText", "InspectOptions", "LoadedModel", "PackOptions", "PruneOptions", "ReportOptions",
    "TextPiece", "advise", "distill", "drop_layers", "evaluate", "export", "finetune", "generate", "inspect", "load",
    "pack", "prune", "register", "report",
]  # fmt: skip


def register() -> None:
    """Let transformers' own `from_pretrained` load packed folders, too. It can be called any number of times."""
    from sparsedraft.native import quantizer

    quantizer.register()


def load(
    folder: "str | Path", *, dtype: "torch.dtype | None" = None, device: "str | torch.device" = "cpu"
) -> "PreTrainedModel":
    """The transformers model of a checkpoint, packed or plain, in evaluation mode: for `generate`, or as its assistant.

    `folder` may also be a hub id or a .gguf file; `dtype` (default: float32) is that of the activations and of what is
    not packed. Raises UserError where the checkpoint does not exist, is not whole, or is damaged.
    """
    import torch

    from sparsedraft.native import loading

    return loading.load(folder, dtype=dtype or torch.float32, device=device)


@overload
def generate(
    target: "Model", prompt: "str | Sequence[str]", *, stream: Literal[True], **options: Any
) -> "Iterator[TextPiece]": ...
@overload
def generate(target: "Model", prompt: str, *, stream: Literal[False] = False, **options: Any) -> "GeneratedText": ...
@overload
def generate(
    target: "Model", prompt: "Sequence[str]", *, stream: Literal[False] = False, **options: Any
) -> "list[GeneratedText]": ...
def generate(
    target: "Model",
    prompt: "str | Sequence[str]",
    *,
    drafter: "Model | None" = None,
    stream: bool = False,
    **options: Any,
) -> "GeneratedText | list[GeneratedText] | Iterator[TextPiece]":
    """What `target` writes after the prompt, with or without a drafter; of a list of prompts, a list of texts.

    The text is the target's own (greedy), or distributed as the target's own (`temperature` > 0), whatever the drafter.
    A model is a folder (packed or not), a hub id, a .gguf file, a LoadedModel, or a transformers model with its
    tokenizer, as a pair. `drafter` may also be "lookup". `stream`: an iterator of TextPiece, one for each step, each
    with what was drafted and accepted.

    `options` are those of the command by their names: k, policy, lookup, uag, tree, drafting, drafter_temperature,
    drafter_window, drafter_sinks, max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, raw,
    template_args, seed, device, dtype, runtime, cache. The last four are for models that are given by name. Raises
    UserError for an option that does not exist or a value that is not possible, for a model that cannot be loaded or
    drafted with, and for a prompt that leaves no room in a context.
    """
    from sparsedraft.stages.generate import api

    return api.generate(target, prompt, drafter=drafter, stream=stream, **options)


def distill(options: "DistillOptions") -> dict[str, Any]:
    """Let the target write the answers that the drafter will learn from; returns what the command prints as JSON."""
    from sparsedraft.stages.distill import stage

    return stage.distill(options)


def prune(options: "PruneOptions") -> dict[str, Any]:
    """Prune every decoder linear of a model in one shot; returns what the command prints as JSON."""
    from sparsedraft.stages.prune import stage

    return stage.prune(options)


def drop_layers(options: "DropLayersOptions") -> dict[str, Any]:
    """Drop the block of layers with the smallest angular distance; returns what the command prints as JSON."""
    from sparsedraft.stages.prune import drop_layers as stage

    return stage.drop_layers(options)


def finetune(options: "FinetuneOptions") -> dict[str, Any]:
    """Fine-tune a drafter on distilled data with its mask held; returns what the command prints as JSON."""
    from sparsedraft.stages.finetune import stage

    return stage.finetune(options)


def advise(options: "AdviseOptions") -> dict[str, Any]:
    """Say how to run a target fastest on this machine; see the command `advise`."""
    from sparsedraft.advise.stage import advise as command

    return command(options)


def evaluate(options: "EvaluateOptions") -> dict[str, Any]:
    """Measure drafters against a target; returns what the command prints as JSON."""
    from sparsedraft.stages.evaluate import stage

    return stage.evaluate(options)


def pack(options: "PackOptions") -> dict[str, Any]:
    """Pack a checkpoint for the CPU engine; returns what the command prints as JSON."""
    from sparsedraft.stages.pack import stage

    return stage.pack(options)


def export(options: "ExportOptions") -> dict[str, Any]:
    """Write a checkpoint as a GGUF file for llama.cpp; returns what the command prints as JSON."""
    from sparsedraft.stages.export import stage

    return stage.export(options)


def inspect(options: "InspectOptions") -> dict[str, Any]:
    """What a checkpoint is made of; returns what the command prints as JSON."""
    from sparsedraft.stages.inspect import stage

    return stage.inspect(options)


def report(options: "ReportOptions") -> dict[str, Any]:
    """Write the report of a run or of distilled data; returns what the command prints as JSON."""
    from sparsedraft.stages.report import stage

    return stage.report(options)


def __getattr__(name: str) -> Any:
    """The public classes, each imported when it is first asked for: their modules bring torch, transformers or
    pydantic."""
    match name:
        case "Engine":
            from sparsedraft.native.session import Engine

            return Engine
        case "GeneratedText":
            from sparsedraft.stages.generate.texts import GeneratedText

            return GeneratedText
        case "LoadedModel":
            from sparsedraft.writers.loaded import LoadedModel

            return LoadedModel
        case "TextPiece":
            from sparsedraft.stages.generate.texts import TextPiece

            return TextPiece
    return _options_class(name)


def _options_class(name: str) -> Any:
    match name:
        case "AdviseOptions":
            from sparsedraft.advise.options import AdviseOptions

            return AdviseOptions
        case "DistillOptions":
            from sparsedraft.stages.distill.options import DistillOptions

            return DistillOptions
        case "DropLayersOptions":
            from sparsedraft.stages.prune.options import DropLayersOptions

            return DropLayersOptions
        case "EvaluateOptions":
            from sparsedraft.stages.evaluate.options import EvaluateOptions

            return EvaluateOptions
        case "ExportOptions":
            from sparsedraft.stages.export.options import ExportOptions

            return ExportOptions
        case "FinetuneOptions":
            from sparsedraft.stages.finetune.options import FinetuneOptions

            return FinetuneOptions
        case "InspectOptions":
            from sparsedraft.stages.inspect.options import InspectOptions

            return InspectOptions
        case "PackOptions":
            from sparsedraft.stages.pack.options import PackOptions

            return PackOptions
        case "PruneOptions":
            from sparsedraft.stages.prune.options import PruneOptions

            return PruneOptions
        case "ReportOptions":
            from sparsedraft.stages.report.options import ReportOptions

            return ReportOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
