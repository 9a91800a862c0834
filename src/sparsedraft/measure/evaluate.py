"""The `eval` stage: drafters against a target, the target's work shared by all of them.

The target answers every prompt once. Each drafter is then read over those answers (α, and with `simulate` the greedy
histograms of every K), or drafts in the real loop, K by K.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsedraft import artifact, checkpoint, prompts
from sparsedraft.console import console, track
from sparsedraft.conversation import Answer, answer_all
from sparsedraft.decoder import context_length, count_zeros, decoder_linears
from sparsedraft.errors import UserError
from sparsedraft.journal import read_lines
from sparsedraft.measure.acceptance import Histogram
from sparsedraft.measure.macs import macs_of_model, nonzero_parameters
from sparsedraft.measure.simulate import acceptance, simulate
from sparsedraft.measure.speedup import break_even, improvement_factor
from sparsedraft.speculate.backend import TransformersBackend
from sparsedraft.speculate.decode import generate, speculate
from sparsedraft.speculate.sampling import Sampling
from sparsedraft.speculate.vocab import check_same_head, check_same_tokenizer

VERIFY_COST = 1.0  # v: one target pass verifies K+1 tokens at the cost of one, as long as memory binds


@dataclass(frozen=True)
class Options:
    """How to evaluate; lengths in tokens."""

    k: tuple[int, ...] | list[int] = (1, 2, 3, 5, 8)
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    simulate: bool = False
    max_new_tokens: int = 128
    batch_size: int = 32
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)


def evaluate_to(
    out: Path | None,
    target: str,
    drafters: Sequence[tuple[str, str]],
    source: str,
    options: Options,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate `drafters` (name, checkpoint) against `target` on the prompts of `source`; the result of DESIGN §3.

    Writes result.json, rows.jsonl and example.json to `out` (None: nowhere). An interrupted evaluation goes on with the
    first sequence that is not done. Raises UserError for bad options, checkpoints that lie, differing tokenizers.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as scratch:
            return evaluate_to(Path(scratch) / "eval", target, drafters, source, options)
    if options.simulate and options.temperature > 0:
        raise UserError("--simulate is exact under greedy decoding only: leave it out, or set --temperature 0.")
    names = [name for name, _ in drafters]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two drafters are called '{twice}': name them, as in first={drafters[0][1]}.")
    _ = options.sampling  # bad values are refused before anything is loaded
    chosen = prompts.read(source)[: options.limit]
    target_folder, folders = checkpoint.find(target), {name: checkpoint.find(ref) for name, ref in drafters}
    tokenizer = checkpoint.load_tokenizer(target)
    for name, ref in drafters:
        check_same_tokenizer(tokenizer, checkpoint.load_tokenizer(ref), target, name)

    def build(work: Path) -> dict[str, Any]:
        return _Evaluation(work, target, target_folder, folders, tokenizer, chosen, options).result()

    inputs: dict[str, object] = {
        "target": target_folder,
        "drafters": folders,
        "prompts": [[p.id, p.category, p.system, *p.turns] for p in chosen],
        "options": {**asdict(options), "k": sorted(set(options.k))},
    }
    return artifact.make(out, "eval", inputs, build, seed=options.seed, overwrite=overwrite)


class _Evaluation:
    """One evaluation under way; everything that took long is in files of the work folder."""

    def __init__(
        self,
        work: Path,
        target: str,
        target_folder: Path,
        drafters: dict[str, Path],
        tokenizer: PreTrainedTokenizerBase,
        chosen: Sequence[prompts.Prompt],
        options: Options,
    ) -> None:
        self.work, self.target_name, self.options, self.tokenizer = work, target, options, tokenizer
        self.ks = sorted(set(options.k))
        self.target, self.drafters = self._load(target_folder), drafters
        self.eos_ids = checkpoint.eos_ids(self.target, tokenizer)
        self.answers = self._target_answers(chosen)

    def _load(self, folder: Path) -> PreTrainedModel:
        dtype, device = checkpoint.dtype_named(self.options.dtype), checkpoint.device_named(self.options.device)
        return checkpoint.load(folder, dtype=dtype, device=device)

    def _target_answers(self, chosen: Sequence[prompts.Prompt]) -> list[Answer]:
        return answer_all(
            self.target,
            self.tokenizer,
            chosen,
            journal=self.work / ".target.jsonl",
            description="target answers",
            sampling=self.options.sampling,
            max_new_tokens=self.options.max_new_tokens,
            batch_size=self.options.batch_size,
            seed=self.options.seed,
        )

    def result(self) -> dict[str, Any]:
        dense = macs_of_model(self.target)
        rows_file = self.work / ".rows.jsonl"
        done = read_lines(rows_file)
        place = {answer.id: index for index, answer in enumerate(self.answers)}
        shown: list[dict[str, Any]] = []
        kept: list[dict[str, Any]] = []
        with open(rows_file, "a", encoding="utf-8") as journal:
            for name, folder in self.drafters.items():
                model = self._load(folder)
                check_same_head(self.target, model, name)
                claim = checkpoint.check_sparsity(model, folder)
                rows = [row for row in done if row["drafter"] == name]
                for row in self._rows(name, model, {row["id"] for row in rows}):
                    journal.write(json.dumps(row) + "\n")
                    journal.flush()
                    rows.append(row)
                rows.sort(key=lambda row: place[row["id"]])  # whatever order an interruption brought
                kept += rows
                shown.append(self._summary(name, folder, model, claim, rows, dense))
        with artifact.write_atomic(self.work / "rows.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._write_example(shown)
        return {
            "target": self.target_name,
            "temperature": self.options.temperature,
            "simulated": self.options.simulate,
            "prompts": len({answer.prompt_id for answer in self.answers}),
            "sequences": len(self.answers),
            "target_tokens": sum(len(answer.answer_ids) for answer in self.answers),
            "near_ties": sum(answer.min_gap < 1e-4 for answer in self.answers),
            "k": self.ks,
            "dense_macs_per_token": dense,
            "drafters": shown,
        }

    def _rows(self, name: str, model: PreTrainedModel, done: set[str]) -> Iterator[dict[str, Any]]:
        """One row per sequence: α, and the histogram of accepted tokens for each K."""
        todo = [answer for answer in self.answers if answer.id not in done]
        total = sum(len(answer.answer_ids) for answer in todo)
        pairs = [(answer.prompt_ids, answer.answer_ids) for answer in todo]
        with track(f"eval {name}", total, "tokens") as tracker:
            p = self.target if self.options.temperature > 0 else None  # greedy α needs no second look at the target
            for index, shares in acceptance(model, pairs, p, self.options.sampling):
                answer = todo[index]
                if self.options.simulate:
                    histograms = {k: simulate(shares > 0.5, k, *self._room(model, answer)) for k in self.ks}
                else:
                    histograms = {k: self._loop(model, answer, k) for k in self.ks}
                tracker.advance(len(answer.answer_ids))
                yield {
                    "drafter": name,
                    "id": answer.id,
                    "category": answer.category,
                    "tokens": len(answer.answer_ids),
                    "alpha": float(shares.double().mean()),
                    "histograms": {str(k): histogram.to_dict() for k, histogram in histograms.items()},
                }

    def _room(self, model: PreTrainedModel, answer: Answer) -> tuple[int, int | None]:
        """(tokens that the loop may write, tokens that the drafter's context then still holds)."""
        own, its = context_length(self.target), context_length(model)
        prompt, wanted = len(answer.prompt_ids), answer.max_new_tokens
        return wanted if own is None else min(wanted, own - prompt), None if its is None else its - prompt

    def _loop(self, model: PreTrainedModel, answer: Answer, k: int) -> Histogram:
        """Accepted lengths of the real loop on one sequence; under greedy its output must be the target's."""
        made = generate(
            TransformersBackend(self.target),
            TransformersBackend(model),
            answer.prompt_ids,
            k=k,
            max_new_tokens=self.options.max_new_tokens,
            sampling=self.options.sampling,
            eos_ids=self.eos_ids,
            seed=self.options.seed,
        )
        if (
            self.options.temperature == 0
            and self.options.dtype == "float32"
            and made.tokens != list(answer.answer_ids)
            and answer.min_gap > 1e-3
        ):
            raise RuntimeError(
                f"{answer.id}: speculative output differs from the target's, and no near-tie explains it"
            )
        return Histogram.of_steps(made.steps, k)

    def _summary(
        self,
        name: str,
        folder: Path,
        model: PreTrainedModel,
        claim: dict[str, Any] | None,
        rows: Sequence[dict[str, Any]],
        dense: int,
    ) -> dict[str, Any]:
        macs = macs_of_model(model)
        c = macs / dense
        merged = {k: merge(rows, k) for k in self.ks}
        nonzero, parameters = nonzero_parameters(model)
        linears = [linear.weight for linear in decoder_linears(model).values()]
        size = sum(w.numel() for w in linears)
        factors = {k: improvement_factor(h.mal, k, c, VERIFY_COST) for k, h in merged.items()}
        return {
            "name": name,
            "path": str(folder),
            "k": {
                str(k): {
                    "mal": h.mal,
                    "acceptance_rate": h.acceptance_rate,
                    "histogram": h.counts,
                    "steps": h.steps,
                    "tokens": h.tokens,
                    "improvement_factor": factors[k],
                }
                for k, h in merged.items()
            },
            "alpha": mean_alpha(rows),
            "macs_per_token": macs,
            "macs_vs_dense": c,
            "nonzero_params": nonzero,
            "pattern": claim["pattern"] if claim else "dense",
            "sparsity": sum(count_zeros(w) for w in linears) / size,
            "sparsity_whole_model": 1 - nonzero / parameters,
            "c": c,
            "v": VERIFY_COST,
            "break_even": {str(k): break_even(k, c, VERIFY_COST) for k in self.ks},
            "best_k": max(factors, key=lambda k: factors[k]),
            "by_category": self._by_category(rows),
        }

    def _by_category(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        found = {}
        for category in sorted({row["category"] for row in rows}):
            mine = [row for row in rows if row["category"] == category]
            mal = {str(k): merge(mine, k).mal for k in self.ks}
            found[category] = {"alpha": mean_alpha(mine), "sequences": len(mine), "mal": mal}
        return found

    def _write_example(self, shown: Sequence[dict[str, Any]]) -> None:
        """A generation, step by step, by the drafter with the greatest MAL on the first answer of some length."""
        k = self.ks[len(self.ks) // 2] if 5 not in self.ks else 5
        best = max(shown, key=lambda drafter: drafter["k"][str(k)]["mal"])
        answer = next((a for a in self.answers if len(a.answer_ids) >= 32), self.answers[0])
        console.print(f"worked example: {answer.id} by {best['name']}")
        steps = speculate(
            TransformersBackend(self.target),
            TransformersBackend(self._load(self.drafters[best["name"]])),
            answer.prompt_ids,
            k=k,
            max_new_tokens=self.options.max_new_tokens,
            sampling=self.options.sampling,
            eos_ids=self.eos_ids,
            seed=self.options.seed,
        )
        text = self.tokenizer.decode
        example = {
            "drafter": best["name"],
            "k": k,
            "prompt_id": answer.prompt_id,
            "prompt": answer.messages[-2]["content"],
            "steps": [
                {
                    "drafted": [text([token]) for token in step.drafted],
                    "accepted": step.accepted,
                    "target": text([step.emitted[-1]]) if len(step.emitted) > step.accepted else None,
                }
                for step in steps
            ],
        }
        artifact.write_json(self.work / "example.json", example)


def merge(rows: Sequence[dict[str, Any]], k: int) -> Histogram:
    """The histogram of all `rows` together for K = k."""
    total = Histogram(k)
    for row in rows:
        total += Histogram.from_dict(k, row["histograms"][str(k)])
    return total


def mean_alpha(rows: Sequence[dict[str, Any]]) -> float:
    """α over all positions: each token weighs the same, whichever sequence it is in."""
    return sum(row["alpha"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows)
