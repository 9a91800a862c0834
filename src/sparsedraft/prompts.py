"""Prompts: files and data sets of them, and the demo's fixed split."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sparsedraft.errors import UserError, first_line
from sparsedraft.templates import chat_ids, end_of_turn  # noqa: F401  (their earlier home)

HELD_OUT_PER_CATEGORY = 6  # of the demo's 50 prompts a category: 8 x 6 = 48 for evaluation
FORMS = "'prompt', 'messages', 'turns' or 'instruction'"


@dataclass(frozen=True)
class Prompt:
    """What a user says: one or more turns, each to be answered before the next."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    system: str | None = None
    references: tuple[str, ...] = ()  # reference answers to the first turns, where the source has them

    def messages(self, answers: Sequence[str] = ()) -> list[dict[str, str]]:
        """The conversation up to the turn after `answers`, ready for a chat template."""
        chat = [{"role": "system", "content": self.system}] if self.system else []
        for turn, answer in zip(self.turns, [*answers, None], strict=False):
            chat.append({"role": "user", "content": turn})
            if answer is not None:
                chat.append({"role": "assistant", "content": answer})
        return chat


def read(source: str, bad: list[str] | None = None) -> list[Prompt]:
    """The prompts of `source`, in order, their ids unique.

    `source` is a JSON-lines or parquet file whose rows hold `prompt`, `messages`, `turns` (Spec-Bench) or
    `instruction`/`input`/`output` (Alpaca); `demo:train` or `demo:eval` (the package's own prompts); or a
    `datasets` id, `owner/name:split`. Raises UserError naming the row that cannot be read, unless `bad` is a list,
    which then gets what is wrong with each; an empty file is an error in any case.
    """
    path = Path(os.path.expanduser(source))  # Path.expanduser raises for a user that there is not
    if source in ("demo", "demo:train", "demo:eval"):
        return _demo(source.partition(":")[2])
    if path.suffix in (".jsonl", ".json", ".parquet") or path.exists():
        if not path.is_file():
            raise UserError(f"prompts {source}: there is no such file; check the path.")
        rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    else:
        rows = _dataset(source)
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, (where, row) in enumerate(rows):
        try:
            prompt = _prompt(row, f"{source}, {where}", number)
            if prompt.id in seen:
                raise UserError(f"prompts {source}, {where}: the id '{prompt.id}' occurs twice; ids must be unique.")
        except UserError as error:
            if bad is None:
                raise
            bad.append(str(error))
            continue
        seen.add(prompt.id)
        prompts.append(prompt)
    if not prompts:
        reason = f" ({bad[0]})" if bad else ""
        raise UserError(f"prompts {source} is empty: give at least one prompt{reason}.")
    return prompts


def spread(found: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` of the prompts at equal distances, the first among them; all, if there are no more."""
    n = len(found)
    return [found[i * n // count] for i in range(count)] if count < n else list(found)


def _json_rows(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: U+2028 may stand inside a string
    except UnicodeDecodeError:
        raise UserError(f"prompts {path} is not UTF-8 text: save it as UTF-8 JSON lines.") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested as deep
                yield f"line {number}", error


def _parquet_rows(path: Path) -> Iterable[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"prompts {path} is not a readable parquet file ({first_line(error)}).") from None
    return ((f"row {n}", row) for n, row in enumerate(rows, 1))


def _dataset(source: str) -> Iterable[tuple[str, Any]]:
    name, _, split = source.partition(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"prompts {source}: no such file, and it is not a datasets id of the form owner/name:split.")
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as error:  # the library raises its own, the hub's and requests' errors alike
        reason = first_line(error)
        raise UserError(
            f"prompts {source}: no such file, and no data set of that id can be loaded ({reason})."
        ) from None
    return ((f"row {n}", dict(row)) for n, row in enumerate(rows, 1))


def _prompt(row: Any, where: str, index: int) -> Prompt:
    """One row, in whichever of the known forms it is."""
    if isinstance(row, ValueError | RecursionError):
        raise UserError(f"prompts {where}: not JSON ({getattr(row, 'msg', row)}); one object a line.")
    if not isinstance(row, Mapping):
        raise UserError(f"prompts {where}: not an object with {FORMS}.")
    system: Any = None
    references: list[Any] = []
    for key in ("turns", "messages"):
        if row.get(key) is not None and not isinstance(row[key], list | tuple):
            raise UserError(f"prompts {where}: '{key}' is {type(row[key]).__name__}, not a list.")
    if row.get("turns"):
        turns = list(row["turns"])
    elif row.get("messages"):
        for message in row["messages"]:
            if not isinstance(message, Mapping):
                raise UserError(f"prompts {where}: a message is not an object with role and content.")
            if message.get("role") not in ("system", "user", "assistant"):
                raise UserError(f"prompts {where}: role '{message.get('role')}' is not system, user or assistant.")
        by_role = [(m["role"], m.get("content")) for m in row["messages"]]
        turns = [text for role, text in by_role if role == "user"]
        system = next((text for role, text in by_role if role == "system"), None)
        references = _replies(by_role)
    elif row.get("prompt"):
        turns = [row["prompt"]]
    elif row.get("instruction"):
        turns = ["\n\n".join(str(part) for part in (row["instruction"], row.get("input")) if part)]
        references = [] if row.get("output") in (None, "") else [row["output"]]
    else:
        raise UserError(f"prompts {where}: has none of {FORMS}, or it is empty.")
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise UserError(f"prompts {where}: a turn is empty or not text.")
    for key, text in (("system", system), *(("output", text) for text in references)):
        if text is not None and not isinstance(text, str):
            raise UserError(f"prompts {where}: the {key} message is {type(text).__name__}, not text.")
    name = str(next((row[key] for key in ("id", "question_id", "prompt_id") if row.get(key) is not None), index))
    category = str(row.get("category") or "")
    if any(half_surrogate(text) for text in (name, category, system or "", *turns, *references)):
        raise UserError(f"prompts {where}: half of a surrogate pair stands alone, which is no text; take it out.")
    return Prompt(name, tuple(turns), category, system, tuple(references))


def _replies(chat: Sequence[tuple[str, Any]]) -> list[Any]:
    """What the assistant says right after each user turn, up to the first turn with no such text."""
    found: list[Any] = []
    for (role, _), (next_role, text) in zip(chat, [*chat[1:], ("", None)], strict=True):
        if role == "user":
            if next_role != "assistant" or text is None or not str(text).strip():
                break
            found.append(text)
    return found


def half_surrogate(text: str) -> bool:
    """Whether half of a surrogate pair stands alone in `text`, as Python has it for bytes that are not UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _demo(split: str) -> list[Prompt]:
    text = resources.files("sparsedraft").joinpath("data/demo_prompts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    prompts = [_prompt(row, f"demo, line {n}", n) for n, row in enumerate(rows, 1)]
    held_out: set[str] = set()
    for category in sorted({p.category for p in prompts}):
        ids = [p.id for p in prompts if p.category == category]
        held_out |= set(sorted(ids, key=_order)[:HELD_OUT_PER_CATEGORY])
    wanted = [p for p in prompts if not split or (p.id in held_out) == (split == "eval")]
    return sorted(wanted, key=lambda p: _order(p.id))  # mixed, so that the first few are of every category


def _order(name: str) -> str:
    """A fixed shuffle: the SHA-256 of the id."""
    return hashlib.sha256(name.encode()).hexdigest()
