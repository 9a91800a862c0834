"""What fine-tuning refuses before it starts: values, pairs of options, and models that do not belong together."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.base.places import read_provenance
from sparsedraft.base.provenance import hash_path
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.vocab import same_tokens
from sparsedraft.text import dataset


def check_vocabulary(loss: str, data: Path, tokenizer: PreTrainedTokenizerBase, drafter: str) -> None:
    """Raise UserError where `loss` compares distributions over tokens and the drafter's tokens are not the target's."""
    if loss != "nll" and not dataset.same_tokenizer(data, tokenizer):
        raise UserError(
            f"--loss {loss} compares distributions over tokens, but drafter {drafter} has another tokenizer than the "
            f"target that wrote {data}: use --loss nll, or a drafter of the target's family."
        )


def check_teacher(teacher: str, folder: Path, data: Path) -> None:
    """Raise UserError unless `teacher` is the model that wrote `data`.

    By the hash in the data's provenance; where that names no checkpoint (an endpoint wrote it), by the tokenizer.
    """
    inputs = (read_provenance(data) or {}).get("inputs")
    written_by = inputs.get("target") if isinstance(inputs, dict) else None
    if isinstance(written_by, dict) and "sha256" in written_by:
        if written_by["sha256"] != hash_path(folder):
            raise UserError(
                f"--teacher {teacher} is not the model that wrote {data} ({written_by.get('path')} did): give that "
                "one, or distill again."
            )
    elif not dataset.same_tokenizer(data, checkpoint.load_tokenizer(folder)):
        raise UserError(
            f"--teacher {teacher} has another tokenizer than the model that wrote {data}: give that model, or distill "
            "again."
        )


def check_feature_tokenizer(teacher: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless the feature teacher reads the drafter's own token ids."""
    if not same_tokens(checkpoint.load_tokenizer(folder), tokenizer):
        raise UserError(
            f"--feature-teacher {teacher} has another tokenizer than the drafter: name the dense model that the "
            "drafter was pruned from."
        )
