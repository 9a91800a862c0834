"""Log-probabilities in OpenAI's two forms. They are the target's own, by its unmodified logits, accepted drafts too."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.maths.likelihoods import Likelihood
from sparsedraft.models.tokenizers.vocab import surfaces


class Tokens:
    """What tokens are called: their text, and their bytes where these are known."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._bytes = {number: written for written, number in surfaces(tokenizer).items()}

    def text(self, token: int) -> str:
        """The token as text; a part of a character is written as its replacement."""
        return str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    def bytes(self, token: int) -> list[int]:
        """The bytes that it writes in the middle of a text."""
        return [*self._bytes.get(token, self.text(token).encode())]


def of_chat(tokens: Tokens, ids: Sequence[int], told: Sequence[Likelihood]) -> dict[str, Any]:
    """The `logprobs` of a choice of a chat."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"token": tokens.text(token), "logprob": logprob, "bytes": tokens.bytes(token)}

    content = [
        {**one(token, of.logprob), "top_logprobs": [one(*pair) for pair in of.likeliest]}
        for token, of in zip(ids, told, strict=True)
    ]
    return {"content": content, "refusal": None}


def of_completion(tokens: Tokens, ids: Sequence[int], told: Sequence[Likelihood], begin: int) -> dict[str, Any]:
    """The `logprobs` of a choice of a plain completion; `begin`: characters of the answer before these tokens."""
    texts, offsets = [tokens.text(token) for token in ids], []
    for text in texts:
        offsets.append(begin)
        begin += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [of.logprob for of in told],
        "top_logprobs": [{tokens.text(token): logprob for token, logprob in of.likeliest} for of in told],
        "text_offset": offsets,
    }
