"""A model answers prompts turn by turn, with its earlier answers in context; finished answers survive a kill."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.console import Tracker, console, track
from sparsedraft.base.errors import UserError
from sparsedraft.base.hashing import seed_of
from sparsedraft.base.journal import Journal
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.text.prompts import Prompt
from sparsedraft.writers.protocol.requests import Completion, Request
from sparsedraft.writers.protocol.writer import Writer
from sparsedraft.writers.units import GROUP, key_of, keys_of, run_units, units_of

DAY = "template_date"  # of a row: the day that its prompt told the model, where that was not the pinned one
FULL, REFUSED = "no room in the context", "refused by the server"  # why an Answer was dropped


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
    dropped: str = ""  # why it was not written


@dataclass
class Responder:
    """A writer and how it answers conversations. `on_completion` is called with every finished answer.

    With a `context`, in tokens, a turn that no longer fits is dropped, and so are the turns after it.
    """

    writer: Writer
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    max_new_tokens: int
    seed: int = 0
    samples: int = 1
    top_k_logprobs: int = 0
    on_completion: Callable[[Completion], None] = lambda output: None
    context: int | None = None

    def name(self, prompt: Prompt, turn: int, sample: int) -> str:
        """The id of a row."""
        return f"{prompt.id}/{turn}" + (f"#{sample}" if self.samples > 1 else "")

    def ask(
        self, prompt: Prompt, turn: int, sample: int, messages: list[dict[str, str]], earlier: Sequence[Answer] = ()
    ) -> Answer:
        """An answer to be written, after the `earlier` ones of its conversation; dropped where it cannot be written."""
        name = self.name(prompt, turn, sample)
        ids = templates.chat_ids(self.tokenizer, messages)
        full = self.context is not None and len(ids) + self.max_new_tokens > self.context
        dropped = next((answer.dropped for answer in earlier if answer.dropped), FULL if full else "")
        return Answer(
            name, prompt.id, prompt.category, turn, sample, messages, ids, [], "", seed_of(self.seed, name), 0.0,
            self.max_new_tokens, dropped=dropped,
        )  # fmt: skip

    def write(self, answers: Sequence[Answer], top_k_logprobs: int | None = None) -> None:
        """Let the writer fill in the answers that were not dropped."""
        answers = [answer for answer in answers if not answer.dropped]
        k = self.top_k_logprobs if top_k_logprobs is None else top_k_logprobs
        by_id = {answer.id: answer for answer in answers}
        requests = [Request(a.id, a.prompt_ids, a.max_new_tokens, a.seed, a.messages) for a in answers]
        for output in self.writer.generate(requests, self.sampling, k):
            _complete(by_id[output.id], output, self.tokenizer, self.writer.eos_ids)
            self.on_completion(output)


def respond(responder: Responder, prompts: Sequence[Prompt]) -> list[Answer]:
    """Answers to every turn of the prompts, in their order; each sample is a conversation of its own."""
    done: dict[str, Answer] = {}
    for turn in range(max(len(p.turns) for p in prompts)):
        answers = []
        for p in prompts:
            for s in range(responder.samples if len(p.turns) > turn else 0):
                earlier = [done[responder.name(p, t, s)] for t in range(turn)]
                messages = p.messages([answer.messages[-1]["content"] for answer in earlier])
                answers.append(responder.ask(p, turn, s, messages, earlier))
        responder.write(answers)
        done |= {answer.id: answer for answer in answers}
    return [
        done[responder.name(p, t, s)] for p in prompts for s in range(responder.samples) for t in range(len(p.turns))
    ]


def fits(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_new_tokens: int, context: int | None
) -> list[tuple[int, str]]:
    """(prompt tokens of the first turn, "" or why it cannot be asked) of every prompt: it cannot fit `context`, or the
    chat template refuses its messages.

    A later turn is counted with empty answers before it: what the answers add is known only when they are written.
    """
    checked = []
    for prompt in prompts:
        try:
            first = count = len(templates.chat_ids(tokenizer, prompt.messages()))
            if len(prompt.turns) > 1:
                count = len(templates.chat_ids(tokenizer, prompt.messages([""] * (len(prompt.turns) - 1))))
        except templates.Refused as error:
            checked.append((0, f"prompt {prompt.id}: {str(error).removesuffix('.')}"))
            continue
        why = ""
        if context is not None and count + max_new_tokens > context:
            why = (
                f"prompt {prompt.id} has {count} tokens, which with {max_new_tokens} new ones exceed the context of "
                f"{context}: shorten it, or lower --max-new-tokens"
            )
        checked.append((first, why))
    return checked


class Rate:
    """Shows finished answers and their rate on a progress bar."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self.start, self.tokens = tracker, time.monotonic(), 0

    def __call__(self, output: Completion) -> None:
        """Count one more answer."""
        self.add(1, len(output.token_ids))

    def add(self, answers: int, tokens: int) -> None:
        """Count more answers, which have `tokens` tokens together."""
        self.tokens += tokens
        self.tracker.note(f"{self.tokens / max(1e-9, time.monotonic() - self.start):.0f} tokens/s")
        self.tracker.advance(answers)


def answer_all(
    responder: Responder,
    prompts: Sequence[Prompt],
    *,
    journal: Path,
    description: str,
    batch_size: int,
    concurrency: int = 0,
) -> list[Answer]:
    """Answers to every turn of every prompt, in the prompts' order.

    Turns that no longer fit the responder's context are left out, and the console says so; so are those that a server
    does not answer. `journal` is the file with the finished units of an interrupted call with the same arguments.
    `batch_size`: rows that are decoded at once. `concurrency`: conversations under way at once at a server; 0 where the
    model is in this process. UserError for a prompt that cannot be asked at all.
    """
    lengths = _prompt_lengths(responder, prompts)
    units = units_of(prompts, lengths, 1 if concurrency else GROUP * batch_size)
    finished = Journal(journal, unnamed=keys_of(prompts))  # whose prompts are the same, as `artifact.make` sees to

    def write(unit: Sequence[Prompt]) -> list[dict[str, Any]]:
        day = templates.day_there(responder.tokenizer) if concurrency else None  # the day that a server's template told
        return [asdict(answer) | ({DAY: day} if day else {}) for answer in respond(responder, unit)]

    with track(description, sum(len(p.turns) for p in prompts), "answers") as tracker:
        tracker.advance(sum(finished.count(key_of(prompt)) for prompt in prompts))
        responder.on_completion = Rate(tracker)
        for _ in run_units(units, write, finished, concurrency or 1):
            pass
    rows = finished.rows([key_of(prompt) for unit in units for prompt in unit])
    by_id = {row["id"]: Answer(**{key: value for key, value in row.items() if key != DAY}) for row in rows}
    answers = [by_id[responder.name(p, turn, 0)] for p in prompts for turn in range(len(p.turns))]
    _report_dropped(answers, description, responder.context)
    return [answer for answer in answers if not answer.dropped]


def _prompt_lengths(responder: Responder, prompts: Sequence[Prompt]) -> list[int]:
    """Tokens of each prompt's first turn; UserError for the first prompt that cannot be asked."""
    measured = fits(responder.tokenizer, prompts, responder.max_new_tokens, responder.context)
    if why := next((why for _, why in measured if why), ""):
        raise UserError(f"{why}.")
    return [length for length, _ in measured]


def _report_dropped(answers: Sequence[Answer], description: str, context: int | None) -> None:
    """Say how many answers were dropped, and why."""
    for why, count in Counter(answer.dropped for answer in answers if answer.dropped).items():
        full = f"{count} later turns have no room in the context of {context} and are left out"
        console.print(f"{description}: {full if why == FULL else f'left out: {count} ({why})'}", markup=False)


def _complete(answer: Answer, output: Completion, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]) -> None:
    """Fill in what the writer wrote."""
    if output.dropped:
        answer.dropped = output.dropped
        return
    text_ids = [token for token in output.token_ids if token not in eos_ids]
    answer.answer_ids, answer.finish_reason, answer.min_gap = output.token_ids, output.finish_reason, output.min_gap
    answer.messages = [
        *answer.messages,
        {"role": "assistant", "content": text_of(tokenizer, text_ids, special=True).strip()},
    ]
    answer.topk_ids = [i for row in output.topk_ids for i in row]
    answer.topk_logprobs = [float(f"{v:.5g}") for row in output.topk_logprobs for v in row]  # float16 holds less
