"""The `eval` stage: drafters against a target, the target's work shared by all of them.

The target answers every prompt once. Each drafter is then read over those answers (α, and with `simulate` the greedy
histograms of every K), or drafts in the real loop, K by K and policy by policy, timed against the target alone.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft import artifact, checkpoint, prompts
from sparsedraft.console import console, track
from sparsedraft.conversation import Answer, answer_all
from sparsedraft.errors import UserError
from sparsedraft.journal import read_lines
from sparsedraft.measure import loop, summary
from sparsedraft.measure.simulate import Acceptance, acceptance, acceptance_of, expected, simulate
from sparsedraft.measure.speedup import break_even, improvement_factor
from sparsedraft.runtime.weights import is_packed, pattern_of
from sparsedraft.speculate.drafters import VocabularyMap
from sparsedraft.speculate.lookahead import NAMES, Constant, Policy, policy_named
from sparsedraft.speculate.pair import LOOKUP, Pair, check_route
from sparsedraft.speculate.sampling import Sampling
from sparsedraft.speculate.side import Side

VERIFY_COST = 1.0  # v: one target pass verifies K+1 tokens at the cost of one, as long as memory binds
POLICIES = tuple(name for name in NAMES if name != "constant")


@dataclass(frozen=True)
class Options:
    """How to evaluate; lengths in tokens. `k` holds numbers of drafts, and policies by name."""

    k: tuple[int | str, ...] | list[int | str] = (1, 2, 3, 5, 8)
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    simulate: bool = False
    uag: str = "auto"
    tree: int = 1  # branching of draft trees; 1: chains
    max_new_tokens: int = 128
    batch_size: int = 32
    limit: int | None = None  # prompts: the first so many,
    spread: bool = False  # or so many at equal distances, as files are often sorted by category
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    runtime: str = "auto"  # what runs the loop: native, transformers, or native where it can

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)

    @property
    def numbers(self) -> list[int]:
        """The K's that are numbers."""
        return sorted({k for k in self.k if isinstance(k, int)})

    @property
    def policies(self) -> list[str]:
        """The others."""
        return sorted({k for k in self.k if isinstance(k, str)})


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

    A drafter called "lookup" drafts from the text so far (prompt look-up). Writes result.json, rows.jsonl and
    example.json to `out` (None: nowhere). An interrupted evaluation goes on with the first sequence that is not done.
    Raises UserError for bad options, checkpoints that lie, tokenizers that differ where that cannot be.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as scratch:
            return evaluate_to(Path(scratch) / "eval", target, drafters, source, options)
    _check(options, drafters)
    chosen = prompts.read(source)
    if options.limit is not None:
        chosen = prompts.spread(chosen, options.limit) if options.spread else chosen[: options.limit]
    target_folder = checkpoint.find(target)
    folders = {name: None if ref == LOOKUP else checkpoint.find(ref) for name, ref in drafters}
    tokenizer = checkpoint.load_tokenizer(target)

    def build(work: Path) -> dict[str, Any]:
        return _Evaluation(work, target, target_folder, folders, tokenizer, chosen, options).result()

    inputs: dict[str, object] = {
        "target": target_folder,
        "drafters": {name: folder or LOOKUP for name, folder in folders.items()},
        "prompts": [[p.id, p.category, p.system, *p.turns] for p in chosen],
        "options": {**asdict(options), "k": [*options.numbers, *options.policies]},
    }
    return artifact.make(out, "eval", inputs, build, seed=options.seed, overwrite=overwrite)


def _check(options: Options, drafters: Sequence[tuple[str, str]]) -> None:
    """Refuse what cannot be before anything is loaded."""
    _ = options.sampling
    check_route(options.uag)
    if options.simulate and (options.policies or options.tree > 1):
        what = f"--k {options.policies[0]}" if options.policies else f"--tree {options.tree}"
        raise UserError(f"{what} needs the real loop: leave out --simulate.")
    if options.tree < 1:
        raise UserError(f"--tree {options.tree} is not possible: give the branching of draft trees, or 1 for chains.")
    if options.tree > 1 and all(ref == LOOKUP for _, ref in drafters):
        raise UserError(f"--tree {options.tree} needs a model that drafts: name one, or leave it out.")
    names = [name for name, _ in drafters]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two drafters are called '{twice}': name them, as in first={drafters[0][1]}.")
    if "" in names:
        raise UserError("a drafter has an empty name: name it, as in first=MODEL.")
    if options.simulate and any(ref == LOOKUP for _, ref in drafters):
        raise UserError("the drafter 'lookup' needs the real loop: leave out --simulate.")
    for name in options.policies:
        policy_named(name)


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
    ) -> None:
        self.work, self.target_name, self.options, self.tokenizer = work, target, options, tokenizer
        self.ks: list[int | str] = [*options.numbers, *options.policies]
        self.side, self.drafters = self._load(target_folder), drafters
        for folder in drafters.values():  # before the target's long work
            if folder is not None:
                self._check_tokenizer(folder)
        if options.tree > 1:
            for name, folder in drafters.items():
                if folder is not None:
                    self._check_trees(name, folder)
        self.answers = self._target_answers(chosen)
        self.place = {answer.id: index for index, answer in enumerate(self.answers)}

    def _load(self, folder: Path) -> Side:
        return Side.load(folder, dtype=self.options.dtype, device=self.options.device, runtime=self.options.runtime)

    def _check_tokenizer(self, folder: Path) -> None:
        tokenizer = checkpoint.load_tokenizer(folder)
        if tokenizer.get_vocab() == self.tokenizer.get_vocab():
            return
        if self.options.simulate:
            raise UserError(
                f"drafter {folder} has another tokenizer than the target, and only the real loop drafts across "
                "tokenizers: leave out --simulate."
            )
        if self.options.uag == "off":
            raise UserError(
                f"drafter {folder} has another tokenizer than target {self.target_name}: set --uag to auto, realign or "
                "intersection."
            )

    def _check_trees(self, name: str, folder: Path) -> None:
        pair = self._pair(name, folder)
        for policy in _policies(self.ks).values():
            pair.check_tree(self.options.tree, policy)

    def _target_answers(self, chosen: Sequence[prompts.Prompt]) -> list[Answer]:
        return answer_all(
            self.side.writer(self.options.batch_size),
            self.side.context,
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
        dense = self.side.weights()["macs_per_token"]
        rows_file = self.work / ".rows.jsonl"
        done = read_lines(rows_file)
        shown: list[dict[str, Any]] = []
        with open(rows_file, "a", encoding="utf-8") as journal:

            def complete(name: str, make: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
                rows = [row for row in done if row["drafter"] == name]
                for row in make:
                    journal.write(json.dumps(row) + "\n")
                    journal.flush()
                    rows.append(row)
                return sorted(rows, key=lambda row: self.place[row["id"]])  # whatever order an interruption brought

            def todo(name: str) -> list[Answer]:
                have = {row["id"] for row in done if row["drafter"] == name}
                return [answer for answer in self.answers if answer.id not in have]

            kept = []
            for name, folder in self.drafters.items():
                pair = self._pair(name, folder)
                claim = checkpoint.claimed_sparsity(folder) if folder else None
                rows = complete(name, self._rows(name, pair, todo(name)))
                kept += rows
                shown.append(self._summary(name, folder, pair, claim, rows, dense))
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
            "k": self.options.numbers,
            "policies": self.options.policies,
            "dense_macs_per_token": dense,
            "drafters": shown,
        }

    def _pair(self, name: str, folder: Path | None) -> Pair:
        if folder is None:
            return Pair.of(self.side, LOOKUP, "auto", self.options.sampling)
        pair = Pair.of(self.side, self._load(folder), self.options.uag, self.options.sampling)
        if pair.route != "same":
            console.print(f"{name}: {pair.route} ({pair.why})")
        return pair

    def _rows(self, name: str, pair: Pair, todo: Sequence[Answer]) -> Iterator[dict[str, Any]]:
        """One row per sequence: α, the histogram of accepted tokens for each K, and what the loop took."""
        if not todo:
            return
        read: Iterator[tuple[int, Acceptance | None]] = enumerate([None] * len(todo))
        if pair.route == "same" and pair.drafter is not None and pair.drafter.native and pair.target.native:
            read = self._read(pair.drafter, pair.vocabulary, todo)
        elif pair.route == "same" and pair.drafter is not None:
            pairs = [(answer.prompt_ids, answer.answer_ids) for answer in todo]
            p = self.side.model if self.options.temperature > 0 else None  # greedy α needs no second look at the target
            read = acceptance(pair.drafter.model, pairs, p, self.options.sampling, pair.vocabulary)
        policies = _policies(self.ks)  # of this drafter alone: they learn
        plain = Pair.of(self.side, None, "auto", self.options.sampling)
        self._warn_of_full_contexts(name, pair, todo)
        with track(f"eval {name}", sum(len(answer.answer_ids) for answer in todo), "tokens") as tracker:
            for index, found in read:
                answer = todo[index]
                timed: dict[str, Any] = {}
                if self.options.simulate and found is not None and pair.drafter is not None:
                    histograms = self._simulated(pair.drafter, answer, found)
                else:
                    # right beside, each time anew: a machine's speed moves within an evaluation
                    _, alone = self._loops(plain, answer, {0: Constant(0)})
                    histograms, loops = self._loops(pair, answer, policies)
                    timed = {"loops": loops, "alone": alone["0"]}
                row = {"drafter": name, **_named(answer), "histograms": histograms, **timed}
                tracker.advance(len(answer.answer_ids))
                yield row | {"alpha": float(found.shares.double().mean()) if found is not None else _realised(row)}

    def _simulated(self, drafter: Side, answer: Answer, found: Acceptance) -> dict[str, Any]:
        """Histograms by K: exact where decoding is greedy, expected where it samples."""
        room = self._room(drafter, answer)
        if self.options.sampling.greedy:
            return {str(k): simulate(found.kept > 0.5, int(k), *room).to_dict() for k in self.ks}
        return {str(k): expected(found.kept, int(k), *room).to_dict() for k in self.ks}

    def _read(
        self, drafter: Side, vocabulary: VocabularyMap | None, todo: Sequence[Answer]
    ) -> Iterator[tuple[int, Acceptance]]:
        """The acceptance of each answer, by engines that remember it when the loop then asks for the same."""
        sampling = self.options.sampling
        for index, answer in enumerate(todo):
            p = None if sampling.greedy else self.side.remembering()
            read = (drafter.remembering(), answer.prompt_ids, answer.answer_ids, p, sampling, vocabulary, drafter.known)
            yield index, acceptance_of(*read)

    def _warn_of_full_contexts(self, name: str, pair: Pair, todo: Sequence[Answer]) -> None:
        context = None if pair.drafter is None else pair.drafter.context
        if context is None:
            return
        asked = (pair.prompted(list(answer.prompt_ids), answer.messages[:-1]) for answer in todo)
        if full := sum(len(prompt.drafter) >= context for prompt in asked):
            console.print(
                f"{name}: {full} of {len(todo)} prompts fill the drafter's context of {context} tokens: it drafts "
                "nothing for them, and they count as such."
            )

    def _room(self, drafter: Side, answer: Answer) -> tuple[int, int | None]:
        """(tokens that the loop may write, tokens that the drafter's context then still holds)."""
        own, its = self.side.context, drafter.context
        prompt, wanted = len(answer.prompt_ids), answer.max_new_tokens
        return wanted if own is None else min(wanted, own - prompt), None if its is None else its - prompt

    def _loops(self, pair: Pair, answer: Answer, policies: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Histograms and measures of the real loop on one sequence; under greedy its output must be the target's."""
        asked = pair.prompted(list(answer.prompt_ids), answer.messages[:-1])
        histograms, loops = {}, {}
        for k, policy in policies.items():
            tokens, histograms[str(k)], loops[str(k)] = loop.run(
                pair, asked, policy, self.options.sampling, self.options.max_new_tokens, answer.seed,
                self.options.tree if k else 1, k if isinstance(k, int) else 0,
            )  # fmt: skip
            same = tokens == list(answer.answer_ids)
            exact = self.options.temperature == 0 and self.options.dtype == "float32"
            if exact and not same and answer.min_gap > 1e-3:
                raise RuntimeError(
                    f"{answer.id}: speculative output differs from the target's, and no near-tie explains it"
                )
            loops[str(k)]["same"] = same
        return histograms, loops

    def _summary(
        self,
        name: str,
        folder: Path | None,
        pair: Pair,
        claim: dict[str, Any] | None,
        rows: Sequence[dict[str, Any]],
        dense: int,
    ) -> dict[str, Any]:
        figures = pair.drafter.weights() if pair.drafter else {"macs_per_token": 0}
        c = figures["macs_per_token"] / dense
        by_k = {str(k): self._at(rows, k, c) for k in self.ks}
        factors = {k: by_k[str(k)]["improvement_factor"] for k in self.options.numbers}
        return {
            "name": name,
            "path": str(folder or LOOKUP),
            "route": pair.route,
            "k": by_k,
            "alpha": summary.mean_alpha(rows),
            "alpha_interval": summary.alpha_interval(rows),
            "alpha_of": "the target's text" if pair.route == "same" else "drafts in the loop",
            **figures,
            "macs_vs_dense": c,
            "pattern": _pattern(folder, claim),
            "c": c,
            "v": VERIFY_COST,
            "break_even": {str(k): break_even(k, c, VERIFY_COST) for k in self.options.numbers},
            "best_k": max(factors, key=lambda k: factors[k]) if factors else self.ks[0],
            "by_category": summary.by_category(rows, self.ks),
            **self._by_task(rows),
        }

    def _at(self, rows: Sequence[dict[str, Any]], k: int | str, c: float) -> dict[str, Any]:
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
            "improvement_factor": improvement_factor(h.mal, k, c, VERIFY_COST)
            if isinstance(k, int)
            else h.mal / (VERIFY_COST + drafted * c),
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
        decoder = pair.decoder([asked], Constant(k), self.options.sampling)
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
                for step in decoder.decode([asked.target], self.options.max_new_tokens, [answer.seed])
            ],
        }
        artifact.write_json(self.work / "example.json", example)


def _policies(ks: Sequence[int | str]) -> dict[Any, Policy]:
    return {k: Constant(k) if isinstance(k, int) else policy_named(k) for k in ks}


def _named(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "prompt": answer.prompt_id,
        "category": answer.category,
        "tokens": len(answer.answer_ids),
    }


def _realised(row: dict[str, Any]) -> float:
    """Accepted of the drafts that were compared, over all K's: what stands for α where tokenizers differ."""
    accepted, compared = (sum(found[key] for found in row["loops"].values()) for key in ("accepted", "compared"))
    return accepted / compared if compared else 0.0


def _pattern(folder: Path | None, claim: dict[str, Any] | None) -> str:
    """How a drafter is sparse, as its checkpoint says; "none" where no model drafts."""
    if folder is None:
        return "none"
    if is_packed(folder):
        return pattern_of(folder)
    return claim["pattern"] if claim else "dense"
