"""What the tests of the evaluation share."""

from pathlib import Path

import pytest
import torch

from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears


@pytest.fixture(scope="session")
def models(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[str, str]]]:
    """The tiny target, itself, and a copy with noise."""
    model = checkpoint.load(tiny_checkpoint)
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            linear.weight += (
                0.2 * linear.weight.std() * torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(1))
            )
    folder = tmp_path_factory.mktemp("noisy") / "noisy"
    checkpoint.save(model, checkpoint.load_tokenizer(tiny_checkpoint), folder)
    return str(tiny_checkpoint), [("self", str(tiny_checkpoint)), ("noisy", str(folder))]
