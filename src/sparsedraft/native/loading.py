"""transformers models of checkpoints that may be packed folders."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from sparsedraft.models import checkpoint
from sparsedraft.native.quantizer import register


def load(ref: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> PreTrainedModel:
    """`models.checkpoint.load`, which then loads packed folders, too; raises what it raises."""
    register()
    return checkpoint.load(ref, dtype=dtype, device=device)
