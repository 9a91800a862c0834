"""A model's thoughts, put back before its answer where a server sends them separately.

A drafter reads everything after the prompt, including thoughts and the marks around them. The chat template shows these
marks if it writes an assistant's thoughts into a conversation; only then can they be put back.
"""

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.templates import MARK

THOUGHT = "\u2e2f"  # stands for thoughts, as MARK does for an answer; no template contains it


def put_back(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], thoughts: str, said: str
) -> str | None:
    """The whole text of an answer to `messages`: thoughts, marks and answer; None if the template shows no thoughts.

    White space beside a mark is the server's if it sends any, else the template's: some servers strip it. If nothing
    was `said`, the answer was cut off among the thoughts.
    """
    message = {"role": "assistant", "content": MARK, "reasoning_content": THOUGHT}
    try:
        prompt = templates.render(tokenizer, messages, generation_prompt=True)
        whole = templates.render(tokenizer, [*messages, message])
    except TemplateError:
        return None
    if not whole.startswith(prompt):
        return None
    rest = whole[len(prompt) :]
    if rest.count(THOUGHT) != 1 or rest.count(MARK) != 1 or rest.index(THOUGHT) > rest.index(MARK):
        return None
    opening, _, rest = rest.partition(THOUGHT)
    closing = rest.partition(MARK)[0]
    if not closing.strip():
        return None  # nothing would tell the thoughts from the answer
    if thoughts[:1].isspace():
        opening = opening.rstrip()
    if not said.strip():
        return opening + thoughts
    if thoughts[-1:].isspace():
        closing = closing.lstrip()
    if said[:1].isspace():
        closing = closing.rstrip()
    return opening + thoughts + closing + said
