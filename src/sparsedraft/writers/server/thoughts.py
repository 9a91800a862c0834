"""What a model thinks before it answers, put back where a server sends it apart from the answer.

A drafter reads all that follows the prompt, thoughts and their marks included. The marks are the model's own: its chat
template shows them where it writes an assistant's thoughts into a conversation, and only then are they put back so.
"""

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.templates import MARK

THOUGHT = "\u2e2f"  # stands for what is thought, as MARK for what is said; no template has it


def put_back(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], thoughts: str, said: str
) -> str | None:
    """The whole text of an answer to `messages`: thoughts, marks and answer; None where the template shows no thoughts.

    Space beside a mark is the server's own where it sends any, else the template's: some parsers strip it, one side or
    the other. Nothing `said` means that the answer was cut off among the thoughts.
    """
    marked = {"role": "assistant", "content": MARK, "reasoning_content": THOUGHT}
    try:
        begun = templates.render(tokenizer, messages, generation_prompt=True)
        whole = templates.render(tokenizer, [*messages, marked])
    except TemplateError:
        return None
    if not whole.startswith(begun):
        return None
    rest = whole[len(begun) :]
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
