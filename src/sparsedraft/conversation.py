"""A model answers prompts turn by turn, its own earlier answers in context; what is finished survives a kill.

The unit of work that is committed is a group of rows which are decoded together, because the last bits of a row's
logits depend on its neighbours in the batch: a killed run redoes the group that was under way, with the same
neighbours, and so ends with the same bytes as an uninterrupted one.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsedraft import checkpoint, prompts
from sparsedraft.console import track
from sparsedraft.generation import Output, Request, check_fits, generate_batch
from sparsedraft.prompts import Prompt
from sparsedraft.speculate.sampling import Sampling

GROUP = 2  # batches' worth of rows that are committed together


@dataclass
class Answer:
    """One answered turn. `messages` is the whole conversation, this answer included."""

    id: str
    prompt_id: str
    category: str
    turn: int
    sample: int
    messages: list[dict[str, str]]
    prompt_ids: list[int]
    answer_ids: list[int]  # with the end-of-turn token, if the model ended itself
    finish_reason: str  # "eos" or "length"
    seed: int
    min_gap: float  # smallest lead of the best logit over the next
    max_new_tokens: int
    topk_ids: list[int] = field(default_factory=list)  # k per answer token, flattened
    topk_logprobs: list[float] = field(default_factory=list)


def answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Prompt],
    *,
    journal: Path,
    description: str,
    sampling: Sampling,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    samples: int = 1,
    top_k_logprobs: int = 0,
) -> list[Answer]:
    """Answers to every turn of every prompt, in the prompts' order; each sample is a conversation of its own.

    `journal` is a JSON-lines file of finished groups that an interrupted call with the same arguments left.
    """
    eos_ids = checkpoint.eos_ids(model, tokenizer)
    done = {row["id"]: Answer(**row) for group in read_journal(journal) for row in group}
    total = sum(len(p.turns) for p in chosen) * samples
    start, written = time.monotonic(), 0
    with track(description, total, "answers") as tracker, open(journal, "a", encoding="utf-8") as file:
        tracker.advance(len(done))
        for turn in range(max(len(p.turns) for p in chosen)):
            todo = [(p, s) for p in chosen if len(p.turns) > turn for s in range(samples)]
            asked = []
            for p, s in todo:
                earlier = [done[_name(p, t, s, samples)].messages[-1]["content"] for t in range(turn)]
                name, messages = _name(p, turn, s, samples), p.messages(earlier)
                ids = prompts.chat_ids(tokenizer, messages)
                own = _seed(seed, name)
                asked.append(Answer(name, p.id, p.category, turn, s, messages, ids, [], "", own, 0.0, max_new_tokens))
            # All of them now, not group by group: the longest come last, and mending a prompt starts the work anew.
            check_fits(model, [_request(answer) for answer in asked])
            for group in _groups(asked, GROUP * batch_size):
                if all(answer.id in done for answer in group):
                    continue
                by_id = {answer.id: answer for answer in group}
                for output in generate_batch(
                    model,
                    [_request(answer) for answer in group],
                    batch_size=batch_size,
                    sampling=sampling,
                    eos_ids=eos_ids,
                    top_k_logprobs=top_k_logprobs,
                ):
                    _complete(by_id[output.id], output, tokenizer, eos_ids)
                    written += len(output.token_ids)
                    tracker.advance()
                    tracker.note(f"{written / (time.monotonic() - start):.0f} tokens/s")
                file.write(json.dumps([asdict(answer) for answer in group]) + "\n")
                file.flush()
                done |= by_id
    wanted = [_name(p, t, s, samples) for p in chosen for s in range(samples) for t in range(len(p.turns))]
    return [done[name] for name in wanted]


def _request(answer: Answer) -> Request:
    return Request(answer.id, answer.prompt_ids, answer.max_new_tokens, answer.seed)


def _name(prompt: Prompt, turn: int, sample: int, samples: int) -> str:
    return f"{prompt.id}/{turn}" + (f"#{sample}" if samples > 1 else "")


def _seed(seed: int, name: str) -> int:
    """A row's own seed, so that its text does not depend on which rows were sampled before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


def _groups(asked: Sequence[Answer], size: int) -> Iterator[list[Answer]]:
    """Rows of like prompt length together."""
    ordered = sorted(asked, key=lambda a: (len(a.prompt_ids), a.id))
    yield from (ordered[i : i + size] for i in range(0, len(ordered), size))


def _complete(answer: Answer, output: Output, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]) -> None:
    """Fill in what the model wrote."""
    text_ids = [token for token in output.token_ids if token not in eos_ids]
    answer.answer_ids, answer.finish_reason, answer.min_gap = output.token_ids, output.finish_reason, output.min_gap
    answer.messages = [*answer.messages, {"role": "assistant", "content": str(tokenizer.decode(text_ids)).strip()}]
    answer.topk_ids = [i for row in output.topk_ids for i in row]
    answer.topk_logprobs = [float(f"{v:.5g}") for row in output.topk_logprobs for v in row]  # float16 holds less


def read_journal(path: Path) -> Iterator[Any]:
    """The whole lines of a JSON-lines journal; a line torn by a kill is cut off the file."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    yield from (json.loads(line) for line in whole.splitlines())
