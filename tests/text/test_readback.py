"""Distilled data whose tokenizer was left out, as in the stored results: the rows tell whose ids they are."""

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from places import ROOT
from sparsedraft.base.errors import UserError
from sparsedraft.layerwise.calibration import sequences
from sparsedraft.models import checkpoint
from sparsedraft.stages.pack.head import frequent_tokens
from sparsedraft.text import dataset
from stages import distill
from tiny import CORPUS, build_llama, build_tokenizer

STORED = ROOT / "docs" / "results"


def retrained() -> PreTrainedTokenizerFast:
    """Another tokenizer with the same template, whose words are others."""
    tokenizer = build_tokenizer()
    other = tokenizer.train_new_from_iterator([line[::-1] for line in CORPUS] * 4, 320)
    other.chat_template = tokenizer.chat_template
    return other


def swapped() -> PreTrainedTokenizerFast:
    """The same words, while the two ends of a turn have each other's ids."""
    text = build_tokenizer().backend_tokenizer.to_str()
    for old, new in (("<|im_start|>", "<|x|>"), ("<|im_end|>", "<|im_start|>"), ("<|x|>", "<|im_end|>")):
        text = text.replace(f'"{old}"', f'"{new}"')
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), eos_token="<|im_end|>")
    other.chat_template = build_tokenizer().chat_template
    return other


@pytest.fixture(scope="module")
def stored(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data as `distill` leaves it, and a copy without the tokenizer."""
    root = tmp_path_factory.mktemp("stored")
    distill(str(tiny_checkpoint), "demo:train", root / "whole", limit=12, max_new_tokens=12)
    shutil.copytree(root / "whole", root / "bare", ignore=shutil.ignore_patterns("tokenizer"))
    return root / "whole", root / "bare"


@pytest.fixture
def others(tmp_path: Path) -> list[Path]:
    """Checkpoints with a tokenizer that is not the data's."""
    for name, tokenizer in (("retrained", retrained()), ("swapped", swapped())):
        checkpoint.save(build_llama(layers=1), tokenizer, tmp_path / name)
    return [tmp_path / name for name in ("retrained", "swapped")]


def test_the_right_tokenizer_gets_the_targets_own_ids(stored: tuple[Path, Path], tiny_checkpoint: Path) -> None:
    whole, bare = stored
    tokenizer = checkpoint.load_tokenizer(tiny_checkpoint)
    ids = [[*dataset.samples(data, tokenizer, soft=False)] for data in (whole, bare)]
    assert ids[0] == ids[1]
    calibration = [sequences(str(data), tokenizer, 400, 40, seed=0) for data in (whole, bare)]
    assert torch.equal(*calibration)
    heads = [frequent_tokens(tiny_checkpoint, str(data), 50, 320) for data in (whole, bare)]
    assert torch.equal(heads[0][0], heads[1][0]) and heads[0][1] == heads[1][1]


def test_another_tokenizer_is_told_apart(stored: tuple[Path, Path], others: list[Path]) -> None:
    whole, bare = stored
    for folder in others:
        tokenizer = checkpoint.load_tokenizer(folder)
        assert not dataset.same_tokenizer(bare, tokenizer)
        with pytest.raises(UserError, match="is of another tokenizer than"):
            frequent_tokens(folder, str(bare), 50, 320)
        again = [*dataset.samples(bare, tokenizer, soft=False)]  # the text, in this tokenizer's ids
        assert again == [*dataset.samples(whole, tokenizer, soft=False)]


def test_a_tokenizer_without_a_template_proves_nothing(stored: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    assert not dataset.same_tokenizer(stored[1], tokenizer)


def test_the_repositorys_own_data_has_ids_of_no_other_tokenizer(smollm2: Path) -> None:
    tokenizer = checkpoint.load_tokenizer(smollm2)
    folders = [file.parent for file in STORED.glob("*/distilled/data-00000.parquet")]
    assert folders, "the stored results hold data"
    for folder in folders:  # Qwen's
        assert not dataset.same_tokenizer(folder, tokenizer)
