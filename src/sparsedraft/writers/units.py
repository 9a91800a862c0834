"""Units of work: conversations that are decoded together, written once, and committed as they finish.

The last bits of a row's logits depend on its neighbours in the batch. A killed run repeats the units that were under
way with the same neighbours, so that it ends with the same rows as an uninterrupted one.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import Any

from sparsedraft.base.hashing import text_hash
from sparsedraft.base.journal import Journal
from sparsedraft.text.prompts import Prompt

GROUP = 4  # batches' worth of conversations that make a unit

Make = Callable[[Sequence[Prompt]], list[dict[str, Any]]]  # a unit's conversations to its rows


def units_of(prompts: Sequence[Prompt], lengths: Sequence[int], size: int) -> list[list[Prompt]]:
    """Units of `size` conversations, with similar prompt lengths in each."""
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], prompts[i].id))
    return [[prompts[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def key_of(prompt: Prompt) -> str:
    """What identifies a conversation: a hash of its id and of everything that is asked in it."""
    return text_hash(json.dumps(asdict(prompt), sort_keys=True))[:32]


def keys_of(prompts: Sequence[Prompt]) -> dict[str, str]:
    """The key of each prompt, by its id."""
    return {prompt.id: key_of(prompt) for prompt in prompts}


def lacking(units: Sequence[Sequence[Prompt]], journal: Journal) -> list[list[Prompt]]:
    """The conversations that `journal` lacks, in their units.

    A unit may be there in part, because prompts were added or removed since. Its finished conversations stay as they
    are, although they had other neighbours, which may show in the last bits of their logits.
    """
    left = [[prompt for prompt in unit if key_of(prompt) not in journal] for unit in units]
    return [unit for unit in left if unit]


def run_units(
    units: Sequence[Sequence[Prompt]], make: Make, journal: Journal, concurrency: int = 1
) -> Iterator[list[dict[str, Any]]]:
    """Make the units of which `journal` lacks a conversation, commit each as it finishes, and yield its rows.

    `concurrency`: how many units are under way at once. Above 1 they run in threads and finish in any order. After an
    error, the units that are under way are finished and kept before it is raised. Ctrl-C waits for nothing.
    """
    todo = lacking(units, journal)
    if concurrency > 1:
        yield from _run_in_threads(todo, make, journal, concurrency)
        return
    for unit in todo:
        rows = make(unit)
        journal.append(keys_of(unit), rows)
        yield rows


def _run_in_threads(
    units: Sequence[Sequence[Prompt]], make: Make, journal: Journal, concurrency: int
) -> Iterator[list[dict[str, Any]]]:
    """`run_units`, with up to `concurrency` units under way at once."""
    todo = iter(units)
    results = SimpleQueue[tuple[Sequence[Prompt], list[dict[str, Any]], BaseException | None]]()

    def work(unit: Sequence[Prompt]) -> None:
        try:
            results.put((unit, make(unit), None))
        except BaseException as error:
            results.put((unit, [], error))

    def start(count: int) -> int:
        """Start up to `count` more units. The threads are daemons, because a call to a server may never end."""
        units = list(islice(todo, count))
        for unit in units:
            Thread(target=work, args=(unit,), daemon=True).start()
        return len(units)

    running, failed = start(concurrency), None
    try:
        while running:
            unit, rows, error = results.get()
            running -= 1
            if error is not None:
                failed = failed or error
                continue
            journal.append(keys_of(unit), rows)
            if failed is None:
                running += start(1)
            yield rows
    finally:  # stopped half-way: keep what has arrived
        while not results.empty():
            unit, rows, error = results.get()
            if error is None:
                journal.append(keys_of(unit), rows)
    if failed is not None:
        raise failed
