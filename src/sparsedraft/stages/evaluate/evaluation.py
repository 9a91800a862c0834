"""One evaluation: the target answers the prompts, each drafter is measured on the answers, the rows become figures."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.base.journal import read_lines
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.models import checkpoint, quantizers
from sparsedraft.models.config.parallel import mask_token_of
from sparsedraft.models.names import LOOKUP
from sparsedraft.models.shards import Shards
from sparsedraft.models.tokenizers.vocab import same_tokens
from sparsedraft.speculate.pair import Pair, check_way
from sparsedraft.speculate.policy.learned import policies
from sparsedraft.stages.evaluate.entries import Entry
from sparsedraft.stages.evaluate.example import worked_example
from sparsedraft.stages.evaluate.figures import drafter_figures
from sparsedraft.stages.evaluate.memo import MOST, TargetLogits
from sparsedraft.stages.evaluate.options import EvaluateOptions
from sparsedraft.stages.evaluate.rows import Measurement
from sparsedraft.stages.evaluate.servertarget import ServerTarget
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.conversation import Answer, Responder, answer_all
from sparsedraft.writers.loaded import LoadedModel, check_drafts

ANSWERS, ROWS = "answers.jsonl", "rows.jsonl"  # with a dot in front: those of an evaluation under way
NEEDED = ("drafter", "id", "prompt", "category", "tokens", "histograms", "alpha")  # fields of a row
NEAR_TIE = 1e-4  # the gap of the two best logits below which two machines may choose differently


class RowFile:
    """The rows of an evaluation under way, each in the file as soon as it is measured."""

    def __init__(self, path: Path, answers: Sequence[Answer]) -> None:
        self.path, self._rows = path, read_lines(path, NEEDED)
        self._place = {answer.id: index for index, answer in enumerate(answers)}
        path.touch()

    def ids(self, name: str) -> set[str]:
        """The answers on which the drafter called `name` is measured already."""
        return {row["id"] for row in self._rows if row["drafter"] == name}

    def complete(self, name: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Append the `rows` of one drafter; return all that it has, in the order of the answers."""
        of_drafter = [row for row in self._rows if row["drafter"] == name]
        with open(self.path, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
                file.flush()
                of_drafter.append(row)
        return sorted(of_drafter, key=lambda row: self._place[row["id"]])


class Evaluation:
    """`drafters` (by name) against `target`; what takes long is in files of `work`.

    Raises UserError for a drafter that cannot draft for this target, before the target's long work.
    """

    def __init__(
        self,
        work: Path,
        target: LoadedModel,
        target_name: str,
        tokenizer: PreTrainedTokenizerBase,
        drafters: dict[str, Entry],
        options: EvaluateOptions,
    ) -> None:
        self.work, self.target, self.target_name = work, target, target_name
        self.tokenizer, self.drafters, self.options = tokenizer, drafters, options
        self.ks: list[int | str] = [*options.numbers, *options.policies]
        if not options.simulate:
            target.check_takes_back("verify drafts: give --simulate")
        for folder in {entry.folder: None for entry in drafters.values() if entry.folder is not None}:
            config = checkpoint.read_config(folder)
            quantizers.check_runs(folder, config, Shards(folder), options.device)
            check_way(options.drafting, mask_token_of(config, folder))
            self._check_tokenizer(folder)
            check_drafts(folder)
        if options.tree > 1:
            self._check_trees()

    def run(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The result; rows.jsonl, answers.jsonl and example.json are written to the work folder."""
        answers = self._target_answers(prompts)
        dense = self.target.weights()["macs_per_token"]
        rows, figures = self._measure(answers, dense)
        with write_atomic(self.work / ROWS) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with write_atomic(self.work / ANSWERS) as temporary:
            shutil.copy(self.work / f".{ANSWERS}", temporary)
        write_json(self.work / "example.json", self._example(answers, figures))
        return {
            "target": self.target_name,
            "temperature": self.options.temperature,
            **({"verification": "block"} if self.options.blockwise else {}),
            "simulated": self.options.simulate,
            **({} if self.options.cache == "int16" else {"cache": self.options.cache}),
            **self.options.windowed,
            **({} if self.options.drafting == "auto" else {"drafting": self.options.drafting}),
            "prompts": len({answer.prompt_id for answer in answers}),
            "sequences": len(answers),
            "target_tokens": sum(len(answer.answer_ids) for answer in answers),
            "near_ties": sum(answer.min_gap < NEAR_TIE for answer in answers),
            "k": self.options.numbers,
            "policies": self.options.policies,
            "dense_macs_per_token": dense,
            "drafters": figures,
        }

    def _target_answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        o = self.options
        responder = Responder(
            self.target.writer(o.batch_size),
            self.tokenizer,
            o.sampling,
            o.max_new_tokens,
            o.seed,
            context=self.target.context,
        )
        return answer_all(
            responder,
            prompts,
            journal=self.work / f".{ANSWERS}",
            description="target answers",
            batch_size=o.batch_size,
            concurrency=o.concurrency if isinstance(self.target, ServerTarget) else 0,
        )

    def _measure(
        self, answers: Sequence[Answer], dense: int | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(all rows, the figures of each drafter): one drafter after the other, so that one is in memory."""
        several = len(self.drafters) > 1  # a single drafter asks for the target's logits once
        target_logits = TargetLogits(self.target, self.work / ".target-logits", MOST if several else 0)
        row_file = RowFile(self.work / f".{ROWS}", answers)
        rows: list[dict[str, Any]] = []
        figures: list[dict[str, Any]] = []
        for name, entry in self.drafters.items():
            pair = self._pair(name, entry)
            measurement = Measurement(name, pair, self.ks, self.options, target_logits, self.work)
            of_drafter = row_file.complete(name, measurement.rows(answers, row_file.ids(name)))
            rows += of_drafter
            figures.append(drafter_figures(name, entry.folder, pair, of_drafter, self.options, dense))
            del pair, measurement  # before the next drafter is loaded
        return rows, figures

    def _example(self, answers: Sequence[Answer], figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A generation, step by step, by the drafter with the greatest MAL on the first answer of some length."""
        numbers = self.options.numbers or [5]
        k = 5 if 5 in numbers else numbers[len(numbers) // 2]
        key = str(k) if str(k) in figures[0]["k"] else str(self.ks[0])
        best = max(figures, key=lambda drafter: drafter["k"][key]["mal"])["name"]
        answer = next((a for a in answers if len(a.answer_ids) >= 32), answers[0])
        console.print(f"worked example: {answer.id} by {best}")
        pair = self._pair(best, self.drafters[best])
        return {"drafter": best, **worked_example(pair, answer, k, self.options)}

    def _pair(self, name: str, entry: Entry) -> Pair:
        loop = not self.options.simulate
        if entry.folder is None:
            return Pair.of(self.target, LOOKUP, "auto", self.options.sampling, loop)
        o = self.options
        pair = Pair.of(self.target, load(entry.folder, o), o.uag, o.sampling, loop, o.factor)
        pair = pair.reading(o.drafter_window, o.drafter_sinks).drafting_by(o.way)
        if pair.route != "same":
            console.print(f"{name}: {pair.route} ({pair.why})")
        return pair.with_lookup() if entry.lookup else pair

    def _check_tokenizer(self, folder: Path) -> None:
        tokenizer = checkpoint.load_tokenizer(folder)
        if self.options.uag == "off" and not same_tokens(self.tokenizer, tokenizer):
            raise UserError(
                f"drafter {folder} has another tokenizer than target {self.target_name}: set --uag to auto, realign or "
                "intersection."
            )

    def _check_trees(self) -> None:
        for name, entry in self.drafters.items():
            if entry.folder is not None:
                pair = self._pair(name, entry)
                for policy in policies(self.ks).values():
                    pair.check_tree(self.options.tree, policy)


def load(folder: Path, options: EvaluateOptions) -> LoadedModel:
    """The model in `folder`, where and how the options say."""
    return LoadedModel.load(
        folder,
        dtype=options.dtype,
        device=options.device,
        runtime=options.runtime,
        cache=options.cache,
        template_args=options.template_args,
    )
