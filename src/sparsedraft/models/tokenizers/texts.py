"""The text of token ids: one rule, wherever text is looked at, shown or kept."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: bool = False) -> str:
    """`ids` as text, letter by letter; with `special`, special tokens are written out.

    A tokenizer's `clean_up_tokenization_spaces` is left aside: it takes spaces away that the model wrote (" ." in code,
    for example), and what it makes of a part of a text is not a part of what it makes of the whole.
    """
    return str(tokenizer.decode([*ids], skip_special_tokens=not special, clean_up_tokenization_spaces=False))
