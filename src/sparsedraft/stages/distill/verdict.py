"""Is a rewritten answer as good as its reference? A rule of thumb for each way in which rewriting goes wrong.

Self-data distillation keeps the reference where the rewritten answer fails (Yang et al. 2024, "Self-Distillation
Bridges Distribution Gap in Language Model Fine-Tuning").
"""

import re
from fractions import Fraction

NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?"
MARKED = (  # where a text says what its final answer is, the surest sign first
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


def verdict(reference: str, answer: str, finish_reason: str) -> str:
    """Why `answer` must not take the place of `reference`, or "" if it may.

    "cut off", "empty", "refusal" (unless the reference is one), "speaks of the reference", or "other final answer":
    where the reference states a final number (after ####, in a box, as "the answer is", or as nothing but a number),
    the answer's must equal it.
    """
    if finish_reason != "eos":
        return "cut off"
    if not answer.strip():
        return "empty"
    if REFUSAL.match(answer) and not REFUSAL.match(reference):
        return "refusal"
    if SCAFFOLD.search(answer) and not SCAFFOLD.search(reference):
        return "speaks of the reference"
    wanted = stated_number(reference)
    if wanted is not None and final_number(answer) != wanted:
        return "other final answer"
    return ""


def stated_number(text: str) -> Fraction | None:
    """The final number that `text` marks as its answer, or that it consists of; None where it marks none."""
    for pattern in MARKED:
        if found := re.findall(pattern, text, re.IGNORECASE):
            return _value(found[-1])
    bare = re.fullmatch(rf"[^\w-]*({NUMBER})\s*[%.\w°$€£]{{0,12}}\W*", text.strip())
    return _value(bare[1]) if bare else None


def final_number(text: str) -> Fraction | None:
    """The number that `text` ends on: a marked one, else the last that occurs."""
    marked = stated_number(text)
    if marked is not None:
        return marked
    found = re.findall(NUMBER, text)
    return _value(found[-1]) if found else None


def _value(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
