"""Prompts: files and data sets of them, and the demo's fixed split."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from itertools import takewhile
from typing import Any

from sparsedraft.base.errors import UserError
from sparsedraft.base.hashing import stable_order
from sparsedraft.text import records
from sparsedraft.text.chats import FORMS, Message, chat_of
from sparsedraft.text.names import DEMO

HELD_OUT_PER_CATEGORY = 6  # of the demo's 50 prompts a category: 8 x 6 = 48 for evaluation
HALF_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Aside:
    """A message that is not answered, `behind` (after) the user's turn of this number (from 0) or before it."""

    role: str
    text: str
    turn: int
    behind: bool = False


@dataclass(frozen=True)
class Prompt:
    """A user's turns, one or more; each is answered before the next."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    system: str | None = None
    references: tuple[str, ...] = ()  # reference answers to the first turns, where the source has them
    asides: tuple[Aside, ...] = ()  # in order: all other messages except the first system message

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Prompt":
        """The inverse of `dataclasses.asdict` and JSON."""
        asides = tuple(Aside(**aside) for aside in fields["asides"])
        return cls(
            **{**fields, "turns": tuple(fields["turns"]), "references": tuple(fields["references"]), "asides": asides}
        )

    def messages(self, answers: Sequence[str] = ()) -> list[dict[str, str]]:
        """The conversation up to the turn after `answers`, ready for a chat template."""
        chat = [] if self.system is None else [{"role": "system", "content": self.system}]
        for number, (turn, answer) in enumerate(zip(self.turns, [*answers, None], strict=False)):
            before, behind = (
                [{"role": a.role, "content": a.text} for a in self.asides if (a.turn, a.behind) == (number, side)]
                for side in (False, True)
            )
            chat += [*before, {"role": "user", "content": turn}, *behind]
            if answer is not None:
                chat.append({"role": "assistant", "content": answer})
        return chat

    @property
    def content(self) -> list[object]:
        """All that the target reads, as part of an artifact's inputs."""
        asides = [[list(asdict(aside).values()) for aside in self.asides]] if self.asides else []
        return [self.id, self.category, self.system, *self.turns, *asides]


def read(source: str, bad: list[str] | None = None) -> list[Prompt]:
    """The prompts of `source`, in order, their ids unique.

    `source` is a file of JSON lines, a JSON array or a parquet file, whose rows are in a form that `chats` knows;
    `demo:train` or `demo:eval` (the package's own prompts); or a `datasets` id, `owner/name:split`. Raises UserError
    naming the row that cannot be read; or, if `bad` is a list, appends the error to it and skips the row. An empty file
    is always an error.
    """
    if source in DEMO:
        return list(_demo(source.partition(":")[2]))
    prompts: list[Prompt] = []
    ids: set[str] = set()
    for number, (where, row) in enumerate(records.read(source)):
        try:
            prompt = _prompt(row, f"{source}, {where}", number)
            if prompt.id in ids:
                raise UserError(f"prompts {source}, {where}: the id '{prompt.id}' occurs twice; ids must be unique.")
        except UserError as error:
            if bad is None:
                raise
            bad.append(str(error))
            continue
        ids.add(prompt.id)
        prompts.append(prompt)
    if not prompts:
        reason = f" ({bad[0]})" if bad else ""
        raise UserError(f"prompts {source} is empty: give at least one prompt{reason}.")
    return prompts


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` of the prompts at equal distances, from the first on; all of them if there are not more."""
    n = len(prompts)
    return [prompts[i * n // count] for i in range(count)] if count < n else list(prompts)


def _prompt(row: Any, where: str, index: int) -> Prompt:
    """The prompt in one row of any known form."""
    if isinstance(row, records.TooLong):
        raise UserError(f"prompts {where}: has more than {records.LONGEST:,} bytes: take it out.")
    if isinstance(row, ValueError | RecursionError):
        raise UserError(f"prompts {where}: not JSON ({getattr(row, 'msg', row)}); one object a line.")
    if not isinstance(row, Mapping):
        raise UserError(f"prompts {where}: not an object with {FORMS}.")
    name = str(next((row[key] for key in ("id", "question_id", "prompt_id") if row.get(key) is not None), index))
    prompt = of_chat(chat_of(row, where), name, str(row.get("category") or ""))
    if not prompt.turns or not all(turn.strip() for turn in prompt.turns):
        raise UserError(f"prompts {where}: a turn is empty or not text.")
    texts = [name, prompt.category, prompt.system or "", *prompt.turns, *prompt.references]
    texts += [aside.text for aside in prompt.asides]
    if any(half_surrogate(text) for text in texts):
        raise UserError(f"prompts {where}: half of a surrogate pair stands alone, which is no text; take it out.")
    if sum(map(len, texts)) > records.LONGEST:
        raise UserError(f"prompts {where}: has more than {records.LONGEST:,} characters: take it out.")
    return prompt


def of_chat(chat: Sequence[Message], name: str, category: str = "") -> Prompt:
    """The prompt of a conversation, with the assistant's messages as references.

    Each user message is a turn. The assistant's message after it is the reference, up to the first turn without one. A
    first system message becomes the prompt's `system`. All other messages (later system messages, or the assistant's
    before the first turn) keep their places as asides.
    """
    system = chat[0].text if chat and chat[0].role == "system" else None
    turns: list[str] = []
    answers: dict[int, str | None] = {}
    asides: list[Aside] = []
    waiting: list[Message] = []  # asides before the next turn, or after the last one if it has no answer yet
    for role, text in chat[1:] if system is not None else chat:
        if role == "user":
            asides += [Aside(message.role, message.text or "", len(turns)) for message in waiting]
            turns.append(text or "")
            waiting = []
        elif role == "assistant" and turns:
            if len(turns) - 1 not in answers:
                answers[len(turns) - 1] = text
                asides += [Aside(message.role, message.text or "", len(turns) - 1, behind=True) for message in waiting]
                waiting = []
        elif text is not None:
            waiting.append(Message(role, text))
    if turns and len(turns) - 1 not in answers:
        asides += [Aside(message.role, message.text or "", len(turns) - 1, behind=True) for message in waiting]
    references = takewhile(lambda text: (text or "").strip(), (answers.get(turn) for turn in range(len(turns))))
    return Prompt(name, tuple(turns), category, system, tuple(map(str, references)), tuple(asides))


def half_surrogate(text: str) -> bool:
    """Whether `text` has half of a surrogate pair, which is how Python reads bytes that are not UTF-8."""
    return HALF_SURROGATE.search(text) is not None


@cache
def _demo(split: str) -> tuple[Prompt, ...]:
    text = resources.files("sparsedraft.text").joinpath("data/demo_prompts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    prompts = [_prompt(row, f"demo, line {n}", n) for n, row in enumerate(rows, 1)]
    held_out: set[str] = set()
    for category in sorted({p.category for p in prompts}):
        ids = [p.id for p in prompts if p.category == category]
        held_out |= set(stable_order(ids, str)[:HELD_OUT_PER_CATEGORY])
    of_split = [p for p in prompts if not split or (p.id in held_out) == (split == "eval")]
    return tuple(stable_order(of_split, lambda prompt: prompt.id))  # mixed, so that the first few are of every category
