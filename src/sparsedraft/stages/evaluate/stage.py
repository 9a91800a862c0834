"""The `eval` stage: drafters against a target, the target's work shared by all of them.

The target answers every prompt once. Each drafter is then read over those answers (α, and with `simulate` the
histograms of every K), or drafts in the real loop, K by K and policy by policy, timed against the target alone.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.base import artifact
from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.journal import read_lines
from sparsedraft.models import checkpoint, claims, quantizers
from sparsedraft.models.shards import Shards
from sparsedraft.models.sources import locate
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.native.packed_folder import is_packed, pattern_of
from sparsedraft.speculate.pair import LOOKUP, Pair
from sparsedraft.speculate.policy.learned import policies
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.stages.evaluate import summary
from sparsedraft.stages.evaluate.memo import MOST, TargetLogits
from sparsedraft.stages.evaluate.options import Options
from sparsedraft.stages.evaluate.rows import Measurement, allowed, alpha_of
from sparsedraft.stages.evaluate.servertarget import ServerTarget
from sparsedraft.stages.evaluate.speedup import break_even, improvement_factor
from sparsedraft.stages.evaluate.transcript import Transcript
from sparsedraft.text import prompts
from sparsedraft.writers.conversation import Answer, Responder, answer_all
from sparsedraft.writers.loaded import LoadedModel, check_drafts
from sparsedraft.writers.server.address import Endpoint

ANSWERS, ROWS = "answers.jsonl", "rows.jsonl"  # with a dot in front: those of an evaluation under way
# options that are no part of the result's: where and how fast a server answers, and what is an input of its own
ELSEWHERE = ("url", "served_name", "concurrency", "template_args")
NEEDED = ("drafter", "id", "prompt", "category", "tokens", "histograms", "alpha")  # of a row
VERIFY_COST = 1.0  # v: one target pass verifies K+1 tokens at the cost of one, as long as memory binds


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

    A drafter called "lookup" drafts from the text so far (prompt look-up). Writes result.json, rows.jsonl,
    answers.jsonl (the target's, by unit of work) and example.json to `out` (None: nowhere). An interrupted evaluation
    goes on with the first sequence that is not done, and a finished one takes more drafters beside those it has.
    Raises UserError for bad options, checkpoints that lie, tokenizers that differ where that cannot be.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as scratch:
            return evaluate_to(Path(scratch) / "eval", target, drafters, source, options)
    options.check(drafters)
    chosen = prompts.read(source)
    if options.limit is not None:
        chosen = prompts.spread(chosen, options.limit) if options.spread else chosen[: options.limit]
    endpoint = Endpoint(options.url, options.served_name or target, options.concurrency) if options.url else None
    target_folder = locate(target, weights=False) if endpoint else checkpoint.find(target)
    folders = {name: None if ref == LOOKUP else checkpoint.find(ref) for name, ref in drafters}
    tokenizer = templates.give(checkpoint.load_tokenizer(target), options.template_args)
    templates.check(tokenizer, options.template_args)

    def build(work: Path) -> dict[str, Any]:
        taken = [] if overwrite else _take_up(out, work)
        try:
            return _Evaluation(work, target, target_folder, folders, tokenizer, chosen, options, endpoint).result()
        except UserError:
            for file, size in taken:  # nothing was added: what was refused leaves no work that the mended call trips on
                if file.stat().st_size == size:
                    file.unlink()
            raise

    inputs: dict[str, object] = {
        "target": checkpoint.described(target_folder) if endpoint else target_folder,
        "drafters": {name: folder or LOOKUP for name, folder in folders.items()},
        "prompts": [p.described for p in chosen],
        **templates.inputs(options.template_args),
        "options": {
            **{key: value for key, value in asdict(options).items() if key not in ELSEWHERE},
            "k": [*options.numbers, *options.policies],
            **({"served": endpoint.served} if endpoint else {}),
        },
    }
    reads = (target, source, *(ref for _, ref in drafters if ref != LOOKUP))
    return artifact.make(
        out,
        "eval",
        inputs,
        build,
        seed=options.seed,
        overwrite=overwrite,
        tolerance=artifact.Tolerance(grows="drafters"),
        reads=reads,
    )


def _take_up(finished: Path, work: Path) -> list[tuple[Path, int]]:
    """Go on from a finished evaluation of fewer drafters, if one lies there and `work` has no answers of its own: its
    answers and rows stand.

    Returns what was copied into `work`, with its bytes.
    """
    if (work / f".{ANSWERS}").exists() or not (finished / ANSWERS).exists():
        return []
    taken = []
    for name in (ROWS, ANSWERS):  # in this order: rows without their answers are copied again
        with artifact.write_atomic(work / f".{name}") as temporary:
            shutil.copy(finished / name, temporary)
        taken.append((work / f".{name}", (finished / name).stat().st_size))
    return taken


class _Evaluation:
    """One evaluation under way; everything that took long is in files of the work folder."""

    def __init__(
        self,
        work: Path,
        target: str,
        target_folder: Path,
        drafters: dict[str, Path | None],
        tokenizer: PreTrainedTokenizerBase,
        chosen: Sequence[prompts.Prompt],
        options: Options,
        endpoint: Endpoint | None = None,
    ) -> None:
        self.work, self.target_name, self.options, self.tokenizer = work, target, options, tokenizer
        self.ks: list[int | str] = [*options.numbers, *options.policies]
        self.side = (
            ServerTarget(target_folder, endpoint, options.template_args) if endpoint else self._load(target_folder)
        )
        self.drafters = drafters
        if not options.simulate:
            self.side.check_takes_back("verify drafts: give --simulate")
        for folder in drafters.values():  # before the target's long work
            if folder is not None:
                quantizers.check_runs(folder, checkpoint.read_config(folder), Shards(folder), options.device)
                self._check_tokenizer(folder)
                check_drafts(folder)
        if options.tree > 1:
            for name, folder in drafters.items():
                if folder is not None:
                    self._check_trees(name, folder)
        self.answers = self._target_answers(chosen)
        self.place = {answer.id: index for index, answer in enumerate(self.answers)}

    def _load(self, folder: Path) -> LoadedModel:
        o = self.options
        return LoadedModel.load(
            folder, dtype=o.dtype, device=o.device, runtime=o.runtime, template_args=o.template_args
        )

    def _check_tokenizer(self, folder: Path) -> None:
        tokenizer = checkpoint.load_tokenizer(folder)
        if tokenizer.get_vocab() == self.tokenizer.get_vocab():
            return
        if self.options.uag == "off":
            raise UserError(
                f"drafter {folder} has another tokenizer than target {self.target_name}: set --uag to auto, realign or "
                "intersection."
            )

    def _check_trees(self, name: str, folder: Path) -> None:
        pair = self._pair(name, folder)
        for policy in policies(self.ks).values():
            pair.check_tree(self.options.tree, policy)

    def _target_answers(self, chosen: Sequence[prompts.Prompt]) -> list[Answer]:
        o = self.options
        responder = Responder(
            self.side.writer(o.batch_size),
            self.tokenizer,
            o.sampling,
            o.max_new_tokens,
            o.seed,
            context=self.side.context,
        )
        return answer_all(
            responder,
            chosen,
            journal=self.work / f".{ANSWERS}",
            description="target answers",
            batch_size=o.batch_size,
            concurrency=o.concurrency if isinstance(self.side, ServerTarget) else 0,
        )

    def result(self) -> dict[str, Any]:
        dense = self.side.weights()["macs_per_token"]
        again = len(self.drafters) > 1  # what a single drafter asks for, nobody asks for again
        theirs = TargetLogits(self.side, self.work / ".target-logits", MOST if again else 0)
        rows_file = self.work / f".{ROWS}"
        done = read_lines(rows_file, NEEDED)
        shown: list[dict[str, Any]] = []
        with open(rows_file, "a", encoding="utf-8") as journal:

            def complete(name: str, make: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
                rows = [row for row in done if row["drafter"] == name]
                for row in make:
                    journal.write(json.dumps(row) + "\n")
                    journal.flush()
                    rows.append(row)
                return sorted(rows, key=lambda row: self.place[row["id"]])  # whatever order an interruption brought

            kept = []
            for name, folder in self.drafters.items():
                pair = self._pair(name, folder)
                claim = claims.claim_of(folder) if folder else None
                have = {row["id"] for row in done if row["drafter"] == name}
                reader = Measurement(name, pair, self.ks, self.options, theirs, self.work)
                rows = complete(name, reader.rows(self.answers, have))
                kept += rows
                shown.append(self._summary(name, folder, pair, claim, rows, dense))
                del pair  # before the next drafter is loaded
        with artifact.write_atomic(self.work / ROWS) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        with artifact.write_atomic(self.work / ANSWERS) as temporary:
            shutil.copy(self.work / f".{ANSWERS}", temporary)
        self._write_example(shown)
        return {
            "target": self.target_name,
            "temperature": self.options.temperature,
            "simulated": self.options.simulate,
            "prompts": len({answer.prompt_id for answer in self.answers}),
            "sequences": len(self.answers),
            "target_tokens": sum(len(answer.answer_ids) for answer in self.answers),
            "near_ties": sum(answer.min_gap < 1e-4 for answer in self.answers),
            "k": self.options.numbers,
            "policies": self.options.policies,
            "dense_macs_per_token": dense,
            "drafters": shown,
        }

    def _pair(self, name: str, folder: Path | None) -> Pair:
        if folder is None:
            return Pair.of(self.side, LOOKUP, "auto", self.options.sampling, not self.options.simulate)
        drafter = self._load(folder)
        pair = Pair.of(self.side, drafter, self.options.uag, self.options.sampling, not self.options.simulate)
        if pair.route != "same":
            console.print(f"{name}: {pair.route} ({pair.why})")
        return pair

    def _summary(
        self,
        name: str,
        folder: Path | None,
        pair: Pair,
        claim: dict[str, Any] | None,
        rows: Sequence[dict[str, Any]],
        dense: int | None,
    ) -> dict[str, Any]:
        figures = pair.drafter.weights() if pair.drafter else {"macs_per_token": 0}
        own = figures["macs_per_token"]
        c = None if own is None or not dense else own / dense  # None: nothing of theory can be said
        by_k = {str(k): self._at(rows, k, c) for k in self.ks}
        factors = {} if c is None else {k: by_k[str(k)]["improvement_factor"] for k in self.options.numbers}
        best = max(factors, key=lambda k: factors[k]) if factors else None
        return {
            "name": name,
            "path": str(folder or LOOKUP),
            "route": pair.route,
            "k": by_k,
            "alpha": summary.mean_alpha(rows),
            "alpha_interval": summary.alpha_interval(rows),
            "alpha_of": alpha_of(pair, self.options),
            **figures,
            "macs_vs_dense": c,
            "pattern": _pattern(folder, claim),
            "c": c,
            "v": VERIFY_COST,
            "break_even": {str(k): None if c is None else break_even(k, c, VERIFY_COST) for k in self.options.numbers},
            "best_k": best if self.options.numbers else self.ks[0],
            "by_category": summary.by_category(rows, self.ks),
            **self._by_task(rows),
        }

    def _at(self, rows: Sequence[dict[str, Any]], k: int | str, c: float | None) -> dict[str, Any]:
        """The figures of one K or policy."""
        h = summary.merge(rows, k)
        drafted = h.drafted / h.steps  # fewer than K at the ends, and whatever a policy chose
        found: dict[str, Any] = {
            "mal": h.mal,
            "mal_interval": summary.mal_interval(rows, k),
            "acceptance_rate": h.acceptance_rate,
            "histogram": h.counts,
            "steps": h.steps,
            "tokens": h.tokens,
            "drafted_per_step": drafted,
            "improvement_factor": None
            if c is None
            else improvement_factor(h.mal, k if isinstance(k, int) else drafted, c, VERIFY_COST),
        }
        if not self.options.simulate:
            measured = summary.timed(rows, k)
            if measured and isinstance(k, int):
                measured["break_even"] = break_even(k, measured["c"], measured["v"])
            if (sampled := summary.agreement(rows, k)) is not None:
                measured["acceptance"] = sampled
            if self.options.temperature == 0:
                measured["differing"] = sum(not row["loops"][str(k)]["same"] for row in rows)
            found["measured"] = measured
        return found

    def _by_task(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Spec-Bench's own table, where these are its categories."""
        if not summary.is_spec_bench(rows):
            return {}
        return {"by_task": summary.by_category(rows, self.ks, summary.spec_bench_task)}

    def _write_example(self, shown: Sequence[dict[str, Any]]) -> None:
        """A generation, step by step, by the drafter with the greatest MAL on the first answer of some length."""
        numbers = self.options.numbers or [5]
        k = 5 if 5 in numbers else numbers[len(numbers) // 2]
        at = str(k) if str(k) in shown[0]["k"] else str(self.ks[0])
        best = max(shown, key=lambda drafter: drafter["k"][at]["mal"])
        answer = next((a for a in self.answers if len(a.answer_ids) >= 32), self.answers[0])
        console.print(f"worked example: {answer.id} by {best['name']}")
        pair = self._pair(best["name"], self.drafters[best["name"]])
        asked = pair.prompted(list(answer.prompt_ids), answer.messages[:-1])
        simulated = self.options.simulate and self.options.sampling.greedy
        known = Transcript.of(self.side, [answer]) if simulated else None
        decoder = pair.decoder([asked], Constant(k), self.options.sampling, target=known)
        example = {
            "drafter": best["name"],
            "k": k,
            "prompt_id": answer.prompt_id,
            "prompt": answer.messages[-2]["content"],
            "steps": [
                {
                    "drafted": [self._word(token) for token in step.drafted],
                    "accepted": step.accepted,
                    "target": self._word(step.emitted[-1]) if len(step.emitted) > step.accepted else None,
                }
                for step in decoder.decode([asked.target], allowed(answer), [answer.seed])
            ],
        }
        artifact.write_json(self.work / "example.json", example)

    def _word(self, token: int) -> str:
        return text_of(self.tokenizer, [token], special=True)


def _pattern(folder: Path | None, claim: dict[str, Any] | None) -> str:
    """How a drafter is sparse, as its checkpoint says; "none" where no model drafts."""
    if folder is None:
        return "none"
    if is_packed(folder):
        return pattern_of(folder)
    return claim["pattern"] if claim else "dense"
