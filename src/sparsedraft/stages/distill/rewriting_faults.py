"""Whether a rewritten answer is as good as its reference: one rule of thumb for each way in which rewriting fails.

Self-data distillation keeps the reference where the rewritten answer fails (Yang et al. 2024, "Self-Distillation
Bridges Distribution Gap in Language Model Fine-Tuning").
"""

import re
from fractions import Fraction

NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?"
MARKED = (  # marks of a final answer, the most reliable first
    rf"####\s*\$?({NUMBER})",
    rf"\\boxed\{{\s*\$?({NUMBER})",
    rf"\banswer\s*(?:is\s*:?|:|=)\s*\**\s*\$?({NUMBER})",
)
REFUSAL = re.compile(
    r"^\W*(?:i(?:['’]m| am) (?:sorry|unable|afraid)|sorry[,.]|i (?:can(?:no|['’])t|cannot|won['’]t)\b|as an ai\b|"
    r"i(?:['’]m| am) (?:just |only )?an ai\b|unfortunately,? i (?:can|am))",
    re.IGNORECASE,
)
SCAFFOLD = re.compile(r"\breference answer|\b(?:the|your|given) reference\b|^\W*task:", re.IGNORECASE | re.MULTILINE)


def rewriting_fault(reference: str, answer: str, finish_reason: str) -> str:
    """Why `answer` must not replace `reference`, or "" if it may.

    "cut off", "empty", "refusal" (unless the reference is one), "speaks of the reference", or "other final answer": if
    the reference states a final number (after ####, in a box, after "the answer is", or alone), the answer must state
    the same one.
    """
    if finish_reason != "eos":
        return "cut off"
    if not answer.strip():
        return "empty"
    if REFUSAL.match(answer) and not REFUSAL.match(reference):
        return "refusal"
    if SCAFFOLD.search(answer) and not SCAFFOLD.search(reference):
        return "speaks of the reference"
    number = stated_number(reference)
    if number is not None and final_number(answer) != number:
        return "other final answer"
    return ""


def stated_number(text: str) -> Fraction | None:
    """The number that `text` marks as its final answer, or that is all of it; None if there is none."""
    for pattern in MARKED:
        if numbers := re.findall(pattern, text, re.IGNORECASE):
            return _value(numbers[-1])
    bare = re.fullmatch(rf"[^\w-]*({NUMBER})\s*[%.\w°$€£]{{0,12}}\W*", text.strip())
    return _value(bare[1]) if bare else None


def final_number(text: str) -> Fraction | None:
    """The number that `text` marks as its final answer, else its last number."""
    stated = stated_number(text)
    if stated is not None:
        return stated
    numbers = re.findall(NUMBER, text)
    return _value(numbers[-1]) if numbers else None


def _value(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
