"""Log-probabilities that a server reports for an answer's tokens, in the ids of the model's tokenizer."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.writers.protocol.requests import Completion
from sparsedraft.writers.server.finish import ENDED

UNKNOWN = -1e4  # log-probability of tokens that the server does not report; its exp is 0
MASS = 1.02  # the largest sum of different tokens' probabilities: 1, and some rounding
Place = tuple[str, list[tuple[str, float]]]  # a token, and the likeliest at its place with their log-probabilities


def read(logprobs: Any) -> list[Place]:
    """The report at each place of an answer, likeliest tokens first; [] if there is none.

    Some servers put the drawn token first, however likely it is. llama-server gives a token's id beside its text.
    """
    try:
        places = [
            (_name(place), [(_name(t), float(t["logprob"])) for t in place["top_logprobs"]])
            for place in logprobs["content"]
        ]
    except (LookupError, TypeError, ValueError, AttributeError):
        return []
    return [(token, sorted(likeliest, key=lambda pair: -pair[1])) for token, likeliest in places]


def _name(token: dict[str, Any]) -> str:
    number = token.get("id")
    return f"token_id:{number}" if isinstance(number, int) else str(token["token"])


def wrong_with(places: Sequence[Place], k: int) -> str:
    """Why the k likeliest tokens at `places` cannot be learnt from, and how to start the server instead; or ""."""
    if not places:
        return "reports log-probabilities of the answer, not of the thoughts before it: leave these in the text"
    if any(not math.isfinite(p) for _, likeliest in places for _, p in likeliest):
        return "reports log-probabilities that are no numbers: use another server"
    lacking = sum(len(likeliest) < k for _, likeliest in places)
    if 0 < lacking < len(places):
        return (
            f"reports no {k} likeliest tokens at {lacking} of {len(places)} places, as llama-server does of drafted "
            "ones: start it without a drafter (no --model-draft, no --spec-type)"
        )
    if lacking:
        most = max(len(likeliest) for _, likeliest in places)
        return (
            f"reports {most} of the {k} likeliest tokens: ask for {most}, or start it with a higher limit"
            if most
            else "reports log-probabilities without the likeliest tokens: start it without a drafter"
        )
    if any(sum(math.exp(min(p, 1.0)) for _, p in likeliest[:k]) > MASS for _, likeliest in places):
        return "reports probabilities whose sum is above 1: start it without a drafter"
    return ""


class Ids:
    """Maps names of tokens, as servers write them, to the ids of `tokenizer`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, token: str) -> int | None:
        """The id of "token_id:17", or of the one token with this text; None if several tokens, or none, have it."""
        if (number := token.removeprefix("token_id:")) != token and number.isdecimal():
            return int(number)
        return self._by_text.get(token)

    @cached_property
    def _by_text(self) -> dict[str, int | None]:
        by_text: dict[str, int | None] = {}
        for i in range(len(self.tokenizer)):
            text = text_of(self.tokenizer, [i], special=True)
            by_text[text] = None if text in by_text else i  # two tokens of one text cannot be told apart
        return by_text


def add(
    output: Completion, places: Sequence[Place], k: int, id_of: Ids, eos_ids: frozenset[int], end: Sequence[int]
) -> str:
    """Replace the re-encoded tokens by the reported ones, with the k likeliest at each place; return why not, or "".

    Nothing is replaced if a reported token has no unique id in the vocabulary (part of a character, for example). If
    the server does not report the end-of-turn token (`end`), that gets the probability 1: it was written, and without a
    label training would unlearn it.
    """
    if why := wrong_with(places, k):
        return why
    ids = [id_of(token) for token, _ in places]
    best = [[(id_of(token), p) for token, p in found[:k]] for _, found in places]
    if None in ids or any(None in (i for i, _ in found) for found in best):
        return "names tokens by texts that several of them have: use one that names them by id, such as vLLM"
    output.topk_ids = [[int(i) for i, _ in found] for found in best]  # type: ignore[arg-type]
    output.topk_logprobs = [[max(p, UNKNOWN) for _, p in found] for found in best]
    output.token_ids = [int(i) for i in ids if i is not None]
    if output.finish_reason == ENDED and output.token_ids[-1] not in eos_ids and end:
        output.token_ids.append(end[0])
        others = [i for i in range(k + 1) if i != end[0]]
        output.topk_ids.append([end[0], *others][:k])
        output.topk_logprobs.append([0.0, *[UNKNOWN] * k][:k])
    return ""
