"""Which tokens a trimmed head keeps."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.text import dataset


def frequent_tokens(folder: Path, data: str, count: int, vocabulary: int) -> tuple[Tensor, float]:
    """(`count` tokens of the vocabulary, ascending, and the share of the data's answer tokens that they miss).

    The tokens that end a text come first, then the most frequent in the answers of `data`, then the lowest ids, which
    in byte-level BPE are the most frequent of its own corpus. UserError where data or count do not allow it.
    """
    if not 0 < count < vocabulary:
        raise UserError(f"--head-tokens {count} is not a part of the head's {vocabulary}: give a number below it.")
    if not any(Path(data).glob("data-*.parquet")):
        raise UserError(f"--head-data {data} is no distilled data folder: make one with 'sparsedraft distill'.")
    tokenizer = checkpoint.load_tokenizer(folder)
    if not dataset.same_tokenizer(Path(data), tokenizer):
        raise UserError(
            f"--head-data {data} is of another tokenizer than {folder}: distill data of a model that has it."
        )
    counts = _counts(data, vocabulary)
    ends = {i for i in end_ids(folder, tokenizer) if i < vocabulary}
    if count < len(ends):
        raise UserError(f"--head-tokens {count} cannot hold the {len(ends)} tokens that end a text: give more.")
    order = sorted(range(vocabulary), key=lambda i: (i not in ends, -int(counts[i]), i))[:count]
    missed = 1 - counts[order].sum() / max(1, counts.sum())
    return torch.tensor(sorted(order), dtype=torch.int32), float(missed)


def _counts(data: str, vocabulary: int) -> np.ndarray:
    """How often each token occurs in the answers of `data`: int64 [vocabulary]."""
    counts = np.zeros(vocabulary, dtype=np.int64)
    for batch in dataset.batches(Path(data), ["id", "answer_ids"]):
        ids = batch["answer_ids"].flatten().to_numpy()
        if len(beyond := np.flatnonzero(ids >= vocabulary)):
            row = pc.list_parent_indices(batch["answer_ids"])[int(beyond[0])].as_py()
            raise UserError(
                f"--head-data {data}, row '{batch['id'][row]}': answer_ids has the token {ids[beyond[0]]}, which the "
                f"head's {vocabulary} lack: it is of another tokenizer."
            )
        counts += np.bincount(ids, minlength=vocabulary)
    return counts
