"""The arguments that a model passes each layer beside the hidden states, and the proof that no text changes them.

A walk calls the layers itself, one after the other, with arguments that were recorded once. That is right only if they
depend on neither the text nor the other layers, and if a layer's output is all that the next one reads. No family is
trusted to be so; each model is tried. First it runs over every sequence with layers that return their input. What then
reaches the layers comes from the model's front alone, and must be the same each time. Then the unchanged model runs
over one sequence, and each layer, called once more with the recorded arguments, must give the same output.
"""

import inspect
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from sparsedraft.base.errors import UserError, first_line
from sparsedraft.layerwise.streamed import Streamed

Call = tuple[tuple, dict[str, Any]]  # positional arguments behind the hidden states, and named ones
FORMS: tuple[Callable[[Tensor], Any], ...] = (lambda h: h, lambda h: (h,), lambda h: (h, None))  # what a layer returns
BROKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)  # what a layer raises that lacks an input


class _Reached(Exception):
    """Raised to leave the model's forward at a layer."""


class _OtherForm(Exception):
    """The model reads a layer's output in another form than this."""


@torch.no_grad()
def record(model: Streamed, ids: Tensor) -> tuple[list[Call], int]:
    """(the arguments of each layer for any sequence of the length of `ids` [n, length], a batch of one; the width of
    the hidden states).

    Everything outside the layers must be in memory (`model.front`); the layers are loaded one at a time. Raises
    UserError, which names the argument, for a model whose layers cannot run one after the other.
    """
    calls, width, form = _calls_of_front(model, ids[:1])
    for row in range(1, len(ids)):
        others, _ = _calls(model, ids[row : row + 1], form)
        for index, (call, other) in enumerate(zip(calls, others, strict=True)):
            if name := _difference(model.layers[index], call, other):
                raise _refused(model, f"{name} of layer {index} depends on the text")
    _replay(model, ids[:1], calls)
    return calls, width


def check_model(model: Streamed) -> None:
    """Raise UserError, as `record` does, for a model that cannot be walked.

    It reads the layers once, with 16 tokens of text: a recipe asks before the long work that comes first.
    """
    vocabulary: int = model.model.get_input_embeddings().num_embeddings
    with model.front():
        record(model, (torch.arange(16) % vocabulary).view(2, 8))


def fresh(call: Call) -> Call:
    """A copy of the arguments, so that what a layer writes into a container does not reach the next call."""
    args, kwargs = call
    return tuple(map(_copied, args)), {key: _copied(value) for key, value in kwargs.items()}


def hidden_of(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """(the hidden states that a layer is called with, its other arguments)."""
    rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
    return (args[0], (args[1:], rest)) if args else (kwargs["hidden_states"], ((), rest))


def output_of(out: Any) -> Tensor:
    """The hidden states among what a layer returns."""
    return out[0] if isinstance(out, tuple) else out


def _calls_of_front(model: Streamed, ids: Tensor) -> tuple[list[Call], int, Callable[[Tensor], Any]]:
    """(the arguments of each layer, the width, the form of a layer's output), where layers pass their input on."""
    why = ""
    for form in FORMS:
        try:
            return *_calls(model, ids, form), form
        except (_OtherForm, *BROKEN) as error:
            why = why or first_line(error)
    raise _refused(model, f"a layer reads more than the output of the one before ({why})")


def _calls(model: Streamed, ids: Tensor, form: Callable[[Tensor], Any]) -> tuple[list[Call], int]:
    """(the arguments of each layer, the width), where all of them return `form` of their hidden states."""
    calls: list[Call] = []
    seen: list[Tensor] = []

    def passing(*args: Any, **kwargs: Any) -> Any:
        hidden, call = hidden_of(args, kwargs)
        if seen and (hidden.shape != seen[0].shape or not torch.equal(hidden, seen[0])):
            raise _OtherForm("something changes the hidden states between two layers")
        seen.append(hidden)
        calls.append(fresh(call))
        return form(hidden)

    try:
        with _forwards(model.layers, passing):
            model.model(input_ids=ids.to(model.device), use_cache=False)
    except BROKEN:
        if len(calls) < len(model):
            raise  # else it was the head, whose weights are not in memory, and all layers were called
    if seen and seen[0].dim() != 3:
        raise _refused(model, f"the layers read {list(seen[0].shape)}, not one state a token")
    if len(calls) != len(model):
        raise _refused(model, f"{len(model)} layers are called {len(calls)} times")
    return calls, seen[0].shape[-1]


@contextmanager
def _forwards(layers: list[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """While this lasts, every layer's forward is `forward`."""
    try:
        for layer in layers:
            layer.forward = forward
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _replay(model: Streamed, ids: Tensor, calls: list[Call]) -> None:
    """UserError where a layer, called with its arguments of `calls`, gives another output than within the model."""
    at = 0
    inputs: list[Tensor] = []  # of the layer that runs
    outputs: list[Tensor] = []  # of the layer before it

    def before(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden, _ = hidden_of(args, kwargs)
        if layer is not model.layers[at]:
            raise _refused(model, f"layer {at} is not called in its turn")
        if outputs and not _same(hidden, outputs.pop()):
            raise _refused(model, f"layer {at} reads something else than the output of layer {at - 1}")
        inputs[:] = [hidden.clone()]
        model.load(at)

    def after(layer: nn.Module, args: tuple, output: Any) -> None:
        nonlocal at
        call, right = fresh(calls[at]), output_of(output)
        try:
            alone = output_of(layer.forward(inputs[0], *call[0], **call[1]))  # not layer(...), which has these hooks
        except BROKEN as error:
            raise _refused(model, f"layer {at} needs what other layers leave ({first_line(error)})") from None
        if not _same(right, alone):
            raise _refused(model, f"the output of layer {at} depends on what other layers leave")
        model.unload(at)
        at += 1
        outputs[:] = [right]
        if at == len(model):
            raise _Reached

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in model.layers]
    hooks += [layer.register_forward_hook(after) for layer in model.layers]
    try:
        with suppress(_Reached):
            model.model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to the order of sums; NaN equals NaN here, and is refused elsewhere."""
    if a.shape != b.shape:
        return False
    scale = a.detach().float().abs().nan_to_num().amax()
    return bool(torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-3 * float(scale), equal_nan=True))


def _difference(layer: nn.Module, one: Call, other: Call) -> str | None:
    """The name of an argument in which two calls of `layer` differ."""
    names = [name for name in inspect.signature(type(layer).forward).parameters if name not in ("self", "args")][1:]
    for place, pair in enumerate(zip(*(call[0] for call in (one, other)), strict=False)):
        if not _equal(*pair):
            return names[place] if place < len(names) else f"argument {place + 1}"
    for key in {**one[1], **other[1]}:
        if not _equal(one[1].get(key), other[1].get(key)):
            return key
    return None if len(one[0]) == len(other[0]) else "an argument"


def _equal(a: Any, b: Any) -> bool:
    """Whether two arguments hold the same: tensors by their numbers, containers and objects by what is in them.

    Numbers may differ by rounding: of torch 2.13 on two threads the first cosines of a process were now and then 1e-4
    off, those after them not.
    """
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        same = _same if a.is_floating_point() else torch.equal
        return a.shape == b.shape and a.dtype == b.dtype and same(a, b)
    if isinstance(a, dict | UserDict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return _equal(vars(a), vars(b)) if hasattr(a, "__dict__") else bool(a == b)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | UserDict | list) else value


def _refused(model: Streamed, what: str) -> UserError:
    return UserError(
        f"model {model.folder} ({model.model.config.get_text_config().model_type}) cannot be pruned or cut layer by "
        f"layer, because {what}: choose a drafter whose layers read nothing but the layer before."
    )
