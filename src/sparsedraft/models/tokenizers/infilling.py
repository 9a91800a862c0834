"""Prompts for a text between two others (fill in the middle), by the tokens that a checkpoint was trained with.

Both texts are only text here: what a control token looks like in them is spelt with ordinary tokens, so that a file
about such tokens, or one that means harm, cannot end its own part.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError

# Beside the tokens around the parts, these end the middle: padding, another file, the end of the text or of a turn.
ENDS = (
    "<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|file_separator|>", "<fim_pad>", "<fim-pad>",
    "<file_sep>", "<repo_name>", "<filename>", "<reponame>", "▁<EOT>", "<|EOT|>", "<|im_end|>",
)  # fmt: skip
LEAD = "☺"  # stands before a text that is to begin without a space, as Llama's own tokenizer does it


@dataclass(frozen=True)
class Form:
    """The tokens before the prefix, before the suffix, and before the middle. Without one the prefix comes last, and
    the middle follows it."""

    prefix: str
    suffix: str
    middle: str | None

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(token for token in (self.prefix, self.suffix, self.middle) if token is not None)


FORMS = (
    Form("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    Form("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, StarCoder2, Stable Code
    Form("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Form("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    Form("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    Form("[PREFIX]", "[SUFFIX]", None),  # Codestral
)


class Infilling:
    """How a checkpoint is asked for the text between two others. UserError where its tokenizer has no tokens for it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        form = next((form for form in FORMS if self._added.keys() >= {*form.tokens}), None)
        if form is None:
            raise UserError("the model has no tokens to fill in the middle of a text: leave the suffix out.")
        self.form = form
        self.ends = [token for token in (*ENDS, *form.tokens) if token in self._added]  # strings that end the middle
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control = special.union(self.ends)
        # Metaspace tokenizers read spaces as ▁, and Code Llama's class a placeholder of its own
        written = {one for token in self._control for one in (token, token.replace("▁", " "))}
        written.add(getattr(tokenizer, "fill_token", None) or LEAD * 2)
        self._begins = re.compile(f"(?={'|'.join(map(re.escape, written))})")  # where one of them begins
        first = self._encode("x")
        self._spaced = bool(first) and str(tokenizer.convert_ids_to_tokens(first[0])).startswith("▁")

    def ids(self, prefix: str, suffix: str) -> list[int]:
        """The prompt whose answer stands between `prefix` and `suffix`.

        UserError where a tokenizer makes a control token of a text that does not look like one.
        """
        begin = [int(number) for number in self.tokenizer("")["input_ids"]]
        form, added = self.form, self._added
        before, after = self._text(prefix, continues=False), self._text(suffix, continues=True)
        if form.middle is None:
            return [*begin, added[form.suffix], *after, added[form.prefix], *before]
        return [*begin, added[form.prefix], *before, added[form.suffix], *after, added[form.middle]]

    def _text(self, text: str, continues: bool) -> list[int]:
        """The ids of `text` alone, no control token among them; `continues`: it begins without a tokenizer's space."""
        ids: list[int] = []
        for i, piece in enumerate(self._pieces(text)):
            ids += self._encode(piece) if i == 0 and not continues else self._continued(piece)
        if not {self._added[token] for token in self._control}.isdisjoint(ids):
            raise UserError("the tokenizer reads a part of the text as a control token: spell it otherwise.")
        return ids

    def _pieces(self, text: str) -> Iterator[str]:
        """`text`, cut within whatever looks like a control token."""
        begin = 0
        for found in self._begins.finditer(text):
            yield text[begin : found.start() + 1]
            begin = found.start() + 1
        yield text[begin:]

    def _continued(self, text: str) -> list[int]:
        """The ids of `text` as the middle of a text."""
        if not self._spaced or not text:
            return self._encode(text)
        lead, ids = self._encode(LEAD), self._encode(LEAD + text)
        return ids[len(lead) :] if ids[: len(lead)] == lead else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        found: Sequence[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(number) for number in found]
