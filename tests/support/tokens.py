"""Real tokenizers of every kind, trained in a moment, and texts that are hard for them."""

import json
from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps in the warm sun.\n\nThe end is near.",
    "def fibonacci(n):\n    if n <= 1:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Je suis déjà bien là où tu étais hier; ça va mieux, même à Noël.",
    "今天天气很好，我们去市场买苹果。今天我们不去学校。",
    "12 apples cost 8 euros, 1234 pears cost 5678.90 euros in 2024.",
    "emoji 🙂🙂 and 👩‍👩‍👧 families, e\u0301 and n\u0303 combine",
]
TEXTS = {
    "prose": "The quick brown fox is near the lazy dog. The dog sleeps,  and the end is near, the fox jumps.",
    "code": "def f(n):\n    if n <= 12:\n        return n\n\n\n    return f(n - 1) + 1234567\n\tend  \n",
    "french": "Même là, ça va déjà mieux à Noël; où étais-tu hier? Je suis où tu étais, là, déjà.",
    "cjk": "今天我们去学校，天气很好。我们买苹果，今天不去市场，明天也不去。苹果很好，市场很好。",
    "emoji": "ok 🙂🙂 family 👩‍👩‍👧 and 🏳️‍🌈, then 👍🏽 and text, 🙂.",
    "marks": "e\u0301te\u0301 n\u0303o a\u0308\u0323b Zo\u0308e\u0301 and noe\u0308l e\u0301 e\u0301",
    "digits": "in 2024 12345 and 99 cost 1234.5678, 0007 and 42 make 1000000 at 3.14159",
    "spaces": "  two  and   three    and\n\n\nlines \n  x \t y      z  and \r\n w  ",
    "spelt": "the tags <s> and </s> and <|im_end|> are text, as <0x41> and [UNK] and ## are",
}
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]


def _wrapped(core: Tokenizer, bos: bool = False) -> PreTrainedTokenizerFast:
    core.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    if bos:
        core.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", core.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>", pad_token="</s>"
    )


def byte_level(size: int = 400, digits: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE as of GPT-2; `digits`: each digit a token."""
    core = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), level]) if digits else level
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS * 3, trainer)
    return _wrapped(core)


def _byte_fallback(size: int) -> Tokenizer:
    """A BPE over ▁-spaced text whose unknown characters are written as bytes."""
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, limit_alphabet=110, show_progress=False)
    core.train_from_iterator([text.replace(" ", "▁") for text in CORPUS * 3], trainer)
    whole = json.loads(core.to_str())
    whole["model"]["byte_fallback"] = True
    for byte in range(256):  # no trainer makes these
        whole["model"]["vocab"][f"<0x{byte:02X}>"] = len(whole["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(whole))


def gemma_like() -> PreTrainedTokenizerFast:
    """SentencePiece BPE without a dummy space; newlines are added tokens that are not special."""
    core = _byte_fallback(295)
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_tokens([AddedToken("\n" * n, special=False, normalized=False) for n in (1, 2)])
    return _wrapped(core, bos=True)


def llama_like() -> PreTrainedTokenizerFast:
    """SentencePiece BPE that puts a space before every text, and takes it away when it decodes."""
    core = _byte_fallback(285)
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = None
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(core, bos=True)


def metaspace() -> PreTrainedTokenizerFast:
    """SentencePiece BPE with bytes, split at spaces by Metaspace, which puts one before every text."""
    core = _byte_fallback(270)
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _wrapped(core, bos=True)


def unigram() -> PreTrainedTokenizerFast:
    """Unigram over Metaspace of normalised text, with no way to write what it does not know."""
    words = sorted({f"▁{word}" for text in CORPUS[:3] for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    core = Tokenizer(models.Unigram([(s, 0.0) for s in SPECIAL] + [(s, -8.0) for s in words + letters], unk_id=0))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    return _wrapped(core, bos=True)


def word_piece() -> PreTrainedTokenizerFast:
    """WordPiece of stripped, accentless, lower-case text; ends every text with a special token, as BERT does."""
    simple = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()]
    )
    plain = [simple.normalize_str(text) for text in CORPUS]
    words = sorted({word for text in plain for word in text.split() if word.isalpha() and len(word) < 6})
    letters = sorted({letter for text in plain for letter in text if not letter.isspace() and letter.isascii()})
    known = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *(w for w in words if len(w) > 1)]
    core = Tokenizer(models.WordPiece({token: i for i, token in enumerate(known)}, unk_token="<unk>"))
    core.normalizer = simple
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    numbers = [(name, core.token_to_id(name)) for name in ("<s>", "</s>")]
    found = _wrapped(core)
    found.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B", numbers)
    return found


BUILDERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte-level, digits": lambda: byte_level(330, digits=True),
    "gemma": gemma_like,
    "llama": llama_like,
    "metaspace": metaspace,
    "unigram": unigram,
    "wordpiece": word_piece,
}
FAITHFUL = ("byte-level", "byte-level, digits", "gemma", "llama", "metaspace")  # can write any text


@cache
def built(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of this kind."""
    return BUILDERS[name]()
