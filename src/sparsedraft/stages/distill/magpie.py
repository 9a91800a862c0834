"""Mode `magpie`, without prompts: the target continues its template's user header with a prompt, then answers it.

Openings, the first words of a prompt, steer its topic: without them a model mostly asks for the same few things.

Xu et al. 2024, "Magpie: Alignment Data Synthesis from Scratch by Prompting Aligned LLMs with Nothing".
"""

import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.base.hashing import seed_of
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.text import prompts
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.conversation import Answer, Responder, respond
from sparsedraft.writers.protocol.requests import Request

WORDS = 3  # fewer are no prompt
REPEATED = 6.0  # a text that zlib makes so many times shorter repeats itself


def blanks(count: int, openings: Sequence[str] = ()) -> list[Prompt]:
    """`count` conversations whose prompts are still to be written; they begin with the `openings` in turns."""
    begun = openings or ("",)
    return [Prompt(f"magpie-{number:07}", (begun[number % len(begun)],)) for number in range(count)]


def header(tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """What the chat template puts before a user's words, as (text, token ids); with the system message that it adds."""
    try:
        rendered = templates.render(tokenizer, [{"role": "user", "content": templates.MARK}])
    except TemplateError:
        rendered = ""
    before, mark, _ = rendered.partition(templates.MARK)
    if not mark or not before.strip():
        raise UserError(
            f"the chat template of {tokenizer.name_or_path} has no header before the user's words, so --mode magpie "
            "cannot make the target write prompts: use --mode respond."
        )
    return before, [int(i) for i in tokenizer(before, add_special_tokens=False)["input_ids"]]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """All special tokens, also those without a named role, such as Qwen's <|im_start|>."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def malformed(text: str, finish_reason: str, special: Collection[str]) -> str:
    """What is wrong with a prompt that the target wrote; "" if nothing is."""
    if finish_reason != "eos":
        return "cut off"
    if len(re.findall(r"\w+", text)) < WORDS:
        return "too short"
    if "\ufffd" in text or any(token in text for token in special):
        return "special tokens or broken characters"
    raw = text.encode()
    if len(raw) > 200 and len(raw) / len(zlib.compress(raw)) > REPEATED:
        return "repeats itself"
    return ""


def magpie(
    responder: Responder, chosen: Sequence[Prompt], prompt_sampling: Sampling, longest: int = 0
) -> list[dict[str, Any]]:
    """Rows of the conversations in `chosen`: prompts sampled as `prompt_sampling` says, then answered.

    A conversation with a malformed prompt gives one row, which holds only the reason. Prompts are cut off at `longest`
    tokens, template included, since longer ones would be left out (0: no limit).
    """
    text, ids = header(responder.tokenizer)
    requests = [_request(responder, p, text, ids, longest) for p in chosen]
    special = special_tokens(responder.tokenizer)
    written: dict[str, tuple[str, str]] = {}
    openings = {p.id: p.turns[0] for p in chosen}
    for output in responder.writer.generate(requests, prompt_sampling):
        opening = openings[output.id]
        if output.dropped:
            written[output.id] = "", output.dropped
            continue
        words = output.text if output.text is not None else _words(responder, opening, output.token_ids)
        why = malformed((opening + words).strip(), output.finish_reason, special) if words.strip() else "too short"
        written[output.id] = (opening + words).strip(), why
    good = [replace(p, turns=(written[p.id][0],)) for p in chosen if not written[p.id][1]]
    answers: list[Answer] = respond(responder, good) if good else []
    dropped = [{"prompt_id": p.id, "dropped": f"prompt {written[p.id][1]}"} for p in chosen if written[p.id][1]]
    return [*(asdict(answer) for answer in answers), *dropped]


def _words(responder: Responder, opening: str, token_ids: Sequence[int]) -> str:
    """The text that the target wrote after `opening`; some decoders would drop its leading space."""
    opening_ids = _begun(responder.tokenizer, opening)
    words = [token for token in token_ids if token not in responder.writer.eos_ids]
    whole, before = (text_of(responder.tokenizer, ids, special=True) for ids in ([*opening_ids, *words], opening_ids))
    return whole[len(before) :]


def _begun(tokenizer: PreTrainedTokenizerBase, opening: str) -> list[int]:
    return [int(i) for i in tokenizer(opening, add_special_tokens=False)["input_ids"]] if opening else []


def check_openings(
    openings: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    context: int | None,
    longest: int = 0,
) -> None:
    """UserError for an opening that cannot begin a prompt of at most `longest` tokens (0: no limit)."""
    before, special = len(header(tokenizer)[1]), special_tokens(tokenizer)
    for opening in openings:
        if prompts.half_surrogate(opening):
            raise UserError(f"--opening {opening!r} is not UTF-8: write it again.")
        if tokens := [token for token in special if token in opening]:
            raise UserError(
                f"--opening {opening!r} holds {tokens[0]}, a special token: a prompt is text, leave it out."
            )
        count = before + len(_begun(tokenizer, opening))
        if 0 < longest <= count:
            raise UserError(
                f"--max-prompt-tokens {longest} leaves nothing for a prompt to say: its header and its opening "
                f"{opening[:40]!r} alone have {count}; raise it."
            )
        if context is not None and count + max_new_tokens > context:
            raise UserError(
                f"--opening {opening[:40]!r} has {count} tokens with its header, which with {max_new_tokens} new "
                f"ones exceed the context of {context}: shorten it, or lower --max-new-tokens."
            )


def _request(responder: Responder, prompt: Prompt, text: str, ids: list[int], longest: int) -> Request:
    """The request for a prompt: the user header (`text`, `ids`) and the opening, for the target to continue."""
    (opening,) = prompt.turns
    opening_ids = _begun(responder.tokenizer, opening)
    seed = seed_of(responder.seed, f"{prompt.id}/prompt")
    prompt_ids = [*ids, *opening_ids]
    most = min(responder.max_new_tokens, longest - len(prompt_ids)) if longest else responder.max_new_tokens
    return Request(prompt.id, prompt_ids, most, seed, raw=text + opening)
