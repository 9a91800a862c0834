"""What servers call the end of an answer, in one table: whether the model ended it, or was cut off, or neither."""

ENDED, CUT = "eos", "length"  # what a row's finish_reason is
REFUSED, BROKEN = "refused", "broken"  # the answer is not the model's own; it was broken off, and may be asked again

_MEANINGS = {
    ENDED: ("stop", "eos", "eos_token", "stop_sequence", "end_turn"),  # eos_token, stop_sequence: of TGI
    CUT: ("length", "max_tokens", "model_length", "repetition"),  # repetition: vLLM stopped a text that went in circles
    REFUSED: ("content_filter", "safety", "tool_calls", "tool_use", "function_call"),
    BROKEN: ("abort", "aborted", "error", "cancelled", "timeout", "insufficient_system_resource"),
}
_TABLE = {word: meaning for meaning, words in _MEANINGS.items() for word in words}


def meaning(reason: str | None) -> str | None:
    """ENDED, CUT, REFUSED or BROKEN, whatever case the server writes it in; None for a word that is not known.

    No reason at all is that of an answer which was sent before it was finished.
    """
    return BROKEN if reason is None else _TABLE.get(reason.lower())
