"""What a finished evaluation gives another: all that it has to one of more drafters, or the target's answers alone."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.base.places import read_provenance
from sparsedraft.base.provenance import describe, differences
from sparsedraft.stages.evaluate.evaluation import ANSWERS, ROWS

# inputs of an evaluation that the target's answers do not depend on
DRAFTING = (
    "drafters", "options.k", "options.uag", "options.tree", "options.simulate", "options.verification",
    "options.drafter_temperature", "options.drafter_window", "options.drafter_sinks", "options.drafting",
)  # fmt: skip

Copies = list[tuple[Path, int]]  # each with its size in bytes


def take_up(finished: Path, work: Path) -> Copies:
    """Copy the answers and rows of a finished evaluation of fewer drafters to `work`, if that has no answers yet."""
    if (work / f".{ANSWERS}").exists() or not (finished / ANSWERS).exists():
        return []
    return [_copy(finished / name, work) for name in (ROWS, ANSWERS)]  # rows without answers are copied again


def take_answers(finished: Path, inputs: Mapping[str, object], work: Path) -> Copies:
    """Copy the target's answers of the evaluation `finished` to `work`, if that has none yet.

    `inputs`: those of the evaluation in `work`. UserError where its answers would be others.
    """
    if (work / f".{ANSWERS}").exists():
        return []
    record = read_provenance(finished) or {}
    if record.get("command") != "eval" or not (finished / ANSWERS).is_file():
        raise UserError(f"--answers {finished} is no finished evaluation: name the --out of one.")
    changes = differences(record.get("inputs"), describe(dict(inputs)))
    changed = [name for name in changes if not any(f"{name}.".startswith(f"{free}.") for free in DRAFTING)]
    if changed:
        raise UserError(
            f"--answers {finished} are to other questions (changed: {', '.join(changed)}): leave it out, and the "
            "target answers these."
        )
    return [_copy(finished / ANSWERS, work)]


def drop_unchanged(copies: Sequence[tuple[Path, int]]) -> None:
    """Delete those `copies` to which nothing was added: the mended command would trip on what was refused."""
    for file, size in copies:
        if file.stat().st_size == size:
            file.unlink()


def _copy(file: Path, work: Path) -> tuple[Path, int]:
    """The copy of `file` in `work`, hidden as those of an evaluation under way are, and its size."""
    copy = work / f".{file.name}"
    with write_atomic(copy) as temporary:
        shutil.copy(file, temporary)
    return copy, file.stat().st_size
