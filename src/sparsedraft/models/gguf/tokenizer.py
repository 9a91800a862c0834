"""The tokenizer inside a GGUF file."""

import json
from pathlib import Path

from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object
from sparsedraft.models.gguf.header import Header, shown

# llama.cpp's names for how text is split before merges. transformers knows some, and splits as GPT-2 for the rest.
GPT2 = frozenset(("gpt-2", "phi-2", "mellum", "mpt", "olmo", "jais", "trillion", "gigachat", "granite-docling")) | {
    *("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "a.x-4.0")
}
DIGITS = frozenset(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"))  # one by one
QWEN2 = frozenset({"stablelm2"})


def load_tokenizer(folder: Path, file: str, header: Header, gpt2_split: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of the GGUF `file`, alone in `folder`. UserError where its way of splitting text is not known.

    With `gpt2_split` text is split as transformers does it, even where that is GPT-2's split and not the file's.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    if header.keys.get("tokenizer.ggml.model") != "gpt2":  # other tokenizers do not split text beforehand
        return tokenizer
    name = header.keys.get("tokenizer.ggml.pre")
    first: pre_tokenizers.PreTokenizer
    if name in DIGITS and not gpt2_split:
        first, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif name in QWEN2:
        first = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), behavior="isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    elif name in GPT2 | DIGITS | GGUF_PRE_TOKENIZER_SPLITS.keys():
        return tokenizer
    else:
        raise UserError(
            f"model {header.path}: its tokenizer splits text in a way that is not known here (tokenizer.ggml.pre is "
            f"{shown(name)}); take the model's original checkpoint."
        )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, rest])
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, header: Header, folder: Path) -> None:
    """Write it to `folder`, without the tokens that transformers adds beyond the file's: the model lacks them."""
    tokenizer.save_pretrained(folder)
    path, count = folder / "tokenizer.json", int(header.keys["tokenizer.ggml.tokens"])
    if len(tokenizer) > count:
        saved = read_object(path)
        saved["added_tokens"] = [token for token in saved["added_tokens"] if token["id"] < count]
        path.write_text(json.dumps(saved, ensure_ascii=False, indent=2), encoding="utf-8")
