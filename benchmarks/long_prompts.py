"""Long prompts of real prose: Python's documentation, as its standard library carries it, with a task at the end.

    python benchmarks/long_prompts.py MODEL LENGTH COUNT > prompts.jsonl

writes such prompts for `eval` and `distill`, of LENGTH tokens of MODEL's, its chat template included.
"""

import json
import sys
from typing import Any

from sparsedraft.base.errors import UserError
from sparsedraft.models.tokenizers import templates

TASKS = (
    "Summarise the text above in a few paragraphs, and show its main points in a commented example in Python.",
    "Explain the text above to a colleague who is new to Python, with an example for each of its main points.",
    "Write a list of questions that the text above answers, and answer each of them in two or three sentences.",
)
SHORTEST = 1000  # characters of a topic: shorter ones are little more than links


def long_prompts(tokenizer: Any, length: int, count: int) -> list[list[int]]:
    """The ids of `long_texts`, with the chat template around them."""
    return [_chat(tokenizer, text) for text in long_texts(tokenizer, length, count)]


def long_texts(tokenizer: Any, length: int, count: int) -> list[str]:
    """`count` prompts of `length` tokens, the chat template included; each is of other topics.

    UserError where the documentation, or the length, is too short for them.
    """
    texts = iter(_topics())
    found: list[str] = []
    for number in range(count):
        task, ids = f"\n\n{TASKS[number % len(TASKS)]}", list[int]()
        room = length - len(_chat(tokenizer, task))
        if room < 1:
            raise UserError(f"{length} tokens leave no room for a text beside its task: give more.")
        while len(ids) < room:
            if (more := next(texts, None)) is None:
                raise UserError(f"Python's documentation is too short for {count} prompts of {length} tokens.")
            ids += tokenizer(f"{more}\n\n")["input_ids"]
        found.append(_fitted(tokenizer, ids[:room], task, length))
    return found


def _fitted(tokenizer: Any, ids: list[int], task: str, length: int) -> str:
    """The text `ids` and the task, in no more than `length` tokens: where they meet, tokens may split."""
    while (over := len(_chat(tokenizer, text := tokenizer.decode(ids) + task)) - length) > 0:
        ids = ids[:-over]
    return text


def _chat(tokenizer: Any, text: str) -> list[int]:
    return templates.chat_ids(tokenizer, [{"role": "user", "content": text}])


def _topics() -> list[str]:
    """The topics of `help()`, by name."""
    from pydoc_data.topics import topics

    return [topics[name].strip() for name in sorted(topics) if len(topics[name]) > SHORTEST]


if __name__ == "__main__":
    from sparsedraft.models import checkpoint

    model, wanted, number = sys.argv[1:]
    for place, prompt in enumerate(long_texts(checkpoint.load_tokenizer(model), int(wanted), int(number))):
        print(json.dumps({"id": f"documentation-{wanted}-{place}", "category": f"{wanted} tokens", "prompt": prompt}))
