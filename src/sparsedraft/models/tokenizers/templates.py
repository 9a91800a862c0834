"""Chat templates: the one place that applies them, with what the user gives them and with a day that stands still.

A template may ask for more than the messages: Qwen3's for `enable_thinking`, some for today's date. The first are
`Arguments`, which lie with the tokenizer once `give` has put them there; the second is always DAY, so that the same
work gives the same bytes on any day.
"""

import inspect
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Protocol, cast

from jinja2 import Environment, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from sparsedraft.base.errors import UserError

DAY = datetime(2024, 7, 26, 12)
DATE_STRING = DAY.strftime("%d %b %Y")  # as the templates of Llama 3.1 and later have it: "26 Jul 2024"
MARK = "\u2e2e"  # stands for what somebody says while a chat template is looked at; no template has it
FUNCTIONS = ("strftime_now", "raise_exception", "namespace", "dict", "range", "cycler", "joiner", "lipsum")

Arguments = Mapping[str, Any]  # of a template, by name; the values are JSON


class Refused(UserError):
    """The template takes no such conversation, whatever its words."""


class _Given(Protocol):
    template_arguments: Arguments


def give(tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> PreTrainedTokenizerBase:
    """The same tokenizer, whose template gets `arguments` in every call from now on; what it does not use, it ignores.

    They are no part of what `save_pretrained` writes.
    """
    cast(_Given, tokenizer).template_arguments = dict(arguments)
    return tokenizer


def given(tokenizer: PreTrainedTokenizerBase) -> Arguments:
    """The arguments that `give` has put there."""
    found: Arguments = getattr(tokenizer, "template_arguments", {})
    return found


def inputs(arguments: Arguments) -> dict[str, object]:
    """Template arguments as a part of an artifact's inputs: nothing where there are none."""
    return {"template_args": dict(arguments)} if arguments else {}


def check(tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> None:
    """Raise UserError for an argument that the template does not use, or that is not the user's to give."""
    if not arguments:
        return
    require(tokenizer)
    reserved, asked = _reserved(tokenizer), variables(tokenizer)
    known = sorted(asked - reserved)
    for name in arguments:
        if name in reserved:
            raise UserError(f"--template-arg {name} is what the template gets from sparsedraft itself: leave it out.")
        if name not in asked:
            raise UserError(
                f"--template-arg {name}: the chat template of {tokenizer.name_or_path} does not use it; "
                + (f"it uses {', '.join(known)}." if known else "it takes no arguments, leave it out.")
            )


def used(tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> dict[str, Any]:
    """Those of `arguments` that the template of `tokenizer` uses; none where it has no template."""
    names = variables(tokenizer) if arguments and tokenizer.chat_template else frozenset()
    return {name: value for name, value in arguments.items() if name in names}


def require(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the chat template; UserError where the tokenizer has none."""
    if not tokenizer.chat_template:
        raise UserError(f"model {tokenizer.name_or_path} has no chat template: use an instruction-tuned model.")
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several by name, and no default
        raise _broken(tokenizer, error) from None


class _Generation(Extension):
    """transformers' own tag around what an assistant says."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def variables(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Every name that the template asks for and does not make itself, in any of its branches."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(require(tokenizer))))
    except TemplateSyntaxError as error:
        raise _broken(tokenizer, error) from None


def _reserved(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """What the template gets without the user: arguments of `apply_chat_template`, special tokens, functions."""
    own = inspect.signature(tokenizer.apply_chat_template).parameters
    return {"messages", *own, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES, *tokenizer.special_tokens_map, *FUNCTIONS}


def asks_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether another program that applies the template puts its own day into the text, whatever it is given."""
    asked = variables(tokenizer) if tokenizer.chat_template else frozenset()
    return "strftime_now" in asked and "date_string" not in asked


def day_there(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The day, as 2024-07-26, that a server's template tells the model now, where it cannot be pinned; else None."""
    return date.today().isoformat() if asks_clock(tokenizer) else None


def for_server(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a server that applies the template itself must get beside the messages, to apply it as it is applied here.

    The pinned day where the template asks for one as an argument, and the user's own arguments.
    """
    dated = {"date_string": DATE_STRING} if "date_string" in str(tokenizer.chat_template) else {}
    sent = dated | dict(given(tokenizer))
    return {"chat_template_kwargs": sent} if sent else {}


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], *, generation_prompt: bool = False
) -> str:
    """A conversation as text. Raises jinja2's TemplateError where the template refuses it, UserError where there is
    none or a broken one."""
    return str(_apply(tokenizer, messages, tokenize=False, add_generation_prompt=generation_prompt))


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], *, generation_prompt: bool = True
) -> list[int]:
    """Token ids of a conversation under the chat template; UserError where it has none or a broken one, Refused where
    it takes other conversations."""
    try:
        ids = _apply(tokenizer, messages, return_dict=False, add_generation_prompt=generation_prompt)
    except TemplateError as error:  # some refuse a system message, or two turns of one role
        raise Refused(
            f"the chat template of {tokenizer.name_or_path} refuses a conversation of "
            f"{', '.join(str(m['role']) for m in messages)} ({error}): change the prompts."
        ) from None
    return [int(i) for i in ids]


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """What the tokenizer's own `apply_chat_template` makes of the messages, on the pinned day."""
    template = require(tokenizer)
    arguments = {"date_string": DATE_STRING} | dict(given(tokenizer))
    try:
        if "strftime_now" in template:  # a function is no argument that gets through; this finds the compiled template
            _compile_jinja_template(template).environment.globals["strftime_now"] = DAY.strftime
        return tokenizer.apply_chat_template([dict(message) for message in messages], **options, **arguments)
    except Exception as error:  # a broken template fails in any way
        if isinstance(error, TemplateError) and not isinstance(error, TemplateSyntaxError):
            raise
        raise _broken(tokenizer, error) from None


def _broken(tokenizer: PreTrainedTokenizerBase, error: Exception) -> UserError:
    return UserError(f"the chat template of {tokenizer.name_or_path} fails ({error}): mend it.")
