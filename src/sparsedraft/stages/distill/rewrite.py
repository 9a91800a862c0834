"""Mode `rewrite`: the target gets a task and a reference answer, and writes that answer in its own words."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sparsedraft.base.errors import UserError
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_of_turn
from sparsedraft.stages.distill.rewriting_faults import rewriting_fault
from sparsedraft.text.prompts import Prompt
from sparsedraft.text.sample import Sample
from sparsedraft.writers.conversation import Answer, Responder

INSTRUCTION = (
    "Below are a task and a reference answer to it. With the reference as your guide, answer the task in your own "
    "words, as you would have answered it yourself. Keep the facts and the final result of the reference, do not "
    "mention it, and write nothing but the answer.\n\nTask:\n{task}\n\nReference answer:\n{reference}"
)


def with_references(chosen: Sequence[Prompt], bad: list[str] | None = None) -> list[Prompt]:
    """The prompts that have a reference answer to every turn.

    Raises UserError for a prompt that lacks one; or, if `bad` is a list, appends the reason to it and skips the prompt.
    It is always an error if none is left.
    """
    complete: list[Prompt] = []
    why = ""
    for prompt in chosen:
        if len(prompt.references) >= len(prompt.turns):
            complete.append(prompt)
            continue
        why = (
            f"prompt {prompt.id} has {len(prompt.references)} reference answers to {len(prompt.turns)} turns, and "
            "--mode rewrite rewrites every one: give 'output' or assistant messages, or use --mode respond."
        )
        if bad is None:
            raise UserError(why)
        bad.append(why)
    if not complete:
        raise UserError(why)
    return complete


def as_asked(prompt: Prompt) -> Prompt:
    """The prompt as the target reads it: each turn contains its reference."""
    asked = zip(prompt.turns, prompt.references, strict=False)
    return replace(prompt, turns=tuple(INSTRUCTION.format(task=t, reference=r) for t, r in asked))


def rewrite(responder: Responder, chosen: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Rows of every turn; the answer is the rewritten reference where `rewriting_fault` finds none, else the reference.

    A row's `source` says which, and its `note` why the reference stayed. No row's prompt contains the reference: the
    drafter learns to answer the task alone.
    """
    kept: dict[str, Answer] = {}
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(max(len(p.turns) for p in chosen)):
        asked, plain = [], {}
        for p in chosen:
            for s in range(responder.samples if len(p.turns) > turn else 0):
                earlier = [kept[responder.name(p, t, s)] for t in range(turn)]
                said = [answer.messages[-1]["content"] for answer in earlier]
                own = p.messages(said)
                task = INSTRUCTION.format(task=p.turns[turn], reference=p.references[turn])
                shown = replace(p, turns=(*p.turns[:turn], task, *p.turns[turn + 1 :])).messages(said)
                asked.append(responder.ask(p, turn, s, shown, earlier))
                plain[asked[-1].id] = (own, p.references[turn])
        responder.write(asked, top_k_logprobs=0)  # what it would say without the reference is scored below
        for answer in asked:
            kept[answer.id] = answer
            if answer.dropped:
                continue
            own, reference = plain[answer.id]
            why = rewriting_fault(reference, answer.messages[-1]["content"], answer.finish_reason)
            _settle(responder, answer, own, reference if why else "")
            rows[answer.id] = {"source": "reference" if why else "rewritten", "note": why}
    if responder.top_k_logprobs:
        _score(responder, [answer for answer in kept.values() if not answer.dropped])
    names = [responder.name(p, t, s) for p in chosen for s in range(responder.samples) for t in range(len(p.turns))]
    return [{**asdict(kept[name]), **rows.get(name, {})} for name in names]


def _settle(responder: Responder, answer: Answer, messages: list[dict[str, str]], reference: str) -> None:
    """Give the row the plain task as its prompt, and the answer, or the `reference` instead of it."""
    text = reference or answer.messages[-1]["content"]
    answer.prompt_ids = templates.chat_ids(responder.tokenizer, messages)
    answer.messages = [*messages, {"role": "assistant", "content": text}]
    if reference:
        ids = responder.tokenizer(text, add_special_tokens=False)["input_ids"]
        answer.answer_ids = [*ids, *end_of_turn(responder.tokenizer)]
        answer.finish_reason = "eos"


def _score(responder: Responder, answers: Sequence[Answer]) -> None:
    """The target's likeliest tokens at every place of the answers, given the task alone."""
    samples = [Sample(a.id, a.prompt_ids, a.answer_ids) for a in answers]
    scored = responder.writer.score(samples, responder.top_k_logprobs)
    for answer, (ids, logprobs) in zip(answers, scored, strict=True):
        answer.topk_ids, answer.topk_logprobs = ids, [float(f"{v:.5g}") for v in logprobs]
