"""A byte-level BPE tokenizer as the keys of a GGUF file."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.base.jsonfiles import read_object
from sparsedraft.models.gguf.write_split import SPLITS, split_name

# Tokens that llama.cpp's converter takes for control tokens, though some tokenizers do not call them special
CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)
TRIED = "a b"  # a text that no tokenizer treats in a special way
PLAIN = {"dropout": (None, 0), "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, "")}


class TokenizerKeys:
    """What a file says of the tokenizer in `folder`, of a model with `rows` rows in its embedding.

    The constructor raises UserError for a tokenizer that llama.cpp would not take apart the same way.
    """

    def __init__(self, ref: str, folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
        self.ref = ref
        # the file, as transformers adds tokens to some kinds of tokenizers that the model has no rows for
        file = folder / "tokenizer.json"
        if not file.is_file() and not hasattr(tokenizer, "backend_tokenizer"):
            raise self._refused("it has no tokenizer.json")
        found = read_object(file) if file.is_file() else json.loads(tokenizer.backend_tokenizer.to_str())
        self._check(found)
        pre = split_name(found)
        if pre is None:
            raise self._refused(f"it splits text otherwise than {', '.join(SPLITS)}")
        self.pre = pre
        self.tokens, self.types = self._vocabulary(found, rows)
        self.merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in found["model"]["merges"]]
        self.special = self._special(folder, tokenizer)

    def add_to(self, writer: GGUFWriter) -> None:
        """Give the keys to `writer`."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        self.special.add_to_gguf(writer, quiet=True)

    @property
    def bytes(self) -> int:
        """About how many bytes the keys take."""
        return sum(len(text.encode()) + 12 for text in (*self.tokens, *self.merges))

    def _check(self, found: dict[str, Any]) -> None:
        """UserError unless the tokenizer is a plain byte-level BPE."""
        model = found["model"]
        kind = model.get("type") or (
            "BPE" if "merges" in model else "tokenizer of another kind"
        )  # older files name none
        if kind != "BPE" or model.get("byte_fallback"):
            raise self._refused(f"it is a {kind} that is not byte-level, and byte-level BPE can be written")
        for name, values in PLAIN.items():
            if model.get(name) not in values:
                raise self._refused(f"its {name} is {str(model[name])[:40]!r}")
        normalizer = found.get("normalizer") or {"type": "NFC"}  # NFC: llama.cpp leaves it out, as does its converter
        if normalizer.get("type") != "NFC":
            raise self._refused(f"it changes text before it takes it apart ({normalizer.get('type')})")

    def _vocabulary(self, found: dict[str, Any], rows: int) -> tuple[Sequence[str], Sequence[int]]:
        """(the text, the type) of each row of the embedding; rows without a token are padding that is never used."""
        tokens, types = [f"[PAD{i}]" for i in range(rows)], [int(TokenType.UNUSED)] * rows
        texts = {index: (text, TokenType.NORMAL) for text, index in found["model"]["vocab"].items()}
        for token in found["added_tokens"]:
            text = token["content"]
            control = token["special"] or CONTROL.fullmatch(text)
            texts[token["id"]] = text, TokenType.CONTROL if control else TokenType.USER_DEFINED
        if (largest := max(texts)) >= rows:
            raise self._refused(f"it has the token {largest}, and the model's embedding {rows} rows")
        for index, (text, kind) in texts.items():
            tokens[index], types[index] = text, int(kind)
        return tokens, types

    def _special(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> SpecialVocab:
        """Ids of special tokens, the chat template, and which tokens are put around a text."""
        try:
            special = SpecialVocab(folder, n_vocab=len(self.tokens))
        except Exception as error:  # whatever a value that it does not expect breaks
            raise self._refused(f"its special tokens cannot be read ({first_line(error)})") from None
        bare = tokenizer(TRIED, add_special_tokens=False)["input_ids"]
        whole = tokenizer(TRIED)["input_ids"]
        ends = {}
        for bos in (False, True):
            for eos in (False, True):
                before, after = (
                    [special.special_token_ids.get(n)] if on else [] for n, on in (("bos", bos), ("eos", eos))
                )
                ends[bos, eos] = [*before, *bare, *after]
        around = next((choice for choice, ids in ends.items() if ids == whole), None)
        if around is None:
            raise self._refused("it puts other tokens around a text than one that begins and one that ends it")
        special.add_special_token = dict(zip(("bos", "eos"), around, strict=True))
        return special

    def _refused(self, what: str) -> UserError:
        return UserError(f"model {self.ref} has a tokenizer that cannot be written as GGUF: {what}.")
