"""Chat templates are applied here only, with the user's arguments and on a fixed day.

A template may ask for more than the messages: Qwen3's asks for `enable_thinking`, some ask for today's date. The user's
values are `Arguments`, which `give` attaches to the tokenizer. The date is always DAY, so that the same work gives the
same bytes on any day.
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
MARK = "\u2e2e"  # stands for a message when a template is examined; no template contains it
FUNCTIONS = ("strftime_now", "raise_exception", "namespace", "dict", "range", "cycler", "joiner", "lipsum")

Arguments = Mapping[str, Any]  # of a template, by name; the values are JSON


class Refused(UserError):
    """The template refuses a conversation of these roles, whatever its words."""


class _Given(Protocol):
    template_arguments: Arguments


def give(tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> PreTrainedTokenizerBase:
    """The same tokenizer; from now on its template gets `arguments` in every call, and ignores those it does not use.

    `save_pretrained` does not write them.
    """
    cast(_Given, tokenizer).template_arguments = dict(arguments)
    return tokenizer


def given(tokenizer: PreTrainedTokenizerBase) -> Arguments:
    """The arguments that `give` attached."""
    arguments: Arguments = getattr(tokenizer, "template_arguments", {})
    return arguments


def inputs(arguments: Arguments) -> dict[str, object]:
    """Template arguments as part of an artifact's inputs; {} if there are none."""
    return {"template_args": dict(arguments)} if arguments else {}


def check(tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> None:
    """Raise UserError for an argument that the template does not use, or that sparsedraft itself sets."""
    if not arguments:
        return
    require(tokenizer)
    reserved, names = _reserved(tokenizer), variables(tokenizer)
    free = sorted(names - reserved)
    for name in arguments:
        if name in reserved:
            raise UserError(f"--template-arg {name} is what the template gets from sparsedraft itself: leave it out.")
        if name not in names:
            raise UserError(
                f"--template-arg {name}: the chat template of {tokenizer.name_or_path} does not use it; "
                + (f"it uses {', '.join(free)}." if free else "it takes no arguments, leave it out.")
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
    """Every name that the template uses without defining it, in any of its branches."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(require(tokenizer))))
    except TemplateSyntaxError as error:
        raise _broken(tokenizer, error) from None


def _reserved(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The names that the template gets without the user: `apply_chat_template`'s, special tokens, functions."""
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters
    return {"messages", *parameters, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES, *tokenizer.special_tokens_map, *FUNCTIONS}


def asks_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template takes the day from the clock of the program that applies it, and not from an argument."""
    names = variables(tokenizer) if tokenizer.chat_template else frozenset()
    return "strftime_now" in names and "date_string" not in names


def day_there(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Today as 2024-07-26, if a server's template tells it to the model and nobody can pin it; else None."""
    return date.today().isoformat() if asks_clock(tokenizer) else None


def for_server(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a server must get beside the messages so that it applies the template as it is applied here.

    That is the pinned day, if the template takes it as an argument, and the user's arguments.
    """
    dated = {"date_string": DATE_STRING} if "date_string" in str(tokenizer.chat_template) else {}
    arguments = dated | dict(given(tokenizer))
    return {"chat_template_kwargs": arguments} if arguments else {}


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A conversation as text, with the `tools` that the model may call. Raises jinja2's TemplateError where the
    template refuses it, UserError where there is none or a broken one."""
    options = {"tokenize": False, "add_generation_prompt": generation_prompt, **_with(tools)}
    return str(_apply(tokenizer, messages, **options))


def _with(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"tools": [dict(tool) for tool in tools]} if tools else {}


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Token ids of a conversation under the chat template, with the `tools` that the model may call; UserError where it
    has none or a broken one, Refused where it takes other conversations."""
    try:
        options = {"return_dict": False, "add_generation_prompt": generation_prompt, **_with(tools)}
        ids = _apply(tokenizer, messages, **options)
    except TemplateError as error:  # some refuse a system message, or two turns of one role
        raise Refused(
            f"the chat template of {tokenizer.name_or_path} refuses a conversation of "
            f"{', '.join(str(m['role']) for m in messages)} ({error}): change the prompts."
        ) from None
    return [int(i) for i in ids]


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """The result of the tokenizer's `apply_chat_template`, on the pinned day."""
    template = require(tokenizer)
    arguments = {"date_string": DATE_STRING} | dict(given(tokenizer))
    try:
        if "strftime_now" in template:  # transformers passes no functions on, so it is set in the compiled template
            _compile_jinja_template(template).environment.globals["strftime_now"] = DAY.strftime
        return tokenizer.apply_chat_template([dict(message) for message in messages], **options, **arguments)
    except Exception as error:  # a broken template fails in any way
        if isinstance(error, TemplateError) and not isinstance(error, TemplateSyntaxError):
            raise
        raise _broken(tokenizer, error) from None


def _broken(tokenizer: PreTrainedTokenizerBase, error: Exception) -> UserError:
    return UserError(f"the chat template of {tokenizer.name_or_path} fails ({error}): mend it.")
