"""Data that the target wrote before, taken over once it has written some of its answers again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsedraft.base import artifact
from sparsedraft.base.console import console, track
from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.native.model import native_model
from sparsedraft.stages.distill import datafolder
from sparsedraft.stages.distill.cleaner import Cleaner
from sparsedraft.stages.distill.options import Rules
from sparsedraft.text import dataset, prompts
from sparsedraft.writers.native import NativeWriter
from sparsedraft.writers.protocol.requests import Request

TOKENS = 96  # of an answer that is written again, at most
MEND = "another model wrote it; give data of this one, or leave out distill.stored, and it is written here"


@dataclass(frozen=True)
class Stored:
    """The data folder `folder`, of which `target` writes `again` answers anew on the native engine."""

    folder: Path
    target: str
    again: int
    evaluation: Sequence[str] = ()  # prompts that must not be trained on: rows that hold one are left out
    overwrite: bool = False

    def take_over(self, out: Path) -> dict[str, Any]:
        """Copy the rows to the data folder `out`; their result, with "again": how many were written anew.

        UserError for a folder that is no data, for one of another tokenizer, for data that were sampled, and where the
        target writes one of the answers otherwise.
        """
        model = checkpoint.find(self.target)
        kept_out = [prompt for name in self.evaluation for prompt in prompts.read(name)]

        def build(work: Path) -> dict[str, Any]:
            rows = dataset.read(self.folder)
            tokenizer = checkpoint.load_tokenizer(model)
            if not dataset.same_tokenizer(self.folder, tokenizer):
                raise UserError(f"stored data {self.folder} has another tokenizer than {self.target}: {MEND}.")
            written = self._write_again(model, tokenizer, _spread(rows, self.again))
            known = dataset.read_result(self.folder)
            reason = Cleaner(Rules(), kept_out).reason
            result = datafolder.write(work, rows, reason, known.get("prompts", len(rows)), known.get("topk", 0))
            tokenizer.save_pretrained(work / "tokenizer")
            return result | {"again": written}

        files = [*sorted(dataset.check(self.folder).glob("data-*.parquet")), self.folder / "result.json"]
        inputs = {"target": model, "stored": files, "again": self.again, "evaluation": [p.content for p in kept_out]}
        return artifact.make(
            out, "distill", inputs, build, overwrite=self.overwrite, reads=(self.target, self.folder, *self.evaluation)
        )

    def _write_again(self, model: Path, tokenizer: Any, chosen: Sequence[dict[str, Any]]) -> int:
        if sampled := next((row for row in chosen if row["temperature"]), None):
            raise UserError(
                f"stored data {self.folder} was sampled (row {sampled['id']} at temperature {sampled['temperature']}), "
                "and only greedy answers can be written again: give other data, or leave out distill.stored."
            )
        expected = {row["id"]: row["answer_ids"][:TOKENS] for row in chosen}
        requests = [Request(row["id"], row["prompt_ids"], len(expected[row["id"]])) for row in chosen]
        writer = NativeWriter(native_model(model), tokenizer, end_ids(model, tokenizer))
        with track("stored answers again", len(requests), "answers") as tracker:
            for answer in writer.generate(requests, Sampling()):
                if answer.token_ids != expected[answer.id]:
                    raise UserError(
                        f"{self.target} writes row {answer.id} of the stored data {self.folder} otherwise, from token "
                        f"{_first_difference(answer.token_ids, expected[answer.id])} on: {MEND}."
                    )
                tracker.advance()
        console.print(f"{len(requests)} of its answers are as stored", style="dim")
        return len(requests)


def _spread(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """So many of the rows, from all over."""
    return [rows[i * len(rows) // count] for i in range(count)] if count < len(rows) else [*rows]


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The place of the first token that differs, from 0."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
