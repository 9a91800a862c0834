"""`sparsedraft.generate`: texts for Python."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.stages.generate.texts import GeneratedText, TextGenerator, TextPiece, load_pair
from sparsedraft.writers.loaded import LoadedModel

Model = str | Path | LoadedModel | tuple[PreTrainedModel, PreTrainedTokenizerBase]


def generate(
    target: Model,
    prompt: str | Sequence[str],
    *,
    drafter: Model | None = None,
    stream: bool = False,
    **options: Any,
) -> GeneratedText | list[GeneratedText] | Iterator[TextPiece]:
    """See `sparsedraft.generate`."""
    several = not isinstance(prompt, str)
    if not isinstance(prompt, Iterable):
        raise UserError(f"prompt {prompt!r} is not possible: give a text or a list of texts.")
    prompts = tuple(prompt) if several else (prompt,)
    if not prompts:
        if stream:
            return iter(())
        return []
    p, q = _loaded(target), _loaded(drafter)
    if (p is not None or q is not None) and options.get("template_args"):
        raise UserError("template_args are set where a model is loaded: give them to LoadedModel.load.")
    fields = options | {
        "target": _name(target),
        "prompt": prompts,
        "drafter": None if drafter is None else _name(drafter),
    }
    chosen = GenerateOptions(**fields)
    generator = TextGenerator(load_pair(chosen, p, q), chosen)
    if stream:
        return generator.pieces()
    for _ in generator.pieces():
        pass
    return generator.texts if several else generator.texts[0]


def _loaded(model: Model | None) -> LoadedModel | None:
    """The model, if it is loaded already; UserError where it is no model at all."""
    pair = isinstance(model, tuple) and len(model) == 2 and hasattr(model[0], "config") and callable(model[1])
    if not pair and model is not None and not isinstance(model, str | Path | LoadedModel):
        raise UserError(
            f"a {type(model).__name__} is no model here: give a folder, a hub id, a .gguf file, a LoadedModel, or "
            "(model, tokenizer) of transformers."
        )
    if isinstance(model, tuple):
        return LoadedModel.of(*model)
    return model if isinstance(model, LoadedModel) else None


def _name(model: Model) -> str:
    if isinstance(model, LoadedModel):
        return model.tokenizer.name_or_path
    return str(model[0].name_or_path if isinstance(model, tuple) else model)
