"""Checkpoints that say what another says, in ids of their own."""

import json
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer

from sparsedraft.models import checkpoint


def renumbered(tokenizer: hf.PreTrainedTokenizerFast, order: list[int]) -> hf.PreTrainedTokenizerFast:
    """The tokenizer with the ids order[i] for i."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data["model"]["vocab"] = {token: order[i] for token, i in data["model"]["vocab"].items()}
    names = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    made = hf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), **names)
    made.chat_template = tokenizer.chat_template
    return made


def renumbered_copy(checkpoint_folder: str | Path, out: Path) -> Path:
    """One that says what that checkpoint says, in words of its own: its ids in another order."""
    model, ours = checkpoint.load(checkpoint_folder), checkpoint.load_tokenizer(checkpoint_folder)
    order = [0, 1, 2, *(3 + torch.randperm(len(ours) - 3, generator=torch.Generator().manual_seed(0))).tolist()]
    weight = model.get_input_embeddings().weight  # the head's, too
    with torch.no_grad():
        weight[order] = weight[: len(order)].clone()
    checkpoint.save(model, renumbered(ours, order), out)
    return out
