"""What fine-tuning refuses before it starts: values, pairs of options, and models that do not belong together."""

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.base.places import read_provenance
from sparsedraft.base.provenance import hash_path
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.vocab import same_tokens
from sparsedraft.stages.finetune import losses, quantize
from sparsedraft.text import dataset

if TYPE_CHECKING:
    from sparsedraft.stages.finetune.loop import Settings


def check_settings(settings: "Settings", teacher: str | None, feature_teacher: str | None) -> None:
    """Raise UserError for a value that is not possible, or options that do not go together."""
    s = settings
    if s.loss not in losses.NAMES:
        raise UserError(f"--loss {s.loss} is not known: choose one of {', '.join(losses.NAMES)}.")
    if s.quantize not in quantize.SCHEMES:
        raise UserError(f"--quantize {s.quantize} is not known: choose one of {', '.join(quantize.SCHEMES)}.")
    for option, share in (("nll-weight", s.nll_weight), ("on-policy", s.on_policy)):
        if not 0 <= share <= 1:
            raise UserError(f"--{option} {share:g} is not a share: give 0 to 1.")
        if share and s.loss == "nll":
            raise UserError(
                f"--{option} {share:g} needs a loss that compares with the target: set --loss to one of "
                f"{', '.join(losses.DIVERGENCES)}, or leave it out."
            )
    if teacher is not None and s.loss == "nll":
        raise UserError(
            f"--teacher {teacher} is not asked anything under --loss nll: set --loss to one of "
            f"{', '.join(losses.DIVERGENCES)}, or leave it out."
        )
    if not 0 <= s.weight_decay < float("inf"):
        raise UserError(f"--weight-decay {s.weight_decay:g} is not possible: give 0 (off) or more.")
    if s.on_policy and teacher is None:
        raise UserError(
            f"--on-policy {s.on_policy:g} has the target score what the drafter writes: give the target as --teacher."
        )
    if s.on_policy and s.nll_weight == 1:
        raise UserError(
            f"--nll-weight 1 leaves nothing to learn from the drafter's own text (--on-policy {s.on_policy:g}): "
            "lower it."
        )
    if not 0 <= s.feature_weight < float("inf"):
        raise UserError(f"--feature-weight {s.feature_weight:g} is not possible: give 0 (off) or more.")
    if (s.feature_weight > 0) != (feature_teacher is not None):
        given, missing = (
            (f"--feature-weight {s.feature_weight:g}", "the dense drafter as --feature-teacher")
            if s.feature_weight
            else (f"--feature-teacher {feature_teacher}", "--feature-weight, such as 1")
        )
        raise UserError(f"{given} does nothing alone: give {missing}, too.")
    if s.reselect_every < 0:
        raise UserError(f"--reselect-every {s.reselect_every} is not possible: give steps, or 0 (never).")
    if not 0 < s.reselect_share < 1:
        raise UserError(f"--reselect-share {s.reselect_share:g} is not possible: give a share between 0 and 1.")


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
