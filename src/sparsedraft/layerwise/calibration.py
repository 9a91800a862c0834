"""Calibration text: packed end to end into sequences of one length."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import context_length, embedding_rows
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.templates import Arguments
from sparsedraft.text import dataset, prompts

Item = TypeVar("Item")


def source(calibration: str) -> Path | str:
    """The input of an artifact: a calibration file or folder counts by content, the package's own prompts by name."""
    return Path(calibration) if Path(calibration).exists() else calibration


def tokenizer_for(folder: Path, source: str, template_args: Arguments) -> PreTrainedTokenizerBase:
    """The tokenizer of the model in `folder`, whose template gets `template_args`.

    UserError for arguments that the template does not use, or that change nothing because `source` holds token ids of
    this tokenizer, to which no template is applied.
    """
    tokenizer = checkpoint.load_tokenizer(folder)
    templates.check(tokenizer, template_args)
    if Path(source).is_dir():
        dataset.check_rendered(Path(source), tokenizer, template_args)
    return templates.give(tokenizer, template_args)


def sequences(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    length: int,
    seed: int,
    model: PreTrainedModel | None = None,
) -> Tensor:
    """About `tokens` token ids as [sequences, length] from a distilled data folder or any prompts, shuffled by `seed`.

    Distilled rows count with the target's answers, which is what the drafter will see. A source with fewer tokens is
    used whole, with a remark. Raises UserError for one that holds less than 2 tokens, and for sequences
    longer than the context of `model` or tokens outside its embedding.
    """
    context = context_length(model) if model is not None else None
    if context is not None and length > context:
        raise UserError(f"--sequence-length {length} is more than the model's context of {context}: lower it.")
    path = Path(source)
    if path.is_dir():
        samples = [*dataset.samples(path, tokenizer, soft=False)]
        if model is not None:
            dataset.check_ids(samples, embedding_rows(model), "the model")
        texts = ([*sample.prompt_ids, *sample.answer_ids] for sample in _shuffled(samples, seed))
    else:
        texts = (templates.chat_ids(tokenizer, p.messages()) for p in _shuffled(prompts.read(source), seed))
    ids = [*islice(chain.from_iterable(texts), max(tokens, length))]  # no more text is tokenized than is used
    if len(ids) < length:
        length = len(ids)
    if length < 2:
        raise UserError(f"--calibration {source} holds {len(ids)} tokens: give more text.")
    count = len(ids) // length
    if len(ids) < tokens:
        console.print(f"calibration: {source} holds {len(ids)} tokens; {count * length} are used of {tokens} asked for")
    if model is not None and max(ids) >= (known := embedding_rows(model)):
        raise UserError(
            f"the tokenizer beside the model writes token {max(ids)}, but the model's embedding has {known} rows: "
            "they do not belong together; use the model's own tokenizer."
        )
    return torch.tensor(ids[: count * length]).view(count, length)


def _shuffled(items: Sequence[Item], seed: int) -> Iterator[Item]:
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    return (items[i] for i in order)
