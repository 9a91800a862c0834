"""Rules for rows to leave out: duplicates, lengths, languages, words, and text of the evaluation.

Each row is examined once, in order, so data of any size pass; of two duplicates the first stays.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsedraft.stages.distill.options import Rules
from sparsedraft.text.overlap import Overlap, words_of
from sparsedraft.text.prompts import Prompt

SHINGLE = 5  # consecutive words: near-duplicates share most of these
STRICTEST = 0.98  # the highest threshold of an index with so few permutations; it finds equal texts, too
PERMUTATIONS = 128  # of a MinHash: the standard error of its similarity is at most 1/√128 = 0.09


@dataclass
class Cleaner:
    """Applies `rules`, row after row; `evaluation` holds the prompts that must not be trained on."""

    rules: Rules
    evaluation: Sequence[Prompt] = ()
    seen: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.overlap = Overlap(self.evaluation)
        self.near = _NearDuplicates(self.rules.near_duplicates) if self.rules.near_duplicates else None
        self.drop, self.keep = _any_of(self.rules.drop_words), _any_of(self.rules.keep_words)

    def reason(self, row: dict[str, Any]) -> str:
        """Why the row is left out, or "" if it stays."""
        rules, text = self.rules, "\n".join(m["content"] for m in row["messages"])
        answer, prompt = len(row["answer_ids"]), len(row["prompt_ids"])
        if not answer:
            return "empty answer"
        if rules.drop_cut_off and row["finish_reason"] != "eos":
            return "cut off"
        if answer < rules.min_answer_tokens or 0 < rules.max_answer_tokens < answer:
            return "answer length"
        if 0 < rules.max_prompt_tokens < prompt:
            return "prompt length"
        if self.drop and self.drop.search(text):
            return "dropped word"
        if self.keep and not self.keep.search(text):
            return "no wanted word"
        if rules.languages and _language(text) not in rules.languages:
            return "language"
        if any(self.overlap.find(m["content"]) is not None for m in row["messages"]):
            return "evaluation text"
        mark = hashlib.sha256(repr([words_of(m["content"]) for m in row["messages"]]).encode()).digest()[:16]
        if mark in self.seen:
            return "exact duplicate"
        question = "\n".join(m["content"] for m in row["messages"] if m["role"] == "user")
        if self.near and self.near.has(row["prompt_id"], question):
            return "near-duplicate"
        self.seen.add(mark)
        return ""


class _NearDuplicates:
    """The prompts so far, by MinHash over their shingles (Broder 1997), in a locality-sensitive index."""

    def __init__(self, similarity: float) -> None:
        from datasketch import MinHashLSH

        self.index = MinHashLSH(threshold=min(similarity, STRICTEST), num_perm=PERMUTATIONS)
        self.known: dict[str, bool] = {}  # whether an earlier prompt is similar, by name: turns and samples share it

    def has(self, name: str, text: str) -> bool:
        """Whether a prompt of another name was similar to this one; if not, this one is remembered."""
        from datasketch import MinHash

        if name not in self.known:
            words = words_of(text)
            shingles = {words[i : i + SHINGLE] for i in range(max(1, len(words) - SHINGLE + 1))}
            mark = MinHash(num_perm=PERMUTATIONS)
            mark.update_batch([" ".join(shingle).encode() for shingle in sorted(shingles)])
            self.known[name] = bool(self.index.query(mark))
            if not self.known[name]:
                self.index.insert(name, mark)
        return self.known[name]


def _any_of(words: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern for any of `words` as a whole word, in upper or lower case; None without words."""
    if not words:
        return None
    return re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words), re.IGNORECASE)


def _language(text: str) -> str:
    import py3langid

    return py3langid.classify(text)[0]
