"""YaRN as Qwen documents it: the context is the original length times the factor, and text in it is transformers'."""

from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers import LlamaConfig

import packed_folders
from packed_folders import ENGINE, close
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import context_of
from sparsedraft.native.session import Engine
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.protocol.requests import Request
from stages import pack
from tiny import build_llama, build_tokenizer

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
RUNTIMES = ["transformers", *(["native"] if packed_folders.BUILT else [])]
LONG = torch.randint(3, 300, (1, 96), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("most", "scaling", "context"),
    [
        (32768, {**YARN, "original_max_position_embeddings": 32768}, 131072),  # Qwen 2.5's documentation
        (40960, {**YARN, "original_max_position_embeddings": 32768}, 131072),  # Qwen 3's
        (131072, {**YARN, "original_max_position_embeddings": 32768}, 131072),  # a config that names the whole
        (32768, {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32768}, 65536),  # its older key
        (131072, {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 131072),
        (512, {"rope_type": "linear", "factor": 4.0}, 512),
        (512, None, 512),
    ],
)
def test_context(most: int, scaling: dict | None, context: int) -> None:
    assert context_of(LlamaConfig(max_position_embeddings=most, rope_scaling=scaling)) == context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 32 positions, stretched to 128. Read only."""
    folder = tmp_path_factory.mktemp("yarn") / "model"
    model = build_llama(layers=2, max_position_embeddings=32, rope_scaling=dict(YARN))
    checkpoint.save(model, build_tokenizer(), folder, dtype=torch.float32)
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_text_beyond_the_original_length_is_transformers_own(folder: Path, runtime: str) -> None:
    side = LoadedModel.load(folder, runtime=runtime)
    assert side.context == side.backend(1).max_length == 128
    (output,) = side.writer(1).generate([Request("a", LONG[0].tolist(), 32)], Sampling())
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.cat([LONG, torch.tensor([output.token_ids])], 1)).logits[0, 95:-1]
    chosen = logits.gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
    slack = 2 * ENGINE if runtime == "native" else 0
    assert len(chosen) and bool((logits.amax(1) - chosen <= slack * logits.abs().max()).all())
    with pytest.raises(UserError, match="128"):
        list(side.writer(1).generate([Request("a", LONG[0].tolist(), 33)], Sampling()))


@pytest.mark.skipif(not packed_folders.BUILT, reason="the extension was not built")
def test_packed_too(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), tmp_path / "packed", weights="f16")
    with torch.no_grad():
        expected = hf.AutoModelForCausalLM.from_pretrained(folder)(LONG).logits[0]
    for place, share in ((folder, ENGINE), (tmp_path / "packed", 2e-2)):
        close(Engine(place).forward(LONG[0].tolist(), 96), expected, share)
        assert Engine(place).max_length == 128
