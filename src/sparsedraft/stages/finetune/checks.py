"""What fine-tuning refuses before it starts: values, pairs of options, and models that do not belong together."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
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


def check_feature_tokenizer(teacher: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless the feature teacher reads the drafter's own token ids."""
    if not same_tokens(checkpoint.load_tokenizer(folder), tokenizer):
        raise UserError(
            f"--feature-teacher {teacher} has another tokenizer than the drafter: name the dense model that the "
            "drafter was pruned from."
        )
