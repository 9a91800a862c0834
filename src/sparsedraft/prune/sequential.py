"""Walk a model layer by layer with the activations of the already pruned prefix.

Works for any decoder: a first pass of the model's own forward records what it hands to each layer beside the hidden
states (position embeddings, masks, which differ by layer in some families), so nothing is assumed about them.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsedraft.decoder import decoder_layers, linears_of
from sparsedraft.prune.sparsegpt import Hessian

BATCH = 4096  # tokens that go through a layer at once


class _Reached(Exception):
    """Raised to leave the model's forward at its first layer."""


@dataclass
class Activations:
    """Hidden states before the layer at work, a batch [b, L, hidden] each, and every layer's other arguments."""

    hidden: list[Tensor]
    arguments: list[dict[str, Any]]  # by layer; of a batch of one, which broadcasts over any


@torch.no_grad()
def capture(model: PreTrainedModel, ids: Tensor) -> Activations:
    """The inputs of the first decoder layer for calibration `ids` [n, L], and the other arguments of all layers."""
    layers = decoder_layers(model)
    found = Activations([], [])

    def arguments(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        found.arguments.append({k: v for k, v in kwargs.items() if k != "hidden_states"})

    def hidden(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        found.hidden.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    hooks = [layer.register_forward_pre_hook(arguments, with_kwargs=True) for layer in layers]
    model(input_ids=ids[:1].to(model.device), use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    first = layers[0].register_forward_pre_hook(hidden, with_kwargs=True)
    try:
        for batch in ids.split(max(1, BATCH // ids.shape[1])):
            with contextlib.suppress(_Reached):
                model(input_ids=batch.to(model.device), use_cache=False)
    finally:
        first.remove()
    return found


@torch.no_grad()
def advance(layer: nn.Module, index: int, activations: Activations) -> None:
    """Replace the hidden states by the layer's outputs."""
    for i, hidden in enumerate(activations.hidden):
        out = layer(hidden, **activations.arguments[index])
        activations.hidden[i] = out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def hessians(layer: nn.Module, index: int, activations: Activations) -> dict[str, Hessian]:
    """The Hessian of every linear of the layer, by name; linears that read the same input share one."""
    linears = linears_of(layer)
    shared: dict[str, Hessian] = {}
    last: list[tuple[Tensor, Hessian]] = []  # inputs of this batch, and where they were counted

    def count(name: str) -> Callable[[nn.Module, tuple], None]:
        def hook(module: nn.Module, args: tuple) -> None:
            x = args[0]
            for tensor, hessian in last:
                if tensor is x:
                    shared[name] = hessian
                    return
            hessian = shared.setdefault(name, Hessian(x.shape[-1], x.device))
            hessian.add(x)
            last.append((x, hessian))

        return hook

    hooks = [linear.register_forward_pre_hook(count(name)) for name, linear in linears.items()]
    try:
        for hidden in activations.hidden:
            last.clear()
            layer(hidden, **activations.arguments[index])
    finally:
        for hook in hooks:
            hook.remove()
    return shared


@torch.no_grad()
def walk(model: PreTrainedModel, ids: Tensor) -> Iterator[tuple[int, nn.Module, Activations]]:
    """Each decoder layer with the activations that reach it; the caller may change its weights before the next."""
    activations = capture(model, ids)
    for index, layer in enumerate(decoder_layers(model)):
        yield index, layer, activations
        advance(layer, index, activations)
