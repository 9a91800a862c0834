"""How a tokenizer splits text before merges, by llama.cpp's names of the same splits."""

from typing import Any

from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# (expression, whether a word of the vocabulary is taken whole, whatever the merges say): llama.cpp's name
NAMES = {
    (GPT2, False): "gpt-2",
    (GGUF_PRE_TOKENIZER_SPLITS["qwen2"], False): "qwen2",
    (GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"], True): "llama-bpe",
    (GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"], False): "smaug-bpe",
    (GGUF_PRE_TOKENIZER_SPLITS["tekken"], True): "tekken",
}
SPLITS = ("gpt-2", "smollm", "qwen2", "llama-bpe", "smaug-bpe", "tekken")  # those that are known


def split_name(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for the split of `tokenizer`, the JSON of the tokenizers library; None where it has none."""
    whole = bool(tokenizer["model"].get("ignore_merges"))
    match _steps(tokenizer.get("pre_tokenizer")):
        case [("bytes", True)]:
            return None if whole else "gpt-2"
        case [("digits", True), ("bytes", True)]:
            return None if whole else "smollm"
        case [("split", expression), ("bytes", False)]:
            return NAMES.get((str(expression), whole))
    return None


def _steps(found: Any) -> list[tuple[str, object]]:
    """The steps of a pre-tokenizer: (kind, what it is given)."""
    if not isinstance(found, dict):
        return []
    match found:
        case {"type": "Sequence", "pretokenizers": parts}:
            return [step for part in parts for step in _steps(part)]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": expression}:
            return [("bytes", expression)]
        case {"type": "Digits", "individual_digits": single}:
            return [("digits", single)]
        case {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}:
            return [("split", expression)]
    return [("unknown", found.get("type"))]
