"""Finish reasons, as servers word them: the model ended the answer, it was cut off, or it is not the model's."""

ENDED, CUT = "eos", "length"  # what a row's finish_reason is
REFUSED, BROKEN = "refused", "broken"  # the answer is not the model's; it was broken off, and another try may succeed

_MEANINGS = {
    ENDED: ("stop", "eos", "eos_token", "stop_sequence", "end_turn"),  # eos_token, stop_sequence: of TGI
    CUT: ("length", "max_tokens", "model_length", "repetition"),  # repetition: vLLM stopped a text that went in circles
    REFUSED: ("content_filter", "safety", "tool_calls", "tool_use", "function_call"),
    BROKEN: ("abort", "aborted", "error", "cancelled", "timeout", "insufficient_system_resource"),
}
_TABLE = {word: meaning for meaning, words in _MEANINGS.items() for word in words}


def meaning(reason: str | None) -> str | None:
    """ENDED, CUT, REFUSED or BROKEN, in upper or lower case; None for an unknown word.

    Without a reason the answer was sent before it was finished: BROKEN.
    """
    return BROKEN if reason is None else _TABLE.get(reason.lower())
