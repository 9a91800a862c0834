"""How a study scores a drafter: α and MAL on a target's own answers, by simulation."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from sparsedraft.base.hashing import stable_order
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.stages.evaluate.rows import allowed
from sparsedraft.stages.evaluate.simulation import acceptance, simulate
from sparsedraft.stages.evaluate.summary import mean_alpha, merge
from sparsedraft.stages.finetune import quantize
from sparsedraft.text import prompts
from sparsedraft.writers.conversation import Answer, Responder, answer_all
from sparsedraft.writers.loaded import LoadedModel

KS = (3, 5, 8)
OTHER_TASKS = ("translation", "summarization", "qa", "math_reasoning", "rag")  # the rest of Spec-Bench is MT-Bench


def select(source: str, each: int | None) -> list[prompts.Prompt]:
    """The prompts of `source`; with `each`, only so many of every task: those with the smallest SHA-256 of their id."""
    questions = prompts.read(source)
    if each is None:
        return questions
    tasks: dict[str, list[prompts.Prompt]] = defaultdict(list)
    for prompt in stable_order(questions, lambda prompt: prompt.id):
        tasks[prompt.category if prompt.category in OTHER_TASKS else "mt_bench"].append(prompt)
    return [prompt for task in sorted(tasks) for prompt in tasks[task][:each]]


def answers_of(target: str, questions: list[prompts.Prompt], new_tokens: int, folder: Path) -> list[Answer]:
    """The target's greedy answers; from the journal where they are done."""
    model = LoadedModel.load(target, runtime="transformers")
    return answer_all(
        Responder(model.writer(16), model.tokenizer, Sampling(), new_tokens, context=model.context), questions,
        journal=folder / "target.jsonl", description="target answers", batch_size=16,
    )  # fmt: skip


def score(drafter: Path, answers: list[Answer], quantized: str = "none", dtype: str = "float32") -> dict[str, Any]:
    """α and MAL of the drafter in `drafter` on the target's answers, and α answer by answer.

    With `quantized` int8 or int4, of the drafter with its linears rounded so.
    """
    model = checkpoint.load(drafter, dtype=checkpoint.dtype_named(dtype))
    quantize.install(model, quantized)
    pairs = [(a.prompt_ids, a.answer_ids) for a in answers]
    rows: dict[int, dict[str, Any]] = {}
    for index, (shares, _) in acceptance(model, pairs, None, Sampling()):
        answer = answers[index]
        histograms = {str(k): simulate(shares > 0.5, k, allowed(answer)).to_dict() for k in KS}
        alpha = float(shares.double().mean())
        rows[index] = {"alpha": alpha, "tokens": len(answer.answer_ids), "histograms": histograms}
    scored = list(rows.values())
    each = [[rows[i]["alpha"], rows[i]["tokens"]] for i in sorted(rows)]
    return {"alpha": mean_alpha(scored), **{f"mal_{k}": merge(scored, k).mal for k in KS}, "answers": each}
